"""Template, tokenizers and the spans of titles."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from helpers.errors import raises
from helpers.processes import PROJECT
from helpers.runs import settings_of
from hypothesis import given, settings
from hypothesis import strategies as st

from laborllm_dist.careers.occupations.vocabulary import read_vocabulary
from laborllm_dist.careers.types import CareerHistory, Job, OccupationVocabulary
from laborllm_dist.config.data import TemplateSettings, TitleSettings
from laborllm_dist.store.tokenize import title_token_ids, tokenize_careers
from laborllm_dist.store.tokenizer import load_tokenizer, train_tokenizer
from laborllm_dist.text.template import CareerText, compile_template, render_career

TITLE_OF = {"cook": "Cooks", "server": "Food servers, nonrestaurant"}
CAREER = CareerHistory(
    "7", "PSID", 1963, "female", "black or african american", "south",
    (Job(1984, "cook", "some college"), Job(1985, "server", "some college"), Job(1988, "server", None)),
)  # fmt: skip


def test_the_paper_s_resume_word_for_word() -> None:
    (rendered,) = render_career(CAREER, compile_template(settings_of([]).template), TITLE_OF)
    assert rendered.text == (
        "<A worker from the PSID dataset>\n"
        "The following information is available about the work history of a female black or african american US worker "
        "residing in the south region.\n"
        "The worker was born in 1963.\n"
        "The worker has the following records of work experience, one entry per line, including year, education level, "
        "and the job title:\n"
        "1984 (some college): Cooks\n"
        "1985 (some college): Food servers, nonrestaurant\n"
        "1988: Food servers, nonrestaurant\n"
        "<END OF DATA>\n"
    )
    assert [rendered.text[start:end] for start, end in rendered.title_spans] == [
        " Cooks", " Food servers, nonrestaurant", " Food servers, nonrestaurant",
    ]  # fmt: skip


def test_parts_about_absent_facts_are_left_out() -> None:
    bare = CareerHistory("7", "PSID", None, None, None, None, CAREER.jobs[:1])
    text = render_career(bare, compile_template(settings_of([]).template), TITLE_OF)[0].text
    assert "work history of a US worker.\nThe worker has the following" in text


def template_of(entry: str, *, heading: tuple[str, ...] = (), **changes) -> TemplateSettings:
    plain = {"titles": TitleSettings("english"), "omit_fields": (), "max_history": None}
    return TemplateSettings(heading, entry, ending=(), **{**plain, **changes})


def test_tenure_counts_from_the_first_year_of_a_spell_and_knows_earlier_lines_only() -> None:
    codes = ["cook", "cook", "server", "server", "cook", "cook"]
    years = [1980, 1981, 1982, 1986, 1988, 1990]
    jobs = tuple(Job(year, code, None) for year, code in zip(years, codes, strict=True))
    career = CareerHistory("7", "PSID", None, None, None, None, jobs)
    entry = "{year}[ tenure {tenure}][ age {age}]: {title}"
    by_hand = ["1980:", "1981 tenure 1:", "1982 tenure 2:", "1986 tenure 4:", "1988 tenure 6:", "1990 tenure 2:"]
    for changes in ({}, {"max_history": 1}):
        texts = render_career(career, compile_template(template_of(entry, **changes)), TITLE_OF)
        lines = [line for text in texts for line in text.text.splitlines()]
        assert [line.rsplit(":", 1)[0] + ":" for line in dict.fromkeys(lines)] == by_hand
    other_end = dataclasses.replace(career, jobs=(*jobs[:5], Job(1990, "server", None)))
    (text,) = render_career(other_end, compile_template(template_of(entry)), TITLE_OF)
    assert text.text.splitlines()[-1].startswith("1990 tenure 2:")


def test_what_is_derived_from_an_omitted_field_is_omitted_too() -> None:
    entry, heading = "{year}[ age {age}]: {title}", ("[Born in the {cohort}.]",)
    (text,) = render_career(CAREER, compile_template(template_of(entry, heading=heading)), TITLE_OF)
    assert text.text.splitlines()[:2] == ["Born in the 1960s.", "1984 age 21: Cooks"]
    hidden = template_of(entry, heading=heading, omit_fields=("birth_year",))
    (text,) = render_career(CAREER, compile_template(hidden), TITLE_OF)
    assert text.text.splitlines()[0] == "1984: Cooks"


BAD_TEMPLATES = {
    "{year}:{title}": ("template/entry-without-title-end", "'{year}:{title}'"),
    "{year}  {title}": ("template/entry-without-title-end", "'{year}  {title}'"),
    "{yaer}: {title}": ("template/unknown-field", "{yaer}", "year"),
    "{year}[ ({education}: {title}": ("template/unbalanced-bracket",),
    "{year}[ (x)]: {title}": ("template/bracket-without-field", "[ (x)]"),
    "{year: {title}": ("template/invalid-format-string", "'{year:'"),
}


@pytest.mark.parametrize("entry", BAD_TEMPLATES)
def test_a_bad_entry_is_refused(entry: str) -> None:
    with raises(*BAD_TEMPLATES[entry]):
        compile_template(template_of(entry))


def test_a_fact_that_the_template_needs_but_a_person_lacks_is_named() -> None:
    template = compile_template(template_of("{year}: {title}", heading=("Born {birth_year}.",)))
    bare = CareerHistory("7", "PSID", None, None, None, None, CAREER.jobs)
    with raises("template/missing-career-field", "'7'", "PSID", "birth_year"):
        render_career(bare, template, TITLE_OF)


def check_spans(texts: list[CareerText], tokenizer) -> None:
    """Compare with another way to the same tokens: decode what lies inside each span and right after it."""
    for text, career in zip(texts, tokenize_careers(texts, tokenizer), strict=True):
        for (start, end), (first, last) in zip(text.title_spans, career.title_spans, strict=True):
            inside = tokenizer.hugging_face.decode(career.ids[first:last], clean_up_tokenization_spaces=False)
            assert inside.strip() == text.text[start:end].strip()
            assert tokenizer.hugging_face.decode(career.ids[last : last + 1]) == "\n"
            before = tokenizer.backend.encode(text.text[:start], add_special_tokens=False).ids
            assert list(career.ids[len(tokenizer.leading) : first]) == before


def occ1990dd() -> OccupationVocabulary:
    return read_vocabulary(PROJECT / "laborllm_dist/careers/tables/occ1990dd.csv")


def long_careers(vocabulary: OccupationVocabulary) -> list[CareerText]:
    template = compile_template(settings_of([]).template)
    careers = [
        CareerHistory(
            "1",
            "NLSY97",
            1980,
            "male",
            "white",
            "west",
            tuple(Job(1990 + at, code, "college") for at, code in enumerate(codes)),
        )
        for codes in (vocabulary.codes[first : first + 30] for first in range(0, len(vocabulary), 30))
    ]
    return [text for career in careers for text in render_career(career, template, vocabulary.title_of())]


def test_every_occ1990dd_title_keeps_its_tokens_with_llama2(any_llama_tokenizer: Path) -> None:
    vocabulary, tokenizer = occ1990dd(), load_tokenizer(str(any_llama_tokenizer))
    assert tokenizer.leading == (1,)
    title_token_ids("1984 (some college):", vocabulary, tokenizer)
    check_spans(long_careers(vocabulary), tokenizer)


def test_every_occ1990dd_title_keeps_its_tokens_with_sentencepiece_files(any_llama: Path) -> None:
    vocabulary, tokenizer = occ1990dd(), load_tokenizer(str(any_llama))
    assert tokenizer.leading == (1,)
    title_token_ids("1984 (some college):", vocabulary, tokenizer)
    check_spans(long_careers(vocabulary)[:3], tokenizer)


def test_every_occ1990dd_title_keeps_its_tokens_with_trained_bpe() -> None:
    vocabulary = occ1990dd()
    texts = long_careers(vocabulary)
    tokenizer = train_tokenizer((text.text for text in texts), vocabulary_size=600)
    assert tokenizer.num_ids == 600
    title_token_ids("1984 (some college):", vocabulary, tokenizer)
    check_spans(texts, tokenizer)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.text(
            st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp", "Cs", "Zs")), min_size=1, max_size=12
        ),
        min_size=1,
        max_size=4,
    )
)
def test_spans_hold_for_any_title(titles: list[str]) -> None:
    template = compile_template(template_of("{year}: {title}", heading=("x",)))
    codes = [str(at) for at in range(len(titles))]
    career = CareerHistory(
        "1", "S", None, None, None, None, tuple(Job(1990 + at, code) for at, code in enumerate(codes))
    )
    texts = render_career(career, template, dict(zip(codes, titles, strict=True)))
    tokenizer = train_tokenizer([CAREER.person], vocabulary_size=260)
    check_spans(texts, tokenizer)


def test_a_tokenizer_that_joins_a_title_to_the_next_line_is_refused() -> None:
    tokenizer = train_tokenizer(["x"], vocabulary_size=260)
    text = "1984: Cooks.1985: Cooks."  # no line end after the title
    with raises("title-boundary/title-not-on-token-boundary", "'Cooks'"):
        tokenize_careers([CareerText(text=text, title_spans=((5, 11),))], tokenizer)


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_missing_tokenizer_is_refused(path: str) -> None:
    with raises("tokenizer/no-tokenizer"):
        load_tokenizer(path)


def test_an_empty_folder_is_no_tokenizer(tmp_path: Path) -> None:
    with raises("tokenizer/no-tokenizer"):
        load_tokenizer(str(tmp_path))
