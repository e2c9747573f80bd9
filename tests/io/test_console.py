"""Output never decides about the work: readers that leave, full disks, closed descriptors, encodings without a letter."""

from __future__ import annotations

import ast
import errno
import io
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import ON_CPU, PROJECT, python_path, start_ranks
from helpers.runs import small_run

from laborllm_dist.errors import DiskError, DiskFullError, OutputClosedError
from laborllm_dist.io import console as console_module
from laborllm_dist.io.console import EVERY_RANK, LOGGER

# What `launch` runs: progress, what libraries print, a file that is opened meanwhile, and a result for some.
PROGRAM = """
import logging, os, sys
from pathlib import Path
from laborllm_dist.cli import launch
from laborllm_dist.config.baselines import BaselineSettings
from laborllm_dist.io.console import results, say_at_once

logger = logging.getLogger("laborllm_dist.some.module")

def main(settings):
    with (Path(sys.argv[0]) / "work").open("w") as file:
        for step in range(2000):
            logger.info(f"step {step} of \\N{EN DASH} caf\\xe9 \\N{GREEK SMALL LETTER OMEGA} \\udcff")
        print("a library")
        print("a library", file=sys.stderr)
        logging.getLogger().warning("a library")
        logger.error("refused")
        say_at_once("stopping")
        os.write(1, b"C code") if RAW else None
        file.write("all of it")
    if RESULT:
        with results() as console:
            console.print("result " * 5)

sys.argv = [sys.argv[1], "run=x"]
launch(BaselineSettings, "baselines", main, "help")
"""


