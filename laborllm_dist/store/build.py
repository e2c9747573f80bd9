"""Build a token store: careers -> text -> ids, in pieces of bounded size, so that memory does not grow with the data.

The fingerprint of a store's inputs is known before any work, so an existing store is used as it is. A new one is built
in `FOLDER.partial` and renamed when its manifest is written. Complete pieces are kept: a killed prepare resumes where
it stopped, and several processes may make pieces of one store (store/workers.py).
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laborllm_dist.careers.corpus import (
    check_sources,
    fingerprint_sources,
    missing_variables,
    pooled_vocabulary,
)
from laborllm_dist.careers.occupations.vocabulary import write_vocabulary
from laborllm_dist.careers.readers.career_text import check_new_folder, write_career_text
from laborllm_dist.careers.splits import SPLITS, Split, career_splits, split_files
from laborllm_dist.careers.types import CareerHistory
from laborllm_dist.config.data import identity_split
from laborllm_dist.config.reader import settings_to_values
from laborllm_dist.config.run import RunSettings
from laborllm_dist.errors import (
    DataFileError,
    ForeignFileError,
    LaborError,
    StoreError,
    TemplateError,
    TokenizerError,
    VocabularyError,
)
from laborllm_dist.io.files import file_lock, fingerprint_of, publish_folder, sha256_of_all, translate_disk_errors
from laborllm_dist.io.run_directory import check_run_folder, record_prepared
from laborllm_dist.store.few_shot import read_prefix, write_prefix
from laborllm_dist.store.merge import all_pieces, merge_pieces
from laborllm_dist.store.run_tokenizer import make_tokenizer, sample_prompt, tokenizer_place
from laborllm_dist.store.shards import ENDS, PIECES, PieceTools, make_pieces
from laborllm_dist.store.store import (
    CARD,
    FORMAT,
    MANIFEST,
    OCCUPATIONS,
    PREFIX,
    TOKENIZER,
    TokenStore,
    open_store,
    verify_store,
)
from laborllm_dist.store.tokenize import title_token_ids
from laborllm_dist.store.workers import end_with_process, error_of, run_workers
from laborllm_dist.text.template import compile_template
from laborllm_dist.text.title_variants import display_vocabulary

logger = logging.getLogger(__name__)

WORK = "work"  # locks and logs of the processes that build a store
# After these errors the pieces are useless; after any other the same command resumes where it stopped.
_OF_THE_SOURCE = (DataFileError, VocabularyError, TemplateError, TokenizerError)


def store_identity(settings: RunSettings) -> dict[str, Any]:
    """Return everything that decides the content of a store; two equal identities are one store.

    Raises:
        DataFileError: if a corpus is missing.
    """
    check_sources(settings.data)  # before the tokenizer is opened
    values = settings_to_values(settings)
    tokenizer = values["tokenizer"]
    if settings.tokenizer.kind == "pretrained":
        from laborllm_dist.store.tokenizer import tokenizer_identity

        tokenizer = tokenizer_identity(*tokenizer_place(settings))
    return {
        "format": FORMAT,
        "careers": {
            "sources": fingerprint_sources(settings.data),
            "corpora": [[name, without_places(corpus)] for name, corpus in values["data"]["corpora"].items()],
            "split": identity_split(settings.split),
            **({"split_files": sha256_of_all(files)} if (files := split_files(settings.split)) else {}),
        },
        "template": values["template"],
        "tokenizer": tokenizer,
    }


def without_places(corpus: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the paths of files, whose checksums identify them, and the settings that affect training only."""
    identifying = {name: value for name, value in corpus.items() if name not in ("download_hint", "fraction", "weight")}
    return {name: _without_path(name, value) for name, value in identifying.items()}


