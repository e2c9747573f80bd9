"""The titles after many prompts: one forward of the histories, then the tree of titles after each of them.

Complete (`tolerance` 0): every distinct (history, prefix of a title) is forwarded once. Bounded: the tree grows from
its most probable prefixes down, round by round, until the prefixes that are left have a mass of at most `tolerance`
together. That mass is known exactly; the titles in it are not told apart. What was observed is always grown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from laborllm_dist.errors import ModelError
from laborllm_dist.evaluation.title_trie import ROOT, Floats, Integers, TitleTrie
from laborllm_dist.models.inference import TokenQueries
from laborllm_dist.models.tree_inference import Nodes, PrefixState
from laborllm_dist.tables.log_domain import log_sum_exp, upper_probability

Booleans = npt.NDArray[np.bool_]
Ask = Callable[[PrefixState, Nodes | None, Tensor, TokenQueries], Tensor]  # InferenceModel.edges
MOST_KEPT = 4  # times max_tree_tokens: nodes of titles whose keys and values are kept at once, whatever grows


@dataclass(frozen=True, slots=True)
class Prompts:
    """P prompts inside packed rows.

    `stems_P3` is [P, 3]: row, first slot of the history, slot past its last one. `observed_P`: the number of the title
    that must be told apart, -1 where none is. Prompts of one history stand side by side. `lines`: the tokens of each
    prompt that stand between its history and the titles; None: the history is the prompt.
    """

    stems_P3: Integers
    observed_P: Integers
    lines: tuple[Integers, ...] | None = None

    def __len__(self) -> int:
        return len(self.stems_P3)

    def part(self, places: slice) -> Prompts:
        """Return some of them."""
        lines = None if self.lines is None else self.lines[places]
        return Prompts(self.stems_P3[places], self.observed_P[places], lines)


@dataclass(frozen=True, slots=True)
class TitleScores:
    """Log-likelihoods of T titles after P prompts, in nats; NaN where a title was not told apart.

    `title_PT`: of a title's tokens; `terminated_PT`: and the line's end; `log_bound_P`: of the mass left ungrown,
    minus infinity where none was.
    """

    title_PT: Floats
    terminated_PT: Floats
    log_bound_P: Floats

    @property
    def told_PT(self) -> Floats:
        """`terminated_PT`, with minus infinity for titles that were not told apart, to be added up."""
        return np.where(np.isnan(self.terminated_PT), -np.inf, self.terminated_PT)

    @property
    def bound_P(self) -> Floats:
        """The mass that was left ungrown, rounded up: 0 only where there was none."""
        return upper_probability(self.log_bound_P)

    def log_mass_P(self) -> Floats:
        """Return log of the mass of the titles that were told apart."""
        return log_sum_exp(self.told_PT, axis=1)

    def log_whole_P(self) -> Floats:
        """Return log of the mass of all titles: told apart, and left ungrown."""
        return np.logaddexp(self.log_mass_P(), self.log_bound_P)


def score_titles(
    ask: Ask, grown: PrefixState, prompts: Prompts, trie: TitleTrie, *, tolerance: float, max_tree_tokens: int
) -> TitleScores:
    """Score all titles after prompts inside packed rows.

    Args:
        ask: a pass of the model.
        grown: the rows, on the model's device, not forwarded yet.
        prompts: where the histories end.
        trie: of the titles.
        tolerance: the mass that may be left ungrown after a prompt; 0: none.
        max_tree_tokens: about as many nodes are forwarded at once; the tree of one prompt is never cut.
    """
    edges_PE = np.full((len(prompts), trie.num_edges), np.nan)
    if prompts.lines is None:
        edges_PE[:, trie.out_edges(ROOT)] = _first_edges(ask, grown, prompts, trie)
    else:  # the histories are forwarded, and nothing is asked of them
        nothing = torch.zeros(0, dtype=torch.int64)
        ask(grown, None, nothing, TokenQueries(nothing, nothing))
    at_once = max(1, max_tree_tokens * (MOST_KEPT if tolerance else 1) // trie.num_nodes)
    parts: list[TitleScores] = []
    for start in range(0, len(prompts), at_once):
        places = slice(start, start + at_once)
        trees = _TitleTrees(ask, grown, prompts.part(places), trie, edges_PE[places])
        trees.grow_lines(max_tree_tokens)
        while (wanted_PM := trees.wanted(tolerance)).any():
            trees.grow(wanted_PM, max_tree_tokens)
        parts.append(trees.scores())
        grown.drop_nodes()
    return TitleScores(*(np.concatenate([getattr(part, name) for part in parts]) for name in TitleScores.__slots__))


def _first_edges(ask: Ask, grown: PrefixState, prompts: Prompts, trie: TitleTrie) -> Floats:
    """Forward the histories and return log p of the titles' first tokens, [P, edges of the root]."""
    tokens = torch.from_numpy(trie.out_tokens(ROOT))
    num_slots = grown.batch.token_ids_BT.shape[1]
    last_slots_P = prompts.stems_P3[:, 0] * num_slots + prompts.stems_P3[:, 2] - 1
    asked = TokenQueries(torch.arange(len(prompts)).repeat_interleave(len(tokens)), tokens.repeat(len(prompts)))
    return _numbers(ask(grown, None, torch.from_numpy(last_slots_P), asked)).reshape(len(prompts), len(tokens))


