"""Settings of launch/sweep.py: the runs of a sweep, and what executes them. Values live in conf/sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from laborllm_dist.config.baselines import BaselineName
from laborllm_dist.config.number_ranges import Seed, above, within
from laborllm_dist.config.reader import OutOfRangeError, Strict, check_file_name

DataShare = Annotated[float, above(0, 1)]


@dataclass(frozen=True, slots=True)
class RunsSettings(Strict):
    """Runs beside those of the grid, such as a second seed at one corner of it."""

    model: str
    """Name of a model of the sweep."""
    mix: str
    """Name of a source mix of the sweep."""
    share: DataShare
    """Share of the training people."""
    seeds: tuple[Seed, ...]
    """A run for each."""


@dataclass(frozen=True, slots=True)
class ArraySettings(Strict):
    """The array of Slurm jobs that executes a sweep, one job per run."""

    partition: str | None
    """Slurm partition; null: the default one."""
    account: str | None
    """Slurm account that pays; null: the default one."""
    minutes: Annotated[int, within(1, 1_000_000)]
    """Time limit of a run, in minutes; a run that reaches it saves, is queued again and resumes."""
    cpus_per_rank: Annotated[int, within(1, 100_000)]
    """CPUs of a rank."""
    memory_gib: Annotated[int, within(1, 1_000_000)] | None
    """Memory on each node, in GiB; null: all of it."""
    has_gpus: bool
    """Ask for a GPU for each rank."""
    max_parallel: Annotated[int, within(1, 100_000)]
    """Most jobs at the same time."""
    signal_seconds: Annotated[int, within(10, 100_000)]
    """Seconds before the time limit at which the ranks are asked to save."""


@dataclass(frozen=True, slots=True)
class SweepSettings(Strict):
    """A list of runs: every model with every share of every source mix and every seed, and some more."""

    action: Literal["run", "list", "status", "cancel"]
    """`run` the sweep, or resume it; `list` its runs with what they need; show their `status`; `cancel` what runs. The
    first word of the command: sweep.py status +sweep=NAME."""
    name: str
    """Name of the sweep, and of its folder."""
    sweeps_dir: str
    """Folder of all sweeps."""
    common: tuple[str, ...]
    """Settings of every run, as launch/train.py takes them."""
    models: dict[str, tuple[str, ...]]
    """Options of the group `model`, each with settings of its runs, such as a learning rate."""
    mixes: dict[str, tuple[str, ...]]
    """Source mixes by name, each with the settings that select its data."""
    shares: tuple[DataShare, ...]
    """Shares of the training people; those of a smaller one are among those of a larger one."""
    seeds: tuple[Seed, ...]
    """Training seeds of the grid."""
    more_runs: dict[str, RunsSettings]
    """Runs beside the grid, by any name."""
    baselines: tuple[BaselineName, ...]
    """Baselines, scored once for each source mix, at the largest share."""
    baseline_settings: tuple[str, ...]
    """Further settings of launch/baselines.py."""
    executor: Literal["local", "slurm"]
    """This machine, or an array of Slurm jobs."""
    max_parallel: Annotated[int, within(1, 1_024)]
    """Most runs at the same time on this machine, each with GPUs of its own; Slurm has `array.max_parallel`."""
    num_ranks: Annotated[int, within(1, 1_024)]
    """Ranks of a run on each node."""
    num_nodes: Annotated[int, within(1, 10_000)]
    """Nodes of a run; more than 1 under Slurm only."""
    array: ArraySettings

    def __post_init__(self) -> None:
        check_file_name(self, "name")
        for field in ("models", "mixes", "shares", "seeds"):
            if not getattr(self, field):
                raise OutOfRangeError(field, "at least one")
        if self.executor == "local" and self.num_nodes > 1:
            raise OutOfRangeError("num_nodes", "1 with executor=local; executor=slurm runs over several nodes")
        for name, runs in self.more_runs.items():
            for field in ("model", "mix"):
                known = self.models if field == "model" else self.mixes
                if getattr(runs, field) not in known:
                    expected = f"one of {', '.join(known)}, got {getattr(runs, field)!r}"
                    raise OutOfRangeError(f"more_runs.{name}.{field}", expected)
