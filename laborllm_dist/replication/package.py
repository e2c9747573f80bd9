"""A replication package: software, settings, programs in order, tables and figures, and a README for the data editor.

The README follows the template of the social science data editors and the Data and Code Availability Standard (DCAS
1.0). What only the authors can know stands in square brackets. No data of people is in the package: neither sources nor
texts nor score tables.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import math
import platform
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import laborllm_dist
from laborllm_dist.careers.corpus import READERS
from laborllm_dist.config.baselines import BASELINES
from laborllm_dist.config.evaluation import ReplicateSettings, ReportSettings
from laborllm_dist.config.reader import settings_to_values
from laborllm_dist.config.run import RunSettings
from laborllm_dist.errors import EXTRA_OF, RunError
from laborllm_dist.io.command_log import Command, read_commands
from laborllm_dist.io.files import sha256_of, write_text
from laborllm_dist.io.recorded_folder import replacing_folder, with_mark
from laborllm_dist.io.run_directory import RunDirectory, read_run, weights_of_run
from laborllm_dist.replication.documents import Block, Bullets, Code, Heading, Paragraph, Table, to_markdown, write_pdf
from laborllm_dist.report.write import write_report

CARD = "data_card.md"  # of a token store (store/data_card.py)
ADVICE = "name another folder (output=...), or move it away"
# Settings whose relative values may be files or folders; of others, such as split=test, a folder may have the name.
MAY_BE_PATHS = ("path", "table", "train_ids", "validation_ids", "test_ids", "store")
# In the order in which they depend on each other.
PROGRAMS: Mapping[str, str] = {
    "prepare": "turns the sources into tokens",
    "train": "fine-tunes the model and exports its best weights",
    "evaluate": "scores every observation of the test people",
    "embed": "exports a vector for every person-year",
    "forecast": "forecasts several years ahead",
    "baselines": "fits and scores the models to compare with",
}
# Boxes of the template, in minutes.
TIMES = (
    (10, "less than 10 minutes"), (60, "10 to 60 minutes"), (120, "1 to 2 hours"), (480, "2 to 8 hours"),
    (1440, "8 to 24 hours"), (4320, "1 to 3 days"), (20160, "3 to 14 days"), (math.inf, "more than 14 days"),
)  # fmt: skip
# Rules of DCAS 1.0, and where the package meets them; None: only the authors can say.
DCAS: tuple[tuple[str, str | None], ...] = (
    ("Data availability statement", "section 2"),
    ("Raw data", "section 2: how to obtain them; the programs read them as they are downloaded"),
    ("Analysis data", "made by the programs from the raw data; not provided where the terms forbid it"),
    ("Data format", "the formats of the distributors, and Parquet"),
    ("Metadata", "data_cards: people, years and occupations of every source, and what was left out"),
    ("Data citation", "section 2"),
    ("Data transformation programs", "software, run by run_all.sh"),
    ("Analysis programs", "software, run by run_all.sh"),
    ("Program format", "Python source"),
    ("Instruments", None),
    ("Ethics", None),
    ("Pre-registration", None),
    ("Documentation", "this README"),
    ("Location", None),
    ("License", None),
    ("Omissions", "section 2: sources that are not provided"),
)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file or folder that a program reads: where it lies here, and where the package expects it."""

    path: Path
    place: str


@dataclass(frozen=True, slots=True)
class Program:
    """A command of run_all.sh; of one that was stopped and resumed, the time of all its parts."""

    name: str
    arguments: tuple[str, ...]
    num_ranks: int
    log: Command | None  # its longest part


@dataclass(frozen=True, slots=True)
class ReplicatedRun:
    """A run as the package repeats it."""

    run: RunDirectory
    settings: RunSettings
    store: Path
    files: tuple[SourceFile, ...]
    programs: tuple[Program, ...]

    @property
    def name(self) -> str:
        """The run's name, also of its settings files in the package."""
        return self.settings.name

    @property
    def logged(self) -> list[tuple[Program, Command]]:
        """Programs of which the run's folder has a log."""
        return [(program, program.log) for program in self.programs if program.log is not None]


