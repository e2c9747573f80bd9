"""Score tables of one rank, and of evaluations killed under two and resumed under three, are the same bytes."""

from __future__ import annotations

import math
import re
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.processes import run_ranks, run_well
from helpers.runs import small_run
from helpers.trained_runs import score_alone

from laborllm_dist.cli import compose_settings
from laborllm_dist.config.evaluation import EvaluateSettings
from laborllm_dist.store.store import TokenStore, open_store
from laborllm_dist.tables.scores import read_score_table

pytestmark = pytest.mark.ranks

TABLE = "runs/small/scores/test.parquet"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small model for one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    run = small_run(
        folder, "training.epochs=1", "batch.max_seq_length=1280", "evaluation.max_seq_length=1280", num_people=1500
    )
    run_well("train.py", run, world_size=2, log=folder / "log")
    return folder


@pytest.fixture(scope="module")
def table_of_one_rank(trained: Path) -> bytes:
    run_well("evaluate.py", [f"run={trained}/runs/small"], world_size=1, log=trained / "log")
    return (trained / TABLE).read_bytes()


def perplexities_in(warning: str) -> list[float]:
    """Return the perplexities that a warning names: of the model, of the uniform distribution, of titles' shares."""
    named = re.fullmatch(
        r"warning: small predicts the titles of the test people worse than the uniform and the marginal distributions: "
        r"perplexity (\S+) \(uniform over 335 titles (\S+), their shares in training (\S+)\)",
        warning,
    )
    assert named is not None, warning
    return [float(number.replace(",", "")) for number in named.groups()]


def perplexities_of(path: Path, store: TokenStore) -> list[float]:
    """Compute the three one observation at a time: the shares are those of a list of training occupations."""
    table, _ = read_score_table(path)
    counts: Counter[str] = Counter(store.vocabulary.codes)  # each is counted once more
    train = store.careers("train")
    for row in range(len(train)):
        counts.update(job.occupation for job in train.history(row).jobs)
    shares = [math.log(counts[code] / counts.total()) for code in table["occupation"].to_pylist()]
    means = [sum(table["title"].to_pylist()) / len(shares), -math.log(335), sum(shares) / len(shares)]
    return [math.exp(-mean) for mean in means]


def test_a_table_of_an_evaluation_killed_under_two_ranks_and_resumed_under_three_is_that_of_one(
    trained: Path, table_of_one_rank: bytes
) -> None:
    (trained / TABLE).unlink()
    arguments = [f"run={trained}/runs/small"]

    def parts() -> list[Path]:
        return sorted((trained / "runs/small/scores").glob("*.parts/part-*.parquet"))

    num_finished = 0
    for kill_after in (3, 12):
        killed = run_ranks(
            "evaluate.py", arguments, world_size=2, log=trained / "log",
            kill_when=lambda least=kill_after: len(parts()) >= least,
        )  # fmt: skip
        assert -signal.SIGKILL in killed.codes, "the evaluation ended before it was killed"
        assert len(parts()) > num_finished, "the second start did not go on where the first was killed"
        num_finished = len(parts())
    text = run_well("evaluate.py", arguments, world_size=3, log=trained / "log")
    num_parts = int(text.split(" units of")[0].split()[-1].replace(",", ""))
    assert f"{num_finished} of {num_parts} parts are there" in text
    claimed = [int(line.split(" part ")[1].split("/")[1].split()[0]) for line in text.splitlines() if " part " in line]
    assert set(claimed) == {num_parts - num_finished}, "finished parts were scored again"
    assert (trained / TABLE).read_bytes() == table_of_one_rank
    # One line, although three ranks wrote the table.
    (warning,) = (line for line in text.splitlines() if "warning:" in line)
    (store,) = (trained / "stores").glob("*/manifest.json")
    of_model, *of_others = perplexities_in(warning)
    expected_of_model, *expected_of_others = perplexities_of(trained / TABLE, open_store(store.parent))
    assert of_others == pytest.approx(expected_of_others, rel=5e-4)
    assert of_model == pytest.approx(expected_of_model, rel=0.05)  # 1.6e+23 has two digits


def test_the_table_holds_every_observation_of_the_split_once(trained: Path, table_of_one_rank: bytes) -> None:
    (trained / TABLE).write_bytes(table_of_one_rank)
    table, info = read_score_table(trained / TABLE)
    assert info.model == "small"
    positions = table.group_by(["survey", "person"]).aggregate([("position", "max"), ([], "count_all")])
    np.testing.assert_array_equal(positions["position_max"].to_numpy() + 1, positions["count_all"].to_numpy())
    assert (table["terminated"].to_numpy() <= table["title"].to_numpy()).all()


def test_a_second_evaluation_finds_the_table_and_leaves_it(
    trained: Path, table_of_one_rank: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (trained / TABLE).write_bytes(table_of_one_rank)
    before = (trained / TABLE).stat().st_mtime_ns
    score_alone(compose_settings(EvaluateSettings, "evaluate", [f"run={trained}/runs/small"]))
    assert "is there" in caplog.text
    assert (trained / TABLE).stat().st_mtime_ns == before
