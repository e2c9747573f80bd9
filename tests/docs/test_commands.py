"""Every command that README.md and docs/ show: those of launch/ compose with their overrides, others are known."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers.errors import raises
from helpers.processes import PROJECT

from laborllm_dist.cli import compose_settings

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
LAUNCHERS = {"laborllm", "python", "deepspeed", "torchrun", "srun", "sbatch"}
# Programs that are not this project's; nothing of them is checked but the name.
OTHER_PROGRAMS = {"bash", "pip", ".venv/bin/pip", "python3", "source", "printf", "pkill"}
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*$")


def bash_blocks(page: Path) -> list[str]:
    return [re.sub(r"(?m)^ {4}", "", block) for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)]


def commands_of(text: str) -> Iterator[list[str]]:
    """Yield the words of each command: comments, line continuations, redirections and assignments in front removed."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and ASSIGNMENT.match(words[0]):
            words = words[1:]
        if words:
            yield words[: words.index(">")] if ">" in words else words


COMMANDS = sorted(
    {
        (str(page.relative_to(PROJECT)), *words)
        for page in PAGES
        for text in bash_blocks(page)
        for words in commands_of(text)
    }
)
SHOWN = sorted({tuple(words) for _, *words in COMMANDS})


def launch_arguments(words: list[str]) -> tuple[str, list[str]] | None:
    """Return the script of launch/ that a command starts, and the arguments that reach it; None where it starts none."""
    for place, word in enumerate(words):
        if word in ("launch/slurm.sbatch", "laborllm", "laborllm_dist"):
            return words[place + 1], words[place + 2 :]
        if (script := re.fullmatch(r"launch/(\w+)\.py", word)) is not None:
            return script[1], words[place + 1 :]
    return None


@cache
def settings_of_script(script: str) -> tuple[type, str]:
    """Return the settings class and the file of conf/ that a script gives to `launch`, without running it."""
    tree = ast.parse((PROJECT / "launch" / f"{script}.py").read_text())
    (call,) = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "launch"
    ]
    kind, config_name = call.args[:2]
    assert isinstance(kind, ast.Name)
    assert isinstance(config_name, ast.Constant)
    (module,) = [
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and kind.id in [name.name for name in node.names]
    ]
    return getattr(importlib.import_module(str(module)), kind.id), str(config_name.value)


@cache
def compose(script: str, arguments: tuple[str, ...]) -> None:
    """Compose the settings of a script once, however many launchers start it with the same arguments."""
    compose_settings(*settings_of_script(script), arguments)


def make_targets() -> set[str]:
    return set(re.findall(r"(?m)^([a-z][\w-]*):", (PROJECT / "Makefile").read_text()))


def test_the_manual_shows_commands_of_every_script() -> None:
    started = [launch_arguments(list(words)) for words in SHOWN]
    assert {start[0] for start in started if start is not None} == {
        path.stem for path in (PROJECT / "launch").glob("*.py")
    }


@pytest.mark.parametrize("words", SHOWN, ids=" ".join)
def test_a_command_of_the_manual_composes_or_is_known(words: tuple[str, ...]) -> None:
    started = launch_arguments(list(words))
    if started is not None:
        script, arguments = started
        assert words[0] in LAUNCHERS
        assert (PROJECT / "launch" / f"{script}.py").is_file()
        compose(script, tuple(arguments))
    elif words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= make_targets()
    elif words[0] == "python":
        assert (PROJECT / words[1]).exists()
    else:
        assert words[0] in OTHER_PROGRAMS


def test_a_misspelled_override_is_noticed() -> None:
    (started,) = [launch_arguments(words) for words in commands_of("python launch/report.py runs='[a]' mesure=title")]
    assert started is not None
    with raises("settings/unknown-setting", "mesure"):
        compose(started[0], tuple(started[1]))
