"""The workload of a run, from its token store or, if there is none, assumed; and the passes that it takes.

A workload is the lengths of the careers of some steps, in the run's order. The plan packs them with the packer of
training, so it has the rows and passes that training will have.

Without a store it assumes the number of people and lines of a corpus, the tokens per line, and lengths that are uniform
around their mean (from 0.58 to 1.42 of it, for a standard deviation of 0.24 of it).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from laborllm_dist.batching.packing import PAD_TO_MULTIPLE_OF, PackedRows, assign_rows, pack_step
from laborllm_dist.batching.sampler import TrainingSampler
from laborllm_dist.batching.training_plan import TrainingPlan, check_uncut, epochs_of, plan_training
from laborllm_dist.config.corpora import CorpusSettings, SyntheticSettings
from laborllm_dist.config.data import SharesSettings, TokenizerSettings
from laborllm_dist.config.run import BatchSettings, RunSettings
from laborllm_dist.errors import DataFileError, LaborError, SequenceTooLongError
from laborllm_dist.store.build import locate_store
from laborllm_dist.store.data_card import PAPER
from laborllm_dist.store.store import TokenStore, open_store

NUM_STEPS = 50  # to pack: gives the mean number of passes within a few hundredths
LLAMA_2_IDS = 32_000  # vocabulary size if there is no tokenizer yet
PAPER_TITLES = 335  # of the paper's surveys, where there is no vocabulary of titles yet


@dataclass(frozen=True, slots=True)
class CorpusSize:
    """People and lines of a corpus, and the standard deviation of careers' lengths over their mean."""

    num_people: int
    num_lines: float
    spread: float


# Tokens of a heading and of a line by tokenizer.kind and tokenizer.titles. Measured: Llama 2's on the NLSY97, those of
# a trained tokenizer of 1,024 on synthetic data, those of whole titles on both.
TOKENS: Mapping[tuple[str, str], tuple[float, float]] = {
    ("pretrained", "pieces"): (83.0, 15.9),
    ("trained", "pieces"): (72.0, 9.25),
    ("trained", "whole"): (24.4, 4.0),
}
SURVEY_SPREAD = 0.24  # measured on the NLSY97
# CAREER's corpus (arXiv 2202.08370): people, and person-years; its spread is assumed.
RESUMES = CorpusSize(23_670_000, 231e6, 0.4)
SIZES: Mapping[str, CorpusSize] = {
    **{kind: CorpusSize(people, lines, SURVEY_SPREAD) for kind, (people, lines, _) in PAPER.items()},
    "wage_panel": CorpusSize(545, 4_360, 0.07),
    "resumes": RESUMES,
}
MARKET_LINES, MARKET_SPREAD = 19.6, 0.33  # lines per person of the synthetic data, and the spread of lengths, measured


@dataclass(frozen=True, slots=True)
class Workload:
    """The training data of some steps.

    `steps` has the lengths, in tokens, of the careers of some steps; `longest_career` is over training and validation.
    A token attends to `attended` tokens of its career, on average.
    """

    careers_per_epoch: int
    tokens_per_epoch: float
    num_steps: int
    steps: tuple[tuple[int, ...], ...]
    longest_career: int
    attended: float
    is_assumed: bool
    num_titles: int = PAPER_TITLES


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a run forwards but does not train on: tokens of validation, tokens and titles of the test people."""

    validation_tokens: float
    test_tokens: float
    test_observations: float


@dataclass(frozen=True, slots=True)
class Passes:
    """Passes of ranks, means over the packed steps; `slowest_tokens`: tokens per step of the rank with most.

    `slots`: for each step and each of its passes, the tokens of the rank with most, including padding.
    """

    num_rows: float
    num_tokens: float
    num_passes: float
    slowest_tokens: float
    fill: float
    max_seq_length: int  # the longest
    rows_of_rank: int  # in one pass, the maximum
    slots: tuple[tuple[int, ...], ...]

    def utilization(self, num_ranks: int) -> float:
        """Return the busy share of the ranks' time; the rest they wait for the rank with most rows."""
        return self.num_tokens / (num_ranks * self.slowest_tokens)