def write_package(settings: ReplicateSettings, report: ReportSettings, programs: Sequence[Path]) -> Path:
    """Write a replication package of several runs, and return its folder.

    Args:
        settings: runs and folder.
        report: settings of the report, whose tables and figures the package must reproduce.
        programs: folders conf/ and launch/ of this software.

    Raises:
        RunError: if a run or its token store is missing, two runs have one name, or one of `refits` is no refit.
        ScoreTableError: if a run has no scores.
        ForeignFileError: if the folder holds anything that no package wrote.
        DiskError: if it cannot be written.
    """
    places: dict[str, str] = {}
    runs = [_open_run(Path(run), places) for run in (*settings.runs, *settings.refits)]
    names = [run.name for run in runs]
    if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
        raise RunError(f"two runs have the name {twice}; a package repeats each under its name", code="two-of-one-name")
    folder = Path(settings.output)
    with replacing_folder(folder, {"package": names}, ADVICE) as partial:
        for run in runs:
            _write_settings(run, partial)
            shutil.copyfile(run.store / CARD, _made(partial / "data_cards" / f"{run.name}.md"))
        _copy_software(partial / "software", programs)
        write_text(partial / "requirements.txt", "\n".join(_requirements()) + "\n")
        script = _script(runs, report, num_refits=len(settings.refits))
        write_text(partial / "run_all.sh", script)
        folders = {path: f"runs/{run.name}" for path, run in zip((*settings.runs, *settings.refits), runs, strict=True)}
        expected = replace(
            report,
            runs=settings.runs,
            refits=settings.refits,
            output=str(partial / "expected"),
            num_careers=0,
        )
        write_report(expected, folders)  # without a page of single people
        blocks = _readme(settings, runs, script, partial)
        write_text(partial / "README.md", with_mark(to_markdown(blocks)))
        write_pdf(blocks, partial / "README.pdf")
    (folder / "run_all.sh").chmod(0o755)
    return folder


def _open_run(path: Path, places: dict[str, str]) -> ReplicatedRun:
    """Read a run; `places` of the files of earlier runs are shared, and those of this one are added."""
    run, settings, store = read_run(path)
    if not (store / CARD).is_file():
        raise RunError(
            f"the token store of {path} is not at {store}, and its data card belongs into the package; prepare it "
            "again (launch/prepare.py with the settings of the run)",
            code="no-store-of-run",
        )
    logged = [command for command in read_commands(path) if command.name in PROGRAMS]
    typed = [text for command in logged for text in command.arguments]
    files = tuple(_source_files(settings, typed, places))
    return ReplicatedRun(run, settings, store, files, tuple(_programs(run, settings, logged, files)))


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _source_files(settings: RunSettings, typed: Sequence[str], places: dict[str, str]) -> Iterator[SourceFile]:
    """Yield the files and folders that the settings of a run and typed arguments name, each with a place of its own."""
    values = settings_to_values(settings)
    pairs = (argument.partition("=") for argument in typed if not argument.startswith("run="))
    of_arguments = (path for name, _, value in pairs for path in _paths_in(value, name.rpartition(".")[2]))
    paths = dict.fromkeys((*_paths_in(values), *of_arguments))
    for path in paths:
        name = Path(path).name
        if path not in places:
            places[path] = next(
                place
                for number in itertools.count(1)
                if (place := f"sources/{settings.name}/{name if number == 1 else f'{number}/{name}'}")
                not in places.values()
            )
        yield SourceFile(Path(path), places[path])


def _is_path(text: str, setting: str) -> bool:
    """Return whether a setting names a file or folder of this disk; an absolute path does, also where it is gone."""
    return Path(text).is_absolute() or (setting in MAY_BE_PATHS and "\0" not in text and Path(text).exists())


def _paths_in(values: Any, name: str = "") -> Iterator[str]:
    """Yield the paths in settings but those of the folders that the package makes."""
    if isinstance(values, Mapping):
        for inner, value in values.items():
            if inner not in ("output_dir", "store", "prepare"):
                yield from _paths_in(value, str(inner))
    elif isinstance(values, str) and _is_path(values, name):
        yield values


def _moved(values: Any, places: Mapping[str, str]) -> Any:
    """Return settings with every path of this disk replaced by its place in the package."""
    if isinstance(values, Mapping):
        return {name: _moved(value, places) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_moved(value, places) for value in values]
    return places.get(values, values) if isinstance(values, str) else values


