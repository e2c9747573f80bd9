"""Hidden states at the prompts: transformers' own of one prompt at a time, for every layer, rank and interruption."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers.errors import raises
from helpers.models import TYPES, saved_model
from helpers.processes import PROJECT, run_well
from helpers.runs import COMPUTE, settings_of, small_run
from helpers.trained_runs import ONE_RANK, TITLES, random_run
from transformers import AutoModelForCausalLM

from laborllm_dist.batching.batch import pack_batch
from laborllm_dist.careers.readers.wage_panel import wage_panel_content
from laborllm_dist.careers.splits import SPLITS
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.evaluation import EmbedSettings
from laborllm_dist.evaluation.embeddings import Embeddings, embed_run, embedded_run
from laborllm_dist.io.run_directory import create_or_resume, read_run
from laborllm_dist.models.inference import wrap_for_inference
from laborllm_dist.models.loading import new_llama
from laborllm_dist.store.build import prepare_store
from laborllm_dist.store.store import TOKENIZER, open_store
from laborllm_dist.store.tokenizer import load_tokenizer
from laborllm_dist.tables.embeddings import read_embedding_table
from laborllm_dist.text.template import compile_template, render_career


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("embedded"), "evaluation.max_seq_length=640", "evaluation.batch_size=1")


def embed(run: Path, *overrides: str) -> list[Path]:
    settings = compose_settings(EmbedSettings, "embed", [f"run={run}", *overrides])
    torch.set_num_threads(1)
    return embed_run(settings, embedded_run(settings), ONE_RANK)


def states_of_prompts(run: Path, split: str) -> dict[tuple[str, int], tuple[int, list[np.ndarray]]]:
    """Return the year and the hidden states of all layers at every prompt, each forwarded alone, by transformers."""
    _, settings, folder = read_run(run)
    store, model = open_store(folder), AutoModelForCausalLM.from_pretrained(run / "export").double()
    tokenizer = load_tokenizer(str(store.folder / TOKENIZER))
    careers, template = store.careers(split), compile_template(settings.template)  # type: ignore[arg-type]
    state_of = {}
    for row in range(len(careers)):
        career = careers.history(row)
        (text,) = render_career(career, template, store.vocabulary.title_of())
        for position, (start, _) in enumerate(text.title_spans):
            assert text.text[:start].endswith("):") and text.text[start + 1 :].startswith(tuple(TITLES.values()))
            ids = [*tokenizer.leading, *tokenizer.backend.encode(text.text[:start], add_special_tokens=False).ids]
            with torch.no_grad():
                states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
            state_of[career.person, position] = (
                career.jobs[position].year, [state[0, -1].numpy() for state in states],
            )  # fmt: skip
    return state_of


def test_vectors_are_transformers_hidden_states_of_every_layer(run: Path) -> None:
    expected = states_of_prompts(run, "validation")
    num_layers = len(next(iter(expected.values()))[1]) - 1
    for layer in range(num_layers + 1):
        (path,) = embed(run, f"layer={layer}", "split=validation", "precision=fp64")
        assert path == run / f"embeddings/validation_layer_{layer}.parquet"
        table, info = read_embedding_table(path)
        assert (info.split, info.details["layer"]) == ("validation", str(layer))
        assert table.num_rows == len(expected)
        for row in table.to_pylist():
            year, states = expected[row["person"], row["position"]]
            assert (row["survey"], row["year"]) == ("PANEL", year)
            np.testing.assert_allclose(row["vector"], states[layer], rtol=1e-6, atol=1e-7)
    before = path.read_bytes()
    assert embed(run, "split=validation", "precision=fp64") == [path]  # -1 is the last layer, and it is there
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", TYPES)
def test_models_of_every_type_give_the_hidden_states_of_a_career_alone(kind: str, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(saved_model(tmp_path, kind)).eval()
    draw = np.random.default_rng(1)
    careers = [draw.integers(2, 96, length).astype(np.int32) for length in (9, 14, 5, 20)]
    packed = pack_batch([[careers[0], careers[1]], [careers[2], careers[3]]], 26)
    slots = torch.tensor([8, 15, 26 + 4, 26 + 5 + 19])  # of the first career, inside the second, ...
    places = [(0, 8), (1, 6), (2, 4), (3, 19)]
    with torch.no_grad():
        alone = [model(torch.tensor([ids.tolist()]), output_hidden_states=True).hidden_states for ids in careers]
    inference = wrap_for_inference(model, COMPUTE)
    for layer in range(len(alone[0])):
        actual = inference.hidden_states(packed, layer, slots).numpy()
        expected = [alone[career][layer][0, place].numpy() for career, place in places]
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_an_embedding_that_was_killed_computes_the_parts_that_are_missing(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = embed(run, "split=train")
    whole = path.read_bytes()
    path.unlink()
    made: list[int] = []
    vectors = Embeddings._vectors

    def until_killed(self: Embeddings, work: Any, model: Any, batch: int) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(batch)
        return vectors(self, work, model, batch)

    monkeypatch.setattr(Embeddings, "_vectors", until_killed)
    with pytest.raises(KeyboardInterrupt):
        embed(run, "split=train")
    monkeypatch.setattr(Embeddings, "_vectors", lambda *each: made.append(each[-1]) or vectors(*each))  # type: ignore[func-returns-value]
    embed(run, "split=train")
    assert sorted(made) == list(range(max(made) + 1)) and max(made) > 2
    assert path.read_bytes() == whole
    assert not list(path.parent.glob("*.parts"))


@pytest.mark.ranks
def test_two_ranks_write_the_same_bytes(run: Path) -> None:
    for table in (run / "embeddings").glob("*_layer_1.parquet"):
        table.unlink()  # in the precision of another test
    paths = embed(run, "layer=1")
    assert [path.name for path in paths] == [f"{split}_layer_1.parquet" for split in SPLITS]
    alone = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    run_well("embed.py", [f"run={run}", "layer=1"], world_size=2, log=run / "log")
    assert [path.read_bytes() for path in paths] == alone


def test_what_cannot_be_embedded_is_refused(run: Path, tmp_path: Path) -> None:
    for layer in (3, -4):
        with raises("settings/no-such-layer", "from 0 (the token embedding) to 2", "from -3 to -1", layer):
            embed(run, f"layer={layer}")
    with raises("settings/invalid", "setting placement: expected replicated"):
        embed(run, "placement=partitioned")
    (path,) = embed(run, "split=test")
    table = pq.read_table(path)
    changed = table.set_column(3, "year", table["year"].take(list(range(table.num_rows))[::-1]))
    pq.write_table(changed, path)
    with raises("score-table/unreadable-table", path, "have changed"):
        read_embedding_table(path)


def test_the_example_of_the_manual_is_a_cross_fitted_regression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = [
        override for override in small_run(tmp_path) if "synthetic" not in override and not override.startswith("name=")
    ]
    settings = settings_of([*base, "name=quickstart", "batch.max_seq_length=512", "evaluation.max_seq_length=512"])
    store = prepare_store(settings)
    made = create_or_resume(settings, {"fingerprint": store.fingerprint, "folder": str(store.folder)}, None)
    tokenizer = load_tokenizer(str(store.folder / TOKENIZER))
    llama = new_llama(settings.model.llama, num_ids=tokenizer.num_ids, attention_dropout=0.0, seed=1)  # type: ignore[arg-type]
    llama.save_pretrained(made.export)
    tokenizer.save(made.export)
    monkeypatch.chdir(tmp_path)
    assert len(embed(made.path)) == 3
    (code,) = re.findall(r"```python\n(.*?)```", (PROJECT / "docs/embeddings.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/embeddings.md", "exec"), names)
    assert len(names["rows"]) == 545 * 8 and b"lwage" in wage_panel_content()[:200]
    # The first regression again, by least squares within each fold of people, without scikit-learn's pipelines.
    predicted = np.zeros(len(names["log_wage"]))
    for fit, rest in names["folds"].split(names["mincer"], groups=names["person"]):
        assert not set(names["person"][fit]) & set(names["person"][rest])
        design = np.column_stack([np.ones(len(predicted)), names["mincer"]]).astype(float)
        coefficients, *_ = np.linalg.lstsq(design[fit], names["log_wage"][fit], rcond=None)
        predicted[rest] = design[rest] @ coefficients
    residual, total = names["log_wage"] - predicted, names["log_wage"] - names["log_wage"].mean()
    plain = 1 - (residual**2).sum() / (total**2).sum()
    assert names["r2"]["schooling, experience, year"] == pytest.approx(plain, abs=2e-3)
    assert plain == pytest.approx(0.144, abs=2e-3)
