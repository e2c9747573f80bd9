"""Train as one of two ranks in another system, for train_throughput.py: trainer (padding) or sft (TRL, packing)."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import SequentialSampler
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

RANKS = 2


class StepRecord(TrainerCallback):  # type: ignore[misc]
    """Writes time, tokens and loss at the end of each step, on rank 0."""

    def __init__(self, path: Path, tokens_of_step: list[int] | None) -> None:
        self.path, self.tokens_of_step = path, tokens_of_step
        self.steps: list[dict[str, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps.append({"time": time.time(), "tokens": self._tokens(state.global_step - 1)})

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs and self.steps:
            self.steps[-1]["loss"] = logs["loss"]

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.path.write_text("".join(json.dumps(step) + "\n" for step in self.steps))

    def _tokens(self, step: int) -> float:
        return float(self.tokens_of_step[step]) if self.tokens_of_step is not None else float("nan")


def arguments(kind: Any, plan: dict[str, Any], folder: str, num_steps: int, **more: Any) -> Any:
    same = {
        "learning_rate": plan["learning_rate"],
        "adam_beta1": plan["betas"][0],
        "adam_beta2": plan["betas"][1],
        "adam_epsilon": plan["epsilon"],
        "max_grad_norm": plan["max_grad_norm"],
        "weight_decay": 0.0,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "bf16": False,
        "seed": 1,
    }
    quiet = {"logging_steps": 1, "save_strategy": "no", "report_to": [], "disable_tqdm": True}
    return kind(output_dir=f"{folder}/out", max_steps=num_steps, use_cpu=True, **same, **quiet, **more)


def pad(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Return a batch in which every career is as long as the longest."""
    longest = max(len(each["input_ids"]) for each in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, each in enumerate(batch):
        length = len(each["input_ids"])
        ids[row, :length] = labels[row, :length] = torch.tensor(each["input_ids"])
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def word_tokenizer(num_ids: int) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer for SFTTrainer, which wants one although the careers are tokenized."""
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({str(each): each for each in range(num_ids)}, unk_token="0"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="1", pad_token="2")


def count_tokens(trainer: Any) -> list[int]:
    """Return a list to which a trainer adds the tokens of each of its batches as it makes them."""
    num_tokens: list[int] = []
    collate = trainer.data_collator

    def counted(batch: Any) -> Any:
        num_tokens.append(sum(len(each["input_ids"]) for each in batch))
        return collate(batch)

    trainer.data_collator = counted
    return num_tokens


class InOrder(Trainer):  # type: ignore[misc]
    """Takes the careers in the order they are given in."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def main(name: str, plan_path: str, folder: str, num_steps: int) -> None:
    from datasets import Dataset

    torch.set_num_threads(1)
    plan = torch.load(plan_path, weights_only=True)
    model = LlamaForCausalLM(LlamaConfig(**{**plan["config"], "attn_implementation": "sdpa"}))
    model.load_state_dict(plan["weights"])
    record_path = Path(folder) / f"{name}.jsonl"
    careers = [ids for step in plan["steps"] for ids in step]
    if name == "trainer":
        tokens = [sum(map(len, step)) for step in plan["steps"]]
        data = Dataset.from_dict({"input_ids": careers})
        per_rank = len(plan["steps"][0]) // RANKS
        settings = arguments(TrainingArguments, plan, folder, num_steps, per_device_train_batch_size=per_rank,
                             remove_unused_columns=False)  # fmt: skip
        trainer: Trainer = InOrder(model=model, args=settings, train_dataset=data, data_collator=pad,
                                   callbacks=[StepRecord(record_path, tokens)])  # fmt: skip
        trainer.train()
        return
    from trl import SFTConfig, SFTTrainer

    mean_step = sum(map(len, careers)) / len(plan["steps"])
    rows_per_rank = max(1, round(mean_step / (0.97 * plan["max_seq_length"] * RANKS)))
    settings = arguments(
        SFTConfig,
        plan,
        folder,
        num_steps,
        per_device_train_batch_size=rows_per_rank,
        packing=True,
        max_length=plan["max_seq_length"],
        gradient_checkpointing=False,
    )
    record = StepRecord(record_path, None)
    sft = SFTTrainer(model=model, args=settings, train_dataset=Dataset.from_dict({"input_ids": careers}),
                     processing_class=word_tokenizer(plan["config"]["vocab_size"]), callbacks=[record])  # fmt: skip
    tokens_seen = count_tokens(sft)
    record._tokens = lambda step: float(tokens_seen[step] * RANKS)  # type: ignore[method-assign]
    sft.train()


if __name__ == "__main__":
    if os.environ.get("WORLD_SIZE") != str(RANKS) or len(sys.argv) != 5:
        sys.exit(f"started by train_throughput.py on {RANKS} ranks, with a system, its plan, a folder and the steps")
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
