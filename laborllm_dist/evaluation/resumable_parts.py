"""Resumable work in parts: whichever rank is free computes the next part and writes its file.

A new start computes only the parts that have no file. A part does not depend on its rank or on the number of ranks.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import pyarrow as pa

from laborllm_dist.distributed.context import DistributedContext
from laborllm_dist.errors import ScoreTableError
from laborllm_dist.io.files import atomic_write
from laborllm_dist.tables.parquet import DAMAGE, check_content, read_parquet, with_checksum, write_parquet

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ResumableJob:
    """A job in parts: `make` returns part p, a table whose rows have the key (`career`, `position`)."""

    folder: Path
    num_parts: int
    make: Callable[[int], pa.Table]
    join_remaining: Callable[[], None]  # called on a rank when no parts are left
    word: str = "evaluate"  # prefix of progress lines


def finish_parts(work: ResumableJob, ranks: DistributedContext) -> None:
    """Compute the parts that have no file yet. Collective."""
    missing = ranks.run_on_main(lambda: _missing(work))
    if done := work.num_parts - len(missing):
        logger.info(f"{work.word}: {done:,} of {work.num_parts:,} parts are there")
    started, num_made = monotonic(), 0
    for place in ranks.claim_indices(len(missing)):
        table = work.make(missing[place])
        with atomic_write(_path(work, missing[place])) as partial:
            write_parquet(with_checksum(table), partial)
        num_made += table.num_rows
        speed = num_made * ranks.world_size / (monotonic() - started)
        logger.info(f"{work.word}: part {place + 1:,}/{len(missing):,}  {speed:,.1f} observations/s")
    work.join_remaining()
    ranks.barrier()


def read_parts(work: ResumableJob, keys: pa.Table) -> pa.Table:
    """Put all parts together, in the order of career and position.

    Args:
        work: a job whose parts all have files.
        keys: `career` and `position` of every expected row, in order.

    Raises:
        ScoreTableError: if a part is damaged, or a row is missing or occurs twice.
    """
    tables = [_read(_path(work, part)) for part in range(work.num_parts)]
    joined = pa.concat_tables(tables).sort_by([("career", "ascending"), ("position", "ascending")])
    same = joined.num_rows == keys.num_rows and all(
        joined[name].combine_chunks().equals(keys[name].combine_chunks()) for name in ("career", "position")
    )
    if not same:
        raise ScoreTableError(
            f"the parts in {work.folder} hold {joined.num_rows:,} observations, the split has {keys.num_rows:,}, or "
            "not the same ones; delete the folder and evaluate again",
            code="parts-of-other-observations",
        )
    return joined


def remove_parts(work: ResumableJob) -> None:
    """Remove the parts, and their folder where nothing else is in it."""
    for part in work.folder.glob("part-??????.parquet*"):
        part.unlink()
    with contextlib.suppress(OSError):
        work.folder.rmdir()


def _read(path: Path) -> pa.Table:
    try:
        table = read_parquet(path)
        check_content(table)
        return table
    except FileNotFoundError:
        raise ScoreTableError(f"{path} is missing; evaluate again to write it", code="part-missing") from None
    except DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ScoreTableError(
            f"{path} is damaged ({reason}); delete it, and evaluate again to write it", code="part-damaged"
        ) from None


def _missing(work: ResumableJob) -> list[int]:
    work.folder.mkdir(parents=True, exist_ok=True)
    return [part for part in range(work.num_parts) if not _path(work, part).is_file()]


def _path(work: ResumableJob, part: int) -> Path:
    return work.folder / f"part-{part:06d}.parquet"
