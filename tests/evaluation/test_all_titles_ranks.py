"""Tables of titles are the same bytes on one rank, on two, and killed under two and resumed under three, in all modes."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.errors import raises
from helpers.processes import run_ranks, run_well
from helpers.runs import small_run
from helpers.trained_runs import score_alone

from laborllm_dist.cli import compose_settings
from laborllm_dist.config.evaluation import EvaluateSettings
from laborllm_dist.tables.scores import read_score_table
from laborllm_dist.tables.title_distributions import read_title_table

pytestmark = pytest.mark.ranks

BOUNDED = "max_unscored_mass=0.02"
MODES = {
    "complete": [],
    "bounded": [BOUNDED],
    "int8": [BOUNDED, "quantization=int8"],
    "nf4": [BOUNDED, "quantization=nf4"],
    "adapter": [BOUNDED, "quantization=nf4", "model.path={run}/adapter"],
    "adapter_whole": [BOUNDED, "model.path={run}/adapter"],
    "bf16": [BOUNDED, "precision=bf16"],
}
# A partitioned model scores what a whole one scores.
PLACEMENTS = [*((mode, "replicated") for mode in MODES), ("bounded", "partitioned"), ("bf16", "partitioned")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train an adapter over a small model that was trained for one epoch; return the adapter's run."""
    folder = tmp_path_factory.mktemp("trained")
    # All titles of a test person take seconds: six people, each a unit of its own.
    six_units = ["split.train=0.75", "split.validation=0.15", "evaluation.max_seq_length=704"]
    base = small_run(
        folder,
        "training.epochs=2",
        "optimizer.learning_rate=1e-2",
        "model.llama.hidden_size=64",
        *six_units,
        num_people=70,
    )
    run_well("train.py", base, world_size=1, log=folder / "log")
    export = [f"model.path={folder}/runs/small/export", "model=pretrained", "tokenizer=pretrained"]
    data_settings = [override for override in base if not override.startswith(("model.", "tokenizer.", "name="))]
    run_well("train.py", [*data_settings, *export, "adapter=lora", "name=lora"], world_size=1, log=folder / "log")
    return folder / "runs/lora"


def arguments_of(run: Path, mode: str) -> list[str]:
    return [f"run={run}", f"model.name={mode}", "titles=all", *(override.format(run=run) for override in MODES[mode])]


def tables_of(run: Path, mode: str) -> tuple[Path, Path]:
    """Return the paths of the score table and of the table of titles."""
    return run / f"scores/test.{mode}.parquet", run / f"scores/test_titles.{mode}.parquet"


def evaluate(run: Path, mode: str, *, world_size: int) -> tuple[bytes, bytes]:
    """Score all titles; return the content of the score table and of the table of titles, which stay."""
    run_well("evaluate.py", arguments_of(run, mode), world_size=world_size, log=run / "log")
    scores, titles = tables_of(run, mode)
    return scores.read_bytes(), titles.read_bytes()


@pytest.fixture(scope="module")
def tables_of_one_rank(trained: Path) -> Callable[[str], tuple[bytes, bytes]]:
    """Return a function that evaluates a mode on one rank, at its first call."""
    return functools.cache(lambda mode: evaluate(trained, mode, world_size=1))


@pytest.mark.parametrize(("mode", "placement"), PLACEMENTS)
def test_tables_of_an_evaluation_killed_under_two_ranks_and_resumed_under_three_are_those_of_one(
    trained: Path, tables_of_one_rank: Callable[[str], tuple[bytes, bytes]], mode: str, placement: str
) -> None:
    expected = tables_of_one_rank(mode)
    scores, titles = tables_of(trained, mode)
    scores.unlink()
    titles.unlink()
    arguments = [*arguments_of(trained, mode), f"placement={placement}"]
    parts = lambda: list((trained / "scores").glob(f"test_titles.{mode}.*.parts/part-*.parquet"))  # noqa: E731
    killed = run_ranks(
        "evaluate.py",
        arguments,
        world_size=2,
        log=trained / "log",
        kill_when=lambda: scores.is_file() and len(parts()) >= 1,
    )
    assert -signal.SIGKILL in killed.codes, "the evaluation ended before it was killed"
    text = run_well("evaluate.py", arguments, world_size=3, log=trained / "log")
    assert f"{mode} is there" in text  # the score table
    assert "parts are there" in text
    assert (scores.read_bytes(), titles.read_bytes()) == expected


def test_tables_of_two_ranks_are_those_of_one(
    trained: Path, tables_of_one_rank: Callable[[str], tuple[bytes, bytes]]
) -> None:
    expected = tables_of_one_rank("complete")
    for path in tables_of(trained, "complete"):
        path.unlink()
    assert evaluate(trained, "complete", world_size=2) == expected


def test_distributions_sum_to_the_mass_they_state(
    trained: Path, tables_of_one_rank: Callable[[str], tuple[bytes, bytes]]
) -> None:
    for mode in ("complete", "bounded"):
        tables_of_one_rank(mode)
    whole, bounded = (
        read_title_table(trained / f"scores/test_titles.{mode}.parquet") for mode in ("complete", "bounded")
    )
    scores, _ = read_score_table(trained / "scores/test.complete.parquet")
    lists = {name: np.array(each.table["terminated"].to_pylist(), dtype=float) for name, each in
             (("whole", whole), ("bounded", bounded))}  # fmt: skip
    for each, values in zip((whole, bounded), lists.values(), strict=True):
        np.testing.assert_allclose(np.nansum(np.exp(values), axis=1), each.table["mass"].to_numpy(), atol=1e-6, rtol=0)
    assert not np.isnan(lists["whole"]).any()
    assert (whole.table["bound"].to_numpy() == 0).all()
    assert (whole.table["mass"].to_numpy() <= 1).all()
    # Bounded: the error of every title of every observation is within the tolerance.
    bound = bounded.table["bound"].to_numpy()
    assert (bound <= 0.02).all()
    assert bound.any()
    errors = np.exp(lists["whole"]) - np.exp(np.nan_to_num(lists["bounded"], nan=-np.inf))
    assert (errors.max(axis=1) <= bound + 1e-6).all()
    # What was observed has the score of the score table, and is normalised by the mass of all titles.
    places = [whole.occupations.index(code) for code in whole.table["occupation"].to_pylist()]
    own = lists["whole"][np.arange(len(places)), places]
    np.testing.assert_allclose(own, scores["terminated"].to_numpy(), atol=1e-5, rtol=0)
    expected = own - np.log(whole.table["mass"].to_numpy())
    np.testing.assert_allclose(whole.table["normalised"].to_numpy(), expected, atol=1e-9, rtol=0)


def test_a_table_with_other_settings_is_not_written_over(
    trained: Path, tables_of_one_rank: Callable[[str], tuple[bytes, bytes]]
) -> None:
    expected = tables_of_one_rank("complete")
    for overrides, label, values in [
        (
            ["titles=all", "max_unscored_mass=0.5"],
            "run/scored-with-other-settings",
            ("max_unscored_mass", "0.0", "0.5"),
        ),
        (["max_unscored_mass=0.5"], "settings/unscored-mass-without-titles", ("max_unscored_mass", "titles=all")),
        (
            ["quantization=int8", "placement=partitioned"],
            "settings/invalid",
            ("setting quantization", "none", "placement=partitioned"),
        ),
    ]:
        with raises(label, *values):
            score_alone(
                compose_settings(EvaluateSettings, "evaluate", [f"run={trained}", "model.name=complete", *overrides])
            )
    assert tables_of(trained, "complete")[1].read_bytes() == expected[1]
