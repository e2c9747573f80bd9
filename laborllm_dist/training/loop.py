"""Training from settings to export, in order of time: plan, engine, resume, steps, validation, checkpoints, export."""

from __future__ import annotations

import contextlib
import functools
import math
from dataclasses import asdict
from pathlib import Path
from time import time

from laborllm_dist.batches.ahead import BatchesAhead
from laborllm_dist.careers.corpus import check_sources
from laborllm_dist.engine.capacity import capacity_of
from laborllm_dist.engine.checkpoint import (
    CheckpointManifest,
    check_checkpoint,
    checkpoint_folder,
    keep_checkpoints,
    newest_checkpoint,
    save_checkpoint,
)
from laborllm_dist.engine.export import ModelConfig, export_adapter, export_checkpoint, exported_step
from laborllm_dist.engine.model import (
    check_fit,
    check_packing,
    check_weights,
    make_model,
    num_parameters,
    weights_identity,
)
from laborllm_dist.engine.ranks import Ranks, alone
from laborllm_dist.engine.restore import load_checkpoint
from laborllm_dist.engine.zero import make_engine
from laborllm_dist.errors import BadStep, CheckpointError, Interrupted
from laborllm_dist.run_folder import RunFolder, open_run
from laborllm_dist.settings import RunSettings
from laborllm_dist.settings_reader import settings_to_values
from laborllm_dist.tokens.prepare import prepare_store
from laborllm_dist.tokens.store import TOKENIZER, TokenStore, open_store
from laborllm_dist.training.lines import describe_plan, describe_settings, progress_line
from laborllm_dist.training.memory_check import check_memory
from laborllm_dist.training.plan import TrainingPlan, plan_training
from laborllm_dist.training.run_log import RunLog, say, silence
from laborllm_dist.training.state import RunState, state_from_values
from laborllm_dist.training.step import StepResult, Work, batches_of_step, careers_of, take_step
from laborllm_dist.training.stop_signals import StopSignals
from laborllm_dist.training.validation import ValidationLoss, validate


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
    newest = ranks.on_first(lambda: newest_checkpoint(run.checkpoints, tell))
    state = RunState() if newest is None else _state_of(newest[1], run)
    is_over = state.is_over(plan.num_steps, settings.training.patience) and not _validation_is_due(plan, state)
    if is_over and ranks.on_first(lambda: exported_step(run.export, run.fingerprint)) == state.best_step:
        tell(f"train: {run.path} is finished ({state.step} steps, best after {state.best_step})")
        return

    capacity = capacity_of(ranks, settings)  # on every rank: all import at once what the model wants
    ranks.on_first(lambda: check_memory(settings, plan, store.num_ids, capacity, tell))
    model = make_model(settings, ranks, num_ids=store.num_ids)
    ranks.on_first(lambda: check_fit(model.hugging_face, store))
    ranks.on_first(lambda: check_packing(model.hugging_face, device=next(model.parameters()).device))
    config = model.hugging_face.config
    tell(describe_plan(settings, plan, *num_parameters(model)))
    engine = make_engine(model, settings.zero, settings.optimizer, ranks)
    if newest is not None:
        load_checkpoint(engine, newest[0], newest[1], updates=state.num_updates)
        tell(f"train: goes on after step {state.step} of {plan.num_steps}")
    work = Work(settings, plan, engine, run, store.careers("train"), store.careers("validation"), tell)
    state = _run_steps(work, state)
    del engine, work
    ranks.on_first(lambda: _export_best(state, run, config, store, settings))
    tell(f"train: weights of step {state.best_step} (best on validation) in {run.export}")


def _run_steps(work: Work, state: RunState) -> RunState:
    """Do all steps that are left; return the state after the last."""
    settings, ranks, plan = work.settings, work.engine.ranks, work.plan
    record = {"fingerprint": work.run.fingerprint, **settings_to_values(settings)}
    with contextlib.ExitStack() as held:
        log = None
        if ranks.is_first:
            log = RunLog(work.run.metrics, settings.tracking, name=settings.name, settings=record, step=state.step)
            held.enter_context(contextlib.closing(log))
        stop = held.enter_context(StopSignals(ranks))
        ahead = held.enter_context(BatchesAhead(functools.partial(batches_of_step, work), num_steps=plan.num_steps))
        state = _validate_if_due(work, state, stop, log, {})  # what a stop has cut short
        if _validation_is_due(plan, state):  # and cuts short again
            raise _on_request(state)
        while not state.is_over(plan.num_steps, settings.training.patience):
            result = take_step(work, ahead, state)
            if result.wrong is not None:
                _leave_out(work, state, result, log)
            state = _validate_if_due(work, result.state, stop, log, result.numbers)
            asked = stop.are_wanted()
            if plan.saves_after(state.step) or asked:
                _save(work, state)
            is_over = state.is_over(plan.num_steps, settings.training.patience)
            if asked and (not is_over or _validation_is_due(plan, state)):
                raise _on_request(state)
    if state.step < plan.num_steps:
        work.tell(
            f"train: stops early after step {state.step}: {state.validations_since_best} validations without a better "
            f"one than after step {state.best_step}"
        )
    return state


