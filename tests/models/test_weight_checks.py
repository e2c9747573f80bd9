"""What is loaded is what lies in the files, by every road; all else is refused in one line."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from bitsandbytes.functional import quantize_4bit
from helpers.errors import raises
from helpers.models import LLAMA_LIKE, SHARDED_TYPES, TYPES, change_config, change_weights, saved_model, settings_for
from helpers.processes import PROJECT, run_well
from helpers.runs import settings_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from laborllm_dist.distributed.context import DistributedContext
from laborllm_dist.errors import ModelError
from laborllm_dist.models import file_record, safetensors_loading
from laborllm_dist.models.file_record import FileRecord
from laborllm_dist.models.loading import check_weights, pretrained_model
from laborllm_dist.models.lora import merged, with_adapter, write_adapter
from laborllm_dist.models.safetensors_loading import model_in_shards
from laborllm_dist.models.weight_checks import RECORD, check_in_place
from laborllm_dist.models.weight_checksums import added, checksum

CPU = torch.device("cpu")
LORA = settings_of(["adapter=lora", "adapter.rank=4", "adapter.target_modules=[q_proj]"]).adapter
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the folder of a model of a type, made once."""
    root = tmp_path_factory.mktemp("models")

    def folder(kind: str) -> Path:
        return root / kind if (root / kind).is_dir() else saved_model(root / kind, kind, dtype=torch.bfloat16)

    return folder


