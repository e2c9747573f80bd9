"""Attention and log-likelihood of packed careers, against dense ones: values and gradients, every precision."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers.errors import raises
from helpers.runs import COMPUTE, settings_of
from torch import nn

from laborllm_dist.batching.batch import pack_batch
from laborllm_dist.distributed.context import without_cudnn_attention
from laborllm_dist.models import tree_attention as branch_attention_module
from laborllm_dist.models.causal_lm import CareerLanguageModel
from laborllm_dist.models.loading import new_llama
from laborllm_dist.models.log_likelihood import chunked_log_likelihood
from laborllm_dist.models.tree_attention import (
    BLOCK_NODES,
    CUDA_BLOCK_NODES,
    KVCache,
    branch_attention,
    split_into_blocks,
)
from laborllm_dist.models.varlen_attention import by_kernel, career_bounds, kernel_takes, packed_attention

CPU = torch.device("cpu")
gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def dense_log_likelihood(hidden_ND, weight_VD, targets_N):
    """Log-softmax of all logits at once, by torch."""
    return torch.log_softmax(hidden_ND @ weight_VD.T, dim=1)[torch.arange(len(targets_N)), targets_N]


@pytest.mark.parametrize("weights", [None, torch.tensor([0.0, 0.25, 1.0]).repeat(8)[:23]])
@pytest.mark.parametrize("chunk_tokens", [1, 7, 23, 1000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_chunks_give_the_log_likelihood_and_gradients_of_the_whole(
    weights: torch.Tensor | None, chunk_tokens: int, dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(23, 16, dtype=dtype), torch.randn(50, 16, dtype=dtype)
    targets = torch.randint(0, 50, (23,))
    own, dense = ([each.clone().requires_grad_() for each in (hidden, weight)] for _ in range(2))
    total, scores = chunked_log_likelihood(*own, targets, chunk_tokens=chunk_tokens, weights_N=weights)
    reference = dense_log_likelihood(*dense, targets)
    torch.testing.assert_close(scores, reference.detach(), rtol=0, atol=tolerance)
    expected_total = reference.sum() if weights is None else (reference * weights).sum()
    torch.testing.assert_close(total, expected_total, rtol=1e-6, atol=tolerance)
    # As in training, the loss is a small number times the sum.
    (-0.01 * total).backward()
    (-0.01 * expected_total).backward()
    for actual, expected in zip(own, dense, strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-4, atol=tolerance)
    assert not scores.requires_grad


def test_a_frozen_output_layer_gets_no_gradient_and_no_tokens_are_no_trouble() -> None:
    hidden, weight = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8)
    total, _ = chunked_log_likelihood(hidden, weight, torch.arange(5), chunk_tokens=2)
    total.backward()
    assert hidden.grad is not None
    empty = torch.empty(0, 8, requires_grad=True)
    total, scores = chunked_log_likelihood(empty, weight, torch.empty(0, dtype=torch.int64), chunk_tokens=2)
    total.backward()
    assert (float(total), scores.numel(), empty.grad.numel()) == (0.0, 0, 0)


def test_narrow_weights_have_wide_scores() -> None:
    """Logits of bf16 operands are float32 sums of exact products: far from what rounding each logit would give."""
    torch.manual_seed(1)
    hidden, weight = torch.randn(200, 64).bfloat16() * 2, torch.randn(300, 64).bfloat16()
    targets = torch.randint(0, 300, (200,))
    _, scores = chunked_log_likelihood(hidden, weight, targets, chunk_tokens=64)
    exact = dense_log_likelihood(hidden.double(), weight.double(), targets)
    rounded = dense_log_likelihood((hidden @ weight.T).float(), torch.eye(300), targets)
    assert scores.dtype == torch.float32
    assert float((scores - exact).abs().max()) < 1e-4
    assert float((rounded - exact).abs().max()) > 1e-2


def dense_attention(query, key, value, lengths, scaling):
    """Attention of every career alone, head by head, from its definition."""
    repeats = query.shape[1] // key.shape[1]
    outputs = torch.zeros(query.shape[0], query.shape[2], query.shape[1], query.shape[3], dtype=query.dtype)
    row, start = 0, 0
    for length in lengths:
        for head in range(query.shape[1]):
            q, k, v = (
                each[row, head // share, start : start + length]
                for each, share in ((query, 1), (key, repeats), (value, repeats))
            )
            logits = (q @ k.T) * scaling
            mask = torch.ones(length, length).tril().bool()
            outputs[row, start : start + length, head] = (
                torch.softmax(logits.masked_fill(~mask, -torch.inf), dim=-1) @ v
            )
        start += length
        if start == query.shape[2]:
            row, start = row + 1, 0
    return outputs


@pytest.mark.parametrize("num_key_heads", [4, 2, 1])
def test_attention_stays_inside_careers(num_key_heads: int) -> None:
    torch.manual_seed(2)
    lengths = [5, 1, 6, 12, 3, 9]  # three rows of twelve
    query = torch.randn(3, 4, 12, 8, dtype=torch.float64)
    key, value = (torch.randn(3, num_key_heads, 12, 8, dtype=torch.float64) for _ in range(2))
    actual, _ = packed_attention(nn.Module(), query, key, value, None, bounds=career_bounds(lengths, CPU), scaling=0.3)
    torch.testing.assert_close(actual, dense_attention(query, key, value, lengths, 0.3), rtol=0, atol=1e-12)
    alone, _ = packed_attention(nn.Module(), query, key, value, None, scaling=0.3)
    torch.testing.assert_close(alone, dense_attention(query, key, value, [12, 12, 12], 0.3), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="takes bounds, not a mask"):
        packed_attention(nn.Module(), query, key, value, torch.ones(1), scaling=0.3)


def kernel_of_torch_2_11(query, key, value, starts, key_starts, longest, longest_key, *, return_aux=None, scale=None,
                         window_size=(-1, -1)):  # fmt: skip
    """Variable-length attention from its definition, with the arguments that torch 2.11 has; heads may share keys."""
    assert starts.dtype == torch.int32 and starts is key_starts and window_size == (-1, 0) and return_aux is None
    lengths = starts.diff().tolist()
    assert (longest, longest_key, sum(lengths)) == (max(lengths), max(lengths), len(query))
    whole = (each.transpose(0, 1)[None] for each in (query, key, value))
    return dense_attention(*whole, lengths, scale)[0]


def kernel_of_torch_2_13(query, key, value, starts, key_starts, longest, longest_key, *, return_aux=None, scale=None,
                         window_size=(-1, -1), enable_gqa=False, seqused_k=None, block_table=None, num_splits=None):  # fmt: skip
    """The same with the arguments of torch 2.13, which wants to be told that heads share keys."""
    assert enable_gqa or query.shape[1] == key.shape[1], "keys are shared, unannounced"
    return kernel_of_torch_2_11(query, key, value, starts, key_starts, longest, longest_key, return_aux=return_aux,
                                scale=scale, window_size=window_size)  # fmt: skip


@pytest.mark.parametrize("kernel", [kernel_of_torch_2_11, kernel_of_torch_2_13])
@pytest.mark.parametrize("num_key_heads", [4, 2, 1])
def test_the_kernel_is_called_as_each_version_of_torch_wants_it(kernel, num_key_heads: int, monkeypatch) -> None:
    """The kernel itself wants CUDA; here are its arguments, and what is done with its output."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    torch.manual_seed(3)
    lengths = [5, 1, 6, 12, 3, 9]
    query = torch.randn(3, 4, 12, 8, dtype=torch.float64)
    key, value = (torch.randn(3, num_key_heads, 12, 8, dtype=torch.float64) for _ in range(2))
    actual = by_kernel(query, key, value, career_bounds(lengths, CPU), 0.3)
    torch.testing.assert_close(actual, dense_attention(query, key, value, lengths, 0.3), rtol=0, atol=1e-12)


