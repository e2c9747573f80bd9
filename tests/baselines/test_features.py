"""Features of baselines against a loop over each career."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import settings_of, small_run

from laborllm_dist.baselines.features import STATIC, CareerFeatures, career_features, categories_of, features_on_disk
from laborllm_dist.store.build import prepare_store
from laborllm_dist.store.store import TokenStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    folder = tmp_path_factory.mktemp("features")
    return prepare_store(settings_of(small_run(folder, num_people=150)))


@pytest.fixture(scope="module")
def features(store: TokenStore) -> CareerFeatures:
    return career_features(store.careers("train"), categories_of(store.careers("train")))


def test_features_are_those_of_a_loop_over_the_jobs(store: TokenStore, features: CareerFeatures) -> None:
    careers, index = store.careers("train"), 0
    place = {code: number for number, code in enumerate(store.vocabulary.codes)}
    none = len(place)
    for row in range(len(careers)):
        jobs = careers.history(row).jobs
        assert features.lengths[row] == len(jobs)
        assert features.starts[row] == index
        codes = [none, none, *(place[each.occupation] for each in jobs)]
        for position, job in enumerate(jobs):
            assert (features.career[index], features.position[index]) == (row, position)
            assert features.occupation[index] == codes[position + 2]
            assert features.previous[index] == codes[position + 1]
            assert features.second_previous[index] == codes[position]
            spell = position
            while spell > 1 and jobs[spell - 2].occupation == jobs[position - 1].occupation:
                spell -= 1
            assert features.tenure[index] == (job.year - jobs[spell - 1].year if position else 0)
            assert features.experience[index] == job.year - jobs[0].year
            before = jobs[position - 1] if position else None
            assert features.is_gap[index] == (before is not None and job.year != before.year + 1)
            assert features.is_new_education[index] == (before is not None and job.education != before.education)
            index += 1
    assert index == len(features)
    assert features.tenure.max() > 1
    assert features.is_gap.any()
    assert features.is_new_education.any()


def test_categories_are_those_of_training_people(store: TokenStore, features: CareerFeatures) -> None:
    careers = store.careers("train")
    categories = categories_of(careers)
    for name in STATIC:
        values = categories.values[name].to_pylist()
        column = careers.table[name].to_pylist()
        assert values == sorted({value for value in column if value is not None})
        encoded = [features.covariates[name][start] for start in features.starts]
        assert encoded == [0 if value is None else values.index(value) + 1 for value in column]
        assert categories.sizes()[name] == len(values) + 1
    # What training people do not have is unknown.
    fewer = dataclasses.replace(categories, values={**categories.values, "gender": categories.values["gender"][:0]})
    assert not career_features(careers, fewer).covariates["gender"].any()


def test_features_in_files_are_the_same(
    store: TokenStore, features: CareerFeatures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laborllm_dist.baselines.features.CAREERS_PER_BLOCK", 7)
    careers = store.careers("train")
    on_disk = features_on_disk(careers, categories_of(careers), tmp_path)
    for field in dataclasses.fields(CareerFeatures):
        ours, whole = getattr(on_disk, field.name), getattr(features, field.name)
        if field.name == "covariates":
            assert ours.keys() == whole.keys()
            assert all(np.array_equal(ours[name], whole[name]) for name in whole)
        else:
            assert np.array_equal(ours, whole), field.name
    assert isinstance(on_disk.previous, np.memmap)
    assert not list(tmp_path.iterdir())  # the files have no names


def test_features_of_careers_that_are_cut_into_parts_are_those_of_whole_ones(tmp_path: Path) -> None:
    whole, cut = (
        prepare_store(settings_of(small_run(tmp_path, *more, num_people=60))).careers("train")
        for more in ([], ["template.max_history=2"])
    )
    assert len(cut) > len(whole)
    one, other = (career_features(careers, categories_of(careers)) for careers in (whole, cut))
    for field in dataclasses.fields(CareerFeatures):
        np.testing.assert_equal(getattr(other, field.name), getattr(one, field.name), err_msg=field.name)
