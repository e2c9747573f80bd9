"""The plan of an evaluation: careers packed into rows, rows into units, units into parts.

A unit is one forward. Its rows and its shape depend on the careers' lengths and the settings only; ranks decide who
computes a unit, never what is in it. A part is a file of finished units; what has a file is never computed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from laborllm_dist.batches.packing import pack_careers
from laborllm_dist.errors import RowTooShort
from laborllm_dist.files import writing
from laborllm_dist.settings import EvaluationSettings
from laborllm_dist.tokens.store import CareerRows

PART_SCHEMA = pa.schema(
    [("career", pa.int64()), ("position", pa.int32()), ("title", pa.float64()), ("terminated", pa.float64())]
)


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """`units[u]` are the rows of unit u; part p is units [p * units_per_part, ...). Row numbers are the store's."""

    units: tuple[tuple[tuple[int, ...], ...], ...]
    row_length: int
    units_per_part: int

    @property
    def num_parts(self) -> int:
        """Number of part files."""
        return -(-len(self.units) // self.units_per_part)

    def units_of_part(self, part: int) -> range:
        """Return the units of a part."""
        return range(part * self.units_per_part, min((part + 1) * self.units_per_part, len(self.units)))


def plan_evaluation(careers: CareerRows, settings: EvaluationSettings) -> EvaluationPlan:
    """Pack all careers of a split.

    Raises:
        RowTooShort: naming the person and how many there are, if a career does not fit a row.
    """
    lengths = careers.num_tokens()
    longest = int(lengths.argmax())
    if lengths[longest] > settings.row_length:
        survey, person = careers.person(longest)
        raise RowTooShort(
            f"career {person!r} of {survey} has {lengths[longest]} tokens, evaluation.row_length is "
            f"{settings.row_length}; evaluate with row_length={lengths[longest]} or more, or with too_long=last_lines; "
            f"{careers.longer_than(settings.row_length)}"
        )
    rows = pack_careers(lengths.tolist(), settings.row_length).rows
    step = settings.rows_per_unit
    units = tuple(rows[first : first + step] for first in range(0, len(rows), step))
    return EvaluationPlan(units=units, row_length=settings.row_length, units_per_part=settings.units_per_part)


def part_path(folder: Path, part: int) -> Path:
    """Return the file of a part."""
    return folder / f"part-{part:06d}.parquet"


def write_part(path: Path, keys: npt.NDArray[np.int64], scores: npt.NDArray[np.float64]) -> None:
    """Write a part's observations atomically.

    Args:
        path: file of the part.
        keys: [observations, 2], the career's row in the store and the job's position.
        scores: [observations, 2], `title` and `terminated` in nats.
    """
    table = pa.table([keys[:, 0], keys[:, 1].astype(np.int32), scores[:, 0], scores[:, 1]], schema=PART_SCHEMA)
    with writing(path) as partial:
        pq.write_table(table, partial)