def _on_request(state: RunState) -> Interrupted:
    return Interrupted(f"on request, after step {state.step}, which is saved; the same command goes on")


def _validation_is_due(plan: TrainingPlan, state: RunState) -> bool:
    return state.step > 0 and plan.validates_after(state.step) and state.validated_step < state.step


def _validate_if_due(
    work: Work, state: RunState, stop: StopSignals, log: RunLog | None, numbers: dict[str, float]
) -> RunState:
    """Validate where the plan says so, write the step's line, and return the state after both. Collective."""
    loss: ValidationLoss | None = None
    if _validation_is_due(work.plan, state):
        loss = validate(work.engine, work.validation, work.settings.batch, stop)
    if loss is not None:
        state = state.after_validation(loss.nats_per_token)
        numbers = numbers | {
            "validation_nats_per_token": loss.nats_per_token,
            "validation_nats_per_title": loss.nats_per_title,
        }
    if log is not None and numbers:
        epoch = state.step / work.plan.order.steps_per_epoch
        log.write({"step": state.step, "epoch": epoch, **numbers, "tokens_seen": state.tokens_seen, "time": time()})
    if "loss_nats_per_token" in numbers and (
        loss is not None or state.step % work.settings.training.log_every_steps == 0
    ):
        work.tell(progress_line(state.step, work.plan.num_steps, numbers))
    return state


def _leave_out(work: Work, before: RunState, result: StepResult, log: RunLog | None) -> None:
    """Say which careers made a step that was not learnt from; stop if the settings say so. Collective."""
    careers = careers_of(work, work.plan.step(before.step))
    line = {"step": result.state.step, "left_out": result.wrong, "careers": careers}
    if log is not None:
        log.write(line)
    shown = ", ".join(careers[:3]) + (f" and {len(careers) - 3} more" if len(careers) > 3 else "")
    what = f"step {result.state.step} was not learnt from: {result.wrong}; its careers: {shown} ({work.run.metrics})"
    if work.settings.training.bad_step == "skip":
        work.tell(f"train: {what}")
        return
    if before.step:
        _save(work, before)
    raise BadStep(f"{what}. {_advice(work.settings, before, result.numbers['loss_nats_per_token'])}")


def _advice(settings: RunSettings, before: RunState, loss: float) -> str:
    """Say what to do about a step that was not learnt from."""
    if not (before.num_updates or settings.model.path is None or math.isfinite(loss)):
        return (
            f"Nothing has been learnt yet, so the weights at {settings.model.path} may be damaged: look whether all of "
            "them are numbers, or fetch them again"
        )
    saved = f"Steps up to {before.step} are saved" if before.step else "Nothing is saved yet"
    return (
        f"{saved}; look at these careers, lower the learning rate under another name, or go on without them by "
        "training.bad_step=skip"
    )


def _save(work: Work, state: RunState) -> None:
    save_checkpoint(work.engine, work.run.checkpoints, step=state.step, run=work.run.fingerprint, state=asdict(state))
    newest = work.settings.training.keep_checkpoints
    work.engine.ranks.on_first(
        lambda: keep_checkpoints(work.run.checkpoints, num_newest=newest, best_step=state.best_step)
    )


def _state_of(manifest: CheckpointManifest, run: RunFolder) -> RunState:
    if manifest.run != run.fingerprint:
        raise CheckpointError(f"the checkpoints in {run.checkpoints} belong to another run; delete them to start anew")
    return state_from_values(manifest.state)


def _export_best(
    state: RunState, run: RunFolder, config: ModelConfig, store: TokenStore, settings: RunSettings
) -> None:
    assert state.best_step is not None  # the last step validates
    folder = checkpoint_folder(run.checkpoints, state.best_step)
    manifest = check_checkpoint(folder)
    if settings.adapter.kind == "none":
        export_checkpoint(folder, manifest, config, store.folder / TOKENIZER, run.export)
    else:
        export_adapter((folder, manifest), settings, config, store.folder / TOKENIZER, run)
