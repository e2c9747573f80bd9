"""The next occupations of a user's own careers: file -> prompts -> packed rows -> the tree of titles -> the best."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from laborllm_dist import __version__
from laborllm_dist.batching.packing import PAD_TO_MULTIPLE_OF
from laborllm_dist.batching.title_positions import prompt_batches
from laborllm_dist.careers.types import OccupationVocabulary
from laborllm_dist.config.evaluation import EvaluationOverrides, EvaluationSettings, PredictSettings, evaluation_of
from laborllm_dist.config.run import RunSettings
from laborllm_dist.distributed.context import DistributedContext
from laborllm_dist.errors import RunError, SettingsError
from laborllm_dist.evaluation.all_titles import Prompts, TitleScores, score_prompts
from laborllm_dist.evaluation.head_titles import head_details, name_of_head, open_title_head, score_by_head
from laborllm_dist.evaluation.target import EvaluatedRun, as_pretrained, base_suffix, default_name, own_export
from laborllm_dist.evaluation.title_trie import TitleTrie
from laborllm_dist.io.files import ChecksumCheck, sha256_of_all
from laborllm_dist.io.number_format import format_people
from laborllm_dist.models.inference import InferenceModel, load_for_inference
from laborllm_dist.models.loading import check_ids, check_packing, check_weights, context_of, weights_identity
from laborllm_dist.models.title_head import TitleHead
from laborllm_dist.prediction.prompts import Ids, build_prompts, check_context, unseen_covariates
from laborllm_dist.prediction.request_files import read_requests
from laborllm_dist.prediction.requests import PredictionRequest
from laborllm_dist.store.few_shot import read_prefix
from laborllm_dist.store.store import PREFIX, TOKENIZER, TokenStore, checking_store, open_store
from laborllm_dist.store.tokenizer import load_tokenizer
from laborllm_dist.tables.parquet import ScoreTableInfo
from laborllm_dist.tables.predictions import OWN_CAREERS, PREDICTION_SCHEMA, check_output, write_prediction_table
from laborllm_dist.text.template import compile_template
from laborllm_dist.text.title_variants import canonical_vocabulary

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TopTitlesQuery:
    """The token ids of P prompts, the trie of titles, and how many of the best titles to return by which measure.

    `head`: an output layer over titles, which needs the title before each prompt, `previous_P`; None: titles are scored
    as the model writes them.
    """

    prompts: Sequence[Ids]
    trie: TitleTrie
    num_titles: int
    measure: str
    head: TitleHead | None = None
    previous_P: Integers | None = None


@dataclass(frozen=True, slots=True)
class TopTitles:
    """The K most probable titles after P prompts, best first; NaN where fewer were scored individually.

    `titles_PK`: places in the vocabulary; `scores_PK`: log-likelihoods of the measure; `mass_P`: probability of all
    individually scored titles; `bound_P`: the unscored mass.
    """

    titles_PK: Integers
    scores_PK: Floats
    mass_P: Floats
    bound_P: Floats


def predicted_titles(settings: PredictSettings) -> EvaluationOverrides:
    """Return the evaluation of all titles that a prediction is made of."""
    return evaluation_of(settings, titles="all", split=None, max_unscored_mass=settings.max_unscored_mass)


def predict(settings: PredictSettings, run: EvaluatedRun, ranks: DistributedContext) -> tuple[pa.Table, ScoreTableInfo]:
    """Return the most probable next occupations of all people of a file, and their source; write them to `output`.

    Raises:
        LaborError: if the run is unfinished, the model is missing, or a career cannot be read, rendered or predicted.
    """
    if ranks.world_size > 1:
        raise RunError(
            f"predictions are made by one process, got {ranks.world_size} ranks; start with plain python",
            code="several-ranks",
        )
    if settings.output is not None:
        check_output(Path(settings.output))
    store = open_store(run.store)
    with checking_store(store, ("train",)) as check:  # whose words the careers' are compared with
        return _predict_checked(settings, run, (store, check), ranks)


def _predict_checked(
    settings: PredictSettings, run: EvaluatedRun, checked: tuple[TokenStore, ChecksumCheck], ranks: DistributedContext
) -> tuple[pa.Table, ScoreTableInfo]:
    store, check = checked
    evaluation = dataclasses.replace(run.settings.evaluation, placement="replicated")
    is_own = settings.model.path is None
    other = own_export(run.directory) if is_own else settings.model
    model = as_pretrained(settings.model.name or default_name(other) + base_suffix(evaluation), other)
    check_weights(model)
    run_name = run.directory.path.name
    saved = open_title_head(model, store.vocabulary.codes, run_name) if settings.title_head else None
    surveys = [corpus.survey for corpus in run.settings.data.corpora.values()]
    vocabulary = canonical_vocabulary(store.vocabulary, run.settings.template.titles)
    careers = read_requests(Path(settings.careers), vocabulary, surveys)
    template = compile_template(run.settings.template, read_prefix(store.folder / PREFIX))
    for line in unseen_covariates(careers, store.careers("train"), template.omit_fields):
        logger.info(f"predict: {line}")
    place = str(store.folder / TOKENIZER) if is_own else str(other.path)
    tokenizer = load_tokenizer(place, revision=other.revision, subfolder=other.subfolder)
    prompts, trie = build_prompts(careers, template, store.vocabulary, tokenizer)
    check_context(careers, prompts, 0 if settings.title_head else int(trie.depths_M.max()), context_of(model))
    opened = load_for_inference(model, evaluation, run.settings.compute, ranks)
    check.wait()
    check_ids(opened.hugging_face, tokenizer.num_ids)
    check_packing(opened.hugging_face, device=opened.device, longest=max(map(len, prompts)))
    query = TopTitlesQuery(prompts, trie, min(settings.top, len(vocabulary)), settings.measure)
    if saved is not None:
        head, previous_P = saved.head.to(opened.device), previous_titles(careers, vocabulary)
        query = dataclasses.replace(query, head=head, previous_P=previous_P)
    best = best_titles(opened, query, evaluation)
    check_scored(best, evaluation.max_unscored_mass)
    table = prediction_rows(careers, best, vocabulary)
    details = {
        **_details(settings, run.settings, opened),
        "weights": weights_identity(model),
        "store": store.fingerprint,
        "tokenizer": tokenizer.fingerprint(),
    }
    name = model.name
    if saved is not None:
        details |= head_details(saved)
        name = settings.model.name or name_of_head(saved.head, name, run_name)
    info = ScoreTableInfo(name, OWN_CAREERS, sha256_of_all([Path(settings.careers)]), __version__, details)
    if settings.output is not None:
        write_prediction_table(table, info, Path(settings.output))
    return table, info


def _details(settings: PredictSettings, run: RunSettings, model: InferenceModel) -> dict[str, str]:
    evaluation, kernels = run.evaluation, run.compute.kernels
    bounds = {name: str(getattr(evaluation, name)) for name in ("max_unscored_mass", "max_tree_tokens")}
    return {
        "measure": settings.measure,
        **({} if settings.title_head else bounds),
        "max_seq_length": str(evaluation.max_seq_length),
        "batch_size": str(evaluation.batch_size),
        "precision": evaluation.precision,
        "attention": run.compute.attention,
        **({} if kernels == "plain" else {"kernels": kernels}),
        "threads_per_rank": str(run.ranks.threads_per_rank),
        "quantization": evaluation.quantization,
        "device": model.device.type,
        "torch": torch.__version__,
    }


def previous_titles(careers: Sequence[PredictionRequest], vocabulary: OccupationVocabulary) -> Integers:
    """Return the place of everybody's last title in the vocabulary; the number of titles for who has no job yet."""
    place_of, none = vocabulary.index_of(), len(vocabulary)
    return np.array(
        [place_of[career.history.jobs[-1].occupation] if career.history.jobs else none for career in careers]
    )