def _write_settings(run: ReplicatedRun, package: Path) -> None:
    """Write the settings of a run as an experiment and its data group, which the commands find in conf/."""
    values = _moved(settings_to_values(run.settings), {str(file.path): file.place for file in run.files})
    data = values.pop("data")
    values |= {"output_dir": "runs", "store": {**values["store"], "root": "stores"}}
    values["prepare"] = {**values["prepare"], "career_text": None}
    groups = [{"override /data": run.name}, {"override /split_by": run.settings.split.by}]
    experiment = {"defaults": groups, **values}
    for group, content, header in (("experiment", experiment, "# @package _global_\n"), ("data", data, "")):
        path = package / "conf" / group / f"{run.name}.yaml"
        # JSON is YAML in which no text can be taken for a number; "${" would be an interpolation of Hydra's.
        text = json.dumps(content, indent=2, ensure_ascii=False).replace("${", "\\\\${")
        write_text(_made(path), f"{header}{text}\n")


def _copy_software(target: Path, programs: Sequence[Path]) -> None:
    """Copy this package's source as pip installs it, with conf/ and launch/ inside."""
    source, unwanted = Path(laborllm_dist.__file__).parent, shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(source, target / source.name, ignore=unwanted)
    for folder in programs:
        shutil.copytree(folder, target / source.name / folder.name, ignore=unwanted, dirs_exist_ok=True)


def _requirements() -> list[str]:
    """Return the versions of all installed packages that this one needs, directly or not."""
    versions: dict[str, str] = {}
    waiting = ["laborllm_dist", *EXTRA_OF]  # modules named as their packages, where this one is not installed
    while waiting:
        name = waiting.pop()
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in versions:
            continue
        versions[key] = distribution.version.partition("+")[0]
        for requirement in distribution.requires or ():
            is_ours, extra = key == "laborllm-dist", "extra ==" in requirement
            if not extra or (is_ours and re.search(r"extra == .(report|train|slurm|wandb)", requirement)):
                waiting.append(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0])
    versions.pop("laborllm-dist", None)
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def _programs(
    run: RunDirectory, settings: RunSettings, logged: Sequence[Command], files: Sequence[SourceFile]
) -> Iterator[Program]:
    """Yield the programs of a run in order: the training or preparation, then what was logged, or what tables show."""
    first = "train" if run.export.is_dir() else "prepare"
    own = f"run=runs/{settings.name}"
    yield _program(first, (f"+experiment={settings.name}",), [each for each in logged if each.name == first])
    places = {str(file.path): file.place for file in files}
    parts: dict[tuple[str, tuple[str, ...]], list[Command]] = {}
    for command in logged:
        if command.name not in ("train", "prepare"):
            pairs = (each.partition("=") for each in command.arguments if not each.startswith("run="))
            arguments = (own, *(name + sign + places.get(value, value) for name, sign, value in pairs))
            parts.setdefault((command.name, arguments), []).append(command)
    order = list(PROGRAMS)
    for (name, arguments), of_one in sorted(parts.items(), key=lambda item: order.index(item[0][0])):
        yield _program(name, arguments, of_one)
    if parts:
        return
    scores = [path.name.split(".") for path in sorted((run.path / "scores").glob("test*.parquet"))]
    if ["test", "parquet"] in scores:
        yield _program("evaluate", (own,), [])
    if names := [parts[1] for parts in scores if len(parts) == 3 and parts[0] == "test" and parts[1] in BASELINES]:
        yield _program("baselines", (own, f"baselines=[{','.join(names)}]"), [])


def _program(name: str, arguments: tuple[str, ...], parts: Sequence[Command]) -> Program:
    if not parts:
        return Program(name, arguments, 1, None)
    longest = max(parts, key=lambda command: command.seconds)  # a start that found everything done took seconds
    log = replace(longest, seconds=sum(command.seconds for command in parts))
    return Program(name, arguments, longest.num_ranks, log)


