r"""Generations of a model after every prompt of a split: one greedy continuation, and several sampled ones.

    history   1984 (some college): Cooks\n1985 (some college):        forwarded once, for all prompts of a unit
    greedy                                                      Food| servers|\n
    sample 1                                                    Cooks|\n
    sample 2                                                    Food| counter| clerks|\n

All chains of a unit grow by one token a round. A chain ends with the line's end, or is cut. What is drawn depends on
seed, person, position, number of the sample and place of the token, never on ranks or on what else is in a unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from laborllm_dist.batching.title_positions import TitleSpans, pack_observations
from laborllm_dist.config.evaluation import EvaluationSettings
from laborllm_dist.evaluation.all_titles import MOST_KEPT
from laborllm_dist.evaluation.target import EvaluationTarget
from laborllm_dist.evaluation.tasks import Evaluation, OpenTrie, Room, ScoreBatch, with_details
from laborllm_dist.evaluation.title_trie import Floats, Integers, TitleTrie
from laborllm_dist.models.inference import InferenceModel
from laborllm_dist.models.tree_inference import Nodes, PrefixState
from laborllm_dist.randomness import token_uniforms
from laborllm_dist.store.store import CareerTable
from laborllm_dist.store.tokenizer import CareerTokenizer, load_tokenizer
from laborllm_dist.tables.generations import generated_table_path, write_generated_table
from laborllm_dist.tables.parquet import ScoreTableInfo

Pick = Callable[[PrefixState, Nodes | None, Tensor, Tensor], Tensor]  # InferenceModel.next_tokens
LINE_END = "\n"
UNREADABLE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Generations:
    """Generate continuations of every prompt, into the table of continuations."""

    subject: ClassVar[str] = "continuations by "
    settings: EvaluationSettings
    tokenizer: Path  # folder

    @property
    def batches_per_part(self) -> int:
        """A forward of these is hundreds of times the work of observed titles: each is a part of its own."""
        return 1

    def tables(self, target: EvaluationTarget) -> tuple[Path, ...]:
        """Return the file of the table."""
        return (generated_table_path(target.table, target.info.split),)

    def info(self, target: EvaluationTarget) -> ScoreTableInfo:
        """Return the metadata of the table."""
        settings = self.settings
        details = {
            "num_samples": str(settings.num_samples),
            "sample_seed": str(settings.sample_seed),
            "max_new_tokens": str(settings.max_new_tokens),
            "max_tree_tokens": str(settings.max_tree_tokens),
        }
        return with_details(target.info, details)

    def room(self, trie: OpenTrie) -> Room:
        """Return how many tokens must fit the context after a prompt: the last one is picked, not forwarded."""
        num_tokens = self._max_new_tokens(trie())
        return Room(num_tokens - 1, f"max_new_tokens={num_tokens}; take fewer, or leave out check_generations=true")

    def scorer(self, work: Evaluation, model: InferenceModel, trie: OpenTrie) -> ScoreBatch:
        """Return the function that generates for one batch of the plan."""
        tokenizer, num_tokens = load_tokenizer(str(self.tokenizer)), self._max_new_tokens(trie())
        end_ids = line_ends(tokenizer)
        return lambda batch: self._generate(work, model, (tokenizer, num_tokens, end_ids), batch)

    def write(self, work: Evaluation, facts: pa.Table, scores: pa.Table) -> None:
        """Write the table from the facts and the continuations of all observations, in the same order."""
        num_chains = 1 + self.settings.num_samples
        texts = pc.list_flatten(scores["texts"])
        code_of = {f" {title}{LINE_END}": code for code, title in work.careers.vocabulary.title_of().items()}
        keys = facts.take(pa.array(np.repeat(np.arange(facts.num_rows), num_chains)))
        numbers = np.tile(np.arange(num_chains), facts.num_rows).astype(np.int32)
        columns = {
            **{name: keys[name] for name in ("survey", "person", "position")},
            "kind": pa.array(np.where(numbers == 0, "greedy", "sample")),
            "sample": pa.array(numbers, mask=numbers == 0),
            "text": texts,
            "occupation": pa.array([code_of.get(text) for text in texts.to_pylist()], pa.string()),
            "observed": keys["occupation"],
        }
        write_generated_table(pa.table(columns), work.info, work.table)

    def _generate(
        self, work: Evaluation, model: InferenceModel, opened: tuple[CareerTokenizer, int, Integers], batch: int
    ) -> pa.Table:
        tokenizer, num_tokens, end_ids = opened
        packed, places = pack_observations(work.careers, work.plan.batches[batch], work.plan.max_seq_length)
        tokens_PKL = continuations(
            model.next_tokens,
            PrefixState(packed.to(model.device)),
            places.prefixes_P3,
            self._uniforms(work.careers, places, num_tokens),
            end_ids,
            max_tree_tokens=self.settings.max_tree_tokens,
        )
        before_P = packed.token_ids_BT.numpy()[places.prefixes_P3[:, 0], places.prefixes_P3[:, 2] - 1].tolist()
        texts = [
            [continuation_text(before, tokens_L, tokenizer) for tokens_L in tokens_KL]
            for before, tokens_KL in zip(before_P, tokens_PKL, strict=True)
        ]
        return pa.table(
            {
                "career": places.keys[:, 0],
                "position": places.keys[:, 1].astype(np.int32),
                "texts": pa.array(texts, pa.list_(pa.string())),
            }
        )

    def _uniforms(self, careers: CareerTable, places: TitleSpans, num_tokens: int) -> Floats:
        """Return what draws the tokens, [P, K, L]: the greedy continuation is the first one."""
        uniforms_PKL = np.full((len(places.keys), 1 + self.settings.num_samples, num_tokens), np.nan)
        for place, (career, position) in enumerate(places.keys.tolist()):
            key = (*careers.person(career), position)
            for sample in range(1, 1 + self.settings.num_samples):
                uniforms_PKL[place, sample] = token_uniforms(self.settings.sample_seed, key, sample, num_tokens)
        return uniforms_PKL

    def _max_new_tokens(self, trie: TitleTrie) -> int:
        """Return how long a continuation may be; by default there is room for the longest title and the line's end."""
        return self.settings.max_new_tokens or int(trie.depths_M.max()) + 1


