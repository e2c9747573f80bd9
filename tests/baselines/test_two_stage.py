"""Two-stage models: the distribution by hand, what each logit may depend on, and a training that is killed."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.errors import raises
from helpers.runs import settings_of, small_run

from laborllm_dist.baselines.career import Career, sinusoidal_positions
from laborllm_dist.baselines.features import VARYING, CareerFeatures, career_features, categories_of
from laborllm_dist.baselines.fit import career_batch, fit, learning_rate, log_probabilities, mean_loss
from laborllm_dist.baselines.two_stage import (
    MARKS,
    START,
    BagOfJobs,
    TwoStageLogit,
    TwoStageModel,
    two_stage_log_probabilities,
)
from laborllm_dist.careers.splits import SPLITS
from laborllm_dist.config.baselines import FitSettings
from laborllm_dist.store.build import prepare_store

FIT = FitSettings(
    learning_rate=5e-3, warmup_updates=5, max_updates=24, tokens_per_batch=400, weight_decay=0.01,
    validate_every_epochs=1, patience=100, seed=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CareerFeatures]:
    folder = tmp_path_factory.mktemp("two_stage")
    store = prepare_store(settings_of(small_run(folder, num_people=120)))
    categories = categories_of(store.careers("train"))
    return {split: career_features(store.careers(split), categories) for split in SPLITS}


def models(features: CareerFeatures) -> list[TwoStageModel]:
    torch.manual_seed(0)
    num, sizes = features.num_occupations, features.num_categories
    logit, bag = TwoStageLogit(num, sizes), BagOfJobs(num, sizes, 8, VARYING)
    for parameter in logit.parameters():
        torch.nn.init.normal_(parameter)
    return [logit, bag, Career(num, sizes, num_layers=2, width=16, num_heads=2, feed_forward=32, dropout=0.1)]


def test_the_distribution_is_the_one_of_the_definition() -> None:
    logits = [0.5, -1.0, 20.0, 0.3]  # three symbols, 20 is clamped to 10; the last one is that of staying
    log_p = two_stage_log_probabilities(torch.tensor([logits]), torch.tensor([1]))[0]
    stay = 1 / (1 + math.exp(-0.3))
    total = math.exp(0.5) + math.exp(10.0)
    expected = [(1 - stay) * math.exp(0.5) / total, stay, (1 - stay) * math.exp(10.0) / total]
    assert log_p.exp().tolist() == pytest.approx(expected, rel=1e-5)
    assert sum(expected) == pytest.approx(1)


@pytest.mark.parametrize("index", range(3))
def test_a_logit_depends_on_earlier_jobs_only_and_not_on_padding(index: int, splits: dict[str, CareerFeatures]) -> None:
    features = splits["train"]
    model = models(features)[index].eval()
    long, short = int(features.lengths.argmax()), int(features.lengths.argmin())
    num_short = features.lengths[short]
    assert num_short < features.lengths[long]
    ones = np.ones(len(features.lengths))
    both, alone = career_batch(features, np.array([long, short]), ones), career_batch(features, np.array([short]), ones)
    with torch.no_grad():
        whole = model.log_probabilities(both)
        torch.testing.assert_close(whole[1, :num_short], model.log_probabilities(alone)[0])
        cut = int(features.lengths[long]) // 2
        other = both.previous_BT.clone()
        other[0, cut:] = (other[0, cut:] + 1) % features.num_occupations
        changed = model.log_probabilities(dataclasses.replace(both, previous_BT=other))
    torch.testing.assert_close(changed[0, :cut], whole[0, :cut])
    assert not torch.allclose(changed[0, cut], whole[0, cut])
    sums = whole.exp().sum(dim=-1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-4)


def test_a_first_observation_has_the_start_mark_before_it(splits: dict[str, CareerFeatures]) -> None:
    features = splits["train"]
    batch = career_batch(features, np.arange(3), np.ones(len(features.lengths)))
    assert batch.previous_BT[:, 0].tolist() == [features.num_occupations + START] * 3
    assert batch.second_previous_BT[:, 1].tolist() == [features.num_occupations + START] * 3
    assert batch.previous_BT[0, 1] == features.occupation[0]


def test_the_context_of_a_bag_is_the_mean_of_the_jobs_before_the_present_one(splits: dict[str, CareerFeatures]) -> None:
    features = splits["train"]
    bag = models(features)[1]
    assert isinstance(bag, BagOfJobs)
    career = int(features.lengths.argmax())
    batch = career_batch(features, np.array([career]), np.ones(len(features.lengths)))
    with torch.no_grad():
        logits = bag(batch)[0]
        for step in (0, 1, 3):
            expected = torch.zeros(bag.num_symbols + 1)
            for name, effects in bag.fixed.items():
                expected += effects.output(effects.embedding(batch.covariates[name][0, step]))
            for name, present in bag.present.items():
                codes, context = (
                    batch.previous_BT[0] if name == "previous" else batch.covariates[name][0],
                    bag.context[name],
                )
                nothing = torch.tensor([context.embedding.num_embeddings - 1])
                before = context.embedding(torch.cat([nothing, codes[:step]])).mean(dim=0)
                expected += present.output(present.embedding(codes[step])) + context.output(before)
            torch.testing.assert_close(logits[step], expected)


def test_every_observation_is_scored_once(splits: dict[str, CareerFeatures]) -> None:
    features = splits["test"]
    model = models(features)[0]
    seen, total = [], 0.0
    for rows, log_p in log_probabilities(model, features):
        assert log_p.shape == (len(rows), features.num_occupations + len(MARKS))
        seen += rows.tolist()
        total += log_p[np.arange(len(rows)), features.occupation[rows]].sum()
    assert sorted(seen) == list(range(len(features)))
    assert mean_loss(model, features) == pytest.approx(-total / len(features))


def test_the_learning_rate_rises_and_falls_with_the_root() -> None:
    settings = dataclasses.replace(FIT, learning_rate=1e-3, warmup_updates=100)
    assert [learning_rate(step, settings) for step in (1, 50, 100, 400)] == pytest.approx([1e-5, 5e-4, 1e-3, 5e-4])


def test_positions_are_sines_and_cosines() -> None:
    angles = [2.0, 2e-2, 2e-4]
    assert sinusoidal_positions(3, 6)[2].tolist() == pytest.approx([*map(math.sin, angles), *map(math.cos, angles)])


class KilledError(Exception):
    """Stands for the end of a process."""


def test_a_training_that_was_killed_ends_with_the_same_weights(
    splits: dict[str, CareerFeatures], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("laborllm_dist.baselines.fit.SAVE_SECONDS", 0.0)
    train, validation = splits["train"], splits["validation"]
    weights = np.where(np.arange(len(train.lengths)) % 5 == 0, 0.0, 1.0)
    straight = models(train)[2]
    state = fit(straight, train, weights, validation, FIT, tmp_path / "straight.pt", "bag of jobs")
    assert state.step == 24
    assert state.best_loss < math.log(train.num_occupations)
    second = state.losses[1][0]

    def killed(line: str) -> None:
        if line.startswith(f"baselines: bag of jobs, step {second} "):
            raise KilledError

    with pytest.raises(KilledError), monkeypatch.context() as patched:
        patched.setattr("laborllm_dist.baselines.fit.logger.info", killed)
        fit(models(train)[2], train, weights, validation, FIT, tmp_path / "killed.pt", "bag of jobs")
    resumed = models(train)[2]
    assert fit(resumed, train, weights, validation, FIT, tmp_path / "killed.pt", "bag of jobs") == state
    for name, each in straight.state_dict().items():
        assert torch.equal(each, resumed.state_dict()[name]), name
    # A damaged state is not used, nor is the one that another training left.
    whole = (tmp_path / "killed.pt").read_bytes()
    for content in (b"", b"x" * 100, whole[: len(whole) // 2]):
        (tmp_path / "killed.pt").write_bytes(content)
        caplog.clear()
        assert fit(models(train)[2], train, weights, validation, FIT, tmp_path / "killed.pt", "bag of jobs") == state
        assert caplog.messages[0].startswith(f"baselines: bag of jobs, {tmp_path}/killed.pt is damaged")
    assert fit(models(train)[2], train, weights + 1, validation, FIT, tmp_path / "killed.pt", "bag of jobs") != state


def test_a_loss_that_is_not_finite_ends_the_training(splits: dict[str, CareerFeatures], tmp_path: Path) -> None:
    train = splits["train"]
    model = models(train)[0]
    torch.nn.init.constant_(next(model.parameters()), math.nan)
    with raises("model/baseline-loss-not-finite", "nan"):
        fit(model, train, np.ones(len(train.lengths)), splits["validation"], FIT, tmp_path / "nan.pt", "bag of jobs")


def test_careers_of_weight_zero_are_not_learned_from(splits: dict[str, CareerFeatures], tmp_path: Path) -> None:
    train, validation = splits["train"], splits["validation"]
    rows = train.career < 40
    columns = ("career", "position", "occupation", "previous", "second_previous", "year", "tenure", "experience")
    columns_of = {name: getattr(train, name)[rows] for name in (*columns, "is_gap", "is_new_education")}
    covariates = {name: column[rows] for name, column in train.covariates.items()}
    fewer = dataclasses.replace(train, **columns_of, covariates=covariates, lengths=train.lengths[:40])
    weights = np.where(np.arange(len(train.lengths)) < 40, 1.0, 0.0)
    one, other = models(train)[0], models(train)[0]
    fit(one, train, weights, validation, FIT, tmp_path / "one.pt", "bag of jobs")
    fit(other, fewer, np.ones(40), validation, FIT, tmp_path / "other.pt", "bag of jobs")
    for name, each in one.state_dict().items():
        assert torch.equal(each, other.state_dict()[name]), name


def test_a_value_that_no_training_person_has_adds_nothing() -> None:
    """As a later year with split_by=year: category 0, which training never meets."""
    torch.manual_seed(1)
    sizes = {"year": 4, "education": 3, "gender": 3}
    career = Career(5, sizes, num_layers=1, width=8, num_heads=2, feed_forward=16, dropout=0.0)
    for embedding in career.covariates.values():
        assert not embedding.weight[0].any() and embedding.weight[1:].all()
    bag = BagOfJobs(5, sizes, 8, ("year", "education"))
    for effects in (bag.present, bag.context, bag.fixed):
        for name, of_name in effects.items():
            assert bool(of_name()[0].any()) == (name == "previous")


def test_a_finished_fit_is_not_taken_for_another_model_s(
    tmp_path: Path, splits, caplog: pytest.LogCaptureFixture
) -> None:
    """Two settings of which neither the shapes nor the initial weights know."""
    train, validation = splits["train"], splits["validation"]
    schedule, losses = dataclasses.replace(FIT, max_updates=4), []
    for facts in ({"dropout": 0.0}, {"dropout": 0.5}, {"dropout": 0.5}):
        torch.manual_seed(1)
        model = Career(
            train.num_occupations, train.num_categories, num_layers=1, width=8, num_heads=2, feed_forward=16,
            dropout=facts["dropout"],
        )  # fmt: skip
        caplog.clear()
        weights = np.ones(len(train.lengths))
        state = fit(model, train, weights, validation, schedule, tmp_path / "fit.pt", "CAREER", facts)
        losses.append((state.best_loss, bool(caplog.messages)))
    assert losses[0][0] != losses[1][0] and losses[0][1] and losses[1][1]  # trained anew
    assert losses[2] == (losses[1][0], False)  # the same again is there
