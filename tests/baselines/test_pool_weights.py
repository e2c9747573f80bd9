"""Weights of pooled corpora: every fit and the choice against plain loops over counts; resuming; refusals."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from helpers.errors import raises
from helpers.panels import panels
from helpers.runs import settings_of, small_run
from rich.console import Console

from laborllm_dist.baselines import pool_weights
from laborllm_dist.baselines.frequency import STRENGTHS
from laborllm_dist.baselines.pool_weights import GRID, choose_weights, pool_weights_table, search
from laborllm_dist.baselines.run import score_baselines
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.baselines import BaselineSettings, PoolWeightSettings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.io.run_directory import create_or_resume, read_run
from laborllm_dist.store.build import prepare_store
from laborllm_dist.store.store import open_store
from laborllm_dist.tables.scores import read_score_table

CODES = "1234"


def pooled_run(folder: Path, *surveys: str, **changed: object) -> Path:
    """Make a run of three small panels: in A people mostly stay, in B they mostly stay too, in C they never do."""
    for number, survey in enumerate("ABC"):
        rows = ["person,year,occupation"]
        for person in range(60):
            code = person % 4
            for year in range(1990, 1995):
                rows.append(f"{person},{year},{CODES[code]}")
                moves = survey == "C" or (person * 7 + year * 3 + number) % 5 == 0
                code = (code + 1 + (person + year) % 3) % 4 if moves else code
        (folder / f"{survey}.csv").write_text("\n".join(rows) + "\n")
        titles = "".join(f"{code},Title {code}\n" for code in CODES)
        (folder / f"{survey}_titles.csv").write_text(f"code,title\n{titles}")
    settings = settings_of(small_run(folder, "name=" + "".join(surveys).lower()))
    settings = dataclasses.replace(settings, data=panels(folder, *surveys), **changed)
    store = prepare_store(settings)
    return create_or_resume(settings, {"fingerprint": store.fingerprint, "folder": str(store.folder)}, None).path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pooled_run(tmp_path_factory.mktemp("pooled"), "A", "B", "C")


def chosen(run: Path, *overrides: str) -> pool_weights.PoolWeights:
    return choose_weights(compose_settings(PoolWeightSettings, "pool_weights", [f"run={run}", "target=A", *overrides]))


def loss_by_hand(run: Path, weight_of: dict[str, float]) -> float:
    """Return nats per title of A's validation people, by a smoothed first-order table that is counted in plain loops."""
    _, settings, folder = read_run(run)
    survey_of = {corpus.survey: name for name, corpus in settings.data.corpora.items()}
    store, pairs, shares = (
        open_store(folder),
        Counter[tuple[str | None, str]](),
        Counter[str](dict.fromkeys(CODES, 1.0)),
    )
    train, validation = store.careers("train"), store.careers("validation")
    for row in range(len(train)):
        career, previous = train.history(row), None
        for job in career.jobs:
            pairs[previous, job.occupation] += weight_of[survey_of[career.survey]]
            shares[job.occupation] += weight_of[survey_of[career.survey]]
            previous = job.occupation
    total = sum(shares.values())
    losses = []
    for strength in STRENGTHS:
        nats = []
        for row in range(len(validation)):
            career, previous = validation.history(row), None
            if survey_of[career.survey] != "A":
                continue
            for job in career.jobs:
                after = sum(pairs[previous, code] for code in CODES)
                p = (pairs[previous, job.occupation] + strength * shares[job.occupation] / total) / (after + strength)
                nats.append(-math.log(p))
                previous = job.occupation
        losses.append(sum(nats) / len(nats))
    return min(losses)