def _without_path(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {inner: _without_path(inner, each) for inner, each in value.items()}
    return "" if name == "path" else value


@dataclass(frozen=True, slots=True)
class StoreLocation:
    """The folder of a store, built or not, and the identity that determines it.

    Computing it reads every source file to its end, so a command computes it once and passes it on.
    """

    identity: Mapping[str, Any]
    folder: Path
    building: Path  # where the store is built before it is renamed; pieces of other sizes are other pieces

    @property
    def is_built(self) -> bool:
        """Whether the store has been built."""
        return (self.folder / MANIFEST).is_file()

    @property
    def lock(self) -> Path:
        """File that the process that builds or merges the store locks."""
        return self.folder.with_name(f"{self.folder.name}.lock")


def locate_store(settings: RunSettings) -> StoreLocation:
    """Return the location of these settings' store, whether it exists or not.

    Raises:
        DataFileError: if a corpus is missing.
    """
    identity = store_identity(settings)
    folder = Path(settings.store.root) / f"{settings.data.name}-{fingerprint_of(identity)}"
    return StoreLocation(identity, folder, folder.with_name(f"{folder.name}.{settings.store.people_per_shard}.partial"))


def prepare(settings: RunSettings) -> str:
    """Build the store, or only the pieces of worker `prepare.worker_index`; return a line that describes the result."""
    options = settings.prepare
    if options.career_text is not None:
        check_new_folder(Path(options.career_text))
    check_run_folder(Path(settings.output_dir) / settings.name)
    store = verify_store(prepare_store(settings)) if options.worker_index is None else prepare_worker(settings)
    if store is None:
        return (
            f"worker {options.worker_index} of {options.num_workers} is done; the last one to be done makes the store"
        )
    if empty := [split for split in SPLITS if not store.num_people(split)]:
        logger.warning(f"warning: there are no {' and no '.join(empty)} people; change split, or prepare more people")
    if options.career_text is not None:
        counts = write_career_text(_careers_of(store), Path(options.career_text))
        people = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        logger.info(f"prepare: CAREER's text files of {people} people in {options.career_text}")
    folder = record_prepared(settings, {"fingerprint": store.fingerprint, "folder": str(store.folder)})
    if folder is not None:
        logger.info(f"prepare: {folder} is ready for training, and for launch/baselines.py run={folder}")
    return store.describe()


def _careers_of(store: TokenStore) -> Iterator[tuple[Split, CareerHistory]]:
    """Yield the careers of a store, split by split.

    Raises:
        StoreError: if the store holds parts of careers.
    """
    for split in SPLITS:
        careers = store.careers(split)
        if not careers.are_whole():
            raise StoreError(
                "a store made with template.max_history or split_by=year holds parts of careers; write whole ones",
                code="truncated-careers",
            )
        for row in range(len(careers)):
            yield split, careers.history(row)


def prepare_store(settings: RunSettings, location: StoreLocation | None = None) -> TokenStore:
    """Return the store of these settings; build it first if it does not exist.

    Files of careers are compared with their checksums when they are read (`checking_store`).

    Args:
        settings: of the run.
        location: from `locate_store`, if the caller has it already.

    Raises:
        LaborError: if the data, the template or the tokenizer is unusable; the partial store is deleted then.
    """
    location = location or locate_store(settings)
    _check_place(location)
    if not location.is_built:
        with file_lock(location.lock, busy=None):
            if not location.is_built:  # another process may have built it while this one waited
                _log_missing_variables(settings)
                _build_store(settings, location)
    return open_store(location.folder)


def prepare_worker(settings: RunSettings) -> TokenStore | None:
    """Make the pieces of worker `prepare.worker_index`; return the store if all workers are done, else None.

    Raises:
        AlreadyRunningError: if another process is at work on the pieces of the same worker.
        LaborError: as `prepare_store`.
    """
    location = locate_store(settings)
    _check_place(location)
    if not location.is_built:
        try:
            _pieces_of_worker(settings, location, settings.prepare.worker_index or 0)
        except FileNotFoundError:
            if location.building.is_dir():
                raise
            # Another process has merged the store meanwhile, since all pieces were complete.
            return verify_store(open_store(location.folder))
        with file_lock(location.lock, busy=None):
            if not location.is_built:
                if all_pieces(location.building, settings.data) is None:
                    return None
                _merge(settings, location)
    return verify_store(open_store(location.folder))


def _log_missing_variables(settings: RunSettings) -> None:
    for name, lacking in missing_variables(settings.data).items():
        if lacking:
            shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
            logger.info(f"prepare: {name} is read without {len(lacking)} variables of the method: {shown} (data card)")


def _check_place(location: StoreLocation) -> None:
    """Check that nothing else is in the way of the build.

    Raises:
        StoreError: if the store's folder exists and is not a store.
        ForeignFileError: if the folder where it is built has files that are not part of a store.
    """
    folder, building = location.folder, location.building
    if foreign := _foreign_files(building):
        raise ForeignFileError(
            f"{foreign[0]} is no part of a store, and {building} is where one is built; move it away",
            code="foreign-file-in-store",
        )
    if folder.exists() and not location.is_built:
        raise StoreError(
            f"{folder} is there without its {MANIFEST}, so it is no store; delete it and prepare again",
            code="store-without-manifest",
        )


def _build_store(settings: RunSettings, location: StoreLocation) -> None:
    building, options = location.building, settings.prepare
    try:
        if options.num_workers == 1:
            _pieces_of_worker(settings, location, 0)
        else:
            job = functools.partial(_worker_job, settings, location, os.getpid())
            run_workers(job, options, building / WORK / "jobs")
        _merge(settings, location)
    except _OF_THE_SOURCE:
        if not _foreign_files(building):
            shutil.rmtree(building, ignore_errors=True)
        raise


def _foreign_files(building: Path) -> list[Path]:
    """Return the files in a building folder that are not part of a store."""
    if building.is_symlink():
        return [building]
    parts = (PIECES, ENDS, WORK, TOKENIZER, OCCUPATIONS, PREFIX, MANIFEST)
    files = building.iterdir() if building.is_dir() else ()
    names = {path: path.name.removesuffix(".partial") for path in files}
    return sorted(path for path, name in names.items() if name not in parts and not name.startswith((CARD, "titles_")))


def _worker_job(settings: RunSettings, location: StoreLocation, starter: int, worker: int) -> LaborError | None:
    """Make the pieces of one worker in a separate process; on this machine it ends with the process that started it."""
    if settings.prepare.executor == "local":
        end_with_process(starter)
    return error_of(lambda: _pieces_of_worker(settings, location, worker))


def _pieces_of_worker(settings: RunSettings, location: StoreLocation, worker: int) -> None:
    """Make the missing pieces of one worker."""
    building, num_workers = location.building, settings.prepare.num_workers
    lock = building / WORK / f"worker-{worker}-of-{num_workers}.lock"
    busy = f"another process is preparing as worker {worker} of {num_workers} of {building}; wait for it or end it"
    with translate_disk_errors(building), file_lock(lock, busy=busy):
        tools = _make_tools(settings, building)
        before = 0
        for name, corpus in settings.data.corpora.items():
            num_people = 0
            for num_people in make_pieces(name, corpus, tools, range(worker, num_workers)):
                logger.info(f"prepare: {before + num_people:,} careers")
            before += num_people


def _make_tools(settings: RunSettings, building: Path) -> PieceTools:
    """Return the tools for making pieces; the first process makes prefix and tokenizer, the others wait for them."""
    from laborllm_dist.store.tokenizer import load_tokenizer

    vocabulary = display_vocabulary(pooled_vocabulary(settings.data), settings.template.titles)
    splits = career_splits(settings.split, settings.data)
    with file_lock(building / WORK / "tokenizer.lock", busy=None):
        is_made = (building / OCCUPATIONS).is_file()
        if not is_made:
            write_prefix(settings, vocabulary, splits, building / PREFIX)
        template = compile_template(settings.template, read_prefix(building / PREFIX))
        if is_made:
            tokenizer = load_tokenizer(str(building / TOKENIZER))
        else:
            tokenizer = make_tokenizer(settings, vocabulary, template, splits)
            title_token_ids(sample_prompt(settings, vocabulary, template), vocabulary, tokenizer)
            shutil.rmtree(building / TOKENIZER, ignore_errors=True)
            tokenizer.save(building / TOKENIZER)
            # Written last: its presence means that prefix and tokenizer are complete.
            write_vocabulary(vocabulary, building / OCCUPATIONS)
    size, longest = settings.store.people_per_shard, settings.template.max_tokens
    return PieceTools(building, vocabulary, template, tokenizer, splits, size, longest)


def _merge(settings: RunSettings, location: StoreLocation) -> None:
    from laborllm_dist.store.tokenizer import load_tokenizer

    folder, building, identity = location.folder, location.building, location.identity
    pieces = all_pieces(building, settings.data)
    assert pieces is not None  # every worker has read its sources to the end
    tokenizer = load_tokenizer(str(building / TOKENIZER))
    facts = {
        "format": FORMAT,
        "fingerprint": fingerprint_of(identity),
        "careers_fingerprint": fingerprint_of(identity["careers"]),
        "identity": identity,
        "tokenizer": {"fingerprint": tokenizer.fingerprint(), "num_ids": tokenizer.num_ids},
    }
    with translate_disk_errors(folder):
        merge_pieces(building, settings, facts, pieces)
        publish_folder(building, folder, ())
