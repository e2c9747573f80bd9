"""Make the pieces of a token store: consecutive people of a corpus, a fixed number to a folder.

    pieces/psid81-00000/   train.arrow  validation.arrow  test.arrow    rows of each split that has any
                           people.npy                                   the people's digests, to find duplicates
                           piece.json                                   counts, what was left out, checksums

The content of a piece depends on the source and the settings only, never on the process that makes it. A piece is
written under a temporary name and renamed when it is complete, so that an existing piece is never made again, after a
kill or by another process.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from laborllm_dist.careers.corpus import read_people
from laborllm_dist.careers.corpus_counts import count_people
from laborllm_dist.careers.person_records import Exclusion, PersonRecord, PersonThunk
from laborllm_dist.careers.splits import SPLITS, UNLISTED, CareerSplits, Segment
from laborllm_dist.careers.types import OccupationVocabulary
from laborllm_dist.config.corpora import CorpusSettings
from laborllm_dist.config.data import SplitSettings, YearSplit
from laborllm_dist.errors import StoreError
from laborllm_dist.io.files import batched, give_usual_mode, publish_folder, sha256_of, sha256_of_json, write_json
from laborllm_dist.io.json_files import NotJsonError, json_object, read_json_object
from laborllm_dist.randomness import person_digest
from laborllm_dist.store.store import CUT_COUNTS, shard_schema, store_rows
from laborllm_dist.store.truncation import CareerEncoder, CareerPart, encode_careers
from laborllm_dist.text.template import Template

if TYPE_CHECKING:
    from laborllm_dist.store.tokenizer import CareerTokenizer

PIECES, ENDS, RECORD, PEOPLE = "pieces", "ends", "piece.json", "people.npy"
PERSON_TYPE = np.dtype([("digest", "<u8"), ("split", "u1")])
SEVERAL = len(SPLITS)  # in place of a person's split where observations are assigned by year


@dataclass(frozen=True, slots=True)
class PieceTools:
    """The tools that all pieces share. `vocabulary` has the titles that appear in the texts."""

    folder: Path  # of the store that is being built
    vocabulary: OccupationVocabulary
    template: Template
    tokenizer: CareerTokenizer
    splits: CareerSplits
    people_per_shard: int
    max_tokens: int | None  # of a text


def make_pieces(name: str, corpus: CorpusSettings, tools: PieceTools, share: range) -> Iterator[int]:
    """Make the missing pieces of a corpus that are in `share`; yield the number of people read after each piece.

    Args:
        name: the corpus in the settings.
        corpus: its settings.
        tools: shared by all pieces.
        share: selects the pieces whose number modulo share.stop is share.start.

    Raises:
        LaborError: if the source is unusable.

    When the source has been read to its end, the number of its pieces is recorded.
    """
    number = num_people = 0
    for number, people in enumerate(batched(read_people(corpus), tools.people_per_shard), start=1):
        num_people += len(people)
        if (number - 1) % share.stop == share.start and not piece_folder(tools.folder, name, number - 1).exists():
            _make_piece(piece_folder(tools.folder, name, number - 1), people, corpus, tools)
        yield num_people
    end = tools.folder / ENDS / name / f"{share.start}-of-{share.stop}.json"
    end.parent.mkdir(parents=True, exist_ok=True)
    write_json(end, {"pieces": number, "people": num_people})


def piece_folder(store: Path, corpus: str, number: int) -> Path:
    """Return the folder of a piece."""
    return store / PIECES / f"{corpus}-{number:05d}"


def corpus_end(store: Path, corpus: str) -> tuple[int, int] | None:
    """Return the number of pieces and of people of a corpus; None until a process has read it to its end.

    Raises:
        StoreError: if two processes have read different numbers, or a record of them is damaged.
    """
    ends = {path.read_text(encoding="utf-8") for path in (store / ENDS / corpus).glob("*-of-*.json")}
    if len(ends) > 1:
        raise StoreError(
            f"processes that prepared {corpus} have read different numbers of people, so its files have changed "
            f"meanwhile; delete {store} and start again",
            code="source-changed",
        )
    if not ends:
        return None
    try:
        end = json_object(ends.pop().encode())
        return int(end["pieces"]), int(end["people"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise StoreError(
            f"what {store / ENDS / corpus} says is damaged ({error}); delete {store} and start again",
            code="damaged-corpus-totals",
        ) from None


def read_piece(folder: Path) -> dict[str, Any]:
    """Compare the files of a piece with its record; return the record.

    Raises:
        StoreError: if a file is missing or has changed since it was written.
    """
    try:
        record = read_json_object(folder / RECORD)
    except (OSError, NotJsonError):
        raise _changed_piece(folder, RECORD) from None
    if record.pop("sha256", None) != sha256_of_json(record):
        raise _changed_piece(folder, RECORD)
    for name, checksum in record["files"].items():
        if not (folder / name).is_file() or sha256_of(folder / name) != checksum:
            raise _changed_piece(folder, name)
    return record


def _changed_piece(folder: Path, name: str) -> StoreError:
    return StoreError(
        f"{folder / name} is missing or has changed since it was written; delete {folder} and start again",
        code="damaged-piece",
    )


def _make_piece(folder: Path, people: Sequence[PersonThunk], corpus: CorpusSettings, tools: PieceTools) -> None:
    assigned = [_with_segments(person(), corpus.people_of, tools.splits) for person in people]
    parts = [
        CareerPart(read.career, each) for read, segments in assigned if read.career is not None for each in segments
    ]
    folder.parent.mkdir(exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        counts = _write_rows(building, f"{PIECES}/{folder.name}", parts, tools)
        np.save(building / PEOPLE, _people_of(assigned, corpus.people_of, tools.splits.settings))
        tally = count_people([(read, [each.split for each in segments]) for read, segments in assigned])
        files = {path.name: sha256_of(path) for path in sorted(building.iterdir())}
        record = {"splits": counts, "tally": tally.to_values(), "files": files}
        write_json(building / RECORD, {**record, "sha256": sha256_of_json(record)})
        give_usual_mode(building)
        _publish(building, folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _publish(building: Path, folder: Path) -> None:
    try:
        publish_folder(building, folder, list(building.iterdir()))
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(building)  # another process has made the same piece meanwhile


def _with_segments(
    read: PersonRecord, population: str, splits: CareerSplits
) -> tuple[PersonRecord, tuple[Segment, ...]]:
    """Return a person with the segments of the career; without the career if the split leaves the person out."""
    if read.career is None:
        return read, ()
    segments = splits.segments(population, read.career, read.split)
    if not segments:
        read = dataclasses.replace(read, career=None, drops=(*read.drops, Exclusion(UNLISTED)))
    return read, segments


def _people_of(
    assigned: Sequence[tuple[PersonRecord, tuple[Segment, ...]]], population: str, settings: SplitSettings
) -> npt.NDArray[np.void]:
    """Return the digest and the number of the split of every person with a career, [people]."""
    people = [
        (
            person_digest(population, read.career.person, settings.salt),
            SEVERAL if isinstance(settings, YearSplit) else SPLITS.index(segments[0].split),
        )
        for read, segments in assigned
        if read.career is not None
    ]
    return np.array(people, dtype=PERSON_TYPE)


def _write_rows(
    building: Path, place: str, parts: Sequence[CareerPart], tools: PieceTools
) -> dict[str, dict[str, int]]:
    """Write one file for each split that has people; return people, texts, observations and tokens of each split."""
    splits = [part.segment.split for part in parts]
    encoder = CareerEncoder(tools.template, tools.vocabulary.title_of(), tools.tokenizer, tools.max_tokens)
    encoded = encode_careers(parts, encoder)
    owners = [owner for owner, each in enumerate(encoded) for _ in each.texts]
    texts = [text for each in encoded for text in each.texts]
    tokenized = [text for each in encoded for text in each.tokenized]
    rows = store_rows([parts[owner].career for owner in owners], texts, tokenized, tools.vocabulary.index_of())
    counts: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        chosen = rows.filter(pa.array([splits[owner] == split for owner in owners], type=pa.bool_())).combine_chunks()
        counts[split] = {
            "people": splits.count(split),
            "texts": chosen.num_rows,
            "observations": _total_length(chosen["years"]),
            "tokens": _total_length(chosen["token_ids"]),
        }
        if tools.max_tokens is not None:
            truncated = [
                each.num_truncated for each, its_split in zip(encoded, splits, strict=True) if its_split == split
            ]
            counts[split] |= dict(
                zip(CUT_COUNTS, (sum(num_truncated > 0 for num_truncated in truncated), sum(truncated)), strict=True)
            )
        if chosen.num_rows:
            schema = shard_schema(f"{place}/{split}.arrow")
            with pa.ipc.new_stream(str(building / f"{split}.arrow"), schema) as stream:
                stream.write_table(chosen.replace_schema_metadata(schema.metadata))
    return counts


def _total_length(column: pa.ChunkedArray) -> int:
    return int(pc.sum(pc.list_value_length(column)).as_py() or 0)
