"""Locate the titles of packed careers, and sum token log-likelihoods to those of the observed titles.

Slot t of a row scores the token at t + 1, so a title on tokens [start, end) is scored by slots [start - 1, end - 1),
and the line's end, the token at `end`, by slot end - 1. Sums are float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from laborllm_dist.batching.batch import IGNORED, PackedBatch, TitleTargets, TokenIds, pack_batch
from laborllm_dist.batching.packing import pack_batches
from laborllm_dist.errors import SequenceTooLongError
from laborllm_dist.store.store import CareerTable

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TitleSpans:
    """Positions of the titles of packed careers, int64.

    `spans` is [observations, 3]: row of the batch, first token of the title in that row and the one past its last;
    `starts` is [observations]: first token of the career in that row;
    `keys` is [observations, 2]: career's row in the store, position of the job in the career.
    """

    spans: Integers
    starts: Integers
    keys: Integers

    @property
    def prefixes_P3(self) -> Integers:
        """The prompts before the titles, [P, 3]: row, first slot, slot past the last one."""
        return np.stack([self.spans[:, 0], self.starts, self.spans[:, 1]], axis=1)


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Whole texts as prompts, packed into the rows of one forward pass; `members_P` are their indices in the list."""

    members_P: Integers
    batch: PackedBatch
    prefixes_P3: Integers


def texts_in_rows(rows: Sequence[Sequence[int]], length_of: Callable[[int], int]) -> Iterator[tuple[int, int, int]]:
    """Yield row, first slot and index of every text, packed into rows like `pack_batch`."""
    for row, members in enumerate(rows):
        start = 0
        for member in members:
            yield row, start, member
            start += length_of(member)


def prompt_batches(prompts: Sequence[TokenIds], max_seq_length: int, batch_size: int) -> Iterator[PromptBatch]:
    """Pack whole texts as prompts into rows, and yield `batch_size` rows at a time.

    Raises:
        SequenceTooLongError: if a prompt is longer than a row.
    """
    lengths = [len(ids) for ids in prompts]
    for rows in pack_batches(lengths, max_seq_length, batch_size):
        placed = list(texts_in_rows(rows, lengths.__getitem__))
        batch = pack_batch([[prompts[member] for member in row] for row in rows], max_seq_length)
        members_P = np.array([member for _, _, member in placed])
        prefixes_P3 = np.array([(row, start, start + lengths[member]) for row, start, member in placed])
        yield PromptBatch(members_P, batch, prefixes_P3)


def title_places(careers: CareerTable, rows: Sequence[Sequence[int]]) -> TitleSpans:
    """Locate the titles of careers that are packed into rows by `pack_batch`."""
    spans: list[Integers] = [np.zeros((0, 3), dtype=np.int64)]
    starts: list[Integers] = [np.zeros(0, dtype=np.int64)]
    keys: list[Integers] = [np.zeros((0, 2), dtype=np.int64)]
    for row, start, career in texts_in_rows(rows, lambda career: len(careers.token_ids(career))):
        titles = careers.title_spans(career).astype(np.int64) + start
        spans.append(np.column_stack([np.full(len(titles), row), titles]))
        starts.append(np.full(len(titles), start))
        first = careers.first_position(career)
        keys.append(np.column_stack([np.full(len(titles), career), first + np.arange(len(titles))]))
    return TitleSpans(np.concatenate(spans), np.concatenate(starts), np.concatenate(keys))


def prompt_slots(places: TitleSpans, row_length: int) -> torch.Tensor:
    """Return the slots of flattened rows that hold the last token of the prompt of every observation, [Q]."""
    rows, starts = places.spans[:, 0], places.spans[:, 1]
    return torch.from_numpy(rows * row_length + starts - 1)


