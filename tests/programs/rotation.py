"""Make a pretrained model ready for training, and print the precision of its weights and of its rotation's frequencies.

Started by test_pretrained_ranks.py in a process of its own, since DeepSpeed keeps what it has set up.
"""

from __future__ import annotations

import sys

import torch
from helpers.runs import settings_of
from safetensors.torch import load_file

from laborllm_dist.distributed.context import init_distributed
from laborllm_dist.distributed.library_internals import import_deepspeed
from laborllm_dist.distributed.zero_engine import make_engine
from laborllm_dist.models.loading import make_model


def main(path: str, zero: str, has_fp16: str) -> None:
    settings = settings_of([f"zero={zero}", "model=pretrained", "tokenizer=pretrained", f"model.path={path}"])
    # Whatever the instructions of the machine that this runs on: those of the machine that is named.
    type(import_deepspeed().accelerator.get_accelerator()).is_fp16_supported = lambda self: has_fp16 == "fp16"
    with init_distributed(settings.ranks) as ranks:
        model = make_model(settings, ranks, num_ids=400)
        make_engine(model, settings.zero, settings.optimizer, ranks)
        print("frequencies", model.hugging_face.get_decoder().rotary_emb.inv_freq.dtype, flush=True)
        stored = load_file(f"{path}/model.safetensors")
        parameters = {
            name: getattr(parameter, "ds_tensor", parameter).flatten()
            for name, parameter in model.hugging_face.named_parameters()
        }
        print("weights", *{parameter.dtype for parameter in parameters.values()}, flush=True)
        rounded = {name: stored[name].to(held.dtype).flatten() for name, held in parameters.items()}
        same = all(torch.equal(held[: rounded[name].numel()], rounded[name]) for name, held in parameters.items())
        print("content", "same" if same else "different", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
