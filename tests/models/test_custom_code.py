"""Code that comes with a model never runs and nobody is asked about it: one refusal, or the class of transformers."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.errors import raises
from helpers.processes import PROJECT
from helpers.runs import settings_of, small_run

from laborllm_dist.checkpoint.export import export_checkpoint
from laborllm_dist.checkpoint.manifest import CheckpointManifest
from laborllm_dist.config.model import ModelSettings
from laborllm_dist.errors import LaborError
from laborllm_dist.models.dims import shape_of
from laborllm_dist.models.loading import check_sharded, check_weights, context_of, new_llama, pretrained_model
from laborllm_dist.store.auto_classes import open_tokenizer
from laborllm_dist.store.tokenizer import load_tokenizer, train_tokenizer

AUTO_MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}


def settings_for(folder: Path) -> ModelSettings:
    return ModelSettings("m", str(folder), None, None, None, 0.0, "safetensors")


@pytest.fixture(autouse=True)
def nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))


def model_folder(folder: Path, config: dict[str, object]) -> Path:
    """Write a small Llama whose configuration is changed, with Python files that leave a trace when they are run."""
    shape = settings_of(small_run(folder)).model.llama
    assert shape is not None
    new_llama(shape, num_ids=400, attention_dropout=0.0, seed=1).save_pretrained(folder)
    tokenizer = train_tokenizer(["1984 (college): Cooks\n"] * 20, vocabulary_size=400)
    tokenizer.save(folder)
    for name, change in (
        ("config.json", config),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}}),
    ):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    return folder


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    return model_folder(tmp_path, {"model_type": "own_type", "architectures": ["OwnModel"], "auto_map": AUTO_MAP})


def whole(settings: ModelSettings) -> object:
    return pretrained_model(settings, dtype=torch.float32)


def planned(settings: ModelSettings) -> object:
    return shape_of(settings, num_ids=400)


@pytest.mark.parametrize("opened", [check_weights, whole, context_of, planned, check_sharded])
def test_a_model_of_its_own_code_is_refused_and_never_run(
    opened: Callable[[ModelSettings], object], foreign: Path
) -> None:
    with raises("custom-code/custom-code-required") as raised:
        opened(settings_for(foreign))
    assert len(str(raised.value).splitlines()) == 1
    assert not (foreign / "ran").exists()


def test_a_tokenizer_of_its_own_code_is_refused_and_never_run(foreign: Path) -> None:
    path = foreign / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": "OwnTokenizer"}))
    with raises("custom-code/custom-code-required"):
        load_tokenizer(str(foreign))
    assert not (foreign / "ran").exists()


def test_a_known_model_that_names_code_is_opened_by_transformers_class_and_exported_without_it(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", {"auto_map": AUTO_MAP})
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}))
    check_weights(settings_for(folder))
    model = pretrained_model(settings_for(folder), dtype=torch.float32)
    assert type(model).__module__ == "transformers.models.llama.modeling_llama"
    assert planned(settings_for(folder)).hidden_size == 32
    open_tokenizer(folder).save_pretrained(tmp_path / "tokenizer")
    manifest = CheckpointManifest(step=1, run="r", world_size=1, stage=0, state={}, files={})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("laborllm_dist.checkpoint.export.full_weights", lambda *_: iter(model.state_dict().items()))
        export_checkpoint(tmp_path, manifest, model.config, tmp_path / "tokenizer", tmp_path / "export")
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in (tmp_path / "export" / name).read_text()
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "config",
    [
        {"_attn_implementation": "somebody/kernel"},
        {"attn_implementation": {"text_config": "somebody/kernel"}},
        {"text_config": {"attn_implementation": "somebody/kernel@v1:flash"}},
    ],
)
def test_attention_kernels_that_a_configuration_names_are_refused(config: dict[str, object], tmp_path: Path) -> None:
    folder = model_folder(tmp_path, config)
    for opened in (check_weights, whole, context_of, planned, check_sharded):
        with raises("custom-code/hub-attention-kernels", "somebody/kernel"):
            opened(settings_for(folder))


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": 5},
        {"auto_map": {"AutoConfig": 5}},
        {"hidden_size": "wide"},
        {"num_attention_heads": 0},
        {"model_type": None},
        {"model_type": "no_such_type"},
        {"rope_parameters": {"rope_type": "no_such_type"}},
    ],
)
def test_a_configuration_of_nonsense_is_one_line(config: dict[str, object], tmp_path: Path) -> None:
    folder = model_folder(tmp_path, config)
    for opened in (check_weights, context_of, planned, whole):
        try:
            opened(settings_for(folder))
        except LaborError as error:
            assert len(str(error).splitlines()) == 1, error
    with pytest.raises(LaborError):
        whole(settings_for(folder))


def test_a_path_that_is_no_folder_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for label, opened in (
        ("model/no-weights", check_weights),
        ("model/no-model-config", context_of),
        ("model/unknown-model-shape", planned),
    ):
        with raises(label, "models/no_such") as raised:
            opened(settings_for(Path("models/no_such")))
        assert len(str(raised.value).splitlines()) == 1


def test_auto_classes_are_called_in_one_module_only_and_without_trust() -> None:
    for path in (PROJECT / "laborllm_dist").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        named |= {node.name for node in ast.walk(tree) if isinstance(node, ast.alias)}
        auto = {name for name in named if name.startswith(("AutoConfig", "AutoModel", "AutoTokenizer", "AutoPeft"))}
        if path.name != "auto_classes.py":
            assert not auto, f"{path}: {auto}"
            continue
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
        opening = [call for call in calls if call.func.attr in ("from_pretrained", "from_config")]
        assert len(opening) == 4
        for call in opening:
            (trust,) = (word.value for word in call.keywords if word.arg == "trust_remote_code")
            assert isinstance(trust, ast.Constant)
            assert trust.value is False
