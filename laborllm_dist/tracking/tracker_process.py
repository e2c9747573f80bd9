"""The process that holds one tracker, Weights & Biases or TensorBoard: nothing of it can hold up or end a training.

Lines of JSON come in: how to start, then what the tracker is given (tracker.py). Lines of text go out: what a person
should know. The process ends when nothing more comes, and never later than `finish_seconds` after that.

wandb is given numbers and an allow-list of settings (artifacts.py) and is kept from looking around by itself: its
settings below turn off the console, code, git, packages, host, user and command line, and of its variables in the
environment it sees ENVIRONMENT alone.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from laborllm_dist.errors import missing_package_of

KILLED = 255  # exit code of a training that has ended without saying how
PRIVATE = {
    "console": "off", "disable_git": True, "disable_code": True, "save_code": False, "disable_job_creation": True,
    "x_disable_meta": True, "x_save_requirements": False,
    "host": "", "username": "", "email": "", "program": "", "root_dir": ".", "symlink": False, "silent": True,
}  # fmt: skip
# Of wandb's variables: where the server is and who may write there. Others name users, hosts, folders and notes.
ENVIRONMENT = {
    "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_CREDENTIALS_FILE",
    "WANDB_CONFIG_DIR", "WANDB_INSECURE_DISABLE_SSL", "WANDB_HTTP_PROXY", "WANDB_HTTPS_PROXY",
}  # fmt: skip
OF_A_SWEEP = {"WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RUN_ID"}
AXES = ("step", "tokens_seen", "flops_seen")  # the first one is the x axis unless a panel takes another
TENSORBOARD = "tensorboard"  # folder in the run's
SUPERSEDED = "superseded.txt"  # in an offline folder whose steps a later one has


class TrackedRun(Protocol):
    """What a tracker can do; each may raise any error."""

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Add the numbers of a step; `time` among them is when it was completed."""

    def summarize(self, values: dict[str, Any]) -> None:
        """Set the numbers that describe the whole run."""

    def add_artifact(self, artifact: dict[str, Any]) -> None:
        """Add an artifact (artifacts.Artifact as a dictionary)."""

    def mark_preempting(self) -> None:
        """Say that the run is about to be stopped and will resume."""

    def finish(self, exit_code: int) -> None:
        """Write everything; no call comes after this one."""


def main() -> None:
    """Serve one run; standard input and output are the other process's, and the tracker gets none of them."""
    lines, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # Slurm signals every process of a job; the training decides when to stop

    def answer(text: str) -> None:
        answers.write(text + "\n")
        answers.flush()

    start = json.loads(lines.readline())
    finish_seconds = start.pop("finish_seconds")
    run = _open_run(start, answer)
    if run is None:
        return
    try:
        exit_code = _serve(run, lines, answer)
        end = threading.Timer(finish_seconds, _end_at_once)  # wandb may wait for a server that never answers
        end.daemon = True
        end.start()
        run.finish(exit_code)
    except Exception as error:
        answer(f"has failed ({_reason(error)}); metrics.jsonl has the numbers")


def _serve(run: TrackedRun, lines: TextIO, answer: Callable[[str], None]) -> int:
    """Give a tracker what comes, up to the end; return the training's exit code."""
    for line in lines:
        if not line.endswith("\n"):  # of a training that was killed
            break
        match json.loads(line):
            case {"log": numbers, "step": step}:
                run.log(numbers, step)
            case {"summary": values}:
                run.summarize(values)
            case {"artifact": artifact}:
                try:
                    run.add_artifact(artifact)
                except Exception as error:
                    answer(f"lacks the artifact {artifact['name']} ({_reason(error)})")
            case {"preempting": _}:
                run.mark_preempting()
            case {"end": exit_code}:
                return int(exit_code)
    return KILLED


def _open_run(start: dict[str, Any], answer: Callable[[str], None]) -> TrackedRun | None:
    """Start a tracker; None if it cannot, or if the training has ended meanwhile.

    A training that starts again has a tracker of its own, which this one must not follow with fewer steps.
    """
    training = start.pop("training_pid")
    try:
        if start.pop("tracker") == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            return TensorBoardRun(SummaryWriter, start["config"]) if os.getppid() == training else None
        return _open_wandb(start, answer, training)
    except Exception as error:  # wandb's own, pydantic's, the system's: none matters to the training
        answer(f"does not start ({_reason(error)}); continues without it, metrics.jsonl has the numbers")
        return None


def _open_wandb(start: dict[str, Any], answer: Callable[[str], None], training: int) -> WandbRun | None:
    """Start a run of wandb: online if configured and possible, else offline."""
    mode, limits = start.pop("mode"), start.pop("limits")
    in_sweep = "WANDB_SWEEP_ID" in os.environ
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        if name not in ENVIRONMENT and not (in_sweep and name in OF_A_SWEEP):
            del os.environ[name]
    import wandb

    # Older versions have not all of these; then this process's own limit alone holds.
    known = getattr(wandb.Settings, "model_fields", {})
    more = {**limits, "x_stats_pid": training}
    settings = wandb.Settings(**PRIVATE, **{name: more[name] for name in more if name in known})
    identifier = str(start["id"])
    if in_sweep:  # wandb ignores them there, and resumes nothing
        start = {key: start[key] for key in start if key not in ("id", "project", "resume")}
    if os.getppid() != training:
        return None
    if mode == "online":
        try:
            return WandbRun(wandb, wandb.init(**start, mode=mode, settings=settings), identifier)
        except Exception as error:
            reason = _reason(error)
            answer(f"does not start online ({reason}); continues offline, `wandb sync` uploads it later")
        wandb.teardown(exit_code=1)  # its service would hold on to the run that did not start
    os.environ.pop("WANDB_ENTITY", None)  # often a user's name; `wandb sync` takes it where it uploads
    os.environ["WANDB_CONFIG_DIR"] = os.devnull  # the user's own settings name it, too
    return WandbRun(wandb, wandb.init(**start, mode="offline", settings=settings), identifier)


