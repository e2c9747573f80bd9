"""A store of other data for a model that was trained before: all careers, in the model's text, tokens and occupations.

The occupations of the other data are matched with those of the model by code or by title. A year whose occupation has
no match is left out of the career, and counted by code. The template, the prefix and the tokenizer are those of a store
of the model, so that its careers read as those that the model was trained on. All careers are in the test split.

    stores/NAME-FINGERPRINT/    as any token store (store/store.py), with matching.json in place of a data card
"""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from laborllm_dist.careers.corpus import fingerprint_sources, pooled_vocabulary, read_people
from laborllm_dist.careers.splits import SPLITS, Segment, Split
from laborllm_dist.careers.types import CareerHistory, OccupationVocabulary
from laborllm_dist.config.data import DataSettings, TemplateSettings, TitleSettings
from laborllm_dist.config.reader import read_settings, settings_to_values
from laborllm_dist.errors import DataFileError, StoreError
from laborllm_dist.io.files import batched, file_lock, fingerprint_of, publish_folder, sha256_of, write_json
from laborllm_dist.io.json_files import read_json_object
from laborllm_dist.store.build import without_places
from laborllm_dist.store.few_shot import read_prefix
from laborllm_dist.store.shards import PIECES
from laborllm_dist.store.store import (
    CUT_COUNTS,
    FORMAT,
    MANIFEST,
    OCCUPATIONS,
    PREFIX,
    TOKENIZER,
    TokenStore,
    checking_store,
    open_store,
    shard_schema,
    store_rows,
    write_store_manifest,
)
from laborllm_dist.store.tokenizer import load_tokenizer
from laborllm_dist.store.truncation import CareerEncoder, CareerPart, encode_careers
from laborllm_dist.text.template import compile_template
from laborllm_dist.text.title_variants import canonical_vocabulary

Matching = Literal["code", "title"]
MATCHING = "matching.json"
MOST_CODES = 1_000  # codes without a match that matching.json lists
NUM_NAMED = 5  # of them in a message


@dataclass(frozen=True, slots=True)
class MatchCounts:
    """What became of other data: people and person-years with and without a match, and the most frequent lost codes."""

    num_people: int
    num_people_left_out: int
    num_observations: int
    num_observations_left_out: int
    unmatched: tuple[tuple[str, str, int], ...]  # code, title, person-years
    num_people_seen: int  # of the same survey and id as people that the model was trained on or chosen by

    def describe(self, by: Matching) -> str:
        """Return the counts as a line."""
        num_years = self.num_observations + self.num_observations_left_out
        line = (
            f"{self.num_observations:,} of {num_years:,} person-years have an occupation of the model's, by {by}; "
            f"{self.num_people_left_out:,} of {self.num_people + self.num_people_left_out:,} people have none"
        )
        if self.num_people_seen:
            line += (
                f"; {self.num_people_seen:,} of these people are among those that the model was trained on or chosen "
                "by: their scores are not out of sample"
            )
        named = "; ".join(f"{code} {title} ({count:,})" for code, title, count in self.unmatched[:NUM_NAMED])
        return f"{line}; left out: {named}" if named else line


@dataclass(frozen=True, slots=True)
class OtherData:
    """Other careers: settings of corpora, or a prepared store."""

    name: str
    source: DataSettings | TokenStore
    splits: tuple[Split, ...] = SPLITS  # of a store, whose careers are taken

    def identity(self) -> Any:
        """Return what stands for the careers.

        Raises:
            DataFileError: if a corpus is missing.
        """
        if isinstance(self.source, TokenStore):
            return [self.source.facts["identity"]["careers"], self.splits]
        values = settings_to_values(self.source)["corpora"]
        corpora = [[name, without_places(corpus)] for name, corpus in values.items()]
        return [fingerprint_sources(self.source), corpora]

    def vocabulary(self) -> OccupationVocabulary:
        """Return its occupations, with their own titles."""
        if isinstance(self.source, TokenStore):
            titles = read_settings(TemplateSettings, self.source.facts["identity"]["template"]).titles
            return canonical_vocabulary(self.source.vocabulary, titles)
        return pooled_vocabulary(self.source)

    def careers(self) -> Iterator[CareerHistory]:
        """Yield all careers.

        Raises:
            DataFileError: if a source is unusable.
            StoreError: if the store holds parts of careers.
        """
        if isinstance(self.source, DataSettings):
            for corpus in self.source.corpora.values():
                yield from (career for read in read_people(corpus) if (career := read().career) is not None)
            return
        for split in self.splits:
            if not self.source.num_people(split):
                continue
            careers = self.source.careers(split)
            if len(careers) > careers.num_people() or not careers.are_whole():
                raise StoreError(
                    f"{self.source.folder} holds parts of careers (template.max_history or split_by=year); name the "
                    "data that it was made of instead",
                    code="other-data-in-parts",
                )
            yield from (careers.history(row) for row in range(len(careers)))


