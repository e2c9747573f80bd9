"""Fractions and weights of pooled corpora: by people, nested, the same for every number of ranks."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
from helpers.errors import raises
from helpers.runs import settings_of, small_run
from helpers.stores import pooled
from scipy import stats

from laborllm_dist.baselines.frequency import first_order_table, marginal_table
from laborllm_dist.batching.sampler import TrainingSampler
from laborllm_dist.batching.training_plan import plan_training
from laborllm_dist.careers.splits import in_fraction
from laborllm_dist.config.run import RunSettings
from laborllm_dist.io.run_directory import run_fingerprint
from laborllm_dist.store.build import locate_store, prepare_store
from laborllm_dist.store.pooling import TrainingPool, training_pool


def changed(settings: RunSettings, **corpora: dict[str, float]) -> RunSettings:
    """Return settings with other fractions and weights."""
    data = settings.data
    new = {name: dataclasses.replace(corpus, **corpora.get(name, {})) for name, corpus in data.corpora.items()}
    return dataclasses.replace(settings, data=dataclasses.replace(data, corpora=new))


def people_of(settings: RunSettings) -> set[tuple[str, str]]:
    store = prepare_store(settings)
    careers = store.careers("train")
    return {careers.person(int(row)) for row in training_pool(store, settings).rows}


def test_fractions_are_nested_near_their_share_and_need_no_new_store(tmp_path: Path) -> None:
    settings = settings_of(small_run(tmp_path, num_people=400))
    folders, people = set(), []
    for fraction in (0.2, 0.4, 0.6, 0.8, 1.0):
        changed_settings = changed(settings, synthetic={"fraction": fraction})
        folders.add(locate_store(changed_settings).folder)
        people.append(people_of(changed_settings))
    assert len(folders) == 1
    for smaller, larger in itertools.pairwise(people):
        assert smaller < larger
    # Three standard errors of a share of about 280 people are at most .09.
    np.testing.assert_allclose([len(each) / len(people[-1]) for each in people], [0.2, 0.4, 0.6, 0.8, 1], atol=0.09)
    assert all(in_fraction(survey, person, settings.split, 0.2) for survey, person in people[0])


def test_a_corpus_s_people_do_not_depend_on_what_else_is_pooled(tmp_path: Path) -> None:
    together = changed(pooled(tmp_path, "A", "B"), A={"fraction": 0.5})
    alone = changed(pooled(tmp_path, "A"), A={"fraction": 0.5})
    assert {person for person in people_of(together) if person[0] == "A"} == people_of(alone)


def test_a_corpus_of_weight_0_is_evaluated_only(tmp_path: Path) -> None:
    settings = changed(pooled(tmp_path, "A", "B"), B={"weight": 0.0})
    assert {survey for survey, _ in people_of(settings)} == {"A"}
    store = prepare_store(settings)
    assert set(store.careers("test").table["survey"].to_pylist()) == {"A", "B"}
    with raises("data-file/no-training-people"):
        people_of(changed(settings, A={"weight": 0.0}, B={"weight": 0.0}))


def test_an_epoch_takes_each_career_as_often_as_its_weight_says() -> None:
    rows = np.arange(100, 130)
    weights = np.repeat([1.0, 2.5, 0.3], 10)
    order = TrainingSampler(rows, weights, global_batch_size=8, seed=3)
    assert order.careers_per_epoch == 10 + 25 + 3
    assert order.steps_per_epoch == 5
    once_more: list[set[int]] = []
    for epoch in range(3):
        taken = Counter(np.concatenate([order.careers_of_step(5 * epoch + step) for step in range(5)]).tolist())
        assert [taken[row] for row in range(100, 110)] == [1] * 10
        assert sorted(taken[row] for row in range(110, 120)) == [2] * 5 + [3] * 5
        assert sorted(taken[row] for row in range(120, 130)) == [0] * 7 + [1] * 3
        once_more.append({row for row in range(110, 120) if taken[row] == 3})
    assert len({frozenset(each) for each in once_more}) > 1
    again = TrainingSampler(rows, weights, global_batch_size=8, seed=3)
    assert all((order.careers_of_step(step) == again.careers_of_step(step)).all() for step in range(15))


def test_the_plan_trains_on_the_pool_alone_and_counts_its_steps(tmp_path: Path) -> None:
    settings = changed(pooled(tmp_path, "A", "B"), A={"fraction": 0.5, "weight": 2.0}, B={"weight": 0.0})
    store = prepare_store(settings)
    plan = plan_training(store, settings, world_size=1)
    pool = training_pool(store, settings)
    assert plan.order.careers_per_epoch == 2 * len(pool.rows)
    taken = Counter(row for step in range(plan.order.steps_per_epoch) for row in plan.step(step).careers.tolist())
    assert taken == dict.fromkeys(pool.rows.tolist(), 2)


def with_bootstrap(settings: RunSettings, seed: int | None) -> RunSettings:
    return dataclasses.replace(settings, training=dataclasses.replace(settings.training, bootstrap_seed=seed))


def test_a_refit_takes_people_as_often_as_poisson_counts_and_one_more_corpus_changes_nobody(tmp_path: Path) -> None:
    settings = with_bootstrap(settings_of(small_run(tmp_path, num_people=1000)), 1)
    store = prepare_store(settings)
    everybody = len(store.careers("train"))

    def counts(seed: int) -> dict[int, float]:
        pool = training_pool(store, with_bootstrap(settings, seed))
        return dict(zip(pool.rows.tolist(), pool.weights.tolist(), strict=True))

    drawn = counts(1)
    observed = [everybody - len(drawn), *(sum(count == times for count in drawn.values()) for times in (1, 2, 3))]
    expected = everybody * stats.poisson.pmf(np.arange(4), 1.0)
    assert np.all(np.abs(observed - expected) < 4 * np.sqrt(expected))
    assert drawn == counts(1) != counts(2)
    both = stats.contingency.crosstab(
        [row in drawn for row in range(everybody)], [row in counts(2) for row in range(everybody)]
    )
    assert stats.chi2_contingency(both.count).pvalue > 1e-4  # two seeds are independent
    together, alone = (with_bootstrap(pooled(tmp_path, *names), 1) for names in (("A", "B"), ("A",)))
    assert {person for person in people_of(together) if person[0] == "A"} == people_of(alone)
    assert run_fingerprint(settings, "store", None) != run_fingerprint(with_bootstrap(settings, None), "store", None)


def test_another_fraction_is_another_run(tmp_path: Path) -> None:
    settings = settings_of(small_run(tmp_path))
    prints = {
        run_fingerprint(changed(settings, synthetic=change), "store", None)
        for change in ({}, {"fraction": 0.5}, {"weight": 0.5}, {"download_hint": "x"})
    }
    assert len(prints) == 3


def test_frequency_tables_learn_from_the_pool_alone() -> None:
    from helpers.scoring_cases import rows_of_codes

    train, validation = rows_of_codes("ab", "cc", "aa"), rows_of_codes("ab")
    pool = TrainingPool(np.array([0, 2]), np.array([2.0, 1.0]))
    shares = np.exp(marginal_table(train, pool).log_probabilities[0])
    # a: 2 + 2, b: 2, c: 0; one added to each.
    np.testing.assert_allclose(shares, [5 / 9, 3 / 9, 1 / 9])
    table = first_order_table(train, pool, validation)
    strength = float(table.details["smoothing"].split()[0])
    expected = (np.array([1, 2, 0]) + strength * np.array([5, 3, 1]) / 9) / (3 + strength)
    np.testing.assert_allclose(np.exp(table.log_probabilities[0]), expected)


def test_wrong_fractions_and_weights_are_refused() -> None:
    with raises("settings/invalid", "data.corpora.wage_panel.fraction", "a number from 0 to 1"):
        settings_of(["data.corpora.wage_panel.fraction=1.5"])
    with raises("settings/invalid", "data.corpora.wage_panel.weight", "a number from 0 to 1,000"):
        settings_of(["data.corpora.wage_panel.weight=-1"])
