"""Careers of one's own: files with every mistake, prompts as in the store, probabilities as the slow scorer's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.errors import raises
from helpers.processes import run_well
from helpers.reference.slow_scorer import slow_score
from helpers.runs import COMPUTE, settings_of, small_run
from helpers.scores import prediction_info
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
from helpers.title_heads import CODES, NAMES, give_head, titles_by_hand
from helpers.trained_runs import TITLES as TITLES_OF_RUN
from helpers.trained_runs import predict_alone, random_run
from rich.console import Console

from laborllm_dist.careers.types import CareerHistory, Job, OccupationVocabulary
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.data import TitleSettings
from laborllm_dist.config.evaluation import PredictSettings
from laborllm_dist.config.model import HeadKind
from laborllm_dist.distributed.context import DistributedContext
from laborllm_dist.evaluation.target import EvaluatedRun
from laborllm_dist.io.run_directory import RunDirectory, read_run
from laborllm_dist.models.inference import wrap_for_inference
from laborllm_dist.prediction.predict import (
    TopTitles,
    TopTitlesQuery,
    best_titles,
    check_scored,
    predict,
    prediction_rows,
)
from laborllm_dist.prediction.prompts import build_prompts, check_context, unseen_covariates
from laborllm_dist.prediction.request_files import read_requests
from laborllm_dist.prediction.requests import PredictionRequest
from laborllm_dist.report.terminal import show_predictions
from laborllm_dist.store.store import open_store
from laborllm_dist.tables.parquet import ScoreTableInfo
from laborllm_dist.tables.predictions import read_prediction_table, write_prediction_table
from laborllm_dist.tables.title_distributions import read_title_table
from laborllm_dist.text.template import compile_template, render_career
from laborllm_dist.text.title_variants import canonical_vocabulary, display_vocabulary

ANN = CareerHistory(
    "Ann", "PSID", 1960, "female", None, "west", (Job(1984, "a", "high school"), Job(1985, "d", "college"))
)
BOB = CareerHistory("7", "PSID", None, None, None, None, ())
REQUESTS = [PredictionRequest(ANN, 1987, "college"), PredictionRequest(BOB, 1990, None)]
PEOPLE = [
    {
        "person": "Ann", "birth_year": 1960, "gender": "female", "region": "west",
        "jobs": [
            {"year": 1985, "occupation": "food SERVERS, nonrestaurant", "education": "college"},
            {"year": "1984", "occupation": "Cooks", "education": "high school"},
        ],
        "next": {"year": 1987},
    },
    {"person": 7, "survey": "PSID", "jobs": [], "next": {"year": 1990.0, "education": None}},
]  # fmt: skip
HEADER = "person,survey,year,occupation,education,birth_year,gender,ethnicity,region"


JOB = '{"year": 1984, "occupation": "Cooks"}'


def read(
    folder: Path, text: str, name: str = "people.json", surveys: tuple[str, ...] = ("PSID",)
) -> list[PredictionRequest]:
    (folder / name).write_text(text.replace("JOB", JOB))
    return read_requests(folder / name, VOCABULARY, surveys)


def test_all_kinds_of_files_give_the_same_careers(tmp_path: Path) -> None:
    assert read(tmp_path, json.dumps(PEOPLE)) == REQUESTS
    assert read(tmp_path, json.dumps(PEOPLE, indent=1)) == REQUESTS
    assert read(tmp_path, "\n".join(map(json.dumps, PEOPLE)), "people.jsonl") == REQUESTS
    rows = [
        HEADER, "Ann,,1985,Food servers, nonrestaurant,college,1960,female,,south", "Ann,,1984,a,high school,,,,west",
        "7,PSID,1990,,,,,,", "Ann,,1987,,NA,,,,",
    ]  # fmt: skip
    rows[1] = rows[1].replace("Food servers, nonrestaurant", '"Food servers, nonrestaurant"')
    assert read(tmp_path, "\n".join(rows), "people.csv") == REQUESTS
    columns = {name: [row[at] for row in ALL_ROWS] for at, name in enumerate(HEADER.split(","))}
    pq.write_table(pa.table(columns), tmp_path / "people.parquet")
    assert read_requests(tmp_path / "people.parquet", VOCABULARY, ("PSID",)) == REQUESTS


ALL_ROWS = [
    ["Ann", None, 1985, "d", "college", 1960, "female", None, None],
    ["Ann", None, 1984, "a", "high school", None, None, None, "west"],
    ["7", "PSID", 1990, None, None, None, None, None, None],
    ["Ann", None, 1987, None, None, None, None, None, None],
]


def test_without_a_year_to_predict_it_is_the_one_after_the_last(tmp_path: Path) -> None:
    jobs = [{"year": 1984, "occupation": "Cooks", "education": "college"}, {"year": 1990, "occupation": "b"}]
    (career,) = read(tmp_path, json.dumps({"person": "Ann", "jobs": jobs}))
    assert (career.year, career.education) == (1991, "college")


INVALID = "data-file/invalid-content"
WRONG_JSON = {
    "[]": ("data-file/no-careers", "people.json"),
    "[3]": (INVALID, "line 1, field [0]:", "an object", "got 3"),
    '{"person": "1", "job": []}': (INVALID, "field job:", "did you mean jobs?"),
    '{"person": "1", "zzz": 1}': (INVALID, "field zzz:", "person, survey, birth_year"),
    '{"jobs": [JOB]}': (INVALID, "field person: missing"),
    '{"person": "1"}': (INVALID, "1 problem:\n  line 1: person '1'", "no job"),
    '{"person": "1", "jobs": 3}': (INVALID, "field jobs:", "a list", "got 3"),
    '{"person": "1", "jobs": []}': (INVALID, "line 1: person '1'", "no job"),
    '{"person": true, "jobs": []}': (INVALID, "field person:", "got True"),
    '{"person": "1", "jobs": [{"year": 1984.5, "occupation": "a"}]}': (INVALID, "field jobs[0].year:", "got 1984.5"),
    '{"person": "1", "jobs": [{"year": 84, "occupation": "a"}]}': (INVALID, "jobs[0].year: '84'", "1850"),
    '{"person": "1", "jobs": [{"occupation": "a"}]}': (INVALID, "1 problem:\n  line 1, field jobs[0].year: missing"),
    '{"person": "1", "jobs": [{"year": 1984}]}': (INVALID, "jobs[0].occupation: missing", "`next`"),
    '{"person": "1", "jobs": [JOB, JOB]}': (INVALID, "jobs[1].year: person '1'", "1984", "twice", "line 1"),
    '{"person": "1", "jobs": [JOB], "next": {"year": 1984}}': (INVALID, "field next.year: 1984", "'1'", "later year"),
    '{"person": "1", "jobs": [JOB], "next": {"yaer": 1985}}': (INVALID, "field next.yaer:", "did you mean year?"),
    '{"person": "1", "birth_year": 1990, "jobs": [JOB]}': (INVALID, "1984", "before", "birth", "'1'", "1990"),
    '{"person": "1", "birth_year": "x", "jobs": [JOB]}': (INVALID, "field birth_year: 'x'"),
    '{"person": "1", "survey": "X", "jobs": [JOB]}': (INVALID, "field survey: 'X'"),
    '{"person": "1\\u0007", "jobs": [JOB]}': (INVALID, "field person:", "control character"),
    '{"person": "1", "jobs": [{"year": 1984, "occupation": "a", "education": "\\u001b"}]}': (
        INVALID, "line 1", "field jobs[0].education:", "control character",
    ),
    '{"person": "1", "jobs": [{"year": 1984, "occupation": "Cook"}]}': (
        INVALID, "jobs[0].occupation: 'Cook'", "'Cooks', 'Cooks, private'",
    ),
    '{"person": "1", "jobs": [{"year": 1984, "occupation": "xyzzy"}]}': (INVALID, "'xyzzy'", "no title is near"),
    '{"person": "1", "jobs": [JOB]}\n{"person": "1", "jobs": [JOB]}': (
        INVALID, "line 2, field person: '1' of PSID", "twice", "line 1",
    ),
    '{"person": "1", "jobs": [JOB]}\n{"person" 2}\n{"person": 2}': (
        INVALID, "2 problems:\n  line 2: not JSON", "\n  line 3: person '2'",
    ),
    '[{"person": "1", "jobs": [JOB]}': (INVALID, "line 1", "end", "(])"),
    '[{"person": "1", "jobs": [JOB]}] 3': (INVALID, "line 1", "end of the list"),
    '[{"person": ': (INVALID, "line 1: not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG_JSON)
def test_json_that_is_wrong_is_named_with_its_line(tmp_path: Path, text: str) -> None:
    with raises(*WRONG_JSON[text]):
        read(tmp_path, text)


WRONG_CSV = {
    "person,year,occupation,gendre\n1,1984,a,f": (INVALID, "column gendre:", "did you mean gender?"),
    "person,year,year,occupation\n1,1984,1984,a": (INVALID, "column year", "twice"),
    "person,occupation\n1,a": (INVALID, "line 1, column year: missing", "person, occupation"),
    "person,year,occupation\n1,1984": (INVALID, "line 2: 2 values", "3"),
    "person,year,occupation\n1,1984,\n1,1985,": (INVALID, "line 3, column year", "second year", "'1'", "line 2"),
    "person,year,occupation,gender\n1,1984,a,male\n1,1985,a,female": (
        INVALID, "line 3, column gender: 'female'", "'male'",
    ),
    "person,year,occupation\n1,1985,a\n1,1984,": (INVALID, "line 3, column year: 1984", "person '1'"),
    "person,year,occupation": ("data-file/no-careers", "people.csv"),
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG_CSV)
def test_a_table_that_is_wrong_is_named_with_line_and_column(tmp_path: Path, text: str) -> None:
    with raises(*WRONG_CSV[text]):
        read(tmp_path, text, "people.csv")


def test_all_problems_are_counted_and_ten_named(tmp_path: Path) -> None:
    people = [{"person": str(each), "jobs": [{"year": 1984, "occupation": "Cook"}]} for each in range(12)]
    with raises("data-file/invalid-content", "12 problems, the first 10 of them:\n  line 1, field jobs") as error:
        read(tmp_path, "\n".join(map(json.dumps, people)))
    assert str(error.value).count("\n") == 10


def test_files_that_cannot_be_read_and_missing_surveys_are_refused(tmp_path: Path) -> None:
    with raises("data-file/no-file", "no file", "nowhere.json"):
        read_requests(Path("nowhere.json"), VOCABULARY, ("PSID",))
    with raises("data-file/no-file", "a folder"):
        read_requests(tmp_path, VOCABULARY, ("PSID",))
    (tmp_path / "latin.json").write_bytes(b'{"person": "\xe9"}')
    with raises("data-file/not-utf8", "13"):
        read_requests(tmp_path / "latin.json", VOCABULARY, ("PSID",))
    with raises("data-file/invalid-content", "field survey: missing; the run's surveys are PSID, NLSY79"):
        read(tmp_path, '{"person": "1", "jobs": [JOB]}', surveys=("PSID", "NLSY79"))


def test_one_person_of_two_surveys_is_two_people(tmp_path: Path) -> None:
    rows = ["person,survey,year,occupation", "1,PSID,1984,a", "1,NLSY79,1984,b"]
    requests = read(tmp_path, "\n".join(rows), "people.csv", ("PSID", "NLSY79"))
    assert [career.name for career in requests] == ["'1' of PSID", "'1' of NLSY79"]


@pytest.mark.parametrize(
    "titles", [TitleSettings("english"), TitleSettings("shuffled", seed=3), TitleSettings("perturbed", prefix="Sr. ")]
)
def test_titles_that_are_meant_are_found_behind_those_that_are_shown(titles: TitleSettings) -> None:
    shown = display_vocabulary(VOCABULARY, titles)
    assert (shown == VOCABULARY) == (titles.style == "english")
    assert canonical_vocabulary(shown, titles) == VOCABULARY


def test_a_prompt_has_the_tokens_of_the_store() -> None:
    tokenizer, careers = trained_tokenizer(), careers_of_every_kind()
    rows = rows_of(careers, tokenizer)
    prompts, trie = build_prompts([as_request(career) for career in careers], template(), VOCABULARY, tokenizer)
    for row, prompt in enumerate(prompts):
        assert list(prompt) == rows.token_ids(row)[: rows.title_spans(row)[-1, 0]].tolist()
    assert len(trie.ends_T) == len(TITLES)


def as_request(career: CareerHistory) -> PredictionRequest:
    last = career.jobs[-1]
    return PredictionRequest(dataclasses.replace(career, jobs=career.jobs[:-1]), last.year, last.education)


def test_prompts_whose_tokens_hang_on_the_title_are_refused() -> None:
    tokenizer, careers = trained_tokenizer(), [as_request(career) for career in careers_of_every_kind()]
    changed = dataclasses.replace(tokenizer, backend=Changed(tokenizer.backend, lambda text: text.endswith(":"), 0))
    with raises("title-boundary/title-changes-prompt-tokens", "'Cooks'", "'1' of PSID"):
        build_prompts(careers, template(), VOCABULARY, changed)
    # Career 2 has no education: its prompt ends in a year, so its titles stand after another token.
    after_year = lambda text: text.endswith("1990: Type 2 cafe\u0301 aides\n")  # noqa: E731
    changed = dataclasses.replace(tokenizer, backend=Changed(tokenizer.backend, after_year, -2))
    with raises("title-boundary/titles-tokenized-differently", "1990:'"):
        build_prompts(careers, template(), VOCABULARY, changed)


def test_a_career_longer_than_the_context_is_refused_by_name() -> None:
    careers = [as_request(career) for career in careers_of_every_kind()]
    prompts, trie = build_prompts(careers, template(), VOCABULARY, trained_tokenizer())
    room = int(trie.depths_M.max())
    longest = max(map(len, prompts)) + room
    check_context(careers, prompts, room, longest)
    check_context(careers, prompts, room, None)
    with raises("sequence-too-long/prompt-too-long-for-model", "'3' of PSID", longest, longest - 1, "1 of 4"):
        check_context(careers, prompts, room, longest - 1)


def test_words_that_no_training_career_has_are_named() -> None:
    rows = rows_of(careers_of_every_kind(), trained_tokenizer())
    requests = [dataclasses.replace(REQUESTS[0], education="PhD"), REQUESTS[1]]
    region, education = unseen_covariates(requests, rows, frozenset())
    assert region == "no training career has the region 'west' (1 person); known: south"
    assert education == "no training career has the education 'PhD' (1 person); known: college, high school"
    assert unseen_covariates(requests, rows, frozenset({"region", "education"})) == []


@pytest.mark.parametrize("measure", ["normalised", "terminated"])
@pytest.mark.parametrize(("batch_size", "tolerance"), [(1, 0.0), (2, 0.0), (2, 0.3)])
def test_predictions_equal_the_slow_scorer(measure: str, batch_size: int, tolerance: float) -> None:
    tokenizer, careers = trained_tokenizer(), [as_request(career) for career in careers_of_every_kind()]
    model = random_llama(tokenizer)
    prompts, trie = build_prompts(careers, template(), VOCABULARY, tokenizer)
    evaluation_settings = dataclasses.replace(
        settings_of([]).evaluation, max_seq_length=300, batch_size=batch_size, max_unscored_mass=tolerance
    )
    best = best_titles(
        wrap_for_inference(model, COMPUTE), TopTitlesQuery(prompts, trie, 4, measure), evaluation_settings
    )
    table = prediction_rows(careers, best, VOCABULARY)
    slow = slow_distributions(model, tokenizer, careers)
    whole = np.exp(slow).sum(axis=1) if measure == "normalised" else np.ones(len(careers))
    for row in table.to_pylist():
        person = [career.history.person for career in careers].index(row["person"])
        probability = np.exp(slow[person, VOCABULARY.codes.index(row["occupation"])])
        # Of a distribution that is not whole, the mass in the denominator is between its own and that of all titles.
        assert row["bound"] <= tolerance
        np.testing.assert_allclose(row["probability"], probability / whole[person], rtol=1e-4, atol=1.01 * row["bound"])
        np.testing.assert_allclose(row["log_likelihood"], np.log(row["probability"]), rtol=1e-12)
        if tolerance == 0:
            assert (-slow[person]).argsort()[row["rank"] - 1] == VOCABULARY.codes.index(row["occupation"])
            np.testing.assert_allclose(row["mass"], np.exp(slow[person]).sum(), rtol=1e-5)
            assert row["title"] == VOCABULARY.title_of()[row["occupation"]]
    if tolerance == 0:
        assert table.num_rows == 16


def slow_distributions(model, tokenizer, careers: list[PredictionRequest]) -> np.ndarray:
    model = model.double()
    model.set_attn_implementation("sdpa")
    encode = lambda part: tokenizer.backend.encode(part, add_special_tokens=False).ids  # noqa: E731
    actual = []
    for career in careers:
        text = render_career(career.with_job("a"), template(), VOCABULARY.title_of())[-1]
        prompt = text.text[: text.title_spans[-1][0]]
        actual.append([slow_score(model, encode, list(tokenizer.leading), prompt, title)[1] for title in TITLES])
    return np.asarray(actual)


def test_people_without_an_individually_scored_title_raise() -> None:
    tokenizer, careers = trained_tokenizer(), [as_request(career) for career in careers_of_every_kind()]
    model, (prompts, trie) = random_llama(tokenizer), build_prompts(careers, template(), VOCABULARY, tokenizer)
    for tolerance, num_left in ((0.99, 4), (0.0, 0)):
        evaluation_settings = dataclasses.replace(
            settings_of([]).evaluation, max_seq_length=300, max_unscored_mass=tolerance
        )
        best = best_titles(
            wrap_for_inference(model, COMPUTE), TopTitlesQuery(prompts, trie, 4, "normalised"), evaluation_settings
        )
        assert np.isnan(best.scores_PK[:, 0]).sum() == num_left
        if num_left:
            with raises("settings/no-title-scored", "4 of 4 people have", "0.99"):
                check_scored(best, tolerance)
        else:
            check_scored(best, tolerance)
    some = TopTitles(np.zeros((2, 2), int), np.array([[-1.0, np.nan], [np.nan, np.nan]]), np.ones(2), np.ones(2))
    with raises("settings/no-title-scored", "1 of 2 people has"):
        check_scored(some, 0.5)


@pytest.mark.usefixtures("quickly_compiled")
def test_a_run_predicts_and_says_what_decides_its_numbers(tmp_path: Path) -> None:
    run, people = random_run(tmp_path, "model.llama.initializer_range=0.12"), tmp_path / "people.json"
    people.write_text('[{"person": "1", "jobs": [{"year": 1990, "occupation": "Cook"}]}]')

    def predicted(*overrides: str) -> tuple[pa.Table, ScoreTableInfo]:
        arguments = [f"run={run}", f"careers={people}", "batch_size=3", "max_tree_tokens=5", *overrides]
        settings = compose_settings(PredictSettings, "predict", arguments)
        return predict_alone(settings)

    table, info = predicted()
    assert table["rank"].to_pylist() == [1, 2, 3]
    of_run = read_run(run)[1]
    expected = {
        "max_seq_length": of_run.evaluation.max_seq_length,
        "batch_size": 3,
        "max_tree_tokens": 5,
        "attention": of_run.compute.attention,
        "threads_per_rank": of_run.ranks.threads_per_rank,
    }
    assert {name: str(value) for name, value in expected.items()}.items() <= info.details.items()
    with raises("settings/no-title-scored", "1 of 1 people has"):
        predicted("max_unscored_mass=0.999")
    fused, info_of_fused = predicted("kernels=compiled")
    assert info_of_fused.details == {**info.details, "kernels": "compiled"}
    np.testing.assert_allclose(fused["probability"], table["probability"], rtol=1e-5)
    with raises("settings/liger-needs-cuda"):
        predicted("kernels=liger")


@pytest.mark.parametrize("kind", NAMES)
def test_the_output_layer_predicts_what_it_says_after_each_prompt_alone(kind: HeadKind, tmp_path: Path) -> None:
    run, people = random_run(tmp_path, "model.llama.initializer_range=0.12"), tmp_path / "people.json"
    asked = [
        {"person": "1", "birth_year": 1960, "gender": "male", "ethnicity": "white", "region": "south",
         "jobs": [{"year": 1988, "occupation": "b", "education": "college"}, {"year": 1990, "occupation": "Cook"}]},
        {"person": "2", "jobs": [], "next": {"year": 1990}},
        {"person": "3", "jobs": [{"year": 1990, "occupation": "Aide"}]},
    ]  # fmt: skip
    people.write_text(json.dumps(asked))

    def predicted(*overrides: str) -> tuple[pa.Table, ScoreTableInfo]:
        return predict_alone(
            compose_settings(PredictSettings, "predict", [f"run={run}", f"careers={people}", *overrides])
        )

    with raises("model/no-title-head", run / "export", "title_head.kind"):
        predicted("title_head=true")
    weight = give_head(run, kind)
    table, info = predicted("title_head=true", "precision=fp64", f"output={tmp_path}/p.parquet")
    assert info.model == NAMES[kind] and info.details["num_titles"] == "3"
    assert "max_unscored_mass" not in info.details
    assert read_prediction_table(tmp_path / "p.parquet") == (table, info)
    _, settings, _ = read_run(run)
    careers = read_requests(people, OccupationVocabulary(CODES, tuple(TITLES_OF_RUN.values())), ("PANEL",))
    rows = table.to_pylist()
    assert len(rows) == 9
    for career, previous in zip(careers, ("a", None, "c"), strict=True):
        text = render_career(career.with_job("a"), compile_template(settings.template), TITLES_OF_RUN)[-1]
        log_p = titles_by_hand(run, text.text[: text.title_spans[-1][0]], previous, kind, weight)
        own = [row for row in rows if row["person"] == career.history.person]
        assert [row["occupation"] for row in own] == [CODES[place] for place in np.argsort(-np.array(log_p))]
        np.testing.assert_allclose([row["log_likelihood"] for row in own], sorted(log_p, reverse=True), rtol=1e-9)
        np.testing.assert_allclose([row["mass"] for row in own], 1.0, rtol=1e-12)
    text = shown_of(table, info)
    assert f"Next occupations by {NAMES[kind]}, probability among" in text
    assert "texts that are no title" not in text


@pytest.mark.parametrize("setting", ["measure=terminated", "max_unscored_mass=0.1"])
def test_what_the_output_layer_cannot_predict_is_refused(setting: str) -> None:
    with raises("settings/invalid", f"setting {setting.split('=')[0]}:", "title_head=true"):
        compose_settings(PredictSettings, "predict", ["run=x", "careers=x", "title_head=true", setting])


def rows(num_people: int = 2, bound: float = 0.0) -> pa.Table:
    from laborllm_dist.tables.predictions import PREDICTION_SCHEMA

    ranks = [("Cooks", 0.6), ("Bakers [x]", 0.0001)]
    people = [
        {"person": f"p{each}", "survey": "PSID", "year": 1990, "rank": rank, "occupation": "a", "title": title,
         "probability": share, "log_likelihood": float(np.log(share)), "mass": 0.8, "bound": bound}
        for each in range(num_people) for rank, (title, share) in enumerate(ranks, 1)
    ]  # fmt: skip
    return pa.Table.from_pylist(people, schema=PREDICTION_SCHEMA)


def shown(table: pa.Table, measure: str = "normalised", output: str | None = None) -> str:
    return shown_of(table, prediction_info(measure), output)


def shown_of(table: pa.Table, info: ScoreTableInfo, output: str | None = None) -> str:
    console = Console(width=80, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    show_predictions(table, info, output, console)
    return console.export_text()


def test_the_terminal_shows_what_is_left_of_the_whole() -> None:
    text = shown(rows())
    assert "Next occupations by small, probability among all titles" in text
    assert "Bakers [x]" in text
    assert "<0.1\N{NO-BREAK SPACE}%" in text
    assert [line.split()[-2] for line in text.splitlines() if "other titles" in line] == ["40.0", "40.0"]
    assert "titles have 80.0\N{NO-BREAK SPACE}% of the probability" in text
    text = shown(rows(bound=0.1), "terminated")
    assert "titles have at least 80.0\N{NO-BREAK SPACE}% of the probability" in text
    for label, share in {"other titles": "20.0", "not scored": "10.0", "no title": "10.0"}.items():
        assert [line.split()[-2] for line in text.splitlines() if label in line][:2] == [share, share]
    assert "2 of 2 people have a title here that an unscored one may outrank; max_unscored_mass=0 scores all" in text


def test_the_terminal_shows_ten_people_of_a_file_and_all_without_one() -> None:
    text = shown(rows(num_people=13), output="p.parquet")
    assert "p9" in text
    assert "p10" not in text
    assert "and 3 more people" in text
    assert "predictions: p.parquet" in text
    assert "p12" in shown(rows(num_people=13))


def test_predictions_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_prediction_table(rows(), prediction_info(), tmp_path / "p.parquet")
    table, info = read_prediction_table(tmp_path / "p.parquet")
    assert (table, info) == (rows(), prediction_info())
    with raises("score-table/no-table", "table of predictions", "predict.py run=... output="):
        read_prediction_table(tmp_path / "q.parquet")
    (tmp_path / "q.parquet").write_bytes(b"PAR1")
    with raises("score-table/unreadable-table", "table of predictions"):
        read_prediction_table(tmp_path / "q.parquet")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("top", "0", "1 to 1,000,000"),
        ("max_unscored_mass", "1.5", "0 to below 1"),
        ("output", "p.csv", ".parquet"),
        ("measure", "title", "normalised, terminated"),
    ],
)
def test_settings_that_are_wrong_are_refused(name: str, value: str, expected: str) -> None:
    with raises("settings/invalid", f"setting {name}: expected", expected, value):
        compose_settings(PredictSettings, "predict", ["run=x", "careers=x", f"{name}={value}"])


def test_several_ranks_are_refused() -> None:
    settings = compose_settings(PredictSettings, "predict", ["run=x", "careers=x"])
    with raises("run/several-ranks", "2"):
        predict(
            settings,
            EvaluatedRun(RunDirectory(Path("x"), ""), settings_of([]), Path("stores")),
            DistributedContext(0, 2, 0, torch.device("cpu")),
        )


@pytest.mark.ranks
def test_the_script_predicts_what_the_evaluation_scores(tmp_path: Path) -> None:
    run_well(
        "train.py", small_run(tmp_path, "template=shuffled_titles", num_people=25), world_size=1, log=tmp_path / "log"
    )
    run = tmp_path / "runs/small"
    run_well("evaluate.py", [f"run={run}", "titles=all"], world_size=1, log=tmp_path / "log")
    scored = read_title_table(run / "scores/test_titles.parquet")
    probabilities = dict(
        zip(scored.table["person"].to_pylist(), scored.table["terminated"].to_pylist(), strict=True)
    )  # the last
    store = open_store(read_run(run)[2])
    canonical = canonical_vocabulary(
        store.vocabulary, TitleSettings("shuffled", seed=read_run(run)[1].template.titles.seed)
    )
    careers = [store.careers("test").history(row) for row in range(store.num_people("test"))]
    rows = ["person,year,occupation,education,birth_year,gender,ethnicity,region"]
    for career in careers:
        facts = [career.birth_year or "", career.gender or "", career.ethnicity or "", career.region or ""]
        for job in career.jobs:
            title = "" if job is career.jobs[-1] else f'"{canonical.title_of()[job.occupation]}"'
            rows.append(",".join(map(str, [career.person, job.year, title, job.education or "", *facts])))
    (tmp_path / "people.csv").write_text("\n".join(rows))
    arguments = [f"run={run}", f"careers={tmp_path}/people.csv", "measure=terminated", f"output={tmp_path}/p.parquet"]
    text = run_well("predict.py", arguments, world_size=1, log=tmp_path / "log")
    assert "Next occupations by small, probability of the title and the line's end" in text
    table, facts = read_prediction_table(tmp_path / "p.parquet")
    assert (facts.model, facts.details["measure"]) == ("small", "terminated")
    assert table.num_rows == 5 * len(careers)
    for row in table.to_pylist():
        expected = np.array(probabilities[row["person"]])
        np.testing.assert_allclose(row["log_likelihood"], np.sort(expected)[-row["rank"]], atol=1e-4)
        np.testing.assert_allclose(
            row["log_likelihood"], expected[scored.occupations.index(row["occupation"])], atol=1e-4
        )
        assert row["title"] == canonical.title_of()[row["occupation"]]
