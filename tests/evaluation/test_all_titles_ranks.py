"""Tables of titles are the same bytes for 1, 2 and 3 ranks and after kills, in every mode and placement."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.processes import run_ranks, run_well
from helpers.runs import small_run

from laborllm_dist.tables.scores import read_score_table
from laborllm_dist.tables.title_distributions import read_title_table

pytestmark = pytest.mark.ranks

BOUNDED = "max_unscored_mass=0.02"
# What is evaluated, and on how many ranks besides one.
MODES = {
    "complete": ([], (2, 3)),
    "bounded": ([BOUNDED], (3,)),
    "int8": ([BOUNDED, "quantization=int8"], (2,)),
    "nf4": ([BOUNDED, "quantization=nf4"], (2,)),
    "adapter": ([BOUNDED, "quantization=nf4", "model.path={run}/adapter"], (2,)),
    "adapter_whole": ([BOUNDED, "model.path={run}/adapter"], (2,)),
    "sharded": ([BOUNDED, "placement=partitioned"], (2, 3)),
    "bf16": ([BOUNDED, "precision=bf16"], ()),
    "sharded_bf16": ([BOUNDED, "precision=bf16", "placement=partitioned"], (2,)),
}


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
    data_settings = [each for each in base if not each.startswith(("model.", "tokenizer.", "name="))]
    run_well("train.py", [*data_settings, *export, "adapter=lora", "name=lora"], world_size=1, log=folder / "log")
    return folder / "runs/lora"


def evaluate(run: Path, name: str, *more: str, world_size: int) -> tuple[bytes, bytes]:
    """Score all titles under a name; return the score table and the table of titles."""
    arguments = [f"run={run}", f"model.name={name}", "titles=all", *(each.format(run=run) for each in more)]
    scores = [run / f"scores/{table}.{name}.parquet" for table in ("test", "test_titles")]
    for path in scores:
        path.unlink(missing_ok=True)
    run_well("evaluate.py", arguments, world_size=world_size, log=run / "log")
    return scores[0].read_bytes(), scores[1].read_bytes()


@pytest.fixture(scope="module")
def tables_of_one_rank(trained: Path) -> dict[str, tuple[bytes, bytes]]:
    return {mode: evaluate(trained, mode, *settings, world_size=1) for mode, (settings, _) in MODES.items()}


@pytest.mark.parametrize(("mode", "world_size"), [(mode, each) for mode, (_, sizes) in MODES.items() for each in sizes])
def test_tables_do_not_depend_on_the_number_of_ranks(
    trained: Path, tables_of_one_rank: dict[str, tuple[bytes, bytes]], mode: str, world_size: int
) -> None:
    assert evaluate(trained, mode, *MODES[mode][0], world_size=world_size) == tables_of_one_rank[mode]


def test_shards_score_what_a_whole_model_scores(
    trained: Path, tables_of_one_rank: dict[str, tuple[bytes, bytes]]
) -> None:
    for table in ("test", "test_titles"):
        for modes in (("bounded", "sharded"), ("bf16", "sharded_bf16")):
            whole, sharded = (pq.read_table(trained / f"scores/{table}.{mode}.parquet") for mode in modes)
            assert whole.equals(sharded)  # their metadata differ by the model's name


def test_distributions_sum_to_the_mass_they_state(
    trained: Path, tables_of_one_rank: dict[str, tuple[bytes, bytes]]
) -> None:
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


@pytest.mark.parametrize(("mode", "world_size"), [(mode, 2 if "sharded" in mode else 1) for mode in MODES])
def test_a_table_of_titles_killed_on_the_way_is_the_same(
    trained: Path, tables_of_one_rank: dict[str, tuple[bytes, bytes]], mode: str, world_size: int
) -> None:
    table = trained / f"scores/test_titles.{mode}.parquet"
    table.unlink()
    settings = [each.format(run=trained) for each in MODES[mode][0]]
    arguments = [f"run={trained}", f"model.name={mode}", "titles=all", *settings]
    parts = lambda: list((trained / "scores").glob(f"test_titles.{mode}.*.parts/part-*.parquet"))  # noqa: E731
    killed = run_ranks(
        "evaluate.py", arguments, world_size=world_size, log=trained / "log", kill_when=lambda: len(parts()) >= 1
    )
    assert -signal.SIGKILL in killed.codes, "the evaluation ended before it was killed"
    text = run_well("evaluate.py", arguments, world_size=3, log=trained / "log")
    assert f"{mode} is there" in text  # the score table
    assert "parts are there" in text
    assert table.read_bytes() == tables_of_one_rank[mode][1]


def test_a_table_with_other_settings_is_not_written_over(
    trained: Path, tables_of_one_rank: dict[str, tuple[bytes, bytes]]
) -> None:
    for arguments, expected in (
        (
            ["titles=all", "max_unscored_mass=0.5"],
            r"made with other settings \(max_unscored_mass 0.0 there, 0.5 now\); .*another name",
        ),
        (["max_unscored_mass=0.5"], "setting max_unscored_mass: it is the mass left of all titles; add titles=all"),
        (
            ["quantization=int8", "placement=partitioned"],
            "setting quantization: expected none with placement=partitioned",
        ),
    ):
        outcome = run_ranks(
            "evaluate.py", [f"run={trained}", "model.name=complete", *arguments], world_size=1, log=trained / "log"
        )
        assert outcome.codes == [2]
        assert re.search(expected, outcome.text)
        assert "Traceback" not in outcome.text
    assert (trained / "scores/test_titles.complete.parquet").read_bytes() == tables_of_one_rank["complete"][1]
