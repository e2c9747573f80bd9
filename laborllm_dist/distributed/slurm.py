"""Slurm's variables of a step's task -> the variables that launchers set and torch.distributed reads.

`srun` says which rank a task is, but in names of its own, and names no port to meet at. The shell of sbatch or salloc
also has SLURM_PROCID or SLURM_NTASKS: only processes of a step (SLURM_STEP_ID) were started once per rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from laborllm_dist.distributed.rank_variables import MOST_RANKS, whole_number

NEEDED = (
    "SLURM_STEP_ID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_STEP_NODELIST",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_JOB_ID",
)
# Below the ports that Linux gives to outgoing connections (32768 and on), above those of usual services.
FIRST_PORT, NUM_PORTS = 12_000, 20_000
MOST_IDENTIFIER = 2**32 - 1  # of a job or step


def launcher_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT of a task of srun; empty for other processes.

    LOCAL_WORLD_SIZE, the number of ranks on the same host, too, if Slurm sets it.

    Nothing either where a launcher has set RANK (torchrun inside srun), and in a step of one task, which is one rank
    wherever it was started (`srun --pty bash` too).

    Raises:
        LauncherError: if one of Slurm's variables is not a number.
    """
    if "RANK" in environment or any(name not in environment for name in NEEDED):
        return {}
    if environment["SLURM_STEP_NUM_TASKS"] == "1":
        return {}
    job, step = (whole_number(environment, name, 0, MOST_IDENTIFIER) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"):
        whole_number(environment, name, 0, MOST_RANKS)
    # A task that is bound to one GPU (--gpus-per-task) sees it as its first.
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    sees_one_gpu = len(visible) == 1 and visible[0] != ""
    num_local = tasks_of_node(environment)
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": "0" if sees_one_gpu else environment["SLURM_LOCALID"],
        "MASTER_ADDR": first_host(environment["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(port_of_step(job, step)),
        **({} if num_local is None else {"LOCAL_WORLD_SIZE": str(num_local)}),
    }


def tasks_of_node(environment: Mapping[str, str]) -> int | None:
    """Return the number of a step's tasks on the node of this task; None if Slurm does not set it.

    `srun -N3 -n11` may put `4(x2),3` tasks on its nodes; this task's is the one numbered SLURM_NODEID.
    """
    counts = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE", "")
    groups = [re.fullmatch(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?", group) for group in counts.split(",")]
    of_nodes = [int(group[1]) for group in groups if group is not None for _ in range(int(group[2] or 1))]
    node = environment.get("SLURM_NODEID", "")
    if None in groups or not node.isdecimal() or int(node) >= len(of_nodes):
        return None
    return of_nodes[int(node)]


def first_host(hosts: str) -> str:
    """Return the first name of Slurm's list of hosts: `gpu[007-009,12],cpu1` begins with gpu007."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", hosts)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0] if first else hosts)


def port_of_step(job: int, step: int) -> int:
    """Return a port derived from the step, so that all ranks agree on it and other steps rarely share it."""
    return FIRST_PORT + (job + 1_009 * step) % NUM_PORTS