def find_workload(settings: RunSettings) -> tuple[Workload, int]:
    """Return the workload of a run, and the size of its vocabulary.

    Raises:
        DataFileError: if the workload is unknown without a store.
    """
    num_ranks, store = settings.plan.num_gpus, _store_if_there(settings)
    if store is not None:
        return workload_of(plan_training(store, settings, world_size=num_ranks), is_assumed=False), store.num_ids
    return workload_of(assumed_plan(settings), is_assumed=True), settings.tokenizer.vocabulary_size or LLAMA_2_IDS


def find_held_out(settings: RunSettings) -> HeldOut:
    """Return what validation and scoring forward, from the token store or assumed."""
    store = _store_if_there(settings)
    if store is not None:
        validation, test = store.careers("validation"), store.careers("test")
        return HeldOut(
            float(validation.num_tokens().sum()), float(test.num_tokens().sum()), float(test.num_observations().sum())
        )
    validation_tokens = test_tokens = test_observations = 0.0
    heading, line = _tokens_of(settings.tokenizer)
    for corpus in settings.data.corpora.values():
        size, split = _size_of(corpus), settings.split
        if size is not None and isinstance(split, SharesSettings):
            tokens, tested = heading * size.num_people + line * size.num_lines, 1 - split.train - split.validation
            validation_tokens += split.validation * tokens
            test_tokens += tested * tokens
            test_observations += tested * size.num_lines
    return HeldOut(validation_tokens, test_tokens, test_observations)


def workload_of(plan: TrainingPlan, *, is_assumed: bool) -> Workload:
    """Return the workload of a training plan."""
    order = plan.order
    lengths = plan.lengths[order.rows].astype(np.float64)
    num_tokens = float((lengths * order.weights).sum())
    careers = (order.careers_of_step(step) for step in range(min(NUM_STEPS, plan.num_steps)))
    return Workload(
        careers_per_epoch=order.careers_per_epoch,
        tokens_per_epoch=num_tokens,
        num_steps=plan.num_steps,
        steps=tuple(tuple(plan.lengths[rows].tolist()) for rows in careers),
        longest_career=plan.longest_career,
        attended=float((lengths**2 * order.weights).sum()) / num_tokens / 2,
        is_assumed=is_assumed,
        num_titles=plan.num_titles,
    )


def passes_of(work: Workload, batch: BatchSettings, *, num_ranks: int) -> Passes:
    """Pack a workload's steps, and return the passes of the ranks."""
    packings = _pack(work.steps, batch.max_seq_length)
    num_passes, slowest, most, slots = [], [], 0, []
    for packing in packings:
        rows = _most_rows(len(packing.rows), num_ranks, batch.micro_batch_size)
        num_passes.append(len(rows))
        slowest.append(sum(rows) * packing.num_tokens / len(packing.rows))
        most = max(most, *rows)
        slots.append(tuple(num_rows * packing.max_seq_length for num_rows in rows))
    num_tokens = sum(packing.num_tokens for packing in packings)
    return Passes(
        num_rows=float(np.mean([len(packing.rows) for packing in packings])),
        num_tokens=num_tokens / len(packings),
        num_passes=float(np.mean(num_passes)),
        slowest_tokens=float(np.mean(slowest)),
        fill=num_tokens / sum(len(packing.rows) * packing.max_seq_length for packing in packings),
        max_seq_length=max(packing.max_seq_length for packing in packings),
        rows_of_rank=most,
        slots=tuple(slots),
    )


@functools.lru_cache(maxsize=16)  # a search for a setting that fits calls this often
def _pack(steps: tuple[tuple[int, ...], ...], max_seq_length: int) -> tuple[PackedRows, ...]:
    return tuple(pack_step(lengths, max_seq_length) for lengths in steps)


@functools.lru_cache(maxsize=1024)
def _most_rows(num_rows: int, num_ranks: int, micro_batch_size: int) -> tuple[int, ...]:
    """Return, for each pass, the number of rows of the rank with most."""
    assignment = assign_rows(num_rows, world_size=num_ranks, micro_batch_size=micro_batch_size)
    return tuple(max(map(len, of_ranks)) for of_ranks in assignment.passes)


