"""Make a token store: careers -> text -> ids, in batches of bounded size, so that memory does not grow with the data.

The fingerprint of what a store is made from is known before any work, so a store that exists is used as it is. The
new one is built in `FOLDER.partial` and renamed when its manifest is written: a kill leaves nothing that looks whole.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from laborllm_dist.careers.corpus import (
    career_streams,
    check_sources,
    fingerprint_sources,
    pooled_vocabulary,
    read_careers,
)
from laborllm_dist.careers.history import CareerHistory, OccupationVocabulary, write_vocabulary
from laborllm_dist.careers.splits import SPLITS, Split, split_of
from laborllm_dist.careers.template import Template, compile_template, render_career
from laborllm_dist.errors import DataFileError
from laborllm_dist.files import fingerprint_of, flush_to_disk, locked, no_room_is_said, write_json
from laborllm_dist.settings import RunSettings
from laborllm_dist.settings_reader import settings_to_values
from laborllm_dist.tokens.store import (
    FORMAT,
    MANIFEST,
    OCCUPATIONS,
    STORE_SCHEMA,
    TOKENIZER,
    TokenStore,
    file_entry,
    open_store,
    store_rows,
    verify_store,
)
from laborllm_dist.tokens.tokenise import check_titles, tokenise_careers
from laborllm_dist.tokens.tokenizer import CareerTokenizer, load_tokenizer, tokenizer_identity, train_tokenizer

Progress = Callable[[str], None]


def store_identity(settings: RunSettings) -> dict[str, Any]:
    """Return everything that decides the content of a store; two equal identities are one store.

    Raises:
        DataFileError: if a corpus is missing.
    """
    values = settings_to_values(settings)
    tokenizer = values["tokenizer"]
    if settings.tokenizer.kind == "pretrained":
        tokenizer = tokenizer_identity(*_tokenizer_place(settings))
    return {
        "format": FORMAT,
        "careers": {
            "sources": fingerprint_sources(settings.data),
            "corpora": [[name, _without_places(corpus)] for name, corpus in values["data"]["corpora"].items()],
            "split": values["split"],
        },
        "template": values["template"],
        "tokenizer": tokenizer,
    }


def _without_places(corpus: dict[str, Any]) -> dict[str, Any]:
    """Leave out where files lie: their checksums stand for them."""
    panel = corpus["long_panel"]
    return {**corpus, "how_to_get": "", "long_panel": panel and {**panel, "path": "", "vocabulary": ""}}


def store_folder(settings: RunSettings) -> Path:
    """Return where the store of these settings lies, whether it exists or not."""
    return Path(settings.store.root) / f"{settings.data.name}-{fingerprint_of(store_identity(settings))}"


def prepare_store(settings: RunSettings, say: Progress) -> TokenStore:
    """Return the store of these settings, made now if it is not there.

    Raises:
        LaborError: if the data, the template or the tokenizer is unusable; nothing is left behind then.
    """
    check_sources(settings.data)
    folder = store_folder(settings)
    if (folder / MANIFEST).is_file():
        return verify_store(open_store(folder))
    with locked(folder.with_name(folder.name + ".lock"), busy=None):
        if not (folder / MANIFEST).is_file():  # another start may have made it while this one waited
            _build_store(settings, folder, say)
    return open_store(folder)


def _build_store(settings: RunSettings, folder: Path, say: Progress) -> None:
    vocabulary, template = pooled_vocabulary(settings.data), compile_template(settings.template)
    building = folder.with_name(folder.name + ".partial")
    shutil.rmtree(building, ignore_errors=True)
    with no_room_is_said(folder):
        try:
            building.mkdir(parents=True)
            tokenizer = _make_tokenizer(settings, vocabulary, template, say)
            check_titles(_sample_prompt(settings, vocabulary, template), vocabulary, tokenizer)
            tokenizer.save(building / TOKENIZER)
            write_vocabulary(vocabulary, building / OCCUPATIONS)
            writer = _StoreWriter(building, settings.store.careers_per_shard)
            _write_careers(settings, vocabulary, template, tokenizer, writer, say)
            _write_manifest(settings, tokenizer, writer)
            building.rename(folder)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
    flush_to_disk(folder.parent)


def _write_careers(
    settings: RunSettings,
    vocabulary: OccupationVocabulary,
    template: Template,
    tokenizer: CareerTokenizer,
    writer: _StoreWriter,
    say: Progress,
) -> None:
    title_of, index_of = vocabulary.title_of(), vocabulary.index_of()
    num_careers = 0
    for batch in batched(read_careers(settings.data), settings.store.careers_per_batch):
        texts = [render_career(career, template, title_of) for career in batch]
        rows = store_rows(batch, tokenise_careers(texts, tokenizer), index_of)
        splits = [split_of(career.survey, career.person, settings.split) for career in batch]
        for split in SPLITS:
            chosen = pa.array([each == split for each in splits])
            writer.add(split, rows.filter(chosen))
        num_careers += len(batch)
        say(f"prepare: {num_careers:,} careers")
    writer.close()
    if not writer.counts["train"]["careers"]:
        raise DataFileError(
            f"none of {num_careers} people is in the training split; the corpus is too small to train on"
        )


@dataclass(slots=True)
class _StoreWriter:
    """Append rows to the current shard of each split."""

    folder: Path
    careers_per_shard: int
    counts: dict[Split, dict[str, Any]] = field(
        default_factory=lambda: {
            split: {"careers": 0, "observations": 0, "tokens": 0, "shards": []} for split in SPLITS
        }
    )
    open_shards: dict[Split, tuple[pa.ipc.RecordBatchStreamWriter, int]] = field(default_factory=dict)

    def add(self, split: Split, rows: pa.Table) -> None:
        """Write rows to the split's current shard, and start the next one when it is full."""
        if not rows.num_rows:
            return
        count = self.counts[split]
        if split not in self.open_shards:
            name = f"{split}-{len(count['shards']):05d}.arrow"
            count["shards"].append(name)
            self.open_shards[split] = (pa.ipc.new_stream(str(self.folder / name), STORE_SCHEMA), 0)
        stream, written = self.open_shards[split]
        stream.write_table(rows)
        count["careers"] += rows.num_rows
        count["observations"] += sum(pc.list_value_length(rows["years"]).to_pylist())
        count["tokens"] += sum(pc.list_value_length(rows["token_ids"]).to_pylist())
        self.open_shards[split] = (stream, written + rows.num_rows)
        if written + rows.num_rows >= self.careers_per_shard:
            self.open_shards.pop(split)[0].close()

    def close(self) -> None:
        """Finish all shards."""
        for stream, _ in self.open_shards.values():
            stream.close()
        self.open_shards.clear()


