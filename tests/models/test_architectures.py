"""Tiny models of every architecture against plain transformers and torch: the findings of benchmarks/architectures.py."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from architectures import (
    ARCHITECTURES,
    MOST_LOGIT,
    MOST_NATS,
    MOST_RELATIVE,
    Findings,
    is_right,
    some_careers,
    table,
    tiny_model,
)
from helpers.processes import ON_CPU, PROJECT
from helpers.runs import COMPUTE

from laborllm_dist.batching.batch import pack_batch
from laborllm_dist.checkpoint.export import export_checkpoint, rope_of_transformers_4
from laborllm_dist.checkpoint.manifest import CheckpointManifest
from laborllm_dist.models.causal_lm import CareerLanguageModel
from laborllm_dist.models.varlen_attention import MODEL_TYPES

NAMED = [
    "gpt2",
    "gptj",
    "gpt_neox",
    "bloom",
    "opt",
    "mpt",
    "falcon",
    "gemma",
    "gemma2",
    "phi",
    "phi3",
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen2_moe",
    "granite",
    "stablelm",
    "olmo2",
    "cohere",
    "smollm3",
]


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Measure all architectures, one after the other, in a process of its own."""
    file = tmp_path_factory.mktemp("architectures") / "found.json"
    command = [sys.executable, str(PROJECT / "benchmarks/architectures.py"), "--json", str(file)]
    command += ["--out", str(file.parent)]
    done = subprocess.run(command, env={**os.environ, **ON_CPU}, capture_output=True, text=True, timeout=590)
    assert file.is_file(), done.stderr[-2000:]
    measured: dict[str, dict[str, Any]] = json.loads(file.read_text())
    assert list(measured) == list(ARCHITECTURES), done.stderr[-2000:]
    assert done.stdout.splitlines()[-len(measured) - 2 :] == list(table({name: Findings(**each) for name, each in measured.items()}))  # fmt: skip
    assert done.returncode == 0
    return measured


def test_the_architectures_are_those_people_have() -> None:
    assert set(NAMED) <= set(ARCHITECTURES)


@pytest.mark.ranks
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_scored_trained_exported_and_planned_as_by_hand(name: str, findings) -> None:
    """Log-likelihoods in packed rows, a step at ZeRO 0, 2 and 3, an export and a plan, against transformers and torch."""
    measured = findings[name]
    assert measured["scored"] <= MOST_NATS
    assert measured["trained"].keys() == {"0", "2", "3"}
    assert max(measured["trained"].values()) <= MOST_RELATIVE
    assert measured["exported"] <= MOST_LOGIT
    assert measured["planned"] == measured["counted"]
    if ARCHITECTURES[name][0] in MODEL_TYPES:
        assert measured["sharded"] <= MOST_NATS
    else:
        assert "placement=partitioned knows models of type" in measured["sharded"]
        assert "\n" not in measured["sharded"]


def test_the_table_says_what_is_refused_and_what_is_wrong() -> None:
    good = Findings(1e-7, {"0": 1e-8, "2": 1e-8, "3": 1e-8}, 1e-7, 1e-6, 10, 10)
    bad = Findings("no such model", {"0": 1e-8, "2": 0.01, "3": "refused"}, 0.5, 1e-6, 7, 10)
    lines = list(table({"qwen3": good, "other": bad}))
    assert lines[2] == "| qwen3 | yes | 0, 2, 3 | yes | yes | yes | Qwen 3 |"
    assert lines[3] == "| other | refused | 0 | off by 0.5 | yes | 7 of 10 | not tried |"
    assert is_right(good) and not is_right(bad)


LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 48,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 24}
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 48,
    "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.1, 2.2, 2.3],
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 9000.0, "factor": 4.0}