def _script(runs: Sequence[ReplicatedRun], report: ReportSettings, *, num_refits: int) -> str:
    """Return run_all.sh; the last runs are the refits."""
    lines = [
        "#!/usr/bin/env bash",
        "# Runs every program of this package in order; see README.md. A second start resumes.",
        "set -euo pipefail",
        'cd "$(dirname "$0")"',
        'export PYTHONPATH="$PWD/software${PYTHONPATH:+:$PYTHONPATH}"',
    ]
    for run in runs:
        for program in run.programs:
            ranks = program.num_ranks
            start = "python -m" if ranks == 1 else f"deepspeed --num_gpus {ranks} --module"
            lines.append(f"{start} laborllm_dist {program.name} {shlex.join(program.arguments)}")
    folders = [f"runs/{run.name}" for run in runs]
    reported, refits = folders[: len(folders) - num_refits], folders[len(folders) - num_refits :]
    own = [f"split={report.split}", f"measure={report.measure}", f"bootstrap_draws={report.bootstrap_draws}"]
    arguments = [f"runs=[{','.join(reported)}]", "output=results", *own, f"seed={report.seed}", "num_careers=0"]
    if refits:
        arguments.append(f"refits=[{','.join(refits)}]")
    lines += [
        f"python -m laborllm_dist report {shlex.join(arguments)}",
        "if diff -r expected/tables results/tables; then",
        '    echo "replicate: the tables are those of the package, byte for byte"',
        "else",
        '    echo "replicate: the tables differ from those of the package, as shown above" >&2',
        "    exit 1",
        "fi",
    ]
    return "\n".join(lines) + "\n"


def _readme(settings: ReplicateSettings, runs: Sequence[ReplicatedRun], script: str, package: Path) -> list[Block]:
    seconds = sum(log.seconds for run in runs for _, log in run.logged)
    return [
        Heading(f"Replication package: {settings.title}", 1),
        Heading("1. Overview"),
        Paragraph(
            f"{', '.join(run.name for run in runs)}: language models of careers, fine-tuned and evaluated with "
            f"laborllm_dist {laborllm_dist.__version__}. One script, run_all.sh, runs all programs from the raw data "
            f"to the tables and figures in expected/. {_time_in_words(seconds)}"
        ),
        Heading("2. Data availability and provenance"),
        *_data_statements(runs),
        Heading("3. Files"),
        Table(("path", "content", "provided"), tuple(_files(runs))),
        Heading("4. Computational requirements"),
        *_requirements_blocks(runs, seconds),
        Heading("5. Programs, in order"),
        Paragraph("run_all.sh runs these; each can be started again after a stop, and resumes."),
        Code("\n".join(line for line in script.splitlines() if "laborllm_dist" in line)),
        Table(("program", "purpose"), (
            *((name, purpose) for name, purpose in PROGRAMS.items() if f"laborllm_dist {name} " in script),
            ("report", "makes all tables and figures"),
        )),
        Heading("6. Instructions"),
        Bullets((
            "Place the sources of section 2 at the paths of section 3.",
            f"Install Python {_python()} and the packages: pip install -r requirements.txt",
            "Start ./run_all.sh. It ends with a comparison of results/tables with expected/tables. On the same "
            "versions and kind of processor they are the same bytes; on others the last digits may differ.",
        )),
        Heading("7. Tables and figures"),
        Table(("table or figure", "program", "needs data that are not provided"), tuple(_outputs(runs, package))),
        Heading("8. Models"),
        Table(("run", "base", "revision", "identifier of its weights", "license"), tuple(map(_model_row, runs))),
        Heading("9. Random numbers"),
        Bullets(tuple(
            f"{run.name}: training.seed={run.settings.training.seed}{_bootstrap_seed(run)} and "
            f"split.salt={run.settings.split.salt}, in conf/experiment/{run.name}.yaml"
            for run in runs
        )),
        Heading("10. Data and Code Availability Standard (DCAS 1.0)"),
        Table(("rule", "met"), tuple(
            (f"{number}. {rule}", f"[x] {where}" if where else "[ ] [Authors: state it here.]")
            for number, (rule, where) in enumerate(DCAS, start=1)
        )),
        Heading("11. References"),
        Bullets(tuple(dict.fromkeys((
            "Du, Tianyu, Ayush Kanodia, Herman Brunborg, Keyon Vafa, and Susan Athey. LABOR-LLM: Language-Based "
            "Occupational Representations with Large Language Models. arXiv 2406.17972.",
            *(READERS[corpus.kind].terms.citation for run in runs for corpus in run.settings.data.corpora.values()
              if corpus.kind != "synthetic"),
        )))),
    ]  # fmt: skip


