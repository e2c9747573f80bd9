"""Imports of large libraries, with their chatter turned down and without what a rank has no use for."""

from __future__ import annotations

import importlib
import logging
import warnings
from typing import Any


def import_deepspeed() -> Any:
    """Import deepspeed with its chatter turned down to errors."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed.*")
    warnings.filterwarnings("ignore", category=FutureWarning, message="`is_gradient_checkpointing` is deprecated")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    # It prints its memory whatever the level.
    importlib.import_module("deepspeed.runtime.bf16_optimizer").see_memory_usage = lambda *_, **__: None  # type: ignore
    # shm_comm serves inference_all_reduce alone, which nothing here calls; building it takes a compiler, a minute,
    # and a lock file that makes every later process wait for ever after a kill.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _honor_dtype(importlib.import_module("deepspeed.runtime.zero.partition_parameters"))
    return deepspeed


def _honor_dtype(partition_parameters: Any) -> None:
    """Make zero.Init hold parameters in the dtype that its caller asks for.

    Where the accelerator has no fp16 instructions it takes bf16 in place of any dtype (DeepSpeed 0.19, issue 8428):
    fp32 weights would be rounded to 8 bits of mantissa without a word.
    """
    init = partition_parameters.InsertPostInitMethodToModuleSubClasses
    set_dtype = init._set_dtype
    if hasattr(set_dtype, "honors_dtype"):
        return

    def set_the_dtype_asked_for(self: Any, ds_config: Any, dtype: Any) -> None:
        set_dtype(self, ds_config, dtype)
        if dtype is not None:
            self.dtype = dtype

    set_the_dtype_asked_for.honors_dtype = True  # type: ignore[attr-defined]
    init._set_dtype = set_the_dtype_asked_for


def quiet_transformers() -> None:
    """Leave out bars and notes that say nothing about the run."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; what fails is said in the end
