"""An identity is of content, and complete: of adapters with their bases, of exports, of runs; what it is of is never mixed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from helpers.damage import flipped, unnoticed_flips
from helpers.errors import raises
from helpers.models import settings_for
from helpers.runs import settings_of, small_run
from helpers.trained_runs import ONE_RANK, forecast, random_run, score_alone
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from laborllm_dist.batching.training_plan import plan_training
from laborllm_dist.careers.corpus import fingerprint_sources
from laborllm_dist.careers.readers import wage_panel
from laborllm_dist.checkpoint.export import (
    export_adapter,
    export_checkpoint,
    exported_step,
    finished_step,
    place_of_base,
)
from laborllm_dist.checkpoint.manifest import (
    CheckpointManifest,
    SavedFile,
    SavedOptimizerShard,
    read_manifest,
    write_manifest,
)
from laborllm_dist.checkpoint.save import checkpoint_folder
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.evaluation import EvaluateSettings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.io.files import sha256_of
from laborllm_dist.io.run_directory import RunDirectory, create_or_resume, run_fingerprint
from laborllm_dist.models.fingerprint import weights_fingerprint
from laborllm_dist.models.loading import context_of, new_llama, pretrained_model, weights_identity
from laborllm_dist.models.lora import base_of, with_adapter
from laborllm_dist.store.build import prepare_store, store_identity
from laborllm_dist.store.store import TOKENIZER
from laborllm_dist.tables.scores import read_score_table
from laborllm_dist.training.state import INITIAL_STATE, Validation, state_from_values
from laborllm_dist.training.train import train

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LORA = ["adapter=lora", "adapter.rank=2", "adapter.target_modules=[q_proj,v_proj]"]


def checkpoint_of(
    weights: dict[str, Tensor], run: RunDirectory, state: dict[str, object], step: int = 3
) -> tuple[Path, CheckpointManifest]:
    """Write whole weights as a checkpoint of one rank."""
    folder = checkpoint_folder(run.checkpoints, step)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rank_00000_000.safetensors"
    save_file(
        {f"weight/{name}": value.detach().float().flatten().contiguous() for name, value in weights.items()}, path
    )
    places = tuple(
        SavedOptimizerShard(name, tuple(value.shape), 0, value.numel(), 0) for name, value in weights.items()
    )
    files = {path.name: SavedFile(path.stat().st_size, sha256_of(path), places)}
    write_manifest(folder, CheckpointManifest(step, run.fingerprint, 1, 0, state, files))
    return folder, read_manifest(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    return prepare_store(settings_of(small_run(tmp_path_factory.mktemp("store"))))


def llama(store, folder: Path, seed: int) -> Path:
    shape = settings_of(small_run(folder)).model.llama
    new_llama(shape, num_ids=store.num_ids, attention_dropout=0.0, seed=seed).save_pretrained(folder)
    shutil.copytree(store.folder / TOKENIZER, folder, dirs_exist_ok=True)
    return folder


def tuned(folder: Path, store, *where: str) -> tuple[RunSettings, RunDirectory, dict[str, Tensor]]:
    """Make a run with LoRA over a base, its additions drawn, and export it; return the additions."""
    data_settings = [override for override in small_run(folder) if not override.startswith(("model.", "tokenizer."))]
    settings = settings_of([*data_settings, "model=pretrained", "tokenizer=pretrained", *where, *LORA])
    base = pretrained_model(settings.model, dtype=torch.float32)
    torch.manual_seed(7)
    added = {
        name: value.detach().normal_(std=0.3)
        for name, value in with_adapter(base, settings.adapter, seed=1).named_parameters()
        if value.requires_grad
    }
    record = {"fingerprint": store.fingerprint, "folder": str(store.folder)}
    run = create_or_resume(settings, record, weights_identity(settings.model))
    config = pretrained_model(settings.model, dtype=torch.float32).config
    export_adapter(checkpoint_of(added, run, {}), settings, config, store.folder / TOKENIZER, run)
    return settings, run, added


@pytest.fixture
def hub(store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub repository of two models in subfolders, and another revision of them, as they lie after a download."""
    repository = tmp_path / "hub/models--somebody--weights"
    for number, (revision, commit) in enumerate([("main", COMMIT), ("old", COMMIT[::-1])]):
        for place, subfolder in enumerate(("7b", "13b")):
            llama(store, repository / "snapshots" / commit / subfolder, seed=2 * number + place)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    for module in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return repository


