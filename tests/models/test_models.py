"""Models: what is read, what is refused, what stands for them in fingerprints."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers.errors import raises
from helpers.models import settings_for
from helpers.runs import settings_of, small_run
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM, set_seed

from laborllm_dist.distributed.context import DistributedContext
from laborllm_dist.models.dims import shape_of
from laborllm_dist.models.loading import (
    check_fit,
    check_packing,
    check_weights,
    make_model,
    new_llama,
    pretrained_model,
    weights_identity,
)
from laborllm_dist.models.lora import merged, with_adapter, write_adapter
from laborllm_dist.models.safetensors_loading import files_by_tensor
from laborllm_dist.store.build import prepare_store
from laborllm_dist.store.tokenizer import load_tokenizer, tokenizer_identity, train_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a random Llama, as anybody's pretrained model."""
    folder = tmp_path_factory.mktemp("saved")
    new_llama(settings_of(small_run(folder)).model.llama, num_ids=400, attention_dropout=0.0, seed=1).save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize(
    ("stage", "precision", "expected"),
    [(0, "bf16", torch.float32), (1, "bf16", torch.bfloat16), (2, "bf16", torch.bfloat16), (0, "fp32", torch.float32)],
)
def test_weights_are_fp32_wherever_deepspeed_keeps_no_master_copy(stage, precision, expected, saved: Path) -> None:
    overrides = ["model=pretrained", f"model.path={saved}", "tokenizer=pretrained", f"zero.stage={stage}"]
    settings = settings_of([*overrides, f"zero.precision={precision}"])
    model = make_model(settings, DistributedContext(0, 1, 0, CPU), num_ids=400)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_a_model_that_keeps_packed_careers_apart_passes() -> None:
    set_seed(1)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = MistralForCausalLM(MistralConfig(vocab_size=50, num_key_value_heads=1, sliding_window=None, **shape))
    check_packing(model, device=CPU)


