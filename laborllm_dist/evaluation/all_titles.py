"""All titles after many prompts: one forward of the histories, then the tree of titles after each of them.

Complete (`max_unscored_mass` 0): every distinct (history, prefix of a title) is forwarded once. Bounded: each tree is
expanded from its most probable prefixes down, round by round, until the unexpanded prefixes together have at most this
mass. It is known exactly; the titles in it are not scored individually. The observed title always is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from laborllm_dist.batching.batch import PackedBatch
from laborllm_dist.batching.title_positions import TitleSpans, pack_observations
from laborllm_dist.config.evaluation import EvaluationSettings
from laborllm_dist.errors import ModelError, TitleBoundaryError
from laborllm_dist.evaluation.target import EvaluationTarget
from laborllm_dist.evaluation.tasks import Evaluation, OpenTrie, Room, ScoreBatch, with_details
from laborllm_dist.evaluation.title_trie import ROOT, Floats, Integers, TitleTrie
from laborllm_dist.models.inference import InferenceModel, TokenQueries
from laborllm_dist.models.tree_inference import Nodes, PrefixState
from laborllm_dist.tables.log_domain import log_sum_exp, upper_probability
from laborllm_dist.tables.parquet import ScoreTableInfo
from laborllm_dist.tables.title_distributions import title_table_path, write_title_table

Booleans = npt.NDArray[np.bool_]
Ask = Callable[[PrefixState, Nodes | None, Tensor, TokenQueries], Tensor]  # InferenceModel.edges
Forward = Callable[[Nodes | None, Tensor, TokenQueries], Floats]  # the same, of one prefix state, checked, on the host
MOST_KEPT = 4  # times max_tree_tokens: nodes of titles whose keys and values are kept at once


@dataclass(frozen=True, slots=True)
class AllTitles:
    """Score all titles after the prompt of every observation, into the table of titles."""

    subject: ClassVar[str] = "all titles of "
    settings: EvaluationSettings

    @property
    def batches_per_part(self) -> int:
        """1: such a forward costs hundreds of times one of observed titles, so each is its own part."""
        return 1

    def tables(self, target: EvaluationTarget) -> tuple[Path, ...]:
        """Return the file of the table."""
        return (title_table_path(target.table, target.info.split),)

    def info(self, target: EvaluationTarget) -> ScoreTableInfo:
        """Return the metadata of the table."""
        settings = self.settings
        details = {
            "max_unscored_mass": str(settings.max_unscored_mass),
            "max_tree_tokens": str(settings.max_tree_tokens),
        }
        return with_details(target.info, details)

    def room(self, trie: OpenTrie) -> Room:
        """Return how many tokens must fit the context after a prompt."""
        return Room(int(trie().depths_M.max()), "the longest title; take a longer context")

    def scorer(self, work: Evaluation, model: InferenceModel, trie: OpenTrie) -> ScoreBatch:
        """Return the function that scores one batch of the plan.

        It raises TitleBoundaryError if the observed titles have other tokens than those of the tree.
        """
        return lambda batch: self._score_batch(work, model, trie(), batch)

    def write(self, work: Evaluation, facts: pa.Table, scores: pa.Table) -> None:
        """Write the table from the facts and the scores of all observations, in the same order."""
        for name in ("mass", "bound", "normalised", "title", "terminated"):
            facts = facts.append_column(name, scores[name])
        write_title_table(facts, work.info, work.careers.vocabulary.codes, work.table)

    def _score_batch(self, work: Evaluation, model: InferenceModel, trie: TitleTrie, batch: int) -> pa.Table:
        rows = work.plan.batches[batch]
        packed, places = pack_observations(work.careers, rows, work.plan.max_seq_length)
        observed_P = work.careers.occupations_of([career for row in rows for career in row])
        check_observed(packed.token_ids_BT.numpy(), places, trie, observed_P)
        scores = score_prompts(model, packed, Prompts(places.prefixes_P3, observed_P), trie, self.settings)
        own_P = scores.terminated_PT[np.arange(len(observed_P)), observed_P]
        return pa.table(
            {
                "career": places.keys[:, 0],
                "position": places.keys[:, 1].astype(np.int32),
                "mass": np.exp(scores.log_mass_P()),
                "bound": scores.bound_P,
                "normalised": own_P - scores.log_whole_P(),
                "title": _lists(scores.title_PT),
                "terminated": _lists(scores.terminated_PT),
            }
        )


def _lists(values_PT: Floats) -> pa.ListArray:
    flat = pa.array(values_PT.ravel(), mask=np.isnan(values_PT).ravel())
    return pa.ListArray.from_arrays(np.arange(0, values_PT.size + 1, values_PT.shape[1], dtype=np.int32), flat)


def check_observed(
    token_ids_BT: npt.NDArray[np.int64], places: TitleSpans, trie: TitleTrie, observed_P: npt.NDArray[np.int64]
) -> None:
    """Compare the tokens of the observed titles in packed rows with their paths in the tree.

    Raises:
        TitleBoundaryError: if one differs, since its probability would not be that of its text.
    """
    for (row, start, end), title in zip(places.spans.tolist(), observed_P.tolist(), strict=True):
        if tuple(token_ids_BT[row, start : end + 1].tolist()) != trie.closed_tokens(title):
            raise TitleBoundaryError(
                f"title {title} is other tokens inside a career than alone after a prompt; "
                "the distribution over titles needs a tokenizer that cuts titles the same everywhere",
                code="titles-tokenized-differently",
            )


@dataclass(frozen=True, slots=True)
class Prompts:
    """P prompts inside packed rows.

    `prefixes_P3`: row, first slot of the history, slot past its last one. `observed_P`: the number of the title that
    must be scored individually, -1 where none must. Prompts of one history are neighbors. `suffixes`: the tokens of
    each prompt between its history and the titles; None: the history is the prompt. `previous_P`: the title before, the
    number of titles where there is none; only an output layer over titles needs it.
    """

    prefixes_P3: Integers
    observed_P: Integers
    suffixes: tuple[Integers, ...] | None = None
    previous_P: Integers | None = None

    def __len__(self) -> int:
        return len(self.prefixes_P3)

    def part(self, places: slice) -> Prompts:
        """Return the prompts of a slice."""
        suffixes = None if self.suffixes is None else self.suffixes[places]
        previous_P = None if self.previous_P is None else self.previous_P[places]
        return Prompts(self.prefixes_P3[places], self.observed_P[places], suffixes, previous_P)

    def last_slots_P(self, row_length: int) -> Integers:
        """Return the last slots of the histories, as indices into the flattened rows."""
        return self.prefixes_P3[:, 0] * row_length + self.prefixes_P3[:, 2] - 1

    def suffix_nodes(self, *, num_before: int) -> Nodes:
        """Return the tokens of the suffixes as nodes, prompt by prompt, after `num_before` nodes of other prompts."""
        assert self.suffixes is not None
        lengths_P = np.array([len(suffix) for suffix in self.suffixes])
        firsts_P = np.cumsum(lengths_P) - lengths_P
        prompts_N = np.repeat(np.arange(len(self)), lengths_P)
        within_N = np.arange(len(prompts_N)) - firsts_P[prompts_N]
        earlier_A = np.arange(lengths_P.max())
        places_NA = num_before + firsts_P[prompts_N][:, None] + earlier_A
        prefixes_N3 = self.prefixes_P3[prompts_N]
        return Nodes(
            token_ids_N=np.concatenate(self.suffixes).astype(np.int64),
            positions_N=prefixes_N3[:, 2] - prefixes_N3[:, 1] + within_N,
            prefixes_N3=prefixes_N3,
            ancestors_NA=np.where(earlier_A <= within_N[:, None], places_NA, -1),
        )


@dataclass(frozen=True, slots=True)
class TitleScores:
    """Log-likelihoods of T titles after P prompts, in nats; NaN where a title was not scored individually.

    `title_PT`: of a title's tokens; `terminated_PT`: and the line's end; `log_bound_P`: of the unexpanded mass, minus
    infinity where there was none.
    """

    title_PT: Floats
    terminated_PT: Floats
    log_bound_P: Floats

    @property
    def scored_PT(self) -> Floats:
        """`terminated_PT`, with minus infinity for titles that were not scored individually, to be added up."""
        return np.where(np.isnan(self.terminated_PT), -np.inf, self.terminated_PT)

    @property
    def bound_P(self) -> Floats:
        """The unexpanded mass, rounded up: 0 only where there was none."""
        return upper_probability(self.log_bound_P)

    def log_mass_P(self) -> Floats:
        """Return log of the mass of the titles that were scored individually."""
        return log_sum_exp(self.scored_PT, axis=1)

    def log_whole_P(self) -> Floats:
        """Return log of the mass of all titles, scored individually or not."""
        return np.logaddexp(self.log_mass_P(), self.log_bound_P)


def score_prompts(
    model: InferenceModel, batch: PackedBatch, prompts: Prompts, trie: TitleTrie, settings: EvaluationSettings
) -> TitleScores:
    """Score all titles after the prompts of a batch, as the settings of an evaluation say."""
    return score_titles(
        model.edges,
        PrefixState(batch.to(model.device)),
        prompts,
        trie,
        tolerance=settings.max_unscored_mass,
        max_tree_tokens=settings.max_tree_tokens,
    )


def score_titles(
    ask: Ask, state: PrefixState, prompts: Prompts, trie: TitleTrie, *, tolerance: float, max_tree_tokens: int
) -> TitleScores:
    """Score all titles after prompts inside packed rows.

    Args:
        ask: a forward pass of the model.
        state: the rows, on the model's device, not forwarded yet.
        prompts: where the histories end.
        trie: of the titles.
        tolerance: the mass that may be left unexpanded after a prompt; 0: none.
        max_tree_tokens: about as many nodes are forwarded at once; the tree of one prompt is never cut.
    """

    def forward(nodes: Nodes | None, slots_Q: Tensor, queries: TokenQueries) -> Floats:
        return _finite(ask(state, nodes, slots_Q, queries))

    edges_PE = np.full((len(prompts), trie.num_edges), np.nan)
    if prompts.suffixes is None:
        last_slots_P = prompts.last_slots_P(state.batch.token_ids_BT.shape[1])
        edges_PE[:, trie.out_edges(ROOT)] = _first_edges(forward, None, last_slots_P, trie)
    else:  # forward the histories without scoring any token
        nothing = torch.zeros(0, dtype=torch.int64)
        forward(None, nothing, TokenQueries(nothing, nothing))
    at_once = max(1, max_tree_tokens * (MOST_KEPT if tolerance else 1) // trie.num_nodes)
    parts: list[TitleScores] = []
    for start in range(0, len(prompts), at_once):
        places = slice(start, start + at_once)
        trees = _Trees.reached(prompts.part(places), trie, edges_PE[places])
        for group in neighbors(trees.suffix_lengths_P, max_tree_tokens) if prompts.suffixes is not None else ():
            trees = trees.after_suffixes(group, forward)
        while (frontier_PM := trees.frontier(tolerance)).any():
            for group in neighbors(frontier_PM.sum(axis=1), max_tree_tokens):
                trees = trees.expanded(group, frontier_PM[group], forward)
        parts.append(trees.scores())
        state.drop_nodes()
    return TitleScores(
        title_PT=np.concatenate([part.title_PT for part in parts]),
        terminated_PT=np.concatenate([part.terminated_PT for part in parts]),
        log_bound_P=np.concatenate([part.log_bound_P for part in parts]),
    )


def neighbors(sizes: Integers, most: int) -> Iterator[slice]:
    """Cut a sequence into groups of neighbors of at most `most` together; one that is larger is a group of its own."""
    first, total = 0, 0
    for place, size in enumerate(sizes.tolist()):
        if place > first and total + size > most:
            yield slice(first, place)
            first, total = place, 0
        total += size
    if len(sizes):
        yield slice(first, len(sizes))


def _first_edges(forward: Forward, nodes: Nodes | None, slots_P: Integers, trie: TitleTrie) -> Floats:
    """Return log p of the titles' first tokens after these slots of a pass, [P, edges of the root]."""
    tokens = torch.from_numpy(trie.out_tokens(ROOT))
    queries = TokenQueries(torch.arange(len(slots_P)).repeat_interleave(len(tokens)), tokens.repeat(len(slots_P)))
    return forward(nodes, torch.from_numpy(slots_P), queries).reshape(len(slots_P), len(tokens))


