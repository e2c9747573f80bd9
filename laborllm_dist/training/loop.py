"""Training from settings to export, in order of time: plan, engine, resume, steps, validation, checkpoints, export."""

from __future__ import annotations

import contextlib
import functools
import resource
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from types import FrameType

import torch

from laborllm_dist.batches.packed import pack_batch
from laborllm_dist.careers.corpus import check_sources
from laborllm_dist.engine.checkpoint import (
    check_checkpoint,
    checkpoint_folder,
    keep_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from laborllm_dist.engine.export import ModelConfig, export_checkpoint, exported_step
from laborllm_dist.engine.language_model import CareerLanguageModel
from laborllm_dist.engine.model import check_fit, check_packing, check_weights, make_model, weights_identity
from laborllm_dist.engine.ranks import Ranks, alone
from laborllm_dist.engine.zero import ZeroEngine, make_engine
from laborllm_dist.errors import CheckpointError, Interrupted, ModelError
from laborllm_dist.run_folder import RunFolder, open_run
from laborllm_dist.settings import RunSettings
from laborllm_dist.settings_reader import settings_to_values
from laborllm_dist.tokens.prepare import prepare_store
from laborllm_dist.tokens.store import TOKENIZER, CareerRows, TokenStore, open_store
from laborllm_dist.training.plan import TrainingPlan, plan_training
from laborllm_dist.training.run_log import RunLog, say, silence
from laborllm_dist.training.schedule import learning_rate_at
from laborllm_dist.training.validation import ValidationLoss, validate


@dataclass(frozen=True, slots=True)
class RunState:
    """What a resumed run must know besides weights and Adam's state; the rest is a function of `step`."""

    step: int = 0  # steps done
    tokens_seen: int = 0
    best_step: int | None = None
    best_loss: float | None = None  # nats per token of the validation people


def train(settings: RunSettings, ranks: Ranks) -> RunFolder:
    """Train the model of these settings, or go on with it; return the finished run's folder. Collective.

    Raises:
        LaborError: if anything is missing or does not fit; the run's last checkpoint is untouched.
        Interrupted: if SIGTERM or SIGINT came; a checkpoint of the last step is written then.
    """
    tell = say if ranks.is_first else silence
    tell(describe_settings(settings, ranks))
    ranks.on_first(lambda: check_sources(settings.data))
    ranks.on_first(lambda: check_weights(settings.model))
    store = open_store(ranks.on_first(lambda: prepare_store(settings, tell).folder))
    plan = ranks.on_first(lambda: _check_and_plan(settings, store, ranks))
    with alone(ranks, Path(settings.runs) / settings.name):
        run = ranks.on_first(lambda: _open_run(settings, store))
        _train_alone(settings, ranks, store, plan, run)
    return run


def _check_and_plan(settings: RunSettings, store: TokenStore, ranks: Ranks) -> TrainingPlan:
    store.careers("test")  # a split without people is refused now, not after the training
    return plan_training(store, settings, world_size=ranks.world_size)


def _open_run(settings: RunSettings, store: TokenStore) -> RunFolder:
    weights = None if settings.model.path is None else weights_identity(settings.model)
    return open_run(settings, {"fingerprint": store.fingerprint, "folder": str(store.folder)}, weights)


def _train_alone(settings: RunSettings, ranks: Ranks, store: TokenStore, plan: TrainingPlan, run: RunFolder) -> None:
    """Resume or begin, do all steps that are left, and export."""
    tell = say if ranks.is_first else silence
    careers = store.careers("train")
    newest = ranks.on_first(lambda: newest_checkpoint(run.checkpoints, tell))
    state = RunState() if newest is None else _state_of(newest[1].state, newest[1].run, run)
    if state.step == plan.num_steps and ranks.on_first(lambda: exported_step(run.export, run.fingerprint)) is not None:
        tell(f"train: {run.path} is finished ({plan.num_steps} steps, best after {state.best_step})")
        return

    model = make_model(settings, num_ids=store.num_ids)
    ranks.on_first(lambda: check_fit(model, store))
    ranks.on_first(lambda: check_packing(model, device=torch.device("cpu")))
    config = model.config
    tell(describe(settings, plan, sum(parameter.numel() for parameter in model.parameters())))
    engine = make_engine(CareerLanguageModel(model), settings.zero, settings.optimizer, ranks)
    if newest is not None:
        load_checkpoint(engine, newest[0], newest[1])
        tell(f"train: goes on after step {state.step} of {plan.num_steps}")
    state = _run_steps(Work(settings, plan, engine, run, careers, store.careers("validation"), tell), state)
    del engine
    ranks.on_first(lambda: _export_best(state, run, config, store))
    tell(f"train: weights of step {state.best_step} (best on validation) in {run.export}")


@dataclass(frozen=True, slots=True)
class Work:
    """What the steps need."""

    settings: RunSettings
    plan: TrainingPlan
    engine: ZeroEngine
    run: RunFolder
    careers: CareerRows
    validation: CareerRows
    tell: Callable[[str], None]


def _run_steps(work: Work, state: RunState) -> RunState:
    """Do all steps that are left; return the state after the last."""
    training, ranks, num_steps = work.settings.training, work.engine.ranks, work.plan.num_steps
    record = {"fingerprint": work.run.fingerprint, **settings_to_values(work.settings)}
    log = (
        RunLog(work.run.metrics, work.settings.tracking, name=work.settings.name, settings=record, step=state.step)
        if ranks.is_first
        else None
    )
    with _StopSignals() as stop, contextlib.closing(log) if log is not None else contextlib.nullcontext():
        while state.step < num_steps:
            numbers = _one_step(work, state.step)
            state = RunState(
                state.step + 1, state.tokens_seen + int(numbers["step_tokens"]), state.best_step, state.best_loss
            )
            (num_stops,) = ranks.sum(float(stop.wanted))
            if work.plan.validates_after(state.step):
                loss = validate(work.engine, work.validation, work.settings.batch)
                state = _with_validation(state, loss)
                numbers |= {
                    "validation_nats_per_token": loss.nats_per_token,
                    "validation_nats_per_title": loss.nats_per_title,
                }
            line = {"step": state.step, "epoch": state.step / work.plan.order.steps_per_epoch, **numbers}
            if log is not None:
                log.write({**line, "tokens_seen": state.tokens_seen})
            if "validation_nats_per_token" in numbers or state.step % training.log_every_steps == 0:
                work.tell(progress_line(state.step, num_steps, numbers))
            if work.plan.saves_after(state.step) or num_stops:
                save_checkpoint(
                    work.engine, work.run.checkpoints, step=state.step, run=work.run.fingerprint, state=asdict(state)
                )
                ranks.on_first(functools.partial(_keep, work, state))
            if num_stops and state.step < num_steps:
                raise Interrupted(f"on request, after step {state.step}, which is saved; the same command goes on")
    return state


def _keep(work: Work, state: RunState) -> None:
    newest = work.settings.training.keep_checkpoints
    keep_checkpoints(work.run.checkpoints, num_newest=newest, best_step=state.best_step)


def _one_step(work: Work, step: int) -> dict[str, float]:
    """Learn from one step's careers; return its numbers. Collective."""
    started, ranks = monotonic(), work.engine.ranks
    planned = work.plan.step(step)
    log_likelihood = torch.zeros((), dtype=torch.float64, device=ranks.device)
    for number, ranks_rows in enumerate(planned.shards.passes, start=1):
        rows = [
            [work.careers.token_ids(int(planned.careers[career])) for career in planned.packing.rows[row]]
            for row in ranks_rows[ranks.rank]
        ]
        log_likelihood += work.engine.learn_from(
            pack_batch(rows, planned.packing.row_length),
            step_tokens=planned.num_targets,
            is_last_pass=number == len(planned.shards.passes),
        )
    rate = learning_rate_at(step, work.plan.num_steps, work.settings.optimizer)
    norm = work.engine.update(learning_rate=rate)
    (total,) = ranks.sum(float(log_likelihood))
    return {
        "loss_nats_per_token": -total / planned.num_targets,
        "learning_rate": rate,
        "gradient_norm": norm,
        "step_tokens": planned.packing.num_tokens,
        "row_fill": planned.packing.fill,
        "tokens_per_second": planned.packing.num_tokens / (monotonic() - started),
        "peak_memory_gib": peak_memory_gib(ranks.device),
    }


def progress_line(step: int, num_steps: int, numbers: dict[str, float]) -> str:
    """Return the line that people watch."""
    line = (
        f"step {step}/{num_steps}  loss {numbers['loss_nats_per_token']:.4f} nats/token  "
        f"rate {numbers['learning_rate']:.2e}  {numbers['tokens_per_second'] / 1000:.1f}k tokens/s  "
        f"{numbers['peak_memory_gib']:.1f} GiB"
    )
    if "validation_nats_per_token" in numbers:
        line += (
            f"  |  validation {numbers['validation_nats_per_token']:.4f} nats/token, "
            f"{numbers['validation_nats_per_title']:.4f} nats/title"
        )
    return line


def describe_settings(settings: RunSettings, ranks: Ranks) -> str:
    """Return what is asked for, which is known before any data is read."""
    surveys = ", ".join(corpus.survey for corpus in settings.data.corpora.values())
    weights = f"pretrained {settings.model.path}" if settings.model.path else "from nothing"
    return (
        f"plan: {settings.name}: careers of {surveys}; model {settings.model.name}, {weights}; "
        f"ZeRO-{settings.zero.stage} {settings.zero.precision} on {ranks.world_size} x {ranks.device.type}; "
        f"{settings.batch.careers_per_step} careers a step in rows of at most {settings.batch.row_length} tokens, "
        f"{settings.training.epochs} epochs, peak learning rate {settings.optimizer.learning_rate:g}"
    )


def describe(settings: RunSettings, plan: TrainingPlan, num_parameters: int) -> str:
    """Return the short plan that stands before the first step."""
    first = plan.step(0)
    tokens = int((plan.lengths[plan.order.rows] * plan.order.weights).sum())
    return (
        f"plan: {plan.order.careers_per_epoch:,} careers of {tokens:,} tokens an epoch, {plan.num_steps} steps of "
        f"{settings.batch.careers_per_step} careers ({settings.training.epochs} epochs); a step has about "
        f"{len(first.packing.rows)} rows, {first.packing.fill:.0%} full, in {len(first.shards.passes)} passes\n"
        f"plan: {num_parameters:,} parameters"
    )


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory this rank has held: of the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts it in KiB


def _with_validation(state: RunState, loss: ValidationLoss) -> RunState:
    if not loss.nats_per_token < float("inf"):
        raise ModelError(
            f"the validation loss after step {state.step} is {loss.nats_per_token}; lower the learning rate"
        )
    if state.best_loss is not None and state.best_loss <= loss.nats_per_token:
        return state
    return RunState(state.step, state.tokens_seen, best_step=state.step, best_loss=loss.nats_per_token)


def _state_of(values: object, checkpoint_run: str, run: RunFolder) -> RunState:
    if checkpoint_run != run.fingerprint:
        raise CheckpointError(f"the checkpoints in {run.checkpoints} belong to another run; delete them to start anew")
    assert isinstance(values, dict)
    return RunState(**values)


def _export_best(state: RunState, run: RunFolder, config: ModelConfig, store: TokenStore) -> None:
    assert state.best_step is not None  # the last step validates
    folder = checkpoint_folder(run.checkpoints, state.best_step)
    export_checkpoint(folder, check_checkpoint(folder), config, store.folder / TOKENIZER, run.export)


class _StopSignals:
    """Notes SIGTERM and SIGINT instead of dying in the middle of a step."""

    def __init__(self) -> None:
        self.wanted = False

    def __enter__(self) -> _StopSignals:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.wanted = True