@pytest.fixture
def llama(folders: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a Llama's folder that a test may spoil."""
    return Path(shutil.copytree(folders("Llama"), tmp_path / "llama"))


def opened(
    folder: Path, base: str = "none", dtype: torch.dtype = torch.float32, weights: str = "safetensors"
) -> transformers.PreTrainedModel:
    return pretrained_model(settings_for(folder, weights), dtype=dtype, base=base, device=CPU)


def as_adapter(base: Path) -> Path:
    """Write an adapter over a base, whose additions are random, and return its folder."""
    folder = base.with_name(f"{base.name}-adapter")
    model = with_adapter(transformers.AutoModelForCausalLM.from_pretrained(base), LORA, seed=1)
    learned = [(name, value.detach().normal_()) for name, value in model.named_parameters() if value.requires_grad]
    write_adapter(iter(learned), LORA, settings_for(base), torch.float32, folder)
    return folder


def as_pickle(folder: Path) -> Path:
    """Put a pickle in the place of the safetensors."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


# Every road of a whole model to this rank.
ROADS = {
    "full": opened,
    "int8": lambda folder: opened(folder, "int8"),
    "nf4": lambda folder: opened(folder, "nf4"),
    "adapter": lambda folder: opened(as_adapter(folder)),
    "pickle": lambda folder: opened(as_pickle(folder), weights="pickle"),
}


# ----------------------------------------------------------------------------------------------------- checksums


def slow_checksum(flat: torch.Tensor, start: int) -> tuple[int, int]:
    """Sum up lanes of eight bytes one by one in Python's integers, as the module's header says."""
    content = bytes(start * flat.element_size()) + flat.view(torch.uint8).numpy().tobytes()
    lanes = np.frombuffer(content + bytes(-len(content) % 8), dtype="<u8").tolist()
    blocks = sum(((place // 512 * 0x9E3779B97F4A7C15) | 1) * lane for place, lane in enumerate(lanes))
    columns = sum(((place % 512 * 0xC2B2AE3D27D4EB4F) | 1) * lane for place, lane in enumerate(lanes))
    return blocks % 2**64, columns % 2**64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8])
def test_checksums_of_stretches_add_up_to_the_slow_one_of_the_whole(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    for numel in (0, 1, 7, 1021, 9000, 300_001):
        flat = (torch.randn(numel, generator=generator) * 50).to(dtype)
        whole = checksum(flat)
        if numel < 10_000:
            assert whole == slow_checksum(flat, 0)
            assert checksum(flat, 13) == slow_checksum(flat, 13)
        for parts in (1, 2, 3, 7):
            size = -(-numel // parts)
            cuts = [min(numel, size * part) for part in range(parts + 1)]
            pieces = [checksum(flat[start:end], start) for start, end in itertools.pairwise(cuts)]
            assert added(pieces) == whole


def test_a_flipped_bit_or_a_swap_changes_the_checksum() -> None:
    flat = torch.randn(700_000, generator=torch.Generator().manual_seed(2))
    whole = checksum(flat)
    for place in (0, 1, 511, 512, 4096, 262_143, 699_999):
        other = flat.clone()
        other.view(torch.int32)[place] ^= 1 << (place % 32)
        assert checksum(other) != whole
    for one, another in ((0, 2), (0, 1024), (5, 600_005)):  # in a block, in a column, far apart
        other = flat.clone()
        other[[one, another]] = other[[another, one]]
        assert checksum(other) != whole


# ------------------------------------------------------------------------------------------- what lies in files


@pytest.mark.parametrize("kind", TYPES)
def test_a_whole_model_of_any_type_is_what_its_files_hold(kind: str, folders: Callable[[str], Path]) -> None:
    for dtype in (torch.bfloat16, torch.float64):
        model = opened(folders(kind), dtype=dtype)
        stored = load_file(folders(kind) / "model.safetensors")
        for name, value in model.named_parameters():
            if name in stored:  # Mixtral's experts are fused
                assert torch.equal(value, stored[name].to(dtype))


@pytest.mark.parametrize("kind", ["Llama", "Mixtral", "GPT2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_element_that_is_not_that_of_the_file_is_refused(
    kind: str, dtype: torch.dtype, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {"Llama": UP, "Mixtral": "model.layers.1.mlp.experts.down_proj", "GPT2": "transformer.h.1.mlp.c_fc.bias"}

    def spoil(model: transformers.PreTrainedModel) -> None:
        flat = model.get_parameter(changed[kind]).data.view(-1)
        flat[-3] = torch.nextafter(flat[-3], torch.tensor(9.0, dtype=dtype))

    spoil_after_loading(monkeypatch, spoil)
    with raises("model/weights-differ-from-files"):
        opened(folders(kind), dtype=dtype)


def spoil_after_loading(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[transformers.PreTrainedModel], None]) -> None:
    """Have transformers open models that were changed after their files were read."""
    right = transformers.AutoModelForCausalLM.from_pretrained

    def wrong(*args: object, **more: object) -> object:
        model, report = right(*args, **more)
        spoil(model)
        return model, report

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", wrong)


@pytest.mark.parametrize("base", ["int8", "nf4"])
@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_quantized_layers_are_held_to_their_scales_and_rows(
    base: str, kind: str, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"Llama": "model.layers.1.mlp.up_proj", "GPT2": "transformer.h.1.mlp.c_fc"}[kind]
    opened(folders(kind), base)

    def scales(model: transformers.PreTrainedModel) -> None:
        weight = model.get_submodule(name).weight
        (weight.SCB if base == "int8" else weight.quant_state.absmax).view(-1)[1] *= 1.001

    def codes(model: transformers.PreTrainedModel) -> None:
        flat = model.get_submodule(name).weight.data.view(-1)
        flat[: len(flat) // 2] = 127 if base == "int8" else 255

    for spoil in (scales, codes):
        with monkeypatch.context() as patched:
            spoil_after_loading(patched, spoil)
            with raises("model/weights-differ-from-files", name, ".weight", base):
                opened(folders(kind), base)


def test_weights_in_another_precision_than_asked_for_are_refused(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_after_loading(monkeypatch, lambda model: model.to(torch.bfloat16))
    with raises("model/dtype-mismatch", "bfloat16", "float32"):
        opened(folders("Llama"))


def test_weights_that_are_no_numbers_are_loaded_as_they_are(llama: Path) -> None:
    broken = load_file(llama / "model.safetensors")[UP].clone()
    broken[3, 5] = torch.nan
    change_weights(llama, **{UP.replace(".", "__"): broken})
    assert opened(llama).get_parameter(UP)[3, 5].isnan()  # training says so by its loss


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("layers", [1, -1])
def test_fewer_layers_than_the_files_hold_are_refused_by_every_road(road: str, layers: int, llama: Path) -> None:
    folder = llama
    if road == "adapter":  # made while the configuration is right
        folder = as_adapter(llama)
    change_config(llama, num_hidden_layers=layers, layer_types=None)
    with pytest.raises(ModelError, match=r"model\.layers\.[01]\.|first lm_head.weight|num_hidden_layers ?= ?-1"):
        opened(folder) if road == "adapter" else ROADS[road](folder)


@pytest.mark.parametrize("values", [{"num_hidden_layers": 10**9}, {"vocab_size": 10**12}, {"hidden_size": 10**6}])
def test_sizes_beyond_all_measure_are_refused_before_memory_is_taken(values: dict[str, int], llama: Path) -> None:
    change_config(llama, **values)
    ranks = DistributedContext(0, 1, 0, CPU)
    roads = (opened, lambda folder: model_in_shards(settings_for(folder), dtype=torch.float32, config={}, ranks=ranks))
    for road in roads:
        with pytest.raises(
            ModelError, match=r"num_hidden_layers ?= ?1000000000|vocab_size ?= ?1000000000000|has shape \["
        ):
            road(llama)


@pytest.mark.parametrize("road", ["full", "int8", "pickle"])
def test_a_tensor_that_the_model_has_no_place_for_is_named(road: str, llama: Path) -> None:
    extra = {"model__layers__0__self_attn__q_proj__bias": torch.ones(64)}
    change_weights(llama, **extra)
    with raises("model/unexpected-tensors", "1", "model.layers.0.self_attn.q_proj.bias"):
        ROADS[road](llama)


@pytest.mark.parametrize("road", ["full", "nf4", "pickle"])
def test_buffers_of_older_files_are_no_weights(road: str, llama: Path) -> None:
    change_weights(
        llama,
        model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8),
        model__layers__0__self_attn__masked_bias=torch.tensor(-1e4),
        model__layers__1__self_attn__bias=torch.ones(1, 1, 64, 64, dtype=torch.bool),
    )
    ROADS[road](llama)
    change_weights(llama, model__layers__1__self_attn__bias=torch.ones(64)) if road != "pickle" else None
    if road != "pickle":
        with raises("model/unexpected-tensors", "model.layers.1.self_attn.bias"):
            ROADS[road](llama)


def test_a_decoder_saved_by_itself_opens_under_its_own_names(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**LLAMA_LIKE, tie_word_embeddings=True)
    decoder = transformers.LlamaModel(config)
    decoder.save_pretrained(tmp_path)
    change_config(tmp_path, architectures=["LlamaForCausalLM"])
    assert "layers.0.mlp.up_proj.weight" in load_file(tmp_path / "model.safetensors")
    model = opened(tmp_path)
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, decoder.layers[0].mlp.up_proj.weight)


class Counted:
    """A safetensors file, or a tensor of it, that notes the name of what is read."""

    def __init__(self, real: Any, read: list[str], name: str = "") -> None:
        self.real, self.read, self.name = real, read, name

    def get_slice(self, name: str) -> Counted:
        return Counted(self.real.get_slice(name), self.read, name)

    def __getitem__(self, index: Any) -> torch.Tensor:
        self.read.append(self.name)
        return self.real[index]

    def __enter__(self) -> Counted:
        self.real.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.real.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def test_every_tensor_is_read_once(folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    for module in (transformers.modeling_utils, safetensors_loading):
        monkeypatch.setattr(module, "safe_open", lambda *args, **more: Counted(safe_open(*args, **more), read))
    for kind, base in (("Llama", "none"), ("Mixtral", "none"), ("Llama", "nf4")):
        read.clear()
        opened(folders(kind), base)
        assert sorted(read) == sorted(load_file(folders(kind) / "model.safetensors"))


# --------------------------------------------------------------------------------- an output layer of its own


@pytest.mark.parametrize("road", ROADS)
def test_an_output_layer_of_its_own_is_read_though_the_config_ties_it(road: str, llama: Path, tmp_path: Path) -> None:
    stored = load_file(llama / "model.safetensors")
    folder = as_adapter(llama) if road == "adapter" else llama
    change_config(llama, tie_word_embeddings=True)
    assert not torch.equal(stored["lm_head.weight"], stored["model.embed_tokens.weight"])
    model = opened(folder) if road == "adapter" else ROADS[road](folder)
    assert torch.equal(model.get_output_embeddings().weight, stored["lm_head.weight"].float())
    assert torch.equal(model.get_input_embeddings().weight, stored["model.embed_tokens.weight"].float())
    # An export holds both, and says so to whoever opens it: transformers 4 would tie them.
    assert model.config.tie_word_embeddings is False
    if road == "full":
        model.save_pretrained(tmp_path / "export")
        assert json.loads((tmp_path / "export/config.json").read_text())["tie_word_embeddings"] is False


def test_an_output_layer_that_is_stored_twice_stays_tied(tmp_path: Path) -> None:
    folder = saved_model(tmp_path, "Llama", tie_word_embeddings=True)
    change_weights(folder, lm_head__weight=load_file(folder / "model.safetensors")["model.embed_tokens.weight"].clone())
    model = opened(folder)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.tie_word_embeddings is True


# ------------------------------------------------------------------------------------ weights already quantized

QUANTIZED = {
    "GPTQ": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "AWQ": {"quant_method": "awq", "bits": 4, "group_size": 128},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "mxfp4": {"quant_method": "mxfp4"},
    "ModelOpt": {"quant_algo": "NVFP4"},
}


def refused_everywhere(folder: Path, *values: str) -> None:
    """Expect one line before training begins, and by every road of an evaluation."""
    ranks, settings = DistributedContext(0, 1, 0, CPU), settings_for(folder)
    for work in (
        lambda: check_weights(settings),
        lambda: opened(folder),
        lambda: opened(folder, "nf4"),
        lambda: model_in_shards(settings, dtype=torch.float32, config={}, ranks=ranks),
    ):
        with raises("model/already-quantized", *values) as error:
            work()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_folders_that_say_they_are_quantized_are_refused_before_training(kind: str, llama: Path) -> None:
    change_config(llama, quantization_config=QUANTIZED[kind])
    refused_everywhere(llama, str(llama), "original weights")
    adapter = llama.with_name("adapter")  # and so is an adapter over such a base
    write_adapter(iter(()), LORA, settings_for(llama), torch.float32, adapter)
    for work in (check_weights, lambda settings: pretrained_model(settings, dtype=torch.float32)):
        with raises("model/already-quantized"):
            work(settings_for(adapter))


@pytest.mark.parametrize(("base", "bits"), [("int8", 8), ("nf4", 4)])
def test_folders_that_bitsandbytes_wrote_are_refused_before_training(base: str, bits: int, llama: Path) -> None:
    opened(llama, base).save_pretrained(llama.with_name("small"))
    refused_everywhere(llama.with_name("small"), f"bitsandbytes in {bits} bits")


def test_quantized_tensors_are_seen_where_no_setting_says_so(llama: Path) -> None:
    (llama / "quantize_config.json").write_text('{"bits": 4}')
    refused_everywhere(llama, "quantize_config.json")
    (llama / "quantize_config.json").unlink()
    change_weights(llama, **{UP.replace(".", "__"): torch.ones(128, 64).to(torch.float8_e4m3fn)})
    with raises("model/already-quantized", UP, "float8_e4m3fn"):
        opened(llama)


# ----------------------------------------------------------------------------------------------------- adapters


def test_additions_that_are_not_those_of_the_file_are_refused(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = as_adapter(llama)
    opened(adapter)
    real = file_record.recording

    def spoiling(record: object, function: Callable[..., object]) -> Callable[..., object]:
        def spoiled(*args: object, **more: object) -> object:
            result = real(record, function)(*args, **more)
            model = result if isinstance(result, torch.nn.Module) else getattr(function, "__self__", None)
            if model is not None:
                for name, value in model.named_parameters():
                    if "layers.1" in name and "lora_B" in name:
                        value.data.view(-1)[3] += 1e-6
            return result

        return spoiled

    base = opened(llama)
    monkeypatch.setattr("laborllm_dist.models.lora.recording", spoiling)
    for work in (lambda: opened(adapter), lambda: merged(base, adapter)):
        with raises("model/adapter-differs-from-files", "layers.1.self_attn.q_proj.lora_B.weight"):
            work()


def test_tensors_of_an_adapter_without_a_place_in_its_base_are_named(llama: Path) -> None:
    adapter = as_adapter(llama)
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = torch.ones(4, 64)
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    for work in (lambda: opened(adapter), lambda: merged(opened(llama), adapter)):
        with raises("model/unexpected-adapter-tensors", "1", "layers.7"):
            work()


# ------------------------------------------------------------------------------------------------- over ranks


class _Counted(DistributedContext):
    """A rank that notes how many checksums it brings to each exchange with the other ranks."""

    def share(self, value: Any, kind: Any = None) -> list[Any]:
        brought.append(len(value) if isinstance(value, list) else 1)
        return [value]


brought: list[int] = []


@pytest.mark.parametrize("is_own", [False, True])
def test_all_ranks_bring_as_much_to_a_sum_whatever_they_hold(is_own: bool) -> None:
    for rank in range(2):
        whole = torch.ones(1)  # DeepSpeed gives it to the first rank alone
        mine = whole[rank:]
        model = nn.Module()
        model.scale = nn.Parameter(torch.empty(0))
        model.scale.ds_tensor, model.scale.ds_numel = mine, 1
        mine.status = SimpleNamespace(name="AVAILABLE")
        model.scale.partition_numel = lambda: 1
        record = FileRecord(torch.float32)
        if is_own:
            record.add_stretch("scale", (1,), mine, rank)
        else:
            record.add("scale", whole)
        setattr(model, RECORD, record)
        with contextlib.suppress(ModelError):  # one rank's sum is not that of both
            check_in_place(model, _Counted(rank, 2, rank, torch.device("cpu")))
    assert len(brought) == 4  # checksums, and whether something is wrong
    assert brought[:2] == brought[2:]
    brought.clear()


@pytest.mark.ranks
def test_shards_hold_what_lies_in_the_files_or_are_refused_on_every_rank(tmp_path: Path) -> None:
    program = str(PROJECT / "tests/programs/loaded_weights.py")
    text = run_well(program, [str(tmp_path / "models")], world_size=2, log=tmp_path / "log")
    lines = [line for line in text.splitlines() if ": " in line]
    of_case = {case: [line.partition(": ")[2] for line in lines if line.startswith(f"{case}: ")] for case in (
        *SHARDED_TYPES, *(f"{kind} scored" for kind in SHARDED_TYPES), "narrowed", "trained", "own head", "stored twice", "few layers", "spoiled", "cut wrongly"
    )}  # fmt: skip
    for case in (*SHARDED_TYPES, *(f"{kind} scored" for kind in SHARDED_TYPES), "narrowed", "trained"):
        assert of_case[case] == ["equal"] * 2
    assert of_case["own head"] == ["equal False"] * 2
    assert of_case["stored twice"] == ["True"] * 2
    (few, other) = of_case["few layers"]
    assert few == other
    assert "hold 9 tensors that the model of config.json has no place for, first model.layers.1." in few
    assert sorted(of_case["spoiled"])[0] == "left"
    assert f"{UP} on rank 1 is not what was read from the files" in sorted(of_case["spoiled"])[1]
    assert all("up_proj.weight on rank" in line for line in of_case["cut wrongly"])


def test_scales_of_a_last_block_that_is_cut_are_those_of_bitsandbytes() -> None:
    matrix = torch.randn(5, 33, generator=torch.Generator().manual_seed(3))
    record = FileRecord(torch.float32, "nf4")
    record.add("weight", matrix)
    _, state = quantize_4bit(matrix, quant_type="nf4")
    assert record.tensors["weight"].marks[0].scales == checksum(state.absmax.float())
