"""Compose settings with Hydra, and turn errors into one clear line. The only place where Hydra is imported.

conf/*.yaml + overrides  ->  Hydra  ->  plain values  ->  read_settings (strict)  ->  frozen settings

A script of launch/ is started by its path (python launch/plan.py) or, from any folder and where only the package is
installed, by its name (laborllm plan; deepspeed --module laborllm_dist train). It imports what it runs in its `main`:
help and errors in settings come at once, and a package that is not installed is one line.
"""

from __future__ import annotations

import ast
import difflib
import errno
import logging
import os
import re
import resource
import runpy
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from laborllm_dist.config.help import help_text as settings_help
from laborllm_dist.config.help import paths_of
from laborllm_dist.config.reader import LONGEST_NAME, Settings, read_settings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.errors import (
    InterruptedRunError,
    LaborError,
    MemoryEstimateError,
    NonFiniteLossError,
    OutputClosedError,
    PeerFailedError,
    RunError,
    SettingsError,
    missing_package_of,
)
from laborllm_dist.io.command_log import record_command
from laborllm_dist.io.console import configure_logging, guard_output, is_other_rank, show
from laborllm_dist.io.files import translate_disk_errors
from laborllm_dist.io.run_directory import RECORD, STORE_MANIFEST, settings_fingerprint
from laborllm_dist.tracking.tracker import SWEEP_CONFIG, in_wandb_sweep

logger = logging.getLogger(__name__)
# conf/ and launch/ are folders of the package where it is installed (setup.py), and are beside it in a checkout.
_PACKAGE = Path(__file__).resolve().parent
_ROOT = _PACKAGE if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent
CONF, SCRIPTS = _ROOT / "conf", _ROOT / "launch"
HELP = ("--help", "-h")
TAKES_DATA = ("evaluate",)  # files of conf/ whose data are chosen as those of a run
FIRST_WORD = {"sweep": "action"}  # setting that the first argument sets where it is a plain word
SETTINGS_HEADING = """Settings with their values now (???: must be given), their meaning and what they may be.
SETTING=VALUE changes one; --help SETTING shows one, or a group (--help optimizer)."""
UNREADABLE = (ValueError, RecursionError)  # of Hydra's parser: a number of 5,000 digits, a list 1,000 levels deep


def main() -> NoReturn:
    """Run a script of launch/ by its name: laborllm NAME [setting=value ...]."""
    guard_output()
    name, *arguments = _arguments() or HELP
    scripts = {path.stem: path for path in sorted(SCRIPTS.glob("*.py"))}
    if name in scripts:
        sys.argv = [str(scripts[name]), *arguments]
        runpy.run_path(sys.argv[0], run_name="__main__")  # ends by SystemExit, as `launch` does
    if name not in HELP:
        configure_logging()
        logger.error(f"error: unknown command {name!r}; there are {', '.join(scripts)}")
        raise SystemExit(SettingsError.exit_code)
    show(_COMMANDS.format(scripts=SCRIPTS, commands="\n".join(map(_described, scripts.values()))))
    raise SystemExit(0)


_COMMANDS = """Commands (laborllm NAME --help shows the settings of one):

{commands}

    laborllm NAME [setting=value ...]                            one process
    deepspeed --module laborllm_dist NAME [setting=value ...]    a rank on each GPU

They are the scripts in {scripts}.
"""


def _described(script: Path) -> str:
    """Return a script's name and the summary in its docstring."""
    purpose = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    return f"    {script.stem:14}{purpose.partition(':')[0]}"


def _arguments() -> list[str]:
    """Return the arguments without what launchers add.

    That of DeepSpeed puts --local_rank in front. An agent of wandb that starts a run again sends all of its config,
    with what is there besides the sweep's settings.
    """
    added = ["--local_rank", *(_ADDED_BY_WANDB if in_wandb_sweep(os.environ) else ())]
    return [argument for argument in sys.argv[1:] if not argument.startswith(tuple(added))]


_ADDED_BY_WANDB = tuple(f"{dashes}{name}=" for dashes in ("", "--") for name in (SWEEP_CONFIG, "_wandb"))


def compose_settings(kind: type[Settings], config_name: str, overrides: Sequence[str]) -> Settings:
    """Compose a file of conf/ with overrides, and read it strictly.

    Raises:
        SettingsError: if a group, file, override or setting is unknown or wrong.
    """
    return read_settings(kind, compose_values(config_name, overrides))


def compose_values(config_name: str, overrides: Sequence[str], *, incomplete: bool = False) -> dict[str, object]:
    """Compose a file of conf/ with overrides into plain values; `incomplete` ones keep ??? for what must be given.

    A plain word in front is the action of a command that has several: sweep.py status +sweep=NAME.
    The data of a command that reads a run are composed as those of a run, or are a prepared store: data=FOLDER.
    """
    if config_name in FIRST_WORD and overrides and overrides[0].isidentifier():
        overrides = [f"{FIRST_WORD[config_name]}={overrides[0]}", *overrides[1:]]
    of_data = [each for each in overrides if config_name in TAKES_DATA and re.match(r"data[=.]", each)]
    values = _composed(config_name, [each for each in overrides if each not in of_data], incomplete=incomplete)
    if len(of_data) == 1 and (Path(folder := of_data[0].removeprefix("data=")) / STORE_MANIFEST).is_file():
        values["store"] = folder
    elif of_data:
        values["data"] = _composed("run", of_data, incomplete=incomplete)["data"]
    return values


