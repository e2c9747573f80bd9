"""All steps that are left of a run: learn, validate, log, save; end after the last one, or on a stop request."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from dataclasses import asdict
from time import time

from laborllm_dist.batching.batch import BatchPrefetcher
from laborllm_dist.batching.training_plan import TrainingPlan
from laborllm_dist.checkpoint.save import save_checkpoint, save_state, save_total_limit
from laborllm_dist.config.run import RunSettings
from laborllm_dist.errors import InterruptedRunError, NonFiniteLossError
from laborllm_dist.io.command_log import describe_machine
from laborllm_dist.tracking.artifacts import tracked_config, training_artifacts
from laborllm_dist.tracking.run_log import RunLog
from laborllm_dist.training.progress import progress_line
from laborllm_dist.training.state import TrainerState
from laborllm_dist.training.step import StepResult, TrainContext, batches_of_step, careers_of, take_step
from laborllm_dist.training.stop_request import StopRequest
from laborllm_dist.training.validation import stops_early, validate

logger = logging.getLogger(__name__)
Numbers = dict[str, float]


def run_steps(context: TrainContext, state: TrainerState) -> TrainerState:
    """Do all steps that are left; return the state after the last, which is saved. Collective.

    Args:
        context: what the steps need.
        state: of the checkpoint that the run resumes from, or the initial one.

    Raises:
        NonFiniteLossError: if a step cannot be applied; the steps before it are saved.
        InterruptedRunError: if any rank received a stop signal; completed steps are saved.
    """
    plan = context.plan
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(_open_log(context, state)) if context.engine.ranks.is_main else None
        stop = stack.enter_context(StopRequest(context.engine.ranks))
        make = functools.partial(batches_of_step, context)
        prefetcher = stack.enter_context(BatchPrefetcher(make, num_steps=plan.num_steps))
        saved = state
        context.engine.ranks.barrier()  # rank 0 has opened its log, and a tracker's, which may take long
        while not is_done(plan, state):
            numbers: Numbers = {}
            if not is_validation_due(plan, state):  # after a stop during validation, validate first
                result = take_step(context, prefetcher, state)
                if (error := _error_of_skip(context, state, result, log)) is not None:
                    _save(context, state, saved)
                    raise error
                state, numbers = result.state, result.numbers
            if is_validation_due(plan, state):
                has_head = context.settings.title_head.kind != "none"
                loss = validate(context.engine, context.validation, context.settings.batch, stop, has_head=has_head)
                if loss is not None:
                    best_by = context.settings.training.best_by
                    state = state.after_validation(loss.by(best_by), loss.nats_per_title)
                    numbers = {**numbers, **loss.numbers()}
            _report(context, state, numbers, log)
            stop_requested = stop.is_set()
            if stop_requested or plan.saves_after(state.step):
                _save(context, state, saved)
                saved = state
            if stop_requested and not is_done(plan, state):
                raise InterruptedRunError(
                    f"on request, after step {state.step}, which is saved; the same command resumes the run",
                    code="stopped-on-request",
                )
        if log is not None:
            log.summarize(state.best_step, training_artifacts(context.run, state.best_step))
    return state


def is_done(plan: TrainingPlan, state: TrainerState) -> bool:
    """Return whether no step and no validation is left."""
    is_last = state.step == plan.num_steps or stops_early(state, plan.training.patience)
    return is_last and not is_validation_due(plan, state)


def is_validation_due(plan: TrainingPlan, state: TrainerState) -> bool:
    """Return whether a validation should have followed this step, and has not."""
    return state.step > 0 and plan.validates_after(state.step) and not state.is_validated()


def _open_log(context: TrainContext, state: TrainerState) -> RunLog:
    settings, num_ranks = context.settings, context.engine.ranks.world_size
    config = tracked_config(context.run, settings, machine=describe_machine(), num_ranks=num_ranks)
    return RunLog(context.run.metrics, settings.tracking, name=settings.name, settings=config, step=state.step)


def _report(context: TrainContext, state: TrainerState, numbers: Numbers, log: RunLog | None) -> None:
    """Write a step's line, and show it where it is validated or it is time for one."""
    if log is not None and numbers:
        epoch = state.step / context.plan.order.steps_per_epoch
        seen = {"tokens_seen": state.tokens_seen, "flops_seen": state.tokens_seen * context.flops_per_token}
        log.write({"step": state.step, "epoch": epoch, **numbers, **seen, "time": time()})
    if "loss_nats_per_token" in numbers and (
        "validation_nats_per_token" in numbers or state.step % context.settings.training.log_every_steps == 0
    ):
        logger.info(progress_line(state.step, context.plan.num_steps, numbers))


def _error_of_skip(
    context: TrainContext, before: TrainerState, result: StepResult, log: RunLog | None
) -> NonFiniteLossError | None:
    """Return the error that ends the run after a skipped step, or None if the run continues."""
    if result.wrong is None:
        return None
    careers, training = careers_of(context, context.plan.step(before.step)), context.settings.training
    if log is not None:
        log.write({"step": result.state.step, "left_out": result.wrong, "careers": careers})
    shown = ", ".join(careers[:3]) + (f" and {len(careers) - 3} more" if len(careers) > 3 else "")
    what = f"step {result.state.step} was not applied: {result.wrong}; its careers: {shown} ({context.run.metrics})"
    if training.on_bad_step == "stop":
        return NonFiniteLossError(
            f"{what}. {_advice(context.settings, before, result.numbers['loss_nats_per_token'])}", code="bad-step"
        )
    if (in_a_row := result.state.num_left_out_in_a_row) > training.max_consecutive_skips:
        return NonFiniteLossError(
            f"{what}. That makes {in_a_row} in a row, training.max_consecutive_skips is "
            f"{training.max_consecutive_skips}; steps up to "
            f"{before.step} are saved; lower the learning rate under another name",
            code="too-many-skipped-steps",
        )
    logger.info(f"train: {what}")
    return None


def _advice(settings: RunSettings, before: TrainerState, loss: float) -> str:
    """Return what the user can do about a skipped step."""
    if not (before.num_updates or settings.model.path is None or math.isfinite(loss)):
        return (
            f"Nothing has been learned yet, so the weights at {settings.model.path} may be damaged: look "
            f"whether all of "
            "them are numbers, or fetch them again"
        )
    saved = f"Steps up to {before.step} are saved" if before.step else "Nothing is saved yet"
    return (
        f"{saved}; look at these careers, lower the learning rate under another name, or continue without them by "
        "training.on_bad_step=skip"
    )


def _save(context: TrainContext, state: TrainerState, saved: TrainerState) -> None:
    """Save a state, if it is not that of the last checkpoint; of a step whose weights are saved, the state alone."""
    checkpoints, ranks = context.run.checkpoints, context.engine.ranks
    if state == saved:
        return
    if state.step == saved.step:
        ranks.run_on_main(lambda: save_state(checkpoints, state.step, asdict(state)))
    else:
        save_checkpoint(context.engine, checkpoints, step=state.step, run=context.run.fingerprint, state=asdict(state))
    newest = context.settings.training.save_total_limit
    ranks.run_on_main(
        lambda: save_total_limit(checkpoints, saved_step=state.step, num_newest=newest, best_step=state.best_step)
    )