class WandbRun:
    """A run of Weights & Biases in the folder wandb/ of the run's folder."""

    def __init__(self, wandb: Any, run: Any, identifier: str) -> None:
        self._wandb, self._run = wandb, run
        self._row: tuple[dict[str, float], int] | None = None  # the last step, which may still get more numbers
        self._first_step = int(getattr(run, "starting_step", 0))  # above 0 where the server resumes a run
        for link in Path("wandb").glob("*/logs/*"):
            if link.is_symlink():  # to a log in the user's folder, whose path names the user
                link.unlink()
        _supersede_offline_runs(identifier, by=str(getattr(run, "dir", "")))
        for axis in AXES:
            run.define_metric(axis)
        run.define_metric("*", step_metric=AXES[0])

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Log a step that the server does not have."""
        if step < self._first_step:
            return
        earlier: dict[str, float] = {}
        if self._row is not None and self._row[1] == step:
            earlier = self._row[0]
        else:
            self._commit()
        clock = {"_timestamp": numbers["time"]} if "time" in numbers else {}
        self._row = ({**earlier, **numbers, **clock}, step)

    def summarize(self, values: dict[str, Any]) -> None:
        """Set the summary, where a sweep looks for its metric; a row that is committed later would change it."""
        self._commit()
        self._run.summary.update(values)

    def add_artifact(self, artifact: dict[str, Any]) -> None:
        """Log an artifact: of a store or a checkpoint a reference and facts, without the files themselves."""
        entry = self._wandb.Artifact(artifact["name"], artifact["kind"], metadata=artifact["facts"])
        entry.add_reference(f"laborllm://{artifact['kind']}/{artifact['fingerprint']}", name="identity", checksum=False)
        for name, path in artifact["files"].items():
            entry.add_file(path, name=name, policy="immutable", skip_cache=True)
        if not artifact["is_input"]:
            self._run.log_artifact(entry)
        elif not self._run.offline:
            self._run.use_artifact(entry)
        else:  # `use_artifact` refuses this offline, but the record that it would write is valid there
            self._run._log_artifact(entry, is_user_created=True, use_after_commit=True)

    def mark_preempting(self) -> None:
        """Let a sweep's agent requeue the run."""
        self._run.mark_preempting()

    def finish(self, exit_code: int) -> None:
        """Upload what is left, or write it to the folder."""
        self._commit()
        self._run.finish(exit_code=exit_code)

    def _commit(self) -> None:
        if self._row is not None:
            self._run.log(self._row[0], step=self._row[1], commit=True)
        self._row = None


def _supersede_offline_runs(identifier: str, by: str) -> None:
    """Mark the offline folders of earlier starts of a run, whose steps the new one has as well.

    wandb cannot resume an offline run; of two folders of one run, the one that is uploaded later replaces the other.
    `wandb sync` skips a folder with the mark that it leaves itself in those that it has uploaded.
    """
    new = Path(by).parent.name
    for file in Path("wandb").glob(f"offline-run-*-{identifier}/run-{identifier}.wandb"):
        if file.parent.name != new:
            file.with_suffix(".wandb.synced").touch()
            (file.parent / SUPERSEDED).write_text(f"{new} has all steps of this run; this folder can be deleted.\n")


class TensorBoardRun:
    """Event files in the folder tensorboard/ of the run's folder, by torch's writer."""

    def __init__(self, writer_class: Any, config: Mapping[str, Any]) -> None:
        socket.gethostname = lambda: "host"  # it becomes part of the files' names
        # A reader forgets the steps from `purge_step` on that earlier files have: all of them come again.
        self._writer = writer_class(TENSORBOARD, purge_step=0)
        self._add_text("settings", config)

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Add each number as a scalar."""
        for name in numbers.keys() - {"step", "time"}:
            self._writer.add_scalar(name, numbers[name], step, numbers.get("time"))

    def summarize(self, values: dict[str, Any]) -> None:
        """Add the values as a text."""
        self._add_text("summary", values)

    def add_artifact(self, artifact: dict[str, Any]) -> None:
        """Add the facts as a text; TensorBoard knows no artifacts."""
        self._add_text(f"artifacts/{artifact['name']}", artifact["facts"])

    def mark_preempting(self) -> None:
        """Do nothing: TensorBoard does not know how a run ends."""

    def finish(self, exit_code: int) -> None:
        """Write what is left."""
        self._writer.close()

    def _add_text(self, tag: str, values: Mapping[str, Any]) -> None:
        self._writer.add_text(tag, f"```\n{json.dumps(values, indent=1)}\n```")


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(missing_package_of(error) or error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__


def _end_at_once() -> None:
    os.killpg(os.getpgid(0), signal.SIGKILL)  # with wandb's own service
