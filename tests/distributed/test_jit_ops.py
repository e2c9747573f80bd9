"""Operators that DeepSpeed compiles: a build that was killed stops no later start, and CPU Adam learns what Adam does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from helpers.errors import raises
from helpers.processes import ON_CPU, PROJECT, kill_ranks, run_ranks, run_well, start_rank, wait_until
from helpers.runs import settings_of, small_run
from helpers.trained_runs import losses, saved_weights

from laborllm_dist.distributed.jit_ops import load_operators

COMPILER, NINJA = shutil.which("c++"), shutil.which("ninja")
pytestmark = [
    pytest.mark.ranks,
    pytest.mark.skipif(COMPILER is None or NINJA is None, reason="needs a C++ compiler (c++) and ninja"),
]
HOST = ["zero=stage2", "zero.offload_optimizer=cpu", "training.epochs=2"]


# Of torch's headers, which take nearly all of the time, those that declare what DeepSpeed's source uses.
FEWER_HEADERS = """#pragma once
#include <ATen/core/Tensor.h>
#include <torch/csrc/utils/pybind.h>
namespace torch { using namespace at; constexpr auto kFloat32 = at::kFloat; }
"""


def fast_compiler(folder: Path) -> Path:
    """Return a compiler that leaves out what takes most of its time, and changes no result here.

    That is optimization, and headers of torch that are not used.
    """
    path, header = folder / "c++", folder / "headers/torch/extension.h"
    header.parent.mkdir(parents=True)
    header.write_text(FEWER_HEADERS)
    path.write_text(f'#!/bin/sh\nexec {COMPILER} "-I{folder}/headers" "$@" -O0 -g0\n')
    path.chmod(0o755)
    return path


def test_a_start_killed_while_it_compiles_stops_no_other_and_cpu_adam_is_adam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_well("train.py", small_run(tmp_path, *HOST, "name=adam"), world_size=2, log=tmp_path / "log")
    monkeypatch.setitem(ON_CPU, "TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.setitem(ON_CPU, "CXX", str(fast_compiler(tmp_path)))
    lock = tmp_path / "extensions/cpu_adam/lock"  # torch's
    run = small_run(tmp_path, *HOST, "name=cpu_adam", "optimizer.name=cpu_adamw")
    run_ranks("train.py", run, world_size=2, log=tmp_path / "log", kill_when=lock.is_file)
    assert lock.is_file()
    text = run_well("train.py", run, world_size=2, log=tmp_path / "log")
    assert text.count("compiling DeepSpeed's CPU Adam (a minute or two, once)") == 1
    assert losses(tmp_path / "runs/cpu_adam") == pytest.approx(losses(tmp_path / "runs/adam"), rel=1e-6)
    # And it leaves a bad step out without a trace (tests/programs/skipped_step.py).
    program, offloaded = str(PROJECT / "tests/programs/skipped_step.py"), [*HOST, "optimizer.name=cpu_adamw"]
    text = run_well(program, ["2", "fp32", *offloaded], world_size=1, log=tmp_path / "log")
    assert text.split()[-3:] == ["same", "finite", "infinite"]
    expected, actual = (saved_weights(tmp_path / "runs" / name, 2) for name in ("adam", "cpu_adam"))
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-6)


# Makes nothing of a source, and of objects a module that can be imported; in the folder that is slow it gives up late.
STAND_IN = """#!/bin/sh
waits=0
while [ "$(basename "$PWD")" = "$SLOW" ]; do
    sleep 0.2
    waits=$((waits + 1))
    [ "$waits" -lt 300 ] || exit 1
done
for made in "$@"; do :; done
case " $* " in
*" --version "* | *" -v "*) exec "$REAL_CC" "$@" ;;
*" -c "*) : > "$made" ;;
*)
    for made in "$@"; do case "$made" in *.so) break ;; esac; done
    echo "#include <Python.h>
    static struct PyModuleDef made = {PyModuleDef_HEAD_INIT, __FILE__, 0, -1, 0};
    PyMODINIT_FUNC PyInit_$(basename "$made" .so)(void) { return PyModule_Create(&made); }" > made.c
    "$REAL_CC" -shared -fPIC -I"$INCLUDE" made.c -o "$made" ;;
esac
"""
PROGRAM = """
import sys
from helpers.runs import settings_of
from laborllm_dist.distributed.jit_ops import load_operators
offload = ["zero=stage3", "zero.offload_optimizer=nvme", "zero.nvme_path=/nvme", "optimizer.name=cpu_adamw"]
settings = settings_of(offload)
load_operators(settings.zero, settings.optimizer)
print("loaded", *sorted({"cpu_adam", "async_io", "pin_memory"} & set(sys.modules)))
"""


@pytest.mark.parametrize("slow", ["pin_memory", "async_io"])
def test_what_nvme_wants_is_built_after_a_kill_in_any_part_of_it(slow: str, tmp_path: Path) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        pytest.skip("needs libaio and its headers")
    compiler, program = tmp_path / "c++", tmp_path / "program.py"
    compiler.write_text(STAND_IN)
    compiler.chmod(0o755)
    program.write_text(PROGRAM)
    environment = {
        **os.environ, **ON_CPU, "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "tests")]),
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"), "CXX": str(compiler), "REAL_CC": str(COMPILER),
        "INCLUDE": sysconfig.get_paths()["include"],
    }  # fmt: skip
    lock = tmp_path / "extensions" / slow / "lock"
    with (tmp_path / "log").open("wb") as output:
        killed = start_rank([str(program)], {**environment, "SLOW": slow}, output, number=None)
        try:
            wait_until(lambda: lock.is_file() or killed.poll() is not None, time_limit=60, what="torch builds")
        finally:
            kill_ranks([killed])
    assert lock.is_file()
    done = subprocess.run(
        [sys.executable, str(program)], env={**environment, "SLOW": ""},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "train: compiling DeepSpeed's access to NVMe files (a minute or two, once)", "loaded async_io cpu_adam pin_memory",
    ], done.stderr[-2000:]  # fmt: skip


def test_an_operator_that_cannot_be_compiled_is_refused_with_what_it_needs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "no_such_compiler")
    settings = settings_of([*HOST, "optimizer.name=cpu_adamw"])
    advice = "set optimizer.name=adamw"
    with raises("settings/op-not-compiled", "optimizer.name=cpu_adamw", "no_such_compiler: not found", advice):
        load_operators(settings.zero, settings.optimizer)