def best_titles(model: InferenceModel, query: TopTitlesQuery, settings: EvaluationSettings) -> TopTitles:
    """Return the most probable titles after every prompt."""
    prompts, lengths = [np.asarray(ids, dtype=np.int32) for ids in query.prompts], [len(ids) for ids in query.prompts]
    # A row is as long as an evaluation's; longer where a prompt is, shorter where all prompts together are.
    length_of_all = -(-sum(lengths) // PAD_TO_MULTIPLE_OF) * PAD_TO_MULTIPLE_OF
    max_seq_length = max(max(lengths), min(settings.max_seq_length, length_of_all))
    members: list[Integers] = []
    parts: list[TopTitles] = []
    reported, num_done = monotonic(), 0
    for unit in prompt_batches(prompts, max_seq_length, settings.batch_size):
        unit_prompts = Prompts(unit.prefixes_P3, np.full(len(unit.members_P), -1))
        if query.head is None:
            scores = score_prompts(model, unit.batch, unit_prompts, query.trie, settings)
        else:
            assert query.previous_P is not None
            unit_prompts = dataclasses.replace(unit_prompts, previous_P=query.previous_P[unit.members_P])
            scores = score_by_head(model, unit.batch, unit_prompts, query.head, settings)
        members.append(unit.members_P)
        parts.append(_best_of(scores, query))
        num_done += len(unit.members_P)
        if monotonic() - reported > SECONDS_BETWEEN_LINES:
            logger.info(f"predict: {num_done:,} of {len(prompts):,} people")
            reported = monotonic()
    order_P = np.argsort(np.concatenate(members))
    return TopTitles(
        titles_PK=np.concatenate([part.titles_PK for part in parts])[order_P],
        scores_PK=np.concatenate([part.scores_PK for part in parts])[order_P],
        mass_P=np.concatenate([part.mass_P for part in parts])[order_P],
        bound_P=np.concatenate([part.bound_P for part in parts])[order_P],
    )


def _best_of(scores: TitleScores, query: TopTitlesQuery) -> TopTitles:
    values_PT = scores.scored_PT
    if query.measure == "normalised":
        values_PT = values_PT - scores.log_whole_P()[:, None]
    titles_PK = np.argsort(-values_PT, axis=1, kind="stable")[:, : query.num_titles]
    scores_PK = np.take_along_axis(values_PT, titles_PK, axis=1)
    scores_PK = np.where(np.isneginf(scores_PK), np.nan, scores_PK)
    return TopTitles(titles_PK, scores_PK, np.exp(scores.log_mass_P()), scores.bound_P)


def check_scored(best: TopTitles, tolerance: float) -> None:
    """Check that everybody has an individually scored title: a table would silently omit a person without one.

    Raises:
        SettingsError: with the number of people concerned.
    """
    num_people, num_unscored = len(best.scores_PK), int(np.isnan(best.scores_PK[:, 0]).sum())
    if num_unscored:
        people = format_people(num_unscored, num_people, "has", "have")
        raise SettingsError(
            f"setting max_unscored_mass: {people} no individually scored title, since all titles together have a "
            f"probability of at most {tolerance:g} there; take a smaller one, or 0",
            code="no-title-scored",
        )


def prediction_rows(
    careers: Sequence[PredictionRequest], best: TopTitles, vocabulary: OccupationVocabulary
) -> pa.Table:
    """Return predictions as rows of PREDICTION_SCHEMA, in the order of the careers."""
    people_N, ranks_N = np.nonzero(~np.isnan(best.scores_PK))
    scores_N, titles_N = best.scores_PK[people_N, ranks_N], pa.array(best.titles_PK[people_N, ranks_N])
    of_person = pa.array(people_N)
    columns = {
        "person": pa.array([career.history.person for career in careers]).take(of_person),
        "survey": pa.array([career.history.survey for career in careers]).take(of_person),
        "year": pa.array([career.year for career in careers], pa.int32()).take(of_person),
        "rank": pa.array((ranks_N + 1).astype(np.int32)),
        "occupation": pa.array(vocabulary.codes).take(titles_N),
        "title": pa.array(vocabulary.titles).take(titles_N),
        "probability": pa.array(np.exp(scores_N)),
        "log_likelihood": pa.array(scores_N),
        "mass": pa.array(best.mass_P[people_N]),
        "bound": pa.array(best.bound_P[people_N]),
    }
    return pa.table(columns, schema=PREDICTION_SCHEMA)
