"""How ranks find and lose each other: Slurm's variables, the lookout, and what is said where they do not meet."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.processes import ON_CPU, PROJECT, free_port, python_path
from helpers.runs import small_run
from helpers.slurm import TASK

from laborllm_dist.distributed.context import DistributedContext
from laborllm_dist.distributed.launcher import num_local_ranks
from laborllm_dist.distributed.slurm import first_host, launcher_variables, port_of_step
from laborllm_dist.training.stop_request import StopRequest

ALONE = DistributedContext(0, 1, 0, torch.device("cpu"))


def test_a_task_of_srun_gets_the_variables_of_a_launcher() -> None:
    assert launcher_variables(TASK) == {
        "RANK": "9",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "gpu007",
        "MASTER_PORT": str(12_000 + 4711),
    }


def test_a_task_that_sees_one_gpu_takes_that_one() -> None:
    assert launcher_variables({**TASK, "CUDA_VISIBLE_DEVICES": "5"})["LOCAL_RANK"] == "0"
    assert launcher_variables({**TASK, "CUDA_VISIBLE_DEVICES": ""})["LOCAL_RANK"] == "1"


@pytest.mark.parametrize(
    ("counts", "node", "num_local"),
    [
        ("8(x2)", "0", 8),  # srun -N2 -n16
        ("8(x2)", "1", 8),
        ("3,2", "0", 3),  # srun -N2 -n5
        ("3,2", "1", 2),
        ("4(x2),1,2(x3)", "1", 4),
        ("4(x2),1,2(x3)", "2", 1),
        ("4(x2),1,2(x3)", "5", 2),
        ("16", "0", 16),
        ("8(x2)", "2", None),
        ("8(x2)", "", None),
        ("", "0", None),
        ("many", "0", None),
    ],
)
def test_the_ranks_of_a_host_are_counted_without_ntasks_per_node(counts: str, node: str, num_local: int | None) -> None:
    task = {**TASK, "SLURM_STEP_TASKS_PER_NODE": counts, "SLURM_TASKS_PER_NODE": "", "SLURM_NODEID": node}
    variables = launcher_variables(task)
    assert variables.get("LOCAL_WORLD_SIZE") == (None if num_local is None else str(num_local))
    assert num_local_ranks({**task, **variables}) == num_local
    # A step may have fewer tasks on a node than the job: what the step says goes before.
    assert num_local_ranks({**task, "SLURM_NTASKS_PER_NODE": "64", **variables}) == (num_local or 64)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**TASK, "RANK": "3"},  # torchrun or deepspeed inside srun
        {**TASK, "SLURM_STEP_NUM_TASKS": "1"},  # srun --pty bash
        {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "gpu7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # sbatch
        {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "gpu7", "SLURM_NTASKS": "16"},  # salloc
    ],
)
def test_elsewhere_slurm_says_nothing_about_ranks(environment: dict[str, str]) -> None:
    assert launcher_variables(environment) == {}


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[007-009,12],cpu1", "gpu007"),
        ("a-[3,5]-ib,b", "a-3-ib"),
        ("rack[0-1]node[04-07]", "rack0node04"),
        ("gpu-3.cluster.edu,gpu-[4-5].cluster.edu", "gpu-3.cluster.edu"),
    ],
)
def test_the_first_host_of_slurm_s_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def test_ports_differ_between_steps_and_stay_below_those_of_outgoing_connections() -> None:
    ports = {port_of_step(job, step) for job in (4711, 99_999_999) for step in range(10)}
    assert len(ports) == 20
    assert all(12_000 <= port < 32_000 for port in ports)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Begin with the usual handlers, however the tests were started (nohup, in the background), and bring them back."""
    usual = {
        signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler,
    }  # fmt: skip
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_that_is_closed_asks_to_stop_as_slurm_does(
    number: signal.Signals, handlers: None, capfd: pytest.CaptureFixture[str]
) -> None:
    with StopRequest(ALONE) as stop:
        signal.raise_signal(number)
        assert stop.is_set()
    assert capfd.readouterr().err.startswith("train: asked to stop; finishes this step")
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_training_under_nohup_goes_on_when_its_terminal_is_closed(handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest(ALONE) as stop:
        signal.raise_signal(signal.SIGHUP)
        assert not stop.is_set()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_wish_to_stop_is_answered_once_and_a_second_ctrl_c_again(
    handlers: None, capfd: pytest.CaptureFixture[str]
) -> None:
    with StopRequest(ALONE) as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # as the launcher sends it after a Ctrl-C
        assert stop.is_set()
        assert capfd.readouterr().err.splitlines() == [
            "train: asked to stop; finishes this step, or this pass of the validation, and saves"
        ]
        signal.raise_signal(signal.SIGINT)
        assert capfd.readouterr().err.startswith("train: already stopping; kill -9 ends it at once")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


LOOKOUT = """
import os, sys, time, torch.distributed
from laborllm_dist.distributed import watchdog
from laborllm_dist.distributed.channel import Channel
watchdog.GRACE_SECONDS = 0.5
rank, port, ending = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
store = torch.distributed.TCPStore("127.0.0.1", port, 2, rank == 0)
def lost():
    os._exit(7)
with watchdog.watch_peers(
    Channel(store, b"secret"), rank=rank, world_size=2, is_clean_exit=lambda error: isinstance(error, EOFError), when_lost=lost
):
    if rank == 0:
        time.sleep(4)  # as in a collective that nothing interrupts
    elif ending == "killed":
        os.kill(os.getpid(), 9)
    elif ending == "failed":
        raise ValueError
    elif ending == "expected":
        raise EOFError
"""


@pytest.mark.ranks
@pytest.mark.parametrize(("ending", "code"), [("killed", 7), ("failed", 7), ("expected", 0), ("well", 0)])
def test_a_rank_that_waits_is_ended_when_another_has_gone_without_goodbye(ending: str, code: int) -> None:
    port = str(free_port())
    environment = {**os.environ, **ON_CPU, **python_path(), "MASTER_ADDR": "127.0.0.1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", LOOKOUT, str(rank), port, ending], env=environment, stderr=subprocess.DEVNULL
        )
        for rank in (0, 1)
    ]
    try:
        assert ranks[0].wait(timeout=60) == code
    finally:
        for each in ranks:
            each.kill()
            each.wait()


@pytest.mark.ranks
def test_ranks_that_may_open_few_files_end_with_a_line_each(tmp_path: Path) -> None:
    command = ["bash", "-c", 'ulimit -n 20; exec "$@"', "-", sys.executable, str(PROJECT / "launch/train.py")]
    environment = {name: value for name, value in os.environ.items() if name != "TORCH_CPP_LOG_LEVEL"}
    environment |= {**ON_CPU, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [*command, *small_run(tmp_path)], env={**environment, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    try:
        for rank in ranks:
            _, text = rank.communicate(timeout=180)
            assert rank.returncode == 2
            assert text.startswith("error: ") and text.count("\n") == 1, text
            assert "20" in text and "ulimit -n 4096" in text
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


@pytest.mark.ranks
def test_ranks_that_do_not_meet_end_with_one_line(tmp_path: Path) -> None:
    launcher = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    outcome = subprocess.run(
        [sys.executable, str(PROJECT / "launch/train.py"), *small_run(tmp_path, "ranks.timeout_minutes=0.05")],
        env={**os.environ, **ON_CPU, **launcher, "MASTER_PORT": str(free_port())},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert outcome.returncode == 2
    assert "error: rank 0 of 2 has not met the others at 127.0.0.1:" in outcome.stderr
    assert "Traceback" not in outcome.stderr