def _composed(config_name: str, overrides: Sequence[str], *, incomplete: bool) -> dict[str, object]:
    """Compose a file of conf/ with overrides.

    A folder conf/ in the working folder adds files, such as experiments of a user's own, and replaces none.
    """
    own = Path.cwd() / CONF.name
    added = [f"hydra.searchpath=[{_quoted(f'file://{own}')}]"] if own.is_dir() and own.resolve() != CONF else []
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(config_name, overrides=[*added, *overrides])
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=not incomplete)
    except (HydraException, OmegaConfBaseException, *UNREADABLE) as error:
        raise _composition_error(str(error), config_name, overrides) from None
    except OSError as error:  # Hydra looks for a file by the name of each setting
        raise SettingsError(
            f"no settings can be composed of {shlex.join(overrides)} ({error.strerror})", code="settings-not-composed"
        ) from None
    except (TypeError, AttributeError) as error:  # where the option of a group is a list of numbers, say
        raise SettingsError(
            f"no settings can be composed of {shlex.join(overrides)} ({error}); a group, such as data, needs the name "
            "of one of its options",
            code="settings-not-composed",
        ) from None
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items()}


def launch(kind: type[Settings], config_name: str, work: Callable[[Settings], None], help_text: str) -> NoReturn:
    """Run a script: settings from the command line, one clear line instead of a traceback if they are invalid."""
    started = time.time()
    guard_output()
    configure_logging()
    arguments = _arguments()
    try:
        if any(argument in HELP for argument in arguments):
            _show_help(kind, config_name, [argument for argument in arguments if argument not in HELP], help_text)
        else:
            _check_working_directory()
            with translate_disk_errors(Path.cwd()):  # a name that is too long, a folder that may not be entered
                settings = _named(compose_settings(kind, config_name, arguments))
                work(settings)
            folder = _run_folder(settings)
            if folder is not None and not is_other_rank(os.environ):
                record_command(folder, Path(sys.argv[0]).stem, arguments, started)
    except (PeerFailedError, OutputClosedError) as error:
        raise SystemExit(error.exit_code) from None
    except LaborError as error:
        # These errors occur on every rank, so only rank 0 prints them; the rank that hits any other one prints it.
        is_everyones = isinstance(
            error, (SettingsError, InterruptedRunError, RunError, NonFiniteLossError, MemoryEstimateError)
        )
        if not (is_everyones and is_other_rank(os.environ)):
            logger.error(f"{'stopped' if isinstance(error, InterruptedRunError) else 'error'}: {error.labeled()}")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        logger.error("stopped: by Ctrl-C; the same command resumes from what is finished")
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        if (missing := missing_package_of(error)) is not None:
            logger.error(f"error: {missing}")
            raise SystemExit(missing.exit_code) from None
        if not _is_too_many_files(error):
            raise
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        logger.error(
            f"error: too many open files: this system lets a process have {soft:,} open at once; raise that "
            "(ulimit -n 4096) and start the same command again: what was complete before is untouched"
        )
        raise SystemExit(LaborError.exit_code) from None
    raise SystemExit(0)


def _named(settings: Settings) -> Settings:
    """Return the settings; in a sweep of wandb the name of a run ends in their fingerprint.

    There many runs are started by one command, and none has an id of its own that a restart would have again.
    """
    if not (isinstance(settings, RunSettings) and in_wandb_sweep(os.environ)):
        return settings
    fingerprint = settings_fingerprint(settings)
    name = settings.name.encode()[: LONGEST_NAME - len(fingerprint) - 1].decode(errors="ignore")
    return replace(settings, name=f"{name}-{fingerprint}")


def _run_folder(settings: object) -> Path | None:
    """Return the folder of the run that a command has worked on; None: none, or several."""
    if isinstance(settings, RunSettings):
        folder = Path(settings.output_dir) / settings.name
    elif isinstance(run := getattr(settings, "run", None), str):
        folder = Path(run)
    else:
        return None
    return folder if (folder / RECORD).is_file() else None


def _check_working_directory() -> None:
    """Check that the working directory exists, and that its path is UTF-8, which the libraries need.

    Raises:
        SettingsError: saying which.
    """
    try:
        Path.cwd().as_posix().encode()
    except FileNotFoundError:
        raise SettingsError(
            "the working directory was deleted; start the command from another folder", code="working-directory-deleted"
        ) from None
    except UnicodeEncodeError:
        raise SettingsError(
            f"the path of the working directory, {Path.cwd()}, is not UTF-8; start the command from another folder",
            code="working-directory-not-utf8",
        ) from None


def _is_too_many_files(error: Exception) -> bool:
    """Return whether an error means that the process or the system has reached its limit of open files."""
    numbers = (errno.EMFILE, errno.ENFILE)
    texts = (*map(os.strerror, numbers), *(f"(os error {number})" for number in numbers))
    return getattr(error, "errno", None) in numbers or any(text in str(error) for text in texts)