def _numbers(found_E: Tensor) -> Floats:
    """Return a pass's log-likelihoods on the host.

    Raises:
        ModelError: if one is no number, which would look like a title that was not told apart.
    """
    scores_E: Floats = found_E.double().cpu().numpy()
    if not np.isfinite(scores_E).all():
        raise ModelError("the model gives log-likelihoods that are no numbers; its weights are broken, or overflow")
    return scores_E


class _TitleTrees:
    """The trees of P prompts while they grow. A prefix is reached when its log P is known, grown when forwarded."""

    def __init__(self, ask: Ask, grown: PrefixState, prompts: Prompts, trie: TitleTrie, edges_PE: Floats) -> None:
        self.ask, self.grown, self.prompts, self.trie, self.edges_PE = ask, grown, prompts, trie, edges_PE
        self.places_PM = np.full((len(prompts), trie.num_nodes), -1, dtype=np.int64)  # of grown nodes in the memory
        self.num_grown = 0
        self.line_lengths_P = np.array([len(line) for line in prompts.lines or [()] * len(prompts)])
        within_PL = np.arange(self.line_lengths_P.max())[None] < self.line_lengths_P[:, None]
        self.line_places_PL = np.where(within_PL, np.cumsum(within_PL).reshape(within_PL.shape) - 1, -1)

    def grow_lines(self, max_tree_tokens: int) -> None:
        """Forward what stands between the histories and the titles; the titles' first tokens are reached."""
        lines, first = self.prompts.lines or (), 0
        while first < len(lines):
            last, num_nodes = first + 1, len(lines[first])
            while last < len(lines) and num_nodes + len(lines[last]) <= max_tree_tokens:
                last, num_nodes = last + 1, num_nodes + len(lines[last])
            self._forward_lines(first, last)
            first = last

    def _forward_lines(self, first: int, last: int) -> None:
        trie, lengths = self.trie, self.line_lengths_P[first:last]
        prompts_N = np.repeat(np.arange(first, last), lengths)
        within_N = np.arange(len(prompts_N)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        columns = np.arange(self.line_places_PL.shape[1])
        ancestors_NA = np.where(columns[None] <= within_N[:, None], self.line_places_PL[prompts_N], -1)
        stems_N3 = self.prompts.stems_P3[prompts_N]
        tokens_N = np.concatenate((self.prompts.lines or ())[first:last]).astype(np.int64)
        nodes = Nodes(tokens_N, stems_N3[:, 2] - stems_N3[:, 1] + within_N, stems_N3, ancestors_NA)
        tokens = torch.from_numpy(trie.out_tokens(ROOT))
        asked = TokenQueries(torch.arange(last - first).repeat_interleave(len(tokens)), tokens.repeat(last - first))
        found_E = self.ask(self.grown, nodes, torch.from_numpy(np.cumsum(lengths) - 1), asked)
        self.edges_PE[first:last, trie.out_edges(ROOT)] = _numbers(found_E).reshape(-1, len(tokens))
        self.num_grown += len(nodes)

    def wanted(self, tolerance: float) -> Booleans:
        """Return the nodes to grow next, [P, M]."""
        ungrown_PM = self.places_PM < 0
        if not tolerance:
            return ungrown_PM
        mass_PM = np.exp(self._ungrown())
        # The smallest masses are left as long as their sum stays within the tolerance.
        order_PM = np.argsort(mass_PM, axis=1, kind="stable")
        sums_PM = np.cumsum(np.take_along_axis(mass_PM, order_PM, axis=1), axis=1)
        left_PM = sums_PM <= tolerance * (1 - 1e-12)  # another order of the same sum must not exceed it
        wanted_PM = np.zeros_like(ungrown_PM)
        np.put_along_axis(wanted_PM, order_PM, ~left_PM, axis=1)
        # Where a prefix has one continuation only, that one is next: it is grown at once.
        for node in np.flatnonzero(self.trie.is_only_child_M):
            wanted_PM[:, node] |= wanted_PM[:, self.trie.parents_M[node]]
        wanted_PM |= self.trie.path_masks_TM[self.prompts.observed_P]
        return wanted_PM & ungrown_PM

    def grow(self, wanted_PM: Booleans, max_tree_tokens: int) -> None:
        """Forward nodes whose ancestors are grown, or grow with them."""
        sizes_P = wanted_PM.sum(axis=1)
        first = 0
        while first < len(sizes_P):
            last = first + 1
            while last < len(sizes_P) and sizes_P[first : last + 1].sum() <= max_tree_tokens:
                last += 1
            if sizes_P[first:last].any():
                prompts_N, nodes_N = np.nonzero(wanted_PM[first:last])
                self._forward(prompts_N + first, nodes_N)
            first = last

    def scores(self) -> TitleScores:
        """Return what is known of the titles."""
        prefixes_PM, closed_PT = self.trie.path_sums(self.edges_PE)
        return TitleScores(prefixes_PM[:, self.trie.ends_T], closed_PT, log_sum_exp(self._ungrown(), axis=1))

    def _ungrown(self) -> Floats:
        """Return log P of every prefix that is reached and not grown, [P, M]; minus infinity elsewhere."""
        prefixes_PM, _ = self.trie.path_sums(self.edges_PE)
        is_open_PM = (self.places_PM < 0) & ~np.isnan(prefixes_PM)
        return np.where(is_open_PM, prefixes_PM, -np.inf)

    def _forward(self, prompts_N: Integers, nodes_N: Integers) -> None:
        trie = self.trie
        self.places_PM[prompts_N, nodes_N] = self.num_grown + np.arange(len(nodes_N))
        self.num_grown += len(nodes_N)
        paths_NA = trie.paths_MA[nodes_N][:, : int(trie.depths_M[nodes_N].max())]
        grown_NA = np.where(paths_NA >= 0, self.places_PM[prompts_N[:, None], paths_NA], -1)
        ancestors_NA = np.concatenate([self.line_places_PL[prompts_N], grown_NA], axis=1)
        stems_N3 = self.prompts.stems_P3[prompts_N]
        starts_N = stems_N3[:, 2] - stems_N3[:, 1] + self.line_lengths_P[prompts_N]
        positions_N = starts_N + trie.depths_M[nodes_N] - 1
        nodes = Nodes(trie.tokens_M[nodes_N], positions_N, stems_N3, ancestors_NA)
        sources_E, edges_E = trie.edges_from(nodes_N)
        asked = TokenQueries(torch.from_numpy(sources_E), torch.from_numpy(trie.edge_tokens_E[edges_E]))
        found_E = self.ask(self.grown, nodes, torch.arange(len(nodes_N)), asked)
        self.edges_PE[prompts_N[sources_E], edges_E] = _numbers(found_E)