@pytest.mark.parametrize(
    ("model_type", "rope", "older"),
    [
        ("llama", {"rope_type": "default", "rope_theta": 5000.0}, {"rope_theta": 5000.0, "rope_scaling": None}),
        ("llama", LINEAR, {"rope_theta": 9000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
        ("llama", {**LINEAR, "rope_type": "dynamic"}, {"rope_theta": 9000.0, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}),
        ("llama", LLAMA_3, {"rope_theta": 500000.0, "rope_scaling": {key: value for key, value in LLAMA_3.items() if key != "rope_theta"}}),
        ("qwen2", YARN, {"rope_theta": 1e6, "rope_scaling": {key: value for key, value in YARN.items() if key != "rope_theta"}}),
        ("phi3", {**LONG, "partial_rotary_factor": 1.0}, {
            "rope_theta": 10000.0, "partial_rotary_factor": 1.0, "original_max_position_embeddings": 48,
            "rope_scaling": {"type": "longrope", "short_factor": LONG["short_factor"], "long_factor": LONG["long_factor"]},
        }),
        ("stablelm", {"rope_type": "default", "rope_theta": 700.0, "partial_rotary_factor": 0.5}, {
            "rope_theta": 700.0, "partial_rotary_factor": 0.5, "rope_scaling": None,
        }),
        ("gpt_neox", {"rope_type": "default", "rope_theta": 700.0, "partial_rotary_factor": 0.5}, {
            "rope_theta": 700.0, "rotary_emb_base": 700.0, "rotary_pct": 0.5, "rope_scaling": None,
        }),
        ("gemma3_text", {"full_attention": LINEAR, "sliding_attention": {"rope_type": "default", "rope_theta": 300.0}}, {
            "rope_theta": 9000.0, "rope_local_base_freq": 300.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        }),
    ],
)  # fmt: skip
def test_an_export_tells_transformers_4_and_5_the_same_rotation(model_type, rope, older, tmp_path: Path) -> None:
    """The entries are those that transformers 4.57 reads; transformers 5 reads the same rotation with them as without."""
    sizes = {
        "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 96, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None, "num_key_value_heads": 4,
    }  # fmt: skip
    if model_type == "phi3":
        sizes["original_max_position_embeddings"] = 48
    layers = (
        {"layer_types": ["sliding_attention", "full_attention"], "head_dim": 16} if "full_attention" in rope else {}
    )
    config = transformers.AutoConfig.for_model(
        model_type, **sizes, **layers, rope_parameters=json.loads(json.dumps(rope))
    )
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    manifest = CheckpointManifest(step=1, run="", world_size=1, stage=0, state={}, files={})
    weights = dict(model.named_parameters())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("laborllm_dist.checkpoint.export.full_weights", lambda *_: weights.items())
        export_checkpoint(tmp_path, manifest, model.config, tokenizer, tmp_path / "export")
    written = json.loads((tmp_path / "export/config.json").read_text())
    assert {name: written[name] for name in older} == older
    ids_1T = torch.arange(2, 42)[None]
    with torch.no_grad():
        opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
        assert torch.equal(opened(input_ids=ids_1T).logits, model(input_ids=ids_1T).logits)


def test_an_older_form_that_transformers_5_would_read_as_another_rotation_is_not_written(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(hidden_size=32, num_attention_heads=4, rope_parameters=dict(LINEAR))
    manifest = CheckpointManifest(step=1, run="", world_size=1, stage=0, state={}, files={})
    (tmp_path / "tokenizer").mkdir()
    other = {"rope_theta": 9000.0, "rope_scaling": {"rope_type": "linear", "factor": 3.0}}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("laborllm_dist.checkpoint.export.rope_of_transformers_4", lambda _: other)
        patched.setattr("laborllm_dist.checkpoint.export.full_weights", lambda *_: {"w": torch.ones(1)}.items())
        export_checkpoint(tmp_path, manifest, config, tmp_path / "tokenizer", tmp_path / "export")
    assert json.loads((tmp_path / "export/config.json").read_text())["rope_scaling"] is None
    assert transformers.AutoConfig.from_pretrained(tmp_path / "export").rope_parameters == LINEAR


def test_a_model_without_a_rotation_has_no_entries_of_one() -> None:
    assert rope_of_transformers_4({"rope_parameters": None}) == {} == rope_of_transformers_4({})


def test_one_career_a_row_holds_what_the_packed_rows_hold() -> None:
    batch = pack_batch(some_careers(), 80)
    padded = batch.one_a_row(batch.scored_N)
    assert padded.token_ids_ST.shape == (5, 40) and padded.mask_ST.sum(dim=1).tolist() == [40, 23, 31, 17, 2]
    for row, ids in enumerate(ids for careers in some_careers() for ids in careers):
        assert padded.token_ids_ST[row, : len(ids)].tolist() == ids.tolist()
    assert torch.equal(padded.targets_ST[padded.targets_ST >= 0], batch.targets_BT.flatten()[batch.scored_N])
    slots = torch.tensor([0, 41, 81, 129])
    assert (
        padded.at_slots(padded.token_ids_ST[..., None], slots)[:, 0].tolist()
        == batch.token_ids_BT.flatten()[slots].tolist()
    )
    assert pack_batch([], 8).one_a_row(torch.empty(0, dtype=torch.int64)).token_ids_ST.shape == (1, 8)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])  # own head; a block mask; one career a row
def test_weights_of_tokens_weigh_their_gradients(name: str) -> None:
    rows = some_careers()
    batch = pack_batch(rows, 72)
    weights_BT = torch.rand(batch.targets_BT.shape, generator=torch.Generator().manual_seed(2))
    packed, plain = tiny_model(name), tiny_model(name)
    total, _ = CareerLanguageModel(packed, COMPUTE)(dataclasses.replace(batch, weights_BT=weights_BT))
    total.backward()
    for row, careers in enumerate(rows):
        start = 0
        for ids in careers:
            ids_T = torch.from_numpy(ids).long()
            log_p_TV = plain(input_ids=ids_T[None]).logits[0, :-1].log_softmax(-1)
            own = log_p_TV.gather(1, ids_T[1:, None])[:, 0] * weights_BT[row, start : start + len(ids) - 1]
            own.sum().backward()
            start += len(ids)
    for (label, actual), expected in zip(packed.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-3, atol=1e-4, msg=label)


def test_the_model_of_an_architecture_depends_on_every_tensor() -> None:
    """Else a tensor that is left out would not be seen: each one, when changed, changes the log-likelihoods."""
    for name in ("gptj", "phi", "opt", "qwen2_moe"):
        model = tiny_model(name)
        ids_1T = torch.arange(2, 90)[None]
        with torch.no_grad():
            before = model(input_ids=ids_1T).logits.log_softmax(-1)
            for tensor, parameter in model.named_parameters():
                if "k_proj.bias" in tensor:
                    continue  # a constant that all keys share leaves the softmax as it is
                saved = parameter.clone()
                parameter.add_(torch.randn_like(parameter))
                assert (model(input_ids=ids_1T).logits.log_softmax(-1) - before).abs().max() > 1e-4, (name, tensor)
                parameter.copy_(saved)
