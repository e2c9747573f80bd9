"""Settings: strict reading, and every file that ships composes and is read."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.errors import raises
from helpers.processes import PROJECT

from laborllm_dist import cli
from laborllm_dist.cli import compose_settings, compose_values
from laborllm_dist.config.baselines import BaselineSettings
from laborllm_dist.config.corpora import CORPUS_KINDS, SyntheticSettings
from laborllm_dist.config.evaluation import EvaluateSettings, ReportSettings
from laborllm_dist.config.reader import (
    describe_settings,
    inner_type,
    read_settings,
    settings_to_values,
    types_of_fields,
)
from laborllm_dist.config.run import MAY_CHANGE, RunSettings
from laborllm_dist.config.sweep import SweepSettings

CONF = PROJECT / "conf"
GROUPS = ("batch", "data", "evaluation", "model", "optimizer", "template", "tokenizer", "training", "zero")


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_composes_and_says_how_it_is_run(experiment: str) -> None:
    settings = compose_settings(RunSettings, "run", [f"+experiment={experiment}"])
    assert settings.name == experiment
    lines = (CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].endswith(f"launch/train.py +experiment={experiment}")
    assert lines[2].endswith("?"), "the third line is the experiment's question"


def all_options() -> list[tuple[str, str]]:
    """Return every option that stands by itself; pretrained models need their tokenizer too."""
    options_of = {group: ["tiny"] if group == "model" else options(group) for group in GROUPS}
    return [(group, option) for group, names in options_of.items() for option in names]


@pytest.mark.parametrize(("group", "option"), all_options())
def test_every_option_of_every_group_composes(group: str, option: str) -> None:
    compose_settings(RunSettings, "run", [f"{group}={option}"])


def test_the_pretrained_model_wants_a_path() -> None:
    with raises("settings/missing-setting", "model.path"):
        compose_settings(RunSettings, "run", ["model=pretrained"])
    settings = compose_settings(RunSettings, "run", ["model=pretrained", "model.path=folder", "tokenizer=pretrained"])
    assert settings.model.path == "folder"


@pytest.mark.parametrize("model", ["llama2_7b", "llama2_13b"])
def test_pretrained_models_compose_with_their_tokenizer(model: str) -> None:
    assert compose_settings(RunSettings, "run", [f"model={model}", "tokenizer=pretrained"]).model.path


@pytest.mark.parametrize("name", ["truth", "a/b", "''"])
def test_a_scored_model_may_not_take_a_baseline_s_name(name: str) -> None:
    with raises("settings/invalid", "model.name", "a file name"):
        compose_settings(EvaluateSettings, "evaluate", ["run=x", f"model.name={name}"])


def test_a_typo_beside_a_missing_setting_is_named() -> None:
    with raises("settings/unknown-setting", "rum", "did you mean run?"):
        compose_settings(EvaluateSettings, "evaluate", ["rum=runs/x"])


def test_no_advice_is_the_name_that_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for override in ("data={a: 1}", "optimizer={a: 1}", "data.corpora={a: 1}"):
        name = override.partition("=")[0]
        with raises("settings/value-for-group", f"setting {name} ", f"{name}.KEY=..."):
            compose_values("run", [override])
    for key in ("a", "a.b"):
        with raises("settings/key-not-added", "setting more_runs ", f"+more_runs.{key}=..."):
            compose_values("sweep", [f"more_runs.{key}=1"], incomplete=True)
        assert "more_runs" in compose_values("sweep", [f"+more_runs.{key}=1"], incomplete=True)
    with raises("settings/unknown-setting", "name.x; did you mean name?"):
        compose_values("run", ["name.x=1"])
    (tmp_path / "conf/name").mkdir(parents=True)  # a user's own folder
    (tmp_path / "conf/name/a.yaml").write_text("b: 1\n")
    monkeypatch.chdir(tmp_path)
    with raises("settings/hidden-by-folder", "setting name "):
        compose_values("run", ["name=a"])


def test_every_corpus_is_reached_by_a_data_setting() -> None:
    used = "".join(path.read_text() for path in (CONF / "data").glob("*.yaml"))
    assert [corpus for corpus in options("corpus") if f": {corpus}\n" not in used] == []


def test_settings_survive_being_written_and_read() -> None:
    settings = compose_settings(RunSettings, "run", ["+experiment=pooled_13b"])
    assert read_settings(RunSettings, settings_to_values(settings)) == settings


def test_every_setting_that_may_change_is_a_setting() -> None:
    values = settings_to_values(compose_settings(RunSettings, "run", []))
    for path in MAY_CHANGE:
        group: Any = values
        for name in path.split("."):
            group = group[name]


@pytest.mark.parametrize("kind", [RunSettings, EvaluateSettings, *CORPUS_KINDS.values()])
def test_every_setting_has_a_description(kind: type) -> None:
    descriptions = describe_settings(kind)
    for name, field_kind in types_of_fields(kind).items():
        inner = inner_type(field_kind)
        if dataclasses.is_dataclass(inner):
            test_every_setting_has_a_description(inner)  # type: ignore[arg-type]
        else:
            assert "corpora" in name or re.fullmatch(r"[A-Z`n].*[.]", descriptions[name]), f"{kind.__name__}.{name}"


def test_the_paper_s_settings_stand_in_the_experiment() -> None:
    settings = compose_settings(RunSettings, "run", ["+experiment=pooled_13b"])
    assert (settings.batch.global_batch_size, settings.optimizer.learning_rate) == (32, 1e-5)
    assert (settings.zero.stage, settings.zero.precision) == (3, "bf16")
    assert [corpus.survey for corpus in settings.data.corpora.values()] == ["PSID", "NLSY79", "NLSY97"]


INVALID, UNKNOWN = "settings/invalid", "settings/unknown-setting"
REFUSED = {
    "+training.epoks=3": (INVALID, "training.epoks; did you mean training.epochs?"),
    "training.epochs=0": (INVALID, "setting training.epochs:", "1 to 100,000", "got 0"),
    "training.epochs=two": (INVALID, "setting training.epochs:", "1 to 100,000", "got 'two'"),
    "training.epochs=true": (INVALID, "setting training.epochs:", "1 to 100,000", "got True"),
    "zero.stage=4": (INVALID, "setting zero.stage:", "0 to 3", "got 4"),
    "split.train=0.95": (INVALID, "setting split.train:", "train + validation"),
    "template.heading=x": (INVALID, "setting template.heading:", "a list", "'x'"),
    "model.path=x": (INVALID, "setting model.path:", "not both"),
    "name=a/b": (INVALID, "setting name:", "a file name"),
    "tokenizer.vocabulary_size=100": (INVALID, "setting tokenizer.vocabulary_size:", "260 to 1,000,000"),
    "model.llama.hidden_size=33": (INVALID, "setting model.llama.hidden_size:", "2 x num_heads"),
    "data.corpora.wage_panel.kind=nlsy": (INVALID, "setting data.corpora.wage_panel.kind:", "wage_panel, long_panel"),
    "split.validation=0": (INVALID, "setting split.validation:", "got 0"),
    f"{300 * 'k'}=1": ("settings/settings-not-composed", "kkk", "name too long"),
    f"split.salt={65 * 'k'}": (INVALID, "setting split.salt:", "64 bytes"),
    f'split.salt="{33 * chr(252)}"': (INVALID, "setting split.salt:", "64 bytes"),
    "optimizer.beta1=1": (INVALID, "setting optimizer.beta1:", "got 1"),
    "optimizer.weight_decay=.nan": (INVALID, "setting optimizer.weight_decay:", "0 to 1,000", "'.nan'"),
    "optimizer.learning_rate=inf": (INVALID, "setting optimizer.learning_rate:", "1e+38", "got inf"),
    "optimizer.learning_rate=-.inf": (INVALID, "setting optimizer.learning_rate:", "1e+38", "'-.inf'"),
    "training.loss_spike_ratio=nan": (INVALID, "setting training.loss_spike_ratio:", "1,000,000,000", "got nan"),
    "optimizer.weight_decay=-1": (INVALID, "setting optimizer.weight_decay:", "0 to 1,000", "got -1"),
    "model=llama2_7b": (INVALID, "setting tokenizer.kind: expected pretrained"),
    "nonsense": ("settings/no-name-and-value", "nonsense"),
    "trainin.epochs=3": (UNKNOWN, "trainin.epochs; did you mean training.epochs?"),
    "training.epoks=3": (UNKNOWN, "training.epoks; did you mean training.epochs?"),
    "zzz=3": (UNKNOWN, "zzz", "--help"),
    "model=llama3": ("settings/settings-not-composed", "llama3", "tiny"),
    "+experiment=quickstrat": ("settings/settings-not-composed", "quickstrat", "quickstart"),
}


@pytest.mark.parametrize("override", REFUSED)
def test_a_wrong_override_is_refused_in_one_line(override: str) -> None:
    with raises(*REFUSED[override]) as error:
        compose_settings(RunSettings, "run", [override])
    assert "\n" not in str(error.value)


def test_weights_of_tokens_do_not_go_with_a_kernel_that_has_none() -> None:
    half = "training.context_loss_weight=0.5"
    with raises("settings/invalid", "compute.loss: expected chunked", "training.context_loss_weight"):
        compose_settings(RunSettings, "run", ["compute.loss=liger", half])
    assert compose_settings(RunSettings, "run", ["compute.loss=liger", "training.context_loss_weight=0"])


@pytest.mark.parametrize("of", ["[career]", "[career,career]", "[career,average]", "[career,truth]", "[career,a/b]"])
def test_an_average_is_of_different_models_with_tables(of: str) -> None:
    with raises("settings/invalid", "setting average.of: expected"):
        compose_settings(BaselineSettings, "baselines", ["run=x", f"average.of={of}"])


def test_all_problems_of_settings_are_listed_at_once() -> None:
    values = compose_values("run", ["data.corpora.wage_panel.kind=synthetic"])
    training: Any = values["training"]
    training["epoks"] = training.pop("epochs")
    with raises("settings/invalid") as error:
        read_settings(RunSettings, values)
    assert str(error.value).splitlines() == [
        "4 settings are invalid:",
        "  setting data.corpora.wage_panel.num_people is missing",
        "  setting data.corpora.wage_panel.seed is missing",
        "  setting training.epochs is missing",
        "  unknown setting training.epoks; did you mean training.epochs?",
    ]
    many = {f"no_{number}": 1 for number in range(30)}
    with raises("settings/invalid", "32 settings are invalid:\n  setting num_people", "\n  and 22 more"):
        read_settings(SyntheticSettings, many)


def test_a_missing_setting_is_named() -> None:
    with raises("settings/missing-setting", "run"):
        compose_settings(EvaluateSettings, "evaluate", [])
    with raises("settings/invalid", "setting split is missing"):
        read_settings(BaselineSettings, {"run": "x", "baselines": ["marginal"]})


def test_the_other_scripts_compose(tmp_path: Path) -> None:
    assert compose_settings(EvaluateSettings, "evaluate", ["run=runs/x", "model.path=a/b"]).model.path == "a/b"
    assert compose_settings(BaselineSettings, "baselines", ["run=runs/x"]).baselines == ("marginal", "first_order")
    assert compose_settings(ReportSettings, "report", ["runs=[runs/x,runs/y]"]).runs == ("runs/x", "runs/y")
    with raises("settings/invalid", "runs", "a list"):
        compose_settings(ReportSettings, "report", ["runs=runs/x"])


@pytest.mark.parametrize("values", [None, [], ["name"], 3, "x", [{}]])
def test_settings_that_are_no_group_are_refused(values: object) -> None:
    with raises("settings/invalid", "settings: expected a group of settings, got"):
        read_settings(RunSettings, values)  # type: ignore[arg-type]
    with raises("settings/invalid", "training", "a group of settings, got"):
        read_settings(RunSettings, {**settings_to_values(compose_settings(RunSettings, "run", [])), "training": values})


@pytest.mark.parametrize(
    ("override", "code"),
    [
        ("data=[1,2]", "settings-not-composed"),
        ("data=1", "settings-not-composed"),
        ("data={a: 1}", "value-for-group"),
        ("data=[[x]]", "settings-not-composed"),
        ("tokenizer=[1]", "settings-not-composed"),
    ],
)
def test_a_group_whose_option_is_no_name_is_refused_in_one_line(override: str, code: str) -> None:
    with raises(f"settings/{code}") as error:
        compose_settings(RunSettings, "run", [override])
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "\udcff"])
def test_a_text_that_no_file_can_hold_is_refused(text: str) -> None:
    values = settings_to_values(compose_settings(RunSettings, "run", []))
    with raises("settings/invalid", "setting output_dir", "holds", "which neither a file nor its name can hold"):
        read_settings(RunSettings, {**values, "output_dir": text})


def test_a_working_directory_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py", "runs=[runs/a]"])
    monkeypatch.setattr(cli, "guard_output", lambda: None)
    for name, why in (("folder\udcff", r"folder\\udcff, is not UTF-8; start"), ("gone", "was deleted; start")):
        place = tmp_path / name
        place.mkdir()
        monkeypatch.chdir(place)
        if name == "gone":
            place.rmdir()
        with pytest.raises(SystemExit) as ended:
            cli.launch(ReportSettings, "report", lambda settings: None, "")
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert re.search(why, error) and error.count("\n") == 1


def test_a_list_with_signs_of_the_settings_says_how_to_quote_its_elements() -> None:
    with raises("settings/value-needs-quotes", "setting common", "quote the elements") as error:
        compose_settings(SweepSettings, "sweep", ["+sweep=synthetic_law", "common=[data=synthetic, training.epochs=2]"])
    (advised,) = shlex.split(str(error.value).split("for the shell: ")[1])
    settings = compose_settings(SweepSettings, "sweep", ["+sweep=synthetic_law", advised])
    assert settings.common == ("data=synthetic", "training.epochs=2")
