"""Read weights into ZeRO-3 shards, whole and damaged ones, and say what lies there beside what the files hold.

Started by test_loaded_weights.py on two ranks. Every line is `CASE: what came of it` of one rank.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import deepspeed
import numpy as np
import torch
import transformers
from helpers.models import SHARDED_TYPES, change_config, change_weights, saved_model, settings_for
from helpers.runs import COMPUTE, settings_of
from safetensors.torch import load_file

from laborllm_dist.batching.batch import pack_batch
from laborllm_dist.distributed.context import DistributedContext, init_distributed
from laborllm_dist.distributed.deepspeed_config import deepspeed_config
from laborllm_dist.distributed.zero_engine import make_engine
from laborllm_dist.errors import LaborError, PeerFailedError
from laborllm_dist.models.inference import load_for_inference
from laborllm_dist.models.loading import make_model, pretrained_model
from laborllm_dist.models.safetensors_loading import model_in_shards
from laborllm_dist.models.weight_checks import check_in_place

SETTINGS = settings_of(["zero.stage=3"])
IDS = torch.arange(3, 20)[None]


def in_shards(folder: Path, ranks: DistributedContext, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    config = deepspeed_config(SETTINGS.zero, None, ranks.world_size, on_gpu=False)
    return model_in_shards(settings_for(folder), dtype=dtype, config=config, ranks=ranks)


def gathered(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    whole = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            whole[name] = parameter.detach().clone()
    return whole


def is_equal(model: torch.nn.Module, folder: Path, dtype: torch.dtype) -> str:
    """Compare every weight with what the safetensors library reads, bit by bit."""
    stored = load_file(folder / "model.safetensors")
    held = gathered(model)
    same = all(held[name].dtype == dtype and torch.equal(held[name], stored[name].to(dtype)) for name in held)
    return "equal" if same and len(held) == len(stored) else "different"


def error_of(work: Callable[[], object]) -> str:
    try:
        work()
    except PeerFailedError:
        return "left"
    except LaborError as error:
        return str(error)
    return "nothing was refused"


def spoiled(folder: Path, ranks: DistributedContext) -> None:
    """Change one element of the stretch of the last rank."""
    model = in_shards(folder, ranks)
    if ranks.rank == ranks.world_size - 1:
        model.model.layers[1].mlp.up_proj.weight.ds_tensor.data.view(-1)[-1] += 1e-6
    check_in_place(model, ranks)


def trained_in_place(folder: Path, ranks: DistributedContext) -> str:
    """Return whether what a ZeRO-3 engine for training holds is what lies in the files."""
    settings = settings_of(["zero.stage=3", "model=pretrained", f"model.path={folder}", "tokenizer=pretrained"])
    model = make_model(settings, ranks, num_ids=96)
    make_engine(model, settings.zero, settings.optimizer, ranks)
    check_in_place(model, ranks)
    return is_equal(model.hugging_face, folder, torch.float32)


def partitioned(folder: Path, ranks: DistributedContext) -> None:
    """Have DeepSpeed cut a whole model, one weight of which changes before, on the last rank."""
    model = pretrained_model(settings_for(folder), dtype=torch.float32)
    model.model.layers[1].mlp.up_proj.weight.data.view(-1)[-1] += 1e-6
    deepspeed.zero.Init(
        module=model, config_dict_or_path=deepspeed_config(SETTINGS.zero, None, ranks.world_size, on_gpu=False)
    )
    check_in_place(model, ranks)


def scored(folder: Path, ranks: DistributedContext) -> str:
    """Return whether shards score two careers as transformers scores each alone."""
    evaluation_settings = dataclasses.replace(
        SETTINGS.evaluation, placement="partitioned", precision="fp32", quantization="none"
    )
    careers = [np.arange(start, start + 12, dtype=np.int32) for start in (3, 50)]
    model = load_for_inference(settings_for(folder), evaluation_settings, COMPUTE, ranks)
    scores_N = model.scores(pack_batch([careers], 24))
    model.join_remaining()
    alone = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    slow = []
    for career in careers:
        ids = torch.from_numpy(career).long()
        chances = alone(ids[None]).logits[0, :-1].log_softmax(-1)
        slow.append(chances.gather(1, ids[1:, None])[:, 0].detach())
    return "equal" if bool((scores_N - torch.cat(slow)).abs().max() < 1e-4) else "different"


def main(root: Path) -> None:
    def report(case: str, what: str) -> None:
        print(f"{case}: {what}\n", end="", flush=True)

    with init_distributed(SETTINGS.ranks) as ranks:

        def made(name: str, kind: str = "Llama", **more: object) -> Path:
            return Path(ranks.run_on_main(lambda: str(saved_model(root / name, kind, **more))))

        for kind in SHARDED_TYPES:
            folder = made(kind, kind, **({"head_dim": 16} if kind == "Qwen3" else {}))
            model = in_shards(folder, ranks)
            report(kind, is_equal(model, folder, torch.float32))
        model = in_shards(root / "Llama", ranks, torch.bfloat16)
        report("narrowed", is_equal(model, root / "Llama", torch.bfloat16))
        for kind in SHARDED_TYPES:
            report(f"{kind} scored", scored(root / kind, ranks))
        report("trained", trained_in_place(root / "Qwen2", ranks))

        own_head = made("own_head", tie_word_embeddings=False)
        ranks.run_on_main(lambda: change_config(own_head, tie_word_embeddings=True))
        model = in_shards(own_head, ranks)
        report("own head", is_equal(model, own_head, torch.float32) + f" {model.config.tie_word_embeddings}")

        stored_twice = made("stored_twice", tie_word_embeddings=True)
        twice = load_file(stored_twice / "model.safetensors")["model.embed_tokens.weight"].clone()
        ranks.barrier()  # the file is written anew
        ranks.run_on_main(lambda: change_weights(stored_twice, lm_head__weight=twice))
        held = gathered(in_shards(stored_twice, ranks))
        report(
            "stored twice", str(torch.equal(held["model.embed_tokens.weight"], twice) and "lm_head.weight" not in held)
        )

        few = made("few")
        ranks.run_on_main(lambda: change_config(few, num_hidden_layers=1))
        report("few layers", error_of(lambda: in_shards(few, ranks)))
        report("spoiled", error_of(lambda: spoiled(root / "Llama", ranks)))
        report("cut wrongly", error_of(lambda: partitioned(root / "Llama", ranks)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
