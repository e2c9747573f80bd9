"""Prompts beyond the plain one: titles or examples before a career, and careers that are too long, refused or cut."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.errors import raises
from helpers.panels import panels
from helpers.processes import PROJECT, run_well
from helpers.reference.slow_scorer import slow_score
from helpers.runs import settings_of, small_run
from helpers.scoring_cases import PROMPTS
from helpers.trained_runs import score_alone
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

from laborllm_dist.batching.training_plan import plan_training
from laborllm_dist.careers.corpus import read_careers
from laborllm_dist.careers.readers.synthetic.titles import synthetic_vocabulary
from laborllm_dist.careers.splits import SPLITS, Segment, career_splits, split_of
from laborllm_dist.careers.types import CareerHistory, Job, OccupationVocabulary
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.evaluation import EvaluateSettings, OtherModelSettings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.evaluation.target import check_cut, describe_cut, longest_text, prompted, text_details, text_name
from laborllm_dist.evaluation.tasks import observation_facts, plan_evaluation
from laborllm_dist.report.load import compare_runs
from laborllm_dist.store.build import locate_store, prepare_store, prepare_worker
from laborllm_dist.store.few_shot import choose_examples, render_prefix
from laborllm_dist.store.store import check_lengths
from laborllm_dist.store.tokenizer import load_tokenizer, train_tokenizer
from laborllm_dist.store.truncation import CareerEncoder, CareerPart, encode_careers
from laborllm_dist.tables.scores import read_score_table
from laborllm_dist.text.template import Template, compile_template, render_career

VOCABULARY = OccupationVocabulary(("436", "435", "unemployed"), ("Cooks", "Food servers", "Unemployed"))
BARE = {"birth_year": None, "gender": None, "ethnicity": None, "region": None}
ME, ANN, BOB = (
    CareerHistory(person, "S", jobs=jobs, **BARE)
    for person, jobs in (
        ("me", (Job(1984, "436", "college"), Job(1985, "unemployed"))),
        ("ann", (Job(1990, "435"),)),
        ("bob", (Job(1991, "435"), Job(1992, "436", "college"))),
    )
)
HEADING = (
    "<A worker from the S dataset>\n"
    "The following information is available about the work history of a US worker.\n"
    "The worker has the following records of work experience, one entry per line, including year, education level, and "
    "the job title:\n"
)
MINE = HEADING + "1984 (college): Cooks\n1985: Unemployed\n<END OF DATA>\n"
ANNS = HEADING + "1990: Food servers\n<END OF DATA>\n"
BOBS = HEADING + "1991: Food servers\n1992 (college): Cooks\n<END OF DATA>\n"
LIST = "Every job title below is one of these:\nCooks\nFood servers\nUnemployed\n\n"


def template_of(*overrides: str, examples: tuple[CareerHistory, ...] = ()) -> Template:
    settings = settings_of(list(overrides)).template
    return compile_template(settings, render_prefix(settings, VOCABULARY, examples))


def rendered(template: Template) -> list[tuple[str, list[str]]]:
    """Return my texts, each with what its spans point to."""
    texts = render_career(ME, template, VOCABULARY.title_of())
    return [(text.text, [text.text[start:end] for start, end in text.title_spans]) for text in texts]


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("titles_first", LIST),
        ("examples_first", ANNS + "\n" + BOBS + "\n"),
        ("titles_and_examples_first", LIST + ANNS + "\n" + BOBS + "\n"),
    ],
)
def test_a_prompt_word_for_word(name: str, before: str) -> None:
    template = template_of(f"template={name}", examples=(ANN, BOB))
    assert rendered(template) == [(before + MINE, [" Cooks", " Unemployed"])]


def test_every_text_of_a_limited_history_has_the_prefix() -> None:
    template = template_of("template=titles_first", "template.max_history=0")
    assert rendered(template) == [
        (LIST + HEADING + "1984 (college): Cooks\n", [" Cooks"]),
        (LIST + HEADING + "1985: Unemployed\n<END OF DATA>\n", [" Unemployed"]),
    ]


def test_examples_are_whole_where_the_history_is_limited() -> None:
    template = template_of("template=examples_first", "template.max_history=0", examples=(BOB,))
    assert template.prefix == BOBS + "\n"


def test_a_prompt_and_its_template_put_the_same_before_a_career() -> None:
    for name, prompt in PROMPTS.items():
        evaluation = compose_settings(EvaluateSettings, "evaluate", ["run=x", f"prompt={prompt}"])
        expected = settings_of([f"template={name}"]).template
        assert prompted(settings_of([]).template, evaluation.prompt, "test") == expected
    plain, own = (compose_settings(EvaluateSettings, "evaluate", ["run=x", *more]) for more in (["prompt=plain"], []))
    titles = settings_of(["template=titles_first"]).template
    assert prompted(titles, own.prompt, "test") == titles
    assert prompted(titles, plain.prompt, "test") == settings_of([]).template


def test_every_prompt_file_that_is_shipped_is_tested() -> None:
    assert {path.stem for path in (PROJECT / "conf/prompt").glob("*.yaml")} == {*PROMPTS.values(), "own", "plain"}


INVALID = "settings/invalid"


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (["prompt=examples", "prompt.num_fewshot=0"], (INVALID, "prompt.num_fewshot:", "above 0", "{examples}")),
        (["prompt.num_fewshot=2"], (INVALID, "setting prompt.num_fewshot: expected 0", "{examples}")),
        (["prompt.prefix=['all {titles} here']"], (INVALID, "setting prompt.prefix:", "braces", "{titles}")),
        (["prompt.prefix=['{genders}']"], (INVALID, "setting prompt.prefix:", "braces")),
        (["prompt.prefix=[\"a\nb\"]"], (INVALID, "setting prompt.prefix:", "each line")),
        (["prompt=title"], ("settings/settings-not-composed", "prompt/title")),
        (["truncation=cut"], (INVALID, "setting truncation:", "error, last_lines", "'cut'")),
    ],
)  # fmt: skip
def test_half_made_prompts_are_refused(overrides: list[str], error: tuple[str, ...]) -> None:
    with raises(*error):
        compose_settings(EvaluateSettings, "evaluate", ["run=x", *overrides])


def test_templates_refuse_the_same() -> None:
    with raises("settings/invalid", "template.num_fewshot", "0, since the prefix has no line"):
        settings_of(["template.num_fewshot=2"])
    with raises("settings/invalid", "template.max_tokens", "a whole number from 1 to 10,000,000"):
        settings_of(["+template.max_tokens=0"])


def test_a_store_keeps_its_name(tmp_path: Path) -> None:
    # A golden value: a store that changes its name is made a second time.
    assert locate_store(settings_of(small_run(tmp_path))).folder.name == "synthetic-a098a6b9aee72f1c"


def small(folder: Path, *more: str) -> RunSettings:
    return settings_of(small_run(folder, "store.people_per_shard=20", *more, num_people=90))


def examples_of(folder: Path) -> list[list[str]]:
    return json.loads((folder / "prefix.json").read_text())["examples"]


def test_examples_are_training_people_and_the_same_for_any_number_of_shards(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    settings = small(one, "template=examples_first", "template.num_fewshot=4")
    first = prepare_store(settings)
    for shard in (1, 0):
        more = [
            "template=examples_first",
            "template.num_fewshot=4",
            "prepare.num_workers=2",
            f"prepare.worker_index={shard}",
        ]
        second = prepare_worker(small(two, *more))
    assert second is not None and second.facts["files"] == first.facts["files"]
    examples = examples_of(first.folder)
    assert len({person for _, person in examples}) == 4
    assert all(split_of(survey, person, settings.split) == "train" for survey, person in examples)
    # The texts that were tokenized begin with these people's careers.
    tokenizer = load_tokenizer(str(first.folder / "tokenizer"))
    plain = compile_template(settings_of([]).template)
    career_of = {career.person: career for career in read_careers(settings.data)}
    title_of = first.vocabulary.title_of()
    shown = [render_career(career_of[person], plain, title_of)[0].text for _, person in examples]
    for split in SPLITS:
        rows = first.careers(split)
        for row in range(0, len(rows), 7):
            (own,) = render_career(rows.history(row), plain, title_of)
            assert tokenizer.hugging_face.decode(rows.token_ids(row)[1:]) == "\n".join([*shown, own.text])
            titles = [tokenizer.hugging_face.decode(rows.token_ids(row)[a:b]) for a, b in rows.title_spans(row)]
            assert titles == [own.text[start:end] for start, end in own.title_spans]


def chosen(settings: RunSettings) -> tuple[CareerHistory, ...]:
    return choose_examples(settings, career_splits(settings.split, settings.data))


def test_fewer_examples_are_the_first_of_more_and_another_seed_draws_others(tmp_path: Path) -> None:
    def drawn(num_fewshot: int, seed: int) -> list[str]:
        more = [f"template.num_fewshot={num_fewshot}", f"template.fewshot_seed={seed}"]
        return [career.person for career in chosen(small(tmp_path, "template=examples_first", *more))]

    assert drawn(2, 1) == drawn(5, 1)[:2] == drawn(5, 1)[:2]
    assert drawn(5, 2) != drawn(5, 1)
    assert chosen(small(tmp_path)) == ()
    with raises("data-file/too-few-examples", "80", "synthetic"):
        drawn(80, 1)


def test_a_person_of_two_corpora_is_one_example(tmp_path: Path) -> None:
    for survey in "AB":
        (tmp_path / f"{survey}_titles.csv").write_text("code,title\n1,Cooks\n")
        (tmp_path / f"{survey}.csv").write_text("person,year,occupation\n1,1984,1\n2,1984,1\n")
    settings = small(
        tmp_path, "template=examples_first", "template.num_fewshot=2", "split.train=0.98", "split.validation=0.01"
    )
    settings = dataclasses.replace(settings, data=panels(tmp_path, "A", "B", population="P"))
    assert sorted(career.person for career in chosen(settings)) == ["1", "2"]


def test_a_training_person_is_not_scored_after_examples() -> None:
    prompt = compose_settings(EvaluateSettings, "evaluate", ["run=x", "prompt=examples"]).prompt
    with raises("run/examples-from-scored-split"):
        prompted(settings_of([]).template, prompt, "train")


def test_a_model_s_name_says_its_text() -> None:
    own = settings_of([]).template

    def name(*overrides: str) -> str:
        settings = compose_settings(EvaluateSettings, "evaluate", ["run=x", *overrides])
        return text_name(settings.truncation, own, prompted(own, settings.prompt, "test"))

    assert name() == name("prompt=plain") == ""
    assert name("prompt=titles") == "-titles"
    assert name("prompt=titles_and_examples", "prompt.num_fewshot=5") == "-titles-5-examples"
    assert name("prompt=examples", "truncation=last_lines") == "-3-examples-last-lines"
    assert name("prompt.prefix=['Think.']") == "-prefix"
    titles = settings_of(["template=titles_first"]).template
    plain = compose_settings(EvaluateSettings, "evaluate", ["run=x", "prompt=plain"])
    assert text_name(plain.truncation, titles, prompted(titles, plain.prompt, "test")) == "-plain"


LONG = CareerHistory("long", "S", jobs=tuple(Job(1980 + at, "436") for at in range(5)), **BARE)


def test_a_cut_career_by_hand() -> None:
    template = template_of("template.heading=[x]", "template.ending=[]")
    texts = [text.text for text in render_career(LONG, template, VOCABULARY.title_of())]
    tokenizer = train_tokenizer(texts, vocabulary_size=260)  # bytes: a token a character, and the mark in front
    heading, line = len("x\n"), len("1980: Cooks\n")
    assert (heading, line) == (2, 12)

    def lines_of(max_tokens: int | None, template: Template = template) -> tuple[list[str], int]:
        telling = CareerEncoder(template, VOCABULARY.title_of(), tokenizer, max_tokens)
        ((career),) = encode_careers([CareerPart(LONG, Segment("test", 0, len(LONG.jobs)))], telling)
        assert [len(text.ids) for text in career.tokenized] == [1 + len(text.text) for text in career.texts]
        years = [" ".join(entry[2:4] for entry in text.text.splitlines()[1:]) for text in career.texts]
        return years, career.num_truncated

    assert lines_of(None) == lines_of(1 + 2 + 5 * 12) == (["80 81 82 83 84"], 0)
    assert lines_of(1 + 2 + 5 * 12 - 1) == (["80 81 82 83", "81 82 83 84"], 1)
    assert lines_of(1 + 2 + 3 * 12) == lines_of(1 + 2 + 4 * 12 - 1) == (["80 81 82", "81 82 83", "82 83 84"], 2)
    assert lines_of(1 + 2 + 12) == (["80", "81", "82", "83", "84"], 4)
    assert lines_of(5) == (["80", "81", "82", "83", "84"], 4)  # too long all the same: refused by who compares
    limited = dataclasses.replace(template, max_history=2)
    assert lines_of(1 + 2 + 3 * 12, limited) == (["80 81 82", "81 82 83", "82 83 84"], 0)
    assert lines_of(1 + 2 + 2 * 12, limited) == (["80 81", "81 82", "82 83", "83 84"], 3)


@pytest.fixture(scope="module")
def whole_and_cut(tmp_path_factory: pytest.TempPathFactory):
    """A store of whole careers, and one whose texts have at most so many tokens as the median career has."""
    folder = tmp_path_factory.mktemp("cut")
    whole = prepare_store(small(folder))
    limit = int(np.median(whole.careers("test").num_tokens()))
    return whole, prepare_store(small(folder, f"+template.max_tokens={limit}")), limit


def test_a_cut_store_has_every_observation_once_after_the_right_occupation(whole_and_cut) -> None:
    whole, cut, limit = whole_and_cut
    assert cut.fingerprint != whole.fingerprint
    assert cut.careers_fingerprint == whole.careers_fingerprint
    for split in SPLITS:
        rows = cut.careers(split)
        assert rows.num_tokens().max() <= limit
        expected, actual = (observation_facts(store.careers(split)) for store in (whole, cut))
        for name in ("survey", "person", "position", "year", "occupation", "previous", "education"):
            assert actual[name].to_pylist() == expected[name].to_pylist()


def test_what_was_cut_is_counted_in_manifest_card_and_table(whole_and_cut) -> None:
    whole, cut, limit = whole_and_cut
    num_truncated = 0
    for split in SPLITS:
        rows = whole.careers(split)
        num_long = int((rows.num_tokens() > limit).sum())
        assert cut.num_truncated(split)["cut_people"] == num_long > 0
        assert (
            rows.longer_than(limit)
            == f"{num_long} of {len(rows)} people of this split {'is' if num_long == 1 else 'are'} longer"
        )
        # Of a cut person all observations but those of the first text are cut.
        parts = cut.careers(split)
        firsts = parts.table["first_position"].to_numpy() == 0
        assert cut.num_truncated(split)["cut_observations"] == int(parts.num_observations()[~firsts].sum())
        num_truncated += num_long
    card = json.loads((cut.folder / "data_card.json").read_text())["corpora"]["synthetic"]
    assert card["cut_people"] == num_truncated
    assert f"| people whose history was truncated | {num_truncated} |" in (cut.folder / "data_card.md").read_text()
    assert "last lines" not in (whole.folder / "data_card.md").read_text()
    assert whole.num_truncated("test") == {}
    template = dataclasses.replace(settings_of([]).template, max_tokens=limit)
    details = text_details(template, cut, "test")
    assert details == {
        "max_tokens": str(limit),
        **{name: str(value) for name, value in cut.num_truncated("test").items()},
    }
    assert text_details(settings_of([]).template, whole, "test") == {}
    line = describe_cut(cut, limit, "test")
    assert line.startswith(
        f"evaluate: {details['cut_people']} of {len(whole.careers('test'))} test people have more than"
    )


def test_refusals_say_how_many_people_are_longer(whole_and_cut) -> None:
    whole, _, limit = whole_and_cut
    rows = whole.careers("test")
    num_long = int((rows.num_tokens() > limit).sum())
    count = f"{num_long} of {len(rows)} people of this split"
    with raises("sequence-too-long/career-too-long", "SYNTHETIC (test)", "ADVICE", count):
        check_lengths(whole, limit, "ADVICE", ("test",))
    evaluation = dataclasses.replace(settings_of([]).evaluation, max_seq_length=limit)
    longest = int(rows.num_tokens().max())
    with raises("sequence-too-long/career-too-long", f"max_seq_length={longest}", "truncation=last_lines", count):
        plan_evaluation(rows, evaluation)
    with raises("sequence-too-long/career-too-long", "1 of", "people of this split is longer"):
        check_lengths(whole, int(rows.num_tokens().max()) - 1, "ADVICE", ("test",))


def test_who_does_not_fit_without_any_history_is_refused(whole_and_cut, tmp_path: Path) -> None:
    store = prepare_store(small(tmp_path, "+template.max_tokens=20"))
    everybody = store.num_people("test")
    with raises("sequence-too-long/career-too-long", "without a line of history", everybody, "people of this"):
        check_cut(store, 20, "test")
    check_cut(whole_and_cut[1], whole_and_cut[2], "test")


def test_the_limit_of_a_model_is_that_of_its_context_its_window_and_a_row(tmp_path: Path) -> None:
    def longest(folder: Path, max_seq_length: int, **more: object) -> int:
        evaluation_settings = dataclasses.replace(settings_of([]).evaluation, max_seq_length=max_seq_length, **more)
        other = OtherModelSettings(str(folder), None, None, None, "safetensors")
        return longest_text(other, evaluation_settings, ["Cooks", "Cooks, private"])

    base, windowed, adapter = tmp_path / "base", tmp_path / "windowed", tmp_path / "adapter"
    LlamaConfig(max_position_embeddings=512).save_pretrained(base)
    MistralConfig(max_position_embeddings=512, sliding_window=100).save_pretrained(windowed)
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(windowed)}))
    assert (longest(base, 4096), longest(base, 300)) == (512, 300)
    assert longest(windowed, 4096) == longest(adapter, 4096) == 100
    # Where any title may follow a prompt, there is room for the longest one: its bytes and the colon's, and a blank's.
    train_tokenizer(["Cooks"], vocabulary_size=260).save(base)
    assert longest(base, 4096, titles="all") == 512 - len(": Cooks, private")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "none")}))
    with raises("model/no-weights", "has no none in it"):
        longest(adapter, 4096)


def test_a_training_never_cuts(whole_and_cut) -> None:
    settings = settings_of(["+template.max_tokens=100"])
    with raises("settings/truncation-in-training"):
        plan_training(whole_and_cut[1], settings, world_size=1)


def check_against_the_slow_scorer(folder: Path, table: pa.Table) -> None:
    """Independent: the list by hand before the resume, one observation, one forward, float64."""
    settings = settings_of(small_run(folder, num_people=40))
    vocabulary, row = synthetic_vocabulary(), table.slice(2, 1).to_pylist()[0]
    career = next(each for each in read_careers(settings.data) if each.person == row["person"])
    (text,) = render_career(career, compile_template(settings.template), vocabulary.title_of())
    listed = "Every job title below is one of these:\n" + "\n".join(vocabulary.titles) + "\n\n"
    prompt = listed + text.text[: text.title_spans[row["position"]][0]]
    tokenizer = load_tokenizer(f"{folder}/runs/small/export")
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/runs/small/export", dtype=torch.float64).eval()

    def encode(part: str) -> list[int]:
        return tokenizer.backend.encode(part, add_special_tokens=False).ids

    title = vocabulary.title_of()[row["occupation"]]
    expected = slow_score(model, encode, list(tokenizer.leading), prompt, title)[:2]
    np.testing.assert_allclose((row["title"], row["terminated"]), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.ranks
def test_a_run_is_scored_after_other_prompts_in_tables_of_their_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = ["training.epochs=1", "model.llama.max_positions=8192", "split.train=0.8", "split.validation=0.1"]
    run_well("train.py", small_run(tmp_path, *more, num_people=40), world_size=1, log=tmp_path / "log")
    run = f"run={tmp_path}/runs/small"

    def score(*overrides: str) -> None:
        settings = compose_settings(EvaluateSettings, "evaluate", [run, *overrides])
        score_alone(settings)

    def table(name: str):
        rows, info = read_score_table(tmp_path / f"runs/small/scores/{name}.parquet")
        return rows["title"].to_numpy(), info

    with raises("sequence-too-long/career-too-long", "people of this split are longer"):
        score("prompt=titles")
    run_well("evaluate.py", [run, "prompt=titles", "max_seq_length=8192"], world_size=2, log=tmp_path / "log")
    score()
    score("truncation=last_lines", "max_seq_length=300")
    assert [line for line in caplog.messages if "observations of theirs are scored after a truncated history" in line]
    plain, info = table("test")
    titles, titles_info = table("test.small-titles")
    cut, cut_info = table("test.small-last-lines")
    assert (info.model, titles_info.model, cut_info.model) == ("small", "small-titles", "small-last-lines")
    assert info.careers == titles_info.careers == cut_info.careers
    assert not {"prefix", "max_tokens", "cut_people"} & info.details.keys()
    assert json.loads(titles_info.details["prefix"])[1] == "{titles}"
    assert int(cut_info.details["cut_people"]) > 0
    assert np.isfinite(titles).all() and np.isfinite(cut).all()
    assert len(plain) == len(titles) == len(cut)
    assert np.abs(plain - titles).max() > 1e-4
    assert np.abs(plain - cut).max() > 1e-6
    with raises("run/scores-of-other-weights", "small-last-lines.parquet", "another prompt or limit"):
        score("truncation=last_lines", "max_seq_length=299")
    check_against_the_slow_scorer(
        tmp_path, read_score_table(tmp_path / "runs/small/scores/test.small-titles.parquet")[0]
    )
    report = compare_runs([f"{tmp_path}/runs/small"], split="test", measure="title")
    assert {model.name for model in report.models} == {"small", "small-titles", "small-last-lines"}