def test_ranks_do_without_attention_that_is_planned_anew_for_every_length() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with pytest.raises(KeyError), without_cudnn_attention():
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        raise KeyError
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_heads_that_the_kernel_cannot_take_go_another_way() -> None:
    assert [kernel_takes(torch.bfloat16, width=width) for width in (8, 12, 128, 256, 264)] == [
        True,
        False,
        True,
        True,
        False,
    ]
    assert kernel_takes(torch.float16, width=64)
    assert not kernel_takes(torch.float32, width=64)


def small_llama(**changes):
    shape = dataclasses.replace(
        settings_of([]).model.llama,
        hidden_size=48,
        num_layers=3,
        num_key_value_heads=2,
        initializer_range=0.1,
        **changes,
    )
    return new_llama(shape, num_ids=120, attention_dropout=0.0, seed=3)


def some_batch():
    random = np.random.default_rng(0)
    rows = [
        [random.integers(0, 120, length).astype(np.int32) for length in lengths] for lengths in ([9, 20], [30], [4, 4])
    ]
    return pack_batch(rows, 32)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("changes", [{"attention": "mask"}, {"loss_chunk_tokens": 5}, {"gradient_checkpointing": True}])
def test_every_way_to_compute_gives_one_loss_and_one_gradient(changes: dict, tied: bool) -> None:
    outputs = []
    for compute in (COMPUTE, dataclasses.replace(COMPUTE, **changes)):
        llama = small_llama(tied_embeddings=tied)
        if compute.gradient_checkpointing:
            llama.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model = CareerLanguageModel(llama, compute).train()
        total, scores = model(some_batch())
        total.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        outputs.append((float(total), scores, gradients))
    (total, scores, gradients), (other_total, other_scores, other_gradients) = outputs
    assert total == pytest.approx(other_total, rel=1e-6)
    torch.testing.assert_close(scores, other_scores, rtol=0, atol=2e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-3, atol=1e-4)


