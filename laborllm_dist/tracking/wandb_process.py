"""The process that holds Weights & Biases, so that nothing of it can hold up or end a training.

Lines of JSON come in: how to start, then the numbers of steps. Lines of text go out: what a person should know. The
process ends when nothing more comes, and never later than FINISH_SECONDS after that.

wandb is given numbers and an allow-list of settings (wandb_tracker.py) and is kept from looking around by itself:
its settings below turn off the console, code, git, packages, host, user, hardware and command line.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any, TextIO

from laborllm_dist.errors import missing_package_of

FINISH_SECONDS = 20.0  # for the whole end
PRIVATE = {
    "console": "off", "disable_git": True, "disable_code": True, "save_code": False, "disable_job_creation": True,
    "x_disable_meta": True, "x_disable_stats": True, "x_disable_machine_info": True, "x_save_requirements": False,
    "host": "", "username": "", "email": "", "program": "", "root_dir": ".", "symlink": False, "silent": True,
}  # fmt: skip


def main() -> None:
    """Serve one run; standard input and output are the other process's, and wandb gets none of them."""
    lines, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # Slurm signals every process of a job; the training decides when to stop
    run = _open_run(json.loads(lines.readline()), answers)
    if run is None:
        return
    try:
        for line in lines:
            values = json.loads(line)
            run.log(values["numbers"], step=values["step"])
        end = threading.Timer(FINISH_SECONDS, _end_at_once)  # wandb may wait for a server that never answers
        end.daemon = True
        end.start()
        run.finish()
    except Exception as error:
        _answer(answers, f"has failed ({_reason(error)}); metrics.jsonl has the numbers")


def _open_run(start: dict[str, Any], answers: TextIO) -> Any:
    """Return wandb's run: online if configured and possible, else offline; None if it cannot start."""
    mode, limits = start.pop("mode"), start.pop("limits")
    try:
        import wandb

        # Older versions have not all of these; then this process's own limit alone holds.
        known = getattr(wandb.Settings, "model_fields", {})
        settings = wandb.Settings(**PRIVATE, **{name: limits[name] for name in limits if name in known})

        if mode == "online":
            try:
                return _init(wandb, settings, {**start, "mode": mode})
            except Exception as error:  # wandb's own, pydantic's, the system's: none matters to the training
                reason = _reason(error)
                _answer(answers, f"does not start online ({reason}); continues offline, `wandb sync` uploads it later")
            wandb.teardown(exit_code=1)  # its service would hold on to the run that did not start
        return _init(wandb, settings, {**start, "mode": "offline"})
    except Exception as error:
        _answer(answers, f"does not start ({_reason(error)}); continues without it, metrics.jsonl has the numbers")
        return None


def _init(wandb: Any, settings: Any, start: dict[str, Any]) -> Any:
    run = wandb.init(**start, resume="allow", settings=settings)
    for link in Path("wandb").glob("*/logs/*"):
        if link.is_symlink():  # to a log in the user's folder, whose path names the user
            link.unlink()
    return run


def _answer(answers: TextIO, text: str) -> None:
    answers.write(text + "\n")
    answers.flush()


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(missing_package_of(error) or error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__


def _end_at_once() -> None:
    os.killpg(os.getpgid(0), signal.SIGKILL)  # with wandb's own service