def _finite(scores_E: Tensor) -> Floats:
    """Return a pass's log-likelihoods on the host.

    Raises:
        ModelError: if one is not finite, which would look like a title that was not scored individually.
    """
    values_E: Floats = scores_E.double().cpu().numpy()
    if not np.isfinite(values_E).all():
        raise ModelError(
            "the model gives log-likelihoods that are not finite; its weights are broken, or overflow",
            code="non-finite-log-likelihoods",
        )
    return values_E


@dataclass(frozen=True, slots=True)
class _Trees:
    """The tries of P prompts: a prefix is reached once its log P is known, and expanded once it is forwarded.

    `edges_PE`: log p of the edges, NaN until they are requested. `places_PM`: of expanded nodes among those in memory,
    -1 for the others. `suffix_places_PL`: the same for the tokens of the suffixes, which come first.
    """

    prompts: Prompts
    trie: TitleTrie
    suffix_lengths_P: Integers
    suffix_places_PL: Integers
    edges_PE: Floats
    places_PM: Integers

    @classmethod
    def reached(cls, prompts: Prompts, trie: TitleTrie, edges_PE: Floats) -> _Trees:
        """Return tries without any expanded node."""
        lengths_P = np.array([len(suffix) for suffix in prompts.suffixes or [()] * len(prompts)])
        within_PL = np.arange(lengths_P.max())[None] < lengths_P[:, None]
        suffix_places_PL = np.where(within_PL, np.cumsum(within_PL).reshape(within_PL.shape) - 1, -1)
        places_PM = np.full((len(prompts), trie.num_nodes), -1, dtype=np.int64)
        return cls(prompts, trie, lengths_P, suffix_places_PL, edges_PE, places_PM)

    def after_suffixes(self, group: slice, forward: Forward) -> _Trees:
        """Forward the suffixes of some prompts; return trees with the first tokens of titles."""
        nodes = self.prompts.part(group).suffix_nodes(num_before=int(self.suffix_lengths_P[: group.start].sum()))
        last_P, edges_PE = np.cumsum(self.suffix_lengths_P[group]) - 1, self.edges_PE.copy()
        edges_PE[group, self.trie.out_edges(ROOT)] = _first_edges(forward, nodes, last_P, self.trie)
        return replace(self, edges_PE=edges_PE)

    def frontier(self, tolerance: float) -> Booleans:
        """Return the nodes to expand next, [P, M]; their ancestors are expanded, or are among them."""
        unexpanded_PM = self.places_PM < 0
        if not tolerance:
            return unexpanded_PM
        mass_PM = np.exp(self._unexpanded())
        # The smallest masses are left as long as their sum stays within the tolerance.
        order_PM = np.argsort(mass_PM, axis=1, kind="stable")
        sums_PM = np.cumsum(np.take_along_axis(mass_PM, order_PM, axis=1), axis=1)
        left_PM = sums_PM <= tolerance * (1 - 1e-12)  # another order of the same sum must not exceed it
        frontier_PM = np.zeros_like(unexpanded_PM)
        np.put_along_axis(frontier_PM, order_PM, ~left_PM, axis=1)
        # Where a prefix has one continuation only, that one is next: it is expanded at once.
        for node in np.flatnonzero(self.trie.is_only_child_M):
            frontier_PM[:, node] |= frontier_PM[:, self.trie.parents_M[node]]
        frontier_PM |= self.trie.path_masks_TM[self.prompts.observed_P]
        return frontier_PM & unexpanded_PM

    def expanded(self, group: slice, nodes_GM: Booleans, forward: Forward) -> _Trees:
        """Forward these nodes of some prompts; return trees in which they are expanded."""
        in_group_N, nodes_N = np.nonzero(nodes_GM)
        if not len(nodes_N):
            return self
        trie, prompts_N = self.trie, in_group_N + group.start
        num_before = int(self.suffix_lengths_P.sum() + (self.places_PM >= 0).sum())
        places_PM, edges_PE = self.places_PM.copy(), self.edges_PE.copy()
        places_PM[prompts_N, nodes_N] = num_before + np.arange(len(nodes_N))
        paths_NA = trie.paths_MA[nodes_N][:, : int(trie.depths_M[nodes_N].max())]
        ancestors_NA = np.where(paths_NA >= 0, places_PM[prompts_N[:, None], paths_NA], -1)
        prefixes_N3 = self.prompts.prefixes_P3[prompts_N]
        starts_N = prefixes_N3[:, 2] - prefixes_N3[:, 1] + self.suffix_lengths_P[prompts_N]
        nodes = Nodes(
            token_ids_N=trie.tokens_M[nodes_N],
            positions_N=starts_N + trie.depths_M[nodes_N] - 1,
            prefixes_N3=prefixes_N3,
            ancestors_NA=np.concatenate([self.suffix_places_PL[prompts_N], ancestors_NA], axis=1),
        )
        sources_E, edges_E = trie.edges_from(nodes_N)
        queries = TokenQueries(torch.from_numpy(sources_E), torch.from_numpy(trie.edge_tokens_E[edges_E]))
        edges_PE[prompts_N[sources_E], edges_E] = forward(nodes, torch.arange(len(nodes_N)), queries)
        return replace(self, edges_PE=edges_PE, places_PM=places_PM)

    def scores(self) -> TitleScores:
        """Return what is known of the titles."""
        prefixes_PM, closed_PT = self.trie.path_sums(self.edges_PE)
        return TitleScores(prefixes_PM[:, self.trie.ends_T], closed_PT, log_sum_exp(self._unexpanded(), axis=1))

    def _unexpanded(self) -> Floats:
        """Return log P of every prefix that is reached and not expanded, [P, M]; minus infinity elsewhere."""
        prefixes_PM, _ = self.trie.path_sums(self.edges_PE)
        is_open_PM = (self.places_PM < 0) & ~np.isnan(prefixes_PM)
        return np.where(is_open_PM, prefixes_PM, -np.inf)
