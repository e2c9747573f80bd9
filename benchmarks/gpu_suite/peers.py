"""The same careers in transformers' Trainer with padding and in TRL's SFTTrainer with packing: tokens of text a second.

A 1B shape, so that all weights can be trained with AdamW on one card. Each peer is a process of its own, takes every
career once to warm up, and once more for its time, which includes collation. Which careers share a row is decided
before, here as in SFTTrainer.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from records import Record
from transformers import LlamaConfig, LlamaForCausalLM

from gpu_suite.training import take_step
from gpu_suite.workload import BF16, SHAPES, Row, new_model, rows_of_careers, settings_for, workload_of
from laborllm_dist.batching.batch import TokenIds, pack_batch
from laborllm_dist.distributed.context import init_distributed
from laborllm_dist.distributed.zero_engine import ZeroEngine, make_engine
from laborllm_dist.models.dims import ModelShape

PART = "peers"
OURS, TRAINER, SFT = "laborllm_dist", "transformers.Trainer", "trl.SFTTrainer"
ROWS, ROW_LENGTH = 4, 2048  # of a step, packed
PADDED = 16  # careers of a step with padding: about as many tokens
NUM_STEPS = 12
NEEDED = {OURS: "deepspeed", TRAINER: "accelerate", SFT: "trl"}


def peer(name: str, shape: ModelShape) -> Iterator[Record]:
    """Measure one of them, where it is installed."""
    if importlib.util.find_spec(NEEDED[name]) is None:
        yield Record(PART, name, "skipped", note=f"{NEEDED[name]} is not installed: make peers")
        return
    measures: dict[str, Callable[[ModelShape, list[Row]], float]] = {OURS: _ours, TRAINER: _trainer, SFT: _sft}
    small = shape if shape is SHAPES["tiny"] else SHAPES["1b"]
    rows = rows_of_careers(ROWS * NUM_STEPS, ROW_LENGTH, small.num_ids, seed=1)
    yield Record(PART, name, "measured", {"tokens_per_second": measures[name](small, rows)})


def ratios(records: Sequence[Record]) -> list[Record]:
    """Return how many times the tokens of each peer this software trains a second."""
    speeds = {
        record.subject: record.numbers["tokens_per_second"]
        for record in records
        if record.part == PART and record.numbers
    }
    return [
        Record(PART, f"{OURS} / {name}", "measured", {"ratio": speeds[OURS] / speed})
        for name, speed in speeds.items()
        if name != OURS and OURS in speeds
    ]


def _ours(shape: ModelShape, rows: list[Row]) -> float:
    settings = settings_for(shape, *BF16, f"batch.max_seq_length={ROW_LENGTH}", f"batch.micro_batch_size={ROWS}")
    steps = [rows[first : first + ROWS] for first in range(0, len(rows), ROWS)]
    with init_distributed(settings.ranks) as ranks:
        engine = make_engine(new_model(settings, shape, ranks.device), settings.zero, settings.optimizer, ranks)
        _epoch(engine, steps)
        started = time.perf_counter()
        _epoch(engine, steps)
        seconds = time.perf_counter() - started
    return workload_of(steps, ROW_LENGTH).tokens / seconds


def _epoch(engine: ZeroEngine, steps: Sequence[Sequence[Row]]) -> None:
    for step in steps:
        batch = pack_batch(step, ROW_LENGTH)
        loss = take_step(engine, batch, len(batch.scored_N))
    float(loss)  # waits for the last step


def _trainer(shape: ModelShape, rows: list[Row]) -> float:
    from peer_training import pad
    from transformers import Trainer, TrainingArguments

    careers = [career for row in rows for career in row]
    num_steps = len(careers) // PADDED
    data = [{"input_ids": career.tolist()} for career in careers[: num_steps * PADDED]]
    with TemporaryDirectory() as folder:
        settings = TrainingArguments(
            **_arguments(Path(folder), num_steps), per_device_train_batch_size=PADDED, remove_unused_columns=False
        )
        trainer = Trainer(model=_llama(shape), args=settings, train_dataset=data, data_collator=pad)
        trainer.train()
        seconds = _seconds_of_training(trainer)
    return sum(len(each["input_ids"]) for each in data) / seconds


def _sft(shape: ModelShape, rows: list[Row]) -> float:
    from datasets import Dataset
    from peer_training import count_tokens, word_tokenizer
    from trl import SFTConfig, SFTTrainer

    careers: list[TokenIds] = [career for row in rows for career in row]
    data = Dataset.from_dict({"input_ids": [career.tolist() for career in careers]})
    with TemporaryDirectory() as folder:
        settings = SFTConfig(
            **_arguments(Path(folder), NUM_STEPS),
            per_device_train_batch_size=ROWS,
            packing=True,
            max_length=ROW_LENGTH,
            gradient_checkpointing=False,
        )
        trainer = SFTTrainer(
            model=_llama(shape), args=settings, train_dataset=data, processing_class=word_tokenizer(shape.num_ids)
        )
        num_tokens = count_tokens(trainer)
        trainer.train()
        num_tokens.clear()
        seconds = _seconds_of_training(trainer)
    return sum(num_tokens[:NUM_STEPS]) / seconds  # the loader is a batch ahead at the end


def _seconds_of_training(trainer: Any) -> float:
    started = time.perf_counter()
    trainer.train()
    return time.perf_counter() - started


def _llama(shape: ModelShape) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=shape.num_ids, hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers, num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_key_value_heads, attn_implementation="sdpa", bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # a minute on a CPU
        return LlamaForCausalLM(config)


def _arguments(folder: Path, num_steps: int) -> dict[str, Any]:
    has_gpu = torch.cuda.is_available()
    quiet = {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "logging_steps": 1000}
    return {"output_dir": str(folder), "max_steps": num_steps, "bf16": has_gpu, "use_cpu": not has_gpu, **quiet}