def assumed_plan(settings: RunSettings) -> TrainingPlan:
    """Return the plan of training on corpora that are missing, from known or assumed sizes.

    Raises:
        SettingsError: if the template truncates careers.
        DataFileError: if a corpus has an unknown size, or the template differs from the measured one.
        SequenceTooLongError: if the longest career does not fit a row.
    """
    check_uncut(settings.template)
    sizes, split = _sizes_of(settings), settings.split
    if sizes is None or not isinstance(split, SharesSettings):
        raise DataFileError(
            f"the token store of data={settings.data.name} does not exist, and sizes are known only for surveys, "
            "resumes and synthetic data, split by person or household, with a template without prefix and max_history; "
            "make it first: python launch/prepare.py with the same settings (python launch/sweep.py +sweep=NAME makes "
            "it itself)",
            code="unknown-corpus-size",
        )
    parts, batch = [], settings.batch
    for corpus, size in zip(settings.data.corpora.values(), sizes, strict=True):
        num_taken = round(size.num_people * split.train * corpus.fraction)
        if corpus.weight and num_taken:
            parts.append((_even_lengths(size, settings.tokenizer, num_taken), corpus.weight))
    if not parts:
        raise DataFileError(
            "fractions and weights leave nobody to train on; raise data.corpora.NAME.fraction",
            code="no-training-people",
        )
    lengths = np.concatenate([lengths for lengths, _ in parts])
    longest = int(lengths.max())
    if longest > batch.max_seq_length:
        raise SequenceTooLongError(
            f"the longest career is assumed to have {longest} tokens, batch.max_seq_length is "
            f"{batch.max_seq_length}; set "
            f"batch.max_seq_length={whole_granules(longest)}",
            code="career-exceeds-row",
        )
    weights = np.concatenate([np.full(len(lengths), weight) for lengths, weight in parts])
    order = TrainingSampler(np.arange(len(lengths)), weights, batch.global_batch_size, settings.training.seed)
    num_epochs = epochs_of(settings, order.steps_per_epoch)
    no_titles = np.zeros_like(lengths)  # weights in the loss change neither time nor memory
    return TrainingPlan(
        order, lengths, no_titles, no_titles, longest, batch, settings.training, num_epochs, settings.plan.num_gpus,
        PAPER_TITLES,
    )  # fmt: skip


def has_known_size(settings: RunSettings) -> bool:
    """Return whether `assumed_plan` knows how many careers of which lengths a run without a token store has."""
    return _sizes_of(settings) is not None


def whole_granules(num_tokens: float) -> int:
    """Return the shortest row length that holds `num_tokens` tokens."""
    return math.ceil(num_tokens / PAD_TO_MULTIPLE_OF) * PAD_TO_MULTIPLE_OF


def _tokens_of(tokenizer: TokenizerSettings) -> tuple[float, float]:
    return TOKENS[tokenizer.kind, tokenizer.titles]


def _sizes_of(settings: RunSettings) -> list[CorpusSize] | None:
    """Return the sizes of the corpora if all are known, and the template and the split are those of the assumptions."""
    template = settings.template
    sizes = [_size_of(corpus) for corpus in settings.data.corpora.values()]
    if template.prefix or template.max_history is not None or not isinstance(settings.split, SharesSettings):
        return None
    known = [size for size in sizes if size is not None]
    return known if len(known) == len(sizes) else None


def _size_of(corpus: CorpusSettings) -> CorpusSize | None:
    if isinstance(corpus, SyntheticSettings):
        num_people = corpus.num_people
        return CorpusSize(num_people, MARKET_LINES * num_people, MARKET_SPREAD)
    return SIZES.get(corpus.kind)


def _even_lengths(size: CorpusSize, tokenizer: TokenizerSettings, num_careers: int) -> npt.NDArray[np.int64]:
    """Return lengths uniform on mean x (1 +- sqrt(3) spread), with standard deviation mean x spread."""
    heading, line = _tokens_of(tokenizer)
    mean = heading + line * size.num_lines / size.num_people
    places = 2 * (np.arange(num_careers) + 0.5) / num_careers - 1  # from -1 to 1
    return np.rint(mean * (1 + math.sqrt(3) * size.spread * places)).astype(np.int64)


def _store_if_there(settings: RunSettings) -> TokenStore | None:
    try:
        location = locate_store(settings)
    except LaborError:
        return None  # the data are missing, which a plan allows
    return open_store(location.folder) if location.is_built else None
