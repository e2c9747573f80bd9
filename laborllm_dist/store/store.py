"""The token store: all careers of a run as ids with title spans, split by people, in Arrow files that `datasets` opens.

    stores/NAME-FINGERPRINT/
        pieces/psid81-00000/       train.arrow, validation.arrow, test.arrow: one row a text, with all facts of the
                                   career in it, so that no other file is needed later; piece.json, people.npy
        data_card.md, .json        its content, and what was left out
        prefix.json               the text before every career, and the people of its examples; if there is one
        occupations.csv            the vocabulary, in order
        tokenizer/                 the tokenizer that made the ids
        manifest.json              written last: counts, sizes and checksums; without it the folder is not a store

The folder's name is a function of data, split, template and tokenizer. A store never changes: the manifest has a
checksum of itself, and each shard records its place in the store, so a reader gets exactly what was written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from laborllm_dist.careers.occupations.vocabulary import read_written_vocabulary
from laborllm_dist.careers.splits import SPLITS, Split
from laborllm_dist.careers.types import CareerHistory, Job, OccupationVocabulary
from laborllm_dist.config.reader import Strict, read_settings
from laborllm_dist.errors import SequenceTooLongError, SettingsError, StoreError
from laborllm_dist.io.files import ChecksumCheck, sha256_of_json, write_json
from laborllm_dist.io.json_files import read_json_object
from laborllm_dist.io.number_format import format_people
from laborllm_dist.store.tokenize import TokenizedCareer
from laborllm_dist.text.template import CareerText

FORMAT = 2
MANIFEST, OCCUPATIONS, TOKENIZER, CARD = "manifest.json", "occupations.csv", "tokenizer", "data_card"
PREFIX = "prefix.json"
CHECKED_AT_ONCE_BYTES = 2**26  # bytes of a store whose checksums are compared before anything is read
_SHARD_FACTS = b"laborllm_dist"  # metadata key of a shard's schema: the shard's place in the store
# Of a split, where the template has max_tokens: people with truncated histories, and observations after a
# truncated history.
CUT_COUNTS = ("cut_people", "cut_observations")
STORE_SCHEMA = pa.schema(
    [
        ("survey", pa.string()),  # dataset tag of the corpus
        ("person", pa.string()),  # id of the person in the corpus
        ("birth_year", pa.int32()),  # year of birth
        ("gender", pa.string()),  # as in the text
        ("ethnicity", pa.string()),  # as in the text
        ("region", pa.string()),  # as in the text
        ("years", pa.list_(pa.int32())),  # calendar year of every job
        ("occupations", pa.list_(pa.int32())),  # index of every job's occupation in the vocabulary
        ("educations", pa.list_(pa.string())),  # level of education of every job
        ("first_position", pa.int32()),  # index of the row's first job in the career; above 0 in parts of careers
        ("previous", pa.int32()),  # occupation before that job; null at the beginning of the career
        ("token_ids", pa.list_(pa.int32())),  # tokens of the text
        ("title_starts", pa.list_(pa.int32())),  # first token of every title
        ("title_ends", pa.list_(pa.int32())),  # token after the last one of every title
    ]
)

_HISTORY = STORE_SCHEMA.names[: STORE_SCHEMA.get_field_index("educations") + 1]
_LISTS = ("years", "occupations", "educations")  # of these, one value per job


def store_rows(
    careers: Sequence[CareerHistory],
    texts: Sequence[CareerText],
    tokenized: Sequence[TokenizedCareer],
    index_of: Mapping[str, int],
) -> pa.Table:
    """Return texts and their tokens as rows of a store, each with the career it is of."""
    places = [(text.first_job, text.first_job + len(text.title_spans)) for text in texts]
    predicted = [career.jobs[first:last] for career, (first, last) in zip(careers, places, strict=True)]
    columns: dict[str, list[Any]] = {
        "survey": [career.survey for career in careers],
        "person": [career.person for career in careers],
        "birth_year": [career.birth_year for career in careers],
        "gender": [career.gender for career in careers],
        "ethnicity": [career.ethnicity for career in careers],
        "region": [career.region for career in careers],
        "years": [[job.year for job in jobs] for jobs in predicted],
        "occupations": [[index_of[job.occupation] for job in jobs] for jobs in predicted],
        "educations": [[job.education for job in jobs] for jobs in predicted],
        "first_position": [first for first, _ in places],
        "previous": [
            index_of[career.jobs[first - 1].occupation] if first else None
            for career, (first, _) in zip(careers, places, strict=True)
        ],
        "token_ids": [text.ids for text in tokenized],
        "title_starts": [[start for start, _ in text.title_spans] for text in tokenized],
        "title_ends": [[end for _, end in text.title_spans] for text in tokenized],
    }
    return pa.table(columns, schema=STORE_SCHEMA)


@dataclass(frozen=True, slots=True)
class _FileFacts(Strict):
    """A manifest's entry for a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class _SplitFacts(Strict):
    """A manifest's entry for a split; `shards` are files of the store."""

    people: int
    texts: int
    observations: int
    tokens: int
    shards: tuple[str, ...]
    cut_people: int = 0
    cut_observations: int = 0


