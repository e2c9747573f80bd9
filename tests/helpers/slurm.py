"""A real Slurm of one node for tests: munge, slurmctld and slurmd in namespaces of their own, which end as one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helpers.processes import ON_CPU, PROJECT, free_port, python_path, wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "unshare")
# The process ids are a namespace's, so that ending its first process ends every daemon, job step and rank in it; the
# host name is one that resolves everywhere. GPUs are made up from two devices that every machine has.
CONFIGURATION = """
ClusterName=made
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A job that is queued again waits so long before it may start (with 1 it has waited for a minute).
AuthInfo=socket={folder}/munge.socket,cred_expire=5
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerParameters=bf_interval=1,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 CPUs={num_cpus} RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""
GPUS = "AutoDetect=off\nNodeName=localhost Name=gpu File=/dev/null\nNodeName=localhost Name=gpu File=/dev/zero\n"
DAEMONS = """
hostname localhost
munged --force --foreground --key-file="$1/key" --socket="$1/munge.socket" --pid-file="$1/munge.pid" \
    --log-file="$1/munge.log" --seed-file="$1/munge.seed" &
until [ -S "$1/munge.socket" ]; do sleep 0.05; done
slurmctld -D -c & slurmd -D &
wait
"""


def why_no_slurm() -> str | None:
    """Return why no Slurm can be made here; None: it can."""
    if os.geteuid() != 0:
        return "a Slurm of one's own needs root"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"no {', '.join(missing)} (Debian: apt-get install slurm-wlm munge)"
    probe = subprocess.run(
        ["unshare", "--pid", "--mount-proc", "--uts", "--fork", "hostname", "localhost"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no namespaces: {probe.stderr.strip()}" if probe.returncode else None


@dataclass(frozen=True)
class MadeSlurm:
    """A Slurm at work, whose commands take `environment`."""

    environment: dict[str, str]

    def run(self, *command: str, time_limit: float = 60) -> str:
        """Run one of Slurm's commands and return what it prints."""
        outcome = subprocess.run(
            command,
            cwd=PROJECT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=time_limit,
            check=False,
        )
        assert outcome.returncode == 0, f"{command}: {outcome.stdout}{outcome.stderr}"
        return outcome.stdout

    def submit(self, *arguments: str) -> int:
        """Submit a job from the project's folder, as a user does; return its number."""
        return int(self.run("sbatch", "--parsable", *arguments))

    def job(self, number: int) -> dict[str, str]:
        """Return what Slurm knows of a job: JobState, ExitCode, Restarts and more."""
        return dict(
            word.split("=", 1)
            for word in self.run("scontrol", "--oneliner", "show", "job", str(number)).split()
            if "=" in word
        )

    def wait_for_end(self, number: int, *, time_limit: float) -> dict[str, str]:
        """Wait until a job has ended for good; return what Slurm knows of it."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        wait_until(lambda: self.job(number)["JobState"] in ended, time_limit=time_limit, what=f"job {number} ends")
        return self.job(number)


@contextlib.contextmanager
def made_slurm() -> Iterator[MadeSlurm]:
    """Start a Slurm of one node with two partitions, and end it with all its jobs."""
    folder = Path(tempfile.mkdtemp(prefix="slurm_"))  # a short path: sockets' names have 107 characters at most
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    (folder / "gres.conf").write_text(GPUS)
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(folder=folder, controller_port=free_port(), node_port=free_port(), num_cpus=os.cpu_count())
    )
    environment = _environment() | {"SLURM_CONF": str(folder / "slurm.conf")}
    with (folder / "daemons.log").open("wb") as log:
        daemons = subprocess.Popen(
            ["unshare", "--pid", "--mount-proc", "--uts", "--fork", "--kill-child",
             "bash", "-c", DAEMONS, "bash", str(folder)],
            stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment, start_new_session=True,
        )  # fmt: skip
    slurm = MadeSlurm(environment)
    try:
        try:
            wait_until(lambda: _is_idle(slurm), time_limit=30, what="a node is idle")
        except AssertionError:
            raise RuntimeError(f"Slurm has not started:\n{(folder / 'daemons.log').read_text()[-3000:]}") from None
        yield slurm
    finally:
        daemons.send_signal(signal.SIGKILL)  # and the kernel ends every process of the namespace
        daemons.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _is_idle(slurm: MadeSlurm) -> bool:
    with contextlib.suppress(AssertionError):
        return "idle" in slurm.run("sinfo", "--noheader", "--format=%T")
    return False


def _environment() -> dict[str, str]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return {**outside, **ON_CPU, **python_path()}


# As Slurm 22.05 sets them in task 9 of `srun --ntasks-per-node=8` over two hosts.
TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NODELIST": "gpu[007,012]",
    "SLURM_JOB_NODELIST": "gpu[003,007,012]",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
}