def test_a_model_that_cannot_take_a_block_mask_is_refused() -> None:
    class Forgetful(GPT2LMHeadModel):
        """Heeds neither mask nor positions, as models with a memory of their own do."""

        def forward(self, input_ids, attention_mask=None, position_ids=None, **more):  # type: ignore[no-untyped-def]
            return super().forward(input_ids=input_ids)

    set_seed(1)
    shape = {
        "vocab_size": 50,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "initializer_range": 0.5,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    check_packing(GPT2LMHeadModel(GPT2Config(**shape)).eval(), device=CPU)
    with raises("model/packed-careers-interact", "gpt2"):
        check_packing(Forgetful(GPT2Config(**shape)).eval(), device=CPU)


def test_careers_must_fit_the_vocabulary_the_context_and_the_window(tmp_path: Path) -> None:
    settings = settings_of(small_run(tmp_path))
    store = prepare_store(settings)
    shape = settings.model.llama
    good = new_llama(shape, num_ids=store.num_ids, attention_dropout=0.0, seed=1)
    check_fit(good, store)
    with raises("model/vocabulary-exceeds-embeddings", "400", "300"):
        check_fit(new_llama(shape, num_ids=300, attention_dropout=0.0, seed=1), store)
    good.config.max_position_embeddings = 100
    with raises("sequence-too-long/career-too-long", "'", "SYNTHETIC", "train", "the model's context is 100"):
        check_fit(good, store)
    good.config.max_position_embeddings, good.config.sliding_window = 2048, 64
    with raises("sequence-too-long/career-too-long", "the model's attention reaches back 64"):
        check_fit(good, store)


def test_pointers_of_other_formats_are_nobody_s_matter(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    for name in ("pytorch_model.bin", "tf_model.h5", "consolidated.safetensors"):  # not asked of Git LFS
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "README.md").write_text("<html>a card</html>")
    check_weights(settings_for(str(tmp_path)))
    pretrained_model(settings_for(str(tmp_path)), dtype=torch.float32)


def test_broken_weights_are_refused_in_one_line(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    with raises("model/unreadable-weights"):
        pretrained_model(settings_for(str(tmp_path)), dtype=torch.float32)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with raises("model/git-lfs-pointer", "a pointer of Git LFS, not the file itself"):
        pretrained_model(settings_for(str(tmp_path)), dtype=torch.float32)
    (tmp_path / "model.safetensors").write_text("no header of safetensors")
    with raises("model/unreadable-weights"):
        pretrained_model(settings_for(str(tmp_path)), dtype=torch.float32)
    wider = (saved / "config.json").read_text().replace('"hidden_size": 32', '"hidden_size": 64')
    (tmp_path / "config.json").write_text(wider)
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    with raises("model/shape-mismatch", "model.embed_tokens.weight", "[400, 32]", "[400, 64]"):
        pretrained_model(settings_for(str(tmp_path)), dtype=torch.float32)


def opened_whole(folder: Path) -> object:
    return pretrained_model(settings_for(str(folder)), dtype=torch.float32)


@pytest.fixture
def in_files(saved: Path, tmp_path: Path) -> Path:
    """Return a folder with the model in several files and an index."""
    pretrained_model(settings_for(str(saved)), dtype=torch.float32).save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    return tmp_path


@pytest.mark.parametrize("opened", [opened_whole, files_by_tensor])
@pytest.mark.parametrize("index", ["[1, 2]", "{", '{"weight_map": [1]}', '{"weight_map": {}}', "{}"])
def test_a_damaged_index_is_one_clear_line_whole_and_in_shards(index: str, opened, in_files: Path) -> None:
    opened(in_files)
    (in_files / "model.safetensors.index.json").write_text(index)
    with raises("model/damaged-weight-index", "model.safetensors.index.json"):
        opened(in_files)


@pytest.mark.parametrize("opened", [opened_whole, files_by_tensor])
def test_a_file_that_the_index_names_and_is_not_there_is_missing_not_damaged(opened, in_files: Path) -> None:
    gone = sorted(in_files.glob("*.safetensors"))[1]
    gone.unlink()
    with raises("model/missing-weight-files", "1", "model.safetensors.index.json", gone.name):
        opened(in_files)


def test_one_whole_file_goes_before_an_index_in_shards_as_in_transformers(saved: Path, in_files: Path) -> None:
    (in_files / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    assert set(files_by_tensor(in_files).values()) == {"model.safetensors"}
    (in_files / "model.safetensors.index.json").write_text("[1, 2]")
    opened_whole(in_files)


def test_pickles_are_opened_only_where_the_settings_say_so(saved: Path, tmp_path: Path) -> None:
    whole = pretrained_model(settings_for(str(saved)), dtype=torch.float32)
    whole.config.save_pretrained(tmp_path)
    torch.save(whole.state_dict(), tmp_path / "pytorch_model.bin")
    with raises("model/unreadable-weights"):
        opened_whole(tmp_path)
    with raises("model/not-a-model-folder", "config.json", "*.safetensors", "model.weights=pickle", "run code"):
        weights_identity(settings_for(str(tmp_path)))
    allowed = settings_for(str(tmp_path), weights="pickle")
    opened = pretrained_model(allowed, dtype=torch.float32)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in opened.state_dict().items())
    before = weights_identity(allowed)
    torch.save({**whole.state_dict(), "lm_head.weight": torch.zeros(400, 32)}, tmp_path / "pytorch_model.bin")
    assert weights_identity(allowed) != before
    with raises("model/not-a-model-folder", "pytorch_model*.bin"):
        weights_identity(settings_for(str(saved), weights="pickle"))


def test_merging_an_adapter_rounds_once_and_only_to_the_precision_of_the_base(saved: Path, tmp_path: Path) -> None:
    settings = settings_of(
        ["adapter=lora", "adapter.rank=4", "adapter.alpha=8", "adapter.target_modules=[q_proj]"]
    ).adapter
    for dtype in (torch.float32, torch.bfloat16):
        base = pretrained_model(settings_for(str(saved)), dtype=dtype)
        before = {name: value.clone() for name, value in base.state_dict().items()}
        learned = {
            name: value.detach().normal_(std=0.1)
            for name, value in with_adapter(base, settings, seed=1).named_parameters()
            if value.requires_grad
        }
        write_adapter(iter(learned.items()), settings, settings_for(str(saved)), dtype, tmp_path)
        actual = merged(pretrained_model(settings_for(str(saved)), dtype=dtype), tmp_path).state_dict()
        for layer in (0, 1):
            name = f"model.layers.{layer}.self_attn.q_proj"
            down, up = (learned[f"base_model.model.{name}.lora_{each}.default.weight"].float() for each in "AB")
            expected = before.pop(f"{name}.weight").float() + 2 * (up @ down)
            assert torch.equal(actual[f"{name}.weight"], expected.to(dtype))
        assert all(torch.equal(actual[name], value) for name, value in before.items())


def test_an_adapter_is_refused_where_its_base_or_itself_lacks_tensors(saved: Path, tmp_path: Path) -> None:
    settings = settings_of(["adapter=lora", "adapter.rank=4", "adapter.target_modules=[q_proj]"]).adapter
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(saved, base)
    model = with_adapter(pretrained_model(settings_for(str(saved)), dtype=torch.float32), settings, seed=1)
    learned = [(name, value.detach()) for name, value in model.named_parameters() if value.requires_grad]
    write_adapter(iter(learned), settings, settings_for(str(base)), torch.float32, adapter)
    write_adapter(iter(learned[1:]), settings, settings_for(str(base)), torch.float32, adapter)
    with raises("model/adapter-base-mismatch", "1", "model.layers.0", "lora_A"):
        opened_whole(adapter)
    narrow = [(name, value[:, :-1] if name == learned[0][0] else value) for name, value in learned]
    write_adapter(iter(narrow), settings, settings_for(str(base)), torch.float32, adapter)
    with raises("model/adapter-base-mismatch", "1", "model.layers.0", "lora_A"):
        opened_whole(adapter)
    write_adapter(iter(learned), settings, settings_for(str(base)), torch.float32, adapter)
    opened_whole(adapter)
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with raises("model/missing-tensors", base, "1", "model.layers.1.mlp.up_proj"):
        opened_whole(adapter)


@pytest.mark.parametrize("path", ["/nowhere/at/all", "nowhere", "./a/model"])
def test_a_folder_that_is_not_there_is_said_to_be_so(path: str) -> None:
    for label, check in (
        ("model/no-weights", check_weights),
        ("model/unknown-model-shape", lambda settings: shape_of(settings, num_ids=400)),
    ):
        with raises(label, f"model.path={path}", "no such folder", "hub"):
            check(settings_for(path))


def test_a_folder_without_a_tokenizer_is_said_to_be_so(saved: Path, tmp_path: Path) -> None:
    with raises("tokenizer/no-tokenizer", saved, "tokenizer.json, or"):
        load_tokenizer(str(saved))
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with raises("tokenizer/unreadable-tokenizer", "Couldn't instantiate the backend tokenizer from one of: (1) a"):
        load_tokenizer(str(tmp_path))


def test_the_identity_of_weights_is_their_content(saved: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    assert weights_identity(settings_for(str(tmp_path))) == weights_identity(settings_for(str(saved)))
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    assert weights_identity(settings_for(str(tmp_path))) != weights_identity(settings_for(str(saved)))
    with raises("model/not-a-model-folder"):
        weights_identity(settings_for(str(tmp_path / "nothing").replace("nothing", "")[:-1] + "/.."))


def test_the_identity_of_a_hub_model_is_its_commit_and_subfolder(tmp_path: Path, monkeypatch) -> None:
    # A hub's files as they lie after a download, and the hub out of reach.
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--somebody--weights"
    for subfolder in ("7b", "13b"):
        folder = repository / "snapshots" / commit / subfolder
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        train_tokenizer([subfolder], vocabulary_size=300).save(folder)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    small, large = (weights_identity(settings_for("somebody/weights", subfolder=name)) for name in ("7b", "13b"))
    assert (small, large) == (f"somebody/weights@{commit}/7b", f"somebody/weights@{commit}/13b")
    # A tokenizer's is that of what is opened, wherever it lies.
    for subfolder in ("7b", "13b"):
        lying = str(repository / "snapshots" / commit / subfolder)
        assert tokenizer_identity("somebody/weights", None, subfolder) == tokenizer_identity(lying, None, None)
