"""The plan of an evaluation: careers packed into rows, rows into units, units into parts.

A unit is one forward. Its rows and its shape depend on the careers' lengths and the settings only; ranks decide who
computes a unit, never what is in it. A part is a file of finished units; what has a file is never computed again.
"""

from __future__ import annotations

from dataclasses import dataclass

from laborllm_dist.batching.packing import pack_careers
from laborllm_dist.config.run import EvaluationSettings
from laborllm_dist.errors import SequenceTooLongError
from laborllm_dist.store.store import CareerTable


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """`units[u]` are the rows of unit u; part p is units [p * batches_per_part, ...). Row numbers are the store's."""

    units: tuple[tuple[tuple[int, ...], ...], ...]
    max_seq_length: int
    batches_per_part: int

    @property
    def num_parts(self) -> int:
        """Number of part files."""
        return -(-len(self.units) // self.batches_per_part)

    def units_of_part(self, part: int) -> range:
        """Return the units of a part."""
        return range(part * self.batches_per_part, min((part + 1) * self.batches_per_part, len(self.units)))


def plan_evaluation(careers: CareerTable, settings: EvaluationSettings) -> EvaluationPlan:
    """Pack all careers of a split.

    Raises:
        SequenceTooLongError: naming the person and how many there are, if a career does not fit a row.
    """
    lengths = careers.num_tokens()
    longest = int(lengths.argmax())
    if lengths[longest] > settings.max_seq_length:
        survey, person = careers.person(longest)
        raise SequenceTooLongError(
            f"career {person!r} of {survey} has {lengths[longest]} tokens, evaluation.max_seq_length is "
            f"{settings.max_seq_length}; evaluate with max_seq_length={lengths[longest]} or more, or with "
            f"truncation=last_lines; "
            f"{careers.longer_than(settings.max_seq_length)}"
        )
    rows = pack_careers(lengths.tolist(), settings.max_seq_length).rows
    step = settings.batch_size
    units = tuple(rows[first : first + step] for first in range(0, len(rows), step))
    return EvaluationPlan(
        units=units, max_seq_length=settings.max_seq_length, batches_per_part=settings.batches_per_part
    )
