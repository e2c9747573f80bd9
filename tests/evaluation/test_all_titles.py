"""The distribution over all titles against the slow scorer, by hand, and against itself in bounded mode."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.errors import raises
from helpers.models import settings_for
from helpers.reference.slow_scorer import slow_score
from helpers.runs import COMPUTE
from helpers.scoring_cases import (
    TITLES,
    VOCABULARY,
    Changed,
    careers_of_every_kind,
    random_llama,
    rows_of,
    template,
    trained_tokenizer,
)
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel

from laborllm_dist.batching.batch import pack_batch
from laborllm_dist.batching.title_positions import check_room, title_places
from laborllm_dist.careers.types import CareerHistory, OccupationVocabulary
from laborllm_dist.errors import ModelError
from laborllm_dist.evaluation.all_titles import Prompts, TitleScores, check_observed, score_titles
from laborllm_dist.evaluation.title_trie import (
    ROOT,
    TitleTrie,
    build_trie,
    common_title_trie,
    ending_prompts,
    title_trie,
)
from laborllm_dist.models.gguf import convert_gguf, packaged_file
from laborllm_dist.models.inference import InferenceModel, wrap_for_inference
from laborllm_dist.models.loading import pretrained_model
from laborllm_dist.models.tree_inference import Nodes, PrefixState
from laborllm_dist.store.store import CareerTable, store_rows
from laborllm_dist.store.tokenize import tokenize_careers
from laborllm_dist.store.tokenizer import CareerTokenizer, load_tokenizer
from laborllm_dist.tables.title_distributions import read_title_table
from laborllm_dist.text.template import render_career

PROMPT = "1984 (high school):"
UNIT = ((0, 1), (2, 3))  # the careers of every kind, two a row


def opened(path: Path, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return pretrained_model(settings_for(path), dtype=dtype)


@dataclasses.dataclass
class Counted:
    """A model that counts the slots of nodes it forwards."""

    model: InferenceModel
    num_nodes: int = 0

    def edges(self, prefix: PrefixState, nodes: Nodes | None, slots_Q: torch.Tensor, edges) -> torch.Tensor:
        self.num_nodes += 0 if nodes is None else len(nodes)
        return self.model.edges(prefix, nodes, slots_Q, edges)


def distributions(
    model: Counted, rows: CareerTable, trie: TitleTrie, *, unit=UNIT, tolerance: float = 0.0, max_tree_tokens: int = 100
) -> TitleScores:
    """Score all titles of some careers."""
    careers = [[rows.token_ids(career) for career in row] for row in unit]
    length = max(sum(map(len, row)) for row in careers)
    places = title_places(rows, unit)
    prompts = Prompts(places.prefixes_P3, rows.occupations_of([career for row in unit for career in row]))
    prefix = PrefixState(pack_batch(careers, length))
    return score_titles(model.edges, prefix, prompts, trie, tolerance=tolerance, max_tree_tokens=max_tree_tokens)


def slow_distributions(model: PreTrainedModel, tokenizer: CareerTokenizer, careers: list[CareerHistory]) -> np.ndarray:
    """Return title and terminated of every title after every prompt, [prompts, titles, 2]: a forward each, float64."""
    model = model.double()
    model.set_attn_implementation("sdpa")
    scores = []
    for career in careers:
        (text,) = render_career(career, template(), VOCABULARY.title_of())
        for start, _ in text.title_spans:
            prompt = text.text[:start]
            encode = lambda part: tokenizer.backend.encode(part, add_special_tokens=False).ids  # noqa: E731
            scores.append([slow_score(model, encode, list(tokenizer.leading), prompt, title)[:2] for title in TITLES])
    return np.asarray(scores)


@functools.cache
def slow_distributions_of_a_random_llama() -> np.ndarray:
    return slow_distributions(random_llama(trained_tokenizer()), trained_tokenizer(), careers_of_every_kind())


def check_against_slow(actual: TitleScores, expected: np.ndarray, **tolerance: float) -> None:
    assert expected[:, :, 0].std() > 1  # titles differ, so agreement is no accident
    assert (actual.bound_P == 0).all()
    np.testing.assert_allclose(np.stack([actual.title_PT, actual.terminated_PT], axis=2), expected, **tolerance)


def test_the_tree_of_three_titles_by_hand() -> None:
    # "1 2", "1 2 3" (the first one begins it) and "4"; 9 ends a line. Nodes in the order of tokens: 1, 12, 123, 4.
    trie = build_trie([(1, 2), (1, 2, 3), (4,)], terminator=9)
    assert trie.tokens_M.tolist() == [1, 2, 3, 4]
    assert trie.parents_M.tolist() == [ROOT, 0, 1, ROOT]
    assert trie.ends_T.tolist() == [1, 2, 3]
    assert trie.out_tokens(ROOT).tolist() == [1, 4]
    assert [trie.out_tokens(node).tolist() for node in range(4)] == [[2], [3, 9], [9], [9]]
    assert trie.is_only_child_M.tolist() == [False, True, False, False]
    # log p of the edges to the nodes, then of the line's end after each title.
    edges = np.log([[0.5, 0.5, 0.25, 0.5, 0.75, 1.0, 0.5]])
    prefixes, closed = trie.path_sums(edges)
    np.testing.assert_allclose(np.exp(prefixes), [[0.5, 0.25, 0.0625, 0.5]])
    np.testing.assert_allclose(np.exp(closed), [[0.1875, 0.0625, 0.25]])


@pytest.mark.parametrize("attention", ["packed", "mask"])
@pytest.mark.parametrize(("max_tree_tokens", "block_size"), [(1, 128), (100, 9), (5000, 128), (5000, 1024)])
def test_all_titles_of_a_random_llama_equal_the_slow_scorer(
    attention: str, max_tree_tokens: int, block_size: int, monkeypatch
) -> None:
    monkeypatch.setattr("laborllm_dist.models.tree_attention.BLOCK_NODES", block_size)
    tokenizer, careers = trained_tokenizer(), careers_of_every_kind()
    model = random_llama(tokenizer)
    compute = dataclasses.replace(COMPUTE, attention=attention, loss_chunk_tokens=7)
    trie, rows = title_trie(PROMPT, VOCABULARY, tokenizer), rows_of(careers, tokenizer)
    counted = Counted(wrap_for_inference(model, compute))
    actual = distributions(counted, rows, trie, max_tree_tokens=max_tree_tokens)
    # Every distinct (history, prefix of a title) once: no fewer, no more.
    assert counted.num_nodes == len(actual.bound_P) * trie.num_nodes
    check_against_slow(actual, slow_distributions_of_a_random_llama(), atol=1e-5, rtol=0)


def test_all_titles_with_a_sentencepiece_tokenizer_equal_the_slow_scorer(llama_tokenizer: Path) -> None:
    tokenizer, careers = load_tokenizer(str(llama_tokenizer)), careers_of_every_kind()
    model = random_llama(tokenizer)
    trie, rows = title_trie(PROMPT, VOCABULARY, tokenizer), rows_of(careers, tokenizer)
    actual = distributions(Counted(wrap_for_inference(model, COMPUTE)), rows, trie)
    check_against_slow(actual, slow_distributions(model, tokenizer, careers), atol=1e-5, rtol=0)


def test_all_titles_of_a_pretrained_model_equal_the_slow_scorer(llama: Path) -> None:
    tokenizer, careers = load_tokenizer(str(llama)), careers_of_every_kind()[:2]
    trie, rows = title_trie(PROMPT, VOCABULARY, tokenizer), rows_of(careers, tokenizer)
    expected = slow_distributions(opened(llama), tokenizer, careers)
    for dtype, tolerance in (
        (torch.float64, {"atol": 1e-10, "rtol": 0}),
        (torch.float32, {"atol": 1e-5, "rtol": 1e-6}),
    ):
        model = opened(llama, dtype=dtype)
        actual = distributions(Counted(wrap_for_inference(model, COMPUTE)), rows, trie, unit=((0, 1),))
        check_against_slow(actual, expected, **tolerance)


def test_all_titles_of_smollm2_equal_the_slow_scorer(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    try:
        source = packaged_file()
    except ModelError as error:
        pytest.skip(str(error))
    convert_gguf(source, tmp_path / "smollm2")
    tokenizer, careers = load_tokenizer(str(tmp_path / "smollm2")), careers_of_every_kind()[:2]
    trie, rows = title_trie(PROMPT, VOCABULARY, tokenizer), rows_of(careers, tokenizer)
    model = opened(tmp_path / "smollm2")
    actual = distributions(Counted(wrap_for_inference(model, COMPUTE)), rows, trie, unit=((0, 1),))
    check_against_slow(actual, slow_distributions(model, tokenizer, careers), atol=1e-5, rtol=1e-6)


def test_all_titles_of_a_model_of_unknown_type_equal_the_slow_scorer() -> None:
    tokenizer, careers = trained_tokenizer(), careers_of_every_kind()
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = GPTNeoXConfig(vocab_size=tokenizer.num_ids, initializer_range=0.2, attn_implementation="sdpa", **sizes)
    model = GPTNeoXForCausalLM(config).eval()
    trie, rows = title_trie(PROMPT, VOCABULARY, tokenizer), rows_of(careers, tokenizer)
    expected = slow_distributions(model, tokenizer, careers)
    counted = Counted(wrap_for_inference(model.float(), COMPUTE))
    check_against_slow(distributions(counted, rows, trie), expected, atol=1e-5, rtol=0)
    bounded = distributions(counted, rows, trie, tolerance=0.2)
    assert np.isnan(bounded.terminated_PT).any()
    is_scored = ~np.isnan(bounded.terminated_PT)
    np.testing.assert_allclose(bounded.terminated_PT[is_scored], expected[:, :, 1][is_scored], atol=1e-5, rtol=0)


@pytest.mark.parametrize("max_tree_tokens", [1, 100, 5000])
@pytest.mark.parametrize("tolerance", [1e-12, 1e-6, 1e-3, 0.3])
def test_what_is_left_ungrown_is_known_and_within_the_tolerance(tolerance: float, max_tree_tokens: int) -> None:
    tokenizer, careers = trained_tokenizer(), careers_of_every_kind()
    trie, rows = title_trie(PROMPT, VOCABULARY, tokenizer), rows_of(careers, tokenizer)
    model = wrap_for_inference(random_llama(tokenizer), COMPUTE)
    whole = distributions(Counted(model), rows, trie)
    counted = Counted(model)
    actual = distributions(counted, rows, trie, tolerance=tolerance, max_tree_tokens=max_tree_tokens)
    assert counted.num_nodes < len(actual.bound_P) * trie.num_nodes or tolerance < 1e-6
    untold = np.isnan(actual.terminated_PT)
    assert (actual.bound_P <= tolerance).all()
    # The titles that were not told apart have no more than what is said to be left ...
    lost_P = np.where(untold, np.exp(whole.terminated_PT), 0).sum(axis=1)
    assert (lost_P <= actual.bound_P * (1 + 1e-4) + 1e-30).all()
    assert untold.any() or tolerance < 1e-6
    # ... the others are what they are, and the observed one is always among them.
    np.testing.assert_allclose(actual.terminated_PT[~untold], whole.terminated_PT[~untold], atol=1e-5, rtol=0)
    observed = rows.occupations_of([0, 1, 2, 3])
    assert not untold[np.arange(len(observed)), observed].any()


def test_the_bound_is_the_mass_of_the_prefix_that_was_left() -> None:
    # Of two titles one was observed; the other one is left where its tokens leave those of the first.
    tokenizer = trained_tokenizer()
    two = OccupationVocabulary(("a", "c"), ("Cooks", "Not in labor force"))
    career = dataclasses.replace(careers_of_every_kind()[0], jobs=careers_of_every_kind()[0].jobs[:1])
    rows, trie = rows_of([career], tokenizer), title_trie(PROMPT, two, tokenizer)
    model = random_llama(tokenizer)
    actual = distributions(Counted(wrap_for_inference(model, COMPUTE)), rows, trie, unit=((0,),), tolerance=0.9)
    assert np.isnan(actual.terminated_PT).tolist() == [[False, True]]
    observed, other = (trie.paths_MA[trie.ends_T[title]] for title in (0, 1))
    num_shared = int((observed == other).argmin())
    left = trie.tokens_M[other[: num_shared + 1]]
    start = int(rows.title_spans(0)[0, 0])
    ids = torch.from_numpy(np.concatenate([rows.token_ids(0)[:start], left]).astype(np.int64))
    model.double().set_attn_implementation("sdpa")
    with torch.no_grad():
        scores = torch.log_softmax(model(input_ids=ids[None]).logits[0], dim=-1)
    expected = sum(float(scores[at - 1, ids[at]]) for at in range(start, len(ids)))
    np.testing.assert_allclose(actual.bound_P, np.exp(expected), rtol=1e-5)


def test_prompts_without_room_for_what_follows_are_refused() -> None:
    rows = rows_of(careers_of_every_kind(), trained_tokenizer())
    length = int(max(rows.title_spans(row)[-1, 0] for row in range(4)))
    check_room(rows, 5, length + 5, "the longest title; take a longer context")
    check_room(rows, 5, None, "")
    with raises("sequence-too-long/prompt-exceeds-context", "career '3' of PSID", f"{length} tokens", "5", "1 people"):
        check_room(rows, 5, length + 4, "the longest title; take a longer context")


def test_log_likelihoods_that_are_no_numbers_are_refused() -> None:
    # They would look like titles that were not told apart.
    tokenizer, careers = trained_tokenizer(), careers_of_every_kind()
    trie, rows = title_trie(PROMPT, VOCABULARY, tokenizer), rows_of(careers, tokenizer)
    model = random_llama(tokenizer)
    model.get_output_embeddings().weight.data[7, 0] = torch.inf
    with raises("model/non-finite-log-likelihoods"):
        distributions(Counted(wrap_for_inference(model, COMPUTE)), rows, trie)


def test_a_head_of_another_kind_gives_all_titles_too() -> None:
    tokenizer, careers = trained_tokenizer(), careers_of_every_kind()
    model = random_llama(tokenizer)
    head = torch.nn.Linear(model.config.hidden_size, tokenizer.num_ids, bias=True)
    torch.nn.init.normal_(head.weight, std=0.1)
    torch.nn.init.normal_(head.bias)
    model.set_output_embeddings(head)
    trie, rows = title_trie(PROMPT, VOCABULARY, tokenizer), rows_of(careers, tokenizer)
    actual = distributions(Counted(wrap_for_inference(model, COMPUTE)), rows, trie)
    check_against_slow(actual, slow_distributions(model, tokenizer, careers), atol=1e-5, rtol=0)


def test_no_more_nodes_are_kept_than_four_passes_have(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, careers = trained_tokenizer(), careers_of_every_kind()
    trie, rows = title_trie(PROMPT, VOCABULARY, tokenizer), rows_of(careers, tokenizer)
    model = Counted(wrap_for_inference(random_llama(tokenizer), COMPUTE))
    sizes = [0]
    drop_nodes = PrefixState.drop_nodes

    def watched(state: PrefixState) -> None:
        sizes.append(model.num_nodes - sum(sizes))
        drop_nodes(state)

    monkeypatch.setattr(PrefixState, "drop_nodes", watched)
    # All but nothing is expanded: five trees of 52 nodes fit 4 x 75.
    distributions(model, rows, trie, tolerance=1e-30, max_tree_tokens=75)
    assert sum(sizes) == model.num_nodes
    assert trie.num_nodes < max(sizes) <= 4 * 75


def test_the_prompts_that_are_tried_end_in_every_token_that_prompts_end_in() -> None:
    tokenizer, careers = trained_tokenizer(), careers_of_every_kind()
    limited = dataclasses.replace(template(), prefix="Titles:\nCooks\n", max_history=1)
    pairs = [(career, text) for career in careers for text in render_career(career, limited, VOCABULARY.title_of())]
    careers, texts = [career for career, _ in pairs], [text for _, text in pairs]
    table = store_rows(careers, texts, tokenize_careers(texts, tokenizer), VOCABULARY.index_of())
    assert max(table["first_position"].to_pylist()) == 4
    # In pieces, as stores have them, the first of which is cut off.
    rows = CareerTable(pa.concat_tables([table.slice(1, 2), table.slice(3)]), VOCABULARY)
    expected = {int(rows.token_ids(row)[start - 1]) for row in range(len(rows)) for start, _ in rows.title_spans(row)}
    actual = ending_prompts(rows, limited)
    ends = [tokenizer.backend.encode(prompt, add_special_tokens=False).ids[-1] for prompt in actual]
    assert len(expected) > 1
    assert sorted(ends) == sorted(expected)
    assert not any(prompt.startswith("Titles") for prompt in actual)


def test_titles_of_other_tokens_after_some_prompts_of_a_split_are_refused() -> None:
    # Career 2 has no education: its prompt ends in a year, so its titles stand after another token.
    tokenizer, rows = trained_tokenizer(), rows_of(careers_of_every_kind(), trained_tokenizer())
    prompts = ending_prompts(rows, template())
    same, expected = common_title_trie(prompts, VOCABULARY, tokenizer), title_trie(PROMPT, VOCABULARY, tokenizer)
    assert np.array_equal(same.edge_tokens_E, expected.edge_tokens_E)
    after_year = lambda text: text.endswith("1990: Type 2 cafe\u0301 aides\n")  # noqa: E731
    changed = dataclasses.replace(tokenizer, backend=Changed(tokenizer.backend, after_year, -2))
    title_trie(PROMPT, VOCABULARY, changed)
    with raises("title-boundary/titles-tokenized-differently", "1990:'", "'Type 2 cafe"):
        common_title_trie(prompts, VOCABULARY, changed)


def test_titles_of_the_same_tokens_are_refused() -> None:
    with raises("title-boundary/titles-with-equal-tokens"):
        build_trie([(1, 2), (3,), (1, 2)], terminator=9)


def test_observed_titles_of_other_tokens_are_refused() -> None:
    rows = rows_of(careers_of_every_kind(), trained_tokenizer())
    trie = title_trie(PROMPT, VOCABULARY, trained_tokenizer())
    ids = pack_batch([[rows.token_ids(0)]], len(rows.token_ids(0))).token_ids_BT.numpy()
    places, observed = title_places(rows, [[0]]), rows.occupations_of([0])
    check_observed(ids, places, trie, observed)
    ids[0, places.spans[1, 1]] += 1
    with raises("title-boundary/titles-tokenized-differently", "1"):
        check_observed(ids, places, trie, observed)


def test_a_table_of_titles_that_is_none_is_refused(tmp_path: Path) -> None:
    with raises("score-table/no-table", "table of titles", "titles=all"):
        read_title_table(tmp_path / "test_titles.parquet")
    (tmp_path / "test_titles.parquet").write_bytes(b"PAR1")
    with raises("score-table/unreadable-table", "table of titles"):
        read_title_table(tmp_path / "test_titles.parquet")