def test_packed_attention_of_a_model_that_cannot_have_it_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0))
    with raises("model/packed-attention-unsupported", "llama", "gpt2"):
        CareerLanguageModel(model, dataclasses.replace(COMPUTE, attention="packed"))
    CareerLanguageModel(model, COMPUTE)


@gpu
@needs_gpu
@pytest.mark.parametrize("num_key_heads", [8, 2])
def test_the_variable_length_kernel_is_block_diagonal_attention(num_key_heads: int) -> None:
    torch.manual_seed(4)
    device, lengths = torch.device("cuda"), [300, 1, 211, 512, 8, 504]
    query = torch.randn(3, 8, 512, 64, device=device).bfloat16().requires_grad_()
    key, value = (torch.randn(3, num_key_heads, 512, 64, device=device).bfloat16().requires_grad_() for _ in range(2))
    actual, _ = packed_attention(
        nn.Module(), query, key, value, None, bounds=career_bounds(lengths, device), scaling=0.125
    )
    exact = [each.detach().double().cpu().requires_grad_() for each in (query, key, value)]
    expected = dense_attention(*exact, lengths, 0.125)
    error = (actual.double().cpu() - expected).norm() / expected.norm()
    assert float(error) < 1e-2
    weights = torch.randn_like(actual)
    (actual * weights).sum().backward()
    (expected * weights.double().cpu()).sum().backward()
    for own, other in zip((query, key, value), exact, strict=True):
        assert float((own.grad.double().cpu() - other.grad).norm() / other.grad.norm()) < 2e-2