def _data_statements(runs: Sequence[ReplicatedRun]) -> Iterator[Block]:
    corpora = dict.fromkeys((name, corpus.kind) for run in runs for name, corpus in run.settings.data.corpora.items())
    terms = [(name, READERS[kind].terms) for name, kind in corpora]
    is_free = all(each.may_be_shared for _, each in terms)
    yield Bullets((
        "[ ] [Authors: we certify that the authors of the manuscript have legitimate access to and permission to use "
        "the data used in this manuscript.]",
        "Some data cannot be made publicly available." if not is_free else "All data are publicly available.",
        "The package contains no sources, texts, weights or score tables. [Authors: expected/ has aggregates, some of "
        "groups of a single person; check them against the disclosure rules of the sources.]",
    ))  # fmt: skip
    for name, each in terms:
        yield Heading(f"{name}: {each.title}", 3)
        yield Bullets((f"Access: {each.access}", f"Rights: {each.rights}", f"Citation: {each.citation}"))


def _files(runs: Sequence[ReplicatedRun]) -> Iterator[tuple[str, str, str]]:
    for file in {file.place: file for run in runs for file in run.files}.values():
        yield file.place, _described(file.path), "no"
    yield "software/", "source of laborllm_dist, with its programs and default settings", "yes"
    yield "conf/", "settings of the runs", "yes"
    yield "run_all.sh", "runs all programs", "yes"
    yield "requirements.txt", "versions of all packages", "yes"
    yield "data_cards/", "codebook: people, years and occupations of every source", "yes"
    yield "expected/", "report, tables (CSV, LaTeX) and figures", "yes"
    yield "runs/, stores/, results/", "made by the programs", "no"


def _described(path: Path) -> str:
    if not path.exists():
        return "[Authors: this source was not on the disk when the package was made.]"
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.is_file())
        return f"folder of {len(files):,} files, {sum(each.stat().st_size for each in files):,} bytes"
    return f"{path.stat().st_size:,} bytes, SHA-256 {sha256_of(path)}"


def _requirements_blocks(runs: Sequence[ReplicatedRun], seconds: float) -> Iterator[Block]:
    commands = [(run, command) for run in runs for _, command in run.logged]
    minutes = seconds / 60
    yield Paragraph(f"Python {_python()} on Linux; versions of all packages are in requirements.txt.")
    yield Bullets(tuple(
        f"[{'x' if commands and (0 if index == 0 else TIMES[index - 1][0]) <= minutes < limit else ' '}] {words}"
        for index, (limit, words) in enumerate(TIMES)
    ))  # fmt: skip
    if commands:
        yield Table(
            ("run", "program", "minutes", "processes", "memory of one, GiB", "machine"),
            tuple(
                (
                    run.name, command.name, f"{command.seconds / 60:.1f}", str(command.num_ranks),
                    f"{command.peak_memory_gib:.1f}", command.machine,
                )
                for run, command in commands
            ),
        )  # fmt: skip
    unlogged = [f"{run.name} ({each.name})" for run in runs for each in run.programs if each.log is None]
    if unlogged:
        yield Paragraph(f"[Authors: time and machine of {', '.join(unlogged)}, of which there is no log.]")


def _bootstrap_seed(run: ReplicatedRun) -> str:
    seed = run.settings.training.bootstrap_seed
    return "" if seed is None else f", training.bootstrap_seed={seed}"


def _time_in_words(seconds: float) -> str:
    if not seconds:
        return ""
    return f"The programs took {seconds / 3600:.1f} hours." if seconds >= 3600 else f"They took {seconds / 60:.0f} min."


def _python() -> str:
    return ".".join(platform.python_version_tuple()[:2])


def _outputs(runs: Sequence[ReplicatedRun], package: Path) -> Iterator[tuple[str, str, str]]:
    needs = any(run.files for run in runs)
    for folder in ("tables", "figures"):
        for path in sorted((package / "expected" / folder).glob("*")):
            if path.suffix in (".csv", ".png"):
                yield f"expected/{folder}/{path.name}", "report", "yes" if needs else "no"


def _model_row(run: ReplicatedRun) -> tuple[str, str, str, str, str]:
    path, weights = run.settings.model.path, weights_of_run(run.run)
    if path is None:
        return run.name, "none: randomly initialized", "", "", ""
    base = Path(path).name if Path(path).is_dir() else path
    return run.name, base, run.settings.model.revision or "[Authors]", weights or "", "[Authors: license of the base]"
