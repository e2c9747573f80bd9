r"""The titles as a prefix tree of tokens: what titles share is forwarded once.

    Cooks          tokens  Co oks          |            root (the prompt)
    Cooks, private         Co oks , private|              Co
    Clerks                 Cl erks         |                oks ----- | ends Cooks
                                                              ,
                                                                private ----- | ends Cooks, private
                                                            Cl ...

A node is a distinct prefix of a title; the line's end (|) closes a title and is no node, since nothing follows it. Each
node is the next token of its parent, so log P of a prefix is a sum along its path. `title` ends at a title's last
node; `terminated` has the line's end too, so that titles are disjoint events.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from laborllm_dist.careers.types import OccupationVocabulary
from laborllm_dist.errors import TitleBoundaryError
from laborllm_dist.store.store import CareerTable
from laborllm_dist.store.tokenize import title_token_ids
from laborllm_dist.store.tokenizer import CareerTokenizer
from laborllm_dist.text.template import Template, render_career

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
ROOT = -1


@dataclass(frozen=True, slots=True)
class TitleTrie:
    """M nodes, parents before children, and T titles. Edges 0..M-1 lead to the nodes, M..M+T-1 close the titles.

    `edge_tokens_E` and `edge_sources_E` (ROOT: the prompt) are of the edges, so those of the nodes come first.
    `depths_M`: 1 after the prompt. `paths_MA`: each node's ancestors and itself in order, -1 behind them. `ends_T`: the
    last node of each title. `path_masks_TM`: the nodes of each title; one more row without any, for no title.
    `is_only_child_M`: nothing else can follow the node's parent. `out_starts` and `out_order_E` list edges by source.
    """

    edge_tokens_E: Integers
    edge_sources_E: Integers
    depths_M: Integers
    paths_MA: Integers
    ends_T: Integers
    path_masks_TM: npt.NDArray[np.bool_]
    is_only_child_M: npt.NDArray[np.bool_]
    out_starts: Integers
    out_order_E: Integers

    @property
    def num_nodes(self) -> int:
        """Number of distinct prefixes."""
        return len(self.depths_M)

    @property
    def num_edges(self) -> int:
        """Number of tokens that can follow a prefix, over all prefixes."""
        return len(self.edge_tokens_E)

    @property
    def terminator(self) -> int:
        """The token of the line's end."""
        return int(self.edge_tokens_E[-1])

    @property
    def tokens_M(self) -> Integers:
        """The token of every node."""
        return self.edge_tokens_E[: self.num_nodes]

    @property
    def parents_M(self) -> Integers:
        """The parent of every node; ROOT: the prompt."""
        return self.edge_sources_E[: self.num_nodes]

    def out_edges(self, node: int) -> Integers:
        """Return the edges that leave a node or the ROOT."""
        return self.out_order_E[self.out_starts[node + 1] : self.out_starts[node + 2]]

    def out_tokens(self, node: int) -> Integers:
        """Return the tokens that can follow a node or the ROOT."""
        return self.edge_tokens_E[self.out_edges(node)]

    def closed_tokens(self, title: int) -> tuple[int, ...]:
        """Return the tokens of a title and the line's end."""
        path = self.paths_MA[self.ends_T[title]]
        return (*self.tokens_M[path[path >= 0]].tolist(), self.terminator)

    def edges_from(self, nodes_N: Integers) -> tuple[Integers, Integers]:
        """Return all edges that leave these nodes: the place of each one's source among them, and its number."""
        starts_N, ends_N = self.out_starts[nodes_N + 1], self.out_starts[nodes_N + 2]
        counts_N = ends_N - starts_N
        sources_E = np.repeat(np.arange(len(nodes_N)), counts_N)
        within_E = np.arange(len(sources_E)) - np.repeat(np.cumsum(counts_N) - counts_N, counts_N)
        return sources_E, self.out_order_E[starts_N[sources_E] + within_E]

    def path_sums(self, edges_PE: Floats) -> tuple[Floats, Floats]:
        """Return log P of every prefix [P, M] and of every closed title [P, T], from log p of the edges [P, M + T]."""
        prefixes_PM = edges_PE[:, : self.num_nodes].copy()
        for depth in range(2, int(self.depths_M.max()) + 1):
            nodes = np.flatnonzero(self.depths_M == depth)
            prefixes_PM[:, nodes] += prefixes_PM[:, self.parents_M[nodes]]
        return prefixes_PM, prefixes_PM[:, self.ends_T] + edges_PE[:, self.num_nodes :]