def check_branches(device: torch.device, dtype: torch.dtype, tolerance: float, most_nodes: int) -> None:
    """Compare attention of branches with a softmax a node, over what it may see, written out in float64."""
    torch.manual_seed(6)
    num_heads, num_key_heads, width = 4, 2, 16
    history_keys, history_values = (torch.randn(2, num_key_heads, 40, width, dtype=dtype) for _ in range(2))
    # Two prompts in a career of row 1 (slots 5 to 30, cut at 12 and 30), one in row 0. The parents of the nodes, by place.
    prefixes_N3 = np.array([[1, 5, 12]] * 3 + [[1, 5, 30]] * 200 + [[0, 0, 7]] * 2)
    parents = [-1, 0, 1, -1, *range(3, 202), -1, 203]
    paths: list[list[int]] = []
    for place, parent in enumerate(parents):
        paths.append([*(paths[parent] if parent >= 0 else []), place])
    paths = [path[-9:] for path in paths]  # no deeper than titles are
    query, key, value = (
        torch.randn(1, heads, len(prefixes_N3), width, dtype=dtype)
        for heads in (num_heads, num_key_heads, num_key_heads)
    )
    cache = KVCache()
    cache.keep_history(0, history_keys.to(device), history_values.to(device))
    outputs = []
    for part in (slice(0, 150), slice(150, None)):  # ancestors from an earlier pass, too
        ancestors = np.full((len(prefixes_N3[part]), 9), -1)
        for row, path in enumerate(paths[part]):
            ancestors[row, : len(path)] = path
        cut = split_into_blocks(prefixes_N3[part], ancestors, most_nodes=most_nodes)
        assert max(map(len, cut)) <= most_nodes
        blocks = tuple(block.on(device, dtype) for block in cut)
        tensors = tuple(each[:, :, part].to(device) for each in (query, key, value))
        outputs.append(branch_attention(0, tensors, cache, blocks, 0.25))
    for place, output in enumerate(torch.cat(outputs, dim=1)[0].double().cpu()):
        row, start, stop = prefixes_N3[place]
        for head in range(num_heads):
            shared = head // (num_heads // num_key_heads)
            keys = torch.cat([history_keys[row, shared, start:stop], key[0, shared, paths[place]]]).double()
            values = torch.cat([history_values[row, shared, start:stop], value[0, shared, paths[place]]]).double()
            weights = torch.softmax(0.25 * keys @ query[0, head, place].double(), dim=0)
            torch.testing.assert_close(output[head], weights @ values, atol=tolerance, rtol=0)


@pytest.mark.parametrize("most_nodes", [7, BLOCK_NODES, CUDA_BLOCK_NODES])
@pytest.mark.parametrize("attend", ["_attend_as_queries", "_attend_as_batch"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_branches_see_their_history_and_their_ancestors_alone(
    attend: str, most_nodes: int, dtype: torch.dtype, tolerance: float, monkeypatch
) -> None:
    monkeypatch.setattr(branch_attention_module, "_attend_as_queries", getattr(branch_attention_module, attend))
    check_branches(CPU, dtype, tolerance, most_nodes)


def test_a_bias_has_lines_that_the_kernel_of_a_gpu_takes_as_they_are() -> None:
    (block,) = split_into_blocks(np.array([[0, 2, 5], [0, 2, 6]]), np.array([[0, -1], [0, 1]]), most_nodes=8)
    bias = block.on(CPU, torch.bfloat16).bias_CS
    assert (bias.dtype, bias.shape, bias.stride()) == (torch.bfloat16, (2, 6), (8, 1))
    # Slots 2 to 5 of the history, then both places.
    assert (bias == 0).tolist() == [[True, True, True, False, True, False], [True, True, True, True, True, True]]
    assert bias[0, 3] == -torch.inf


@gpu
@needs_gpu
@pytest.mark.parametrize("most_nodes", [BLOCK_NODES, CUDA_BLOCK_NODES])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_branches_on_a_gpu_see_their_history_and_their_ancestors_alone(
    dtype: torch.dtype, tolerance: float, most_nodes: int
) -> None:
    check_branches(torch.device("cuda"), dtype, tolerance, most_nodes)
