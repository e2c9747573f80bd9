"""The template's variants: every shipped settings file word for word, and limited history against the slow scorer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.errors import raises
from helpers.processes import PROJECT
from helpers.reference.slow_scorer import slow_score
from helpers.runs import COMPUTE, settings_of, small_run
from helpers.scoring_cases import PROMPTS, TITLES, VOCABULARY, careers_of_every_kind

from laborllm_dist.baselines.run import score_baselines
from laborllm_dist.batching.title_positions import observation_scores, scoring_batch
from laborllm_dist.careers.types import CareerHistory, Job, OccupationVocabulary
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.baselines import BaselineSettings
from laborllm_dist.config.data import TemplateSettings, TitleSettings
from laborllm_dist.config.evaluation import EvaluationSettings
from laborllm_dist.evaluation.tasks import observation_facts, plan_evaluation
from laborllm_dist.io.run_directory import create_or_resume
from laborllm_dist.models.causal_lm import CareerLanguageModel
from laborllm_dist.models.loading import new_llama
from laborllm_dist.store.build import prepare_store
from laborllm_dist.store.store import CareerTable, store_rows
from laborllm_dist.store.tokenize import tokenize_careers
from laborllm_dist.store.tokenizer import train_tokenizer
from laborllm_dist.tables.scores import read_score_table
from laborllm_dist.text.template import compile_template, render_career
from laborllm_dist.text.title_variants import display_vocabulary

CODES = OccupationVocabulary(("436", "435", "unemployed"), ("Cooks", "Food servers, nonrestaurant", "Unemployed"))
CAREER = CareerHistory(
    "7", "PSID", 1963, "female", "black or african american", "south",
    (Job(1984, "436", "some college"), Job(1985, "435", "some college"), Job(1988, "unemployed", None)),
)  # fmt: skip
TAG = "<A worker from the PSID dataset>\n"
WHO = (
    "The following information is available about the work history of a female black or african american US worker "
    "residing in the south region.\n"
)
BORN = "The worker was born in 1963.\n"
RECORDS = (
    "The worker has the following records of work experience, one entry per line, including year, education level, and "
    "the job title:\n"
)
PLAIN_RECORDS = (
    "The worker has the following records of work experience, one entry per line, including year, and the job title:\n"
)
ENTRIES = "1984 (some college): Cooks\n1985 (some college): Food servers, nonrestaurant\n1988: Unemployed\n"
BARE_ENTRIES = "1984: Cooks\n1985: Food servers, nonrestaurant\n1988: Unemployed\n"
END = "<END OF DATA>\n"
RENDERED = {
    "labor_llm": TAG + WHO + BORN + RECORDS + ENTRIES + END,
    "no_birth_year": TAG + WHO + RECORDS + ENTRIES + END,
    "no_dataset_tag": WHO + BORN + RECORDS + ENTRIES + END,
    "no_education": TAG + WHO + BORN + PLAIN_RECORDS + BARE_ENTRIES + END,
    "hidden_covariates": TAG
    + "The following information is available about the work history of a US worker.\n"
    + PLAIN_RECORDS
    + BARE_ENTRIES
    + END,
    "numeric_titles": TAG + WHO + BORN + RECORDS
    + "1984 (some college): job_1\n1985 (some college): job_2\n1988: job_3\n" + END,
    "perturbed_titles": TAG + WHO + BORN + RECORDS
    + "1984 (some college): Sr. Cooks\n1985 (some college): Sr. Food servers, nonrestaurant\n1988: Sr. Unemployed\n"
    + END,
    "last_10_lines": TAG + WHO + BORN + RECORDS + ENTRIES + END,
    "cohort_and_tenure": TAG + WHO + "The worker was born in 1963, in the cohort of the 1960s.\n"
    + "The worker has the following records of work experience, one entry per line, including year, education level, "
    + "age, years in the latest occupation, and the job title:\n"
    + "1984 (some college), age 21: Cooks\n"
    + "1985 (some college), age 22, tenure 1: Food servers, nonrestaurant\n"
    + "1988, age 25, tenure 3: Unemployed\n"
    + END,
}  # fmt: skip


def written(template: TemplateSettings, career: CareerHistory = CAREER) -> list[str]:
    title_of = display_vocabulary(CODES, template.titles).title_of()
    return [text.text for text in render_career(career, compile_template(template), title_of)]


def test_every_variant_that_is_shipped_is_tested() -> None:
    shipped = {path.stem for path in (PROJECT / "conf/template").glob("*.yaml")}
    assert shipped == {*RENDERED, "shuffled_titles", *PROMPTS}


@pytest.mark.parametrize("name", RENDERED)
def test_a_variant_word_for_word(name: str) -> None:
    assert written(settings_of([f"template={name}"]).template) == [RENDERED[name]]


def test_shuffled_titles_are_all_elsewhere_and_always_the_same() -> None:
    vocabulary = OccupationVocabulary(tuple(map(str, range(300))), tuple(f"Title {index}" for index in range(300)))
    settings = settings_of(["template=shuffled_titles"]).template.titles
    shuffled = display_vocabulary(vocabulary, settings)
    assert shuffled.codes == vocabulary.codes
    assert sorted(shuffled.titles) == sorted(vocabulary.titles)
    assert not any(new == old for new, old in zip(shuffled.titles, vocabulary.titles, strict=True))
    assert display_vocabulary(vocabulary, settings) == shuffled
    assert display_vocabulary(vocabulary, dataclasses.replace(settings, seed=2)) != shuffled


def test_numeric_titles_have_one_width_so_that_none_begins_another() -> None:
    vocabulary = OccupationVocabulary(tuple(map(str, range(335))), tuple(f"T{index}" for index in range(335)))
    titles = display_vocabulary(vocabulary, TitleSettings("numeric", prefix="job_")).titles
    assert (titles[0], titles[143], titles[334]) == ("job_001", "job_144", "job_335")


def test_one_covariate_can_be_hidden_alone() -> None:
    template = settings_of(["template=labor_llm", "template.omit_fields=[gender]"]).template
    assert "work history of a black or african american US worker" in written(template)[0]


def test_what_cannot_be_hidden_and_half_made_titles_are_refused() -> None:
    with raises("template/field-cannot-be-omitted", "'year'", "survey"):
        compile_template(settings_of(["template.omit_fields=[year]"]).template)
    with raises("settings/invalid", "template.titles.prefix", "a value, since titles.style is numeric"):
        settings_of(["template.titles.style=numeric"])
    with raises("settings/invalid", "template.max_history", "a whole number from 0 to 1,000,000"):
        settings_of(["template.max_history=-1"])


def test_one_line_of_history_by_hand() -> None:
    template = settings_of(["template.max_history=1"]).template
    texts = render_career(CAREER, compile_template(template), CODES.title_of())
    heading = TAG + WHO + BORN + RECORDS
    assert [text.text for text in texts] == [
        heading + "1984 (some college): Cooks\n1985 (some college): Food servers, nonrestaurant\n",
        heading + "1985 (some college): Food servers, nonrestaurant\n1988: Unemployed\n" + END,
    ]
    assert [text.first_job for text in texts] == [0, 2]
    assert [[text.text[start:end] for start, end in text.title_spans] for text in texts] == [
        [" Cooks", " Food servers, nonrestaurant"], [" Unemployed"],
    ]  # fmt: skip


@pytest.mark.parametrize("max_history", [0, 1, 3])
def test_limited_history_is_scored_as_by_the_slow_scorer(max_history: int) -> None:
    """Independent: for each job, the heading, the last lines before it, and its own prompt, one forward each."""
    careers = careers_of_every_kind()
    settings = settings_of([f"template.max_history={max_history}"])
    template, full = compile_template(settings.template), compile_template(settings_of([]).template)
    whole = [render_career(career, full, VOCABULARY.title_of())[0].text for career in careers]
    tokenizer = train_tokenizer(iter(whole), vocabulary_size=350)
    shape = dataclasses.replace(settings.model.llama, hidden_size=48, num_layers=2, initializer_range=0.1)
    llama = new_llama(shape, num_ids=tokenizer.num_ids, attention_dropout=0.0, seed=3).eval()
    rendered = [(career, text) for career in careers for text in render_career(career, template, VOCABULARY.title_of())]
    texts = [text for _, text in rendered]
    table = store_rows(
        [career for career, _ in rendered], texts, tokenize_careers(texts, tokenizer), VOCABULARY.index_of()
    )
    rows = CareerTable(table.combine_chunks(), VOCABULARY)
    actual = {}
    plan = plan_evaluation(rows, EvaluationSettings("test", 512, 2, 1, "fp32"))
    for unit in plan.batches:
        batch, places = scoring_batch(rows, unit, 512)
        with torch.inference_mode():
            scores_N = CareerLanguageModel(llama, COMPUTE)(batch)[1]
            scores = observation_scores(batch.scatter_to_slots(scores_N), places.spans)
        for (row, position), score in zip(places.keys, scores, strict=True):
            actual[rows.person(row)[1], int(position)] = score

    def encode(text: str) -> list[int]:
        return tokenizer.backend.encode(text, add_special_tokens=False).ids

    double = llama.double()
    for career, text in zip(careers, whole, strict=True):
        lines = text.splitlines(keepends=True)
        entries = len(lines) - 1 - len(career.jobs)  # the last line is the end's
        for position, job in enumerate(career.jobs):
            first = max(0, position - max_history)
            title = " " + dict(zip(VOCABULARY.codes, TITLES, strict=True))[job.occupation]
            before = "".join(lines[:entries] + lines[entries + first : entries + position])
            prompt = before + lines[entries + position].rstrip("\n").removesuffix(title)
            expected = slow_score(double, encode, list(tokenizer.leading), prompt, title.strip())[:2]
            np.testing.assert_allclose(actual[career.person, position], expected, rtol=1e-6, atol=1e-5)
    assert len(actual) == sum(len(career.jobs) for career in careers)


def test_limited_history_has_the_same_observations_as_whole_careers(tmp_path: Path) -> None:
    whole = prepare_store(settings_of(small_run(tmp_path)))
    limited = prepare_store(settings_of(small_run(tmp_path, "template.max_history=2")))
    assert limited.careers_fingerprint == whole.careers_fingerprint
    assert limited.num_texts("test") > limited.num_people("test") == whole.num_people("test")
    expected, actual = (observation_facts(store.careers("test")) for store in (whole, limited))
    for name in ("survey", "person", "position", "year", "occupation", "previous", "education"):
        assert actual[name].to_pylist() == expected[name].to_pylist()
    assert limited.careers("test").num_people() == whole.num_people("test")


def test_the_truth_knows_the_whole_history_where_texts_do_not(tmp_path: Path) -> None:
    tables = []
    for name, *more in (["whole"], ["cut", "template.max_history=2"]):
        settings = settings_of([*small_run(tmp_path), f"name={name}", *more])
        store = prepare_store(settings)
        run = create_or_resume(settings, {"fingerprint": store.fingerprint, "folder": str(store.folder)}, None)
        overrides = [f"run={run.path}", "baselines=[truth]"]
        (path,) = score_baselines(compose_settings(BaselineSettings, "baselines", overrides))
        tables.append(read_score_table(path)[0])
    assert tables[0].equals(tables[1])
