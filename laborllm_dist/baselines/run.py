"""Score the baselines of a run on its own people, each into a score table beside the model's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from laborllm_dist import __version__
from laborllm_dist.baselines.frequency import first_order_table, marginal_table
from laborllm_dist.careers.corpus import fingerprint_sources
from laborllm_dist.careers.readers.synthetic.market import make_market
from laborllm_dist.careers.splits import SPLITS
from laborllm_dist.config.corpora import SyntheticSettings
from laborllm_dist.config.data import DataSettings
from laborllm_dist.config.evaluation import BaselineSettings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.errors import RunError
from laborllm_dist.evaluation.tasks import observation_facts
from laborllm_dist.io.files import ChecksumCheck, fingerprint_of
from laborllm_dist.io.run_directory import RunDirectory, read_run
from laborllm_dist.store.pooling import training_pool
from laborllm_dist.store.store import CareerTable, TokenStore, checking_store, open_store
from laborllm_dist.tables.parquet import ScoreTableInfo
from laborllm_dist.tables.scores import NUM_TITLES, TRUE_MODEL, read_score_table, write_score_table

NAMES = {"marginal": "marginal", "first_order": "first-order", "truth": "truth"}
FORMAT = 3  # of the tables made here: increase it when their content changes


def score_baselines(settings: BaselineSettings, say: Callable[[str], None]) -> list[Path]:
    """Write the score table of every requested baseline that does not have one yet.

    Raises:
        RunError: if `truth` is requested for careers whose true probabilities are unknown.
    """
    run, run_settings, store_folder = read_run(Path(settings.run))
    store = open_store(store_folder)
    with checking_store(store, SPLITS) as check:  # the baselines are computed from all splits
        return _score_missing(settings, run, (run_settings, store), check, say)


def _score_missing(
    settings: BaselineSettings,
    run: RunDirectory,
    of_run: tuple[RunSettings, TokenStore],
    check: ChecksumCheck,
    say: Callable[[str], None],
) -> list[Path]:
    (run_settings, store), written = of_run, list[Path]()
    for name in settings.baselines:
        path = run.scores(settings.split, name)
        details = {"baseline": fingerprint_of([FORMAT, name, settings.split, _trained_on(run_settings)])}
        if path.is_file() and _is_same(path, store.careers_fingerprint, details):
            say(f"baselines: {NAMES[name]} is there ({path})")
            continue
        check.wait()
        careers = store.careers(settings.split)
        scores, more = _scores(name, store, careers, run_settings)
        info = ScoreTableInfo(
            model=NAMES[name],
            split=settings.split,
            careers=store.careers_fingerprint,
            code=__version__,
            details={**details, **more, NUM_TITLES: str(len(store.vocabulary))},
        )
        _write(careers, scores, info, path)
        say(f"baselines: {NAMES[name]} scored on {len(scores):,} observations ({path})")
        written.append(path)
    return written


def _scores(
    name: str, store: TokenStore, careers: CareerTable, settings: RunSettings
) -> tuple[npt.NDArray[np.float64], dict[str, str]]:
    if name == "truth":
        return _true_scores(store, careers, settings.data), TRUE_MODEL
    train, pool = store.careers("train"), training_pool(store, settings)
    if name == "marginal":
        table = marginal_table(train, pool)
    else:
        table = first_order_table(train, pool, store.careers("validation"))
    return table.scores(careers), table.details


def _trained_on(settings: RunSettings) -> dict[str, tuple[float, float]]:
    return {name: (corpus.fraction, corpus.weight) for name, corpus in settings.data.corpora.items()}


def _true_scores(store: TokenStore, careers: CareerTable, data: DataSettings) -> npt.NDArray[np.float64]:
    markets = {
        corpus.survey: make_market(corpus) for corpus in data.corpora.values() if isinstance(corpus, SyntheticSettings)
    }
    if len(markets) < len(data.corpora):
        raise RunError(
            "the true probabilities are known for synthetic careers only; leave `truth` out of baselines",
            code="truth-needs-synthetic-careers",
        )
    if fingerprint_sources(data) != store.facts["identity"]["careers"]["sources"]:
        raise RunError(
            "the synthetic market's code has changed since these careers were drawn, so their true probabilities are "
            "not known any more; train again under another name",
            code="synthetic-market-changed",
        )
    if careers.num_people() < len(careers):
        raise RunError(
            "the true probabilities need whole careers, template.max_history has cut them into parts",
            code="truth-needs-whole-careers",
        )
    scores: list[float] = []
    for row in range(len(careers)):
        career = careers.history(row)
        scores.extend(markets[career.survey].log_probabilities(career))
    return np.asarray(scores)


def _write(careers: CareerTable, scores: npt.NDArray[np.float64], info: ScoreTableInfo, path: Path) -> None:
    facts = observation_facts(careers).drop_columns(["career"])
    # A table over occupations is a proper distribution: `title` and `terminated` are the same number, without tokens.
    columns: dict[str, Any] = {name: facts[name] for name in facts.column_names}
    columns["num_tokens"] = pa.array(np.zeros(len(scores), dtype=np.int32))
    columns["title"] = columns["terminated"] = pa.array(scores)
    write_score_table(pa.table(columns), info, path)


def _is_same(path: Path, careers: str, details: dict[str, str]) -> bool:
    info = read_score_table(path)[1]
    if "baseline" not in info.details:
        raise RunError(
            f"{path} holds the scores of a model, {info.model}, not of a baseline; move it away",
            code="not-a-baseline-table",
        )
    same_details = all(info.details.get(name) == value for name, value in details.items())
    return (info.careers, info.code) == (careers, __version__) and same_details