def logits_of(model: torch.nn.Module) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(4, 40)[None]).logits


def test_an_adapter_over_a_subfolder_and_revision_of_the_hub_is_opened_over_them(
    hub: Path, store, tmp_path: Path
) -> None:
    _, run, _ = tuned(tmp_path, store, "model.path=somebody/weights", "model.subfolder=13b", "model.revision=old")
    adapter = settings_for(str(run.adapter))
    base = base_of(adapter)
    assert base is not None
    assert (base.path, base.revision, base.subfolder) == ("somebody/weights", COMMIT[::-1], "13b")
    # Independent: peft's own road over the folder itself.
    plain = AutoModelForCausalLM.from_pretrained(hub / "snapshots" / COMMIT[::-1] / "13b", dtype=torch.float32)
    expected = logits_of(peft.PeftModel.from_pretrained(plain, str(run.adapter)))
    torch.testing.assert_close(logits_of(pretrained_model(adapter, dtype=torch.float32)), expected, rtol=0, atol=1e-5)
    merged = AutoModelForCausalLM.from_pretrained(run.export, dtype=torch.float32)
    torch.testing.assert_close(logits_of(merged), expected, rtol=0, atol=1e-5)
    assert json.loads((run.adapter / "adapter_config.json").read_bytes())["revision"] == COMMIT[::-1]
    assert context_of(adapter) == context_of(settings_for("somebody/weights", subfolder="13b"))
    # The branch moves on; the adapter stays over the commit it was learned over.
    before = weights_identity(adapter)
    (hub / "refs/old").write_text(COMMIT)
    assert (weights_identity(adapter), base_of(adapter)) == (before, base)


def test_an_adapter_on_the_hub_is_refused_since_its_base_is_not_known(hub: Path) -> None:
    settings = settings_for("somebody/weights", subfolder="7b")
    assert weights_identity(settings) == f"somebody/weights@{COMMIT}/7b"
    (hub / "snapshots" / COMMIT / "7b/adapter_config.json").write_text("{}")
    with raises("model/hub-adapter", "somebody/weights"):
        weights_identity(settings)


def test_an_adapter_s_identity_is_its_own_content_and_that_of_its_base(store, tmp_path: Path) -> None:
    base = llama(store, tmp_path / "base", seed=1)
    _, run, _ = tuned(tmp_path, store, f"model.path={base}")
    adapter = settings_for(str(run.adapter))
    identity = weights_identity(adapter)
    assert identity == weights_identity(adapter) != weights_identity(settings_for(str(base)))
    bare = tmp_path / "bare"  # as peft alone writes it: nothing says what it was learned over
    shutil.copytree(run.adapter, bare, ignore=shutil.ignore_patterns("laborllm_dist.json"))
    other = weights_identity(settings_for(str(bare)))
    assert other == identity
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    assert weights_identity(settings_for(str(bare))) != other
    with raises("model/adapter-base-changed", "adapter", "base"):
        weights_identity(adapter)


