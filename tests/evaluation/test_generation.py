"""Continuations against transformers' own, drawn ones against a slow sampler, their shares against the exact mass."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from helpers.errors import raises
from helpers.processes import run_ranks, run_well
from helpers.runs import COMPUTE, settings_of
from helpers.scoring_cases import careers_of_every_kind, random_llama, rows_of, trained_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from laborllm_dist.batching.batch import pack_batch
from laborllm_dist.batching.title_positions import title_places
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.evaluation import EvaluateSettings
from laborllm_dist.evaluation.generation import continuation_text, continuations, line_ends
from laborllm_dist.io.run_directory import read_run
from laborllm_dist.models.inference import InferenceModel, wrap_for_inference
from laborllm_dist.models.log_likelihood import sample_tokens
from laborllm_dist.models.tree_inference import PrefixState
from laborllm_dist.randomness import token_uniforms
from laborllm_dist.store.store import CareerTable, open_store
from laborllm_dist.store.tokenizer import load_tokenizer
from laborllm_dist.tables.generations import (
    GENERATED_SCHEMA,
    describe_generated,
    observed_share,
    read_generated_table,
    valid_share,
)
from laborllm_dist.tables.title_distributions import read_title_table

UNIT = ((0, 1), (2, 3))
NAN = float("nan")


@pytest.mark.parametrize("chunk_tokens", [1, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_token_is_the_likeliest_or_the_one_whose_turn_it_is(chunk_tokens: int, dtype: torch.dtype) -> None:
    # Probabilities 0, 1/8, 3/8, 3/8, 1/8, 0: the likeliest is the first of two.
    logits = torch.tensor([[-np.inf, 0, np.log(3), np.log(3), 0, -np.inf]], dtype=dtype)
    turns = {NAN: 2, 0.0: 1, 0.124: 1, 0.126: 2, 0.499: 2, 0.501: 3, 0.874: 3, 0.876: 4, 1 - 2**-53: 4}
    tokens = sample_tokens(
        logits.repeat(len(turns), 1), None, torch.tensor(list(turns), dtype=torch.float64), chunk_tokens=chunk_tokens
    )
    assert tokens.tolist() == list(turns.values())


def test_tokens_of_hidden_states_are_those_of_their_logits() -> None:
    torch.manual_seed(1)
    hidden_ND, weight_VD = torch.randn(50, 8), torch.randn(300, 8)
    uniforms_N = torch.rand(50, dtype=torch.float64).masked_fill(torch.arange(50) % 5 == 0, NAN)
    tokens = sample_tokens(hidden_ND, weight_VD, uniforms_N, chunk_tokens=28)
    assert tokens.tolist() == sample_tokens(hidden_ND @ weight_VD.T, None, uniforms_N, chunk_tokens=400).tolist()
    assert len(set(tokens.tolist())) > 20


def test_token_uniforms_are_a_function_of_their_key() -> None:
    numbers = token_uniforms(1, ("PSID", "7", 3), 2, 20)
    # Pinned: another numpy or machine must draw the same.
    np.testing.assert_allclose(numbers[:2], PINNED, rtol=0, atol=1e-16)
    assert numbers[:5].tolist() == token_uniforms(1, ("PSID", "7", 3), 2, 5).tolist()
    others = [(2, ("PSID", "7", 3), 2), (1, ("PSID", "73", 3), 2), (1, ("PSID", "7", 3), 1), (1, ("PSI", "D7", 3), 2)]
    assert not set(numbers) & {number for key in others for number in token_uniforms(*key, 20)}
    many = token_uniforms(1, ("PSID", "7", 3), 2, 40_000)
    assert ((many >= 0) & (many < 1)).all()
    assert abs(many.mean() - 0.5) < 4 / np.sqrt(12 * len(many))


PINNED = (0.32362049492382017, 0.4286249199629485)


def prefixes_of(rows: CareerTable) -> np.ndarray:
    places = title_places(rows, UNIT)
    return np.stack([places.spans[:, 0], places.starts, places.spans[:, 1]], axis=1)


def continued(
    model: InferenceModel, rows: CareerTable, uniforms_PKL: np.ndarray, ends: list[int], *, max_tree_tokens: int = 4096
) -> np.ndarray:
    careers = [[rows.token_ids(career) for career in row] for row in UNIT]
    prefix = PrefixState(pack_batch(careers, max(sum(map(len, row)) for row in careers)))
    return continuations(
        model.next_tokens, prefix, prefixes_of(rows), uniforms_PKL, np.array(ends), max_tree_tokens=max_tree_tokens
    )


def prompts_of(rows: CareerTable) -> list[torch.Tensor]:
    return [
        torch.from_numpy(rows.token_ids(career)[:start].astype(np.int64))
        for row in UNIT
        for career in row
        for start in rows.title_spans(career)[:, 0].tolist()
    ]


def some_model(kind: str, num_ids: int):
    if kind == "llama":
        return random_llama(trained_tokenizer()).eval()
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = GPTNeoXConfig(vocab_size=num_ids, initializer_range=0.3, attn_implementation="sdpa", **sizes)
    return GPTNeoXForCausalLM(config).eval()


@pytest.mark.parametrize("max_tree_tokens", [1, 4, 4096])
@pytest.mark.parametrize("kind", ["llama", "unknown"])
def test_greedy_continuations_are_those_of_transformers(kind: str, max_tree_tokens: int) -> None:
    tokenizer = trained_tokenizer()
    rows, model = rows_of(careers_of_every_kind(), tokenizer), some_model(kind, tokenizer.num_ids)
    ends = list(range(0, tokenizer.num_ids, 9))  # so many that chains end at different lengths
    prompts = prompts_of(rows)
    options = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": ends, "pad_token_id": 0}
    expected = [
        model.generate(ids[None], attention_mask=torch.ones_like(ids[None]), **options)[0, len(ids) :]
        for ids in prompts
    ]
    actual_PKL = continued(
        wrap_for_inference(model, COMPUTE),
        rows,
        np.full((len(prompts), 1, 8), NAN),
        ends,
        max_tree_tokens=max_tree_tokens,
    )
    lengths = {len(tokens) for tokens in expected}
    assert len(lengths) > 1
    for actual_L, tokens in zip(actual_PKL[:, 0], expected, strict=True):
        assert actual_L[actual_L >= 0].tolist() == tokens.tolist()


def test_drawn_continuations_are_those_of_a_slow_sampler() -> None:
    tokenizer = trained_tokenizer()
    rows, model = rows_of(careers_of_every_kind(), tokenizer), random_llama(tokenizer).double()
    prompts = prompts_of(rows)
    uniforms_PKL = np.stack(
        [[token_uniforms(1, ("PSID", place), sample, 6) for sample in (1, 2, 3)] for place in range(len(prompts))]
    )
    ends = list(range(0, tokenizer.num_ids, 9))
    actual_PKL = continued(wrap_for_inference(model, COMPUTE), rows, uniforms_PKL, ends, max_tree_tokens=5)
    model.set_attn_implementation("sdpa")
    for prompt, uniforms_KL, actual_KL in zip(prompts, uniforms_PKL, actual_PKL, strict=True):
        for uniforms_L, actual_L in zip(uniforms_KL, actual_KL, strict=True):
            ids, drawn = prompt, []
            for uniform in uniforms_L:
                with torch.no_grad():
                    shares = torch.softmax(model(input_ids=ids[None]).logits[0, -1], dim=-1).numpy()
                drawn.append(int((np.cumsum(shares) > uniform).argmax()))
                if drawn[-1] in ends:
                    break
                ids = torch.cat([ids, torch.tensor(drawn[-1:])])
            assert actual_L[actual_L >= 0].tolist() == drawn


def test_texts_keep_their_blank_and_end_with_the_line(any_llama_tokenizer: Path) -> None:
    for tokenizer in (trained_tokenizer(), load_tokenizer(str(any_llama_tokenizer))):
        prompt, ends = "1984 (high school):", line_ends(tokenizer)
        encode = lambda text: tokenizer.backend.encode(text, add_special_tokens=False).ids  # noqa: B023, E731
        before = encode(prompt)
        tokens = np.array([*encode(f"{prompt} Cooks\n1985")[len(before) :], -1, -1])
        assert continuation_text(before[-1], tokens, tokenizer) == " Cooks\n"
        assert continuation_text(before[-1], tokens[:1], tokenizer).startswith(" ")
        assert np.isin(tokens, ends).sum() == 1
        assert (
            continuation_text(before[-1], np.array([tokens[0], tokenizer.num_ids]), tokenizer)
            == "\N{REPLACEMENT CHARACTER}"
        )


def made_table(*rows: tuple[str, str, str | None, str]) -> pa.Table:
    columns = [
        {"survey": "PSID", "person": person, "position": at, "kind": kind, "sample": None if kind == "greedy" else 1,
         "text": "x", "occupation": code, "observed": observed}
        for at, (person, kind, code, observed) in enumerate(rows)
    ]  # fmt: skip
    return pa.Table.from_pylist(columns, schema=GENERATED_SCHEMA)


def test_shares_and_their_errors_by_hand() -> None:
    # Two people: hits 1, 1 and 0. The share is 2/3, the sums of excess 2/3 and -2/3: (8/9 * 2)^(1/2) / 3 = 4/9.
    table = made_table(("1", "greedy", "a", "a"), ("1", "greedy", "b", "a"), ("2", "greedy", None, "a"))
    share = valid_share(table, "greedy")
    np.testing.assert_allclose((share.value, share.error), (2 / 3, 4 / 9))
    assert str(share) == "66.7 % (s.e. 44.4)"
    np.testing.assert_allclose(observed_share(table).value, 1 / 3)
    line = describe_generated(table)
    assert line.startswith("titles are 66.7 % (s.e. 44.4) of greedy continuations; 33.3 % (s.e. 22.2) of greedy ones")
    both = pa.concat_tables([table, made_table(("1", "sample", None, "a"))])
    assert "of greedy and 0.0 % (s.e. not defined) of sampled continuations;" in describe_generated(both)


def test_a_table_of_continuations_that_is_none_is_refused(tmp_path: Path) -> None:
    with raises("score-table/no-table", "table of continuations", "check_generations=true"):
        read_generated_table(tmp_path / "test_generated.parquet")
    (tmp_path / "test_generated.parquet").write_bytes(b"PAR1")
    with raises("score-table/unreadable-table", "table of continuations"):
        read_generated_table(tmp_path / "test_generated.parquet")


@pytest.mark.parametrize(
    ("name", "value", "values"),
    [
        ("check_generations", "some", ("true or false", "'some'")),
        ("num_samples", "-1", ("0 to 10,000", "got -1")),
        ("max_new_tokens", "0", ("1 to 10,000,000", "got 0")),
    ],
)
def test_settings_that_are_wrong_are_refused(name: str, value: str, values: tuple[str, ...]) -> None:
    with raises("settings/invalid", f"setting {name}:", *values):
        compose_settings(EvaluateSettings, "evaluate", ["run=x", f"{name}={value}"])
    if value != "some":
        with raises("settings/invalid", f"setting evaluation.{name}:", *values):
            settings_of([f"evaluation.{name}={value}"])


NUM_SAMPLES = 8
GENERATION = ["check_generations=true", f"num_samples={NUM_SAMPLES}", "titles=all"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a model that knows half of how titles are written, and evaluate it on one rank."""
    folder = tmp_path_factory.mktemp("trained")
    run = [f"store.root={folder}/stores", f"output_dir={folder}/runs", "+experiment=quickstart", "training.epochs=4"]
    run_well("train.py", [*run, "name=half"], world_size=1, log=folder / "log")
    text = run_well("evaluate.py", [f"run={folder}/runs/half", *GENERATION], world_size=1, log=folder / "log")
    assert any("evaluate: titles are " in line for line in text.splitlines()[-2:])  # then that it has learned little
    return folder / "runs/half"


