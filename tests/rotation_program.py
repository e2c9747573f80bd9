"""Make a pretrained model ready for training, and print the precision of its rotation's frequencies.

Started by test_pretrained_ranks.py in a process of its own, since DeepSpeed keeps what it has set up.
"""

from __future__ import annotations

import sys

from worlds import settings_of

from laborllm_dist.engine.model import make_model
from laborllm_dist.engine.ranks import open_ranks
from laborllm_dist.engine.zero import make_engine


def main(path: str, zero: str) -> None:
    settings = settings_of([f"zero={zero}", "model=pretrained", "tokenizer=pretrained", f"model.path={path}"])
    with open_ranks(settings.ranks) as ranks:
        model = make_model(settings, ranks, num_ids=400)
        make_engine(model, settings.zero, settings.optimizer, ranks)
        print("frequencies", model.hugging_face.get_decoder().rotary_emb.inv_freq.dtype, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