def _show_help(kind: type, config_name: str, arguments: Sequence[str], help_text: str) -> None:
    """Show the settings with their meanings; words without = name those to show.

    Raises:
        SettingsError: if there is no such setting.
    """
    only = [argument for argument in arguments if argument.isidentifier() or re.fullmatch(r"\w+(\.\w+)+", argument)]
    overrides = [argument for argument in arguments if argument not in only]
    values = compose_values(config_name, overrides, incomplete=True)
    known = paths_of(kind, values, CONF)
    for name in only:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise SettingsError(
                f"no setting {name}" + (f"; did you mean {nearest[0]}?" if nearest else ""), code="unknown-setting"
            )
    heading = "" if only else f"{help_text.strip()}\n\n{SETTINGS_HEADING}\n\n"
    show(heading + settings_help(kind, values, CONF, shutil.get_terminal_size((120, 24)).columns, only) + "\n")


def _composition_error(text: str, config_name: str, overrides: Sequence[str]) -> SettingsError:
    """Return Hydra's message as an error of one line; for an unknown setting it names the nearest known one."""
    if (missing := re.search(r"Missing mandatory value.*full_key: (\S+)", text, re.DOTALL)) is not None:
        return SettingsError(
            f"setting {missing[1]} must be given ({missing[1]}=...); --help shows all settings", code="missing-setting"
        )
    if (unknown := re.match(r"Could not override '([^']+)'", text)) is not None:
        name = unknown[1]
        others = [override for override in overrides if not override.startswith(name)]
        known = dict(_names(compose_values(config_name, others, incomplete=True)))
        if isinstance(known.get(name), Mapping):
            return SettingsError(
                f"setting {name} is a group and takes no such value; choose an option of it by its name, or set the "
                f"settings in it one by one ({name}.KEY=...); --help {name} shows them",
                code="value-for-group",
            )
        if name in known:
            return SettingsError(
                f"setting {name} has the name of a folder in {CONF.name}/, which hides it; rename the folder",
                code="hidden-by-folder",
            )
        empty = next((group for group, value in known.items() if value == {} and name.startswith(f"{group}.")), None)
        if empty is not None:
            return SettingsError(
                f"setting {empty} has no {name.removeprefix(f'{empty}.')} yet; a + in front adds it: +{name}=...",
                code="key-not-added",
            )
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        advice = f"did you mean {nearest[0]}?" if nearest else "--help shows all settings"
        return SettingsError(f"unknown setting {name}; {advice}", code="unknown-setting")
    if (unquoted := next(filter(_needs_quotes, overrides), None)) is not None:
        return SettingsError(_quoting_advice(unquoted), code="value-needs-quotes")
    bare = next((word for word in overrides if "=" not in word and not word.startswith("~")), None)
    if bare is not None:
        return SettingsError(
            f"{bare!r} is no setting (NAME=VALUE); a value with blanks is quoted for the shell: 'NAME=a value'",
            code="no-name-and-value",
        )
    line = " ".join(line.strip() for line in text.splitlines() if line.strip())
    return SettingsError(line, code="settings-not-composed")


def _needs_quotes(override: str) -> bool:
    """Return whether a setting's value has special characters of Hydra's syntax: ( ' = , and others."""
    value = override.partition("=")[2]
    try:
        parsed = OverridesParser.create().parse_override(override)
    except (HydraException, *UNREADABLE):
        return bool(value)
    return parsed.is_sweep_override() or "${" in value


_LONGEST_LIST = 1000  # characters


def _quoting_advice(override: str) -> str:
    """Return advice to quote such a value, once for Hydra and once for the shell."""
    name, _, value = override.partition("=")
    if value[:1] + value[-1:] == "[]" and len(value) < _LONGEST_LIST:
        elements = ",".join(_quoted(element.strip()) for element in value[1:-1].split(","))
        return (
            f"setting {name}: an element of the list {value} has a sign that means something in settings; quote the "
            f"elements for the settings, and the list for the shell: {shlex.quote(f'{name}=[{elements}]')}"
        )
    path = str(Path(value).expanduser()) if value.startswith("~/") else value  # no shell opens ~ within quotes
    shell = shlex.quote(f"{name}={_quoted(path)}")
    return (
        f"setting {name}: the value {value} has a sign that means something in settings, such as ( ' = , # or a letter "
        f"with an accent; if it is a name or a path, quote it for the settings and for the shell: {shell}"
    )


def _quoted(text: str) -> str:
    """Return a text in Hydra's quotes: a backslash counts before a quote only, where it is written twice."""
    escaped = re.sub(r'(\\*)("|$)', lambda match: match[1] * 2 + match[2].replace('"', '\\"'), text)
    return '"' + escaped.replace("${", "\\${") + '"'


def _names(values: Mapping[str, object], where: str = "") -> Iterator[tuple[str, object]]:
    """Return all settings by their full names, groups among them."""
    for name, value in values.items():
        yield where + name, value
        if isinstance(value, Mapping):
            yield from _names(value, f"{where}{name}.")
