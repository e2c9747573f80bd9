"""Which models can be scored, trained, sharded, exported and planned? A Markdown table over tiny random models.

    python benchmarks/architectures.py [--json FILE] [TYPE ...]

Each model has random weights in all tensors, so that a bias, a scale or a rotation that is left out shows. It is
compared with plain transformers and torch, career by career: log-likelihoods in packed rows, whole and in ZeRO-3
shards; a step of AdamW at ZeRO stages 0, 2 and 3; logits of its export; parameters of its plan. One process, no GPU;
five seconds a type.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from records import RESULTS, Record, RecordFile
from torch import Tensor, nn

from laborllm_dist.batching.batch import TokenIds, pack_batch
from laborllm_dist.checkpoint.export import export_checkpoint
from laborllm_dist.checkpoint.load import full_weights
from laborllm_dist.checkpoint.manifest import read_manifest
from laborllm_dist.checkpoint.save import checkpoint_folder, save_checkpoint
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.distributed.context import DistributedContext, init_distributed
from laborllm_dist.distributed.zero_engine import make_engine
from laborllm_dist.errors import ModelError
from laborllm_dist.models.dims import shape_of
from laborllm_dist.models.inference import load_for_inference
from laborllm_dist.models.loading import check_packing, make_model

NUM_IDS, CONTEXT, STAGES, LEARNING_RATE = 320, 96, (0, 2, 3), 1e-2
MOST_NATS, MOST_LOGIT, MOST_RELATIVE = 1e-5, 1e-4, 1e-6  # fp32: rounding of a forward, of an export, of a step

MARKS: Mapping[str, Any] = {"bos_token_id": 0, "eos_token_id": 1}
LAYERS: Mapping[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT, "pad_token_id": None, **MARKS,
}  # fmt: skip
SHARED: Mapping[str, Any] = {**LAYERS, "num_key_value_heads": 2, "rope_parameters": {"rope_theta": 5000.0}}
PARTIAL: Mapping[str, Any] = {**SHARED, "rope_parameters": {"rope_theta": 5000.0, "partial_rotary_factor": 0.5}}
GPT: Mapping[str, Any] = {
    "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **MARKS,
}  # fmt: skip
FALCON: Mapping[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **MARKS}
ARCHITECTURES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, **MARKS}),
    "cohere": ("cohere", {**SHARED, "logit_scale": 0.25, "use_qk_norm": True}),
    "falcon": ("falcon", FALCON),
    "falcon, ALiBi": ("falcon", {**FALCON, "alibi": True, "multi_query": False, "parallel_attn": False}),
    "gemma": ("gemma", {**SHARED, "head_dim": 16}),
    "gemma2": ("gemma2", {
        **SHARED, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64, "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    }),
    "gpt2": ("gpt2", GPT),
    "gpt_bigcode": ("gpt_bigcode", GPT),
    "gpt_neox": ("gpt_neox", {**LAYERS, "rope_parameters": {"rope_theta": 5000.0, "partial_rotary_factor": 0.5}}),
    "gptj": ("gptj", {**GPT, "rotary_dim": 4}),
    "granite": ("granite", {
        **SHARED, "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5,
        "attention_multiplier": 0.3,
    }),
    "llama": ("llama", SHARED),
    "mamba": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, **MARKS}),
    "mistral": ("mistral", {**SHARED, "head_dim": 16, "sliding_window": None}),
    "mistral, window": ("mistral", {**SHARED, "sliding_window": 64}),
    "mixtral": ("mixtral", {**SHARED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "mpt": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": CONTEXT, **MARKS}),
    "olmo2": ("olmo2", SHARED),
    "opt": ("opt", {**LAYERS, "ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0, "pad_token_id": 1}),
    "phi": ("phi", PARTIAL),
    "phi3": ("phi3", SHARED),
    "qwen2": ("qwen2", {**SHARED, "sliding_window": 16, "use_sliding_window": False}),
    "qwen2_moe": ("qwen2_moe", {
        **SHARED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
    }),
    "qwen3": ("qwen3", {**SHARED, "head_dim": 16}),
    "smollm3": ("smollm3", {**SHARED, "num_hidden_layers": 4, "no_rope_layer_interval": 4}),
    "stablelm": ("stablelm", {**PARTIAL, "use_qkv_bias": True}),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Findings:
    """What was measured of one architecture: largest errors, or the line with which it was refused.

    `scored`, `sharded`: nats of a token. `trained`: by stage, of all weights, relative. `exported`: of a logit.
    `planned`, `counted`: parameters.
    """

    scored: float | str
    trained: dict[str, float | str]
    sharded: float | str
    exported: float | str
    planned: int | str
    counted: int


def tiny_model(name: str) -> transformers.PreTrainedModel:
    """Return a model with noise in every tensor, in evaluation mode."""
    model_type, sizes = ARCHITECTURES[name]
    config = transformers.AutoConfig.for_model(model_type, vocab_size=NUM_IDS, **sizes)
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def some_careers() -> list[list[TokenIds]]:
    """Return token ids of careers in two rows of at most 72 tokens."""
    draws = np.random.default_rng(0)
    return [[draws.integers(2, NUM_IDS, size).astype(np.int32) for size in row] for row in ((40, 23), (31, 17, 2))]


def scores_by_hand(model: nn.Module, careers: Sequence[TokenIds]) -> Tensor:
    """Return log p of every next token by the model's own logits in float64, each career in a forward of its own."""
    scores = []
    with torch.no_grad():
        for ids in careers:
            ids_T = torch.from_numpy(ids).long()
            log_p_TV = model(input_ids=ids_T[None]).logits[0, :-1].double().log_softmax(-1)
            scores.append(log_p_TV.gather(1, ids_T[1:, None])[:, 0])
    return torch.cat(scores)


