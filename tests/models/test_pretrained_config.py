"""Models as people have them: configurations of every kind, windows, scaled rotations, adapters; right, or one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from helpers.errors import raises
from helpers.models import settings_for
from helpers.processes import PROJECT
from helpers.runs import COMPUTE, settings_of, small_run

sys.path.insert(0, str(PROJECT / "benchmarks"))

from architectures import NUM_IDS, scores_by_hand, some_careers, tiny_model

from laborllm_dist.batching.batch import TokenIds, pack_batch
from laborllm_dist.distributed.context import DistributedContext
from laborllm_dist.errors import LaborError
from laborllm_dist.models import loading as model_module
from laborllm_dist.models.causal_lm import CareerLanguageModel
from laborllm_dist.models.dims import shape_of
from laborllm_dist.models.inference import TokenQueries, wrap_for_inference
from laborllm_dist.models.loading import check_fit, check_ids, check_packing, context_of, make_model, pretrained_model
from laborllm_dist.models.lora import with_adapter
from laborllm_dist.models.pretrained_config import attention_window, open_causal_config, set_attention_dropout
from laborllm_dist.models.tree_inference import Nodes, PrefixState
from laborllm_dist.planning.memory import MicroBatchShape, plan_memory
from laborllm_dist.planning.throughput import flops_per_token
from laborllm_dist.store.build import prepare_store

CPU = torch.device("cpu")
CAREERS = [ids for row in some_careers() for ids in row]


def saved(name: str, folder: Path, **changed: Any) -> Path:
    """Save a tiny model, and change its config.json."""
    tiny_model(name).save_pretrained(folder)
    return change(folder, **changed)


def change(folder: Path, **changed: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changed}))
    return folder


def opened(folder: Path) -> transformers.PreTrainedModel:
    return pretrained_model(settings_for(str(folder)), dtype=torch.float32).eval()


def packed_scores(model: torch.nn.Module, rows: list[list[TokenIds]], max_seq_length: int) -> torch.Tensor:
    with torch.no_grad():
        return CareerLanguageModel(model, COMPUTE).eval()(pack_batch(rows, max_seq_length))[1]


def test_rounding_of_large_logits_is_not_taken_for_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    direction = torch.nn.functional.normalize(torch.ones(model.config.n_embd), dim=0)
    with torch.no_grad():  # all logits around -100, as those of GPT-2 are
        model.transformer.wte.weight.add_(direction)
        model.transformer.ln_f.bias.add_(-100 * direction)
    model, alone = model.to(torch.bfloat16), model_module._scores_alone

    def by_another_kernel(*arguments: Any) -> tuple[torch.Tensor, float]:
        scores_T, largest = alone(*arguments)
        return scores_T + off_by * (torch.arange(len(scores_T)) == len(scores_T) // 2), largest

    monkeypatch.setattr(model_module, "_scores_alone", by_another_kernel)
    off_by = 0.5  # one last bit
    check_packing(model, device=CPU, longest=32)
    off_by = 4.0
    with raises("model/packed-careers-interact"):
        check_packing(model, device=CPU, longest=32)


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
def test_an_attention_that_config_json_asks_for_need_not_be_installed(name: str, tmp_path: Path) -> None:
    model = opened(saved("llama", tmp_path, **{name: "flash_attention_2"}))
    assert model.config._attn_implementation == "sdpa"


def one_line(error: BaseException) -> str:
    text = str(error)
    assert text and "\n" not in text.strip()
    return text


@pytest.mark.parametrize(
    "name", ["bloom", "cohere", "falcon, ALiBi", "gemma2", "gpt2", "granite", "mamba", "mpt", "qwen3"]
)
def test_branches_are_scored_as_their_texts_alone(name: str) -> None:
    """Two levels of nodes after parts of two careers that share a row, in float64."""
    model = tiny_model(name).double()
    one, other = (np.arange(start, start + size, dtype=np.int32) for start, size in ((3, 9), (40, 6)))
    inference = wrap_for_inference(model, COMPUTE)
    prefix = PrefixState(pack_batch([[one, other]], 20))
    texts = [one[:7], one, other]
    slots = torch.tensor([6, 8, 14])
    log_probs = [inference.edges(prefix, None, slots, TokenQueries(torch.arange(3), torch.tensor([100, 101, 102])))]
    prefixes_N3 = np.array([[0, 0, 7], [0, 0, 9], [0, 9, 15]])
    first = Nodes(np.array([100, 101, 102]), np.array([7, 9, 6]), prefixes_N3, np.array([[0], [1], [2]]))
    log_probs.append(
        inference.edges(prefix, first, torch.arange(3), TokenQueries(torch.arange(3), torch.tensor([200, 201, 202])))
    )
    second = Nodes(np.array([200, 202]), np.array([8, 7]), prefixes_N3[[0, 2]], np.array([[0, 3], [2, 4]]))
    log_probs.append(
        inference.edges(prefix, second, torch.arange(2), TokenQueries(torch.arange(2), torch.tensor([7, 8])))
    )
    paths = [[100], [101], [102], [100, 200], [101, 201], [102, 202], [100, 200, 7], [102, 202, 8]]
    by_text = [texts[which] for which in (0, 1, 2, 0, 1, 2, 0, 2)]
    model.set_attn_implementation("sdpa" if name in ("gpt2", "qwen3", "cohere", "granite") else "eager")
    expected = [
        scores_by_hand(model, [np.concatenate([text, path]).astype(np.int32)])[-1]
        for text, path in zip(by_text, paths, strict=True)
    ]
    assert torch.stack(expected).std() > 0.1
    torch.testing.assert_close(
        torch.cat(log_probs).double(), torch.stack(expected), rtol=0, atol=1e-6
    )  # some take softmax in fp32


def test_padding_longer_than_learned_positions_is_no_error() -> None:
    model = tiny_model("gpt2")  # of 96 positions
    scores = packed_scores(model, [[CAREERS[0]], [CAREERS[1]]], 200)
    torch.testing.assert_close(scores.double(), scores_by_hand(model, CAREERS[:2]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "dropouts"),
    [("gpt2", ["attn_pdrop"]), ("gptj", ["attn_pdrop"]), ("gpt_bigcode", ["attn_pdrop"]), ("bloom", ["attention_dropout"]), ("llama", ["attention_dropout"])],
)  # fmt: skip
def test_the_dropout_of_attention_reaches_the_name_that_a_model_has_for_it(name, dropouts, tmp_path: Path) -> None:
    config = open_causal_config(str(saved(name, tmp_path)))
    set_attention_dropout(config, 0.25)
    assert [getattr(config, dropout) for dropout in dropouts] == [0.25]
    model = pretrained_model(settings_for(str(tmp_path), attention_dropout=0.25), dtype=torch.float32)  # type: ignore[arg-type]
    assert [getattr(model.config, dropout) for dropout in dropouts] == [0.25]


def test_a_model_that_knows_no_dropout_of_attention_refuses_one_and_takes_none(tmp_path: Path) -> None:
    folder = saved("mpt", tmp_path)
    opened(folder)
    with raises("model/attention-dropout-unsupported", "mpt", "0.25") as error:
        set_attention_dropout(open_causal_config(str(folder)), 0.25)
    one_line(error.value)
    set_attention_dropout(open_causal_config(str(saved("mamba", tmp_path / "mamba"))), 0.25)


def test_a_model_that_cannot_compute_layers_again_refuses_gradient_checkpointing(tmp_path: Path) -> None:
    sizes = {"n_embd": 32, "dff": 64, "n_layer": 1, "n_head": 2, "n_positions": 96, "vocab_size": NUM_IDS}
    transformers.CTRLLMHeadModel(transformers.CTRLConfig(**sizes)).save_pretrained(tmp_path)
    overrides = [
        "model=pretrained",
        f"model.path={tmp_path}",
        "tokenizer=pretrained",
        "zero=stage0",
        "zero.precision=fp32",
    ]
    make_model(settings_of(overrides), DistributedContext(0, 1, 0, CPU), num_ids=NUM_IDS)
    with raises("model/gradient-checkpointing-unsupported", "ctrl"):
        make_model(settings_of([*overrides, "compute=large"]), DistributedContext(0, 1, 0, CPU), num_ids=NUM_IDS)


@pytest.mark.parametrize(
    ("name", "changed", "window"),
    [
        ("mistral", {"sliding_window": 0}, None),
        ("mistral", {"sliding_window": None}, None),
        ("mistral", {"sliding_window": 16}, 16),
        ("qwen2", {"sliding_window": 16, "use_sliding_window": False}, None),
        ("qwen2", {"sliding_window": 16, "use_sliding_window": True, "layer_types": ["full_attention"] * 2}, None),
        ("qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 2, "layer_types": None}, None),
        ("qwen2", {"sliding_window": 16, "use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]}, 16),
        ("gemma2", {"sliding_window": 0}, 96),
        ("phi3", {"sliding_window": 0}, None),
        ("qwen2_moe", {}, None),
    ],
)  # fmt: skip
def test_a_window_is_what_the_layers_have(name: str, changed: dict[str, Any], window, tmp_path: Path) -> None:
    """Scores of careers that no window cuts are those of plain transformers under a configuration without windows."""
    folder = saved(name, tmp_path, **changed)
    assert attention_window(open_causal_config(str(folder))) == window
    assert context_of(settings_for(str(folder))) == min(96, window or 96)
    model = opened(folder)
    short = [ids[:15] for ids in CAREERS]
    scores = packed_scores(model, [short[:3], short[3:]], 56)
    if name != "qwen2_moe":
        change(folder, sliding_window=96 if name == "gemma2" else None)
    if name == "qwen2":
        change(folder, use_sliding_window=False, layer_types=None)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(scores.double(), scores_by_hand(plain, short), rtol=0, atol=1e-5)


ROTATIONS = {
    "longrope": {
        "rope_type": "longrope", "rope_theta": 5000.0, "original_max_position_embeddings": 48, "factor": 2.0,
        "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
    },
    "dynamic": {"rope_type": "dynamic", "rope_theta": 5000.0, "factor": 4.0},
}  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_longrope_scores_do_not_hang_on_the_row_and_longer_careers_are_refused(name: str, tmp_path: Path) -> None:
    """Rows of 56 and of 96 tokens with padding of more than the original 48; a career of 60 is too long."""
    rope = ROTATIONS["longrope"]
    folder = saved(name, tmp_path, rope_parameters=rope, original_max_position_embeddings=48)
    model = opened(folder)
    by_hand = scores_by_hand(opened(folder), CAREERS[:2])
    for length in (64, 96, 160):
        scores = packed_scores(model, [[CAREERS[0], CAREERS[1]]], length)
        torch.testing.assert_close(scores.double(), by_hand, rtol=0, atol=1e-5)
    long = np.arange(2, 62, dtype=np.int32)
    with_long = packed_scores(model, [[CAREERS[0], CAREERS[1], long]], 160)[: len(by_hand)]
    assert (with_long - by_hand).abs().max() > 0.01  # what would be scored, if it were not refused
    assert context_of(settings_for(str(folder))) == 48
    check_packing(model, device=CPU, longest=48)


def test_careers_past_the_original_context_are_refused_by_name(tmp_path: Path) -> None:
    settings = settings_of(small_run(tmp_path))
    store = prepare_store(settings)
    longest = max(int(store.careers(split).num_tokens().max()) for split in ("train", "validation", "test"))
    config = transformers.LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=8 * longest,
        rope_parameters={**ROTATIONS["longrope"], "original_max_position_embeddings": longest},
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    check_fit(model, store)
    check_packing(model, device=CPU, longest=longest)
    model.config.rope_parameters["original_max_position_embeddings"] = longest - 1
    with raises(
        "sequence-too-long/career-too-long",
        "context is",
        longest - 1,
        "beyond which its rotation changes with the longest",
    ):
        check_fit(model, store)


def test_packing_is_checked_at_real_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose rotation changes past 20 tokens, and says nothing of it: twelve tokens would not show it."""

    class Changing(transformers.StableLmForCausalLM):
        def forward(self, input_ids, position_ids=None, **more):  # type: ignore[no-untyped-def]
            positions = torch.arange(input_ids.shape[1])[None] if position_ids is None else position_ids
            scale = 2 if int(positions.max()) >= 20 else 1
            return super().forward(input_ids=input_ids, position_ids=positions * scale, **more)

    plain = tiny_model("stablelm")
    model = Changing(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    check_packing(plain, device=CPU, longest=40)
    check_packing(model, device=CPU)
    with raises("model/packed-careers-interact") as error:
        check_packing(model, device=CPU, longest=40)
    one_line(error.value)


def test_a_model_that_sees_what_comes_after_is_refused() -> None:
    config = transformers.BertConfig(
        vocab_size=NUM_IDS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=96, is_decoder=False, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(1)
    with raises("model/packed-careers-interact", "bert") as error:
        check_packing(transformers.BertLMHeadModel(config).eval(), device=CPU, longest=40)
    one_line(error.value)


NONSENSE: dict[str, list[Any]] = {
    "num_hidden_layers": [-1, 0, 100_000, "two", None, 2.5, [2]],
    "num_attention_heads": [0, -4, 5, 10**12, "x"],
    "num_key_value_heads": [0, 3, -1],
    "hidden_size": [0, -32, 33, "wide", 10**15],
    "intermediate_size": [-1, None, {}],
    "vocab_size": [0, -1, "many", 2**40],
    "head_dim": [0, -8, 7],
    "max_position_embeddings": [0, -1, "long"],
    "hidden_act": ["nothing", 3],
    "rope_parameters": [{"rope_type": "nothing"}, [], "x", {"rope_type": "linear"}, {"rope_theta": "x"}],
    "model_type": ["nothing", None, 3, "t5", "clip"],
    "layer_types": [["nothing", "nothing"], ["full_attention"], 3],
    "quantization_config": [{"quant_method": "gptq", "bits": 4}, {"quant_method": "awq"}, {"quant_method": "x"}, 3],
    "rms_norm_eps": ["x"],
    "architectures": ["x", 3],
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_in_config_json_is_one_line_or_does_not_matter(name: str, tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    original = (folder / "config.json").read_text()
    right = scores_by_hand(tiny_model("llama"), CAREERS)
    for value in NONSENSE[name]:
        (folder / "config.json").write_text(original)
        change(folder, **{name: value})
        for use in (lambda: opened(folder), lambda: shape_of(settings_for(str(folder)), num_ids=1), lambda: context_of(settings_for(str(folder)))):  # fmt: skip
            try:
                result = use()
            except LaborError as error:
                # The reason that transformers gives is quoted whole; it alone takes up to 600 letters.
                assert len(one_line(error)) < 1_000
                continue
            if isinstance(result, transformers.PreTrainedModel):
                actual = packed_scores(result, some_careers(), 80)
                torch.testing.assert_close(actual.double(), right, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "3", '"x"', "{", "{}", '{"model_type": "llama", "hidden_size": 1e999}']
)
def test_a_config_json_that_is_no_configuration_is_one_line(text: str, tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    (folder / "config.json").write_text(text)
    for use in (lambda: opened(folder), lambda: shape_of(settings_for(str(folder)), num_ids=1), lambda: context_of(settings_for(str(folder)))):  # fmt: skip
        with pytest.raises(LaborError) as error:
            use()
        one_line(error.value)


def test_code_of_a_model_folder_is_neither_run_nor_asked_about(tmp_path: Path, monkeypatch) -> None:
    folder = saved("llama", tmp_path, model_type="ours", auto_map={"AutoConfig": "ours.Config"})
    (folder / "ours.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question"))
    for use in (lambda: opened(folder), lambda: shape_of(settings_for(str(folder)), num_ids=1), lambda: context_of(settings_for(str(folder)))):  # fmt: skip
        with pytest.raises(LaborError) as error:
            use()
        one_line(error.value)
    assert not (tmp_path / "ran").exists()


ADAPTERS: dict[str, tuple[dict[str, Any], str | None]] = {
    "lora": ({}, None),
    "embeddings": ({"modules_to_save": ["embed_tokens"]}, None),
    "embeddings and head": ({"modules_to_save": ["embed_tokens", "lm_head"]}, None),
    "head": ({"modules_to_save": ["lm_head"]}, None),
    "norm": ({"modules_to_save": ["norm"]}, None),
    "lora of embeddings": ({"target_modules": ["q_proj", "embed_tokens"]}, None),
    "lora of the head": ({"target_modules": ["q_proj", "lm_head"]}, None),
    "biases": ({"bias": "lora_only"}, None),
    "rank-stabilized": ({"use_rslora": True}, None),
    "DoRA": ({"use_dora": True}, "DoRA"),
    "tokens": ({"trainable_token_indices": [3, 5, 200]}, "embeddings of single tokens"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_scores_as_under_peft_or_is_refused_in_one_line(kind: str, is_tied: bool, tmp_path: Path) -> None:
    options, unsupported = ADAPTERS[kind]
    base, adapter = saved("llama", tmp_path / "base", tie_word_embeddings=is_tied), tmp_path / "adapter"
    if is_tied:
        transformers.AutoModelForCausalLM.from_pretrained(base).save_pretrained(base)  # one matrix in the file
    config = peft.LoraConfig(**{"r": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], **options})
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(adapter)
    if unsupported is not None:
        with raises("model/unsupported-adapter-kind", adapter, unsupported) as raised:
            opened(adapter)
        one_line(raised.value)
        return
    opened_model = opened(adapter)
    check_ids(opened_model, NUM_IDS)
    with raises("model/vocabulary-exceeds-embeddings", "321", "320"):
        check_ids(opened_model, NUM_IDS + 1)
    scores = packed_scores(opened_model, some_careers(), 80)
    torch.testing.assert_close(scores.double(), scores_by_hand(model.eval(), CAREERS), rtol=0, atol=1e-5)


def test_lora_learns_in_layers_that_are_no_nn_linear() -> None:
    adapter = settings_of(["adapter=lora", "adapter.rank=4", "adapter.target_modules=[c_attn,c_proj]"]).adapter
    model = with_adapter(tiny_model("gpt2"), adapter, seed=1)
    learned = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    # Of two layers: c_attn 32 -> 96, c_proj of attention 32 -> 32 and of the feed-forward layer 128 -> 32.
    assert learned == 2 * 4 * (32 + 96 + 32 + 32 + 128 + 32)


# Sizes as published with the models; parameters as their pages and papers say.
PUBLISHED: dict[str, tuple[dict[str, Any], int, int]] = {
    "Mixtral-8x7B": (
        {"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
         "vocab_size": 32000, "max_position_embeddings": 32768},
        46_702_792_704, 12_748_587_008,
    ),
    "Qwen3-0.6B": (
        {"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
         "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
         "tie_word_embeddings": True, "max_position_embeddings": 40960},
        596_049_920, 595_984_384,
    ),
    "Pythia-1B": (
        {"model_type": "gpt_neox", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
         "num_attention_heads": 8, "vocab_size": 50304, "max_position_embeddings": 2048},
        1_011_781_632, 908_328_960,
    ),
    "Mistral-Nemo": (
        {"model_type": "mistral", "hidden_size": 5120, "intermediate_size": 14336, "num_hidden_layers": 40,
         "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072,
         "sliding_window": None, "max_position_embeddings": 131072},
        12_247_782_400, 11_576_279_040,
    ),
    "GPT-2": (
        {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024},
        124_439_808, 123_532_032,
    ),
    "Qwen1.5-MoE-A2.7B": (
        {"model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
         "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 60, "num_experts_per_tok": 4,
         "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "vocab_size": 151936},
        14_315_784_192, 2_377_760_768,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_planned_parameters_are_those_published(name: str, tmp_path: Path) -> None:
    config, num_parameters, num_matmul_params = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = shape_of(settings_for(str(tmp_path)), num_ids=1)
    assert shape.num_parameters == num_parameters
    assert shape.num_matmul_params == num_matmul_params


def test_memory_and_work_of_experts_are_of_all_held_and_of_those_a_token_passes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["Mixtral-8x7B"][0]))
    settings = settings_of(["+experiment=pooled_7b", "zero=stage3_bf16", f"model.path={tmp_path}"])
    shape = shape_of(settings.model, num_ids=1)
    memory = plan_memory(shape, settings, MicroBatchShape(1, 512), world_size=8, process_bytes=None)
    assert memory.device["weights"] == pytest.approx(2 * 46_702_792_704 / 8)
    assert memory.device["optimizer"] == pytest.approx(12 * 46_702_792_704 / 8)
    assert flops_per_token(shape, settings.adapter, attended=0.0) == 6 * 12_748_587_008
    assert shape.intermediate_size == 2 * 14336


def test_a_plan_counts_attention_weights_and_whole_logits_where_a_model_holds_them(tmp_path: Path) -> None:
    settings = settings_of(["+experiment=pooled_7b", "compute.gradient_checkpointing=false", "zero.precision=fp32"])
    gemma = shape_of(settings_for(str(saved("gemma2", tmp_path / "gemma2"))), num_ids=1)
    llama = shape_of(settings_for(str(saved("llama", tmp_path / "llama"))), num_ids=1)
    held = [
        plan_memory(shape, settings, MicroBatchShape(2, 64), world_size=1, process_bytes=0.0).device
        for shape in (gemma, llama)
    ]
    assert held[0]["activations"] > 2 * 2 * 4 * 64**2 * 12  # layers x rows x heads x pairs x bytes
    assert held[0]["logits"] > 128 * 320 * 16 > held[1]["logits"] - 4 * 320 * 32 - 128 * 32 * 8