def run_program(
    folder: Path, *, output: str, result: bool = False, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run the program with its output led by the shell; `work` must be whole, whatever came of the output."""
    program = PROGRAM.replace("RAW", str("&-" in output)).replace("RESULT", str(result))
    done = subprocess.run(
        ["bash", "-c", f'exec "$0" -c "$1" "$2" {output}', sys.executable, program, str(folder)],
        env={**os.environ, **ON_CPU, **python_path(), **environment}, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert (folder / "work").read_text() == "all of it", done.stderr
    return done


@pytest.mark.parametrize("output", [">/dev/full", ">&-", ">/dev/full 2>&1", ">&- 2>&-", ">&- 2>&- <&-", "> >(true)"])
def test_work_goes_on_to_its_end_whatever_becomes_of_its_output(output: str, tmp_path: Path) -> None:
    done = run_program(tmp_path, output=output)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    ("output", "code", "last_line"),
    [
        ("> >(true)", 141, b""),
        (">/dev/full", 2, b"error: no room left on the disk that the output goes to"),
        (">&-", 0, b""),
    ],
)
def test_a_result_that_cannot_be_shown_ends_as_other_programs_do(
    output: str, code: int, last_line: bytes, tmp_path: Path
) -> None:
    done = run_program(tmp_path, output=output, result=True)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(last_line) if last_line else last == b"stopping"


@pytest.mark.parametrize(
    ("encoding", "line"),
    [
        ("ascii", b"step 0 of - cafe O ?"),  # NFKD has no ASCII for omega
        ("latin-1", b"step 0 of - caf\xe9 ? ?"),
        ("utf-8", "step 0 of \N{EN DASH} caf\xe9 \N{GREEK SMALL LETTER OMEGA} ?".encode()),
        ("ascii:strict", b"step 0 of - cafe ? ?"),
    ],
)
def test_characters_that_the_terminal_cannot_show_are_replaced(encoding: str, line: bytes, tmp_path: Path) -> None:
    done = run_program(tmp_path, output="", PYTHONIOENCODING=encoding)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == line.replace(b" O ", b" ? ")


def test_the_plain_c_locale_shows_ascii(tmp_path: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    done = run_program(tmp_path, output="", **plain)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == b"step 0 of - cafe ? ?"


class Failing(io.StringIO):
    """A stream that fails, as those of notebooks and captures do."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def write(self, text: str) -> int:
        raise self._error


FAILURES: list[Any] = [
    (BrokenPipeError(errno.EPIPE, "x"), OutputClosedError),
    (OSError(errno.ENOSPC, "x"), DiskFullError),
    (OSError(errno.EDQUOT, "x"), DiskFullError),
    (OSError(errno.EFBIG, "x"), DiskError),
]


@pytest.mark.parametrize(("error", "kind"), FAILURES)
def test_streams_of_others_that_fail_end_progress_never_and_results_by_a_refusal(
    error: Exception, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Failing(error))
    monkeypatch.setattr(sys, "stderr", Failing(error))
    logging.getLogger(LOGGER).info("a line")
    logging.getLogger(LOGGER).error("a line")
    with pytest.raises(kind), console_module.results() as console:
        console.print("a result")


def test_streams_that_are_missing_or_closed_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr(sys, "stdout", stream)
        logging.getLogger(LOGGER).info("a line")
        console_module.show("a result")


def test_progress_is_rank_0_s_and_errors_are_everybody_s(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("laborllm_dist.training.train")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        logger.info("progress")
        logger.info("compiling", extra=EVERY_RANK)
        logger.warning("warning")
        logger.error("error")
        out = "progress\ncompiling\n" if rank == "0" else "compiling\n"
        assert capsys.readouterr() == (out, "warning\nerror\n")


def test_who_imports_the_package_gets_records_and_no_handlers() -> None:
    program = """
import logging
import laborllm_dist.checkpoint.manifest, laborllm_dist.store.build, laborllm_dist.planning.display, laborllm_dist.cli
names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "laborllm_dist"]
print(sum(len(logging.getLogger(name).handlers) for name in names))
logging.basicConfig(format="%(name)s: %(message)s", level="INFO")
logging.getLogger("laborllm_dist.store.build").info("a line")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**os.environ, **python_path()}
    )
    assert (done.stdout, done.stderr) == ("0\n", "laborllm_dist.store.build: a line\n")


def test_names_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    logging.getLogger(LOGGER).info("runs/\x1b[2J\x07\x9b31m")
    assert stream.getvalue() == "runs/\\x1b[2J\\x07\\x9b31m\n"


def test_a_result_s_square_brackets_and_colons_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with console_module.results() as console:
        console.print("runs/[mine]/:smile:/report.html", soft_wrap=True)
    assert stream.getvalue() == "runs/[mine]/:smile:/report.html\n"


def test_a_full_terminal_that_does_not_block_is_waited_for(tmp_path: Path) -> None:
    reading, atomic_write = os.pipe()
    os.set_blocking(atomic_write, False)
    console_module.LONGEST_WAIT_SECONDS, before = 0.1, console_module.LONGEST_WAIT_SECONDS
    try:
        file = console_module._Unfailing(atomic_write)
        stream = io.TextIOWrapper(io.BufferedWriter(file), encoding="utf-8")
        error = console_module._write(stream, "x" * 2**20)
        assert error is not None
        assert error.errno == errno.EAGAIN
        os.read(reading, 2**20)
        assert console_module._write(stream, "y") is None  # nothing of the past is held against it
    finally:
        console_module.LONGEST_WAIT_SECONDS = before
        os.close(reading)
        os.close(atomic_write)


@pytest.mark.ranks
def test_a_training_whose_output_goes_to_a_full_disk_ends_with_its_weights(tmp_path: Path) -> None:
    (rank,) = start_ranks("train.py", small_run(tmp_path, num_people=25), world_size=1, log=Path("/dev/full"))
    assert rank.wait(timeout=240) == 0
    assert (tmp_path / "runs/small/export/model.safetensors").is_file()


def test_all_output_goes_through_one_module() -> None:
    for path in [*(PROJECT / "laborllm_dist").rglob("*.py"), *(PROJECT / "launch").glob("*.py")]:
        if path.name == "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = ast.unparse(node) if isinstance(node, (ast.Attribute, ast.Name)) else ""
            assert named not in ("print", "sys.stdout", "sys.stderr", "os.write"), f"{path}: {named}"
            made = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert made != "Console", f"{path}: a console of its own"