@functools.cache
def _composed(*more: str) -> RunSettings:
    known = ["model=pretrained", "model.path=none", "tokenizer=pretrained", "zero.precision=fp32"]
    # With AdamW's usual epsilon, the first step is +-1 for the smallest gradient, whose sign is rounding.
    known += ["optimizer.epsilon=0.01", "optimizer.max_grad_norm=null"]
    return compose_settings(RunSettings, "run", [*known, *more])


def settings_for(folder: Path, *more: str) -> RunSettings:
    """Return settings of a run that fine-tunes the model in a folder."""
    settings = _composed(*more)
    return dataclasses.replace(settings, model=dataclasses.replace(settings.model, path=str(folder)))


def scored_error(folder: Path, placement: str, by_hand: Tensor, ranks: DistributedContext) -> float:
    """Return the largest difference of a log-likelihood in packed rows to that by hand."""
    settings = settings_for(folder)
    evaluation_settings = dataclasses.replace(settings.evaluation, placement=placement, precision="fp32")  # type: ignore[arg-type]
    model = load_for_inference(settings.model, evaluation_settings, settings.compute, ranks)
    if placement == "replicated":
        check_packing(model.hugging_face, device=model.device, longest=40)
    return float((model.scores(pack_batch(some_careers(), 80)) - by_hand).abs().max())


def plain_step(folder: Path) -> transformers.PreTrainedModel:
    """Return the model after a step of torch's AdamW, career by career."""
    model, optimizer_settings = (
        transformers.AutoModelForCausalLM.from_pretrained(folder),
        settings_for(folder).optimizer,
    )
    careers = [torch.from_numpy(ids).long() for row in some_careers() for ids in row]
    losses = [
        nn.functional.cross_entropy(model(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="sum")
        for ids in careers
    ]
    total = torch.stack(losses).sum()
    torch.autograd.backward(total / sum(len(ids) - 1 for ids in careers))
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    groups = [
        {"params": [each for each in parameters if each.dim() > 1], "weight_decay": optimizer_settings.weight_decay},
        {"params": [each for each in parameters if each.dim() <= 1], "weight_decay": 0.0},
    ]
    betas = (optimizer_settings.beta1, optimizer_settings.beta2)
    torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=betas, eps=optimizer_settings.epsilon).step()
    return model.eval()


def trained_error(folder: Path, stage: int, stepped: nn.Module, ranks: DistributedContext, export: Path) -> float:
    """Return the relative error of all weights after a step at a ZeRO stage; write the export of that step."""
    settings = settings_for(folder, f"zero=stage{stage}")
    model = make_model(settings, ranks, num_ids=NUM_IDS)
    config = model.hugging_face.config
    engine = make_engine(model, settings.zero, settings.optimizer, ranks)
    rows = some_careers()
    num_targets = sum(len(ids) - 1 for row in rows for ids in row)
    for row in rows:
        total = engine.forward(pack_batch([row], 72), is_last_pass=row is rows[-1])
        engine.backward(total, loss_weight=num_targets)
    engine.update(learning_rate=LEARNING_RATE)
    save_checkpoint(engine, export.parent, step=1, run="", state={})
    checkpoint = checkpoint_folder(export.parent, 1)
    manifest = read_manifest(checkpoint)
    tokenizer = export.parent / "tokenizer"
    tokenizer.mkdir()
    export_checkpoint(checkpoint, manifest, config, tokenizer, export)
    loaded, expected = dict(full_weights(checkpoint, manifest)), dict(stepped.named_parameters())
    if loaded.keys() != expected.keys():
        raise ModelError(f"other weights learn: {sorted(loaded.keys() ^ expected.keys())[:3]}")
    pairs = [(loaded[name].double(), expected[name].detach().double()) for name in expected]
    difference = sum(float((one - other).square().sum()) for one, other in pairs)
    return math.sqrt(difference / sum(float(other.square().sum()) for _, other in pairs))