def prepared_data(folder: Path, split: Split | None) -> OtherData:
    """Open a prepared store, or a split of it, as other data, named as its folder without the fingerprint.

    Raises:
        StoreError: if there is no complete store.
    """
    store = open_store(folder)
    name = folder.resolve().name.removesuffix(f"-{store.fingerprint}")
    return OtherData(name, store) if split is None else OtherData(f"{name}_{split}", store, (split,))


def matched_codes(own: OccupationVocabulary, other: OccupationVocabulary, by: Matching) -> dict[str, str]:
    """Return the model's code of every code of other data that has a match.

    Raises:
        DataFileError: if none has one.
    """
    if by == "code":
        matches = {code: code for code in other.codes if code in set(own.codes)}
    else:
        code_of = {title.casefold(): code for code, title in own.title_of().items()}
        matches = {
            code: code_of[title.casefold()] for code, title in other.title_of().items() if title.casefold() in code_of
        }
    if not matches:
        raise DataFileError(
            f"none of the {len(other):,} occupations of the other data (such as {other.codes[0]} {other.titles[0]!r}) "
            f"is one of the model's {len(own):,} (such as {own.codes[0]} {own.titles[0]!r}) by {by}; match them by "
            f"{'title' if by == 'code' else 'code'} (match_by=), or give the data the model's list",
            code="no-occupation-matches",
        )
    return matches


def other_store(base: TokenStore, data: OtherData, by: Matching, people_per_shard: int) -> TokenStore:
    """Return the store of all careers of other data, after the text and in the tokens of a store; build it if needed.

    Args:
        base: store of the run's people, whose template, prefix, tokenizer and occupations are used.
        data: the other careers.
        by: how occupations are matched.
        people_per_shard: people whose careers are in memory at once.

    Raises:
        LaborError: if the data are unusable, or no occupation has a match.
    """
    identity = {
        "format": FORMAT,
        "careers": {"sources": data.identity(), "occupations": fingerprint_of(base.vocabulary.codes), "by": by},
        "model": base.careers_fingerprint,  # whose people are counted
        "template": base.facts["identity"]["template"],
        "tokenizer": base.facts["tokenizer"]["fingerprint"],
        "files": {name: base.facts["files"].get(name) for name in (OCCUPATIONS, PREFIX)},
    }
    fingerprint = fingerprint_of(identity)
    folder = base.folder.parent / f"{data.name}-{fingerprint}"
    with file_lock(folder.with_name(f"{folder.name}.lock"), busy=None):
        if not (folder / MANIFEST).is_file():
            facts = {
                "format": FORMAT,
                "fingerprint": fingerprint,
                "careers_fingerprint": fingerprint_of(identity["careers"]),
                "identity": identity,
                "tokenizer": base.facts["tokenizer"],
            }
            _build(folder, facts, base, data, by, people_per_shard)
    return open_store(folder)


def match_counts(store: TokenStore) -> MatchCounts:
    """Return what became of the other data of a store.

    Raises:
        StoreError: if the file that says so has changed.
    """
    with checking_store(store, ("test",)) as check:
        check.wait()
    values = read_json_object(store.folder / MATCHING)
    return MatchCounts(
        values["num_people"],
        values["num_people_left_out"],
        values["num_observations"],
        values["num_observations_left_out"],
        tuple((code, title, count) for code, title, count in values["unmatched"]),
        values["num_people_seen"],
    )