def with_titles(packed: PackedBatch, careers: CareerTable, rows: Sequence[Sequence[int]]) -> PackedBatch:
    """Return the batch of these careers with their titles as targets of an output layer over all titles."""
    slots_Q = prompt_slots(title_places(careers, rows), packed.token_ids_BT.shape[1])
    previous, occupations = careers.taken([career for row in rows for career in row]).transitions()
    titles = TitleTargets(slots_Q, torch.from_numpy(occupations), torch.from_numpy(previous))
    return dataclasses.replace(packed, titles=titles)


def pack_observations(
    careers: CareerTable, rows: Sequence[Sequence[int]], max_seq_length: int
) -> tuple[PackedBatch, TitleSpans]:
    """Pack careers into rows, and locate their titles."""
    packed = pack_batch([[careers.token_ids(career) for career in row] for row in rows], max_seq_length)
    return packed, title_places(careers, rows)


def scoring_batch(
    careers: CareerTable, rows: Sequence[Sequence[int]], max_seq_length: int
) -> tuple[PackedBatch, TitleSpans]:
    """Pack careers into rows, with the tokens of titles and of the line breaks after them as the only targets."""
    packed, places = pack_observations(careers, rows, max_seq_length)
    return packed.with_targets(packed.targets_BT.masked_fill(~_is_of_title(packed, places), IGNORED)), places


def training_batch(
    careers: CareerTable, rows: Sequence[Sequence[int]], max_seq_length: int, context_weight: float
) -> PackedBatch:
    """Pack careers into rows, with a weight in the loss of all targets but those of titles and of their line breaks."""
    if context_weight == 0:
        return scoring_batch(careers, rows, max_seq_length)[0]
    packed, places = pack_observations(careers, rows, max_seq_length)
    weights_BT = torch.full_like(packed.targets_BT, context_weight, dtype=torch.float32)
    return dataclasses.replace(packed, weights_BT=weights_BT.masked_fill(_is_of_title(packed, places), 1.0))


def _is_of_title(packed: PackedBatch, places: TitleSpans) -> torch.Tensor:
    """Return whether the target of each slot is a token of a title or the line break after one, [B, T]."""
    is_of_title = torch.zeros_like(packed.targets_BT, dtype=torch.bool)
    for row, start, end in places.spans:
        is_of_title[row, start - 1 : end] = True
    return is_of_title


def observation_scores(token_scores_BT: npt.NDArray[np.floating[Any]], spans: Integers) -> npt.NDArray[np.float64]:
    """Return `title` and `terminated` log-likelihoods in nats, [observations, 2] float64."""
    num_rows = token_scores_BT.shape[0]
    running = np.zeros((num_rows, token_scores_BT.shape[1] + 1), dtype=np.float64)
    np.cumsum(token_scores_BT, axis=1, dtype=np.float64, out=running[:, 1:])
    rows, starts, ends = spans.T
    before = running[rows, starts - 1]
    return np.stack([running[rows, ends - 1] - before, running[rows, ends] - before], axis=1)


def check_room(careers: CareerTable, num_tokens: int, context: int | None, what: str) -> None:
    """Check that every prompt leaves room for more tokens in the model's context.

    Args:
        careers: careers of the split.
        num_tokens: number of tokens after a prompt.
        context: length of the model's context in tokens; None: unlimited.
        what: end of the error message: what these tokens are, and what to do.

    Raises:
        SequenceTooLongError: naming the person with the longest prompt, and the number of people with such prompts.
    """
    if context is None:
        return
    lengths = np.array([int(careers.title_spans(row)[-1, 0]) for row in range(len(careers))])
    truncation = np.flatnonzero(lengths + num_tokens > context)
    if len(truncation):
        longest = int(lengths.argmax())
        survey, person = careers.person(longest)
        people = len({careers.person(int(row)) for row in truncation})
        raise SequenceTooLongError(
            f"the longest prompt, of career {person!r} of {survey}, has {lengths[longest]} tokens; the model's context "
            f"of {context} has no room for {num_tokens} more, which are {what}; {people:,} people have such prompts",
            code="prompt-exceeds-context",
        )