def exported_error(export: Path, stepped: nn.Module) -> float:
    """Return the largest difference of a logit between an export, opened by transformers, and what was trained."""
    opened, ids_1T = transformers.AutoModelForCausalLM.from_pretrained(export), torch.arange(2, 42)[None]
    with torch.no_grad():
        return float((opened.eval()(input_ids=ids_1T).logits - stepped(input_ids=ids_1T).logits).abs().max())


def find(name: str, ranks: DistributedContext, folder: Path) -> Findings:
    """Measure an architecture; `folder` is empty."""
    model, saved = tiny_model(name), folder / "model"
    model.save_pretrained(saved)
    by_hand = scores_by_hand(model, [ids for row in some_careers() for ids in row])
    stepped = plain_step(saved)
    trained: dict[str, float | str] = {}
    for stage in STAGES:
        (folder / str(stage)).mkdir()
        export = folder / str(stage) / "export"
        trained[str(stage)] = _or_error(lambda: trained_error(saved, stage, stepped, ranks, export))  # noqa: B023
    return Findings(
        scored=_or_error(lambda: scored_error(saved, "replicated", by_hand, ranks)),
        trained=trained,
        sharded=_or_error(lambda: scored_error(saved, "sharded", by_hand, ranks)),
        exported=_or_error(lambda: exported_error(folder / "2/export", stepped)),
        planned=_or_error(lambda: shape_of(settings_for(saved).model, num_ids=NUM_IDS).num_parameters),
        counted=sum(parameter.numel() for parameter in model.parameters()),
    )


def _or_error(measure: Any) -> Any:
    try:
        return measure()
    except ModelError as error:
        return str(error)


def errors(findings: Findings) -> dict[str, float]:
    """Return the errors that were measured, where nothing was refused."""
    trained = {f"relative_error_of_a_step_at_ZeRO-{stage}": error for stage, error in findings.trained.items()}
    errors = {"scores_nats": findings.scored, "sharded_nats": findings.sharded, "exported_logits": findings.exported}
    return {name: error for name, error in {**errors, **trained}.items() if not isinstance(error, str)}


def is_right(findings: Findings) -> bool:
    """Return whether all that was not refused is right."""
    errors = [(findings.scored, MOST_NATS), (findings.sharded, MOST_NATS), (findings.exported, MOST_LOGIT)]
    errors += [(error, MOST_RELATIVE) for error in findings.trained.values()]
    return findings.planned in (findings.counted,) and all(
        isinstance(error, str) or error <= limit for error, limit in errors
    )


# Tokenizers published with models of these types, with which every shipped title ends at a token boundary
# (benchmarks/tokenizer_titles.py).
TOKENIZERS = {
    "gpt2": "GPT-2", "llama": "Llama-2, Llama-3, SmolLM2", "mistral": "Mistral v3",
    "qwen2": "Qwen 2.5", "qwen3": "Qwen 3",
}  # fmt: skip


def table(of_type: Mapping[str, Findings]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| model type | scored | trained at stages | sharded | exported | planned | tokenizer's titles |"
    yield "|---|---|---|---|---|---|---|"
    for name, findings in of_type.items():
        good = [stage for stage, error in findings.trained.items() if _verdict(error, MOST_RELATIVE) == "yes"]
        planned = "yes" if findings.planned == findings.counted else f"{findings.planned} of {findings.counted}"
        cells = [
            _verdict(findings.scored, MOST_NATS), ", ".join(good) or "no", _verdict(findings.sharded, MOST_NATS),
            _verdict(findings.exported, MOST_LOGIT), planned, TOKENIZERS.get(name, "not tried"),
        ]  # fmt: skip
        yield f"| {name} | {' | '.join(cells)} |"


def _verdict(error: float | str, limit: float) -> str:
    if isinstance(error, str):
        return "refused"
    return "yes" if error <= limit else f"off by {error:.1g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", default=list(ARCHITECTURES), metavar="TYPE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="of the records")
    args = parser.parse_args()
    if unknown := sorted(set(args.types) - set(ARCHITECTURES)):
        parser.error(f"unknown type {unknown[0]}; there are: {'; '.join(ARCHITECTURES)}")
    of_type: dict[str, Findings] = {}
    file = RecordFile.begin("architectures", "Architectures against plain transformers and torch", args.out)
    with (
        init_distributed(compose_settings(RunSettings, "run", []).ranks) as ranks,
        tempfile.TemporaryDirectory() as folder,
    ):
        for number, name in enumerate(args.types):
            place = Path(folder) / str(number)
            place.mkdir()
            of_type[name] = find(name, ranks, place)
            file.add(
                Record("architectures", name, "passed" if is_right(of_type[name]) else "failed", errors(of_type[name]))
            )
            if args.json is not None:
                args.json.write_text(json.dumps({each: dataclasses.asdict(of_type[each]) for each in of_type}))
    file.end()
    print("\n".join(table(of_type)))
    sys.exit(0 if all(map(is_right, of_type.values())) else 1)


if __name__ == "__main__":
    main()
