"""Score tables of 1, 2 and 3 ranks, and of evaluations that were killed, are the same bytes."""

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


def evaluate(folder: Path, world_size: int) -> bytes:
    (folder / TABLE).unlink(missing_ok=True)
    text = run_well("evaluate.py", [f"run={folder}/runs/small"], world_size=world_size, log=folder / "log")
    (folder / "warnings").write_text("".join(f"{line}\n" for line in text.splitlines() if "warning:" in line))
    return (folder / TABLE).read_bytes()


@pytest.fixture(scope="module")
def table_of_one_rank(trained: Path) -> bytes:
    return evaluate(trained, 1)


@pytest.mark.parametrize("world_size", [2, 3])
def test_tables_do_not_depend_on_the_number_of_ranks(trained: Path, table_of_one_rank: bytes, world_size: int) -> None:
    assert evaluate(trained, world_size) == table_of_one_rank
    (warning,) = (trained / "warnings").read_text().splitlines()
    (store,) = (trained / "stores").glob("*/manifest.json")
    of_model, *of_others = perplexities_in(warning)
    wanted_of_model, *wanted_of_others = perplexities_of(trained / TABLE, open_store(store.parent))
    assert of_others == pytest.approx(wanted_of_others, rel=5e-4)
    assert of_model == pytest.approx(wanted_of_model, rel=0.05)  # 1.6e+23 has two digits


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


def test_a_table_of_an_evaluation_killed_twice_is_the_same(trained: Path, table_of_one_rank: bytes) -> None:
    (trained / TABLE).unlink(missing_ok=True)

    def parts() -> list[Path]:
        return sorted((trained / "runs/small/scores").glob("*.parts/part-*.parquet"))

    before = 0
    for kill_after in (3, 12):
        killed = run_ranks(
            "evaluate.py",
            [f"run={trained}/runs/small"],
            world_size=2,
            log=trained / "log",
            kill_when=lambda expected=kill_after: len(parts()) >= expected,
        )
        assert -signal.SIGKILL in killed.codes, "the evaluation ended before it was killed"
        assert len(parts()) > before, "the second start did not go on where the first was killed"
        before = len(parts())
    finished = {part: part.stat().st_mtime_ns for part in parts()}
    assert evaluate_again(trained, finished) == table_of_one_rank


def evaluate_again(folder: Path, finished: dict[Path, int]) -> bytes:
    text = run_well("evaluate.py", [f"run={folder}/runs/small"], world_size=3, log=folder / "log")
    num_parts = int(text.split(" units of")[0].split()[-1].replace(",", ""))
    assert f"{len(finished)} of {num_parts} parts are there" in text
    claimed = [int(line.split(" part ")[1].split("/")[1].split()[0]) for line in text.splitlines() if " part " in line]
    assert set(claimed) == {num_parts - len(finished)}, "finished parts were scored again"
    return (folder / TABLE).read_bytes()


def test_the_table_holds_every_observation_of_the_split_once(trained: Path, table_of_one_rank: bytes) -> None:
    (trained / TABLE).write_bytes(table_of_one_rank)
    table, info = read_score_table(trained / TABLE)
    assert info.model == "small"
    positions = table.group_by(["survey", "person"]).aggregate([("position", "max"), ([], "count_all")])
    np.testing.assert_array_equal(positions["position_max"].to_numpy() + 1, positions["count_all"].to_numpy())
    assert (table["terminated"].to_numpy() <= table["title"].to_numpy()).all()


def test_a_second_evaluation_finds_the_table_and_leaves_it(trained: Path, table_of_one_rank: bytes) -> None:
    (trained / TABLE).write_bytes(table_of_one_rank)
    before = (trained / TABLE).stat().st_mtime_ns
    text = run_well("evaluate.py", [f"run={trained}/runs/small"], world_size=1, log=trained / "log")
    assert "is there" in text
    assert (trained / TABLE).stat().st_mtime_ns == before
