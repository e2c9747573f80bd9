"""The short form of the plan for the memory at hand, which training prints before it makes the model."""

from __future__ import annotations

import dataclasses
import logging

from laborllm_dist.batching.training_plan import TrainingPlan
from laborllm_dist.config.run import RunSettings
from laborllm_dist.errors import MemoryEstimateError
from laborllm_dist.models.dims import shape_of
from laborllm_dist.planning.estimate import MemoryBudget, ResourceEstimate, estimate_resources
from laborllm_dist.planning.memory import GIB
from laborllm_dist.planning.suggestions import suggest_fitting_config, to_overrides
from laborllm_dist.planning.throughput import flops_per_token
from laborllm_dist.planning.workload import workload_of

logger = logging.getLogger(__name__)


def check_memory(settings: RunSettings, plan: TrainingPlan, num_ids: int, budget: MemoryBudget) -> None:
    """Print the memory that a rank will need.

    Raises:
        MemoryEstimateError: if the memory does not suffice, unless settings.plan.ignore_memory_check is set.
    """
    here = dataclasses.replace(settings, plan=dataclasses.replace(settings.plan, num_gpus=plan.world_size))
    work, shape = workload_of(plan, is_assumed=False), shape_of(settings.model, num_ids=num_ids)
    estimate = estimate_resources(here, work, shape, budget)
    sizes = estimate.memory.device.items()
    parts = ", ".join(f"{kind} {size / GIB:,.2f}" for kind, size in sizes if size >= 0.005 * estimate.memory.total)
    total = f"{estimate.memory.total / GIB:,.2f} of {budget.total / GIB:,.2f} GiB"
    logger.info(f"plan: a rank needs about {total} ({parts})")
    if settings.plan.ignore_memory_check:
        return
    if not estimate.fits_device:
        raise MemoryEstimateError(
            f"a rank needs about {total}; {_advice(estimate)}; to try anyway: plan.ignore_memory_check=true",
            code="not-enough-device-memory",
        )
    if not estimate.fits_host:
        left = 0.0 if budget.host is None else budget.host / GIB
        raise MemoryEstimateError(
            f"a rank offloads about {estimate.memory.host_total / GIB:,.2f} GiB to its host, whose memory has "
            f"{left:,.2f} GiB left for it; offload less, take more hosts, or zero.offload_optimizer=nvme; to try "
            "anyway: plan.ignore_memory_check=true",
            code="not-enough-host-memory",
        )


def flops_of_token(settings: RunSettings, plan: TrainingPlan, num_ids: int) -> float:
    """Return the floating-point operations of a training token: forward and backward, mean over the careers."""
    work, shape = workload_of(plan, is_assumed=False), shape_of(settings.model, num_ids=num_ids)
    return flops_per_token(shape, settings.adapter, attended=work.attended)


def _advice(estimate: ResourceEstimate) -> str:
    """Return the nearest setting that fits, for the same number of ranks: training cannot change it."""
    nearest = suggest_fitting_config(estimate, more_gpus=())
    if nearest is None:
        return "no setting known here makes it fit; take more GPUs, or a smaller model"
    change, other = nearest
    return f"with {to_overrides(change)} it takes {other.memory.total / GIB:,.2f} GiB"