@dataclass(frozen=True, slots=True)
class _TokenizerFacts(Strict):
    """A manifest's entry for the tokenizer."""

    fingerprint: str
    num_ids: int


@dataclass(frozen=True, slots=True)
class _ManifestFacts(Strict):
    """The entries of a manifest."""

    format: int
    fingerprint: str
    careers_fingerprint: str
    identity: dict[str, object]
    tokenizer: _TokenizerFacts
    splits: dict[str, _SplitFacts]
    files: dict[str, _FileFacts]


@dataclass(frozen=True, slots=True)
class TokenStore:
    """A complete store. `facts` is its manifest."""

    folder: Path
    facts: Mapping[str, Any]
    vocabulary: OccupationVocabulary

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the store's inputs, 16 hexadecimal digits."""
        return str(self.facts["fingerprint"])

    @property
    def careers_fingerprint(self) -> str:
        """Fingerprint of the sources of people, jobs and splits, independent of text and tokens."""
        return str(self.facts["careers_fingerprint"])

    @property
    def num_ids(self) -> int:
        """Number of ids of the tokenizer."""
        return int(self.facts["tokenizer"]["num_ids"])

    def describe(self) -> str:
        """Return a line with the folder and the counts."""
        counts = self.facts["splits"]
        people = ", ".join(f"{counts[split]['people']:,} {split}" for split in SPLITS)
        observations, tokens = (sum(count[name] for count in counts.values()) for name in ("observations", "tokens"))
        return f"{people} people; {observations:,} observations, {tokens:,} tokens; {self.folder}"

    def num_people(self, split: Split) -> int:
        """Return the number of people in a split."""
        return int(self.facts["splits"][split]["people"])

    def num_texts(self, split: Split) -> int:
        """Return the number of rows of a split: one a person, or more where history is limited."""
        return int(self.facts["splits"][split]["texts"])

    def num_truncated(self, split: Split) -> dict[str, int]:
        """Return CUT_COUNTS of a split; empty if the template truncates nothing."""
        counts = self.facts["splits"][split]
        return {name: int(counts[name]) for name in CUT_COUNTS if name in counts}

    def careers(self, split: Split) -> CareerTable:
        """Open the careers of a split, memory-mapped.

        Raises:
            StoreError: if the split has no people.
        """
        names = self.facts["splits"][split]["shards"]
        if not names:
            raise StoreError(
                f"the store {self.folder} has no people in its {split} split; "
                "take more people, or another split (--help split)",
                code="empty-split",
            )
        for name in names:
            self._check_place(name, split)
        shards = [pa.ipc.open_stream(pa.memory_map(str(self.folder / name))).read_all() for name in names]
        table = pa.concat_tables(shards)
        if table.num_rows != self.num_texts(split):
            raise StoreError(
                f"the {split} files of {self.folder} hold {table.num_rows:,} careers, the manifest says "
                f"{self.num_texts(split):,}; delete the folder and prepare again",
                code="career-count-mismatch",
            )
        return CareerTable(table=table, vocabulary=self.vocabulary)

    def _check_place(self, name: str, split: Split) -> None:
        """Check that a shard belongs to this place and this split."""
        path = self.folder / name
        try:
            with pa.ipc.open_stream(str(path)) as stream:
                place = (stream.schema.metadata or {}).get(_SHARD_FACTS, b"").decode()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise StoreError(
                f"{path} is damaged ({str(error).splitlines()[0]}); delete {self.folder} and prepare again",
                code="damaged-careers",
            ) from None
        if place != name or path.name != f"{split}.arrow":
            raise StoreError(
                f"{path} says that it is {place or 'of an earlier version'}, the manifest takes it for people of the "
                f"{split} split; delete {self.folder} and prepare again",
                code="wrong-split",
            )