def _write_manifest(settings: RunSettings, tokenizer: CareerTokenizer, writer: _StoreWriter) -> None:
    identity = store_identity(settings)
    files = sorted(path for path in writer.folder.rglob("*") if path.is_file())
    for path in files:
        flush_to_disk(path)
    write_json(
        writer.folder / MANIFEST,
        {
            "format": FORMAT,
            "fingerprint": fingerprint_of(identity),
            "careers_fingerprint": fingerprint_of(identity["careers"]),
            "identity": identity,
            "splits": writer.counts,
            "tokenizer": {"fingerprint": tokenizer.fingerprint(), "num_ids": tokenizer.num_ids},
            "files": {str(path.relative_to(writer.folder)): file_entry(path) for path in files},
        },
    )


def _make_tokenizer(
    settings: RunSettings, vocabulary: OccupationVocabulary, template: Template, say: Progress
) -> CareerTokenizer:
    wanted = settings.tokenizer
    if wanted.kind == "pretrained":
        path, revision, subfolder = _tokenizer_place(settings)
        return load_tokenizer(path, revision=revision, subfolder=subfolder)
    say(f"prepare: learning a tokenizer of {wanted.vocabulary_size} pieces from the training people")
    assert wanted.vocabulary_size is not None  # TokenizerSettings refuses a trained one without
    texts = _training_texts(settings, vocabulary, template)
    return train_tokenizer(texts, vocabulary_size=wanted.vocabulary_size)


def _training_texts(settings: RunSettings, vocabulary: OccupationVocabulary, template: Template) -> Iterator[str]:
    """Yield texts of training people, as many of each corpus."""
    title_of, streams = vocabulary.title_of(), career_streams(settings.data)
    share = -(-(settings.tokenizer.training_people or 0) // len(streams))
    for stream in streams:
        people = (each for each in stream if split_of(each.survey, each.person, settings.split) == "train")
        for career in itertools.islice(people, share):
            yield render_career(career, template, title_of).text


def _sample_prompt(settings: RunSettings, vocabulary: OccupationVocabulary, template: Template) -> str:
    """Return a real prompt: the text of the first career up to its last title."""
    for career in read_careers(settings.data):
        text = render_career(career, template, vocabulary.title_of())
        return text.text[: text.title_spans[-1][0]]
    raise DataFileError(f"the corpora of data={settings.data.name} hold no careers")


def _tokenizer_place(settings: RunSettings) -> tuple[str, str | None, str | None]:
    """Return path, revision and subfolder: the tokenizer's own path, or the model's."""
    if settings.tokenizer.path is not None:
        return settings.tokenizer.path, None, None
    if settings.model.path is None:
        raise DataFileError("tokenizer.kind=pretrained needs tokenizer.path, or a model.path whose tokenizer is taken")
    return settings.model.path, settings.model.revision, settings.model.subfolder


def batched(items: Iterable[CareerHistory], size: int) -> Iterator[list[CareerHistory]]:
    """Yield lists of `size` items; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