def _build(
    folder: Path, facts: Mapping[str, Any], base: TokenStore, data: OtherData, by: Matching, people_per_shard: int
) -> None:
    template = read_settings(TemplateSettings, base.facts["identity"]["template"])
    titles: TitleSettings = template.titles
    theirs = data.vocabulary()
    code_of = matched_codes(canonical_vocabulary(base.vocabulary, titles), theirs, by)
    encoder = CareerEncoder(
        compile_template(template, read_prefix(base.folder / PREFIX)),
        base.vocabulary.title_of(),
        load_tokenizer(str(base.folder / TOKENIZER)),
        template.max_tokens,
    )
    building = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    lost: Counter[str] = Counter()
    counts = dict.fromkeys(("people", "texts", "observations", "tokens", *CUT_COUNTS), 0)
    shards: list[str] = []
    num_left_out, num_seen = 0, 0
    seen = _people_of(base, ("train", "validation"))
    for number, careers in enumerate(batched(data.careers(), people_per_shard)):
        lost.update(job.occupation for career in careers for job in career.jobs if job.occupation not in code_of)
        matched = [_matched(career, code_of) for career in careers]
        parts = [CareerPart(career, Segment("test", 0, len(career.jobs))) for career in matched if career.jobs]
        num_left_out += len(careers) - len(parts)
        num_seen += sum((part.career.survey, part.career.person) in seen for part in parts)
        if not parts:
            continue
        name = f"{PIECES}/{data.name}-{number:05d}/test.arrow"
        rows, added = _rows(parts, encoder, base.vocabulary)
        (building / name).parent.mkdir(parents=True)
        schema = shard_schema(name)
        with pa.ipc.new_stream(str(building / name), schema) as stream:
            stream.write_table(rows.replace_schema_metadata(schema.metadata))
        shards.append(name)
        counts = {each: counts[each] + added[each] for each in counts}
    if not shards:
        raise DataFileError(
            f"nobody of {data.name} has an occupation of the model's list by {by}", code="nobody-has-matched-occupation"
        )
    title_of = theirs.title_of()
    result = MatchCounts(
        counts["people"],
        num_left_out,
        counts["observations"],
        lost.total(),
        tuple((code, title_of[code], count) for code, count in lost.most_common(MOST_CODES)),
        num_seen,
    )
    write_json(building / MATCHING, dataclasses.asdict(result))
    for name in (OCCUPATIONS, *([PREFIX] if (base.folder / PREFIX).is_file() else [])):
        shutil.copyfile(base.folder / name, building / name)
    shutil.copytree(base.folder / TOKENIZER, building / TOKENIZER)
    nobody = {**dict.fromkeys(counts, 0), "shards": []}
    files = sorted(path for path in building.rglob("*") if path.is_file())
    entries = {
        str(path.relative_to(building)): {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files
    }
    splits = {"train": nobody, "validation": nobody, "test": {**counts, "shards": shards}}
    write_store_manifest(building, {**facts, "splits": splits, "files": entries})
    publish_folder(building, folder, files)


def _people_of(store: TokenStore, splits: Sequence[Split]) -> set[tuple[str, str]]:
    """Return survey and id of the people of splits."""
    tables = [store.careers(split).table for split in splits if store.num_people(split)]
    pairs = (zip(table["survey"].to_pylist(), table["person"].to_pylist(), strict=True) for table in tables)
    return {pair for of_table in pairs for pair in of_table}


def _matched(career: CareerHistory, code_of: Mapping[str, str]) -> CareerHistory:
    """Return a career in the model's codes, without the years whose occupation has none."""
    jobs = (
        dataclasses.replace(job, occupation=code_of[job.occupation]) for job in career.jobs if job.occupation in code_of
    )
    return dataclasses.replace(career, jobs=tuple(jobs))


def _rows(
    parts: list[CareerPart], encoder: CareerEncoder, vocabulary: OccupationVocabulary
) -> tuple[pa.Table, dict[str, int]]:
    """Return the rows of careers, and the numbers of people, texts, observations and tokens, and CUT_COUNTS."""
    encoded = encode_careers(parts, encoder)
    owners = [part.career for part, each in zip(parts, encoded, strict=True) for _ in each.texts]
    texts = [text for each in encoded for text in each.texts]
    tokenized = [text for each in encoded for text in each.tokenized]
    counts = {
        "people": len(parts),
        "texts": len(texts),
        "observations": sum(len(part.career.jobs) for part in parts),
        "tokens": sum(len(text.ids) for text in tokenized),
    }
    num_truncated_of = [each.num_truncated for each in encoded]
    counts |= dict(
        zip(CUT_COUNTS, (sum(number > 0 for number in num_truncated_of), sum(num_truncated_of)), strict=True)
    )
    return store_rows(owners, texts, tokenized, vocabulary.index_of()), counts