@pytest.mark.ranks
def test_drawn_titles_are_as_many_as_their_mass_says(trained: Path) -> None:
    mass_P = read_title_table(trained / "scores/test_titles.parquet").table["mass"].to_numpy()
    table, info = read_generated_table(trained / "scores/test_generated.parquet")
    assert info.details["num_samples"] == str(NUM_SAMPLES)
    assert table.num_rows == len(mass_P) * (1 + NUM_SAMPLES)
    assert 0.1 < mass_P.mean() < 0.95  # neither all nor nothing
    share = valid_share(table, "sample").value
    # A title written with other tokens than its own counts as a title too, and adds next to nothing here.
    assert abs(share - mass_P.mean()) <= 4 * np.sqrt((mass_P * (1 - mass_P) / NUM_SAMPLES).sum()) / len(mass_P)
    assert set(pc.unique(table.filter(pc.equal(table["kind"], "greedy"))["sample"]).to_pylist()) == {None}


@pytest.mark.ranks
def test_greedy_texts_are_those_of_transformers(trained: Path) -> None:
    table = read_generated_table(trained / "scores/test_generated.parquet")[0]
    texts = {(row["person"], row["position"]): row["text"] for row in table.to_pylist() if row["kind"] == "greedy"}
    careers = open_store(read_run(trained)[2]).careers("test")
    model, tokenizer = (kind.from_pretrained(trained / "export") for kind in (AutoModelForCausalLM, AutoTokenizer))
    (newline,) = tokenizer("\n", add_special_tokens=False)["input_ids"]
    for row in range(5):
        for position, start in enumerate(careers.title_spans(row)[:, 0].tolist()):
            ids = torch.from_numpy(careers.token_ids(row)[None, :start].astype(np.int64))
            options = {"do_sample": False, "max_new_tokens": 20, "eos_token_id": newline, "pad_token_id": 0}
            generated = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, start:]
            text = tokenizer.decode(generated, clean_up_tokenization_spaces=False)
            assert text.startswith(texts[careers.person(row)[1], position])


