"""Scores continuations of many prompts that share their histories, with a causal language model.

One forward of packed careers caches every layer's keys and values. Later forwards process the nodes, the tokens of
possible continuations, each after its ancestors; they compute only the requested logits and the normalizer, a chunk of
nodes at a time. Models of unknown type forward history and nodes together under a mask. The same forwards return hidden
states in place of logits where those are requested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from laborllm_dist.batching.batch import PackedBatch
from laborllm_dist.config.model import ComputeSettings
from laborllm_dist.models.causal_lm import (
    HeadFn,
    apply_head,
    as_taken,
    block_mask,
    decoder_of,
    enable_custom_head,
    is_known_type,
    padded_inputs,
    supports_varlen_attention,
    takes_block_mask,
)
from laborllm_dist.models.tree_attention import Integers, KVCache, NodeBlock, block_size, split_into_blocks
from laborllm_dist.models.varlen_attention import career_bounds

_Read = Callable[[nn.Module, Mapping[str, Any]], Tensor]  # logits, or hidden states after the last norm


@dataclass(frozen=True, slots=True)
class Nodes:
    """N tokens after histories, and the tokens that they attend to; numpy, on the host.

    `positions_N` continue those of the history. `prefixes_N3`: row, first slot and end slot of each node's history;
    nodes of one career are adjacent. `ancestors_NA`: indices of its ancestors and itself among all nodes since the last
    `drop_nodes`, padded with -1.
    """

    token_ids_N: Integers
    positions_N: Integers
    prefixes_N3: Integers
    ancestors_NA: Integers

    def __len__(self) -> int:
        return len(self.token_ids_N)


@dataclass(slots=True)
class PrefixState:
    """Histories and the nodes after them: the KV cache of known types, the tokens for the others."""

    batch: PackedBatch
    cache: KVCache = field(default_factory=KVCache)
    nodes: Nodes | None = None

    def drop_nodes(self) -> None:
        """Remove the nodes; the histories stay."""
        self.cache.drop_nodes()
        self.nodes = None


@dataclass(frozen=True, slots=True)
class BranchPass:
    """A request for one forward, of the histories of `prefix` or of nodes after them.

    `slots_Q`: slots to predict from, as flat indices over all rows, or nodes; on the host. `work` takes the hidden
    states [Q, D] and the output layer's weight, or the logits [Q, V] and None; where it is None, the pass returns the
    hidden states.
    """

    prefix: PrefixState
    nodes: Nodes | None
    slots_Q: Tensor
    work: HeadFn | None


class BranchingModel:
    """A transformers model with forwards of histories and of nodes."""

    def __init__(self, hugging_face: nn.Module, compute: ComputeSettings) -> None:
        """Set the model up.

        Raises:
            ModelError: if compute.attention=packed, and the model does not support it.
        """
        self.hugging_face = hugging_face
        self._is_packed, self._is_known = supports_varlen_attention(hugging_face, compute), is_known_type(hugging_face)
        self._takes_mask = takes_block_mask(hugging_face)
        self._chunk_tokens = compute.loss_chunk_tokens
        if self._is_known:
            enable_custom_head(hugging_face)

    def forward(self, branch_pass: BranchPass) -> Any:
        """Return `branch_pass.work` of the slots; add the forwarded tokens to `branch_pass.prefix`."""
        prefix, nodes, slots_Q = branch_pass.prefix, branch_pass.nodes, branch_pass.slots_Q
        read: _Read = _logits if branch_pass.work is not None else _last_states
        work = branch_pass.work if branch_pass.work is not None else _same
        if not self._is_packed:
            if nodes is None and not self._takes_mask:
                padded = prefix.batch.one_a_row(slots_Q)
                return work(padded.at_slots(read(self.hugging_face, padded_inputs(padded)), slots_Q), None)
            of_nodes_NV = (
                self._of_histories(prefix.batch, read) if nodes is None else self._of_nodes(prefix, nodes, read)
            )
            return work(of_nodes_NV[slots_Q.to(of_nodes_NV.device)], None)
        device = prefix.batch.token_ids_BT.device
        inputs: dict[str, Any]
        if nodes is None:
            bounds = career_bounds(prefix.batch.lengths, device)
            inputs = {
                "input_ids": prefix.batch.token_ids_BT,
                "position_ids": prefix.batch.positions_BT,
                "bounds": bounds,
            }
        else:
            ids, positions = (
                torch.from_numpy(each)[None].to(device) for each in (nodes.token_ids_N, nodes.positions_N)
            )
            # Queries have the dtype of the hidden states, which begin as rows of the embedding.
            dtype = self.hugging_face.get_input_embeddings().weight.dtype  # type: ignore[operator]
            node_blocks = split_into_blocks(nodes.prefixes_N3, nodes.ancestors_NA, most_nodes=block_size(device))
            blocks = tuple(block.on(device, dtype) for block in node_blocks)
            inputs = {"input_ids": ids, "position_ids": positions, "blocks": blocks}
        inputs |= {"tree_cache": prefix.cache, "use_cache": False}
        if not self._is_known:  # its logits are not just a product with the hidden states
            return work(read(self.hugging_face, inputs).flatten(0, 1)[slots_Q.to(device)], None)
        hidden_BTD = decoder_of(self.hugging_face)(**inputs).last_hidden_state
        return apply_head(self.hugging_face, hidden_BTD.flatten(0, 1)[slots_Q.to(device)], work)

    def _of_histories(self, batch: PackedBatch, read: _Read) -> Tensor:
        mask = block_mask(self.hugging_face, batch.lengths, batch.token_ids_BT.shape[1], batch.token_ids_BT.device)
        inputs = {"input_ids": batch.token_ids_BT, "position_ids": batch.positions_BT, "attention_mask": mask}
        return read(self.hugging_face, {**inputs, "use_cache": False}).flatten(0, 1)

    def _of_nodes(self, prefix: PrefixState, nodes: Nodes, read: _Read) -> Tensor:
        """Return what is read at nodes, [N, V]: one forward per block, with its history and ancestors."""
        prefix.nodes = everything = nodes if prefix.nodes is None else _joined(prefix.nodes, nodes)
        batch, device = prefix.batch, prefix.batch.token_ids_BT.device
        parts: list[Tensor] = []
        place = len(everything) - len(nodes)
        for block in split_into_blocks(nodes.prefixes_N3, nodes.ancestors_NA, most_nodes=block_size(device)):
            if not self._takes_mask:
                parts.append(self._of_paths(batch, everything, block, place, read))
                place += len(block)
                continue
            history, visible_U = slice(block.start, block.stop), block.visible_U
            ids, positions = (
                torch.cat([of_row[block.row, history], torch.from_numpy(of_nodes[visible_U]).to(device)])
                for of_row, of_nodes in (
                    (batch.token_ids_BT, everything.token_ids_N),
                    (batch.positions_BT, everything.positions_N),
                )
            )
            mask_SS = as_taken(self.hugging_face, _tree_mask(everything, visible_U, block.start, block.stop).to(device))
            inputs = {"input_ids": ids[None], "position_ids": positions[None], "attention_mask": mask_SS[None, None]}
            of_slots_SV = read(self.hugging_face, {**inputs, "use_cache": False})[0]
            members = np.searchsorted(visible_U, np.arange(place, place + len(block)))
            parts.append(of_slots_SV[torch.from_numpy(members + block.stop - block.start).to(device)])
            place += len(block)
        return torch.cat(parts)

    def _of_paths(self, batch: PackedBatch, nodes: Nodes, block: NodeBlock, place: int, read: _Read) -> Tensor:
        """Return what is read at a block's nodes, the first at index `place`, [C, V], from a separate row for each."""
        device, ids_T = batch.token_ids_BT.device, batch.token_ids_BT[block.row]
        paths = []
        for node, stop in zip(range(place, place + len(block)), block.stops_C.tolist(), strict=True):
            ancestors = nodes.ancestors_NA[node]
            of_nodes = torch.from_numpy(nodes.token_ids_N[np.sort(ancestors[ancestors >= 0])]).to(device)
            paths.append(torch.cat([ids_T[block.start : stop], of_nodes]))
        at_once = max(1, self._chunk_tokens // max(len(path) for path in paths))
        return torch.cat([self._of_last(paths[low : low + at_once], read) for low in range(0, len(paths), at_once)])

    def _of_last(self, paths: list[Tensor], read: _Read) -> Tensor:
        """Return what is read at the last token of each path, [C, V]."""
        lengths_C = torch.tensor([len(path) for path in paths], device=paths[0].device)
        ids_CS = nn.utils.rnn.pad_sequence(paths, batch_first=True)
        is_token_CS = torch.arange(ids_CS.shape[1], device=ids_CS.device) < lengths_C[:, None]
        inputs = {"input_ids": ids_CS, "attention_mask": is_token_CS.long(), "use_cache": False}
        of_paths_CSV = read(self.hugging_face, inputs)
        return of_paths_CSV[torch.arange(len(paths), device=ids_CS.device), lengths_C - 1]


def _logits(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    logits_BTV: Tensor = model(**inputs).logits
    return logits_BTV


def _last_states(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    hidden_BTD: Tensor = model(**inputs, output_hidden_states=True).hidden_states[-1]
    return hidden_BTD


def _same(values_QV: Tensor, _weight_VD: Tensor | None) -> Tensor:
    return values_QV


def _joined(before: Nodes, nodes: Nodes) -> Nodes:
    width = max(before.ancestors_NA.shape[1], nodes.ancestors_NA.shape[1])
    padded = [
        np.pad(each.ancestors_NA, ((0, 0), (0, width - each.ancestors_NA.shape[1])), constant_values=-1)
        for each in (before, nodes)
    ]
    return Nodes(
        token_ids_N=np.concatenate([before.token_ids_N, nodes.token_ids_N]),
        positions_N=np.concatenate([before.positions_N, nodes.positions_N]),
        prefixes_N3=np.concatenate([before.prefixes_N3, nodes.prefixes_N3]),
        ancestors_NA=np.concatenate(padded),
    )


def _tree_mask(nodes: Nodes, visible_U: Integers, start: int, stop: int) -> Tensor:
    """Return the attention mask, [S, S] bool, of slots [start, stop) of a history, then of nodes by index."""
    num_history, num_nodes = stop - start, len(visible_U)
    mask_SS = np.zeros((num_history + num_nodes, num_history + num_nodes), dtype=bool)
    mask_SS[:num_history, :num_history] = np.tri(num_history, dtype=bool)
    mask_SS[num_history:, :num_history] = np.arange(start, stop) < nodes.prefixes_N3[visible_U, 2, None]
    seen_UA = nodes.ancestors_NA[visible_U]
    rows, of_row = np.nonzero(seen_UA >= 0)
    mask_SS[num_history + rows, num_history + np.searchsorted(visible_U, seen_UA[rows, of_row])] = True
    return torch.from_numpy(mask_SS)