@pytest.mark.parametrize(
    ("content", "label"),
    [
        ("{", "model/damaged-adapter-config"),
        ("[]", "model/damaged-adapter-config"),
        ("{}", "model/damaged-adapter-config"),
        ('{"base_model_name_or_path": null}', "model/adapter-without-base"),
        ('{"base_model_name_or_path": 3}', "model/adapter-without-base"),
    ],
)
def test_an_adapter_without_a_base_is_one_clear_line(content: str, label: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with raises(label, tmp_path / "adapter_config.json"):
        base_of(settings_for(str(tmp_path)))


def test_an_adapter_over_an_adapter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    with raises("model/adapter-on-adapter"):
        base_of(settings_for(str(tmp_path)))
    with raises("model/adapter-on-adapter"):
        context_of(settings_for(str(tmp_path)))


def test_a_flip_in_an_export_or_adapter_is_refused_and_makes_it_anew(store, tmp_path: Path) -> None:
    base = llama(store, tmp_path / "base", seed=1)
    settings, run, _ = tuned(tmp_path, store, f"model.path={base}")
    assert finished_step(run, settings) == 3
    for folder in (run.export, run.adapter):
        files = sorted(path for path in folder.iterdir())
        assert {"laborllm_dist.json", "tokenizer.json"} < {path.name for path in files}
        for path in files:
            num_raised, wrong = unnoticed_flips(
                path, 4, lambda folder=folder: weights_identity(settings_for(str(folder)))
            )
            assert not wrong, f"{path}: {wrong}"
            assert num_raised == 6 or path.name == "laborllm_dist.json", path
            with flipped(path, 8 * (path.stat().st_size // 2)):
                assert finished_step(run, settings) is None
            path.rename(tmp_path / "aside")
            assert finished_step(run, settings) is None
            (tmp_path / "aside").rename(path)
    with (
        flipped(run.export / "model.safetensors", 90_000),
        raises("model/model-folder-changed"),
    ):
        weights_identity(settings_for(str(run.export)))
    # A change that is meant.
    (run.export / "laborllm_dist.json").unlink()
    (run.export / "generation_config.json").write_text("{}")
    weights_identity(settings_for(str(run.export)))


def test_a_damaged_export_is_made_anew_with_the_same_weights(store, tmp_path: Path) -> None:
    settings = settings_of(small_run(tmp_path))
    model = new_llama(settings.model.llama, num_ids=store.num_ids, attention_dropout=0.0, seed=3)
    run = create_or_resume(settings, {"fingerprint": store.fingerprint, "folder": str(store.folder)}, None)
    saved = checkpoint_of(dict(model.named_parameters()), run, {})
    export_checkpoint(*saved, model.config, store.folder / TOKENIZER, run.export)
    before = {path.name: path.read_bytes() for path in run.export.iterdir()}
    (run.export / "model.safetensors").write_bytes(b"damaged")
    assert exported_step(run.export, run.fingerprint) is None
    export_checkpoint(*saved, model.config, store.folder / TOKENIZER, run.export)
    assert {path.name: path.read_bytes() for path in run.export.iterdir()} == before
    assert exported_step(run.export, run.fingerprint) == 3


def test_the_place_of_a_base_is_the_same_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models/llama").mkdir(parents=True)  # alone it would be a hub id, OWNER/NAME
    monkeypatch.chdir(tmp_path)
    assert place_of_base(settings_for("models/llama")).path == str(tmp_path / "models/llama")
    place = place_of_base(settings_for("models", subfolder="llama"))
    assert (place.path, place.subfolder) == (str(tmp_path / "models/llama"), None)


class MadeAgain(Exception):
    pass


def test_a_finished_run_is_finished_only_while_its_export_is_whole(tmp_path: Path, monkeypatch, capsys) -> None:
    settings = settings_of(small_run(tmp_path, "training.epochs=1"))
    store = prepare_store(settings)
    run = create_or_resume(settings, {"fingerprint": store.fingerprint, "folder": str(store.folder)}, None)
    num_steps = plan_training(store, settings, world_size=1).num_steps
    done = dataclasses.replace(INITIAL_STATE, step=num_steps, validations=(Validation(num_steps, 1.0),))
    model = new_llama(settings.model.llama, num_ids=store.num_ids, attention_dropout=0.0, seed=3)
    saved = checkpoint_of(dict(model.named_parameters()), run, dataclasses.asdict(done), step=num_steps)
    export_checkpoint(*saved, model.config, store.folder / TOKENIZER, run.export)

    def made_again(*_: object, **__: object) -> None:
        raise MadeAgain

    monkeypatch.setattr("laborllm_dist.training.train.make_model", made_again)
    train(settings, ONE_RANK)
    assert "small is finished" in capsys.readouterr().out
    for path in sorted(run.export.iterdir()):
        with flipped(path, 8 * (path.stat().st_size // 2)), pytest.raises(MadeAgain):
            train(settings, ONE_RANK)
    (run.export / "README.md").write_text("a card of somebody's")
    train(settings, ONE_RANK)
    assert "small is finished" in capsys.readouterr().out
    with (
        flipped(run.export / "model.safetensors", 800),
        raises("foreign-file/foreign-file-in-folder", "README.md"),
    ):
        train(settings, ONE_RANK)
    assert (run.export / "README.md").read_text() == "a card of somebody's"
    shutil.rmtree(run.export)
    with pytest.raises(MadeAgain):
        train(settings, ONE_RANK)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("run"))


def evaluated(run: Path, *more: str) -> Path:
    return score_alone(compose_settings(EvaluateSettings, "evaluate", [f"run={run}", *more]))


def test_no_table_is_written_over_with_other_settings_not_even_a_run_s_own(run: Path) -> None:
    for name in ([], [f"model.path={run}/export", "model.name=other"]):
        table = evaluated(run, *name)
        before = table.read_bytes()
        for more, change in [
            (["precision=bf16"], "precision fp32 there, bf16 now"),
            (["max_seq_length=512"], "max_seq_length 1024 there, 512 now"),
        ]:
            with raises("run/scored-with-other-settings", change):
                evaluated(run, *name, *more)
        assert table.read_bytes() == before
    # The way out.
    assert evaluated(run, "precision=bf16", "model.name=narrow").name == "test.narrow.parquet"
    assert read_score_table(evaluated(run))[1].details["precision"] == "fp32"


def test_forecasts_are_not_written_over_with_other_settings(run: Path) -> None:
    table = forecast(run, "max_people=2")
    before = table.read_bytes()
    with raises("run/scored-with-other-settings", "max_pruned_mass 0.0 there, plain now"):
        forecast(run, "max_people=2", "steps=sampled", "paths=50")
    assert table.read_bytes() == before
    forecast(run, "max_people=2", "steps=sampled", "paths=50", "model.name=drawn")


def test_tables_of_weights_that_were_trained_anew_are_made_anew(run: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "small", ignore=shutil.ignore_patterns("scores")))
    table = evaluated(copied)
    before = table.read_bytes()
    weights = load_file(copied / "export/model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    save_file(weights, copied / "export/model.safetensors", metadata={"format": "pt"})
    assert evaluated(copied).read_bytes() != before


def test_no_version_of_a_package_is_part_of_an_identity(monkeypatch) -> None:
    settings = settings_of([])
    before = store_identity(settings), run_fingerprint(settings, "store", None)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")
    for name in ("torch", "transformers", "tokenizers", "deepspeed", "numpy", "pyarrow"):
        monkeypatch.setattr(f"{name}.__version__", "99.0")
    monkeypatch.setattr("laborllm_dist.io.run_directory.__version__", "99.0")
    assert (store_identity(settings), run_fingerprint(settings, "store", None)) == before


def test_the_wage_panel_is_known_by_its_content_not_by_the_version_of_its_package(monkeypatch, tmp_path: Path) -> None:
    data = settings_of([]).data
    assert list(data.corpora) == ["wage_panel"]
    before = fingerprint_sources(data)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")
    assert fingerprint_sources(data) == before
    monkeypatch.setattr("bz2.decompress", lambda content: b"other rows")
    assert fingerprint_sources(data) != before
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with raises("missing-package/not-installed", "linearmodels", "--no-deps linearmodels"):
        wage_panel.wage_panel_fingerprint()

    def damaged(content: bytes) -> bytes:
        raise OSError("Invalid data stream")

    monkeypatch.undo()
    monkeypatch.setattr("bz2.decompress", damaged)
    with raises("data-file/unreadable-wage-panel"):
        wage_panel.wage_panel_fingerprint()


def test_plain_values_of_any_type_may_stand_in_a_run_s_state(store, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "r")
    for value in (True, None, 3, 0.5, "x", [True, {"deep": False}]):
        _, manifest = checkpoint_of({"w": torch.ones(3)}, run, {"later": value})
        assert manifest.state == {"later": value}
    with raises("checkpoint/invalid-trainer-state", "step: expected a whole number, got True"):
        state_from_values({**dataclasses.asdict(INITIAL_STATE), "step": True})


def test_weights_that_lie_beside_those_that_are_opened_change_no_identity(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"one file")
    alone = weights_fingerprint(tmp_path, "safetensors")
    (tmp_path / "consolidated.safetensors").write_bytes(b"the same again, by another tool")
    assert weights_fingerprint(tmp_path, "safetensors") == alone
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    with raises("model/not-a-model-folder"):  # nobody opens it without an index
        weights_fingerprint(tmp_path, "safetensors")
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights_fingerprint(tmp_path, "safetensors") == alone
