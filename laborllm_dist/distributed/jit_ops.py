"""DeepSpeed's operators that are compiled at their first use: its CPU Adam, and files on NVMe.

torch creates a file `lock` while it builds an operator; other builds wait until it is removed. A killed build leaves
it behind, and every later start would wait in silence. Ranks therefore build under flock, which the kernel releases
even on SIGKILL; the holder may delete torch's stale lock file.
"""

from __future__ import annotations

import logging
import subprocess
from typing import Any

from laborllm_dist.config.model import OptimizerSettings, ZeroSettings
from laborllm_dist.distributed.library_internals import build_folder, is_installed
from laborllm_dist.errors import SettingsError
from laborllm_dist.io.console import EVERY_RANK
from laborllm_dist.io.files import file_lock

logger = logging.getLogger(__name__)

LOCK = "laborllm_dist.lock"


def load_operators(zero: ZeroSettings, optimizer: OptimizerSettings) -> None:
    """Load the operators that these settings need, and compile them if no earlier start has.

    Ranks of a host take turns: the first compiles, the others load the result.

    Raises:
        SettingsError: if one cannot be compiled.
    """
    from deepspeed.ops.op_builder import AsyncIOBuilder, CPUAdamBuilder

    if optimizer.name == "cpu_adamw":
        _load(CPUAdamBuilder(), "CPU Adam", "optimizer.name=cpu_adamw", "or set optimizer.name=adamw")
    if "nvme" in (zero.offload_optimizer, zero.offload_param):
        needed = "and libaio with its headers (Debian: apt install libaio-dev); or offload to cpu"
        _load(AsyncIOBuilder(), "access to NVMe files", "offload to nvme", needed)


def check_nvme(zero: ZeroSettings, *, is_on_gpu: bool) -> None:
    """Check that NVMe offload on a GPU host has the CUDA toolkit; DeepSpeed would join a path to None.

    Raises:
        SettingsError: saying what to install or set.
    """
    if not is_on_gpu or "nvme" not in (zero.offload_optimizer, zero.offload_param):
        return
    from torch.utils.cpp_extension import CUDA_HOME

    if CUDA_HOME is None:
        raise SettingsError(
            "NVMe offload: DeepSpeed compiles its async_io against the CUDA toolkit, and there is none here (no "
            "CUDA_HOME, no nvcc); install it, or set zero.offload_optimizer=cpu and zero.offload_param=cpu",
            code="no-cuda-toolkit",
        )


def _load(builder: Any, name: str, setting: str, advice: str) -> None:
    folder = build_folder(builder)
    with file_lock(folder.parent / LOCK, busy=None):
        # Access to files is built after pinned memory, in a folder beside.
        for built in (folder, folder.with_name("pin_memory")):
            (built / "lock").unlink(missing_ok=True)
        if not (is_installed(builder) or (folder / f"{builder.name}.so").is_file()):
            logger.info(f"train: compiling DeepSpeed's {name} (a minute or two, once)", extra=EVERY_RANK)
        try:
            builder.load(verbose=False)
        except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
            raise SettingsError(
                f"{setting}: DeepSpeed cannot compile its {name} ({_reason(str(error))}); a C++ compiler and ninja are "
                f"needed, {advice}",
                code="op-not-compiled",
            ) from None


def _reason(text: str) -> str:
    """Return the line of a build's output with the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    error_lines = [line for line in lines if "error:" in line or "not found" in line]
    return (error_lines or lines[-1:] or ["no reason"])[0]