@pytest.mark.ranks
def test_continuations_of_two_ranks_and_after_a_kill_are_the_same_bytes(trained: Path) -> None:
    path = trained / "scores/test_generated.parquet"
    expected = path.read_bytes()
    path.unlink()
    parts = lambda: list((trained / "scores").glob("test_generated.*.parts/part-*.parquet"))  # noqa: E731
    killed = run_ranks(
        "evaluate.py",
        [f"run={trained}", *GENERATION],
        world_size=1,
        log=trained / "log",
        kill_when=lambda: len(parts()) >= 2,
    )
    assert -signal.SIGKILL in killed.codes, "the evaluation ended before it was killed"
    text = run_well("evaluate.py", [f"run={trained}", *GENERATION], world_size=2, log=trained / "log")
    assert "parts are there" in text
    assert path.read_bytes() == expected


@pytest.mark.ranks
def test_shards_write_what_a_whole_model_writes(trained: Path) -> None:
    arguments = [f"run={trained}", *GENERATION[:2], "placement=partitioned", "model.name=sharded"]
    run_well("evaluate.py", arguments, world_size=2, log=trained / "log")
    tables = [
        read_generated_table(trained / f"scores/{name}.parquet")[0]
        for name in ("test_generated", "test_generated.sharded")
    ]
    assert tables[0].equals(tables[1])
