"""Merge pieces into a store: check that each is complete and no person occurs twice, count, write card and manifest.

Nothing is copied: the store is the folder in which the pieces were made, renamed.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from laborllm_dist.careers.corpus import missing_variables, pooled_vocabulary
from laborllm_dist.careers.corpus_counts import CorpusCounts, counts_from_values, titles_csv
from laborllm_dist.careers.splits import SPLITS
from laborllm_dist.config.data import DataSettings, PersonSplit, identity_split
from laborllm_dist.config.run import RunSettings
from laborllm_dist.errors import DataFileError, StoreError
from laborllm_dist.io.files import fsync_path, sha256_of, write_json, write_text
from laborllm_dist.randomness import person_digest
from laborllm_dist.store.data_card import SharedPeople, card_markdown, card_values
from laborllm_dist.store.shards import ENDS, PEOPLE, PIECES, corpus_end, piece_folder, read_piece
from laborllm_dist.store.store import CARD, CUT_COUNTS, MANIFEST, write_store_manifest

logger = logging.getLogger(__name__)


def all_pieces(folder: Path, data: DataSettings) -> dict[str, list[Path]] | None:
    """Return the folders of all pieces by corpus, in order; None if one is still missing."""
    pieces: dict[str, list[Path]] = {}
    for name in data.corpora:
        end = corpus_end(folder, name)
        if end is None:
            return None
        pieces[name] = [piece_folder(folder, name, index) for index in range(end[0])]
    return pieces if all(piece.is_dir() for folders in pieces.values() for piece in folders) else None


def merge_pieces(
    folder: Path, settings: RunSettings, facts: Mapping[str, Any], pieces: Mapping[str, list[Path]]
) -> None:
    """Write the data card and the manifest into the folder of the pieces.

    Args:
        folder: of tokenizer, occupations and pieces.
        settings: of the run.
        facts: the manifest's other entries: format, fingerprints, identity, tokenizer.
        pieces: from `all_pieces`.

    Raises:
        DataFileError: if a person occurs twice in a corpus, or in two splits, or the training split is empty.
        StoreError: if a piece has changed since it was written.
    """
    data = settings.data
    records: dict[str, list[tuple[Path, dict[str, Any]]]] = {name: [] for name in pieces}
    tallies = {name: CorpusCounts() for name in pieces}
    for name, folders in pieces.items():
        for piece in folders:
            record = read_piece(piece)
            # Summed as they are read, so that only one copy of a large corpus's counts is in memory.
            tallies[name] = tallies[name].with_titles_trimmed() + counts_from_values(record.pop("tally"))
            records[name].append((piece, record))
    _check_people(settings, pieces)
    shared = _shared_people(settings, pieces)
    for each in shared:
        if not each.num:
            logger.info(_nobody_shared(settings, each, pieces))
    counts: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        of_split = [(piece, record["splits"][split]) for pairs in records.values() for piece, record in pairs]
        names = ("people", "texts", "observations", "tokens", *_cut_counts(settings))
        counts[split] = {name: sum(each[name] for _, each in of_split) for name in names}
        counts[split]["shards"] = [
            str((piece / f"{split}.arrow").relative_to(folder)) for piece, each in of_split if each["texts"]
        ]
    _check_nobody_is_lost(folder, tallies)
    _check_training_people(data, tallies)
    shutil.rmtree(folder / ENDS, ignore_errors=True)
    shutil.rmtree(folder / "work", ignore_errors=True)
    for leftover in (folder / PIECES).glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)
    truncated = {
        corpus: {name: _sum_of(name, [record for _, record in pairs]) for name in _cut_counts(settings)}
        for corpus, pairs in records.items()
    }
    card = card_values(tallies, data, pooled_vocabulary(data).title_of(), missing_variables(data), truncated, shared)
    if not isinstance(settings.split, PersonSplit):
        card["split"] = identity_split(settings.split)
    write_json(folder / f"{CARD}.json", card)
    write_text(folder / f"{CARD}.md", card_markdown(card))
    for name, tally in tallies.items():
        if tally.titles:
            write_text(folder / f"titles_{name}.csv", titles_csv(tally.titles))
    _write_manifest(folder, facts, counts, records)


def _cut_counts(settings: RunSettings) -> tuple[str, ...]:
    return CUT_COUNTS if settings.template.max_tokens is not None else ()


def _sum_of(name: str, records: list[dict[str, Any]]) -> int:
    return sum(record["splits"][split][name] for record in records for split in SPLITS)


def _write_manifest(
    folder: Path,
    facts: Mapping[str, Any],
    counts: Mapping[str, Any],
    records: Mapping[str, list[tuple[Path, dict[str, Any]]]],
) -> None:
    # The pieces' files have just been compared with the checksums in their records.
    known = {
        piece / name: checksum
        for pairs in records.values()
        for piece, record in pairs
        for name, checksum in record["files"].items()
    }
    # A killed attempt may have left a manifest or a partial file.
    for leftover in [folder / MANIFEST, *folder.rglob("*.partial")]:
        leftover.unlink(missing_ok=True)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        if path not in known:
            fsync_path(path)
    entries = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": known.get(path) or sha256_of(path)}
        for path in files
    }
    write_store_manifest(folder, {**facts, "splits": dict(counts), "files": entries})


def _check_nobody_is_lost(folder: Path, tallies: Mapping[str, CorpusCounts]) -> None:
    for name, tally in tallies.items():
        end = corpus_end(folder, name)
        if end is not None and tally.people_read != end[1]:
            raise StoreError(
                f"the pieces of {name} hold {tally.people_read:,} people, its source {end[1]:,}; delete {folder} and "
                "start again",
                code="missing-people",
            )


def _check_training_people(data: DataSettings, tallies: Mapping[str, CorpusCounts]) -> None:
    if any(tally.people["train"] for tally in tallies.values()):
        return
    num_people = sum(tally.careers for tally in tallies.values())
    reasons = sorted(sum(tallies.values(), CorpusCounts()).left_out(), key=lambda each: -each.count)[:3]
    shown = ", ".join(f"{each.reason} ({each.count:,})" for each in reasons)
    why = f"; left out: {shown}" if reasons else ""
    raise DataFileError(
        f"none of {num_people} people of data={data.name} is in the training split; the corpus is too small to train "
        f"on{why}",
        code="empty-training-split",
    )


def _check_people(settings: RunSettings, pieces: Mapping[str, list[Path]]) -> None:
    """Check that no person occurs twice in a corpus, or in different splits of two corpora."""
    tables = {name: [np.load(piece / PEOPLE) for piece in folders] for name, folders in pieces.items()}
    for name, arrays in tables.items():
        digests = np.concatenate([people["digest"] for people in arrays]) if arrays else np.zeros(0, np.uint64)
        values, times = np.unique(digests, return_counts=True)
        if len(values) < len(digests):
            person = _person_of(int(values[times.argmax()]), settings, name, pieces[name])
            raise DataFileError(
                f"corpus {name}: person {person!r} occurs twice; a person must be one career, so give the two other "
                "numbers, or bring their rows together",
                code="duplicate-person",
            )
    everybody = np.concatenate([people for arrays in tables.values() for people in arrays])
    people = np.unique(everybody)
    doubled = people["digest"][1:][people["digest"][1:] == people["digest"][:-1]]
    if len(doubled):
        splits = " and ".join(SPLITS[code] for code in people["split"][people["digest"] == doubled[0]])
        owners = [name for name, arrays in tables.items() if any(doubled[0] in each["digest"] for each in arrays)]
        person = _person_of(int(doubled[0]), settings, owners[0], pieces[owners[0]])
        raise DataFileError(
            f"person {person!r} is in the splits {splits} of {' and '.join(owners)} ({len(doubled):,} such people), so "
            "that a test person would be trained on; leave these people out of one of the two",
            code="person-in-several-splits",
        )


def _shared_people(settings: RunSettings, pieces: Mapping[str, list[Path]]) -> list[SharedPeople]:
    """Return how many people each two corpora of one population share, where both have people."""
    corpora = settings.data.corpora
    digests = {name: _digests(folders) for name, folders in pieces.items()}
    return [
        SharedPeople(one, other, corpora[one].people_of, len(np.intersect1d(digests[one], digests[other])))
        for one, other in itertools.combinations(corpora, 2)
        if corpora[one].people_of == corpora[other].people_of and len(digests[one]) and len(digests[other])
    ]


def _nobody_shared(settings: RunSettings, pair: SharedPeople, pieces: Mapping[str, list[Path]]) -> str:
    """Return the line for two corpora of one population that share nobody, with a person of each to compare."""
    names = [
        repr(_person_of(int(_digests(pieces[name])[0]), settings, name, pieces[name]))
        for name in (pair.one, pair.other)
    ]
    return (
        f"prepare: corpora {pair.one} and {pair.other} are of one population ({pair.population}) and share nobody; if "
        f"they should, their people are numbered differently (such as {names[0]} and {names[1]}), and some may be "
        "trained on in one and tested on in the other"
    )


def _digests(pieces: list[Path]) -> npt.NDArray[np.uint64]:
    """Return the digests of a corpus's people."""
    digests = [np.load(piece / PEOPLE)["digest"] for piece in pieces]
    return np.concatenate(digests) if digests else np.zeros(0, np.uint64)


def _person_of(digest: int, settings: RunSettings, corpus: str, pieces: list[Path]) -> str:
    """Return the name of the person with this digest."""
    population = settings.data.corpora[corpus].people_of
    for path in (path for piece in pieces for path in sorted(piece.glob("*.arrow"))):
        with pa.ipc.open_stream(str(path)) as stream:
            for person in stream.read_all()["person"].to_pylist():
                if person_digest(population, person, settings.split.salt) == digest:
                    return str(person)
    raise StoreError(
        f"no piece of {corpus} holds the person with digest {digest}; delete the folder and start again",
        code="person-not-found",
    )
