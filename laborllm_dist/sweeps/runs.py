"""The runs of a sweep: model size x share of the training people x source mix x seed, and what each of them needs.

The name of a run's folder is a function of its settings, so two sweeps that share a run share its folder. All shares of
a mix train from one token store: a share selects people when training starts.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from laborllm_dist.batching.training_plan import TrainingPlan, plan_training
from laborllm_dist.config.reader import LONGEST_NAME
from laborllm_dist.config.run import RunSettings
from laborllm_dist.config.sweep import SweepSettings
from laborllm_dist.errors import LaborError, SweepError
from laborllm_dist.io.console_tables import Column, FoldingTable
from laborllm_dist.io.run_directory import settings_fingerprint
from laborllm_dist.models.dims import ModelShape, shape_of
from laborllm_dist.planning.display import check_plan
from laborllm_dist.planning.estimate import ResourceEstimate, budget_of_gpu, estimate_resources
from laborllm_dist.planning.job_queue import simulate_sweep
from laborllm_dist.planning.simulator import simulate_run
from laborllm_dist.planning.throughput import flops_per_token
from laborllm_dist.planning.workload import (
    LLAMA_2_IDS,
    Workload,
    assumed_plan,
    find_held_out,
    has_known_size,
    workload_of,
)
from laborllm_dist.store.build import StoreLocation, locate_store
from laborllm_dist.store.store import TokenStore, open_store
from laborllm_dist.sweeps.points import SweepPoint

Compose = Callable[[Sequence[str]], RunSettings]
GIGA = 1e9


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One run; `overrides` are the arguments with which launch/train.py composes its `settings`."""

    model: str
    mix: str
    share: float
    overrides: tuple[str, ...]
    settings: RunSettings

    @property
    def name(self) -> str:
        """Name of the run and of its folder, a function of the settings."""
        return self.settings.name

    @property
    def seed(self) -> int:
        """Training seed."""
        return self.settings.training.seed

    @property
    def folder(self) -> Path:
        """Folder that launch/train.py writes; an earlier run with the same settings may be in another one."""
        return Path(self.settings.output_dir) / self.name


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A run with its training plan: from the token store, or from assumed sizes if there is no store yet."""

    run: SweepRun
    plan: TrainingPlan
    work: Workload
    shape: ModelShape

    def estimate(self) -> ResourceEstimate:
        """Return memory, time and price."""
        settings = self.run.settings
        return estimate_resources(settings, self.work, self.shape, budget_of_gpu(settings.plan.gpu))

    @property
    def flops(self) -> float:
        """Floating-point operations of the whole training."""
        per_token = flops_per_token(self.shape, self.run.settings.adapter, attended=self.work.attended)
        return per_token * self.work.tokens_per_epoch * self.plan.num_epochs

    @property
    def num_people(self) -> int:
        """Number of careers that the run trains on."""
        return len(self.plan.order.rows)


def list_runs(settings: SweepSettings, compose: Compose) -> tuple[SweepRun, ...]:
    """Return the distinct runs of a sweep, ordered by mix.

    Args:
        settings: of the sweep.
        compose: returns the settings of launch/train.py for its arguments.

    Raises:
        SettingsError: if settings of a run are invalid.
        SweepError: if a run could stop before the end of its schedule.
    """
    grid = itertools.product(settings.mixes, settings.models, settings.shares, settings.seeds)
    more = ((each.mix, each.model, each.share, seed) for each in settings.more_runs.values() for seed in each.seeds)
    chosen = sorted(dict.fromkeys([*grid, *more]), key=lambda run: list(settings.mixes).index(run[0]))
    composed: dict[tuple[str, str], tuple[tuple[str, ...], RunSettings]] = {}
    runs = []
    for mix, model, share, seed in chosen:
        if (mix, model) not in composed:
            given = (*settings.common, f"model={model}", *settings.models[model], *settings.mixes[mix])
            composed[mix, model] = (given, _checked(compose(given), model))
        given, base = composed[mix, model]
        runs.append(_run_of(settings, given, base, model=model, mix=mix, share=share, seed=seed))
    return tuple(runs)


def _checked(settings: RunSettings, model: str) -> RunSettings:
    if settings.training.patience is not None:
        raise SweepError(
            f"the runs of {model} may end early (training.patience={settings.training.patience}), but are "
            "compared after their whole schedule; add training.patience=null to common",
            code="incomplete-schedule",
        )
    return settings


def _run_of(
    sweep: SweepSettings, given: Sequence[str], base: RunSettings, *, model: str, mix: str, share: float, seed: int
) -> SweepRun:
    corpora = {
        name: dataclasses.replace(corpus, fraction=corpus.fraction * share)
        for name, corpus in base.data.corpora.items()
    }
    settings = dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, corpora=corpora),
        training=dataclasses.replace(base.training, seed=seed),
        plan=dataclasses.replace(base.plan, num_gpus=sweep.num_ranks * sweep.num_nodes),
        tracking=dataclasses.replace(base.tracking, group=base.tracking.group or sweep.name),
    )
    settings = dataclasses.replace(settings, name=run_name(settings))
    fractions = (f"data.corpora.{name}.fraction={corpus.fraction!r}" for name, corpus in corpora.items())
    overrides = (
        *given, *fractions, f"training.seed={seed}", f"plan.num_gpus={settings.plan.num_gpus}",
        f'tracking.group="{settings.tracking.group}"', f"name={settings.name}",
    )  # fmt: skip
    return SweepRun(model, mix, share, overrides, settings)


def run_name(settings: RunSettings) -> str:
    """Return the name of a run, a function of its settings: model, data, share, seed and a fingerprint."""
    fractions = {corpus.fraction for corpus in settings.data.corpora.values()}
    share = f"-{fractions.pop():g}" if len(fractions) == 1 else ""
    ending = f"{share}-seed{settings.training.seed}-{settings_fingerprint(settings)}"
    names = re.sub(r"[^\w.+-]", "_", f"{settings.model.name}-{settings.data.name}", flags=re.ASCII)
    return names[: LONGEST_NAME - len(ending)] + ending


def locations_of(runs: Sequence[SweepRun]) -> dict[str, StoreLocation]:
    """Return the location of the token store of each mix whose data files are present."""
    locations = {}
    for run in first_of_mixes(runs).values():
        try:
            locations[run.mix] = locate_store(run.settings)
        except LaborError:  # a plan needs no data files; preparation reports those that are missing
            continue
    return locations


def first_of_mixes(runs: Sequence[SweepRun]) -> dict[str, SweepRun]:
    """Return the first run of each mix at its largest share; the baselines of the mix are in its folder."""
    first: dict[str, SweepRun] = {}
    for run in runs:
        if run.mix not in first or run.share > first[run.mix].share:
            first[run.mix] = run
    return first


def unknown_mixes(runs: Sequence[SweepRun], locations: Mapping[str, StoreLocation]) -> dict[str, SweepRun]:
    """Return the mixes that cannot be planned without a token store and have none yet, each with its first run."""
    return {
        mix: run
        for mix, run in first_of_mixes(runs).items()
        if not (mix in locations and locations[mix].is_built) and not has_known_size(run.settings)
    }


def plan_runs(runs: Sequence[SweepRun], locations: Mapping[str, StoreLocation]) -> tuple[PlannedRun, ...]:
    """Plan every run, from the token store of its mix, or from assumed sizes if there is no store yet.

    Raises:
        LaborError: if training would fail, as far as a plan can tell.
    """
    stores = {mix: open_store(location.folder) for mix, location in locations.items() if location.is_built}
    return tuple(plan_run(run, stores.get(run.mix)) for run in runs)


def plan_run(run: SweepRun, store: TokenStore | None) -> PlannedRun:
    """Plan one run, from its token store, or from assumed sizes if there is none.

    Raises:
        LaborError: if training would fail, as far as a plan can tell.
    """
    settings = run.settings
    if store is None:
        plan, num_ids = assumed_plan(settings), settings.tokenizer.vocabulary_size or LLAMA_2_IDS
    else:
        plan, num_ids = plan_training(store, settings, world_size=settings.plan.num_gpus), store.num_ids
    work = workload_of(plan, is_assumed=store is None)
    shape = shape_of(settings.model, num_ids=num_ids)
    check_plan(settings, work, shape)
    return PlannedRun(run, plan, work, shape)


def point_of(run: SweepRun, store: TokenStore, folder: Path) -> SweepPoint:
    """Return the row of points.csv for a finished run in `folder`."""
    planned, settings = plan_run(run, store), run.settings
    rows, shape = planned.plan.order.rows, planned.shape
    people = store.careers("train").table.select(["survey", "person"]).take(rows)
    return SweepPoint(
        size=settings.model.name,
        num_params=shape.num_parameters,
        num_non_embedding_params=num_non_embedding(shape),
        num_observations=int(planned.plan.num_observations[rows].sum()),
        run=str(folder),
        num_people=people.group_by(["survey", "person"]).aggregate([]).num_rows,
        num_tokens=round(planned.work.tokens_per_epoch),
        epochs=float(planned.plan.num_epochs),
        flops=planned.flops,
        seed=run.seed,
        sources="+".join(settings.data.corpora),
        pretrained="" if settings.model.path is None else settings.model.name,
    )


def num_non_embedding(shape: ModelShape) -> int:
    """Return the number of parameters outside the matrices over the vocabulary."""
    return shape.num_linear + shape.num_norms


def models_table(name: str, planned: Sequence[PlannedRun]) -> FoldingTable:
    """Return a table of the model sizes of a sweep."""
    columns = (Column("model", "name"), Column("parameters", "number"), Column("without embeddings", "number"))
    table = FoldingTable(columns, title=f"Models of sweep {name}", box=None, gap=2)
    shapes = {(each.run.model, each.shape.num_parameters): each.shape for each in planned}
    for (model, num_parameters), shape in shapes.items():
        table.add_row(model, f"{num_parameters:,}", f"{num_non_embedding(shape):,}")
    return table


def plan_table(name: str, planned: Sequence[PlannedRun], *, max_parallel: int = 1) -> FoldingTable:
    """Return a table of what each run needs, and all of them together: tokens, FLOPs, time, disk space and dollars.

    With `max_parallel` above 1 the caption has the time until all runs have ended.
    """
    columns = (
        Column("model", "name"),
        Column("sources", "name"),
        Column("share", "number"),
        Column("seed", "number"),
        Column("careers", "number"),
        Column("tokens", "number"),
        Column("FLOPs", "number"),
        Column("time", "number"),
        Column("disk", "number"),
        Column("dollars", "number"),
    )
    table = FoldingTable(columns, title=f"Runs of sweep {name}: {len(planned)}", box=None)
    estimates = [each.estimate() for each in planned]
    for each, estimate in zip(planned, estimates, strict=True):
        table.add_row(
            *run_cells(each.run), f"{each.num_people:,}", short(each.work.tokens_per_epoch * each.plan.num_epochs),
            f"{each.flops:.1e}", *_needs([estimate]),
        )  # fmt: skip
    table.add_row("together", *[""] * 5, f"{sum(each.flops for each in planned):.1e}", *_needs(estimates), style="bold")
    table.caption = "; ".join(_remarks(planned, estimates, max_parallel))
    return table


def queue_line(settings: SweepSettings, planned: Sequence[PlannedRun]) -> str:
    """Return a line that says how long an array of Slurm jobs takes, simulated with the failures of plan.cluster.

    Raises:
        SettingsError: if failures would interrupt a run too often for it to finish.
    """
    held_out = {each.run.mix: find_held_out(each.run.settings) for each in planned}
    runs = [simulate_run(each.estimate(), held_out[each.run.mix]) for each in planned]
    num_jobs = min(settings.array.max_parallel, len(runs))
    num_gpus = num_jobs * planned[0].run.settings.plan.num_gpus
    queue = simulate_sweep(runs, num_gpus, seed=0)
    low, half, high = queue.hours
    return (
        f"queue: {num_jobs:,} jobs at once on {num_gpus:,} GPUs are done in {half:,.1f} hours ({low:,.1f} to "
        f"{high:,.1f}), GPUs {queue.utilization:.0%} busy, {queue.dollars:,.0f} dollars; simulated with starts, "
        "validation, scoring, checkpoints and failures (plan.cluster)"
    )


def run_cells(run: SweepRun) -> tuple[str, str, str, str]:
    """Return model, sources, share and seed of a run as cells of a table."""
    return run.model, run.mix, f"{run.share:g}", str(run.seed)


def _needs(estimates: Sequence[ResourceEstimate]) -> tuple[str, str, str]:
    """Return the total time, disk space and dollars of some runs, as cells of a table."""
    hours, dollars, disk = (
        sum(getattr(each, name) for each in estimates) for name in ("hours", "dollars", "disk_bytes")
    )
    return _duration(hours), f"{short(disk)}B", f"{dollars:,.2f}"


def _duration(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _remarks(planned: Sequence[PlannedRun], estimates: Sequence[ResourceEstimate], max_parallel: int) -> Iterator[str]:
    at_once = min(max_parallel, len(planned))
    if at_once > 1:
        ends = [0.0] * at_once
        for each in estimates:
            heapq.heapreplace(ends, ends[0] + each.hours)  # the next run starts as soon as one ends
        yield f"{at_once} runs at a time take {_duration(max(ends))}"
    plan = planned[0].run.settings.plan
    yield f"training time on {plan.num_gpus} x {plan.gpu.name} and dollars are estimates"
    yield f"tokens of {'/'.join(map(str, sorted({each.plan.num_epochs for each in planned})))} epochs"
    if any(each.work.is_assumed for each in planned):
        yield "careers and tokens are assumed where no token store is prepared yet"
    if large := [each.settings.model.name for each in estimates if not each.fits]:
        yield f"{len(large)} runs, such as {large[0]}, do not fit the memory of this GPU (launch/plan.py)"


def short(number: float) -> str:
    """Return a number in thousands, millions or billions, such as 1.2M."""
    for size, letter in ((1e12, "T"), (GIGA, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"