def build_trie(titles: Sequence[Sequence[int]], terminator: int) -> TitleTrie:
    """Build the trie of token sequences.

    Args:
        titles: token ids of each title, without the line's end.
        terminator: token of the line's end.

    Raises:
        TitleBoundaryError: if two titles are the same tokens.
    """
    node_of: dict[tuple[int, ...], int] = {(): ROOT}
    ends_T = np.zeros(len(titles), dtype=np.int64)
    # In the order of tokens, so that titles with a common prefix are neighbors.
    for number in sorted(range(len(titles)), key=lambda each: tuple(titles[each])):
        for depth in range(1, len(titles[number]) + 1):
            ends_T[number] = node_of.setdefault(tuple(titles[number][:depth]), len(node_of) - 1)
    if len(set(ends_T.tolist())) < len(titles):
        raise TitleBoundaryError(
            "two titles are the same tokens, so they have no probabilities of their own",
            code="titles-with-equal-tokens",
        )
    prefixes = list(node_of)[1:]
    depths_M = np.array([len(prefix) for prefix in prefixes])
    paths_MA = np.full((len(prefixes), int(depths_M.max())), -1)
    for node, prefix in enumerate(prefixes):
        paths_MA[node, : len(prefix)] = [node_of[prefix[:depth]] for depth in range(1, len(prefix) + 1)]
    sources_E = np.concatenate([[node_of[prefix[:-1]] for prefix in prefixes], ends_T])
    path_masks_TM = np.zeros((len(titles) + 1, len(prefixes)), dtype=bool)
    for number, end in enumerate(ends_T):
        path_masks_TM[number, paths_MA[end][paths_MA[end] >= 0]] = True
    counts = np.bincount(sources_E + 1, minlength=len(prefixes) + 1)
    return TitleTrie(
        edge_tokens_E=np.array([*(prefix[-1] for prefix in prefixes), *[terminator] * len(titles)]),
        edge_sources_E=sources_E,
        depths_M=depths_M,
        paths_MA=paths_MA,
        ends_T=ends_T,
        path_masks_TM=path_masks_TM,
        is_only_child_M=(counts[sources_E[: len(prefixes)] + 1] == 1) & (depths_M > 1),
        out_starts=np.concatenate([[0], np.cumsum(counts)]),
        out_order_E=np.argsort(sources_E, kind="stable"),
    )


def title_trie(prompt: str, vocabulary: OccupationVocabulary, tokenizer: CareerTokenizer) -> TitleTrie:
    """Build the trie of all titles after a prompt (see `common_title_trie`)."""
    return common_title_trie([prompt], vocabulary, tokenizer)


def common_title_trie(
    prompts: Sequence[str], vocabulary: OccupationVocabulary, tokenizer: CareerTokenizer
) -> TitleTrie:
    """Build the trie of all titles after several prompts, each of which is tokenized with every title.

    A title's tokens can depend only on the token before it: one prompt per distinct last token is enough.

    Args:
        prompts: at least one text up to and without the blank before a title.
        vocabulary: the titles as texts show them.
        tokenizer: of the texts.

    Raises:
        TitleBoundaryError: if a title changes a prompt's tokens, ends inside a token, equals another one in tokens, or
            has other tokens after one prompt than after another.
    """
    titles, terminator = title_token_ids(prompts[0], vocabulary, tokenizer)
    for prompt in prompts[1:]:
        others, end = title_token_ids(prompt, vocabulary, tokenizer)
        places = (place for place, ids in enumerate(others) if (*ids, end) != (*titles[place], terminator))
        if (changed := next(places, None)) is not None:
            raise TitleBoundaryError(
                f"titles are other tokens after {prompt[-20:]!r} than after {prompts[0][-20:]!r}, the first of them "
                f"{vocabulary.titles[changed]!r}, so no tree of titles holds after both; take people "
                "without one of these prompts, or a tokenizer that cuts titles the same everywhere",
                code="titles-tokenized-differently",
            )
    return build_trie(titles, terminator)


def ending_prompts(careers: CareerTable, template: Template) -> list[str]:
    """Return, for every token that ends a prompt of these careers, the shortest prompt that it ends.

    They are without the prefix, and without earlier lines where a row has only those that it predicts.
    """
    starts_N = np.asarray(pc.list_flatten(careers.table["title_starts"]), dtype=np.int64)
    num_tokens, num_jobs = careers.num_tokens(), careers.num_observations()
    rows_N = np.repeat(np.arange(len(careers)), num_jobs)
    token_ids = np.asarray(pc.list_flatten(careers.table["token_ids"]))
    last_N = token_ids[(np.cumsum(num_tokens) - num_tokens)[rows_N] + starts_N - 1]
    shortest_N = np.argsort(starts_N, kind="stable")
    chosen = shortest_N[np.unique(last_N[shortest_N], return_index=True)[1]]
    with_all_lines, title_of = dataclasses.replace(template, prefix="", max_history=None), careers.vocabulary.title_of()
    prompts: list[str] = []
    for place in np.sort(chosen).tolist():
        row = int(rows_N[place])
        job = place - int(num_jobs[:row].sum())
        (text,) = render_career(careers.history(row), with_all_lines, title_of)
        prompts.append(text.text[: text.title_spans[job][0]])
    return prompts
