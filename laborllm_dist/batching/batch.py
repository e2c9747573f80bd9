"""Input tensors of a forward pass: careers packed into rows, with attention restricted to each career.

tokens      <s> a  b  c  <s> d  e   .
positions    0  1  2  3   0  1  2   0      restart in each career; 0 in padding, which may be longer than any career
lengths      4            3         1      of the sequences; the last one is padding
targets      a  b  c  -   d  e  -   -      the next token; - is IGNORED
scored       0  1  2      4  5             slots with a target, as indices into the flattened rows
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from laborllm_dist.batching.packing import PAD_TO_MULTIPLE_OF

IGNORED = -100
TokenIds = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TitleTargets:
    """The observed titles of packed careers, for an output layer over all titles; int64, [Q].

    `slots_Q`: the last token of the prompt of every title, as indices into the flattened rows. `occupations_Q`: the
    observed titles, and `previous_Q`: the ones before, the number of titles where there is none; by their places in the
    vocabulary.
    """

    slots_Q: Tensor
    occupations_Q: Tensor
    previous_Q: Tensor

    def to(self, device: torch.device) -> TitleTargets:
        """Return the targets on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> TitleTargets:
        """Return the targets in pinned memory."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> TitleTargets:
        return TitleTargets(change(self.slots_Q), change(self.occupations_Q), change(self.previous_Q))


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows of packed careers.

    Tensors are int64: `token_ids_BT`, `targets_BT`, `positions_BT`; `scored_N` has the slots with a target, as indices
    into the flattened rows. `lengths` has the lengths of all sequences (careers and padding), row by row; their sum is
    B x T. `weights_BT`: float32, of the targets in the loss; None: all 1. `titles`: for an output layer over titles.
    """

    token_ids_BT: Tensor
    targets_BT: Tensor
    positions_BT: Tensor
    scored_N: Tensor
    lengths: tuple[int, ...]
    weights_BT: Tensor | None = None
    titles: TitleTargets | None = None

    def to(self, device: torch.device) -> PackedBatch:
        """Return the batch on a device."""
        return PackedBatch(
            self.token_ids_BT.to(device, non_blocking=True),
            self.targets_BT.to(device, non_blocking=True),
            self.positions_BT.to(device, non_blocking=True),
            self.scored_N.to(device, non_blocking=True),
            self.lengths,
            None if self.weights_BT is None else self.weights_BT.to(device, non_blocking=True),
            None if self.titles is None else self.titles.to(device),
        )

    def pinned(self) -> PackedBatch:
        """Return the batch in pinned memory, for asynchronous copies to a GPU."""
        return PackedBatch(
            self.token_ids_BT.pin_memory(),
            self.targets_BT.pin_memory(),
            self.positions_BT.pin_memory(),
            self.scored_N.pin_memory(),
            self.lengths,
            None if self.weights_BT is None else self.weights_BT.pin_memory(),
            None if self.titles is None else self.titles.pinned(),
        )

    def with_targets(self, targets_BT: Tensor) -> PackedBatch:
        """Return the batch with other targets."""
        return PackedBatch(self.token_ids_BT, targets_BT, self.positions_BT, _scored(targets_BT), self.lengths)

    def weighted(self, scores: Tensor, slots: Tensor) -> Tensor:
        """Return scores times the weights of their slots of the flattened rows, in the shape of the scores."""
        return scores if self.weights_BT is None else scores * self.weights_BT.flatten()[slots]

    def one_a_row(self, slots_Q: Tensor) -> PaddedBatch:
        """Return the careers that contain these slots of the flattened rows, one career per row."""
        lengths = torch.tensor(self.lengths)
        sequence_N = torch.arange(len(lengths)).repeat_interleave(lengths)
        members = torch.unique(sequence_N[slots_Q.cpu()])
        if not len(members):
            members = torch.zeros(1, dtype=torch.int64)  # a forward has at least one row
        starts_S, lengths_S = (lengths.cumsum(0) - lengths)[members], lengths[members]
        places_T = torch.arange(int(lengths_S.max()))
        mask_ST = (places_T < lengths_S[:, None]).to(self.token_ids_BT.device)
        slots_ST = (starts_S[:, None] + places_T).to(mask_ST.device).where(mask_ST, 0)
        return PaddedBatch(
            self.token_ids_BT.flatten()[slots_ST].where(mask_ST, 0),
            self.targets_BT.flatten()[slots_ST].where(mask_ST, IGNORED),
            mask_ST,
            slots_ST,
        )

    def scatter_to_slots(self, scores_N: Tensor) -> npt.NDArray[np.float64]:
        """Return scores of the slots with a target as [B, T] float64; 0 elsewhere."""
        scores = np.zeros(self.targets_BT.numel())
        scores[self.scored_N.cpu().numpy()] = scores_N.cpu().numpy()
        return scores.reshape(tuple(self.targets_BT.shape))


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Careers one per row, in the order of the packed rows, padded on the right.

    `token_ids_ST`, `targets_ST`: int64; `mask_ST`: bool, False in padding; `slots_ST`: int64, the index of each token
    in the flattened packed rows.
    """

    token_ids_ST: Tensor
    targets_ST: Tensor
    mask_ST: Tensor
    slots_ST: Tensor

    def at_slots(self, values_STV: Tensor, slots_Q: Tensor) -> Tensor:
        """Return the values at these slots of the packed rows, [Q, V]."""
        mask_M = self.mask_ST.flatten()
        places_N = torch.zeros(int(self.slots_ST.max()) + 1, dtype=torch.int64, device=mask_M.device)
        places_N[self.slots_ST.flatten()[mask_M]] = mask_M.nonzero().flatten()
        return values_STV.flatten(0, 1)[places_N[slots_Q.to(mask_M.device)]]


def pack_batch(rows: Sequence[Sequence[TokenIds]], max_seq_length: int) -> PackedBatch:
    """Pack careers into rows; the target of each token is the next token of its career.

    Args:
        rows: token ids of the careers of each row; without rows, the batch is one short row without targets.
        max_seq_length: T, at least the number of tokens of every row.
    """
    num_rows = max(1, len(rows))
    length = max_seq_length if rows else min(PAD_TO_MULTIPLE_OF, max_seq_length)
    token_ids, positions = (np.zeros((num_rows, length), dtype=np.int64) for _ in range(2))
    targets = np.full((num_rows, length), IGNORED, dtype=np.int64)
    lengths: list[int] = []
    for row, careers in enumerate(rows or [[]]):
        start = 0
        for ids in careers:
            end = start + len(ids)
            token_ids[row, start:end] = ids
            positions[row, start:end] = np.arange(len(ids))
            targets[row, start : end - 1] = ids[1:]
            lengths.append(len(ids))
            start = end
        if start < length:
            lengths.append(length - start)
    targets_BT = torch.from_numpy(targets)
    return PackedBatch(
        torch.from_numpy(token_ids), targets_BT, torch.from_numpy(positions), _scored(targets_BT), tuple(lengths)
    )


def _scored(targets_BT: Tensor) -> Tensor:
    return (targets_BT.flatten() != IGNORED).nonzero().flatten()


Batches = list[PackedBatch]


class BatchPrefetcher:
    """Makes the batches of the next step in a thread; batches are a function of the step alone."""

    def __init__(self, make: Callable[[int], Batches], *, num_steps: int) -> None:
        """`make` returns this rank's batches of a step, one per micro-batch."""
        self._make = make
        self._num_steps = num_steps
        self._maker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._made: dict[int, Future[Batches]] = {}

    def of_step(self, step: int) -> Batches:
        """Return the batches of a step, and start making those of the next one."""
        batches = self._made.pop(step, None) or self._maker.submit(self._make, step)
        if step + 1 < self._num_steps:
            self._made[step + 1] = self._maker.submit(self._make, step + 1)
        return batches.result()

    def __enter__(self) -> BatchPrefetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._maker.shutdown(wait=True, cancel_futures=True)
