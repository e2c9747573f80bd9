"""How full are rows?

    python benchmarks/row_fill.py [panel.csv.gz [tokenizer]]

Packs one epoch of training steps and one evaluation: which share of their slots holds a token? Without arguments it
takes the wage panel.
"""

from __future__ import annotations

import sys
import tempfile

import numpy as np
import numpy.typing as npt
from records import Record, RecordFile

from laborllm_dist.batching.packing import pack_careers, pack_step
from laborllm_dist.batching.sampler import TrainingSampler
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.store.build import prepare_store

ROW_LENGTH = 2048


def epoch_fill(lengths: npt.NDArray[np.int64], global_batch_size: int, *, balanced: bool) -> float:
    """Return tokens / slots over one epoch: rows as short as their number allows, or all of ROW_LENGTH."""
    order = _order(lengths, global_batch_size)
    slots = 0
    for step in range(order.steps_per_epoch):
        careers = lengths[order.careers_of_step(step)].tolist()
        plan = pack_step(careers, ROW_LENGTH) if balanced else pack_careers(careers, ROW_LENGTH)
        slots += len(plan.rows) * plan.max_seq_length
    return int(lengths.sum()) / slots


def _order(lengths: npt.NDArray[np.int64], global_batch_size: int) -> TrainingSampler:
    """Return the order in which training takes every career once an epoch."""
    return TrainingSampler(np.arange(len(lengths)), np.ones(len(lengths)), global_batch_size, seed=1)


def padded_fill(lengths: npt.NDArray[np.int64], global_batch_size: int) -> float:
    """Return tokens / slots where every career of a step is padded to the longest one."""
    order = _order(lengths, global_batch_size)
    steps = (lengths[order.careers_of_step(step)] for step in range(order.steps_per_epoch))
    return int(lengths.sum()) / sum(len(careers) * int(careers.max()) for careers in steps)


def main() -> None:
    """Compute the fill of training steps and of an evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"store.root={folder}", f"batch.max_seq_length={ROW_LENGTH}"]
        if len(sys.argv) > 1:
            overrides += ["data=long_panel", f"data.corpora.long_panel.path={sys.argv[1]}"]
        if len(sys.argv) > 2:
            overrides += ["tokenizer=pretrained", f"tokenizer.path={sys.argv[2]}"]
        else:
            overrides.append("tokenizer=trained")
        store = prepare_store(compose_settings(RunSettings, "run", overrides))
        lengths = store.careers("train").num_tokens()
    file = RecordFile.begin("row-fill", f"How full rows of at most {ROW_LENGTH:,} tokens are")
    facts = {"careers": len(lengths), "tokens": lengths.sum(), "mean": lengths.mean(), "longest": lengths.max()}
    file.add(Record("careers", "for training", numbers={name: float(value) for name, value in facts.items()}))
    for global_batch_size in (16, 32, 64):
        fills = {
            "rows as short as possible_%": epoch_fill(lengths, global_batch_size, balanced=True),
            f"rows of {ROW_LENGTH:,}_%": epoch_fill(lengths, global_batch_size, balanced=False),
            "a career a row, padded_%": padded_fill(lengths, global_batch_size),
        }
        percent = {name: 100 * fill for name, fill in fills.items()}
        file.add(Record("slots with a token", f"{global_batch_size} careers a step", numbers=percent))
    percent = {f"rows of {ROW_LENGTH:,}_%": 100 * pack_careers(lengths.tolist(), ROW_LENGTH).fill}
    file.add(Record("slots with a token", "evaluation, all careers at once", numbers=percent))
    file.end()


if __name__ == "__main__":
    main()
