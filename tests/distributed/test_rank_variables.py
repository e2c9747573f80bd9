"""What launchers say of ranks: garbage in their variables, and a rank started twice, end with one line, in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from datetime import timedelta

import pytest
import torch
import torch.distributed
from helpers.errors import raises
from helpers.processes import free_port
from helpers.slurm import TASK

from laborllm_dist import cli
from laborllm_dist.cli import launch
from laborllm_dist.config.evaluation import ReportSettings
from laborllm_dist.config.run import RanksSettings
from laborllm_dist.distributed import rendezvous
from laborllm_dist.distributed.context import init_distributed
from laborllm_dist.distributed.launcher import num_local_ranks
from laborllm_dist.distributed.rank_variables import (
    RankVariables,
    check_devices,
    check_is_complete,
    read_rank_variables,
)
from laborllm_dist.distributed.rendezvous import meet_at
from laborllm_dist.distributed.slurm import launcher_variables
from laborllm_dist.errors import LaborError

RANK = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
GARBAGE = ["", " ", "one", "-1", "1.0", "1e3", "0x1", "1" * 30, "9" * 5000, "\u0661", "1\n", "nan", "\x1b[31m"]


def test_variables_of_a_rank_are_read() -> None:
    variables = read_rank_variables(RANK)
    assert (variables.rank, variables.world_size, variables.local_rank, variables.address, variables.port) == (
        1,
        2,
        1,
        "127.0.0.1",
        29500,
    )


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"])
@pytest.mark.parametrize("text", GARBAGE, ids=range(len(GARBAGE)))
def test_a_variable_that_is_no_number_is_named(name: str, text: str) -> None:
    with raises("launcher/invalid-rank-variable", name) as error:
        read_rank_variables({**RANK, name: text})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"RANK": "2"}, ("launcher/rank-out-of-range", "RANK is 2", "WORLD_SIZE is 2")),
        ({"WORLD_SIZE": "0"}, ("launcher/invalid-rank-variable", "WORLD_SIZE", "'0'", "1 to 65,536")),
        ({"MASTER_PORT": "65536"}, ("launcher/invalid-rank-variable", "MASTER_PORT", "'65536'", "1 to 65,535")),
        ({"MASTER_ADDR": ""}, ("launcher/invalid-master-address", "MASTER_ADDR", "''")),
        ({"MASTER_ADDR": "a host"}, ("launcher/invalid-master-address", "MASTER_ADDR", "'a host'")),
    ],
)
def test_variables_that_contradict_each_other_are_refused(change: Mapping[str, str], error: tuple[str, ...]) -> None:
    with raises(*error):
        read_rank_variables({**RANK, **change})


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "MASTER_PORT"])
def test_a_rank_of_several_needs_all_variables(name: str) -> None:
    check_is_complete({})
    check_is_complete({"RANK": "0"})
    check_is_complete(RANK)
    with raises("launcher/missing-rank-variable", name):
        check_is_complete({each: text for each, text in RANK.items() if each != name})


@pytest.mark.parametrize(
    "name", ["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"]
)
@pytest.mark.parametrize("text", GARBAGE, ids=range(len(GARBAGE)))
def test_a_variable_of_slurm_that_is_no_number_is_named(name: str, text: str) -> None:
    with raises("launcher/invalid-rank-variable", name):
        launcher_variables({**TASK, name: text})


@pytest.mark.parametrize("text", [*GARBAGE, "8(x99999999999)", "8(x", "[]"])
def test_counts_of_ranks_on_a_host_that_make_no_sense_are_not_known(text: str) -> None:
    task = {**TASK, "SLURM_STEP_TASKS_PER_NODE": text, "SLURM_NODEID": "0", "SLURM_TASKS_PER_NODE": ""}
    assert "LOCAL_WORLD_SIZE" not in launcher_variables(task)
    assert num_local_ranks({"LOCAL_WORLD_SIZE": text}) is None


def test_a_rank_without_a_gpu_of_its_own_is_refused() -> None:
    check_devices({}, local_rank=5, num_gpus=0)
    check_devices({"DS_ACCELERATOR": "cuda"}, local_rank=1, num_gpus=2)
    with raises("launcher/more-ranks-than-gpus", "2", "CUDA_VISIBLE_DEVICES=4,7"):
        check_devices({"CUDA_VISIBLE_DEVICES": "4,7"}, local_rank=2, num_gpus=2)
    with raises("launcher/unknown-accelerator", "'abacus'", "cuda or cpu"):
        check_devices({"DS_ACCELERATOR": "abacus"}, local_rank=0, num_gpus=1)


@pytest.mark.parametrize(
    "garbage",
    [
        {"OMPI_COMM_WORLD_RANK": "x", "OMPI_COMM_WORLD_SIZE": "-1", "OMPI_COMM_WORLD_LOCAL_RANK": ""},
        {"PMI_RANK": "x", "PMI_SIZE": "y", "PMIX_RANK": "z"},
        {"SLURM_PROCID": "x", "SLURM_NTASKS": "y"},
        {"OMP_NUM_THREADS": "many", "LOCAL_WORLD_SIZE": "x", "DS_ACCELERATOR": "abacus", "TORCHELASTIC_USE_AGENT_STORE": "x"},
    ],
)  # fmt: skip
def test_variables_that_nobody_asks_for_may_hold_anything(
    garbage: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*RANK, *TASK):
        monkeypatch.delenv(name, raising=False)
    for name, text in garbage.items():
        monkeypatch.setenv(name, text)
    for name in RANK:
        monkeypatch.setenv(name, "")  # so that what is set within is taken back
        monkeypatch.delenv(name)
    with init_distributed(RanksSettings(1, 1.0)) as alone:
        assert (alone.rank, alone.world_size) == (0, 1)


def meetings(world_sizes: list[tuple[int, int]], *, seconds: float) -> list[str]:
    """Let ranks of these (rank, world_size) meet at one store, by threads; return what each was refused with."""
    store, texts = torch.distributed.HashStore(), [""] * len(world_sizes)

    def meet(number: int) -> None:
        rank, world_size = world_sizes[number]
        try:
            meet_at(store, "localhost:1", rank=rank, world_size=world_size, limit=timedelta(seconds=seconds))
        except LaborError as error:
            texts[number] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=meet, args=(number,)) for number in range(len(world_sizes))]
    for thread in threads:
        thread.start()
        time.sleep(0.02)  # the first to come is the first here
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    return texts


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "SECONDS_TO_MEET_WITHOUT", 0.4)
    monkeypatch.setattr(rendezvous, "SECONDS_TO_READ", 0.2)


def test_ranks_that_are_all_there_meet(quick: None) -> None:
    assert meetings([(2, 3), (0, 3), (1, 3)], seconds=20) == ["", "", ""]


def test_a_rank_that_comes_to_those_who_have_met_leaves_alone(quick: None) -> None:
    assert meetings([(0, 2), (1, 2), (1, 2)], seconds=20) == [
        "",
        "",
        "LauncherError: rank 1 of 2 was started twice: another process has come as rank 1 before; start every rank once, "
        "with the same WORLD_SIZE",
    ]


def test_a_rank_twice_and_another_never_ends_all_of_them(quick: None) -> None:
    started = time.monotonic()
    texts = meetings([(0, 3), (1, 3), (1, 3)], seconds=600)
    assert all(text.startswith("LauncherError: ") and "rank 1 of 3 was started twice" in text for text in texts)
    assert time.monotonic() - started < 10


def test_ranks_of_other_numbers_of_ranks_are_told_apart(quick: None) -> None:
    texts = meetings([(0, 2), (1, 3)], seconds=600)
    assert all("was started with WORLD_SIZE=" in text for text in texts)


def test_ranks_that_have_not_come_are_named() -> None:
    with raises("rendezvous/missing-ranks", "1", "20", "localhost:1", "19", "0, 2, 3", "..."):
        meet_at(torch.distributed.HashStore(), "localhost:1", rank=1, world_size=20, limit=timedelta(0))


def test_ranks_that_run_short_of_open_files_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = iter(["gloo/transport/tcp: connection closed", "gloo: Too many open files"])

    def fail(*arguments: object, **more: object) -> None:
        raise RuntimeError(next(texts))

    monkeypatch.setattr(rendezvous, "open_store", fail)
    monkeypatch.setattr(rendezvous.resource, "getrlimit", lambda which: (20, 4096))
    variables, settings = RankVariables(1, 2, 1, "127.0.0.1", 1), RanksSettings(1, 1.0)
    with raises(
        "rendezvous/ranks-cannot-connect", "may have only 20 files and sockets open at once: raise that (ulimit"
    ):
        rendezvous.join_process_group(settings, torch.device("cpu"), variables)
    with pytest.raises(RuntimeError, match="Too many open files"):  # which cli.launch has a line for
        rendezvous.join_process_group(settings, torch.device("cpu"), variables)


def test_a_store_that_ranks_connect_to_counts_no_rank_twice(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    port, limit, stores = free_port(), timedelta(seconds=60), []
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    for rank in (0, 1, 1):  # none of them waits for three connections, nor takes three for three ranks
        stores.append(rendezvous.open_store(RankVariables(rank, 3, rank, "127.0.0.1", port), limit))
    errors = []

    def meet(store: object, rank: int) -> None:
        with pytest.raises(LaborError) as error:
            meet_at(store, "localhost:1", rank=rank, world_size=3, limit=limit)
        errors.append(error.value)

    threads = [threading.Thread(target=meet, args=pair) for pair in zip(stores, (0, 1, 1), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    of_all = [
        "launcher/rank-started-twice",
        *["launcher/rejected-by-another-rank"] * 2,
    ]  # one sees it, and tells the others
    assert sorted(error.label for error in errors) == of_all
    assert all("rank 1 of 3 was started twice" in str(error) for error in errors)


def refuse(settings: ReportSettings) -> None:
    raise AssertionError(settings)


@pytest.mark.parametrize(
    ("variables", "is_printed"),
    [
        ({}, True),
        ({"RANK": "1"}, True),  # of no launcher: nobody else would say it
        ({"RANK": "x", "WORLD_SIZE": "2"}, True),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"RANK": "1", "WORLD_SIZE": "2"}, False),
    ],
)
def test_a_wrong_setting_is_said_by_one_rank(
    variables: Mapping[str, str], is_printed: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in (*RANK, *TASK):
        monkeypatch.delenv(name, raising=False)
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setattr(cli, "guard_output", lambda: None)  # it would take pytest's streams away
    monkeypatch.setattr("sys.argv", ["report.py", "runs=[x]", "seed=-1"])
    with pytest.raises(SystemExit) as ended:
        launch(ReportSettings, "report", refuse, "")
    assert ended.value.code == 2
    assert ("error: setting seed: " in capfd.readouterr().err) == is_printed