def line_ends(tokenizer: CareerTokenizer) -> Integers:
    """Return the ids of all tokens that hold a line's end."""
    texts = tokenizer.backend.decode_batch([[each] for each in range(tokenizer.num_ids)], skip_special_tokens=False)
    return np.array([number for number, text in enumerate(texts) if LINE_END in text])


def continuations(
    pick: Pick,
    state: PrefixState,
    prefixes_P3: Integers,
    uniforms_PKL: Floats,
    end_ids: Integers,
    *,
    max_tree_tokens: int,
) -> Integers:
    """Return the tokens of K continuations of P prompts, [P, K, L], -1 behind their ends.

    Args:
        pick: a forward pass of the model.
        state: the rows, on the model's device, not forwarded yet.
        prefixes_P3: row, first slot of the history, slot past its last one; those of one history side by side.
        uniforms_PKL: what draws each token; NaN: the most probable one is taken.
        end_ids: tokens that end a continuation.
        max_tree_tokens: MOST_KEPT times as many nodes may be kept.
    """
    num_prompts, num_chains, num_tokens = uniforms_PKL.shape
    prefixes_C3 = np.repeat(prefixes_P3, num_chains, axis=0)
    uniforms_CL = uniforms_PKL.reshape(-1, num_tokens)
    last_slots_C = prefixes_C3[:, 0] * state.batch.token_ids_BT.shape[1] + prefixes_C3[:, 2] - 1
    first_C = (
        pick(state, None, torch.from_numpy(last_slots_C), torch.from_numpy(uniforms_CL[:, 0].copy())).cpu().numpy()
    )
    parts: list[Integers] = []
    at_once = max(1, MOST_KEPT * max_tree_tokens // num_tokens)
    for start in range(0, len(first_C), at_once):
        chunk = slice(start, start + at_once)
        parts.append(_chains(pick, state, first_C[chunk], prefixes_C3[chunk], uniforms_CL[chunk], end_ids))
        state.drop_nodes()
    return np.concatenate(parts).reshape(num_prompts, num_chains, num_tokens)


def _chains(
    pick: Pick, state: PrefixState, first_C: Integers, prefixes_C3: Integers, uniforms_CL: Floats, end_ids: Integers
) -> Integers:
    """Grow chains from their first tokens, one token a round; return their tokens, [C, L]."""
    tokens_CL, places_CL = (np.full(uniforms_CL.shape, -1, dtype=np.int64) for _ in range(2))
    tokens_CL[:, 0] = first_C
    growing, num_nodes = np.arange(len(first_C)), 0
    for depth in range(1, uniforms_CL.shape[1]):
        growing = growing[~np.isin(tokens_CL[growing, depth - 1], end_ids)]
        if not len(growing):
            break
        places_CL[growing, depth - 1] = num_nodes + np.arange(len(growing))
        num_nodes += len(growing)
        prefixes_N3 = prefixes_C3[growing]
        nodes = Nodes(
            token_ids_N=tokens_CL[growing, depth - 1],
            positions_N=prefixes_N3[:, 2] - prefixes_N3[:, 1] + depth - 1,
            prefixes_N3=prefixes_N3,
            ancestors_NA=places_CL[growing, :depth],
        )
        uniforms_N = torch.from_numpy(uniforms_CL[growing, depth])
        tokens_CL[growing, depth] = _numbers(pick(state, nodes, torch.arange(len(growing)), uniforms_N))
    return tokens_CL


def _numbers(tokens_N: Tensor) -> Integers:
    return np.asarray(tokens_N.cpu(), dtype=np.int64)


def continuation_text(before: int, tokens_L: Integers, tokenizer: CareerTokenizer) -> str:
    """Return the text of a continuation up to the line's end, after the token `before`, the prompt's last one.

    Some tokenizers leave out the blank that a text begins with, so the two are read together.
    """
    ids = tokens_L[tokens_L >= 0].tolist()
    if max(ids) >= tokenizer.num_ids:
        return UNREADABLE  # a row of the embedding that no token has
    full_text, first = tokenizer.backend.decode_batch([[before, *ids], [before]], skip_special_tokens=False)
    line, end, _ = str(full_text).removeprefix(str(first)).partition(LINE_END)
    return line + end
