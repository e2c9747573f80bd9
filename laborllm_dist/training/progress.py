"""The lines that people watch: the plan before the first step, the progress of steps, and the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from laborllm_dist.batching.training_plan import TrainingPlan
from laborllm_dist.config.run import RunSettings
from laborllm_dist.distributed.context import DistributedContext
from laborllm_dist.io.number_format import format_decimals
from laborllm_dist.training.state import TrainerState
from laborllm_dist.training.validation import VALIDATION_HEAD_LOSS


def describe_settings(settings: RunSettings, ranks: DistributedContext) -> str:
    """Return the settings of a run as one line; it needs no data."""
    surveys = ", ".join(corpus.survey for corpus in settings.data.corpora.values())
    weights = f"pretrained {settings.model.path}" if settings.model.path else "randomly initialized"
    adapter, head = settings.adapter, settings.title_head
    epochs = (
        "epochs by the number of people" if settings.training.epochs is None else f"{settings.training.epochs} epochs"
    )
    trainable = "" if adapter.kind == "none" else f", LoRA of rank {adapter.rank} over a {adapter.quantization} base"
    layer = "" if head.kind == "none" else f", and a {head.kind} output layer over titles (weight {head.loss_weight:g})"
    return (
        f"plan: {settings.name}: careers of {surveys}; model {settings.model.name}, {weights}{trainable}{layer}; "
        f"ZeRO-{settings.zero.stage} {settings.zero.precision} on {ranks.world_size} x {ranks.device.type}; "
        f"{settings.batch.global_batch_size} careers a step in rows of at most {settings.batch.max_seq_length} tokens, "
        f"{epochs}, peak learning rate {settings.optimizer.learning_rate:g}"
    )


def describe_plan(settings: RunSettings, plan: TrainingPlan, num_all: int, num_trainable: int) -> str:
    """Return the two lines that summarize the plan before the first step."""
    first = plan.step(0)
    tokens = int((plan.lengths[plan.order.rows] * plan.order.weights).sum())
    trainable = "" if num_trainable == num_all else f", {num_trainable:,} of them trainable"
    return (
        f"plan: {plan.order.careers_per_epoch:,} careers of {tokens:,} tokens an epoch, {plan.num_steps} steps of "
        f"{settings.batch.global_batch_size} careers ({plan.num_epochs} epochs); a step has about "
        f"{len(first.packing.rows)} rows, {first.packing.fill:.0%} full, in {len(first.assignment.passes)} passes\n"
        f"plan: {num_all:,} parameters{trainable}"
    )


def progress_line(step: int, num_steps: int, numbers: Mapping[str, float]) -> str:
    """Return the line of a step."""
    line = (
        f"step {step}/{num_steps}  loss {format_decimals(numbers['loss_nats_per_token'], 4)} nats/token  "
        f"rate {numbers['learning_rate']:.2e}  {numbers['tokens_per_second'] / 1000:.1f}k tokens/s  "
        f"{numbers['peak_memory_gib']:.1f} GiB"
    )
    if "validation_nats_per_token" in numbers:
        line += (
            f"  |  validation {format_decimals(numbers['validation_nats_per_token'], 4)} nats/token, "
            f"{format_decimals(numbers['validation_nats_per_title'], 4)} nats/title"
        )
    if VALIDATION_HEAD_LOSS in numbers:
        line += f", {format_decimals(numbers[VALIDATION_HEAD_LOSS], 4)} by the title head"
    return line


def describe_early_stop(state: TrainerState) -> str:
    """Return why a training ends before its last step."""
    return (
        f"train: stops early after step {state.step}: {state.validations_since_best} validations without a better "
        f"one than after step {state.best_step}"
    )


def describe_end(state: TrainerState, export: Path) -> str:
    """Return the last line: what was exported, and how many steps were skipped."""
    left_out = f"; {len(state.left_out)} of {state.step} steps were not applied" if state.left_out else ""
    return f"train: weights of step {state.best_step} (best on validation) in {export}{left_out}"