def test_every_fit_and_the_choice_are_those_of_plain_counts(run: Path) -> None:
    result = chosen(run)
    assert (result.target, result.others) == ("A", ("B", "C"))
    for weights, loss in result.losses.items():
        assert loss == pytest.approx(loss_by_hand(run, dict(zip("ABC", (1.0, *weights), strict=True))), rel=1e-10)
    b, c = result.chosen
    assert b > 0 and c < b  # who behaves like the target counts more than who does not
    best = result.losses[result.chosen]
    assert best <= min(result.losses.values())
    for weight in GRID:  # no single change lowers it
        assert best <= min(result.losses[weight, c], result.losses[b, weight])
    careers = open_store(read_run(run)[2]).careers("train").table["survey"].to_pylist()
    size = Counter(careers)
    survey = {name: corpus.survey for name, corpus in read_run(run)[1].data.corpora.items()}
    expected = size[survey["A"]] + round(b * size[survey["B"]]) + round(c * size[survey["C"]])
    assert result.careers_per_epoch[result.chosen] == expected
    assert result.overrides() == [
        "data.corpora.A.weight=1", f"data.corpora.B.weight={b:g}", f"data.corpora.C.weight={c:g}"
    ]  # fmt: skip
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(pool_weights_table(result))
    text = console.export_text()
    assert f"Validation people of A by first-order, {len(result.losses)} fits" in text
    for label in ("target alone", "all alike", "chosen"):
        assert sum(label in line for line in text.splitlines()) == 1


def test_a_start_that_was_killed_resumes_with_the_same_choice(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = run / "baselines/pool_weights.A.first_order.json"
    file.unlink(missing_ok=True)
    whole = chosen(run)
    content, fit = file.read_bytes(), pool_weights.mean_log_likelihood
    file.unlink()
    num_fits = 0

    def killed(*arguments: object) -> float:
        nonlocal num_fits
        num_fits += 1
        if num_fits == 6:
            raise KeyboardInterrupt
        return fit(*arguments)

    monkeypatch.setattr(pool_weights, "mean_log_likelihood", killed)
    with pytest.raises(KeyboardInterrupt):
        chosen(run)
    assert chosen(run) == whole
    assert num_fits == len(whole.losses) + 1
    assert file.read_bytes() == content
    file.write_text(content.decode().replace('"identity": "', '"identity": "other'))
    assert chosen(run) == whole and num_fits == 2 * len(whole.losses) + 1  # fits of other people are made again
    for foreign in ("no json", '{"identity": 1}'):
        file.write_text(foreign)
        with raises("foreign-file/not-pool-weights", file):
            chosen(run)
    file.unlink()


@pytest.mark.parametrize("baseline", ["second_order", "logit"])
def test_with_the_others_at_0_a_fit_is_that_of_a_run_of_the_target_alone(
    baseline: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laborllm_dist.baselines.run.STRENGTHS", (1.0,))
    monkeypatch.setattr(pool_weights, "GRID", (0.0, 1.0))
    result = chosen(run, f"baseline={baseline}")
    alone = compose_settings(
        BaselineSettings, "baselines",
        [f"run={pooled_run(tmp_path, 'A')}", f"baselines=[{baseline}]", "split=validation"],
    )  # fmt: skip
    (path,) = score_baselines(alone)
    scores = read_score_table(path)[0]["title"].to_numpy()
    assert result.losses[0.0, 0.0] == pytest.approx(-scores.mean(), rel=1e-6)
    assert len(result.losses) == 4 or result.losses[0.0, 0.0] > result.losses[result.chosen]


@pytest.mark.parametrize("seed", range(20))
def test_the_search_ends_where_no_single_change_helps(seed: int) -> None:
    draws = random.Random(seed)
    loss_of = {weights: draws.randrange(20) for weights in product(GRID, repeat=2)}  # with ties
    best = search(loss_of.__getitem__, 2)
    for weight in GRID:
        assert (loss_of[best], best[0]) <= (loss_of[weight, best[1]], weight)
        assert (loss_of[best], best[1]) <= (loss_of[best[0], weight], weight)


def test_what_has_no_weights_to_choose_is_refused(run: Path, tmp_path: Path) -> None:
    with raises("settings/unknown-target-corpus", "A, B, C", "nlsy79"):
        chosen(run, "target=nlsy79")
    with raises("run/nothing-pooled", "A"):
        chosen(pooled_run(tmp_path, "A"))


def test_a_run_with_limited_history_takes_whole_weights_only(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: RunSettings = read_run(run)[1]
    limited = dataclasses.replace(settings, template=dataclasses.replace(settings.template, max_history=2))
    with raises("settings/invalid", "data.corpora.B.weight", "a whole number with template.max_history"):
        pool_weights._weighted(limited, "A", ("B", "C"), (0.5, 1.0))
