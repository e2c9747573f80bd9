"""Other systems that train on one GPU, for gpu_suite.py: tokens of real text a second on the same careers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from laborllm_dist.engine.shape import ModelShape

BATCH = 16  # careers a step with padding
ROWS, ROW_LENGTH = 4, 2048  # with packing


def trainer_tokens_per_second(shape: ModelShape, careers: list[np.ndarray], out: Path) -> float:
    """Train in transformers.Trainer, careers padded to the longest of a batch."""
    from transformers import Trainer, TrainingArguments

    def pad(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(each["input_ids"]) for each in batch)
        ids = torch.stack(
            [torch.nn.functional.pad(each["input_ids"], (0, longest - len(each["input_ids"]))) for each in batch]
        )
        real = torch.arange(longest)[None] < torch.tensor([[len(each["input_ids"])] for each in batch])
        return {"input_ids": ids, "attention_mask": real.long(), "labels": ids.masked_fill(~real, -100)}

    data = [{"input_ids": torch.from_numpy(ids).long()} for ids in careers]
    settings = TrainingArguments(
        **_same(out / "trainer", len(data) // BATCH), per_device_train_batch_size=BATCH, remove_unused_columns=False
    )
    trainer = Trainer(model=_llama(shape), args=settings, train_dataset=data, data_collator=pad)
    trainer.train()  # once to warm up
    started = time.perf_counter()
    trainer.train()
    tokens = BATCH * settings.max_steps * float(np.mean([len(ids) for ids in careers]))
    return tokens / (time.perf_counter() - started)


def sft_tokens_per_second(shape: ModelShape, careers: list[np.ndarray], out: Path) -> float:
    """Train in TRL's SFTTrainer, careers packed."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    # SFTTrainer wants a tokenizer, although the careers are tokenised.
    vocabulary = {str(each): each for each in range(shape.num_ids)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="1", pad_token="2")
    num_steps = max(1, sum(map(len, careers)) // (ROWS * ROW_LENGTH))
    settings = SFTConfig(
        **_same(out / "sft", num_steps),
        per_device_train_batch_size=ROWS,
        packing=True,
        max_length=ROW_LENGTH,
        gradient_checkpointing=False,
    )
    data = Dataset.from_dict({"input_ids": [ids.tolist() for ids in careers]})
    trainer = SFTTrainer(model=_llama(shape), args=settings, train_dataset=data, processing_class=tokenizer)
    collate, num_tokens = trainer.data_collator, []

    def counted(batch: Any) -> Any:
        num_tokens.append(sum(len(each["input_ids"]) for each in batch))
        return collate(batch)

    trainer.data_collator = counted
    trainer.train()
    num_tokens.clear()
    started = time.perf_counter()
    trainer.train()
    return sum(num_tokens[:num_steps]) / (time.perf_counter() - started)


def _llama(shape: ModelShape) -> LlamaForCausalLM:
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # a minute on a CPU
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=shape.num_ids, hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size,
                num_hidden_layers=shape.num_layers, num_attention_heads=shape.num_heads,
                num_key_value_heads=shape.num_key_value_heads, attn_implementation="sdpa", bos_token_id=0,
                eos_token_id=1,
            )
        )  # fmt: skip


def _same(folder: Path, num_steps: int) -> dict[str, Any]:
    has_gpu = torch.cuda.is_available()
    quiet = {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "logging_steps": 1000}
    return {"output_dir": str(folder), "max_steps": num_steps, "bf16": has_gpu, "use_cpu": not has_gpu, **quiet}