def shard_schema(place: str) -> pa.Schema:
    """Return the schema of the shard at `place` in its store, such as pieces/psid81-00000/test.arrow."""
    return STORE_SCHEMA.with_metadata({_SHARD_FACTS: place.encode()})


@dataclass(frozen=True, slots=True)
class CareerTable:
    """The careers of one split, by row number."""

    table: pa.Table
    vocabulary: OccupationVocabulary

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def person_of_rows(self) -> npt.NDArray[np.int64]:
        """Return the number of every row's person, from 0, [rows]; a person's rows are neighbors."""
        begins = np.zeros(len(self), dtype=bool)
        for name in ("survey", "person"):
            column = self.table[name].combine_chunks()
            begins[1:] |= np.asarray(pc.not_equal(column[1:], column[:-1]))
        return np.cumsum(begins)

    def num_people(self) -> int:
        """Return the number of people."""
        return int(self.person_of_rows()[-1]) + 1 if len(self) else 0

    def first_rows(self) -> npt.NDArray[np.int64]:
        """Return the first row of every person, [people]."""
        return np.flatnonzero(np.diff(self.person_of_rows(), prepend=-1))

    def are_whole(self) -> bool:
        """Return whether every row has all jobs of its career up to its last one."""
        return not pc.any(pc.greater(self.table["first_position"], 0)).as_py()

    def longer_than(self, limit: int) -> str:
        """Return a phrase for messages: how many people have a text of more than `limit` tokens."""
        num_longer = len(np.unique(self.person_of_rows()[self.num_tokens() > limit]))
        return format_people(num_longer, self.num_people(), "is longer", "are longer", people="people of this split")

    def num_tokens(self) -> npt.NDArray[np.int64]:
        """Return the number of tokens of every career, [people]."""
        return np.asarray(pc.list_value_length(self.table["token_ids"]), dtype=np.int64)

    def num_title_tokens(self) -> npt.NDArray[np.int64]:
        """Return the number of tokens of titles and of the line breaks after them of every career, [people]."""
        starts, ends = self.table["title_starts"], self.table["title_ends"]
        lengths = pc.add(pc.subtract(pc.list_flatten(ends), pc.list_flatten(starts)), 1)
        of_career = np.repeat(np.arange(len(self)), self.num_observations())
        return np.bincount(of_career, np.asarray(lengths), minlength=len(self)).astype(np.int64)

    def num_observations(self) -> npt.NDArray[np.int64]:
        """Return the number of jobs of every career, [people]."""
        return np.asarray(pc.list_value_length(self.table["years"]), dtype=np.int64)

    def token_ids(self, row: int) -> npt.NDArray[np.int32]:
        """Return the ids of a career, [tokens]."""
        return np.asarray(self.table["token_ids"][row].values, dtype=np.int32)

    def title_spans(self, row: int) -> npt.NDArray[np.int32]:
        """Return start and end of every title's tokens, [jobs, 2]."""
        starts, ends = self.table["title_starts"][row].values, self.table["title_ends"][row].values
        return np.stack([np.asarray(starts, dtype=np.int32), np.asarray(ends, dtype=np.int32)], axis=1)

    def occupations_of(self, rows: Sequence[int]) -> npt.NDArray[np.int64]:
        """Return the places in the vocabulary of the titles that these rows predict, one row after the other."""
        return np.concatenate([np.asarray(self.table["occupations"][row].values, dtype=np.int64) for row in rows])

    def taken(self, rows: Sequence[int]) -> CareerTable:
        """Return the titles of these rows, without their tokens."""
        titles = self.table.select(["years", "occupations", "previous"])
        return CareerTable(titles.take(pa.array(rows, pa.int64())), self.vocabulary)

    def first_position(self, row: int) -> int:
        """Return the position in its career of the first job that a row predicts."""
        return int(self.table["first_position"][row].as_py())

    def transitions(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the occupation before (num_occupations where there is none) and the occupation, [observations]."""
        after = np.asarray(pc.list_flatten(self.table["occupations"]), dtype=np.int64)
        before = np.roll(after, 1)
        num_jobs = self.num_observations()
        started = pc.fill_null(self.table["previous"], len(self.vocabulary))
        before[np.cumsum(num_jobs) - num_jobs] = np.asarray(started, dtype=np.int64)
        return before, after

    def person(self, row: int) -> tuple[str, str]:
        """Return survey and person of a career, for messages."""
        return self.table["survey"][row].as_py(), self.table["person"][row].as_py()

    def history(self, row: int) -> CareerHistory:
        """Return a career as it was read; where history is limited, the part of it that the row predicts."""
        facts = {name: self.table[name][row].as_py() for name in _HISTORY}
        jobs = zip(facts.pop("years"), facts.pop("occupations"), facts.pop("educations"), strict=True)
        codes = self.vocabulary.codes
        return CareerHistory(**facts, jobs=tuple(Job(year, codes[index], education) for year, index, education in jobs))


def whole_careers(careers: CareerTable, earlier: Sequence[CareerTable]) -> tuple[CareerTable, npt.NDArray[np.bool_]]:
    """Put the parts of careers together: those of `careers` and, with split_by=year, those of the splits before it.

    Returns:
        One row per person of `careers`, with all jobs up to the last one and without tokens; and which of its
        observations are those of `careers`, [observations], which are in the same order.
    """
    if careers.are_whole():
        return careers, np.ones(int(careers.num_observations().sum()), dtype=bool)
    first_rows = careers.first_rows()
    everybody = _keys(careers).take(pa.array(first_rows))
    parts = [*earlier, careers]
    people = [np.asarray(pc.fill_null(pc.index_in(_keys(each), everybody), -1), dtype=np.int64) for each in parts]
    is_own = np.concatenate([np.full(len(each), each is careers) for each in parts])
    table = pa.concat_tables([each.table.select([*_HISTORY, "first_position"]) for each in parts])
    person = np.concatenate(people)
    order = np.lexsort((np.asarray(table["first_position"]), person))
    order = order[person[order] >= 0]
    table, person, is_own = table.take(pa.array(order)), person[order], is_own[order]
    lengths = np.asarray(pc.list_value_length(table["years"]), dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(person, lengths, len(first_rows)))]).astype(np.int32)
    fixed = careers.table.select([name for name in _HISTORY if name not in _LISTS]).take(pa.array(first_rows))
    columns = {name: fixed[name] for name in fixed.column_names} | {
        name: pa.ListArray.from_arrays(offsets, pc.list_flatten(table[name]).combine_chunks()) for name in _LISTS
    }
    columns["first_position"] = pa.array(np.zeros(len(first_rows), dtype=np.int32))
    columns["previous"] = pa.nulls(len(first_rows), pa.int32())
    return CareerTable(pa.table(columns), careers.vocabulary), np.repeat(is_own, lengths)


def _keys(careers: CareerTable) -> pa.Array:
    """Return survey and person of every row as one text."""
    names = [careers.table[name].combine_chunks() for name in ("survey", "person")]
    return pc.binary_join_element_wise(*names, "\x1f")


def open_store(folder: Path) -> TokenStore:
    """Open a store; check all files' sizes, and the checksums of manifest, vocabulary, prefix and tokenizer.

    Raises:
        StoreError: if it is missing, unfinished, of another format, or a file is missing or has changed.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise StoreError(
            f"no complete token store at {folder}; `python launch/prepare.py` with the run's settings makes it",
            code="no-store",
        )
    try:
        facts = read_json_object(manifest)
        if facts["format"] != FORMAT:
            raise StoreError(
                f"{folder} has format {facts['format']}, this version reads {FORMAT}; delete it and prepare again",
                code="unsupported-store-format",
            )
        if facts.pop("sha256", None) != sha256_of_json(facts):
            raise StoreError(
                f"{manifest} has changed since it was written, or is of an earlier version (no SHA-256 of its own); "
                f"delete {folder} and prepare again",
                code="manifest-checksum-mismatch",
            )
        _check_facts(facts)
        sizes = {name: entry["bytes"] for name, entry in facts["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, SettingsError) as error:
        raise StoreError(
            f"{manifest} is damaged ({error}); delete {folder} and prepare again", code="damaged-manifest"
        ) from None
    for name, size in sizes.items():
        actual = (folder / name).stat().st_size if (folder / name).is_file() else None
        if actual != size:
            state = "is missing" if actual is None else f"has {actual:,} bytes, the manifest says {size:,}"
            raise StoreError(
                f"{folder / name} {state}; delete {folder} and prepare again", code="missing-or-incomplete-file"
            )
    small = [name for name in sizes if name in (OCCUPATIONS, PREFIX) or name.startswith(f"{TOKENIZER}/")]
    _check_of(folder, facts, small).wait()
    return TokenStore(folder=folder, facts=facts, vocabulary=read_written_vocabulary(folder / OCCUPATIONS))


def _check_facts(facts: Mapping[str, Any]) -> None:
    """Check the entries of a manifest: an edited one may have a valid checksum and still be incomplete.

    Raises:
        SettingsError: if an entry is missing, unknown or of the wrong type.
        KeyError: if a shard is not among the files, or the sources are missing.
        TypeError: if the sources are not a mapping.
        ValueError: if the splits are not the three.
    """
    read = read_settings(_ManifestFacts, facts)
    if read.splits.keys() != set(SPLITS):
        raise ValueError(f"its splits are {', '.join(read.splits)}")
    for split in read.splits.values():
        _ = [read.files[name] for name in split.shards]
    _ = facts["identity"]["careers"]["sources"]


def write_store_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of a store, with its own checksum."""
    write_json(folder / MANIFEST, {**facts, "sha256": sha256_of_json(facts)})


@contextmanager
def checking_store(store: TokenStore, splits: Sequence[Split]) -> Iterator[ChecksumCheck]:
    """Compare the shards of splits with their checksums in threads; call `wait` before using what was read.

    Up to CHECKED_AT_ONCE_BYTES are compared before the block begins.

    Raises:
        StoreError: naming a file that has changed, from `wait`, or instead of any other error of the block.
    """
    names = [name for split in splits for name in store.facts["splits"][split]["shards"]]
    with _check_of(store.folder, store.facts, names) as check:
        if sum(store.facts["files"][name]["bytes"] for name in names) <= CHECKED_AT_ONCE_BYTES:
            check.wait()
        yield check


def verify_store(store: TokenStore) -> TokenStore:
    """Return the store after every file's checksum has been compared with the manifest.

    Raises:
        StoreError: naming the first file that has changed.
    """
    _check_of(store.folder, store.facts, list(store.facts["files"])).wait()
    return store


def _check_of(folder: Path, facts: Mapping[str, Any], names: Sequence[str]) -> ChecksumCheck:
    def changed(path: Path) -> StoreError:
        return StoreError(
            f"{path} has changed since it was written (SHA-256); delete {folder} and prepare again",
            code="file-checksum-mismatch",
        )

    return ChecksumCheck({folder / name: str(facts["files"][name]["sha256"]) for name in names}, changed)


def check_lengths(store: TokenStore, limit: int, advice: str, splits: Sequence[Split] = SPLITS) -> None:
    """Raise if a career has more than `limit` tokens, naming the longest of the first split that has one.

    Raises:
        SequenceTooLongError: with the advice, and the number of people affected.
    """
    for split in splits:
        careers = store.careers(split)
        lengths = careers.num_tokens()
        longest = int(lengths.argmax())
        if lengths[longest] > limit:
            survey, person = careers.person(longest)
            raise SequenceTooLongError(
                f"career {person!r} of {survey} ({split}) has {lengths[longest]} tokens, {advice}; "
                f"{careers.longer_than(limit)}",
                code="career-too-long",
            )
