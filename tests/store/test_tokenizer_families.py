"""Every shipped title ends at a token boundary with the tokenizers that people use; what cannot be right is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import pytest
import transformers
from helpers.errors import raises
from helpers.processes import PROJECT
from helpers.psid import HEAD, write_cart
from helpers.resumes import rows_of
from helpers.runs import settings_of
from helpers.tokenizers import FAMILIES, JOINING, made_hugging_face, made_tokenizer, save_vocabulary_and_merges
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from laborllm_dist.careers.corpus import pooled_vocabulary
from laborllm_dist.careers.types import CareerHistory, Job, OccupationVocabulary
from laborllm_dist.config.data import TemplateSettings
from laborllm_dist.evaluation.title_trie import common_title_trie
from laborllm_dist.store.build import locate_store, prepare_store
from laborllm_dist.store.few_shot import render_prefix
from laborllm_dist.store.tokenize import title_token_ids, tokenize_careers
from laborllm_dist.store.tokenizer import CareerTokenizer, check_tokenizer, load_tokenizer, tokenizer_identity
from laborllm_dist.text.template import CareerText, compile_template, render_career
from laborllm_dist.text.title_variants import display_vocabulary

# The readers with titles of their own; PSID, both NLS, and resumes coded by their titles share occ1990dd.
READERS = {
    "psid81": [],
    "nlsy79": [],
    "nlsy97": [],
    "wage_panel": [],
    "synthetic": [],
    "resumes": ["data.corpora.resumes.occupation_from=title"],
}
TEMPLATES = [file.stem for file in (PROJECT / "conf/template").glob("*.yaml")]
family_tokenizer = functools.cache(made_tokenizer)


@functools.cache
def shipped(reader: str) -> OccupationVocabulary:
    return pooled_vocabulary(settings_of([f"data={reader}", *READERS[reader]]).data)


def careers_of_all_titles(vocabulary: OccupationVocabulary) -> list[CareerHistory]:
    """Return careers in which every title stands once inside and once at the end, with and without an education."""
    codes = vocabulary.codes
    lists = [codes[first : first + 40] for first in range(0, len(codes), 40)] + [(code,) for code in codes]
    return [
        CareerHistory(
            str(number), "PSID", 1960, "female", "white", "south",
            tuple(Job(1979 + at, code, None if at % 3 == 2 else "some college") for at, code in enumerate(held)),
        )
        for number, held in enumerate(lists)
    ]  # fmt: skip


def texts_of(template: TemplateSettings, vocabulary: OccupationVocabulary) -> list[CareerText]:
    """Return all texts of these careers; those of one job without most of the heading."""
    shown, careers = display_vocabulary(vocabulary, template.titles), careers_of_all_titles(vocabulary)
    prefix = render_prefix(template, shown, careers[:2] * (template.num_fewshot > 0))
    prefix = "".join(line for line in prefix.splitlines(keepends=True)[-30:])  # the whole list is tested once
    whole = compile_template(template, prefix)
    short = compile_template(dataclasses.replace(template, heading=template.heading[:1]))
    return [
        text
        for career in careers
        for text in render_career(career, short if len(career.jobs) == 1 else whole, shown.title_of())
    ]


def check_spans(texts: list[CareerText], tokenizer: CareerTokenizer) -> None:
    """Compare with another way to the same tokens: what the ids inside a span, and the one after it, are decoded to."""
    for text, career in zip(texts, tokenize_careers(texts, tokenizer), strict=True):
        inside, ends, expected = [], [], []
        for (start, end), (first, last) in zip(text.title_spans, career.title_spans, strict=True):
            inside.append(list(career.ids[first:last]))
            ends.append([career.ids[last]])
            expected.append(text.text[start:end].strip())
        decode = tokenizer.hugging_face.backend_tokenizer.decode_batch
        assert [each.strip() for each in decode(inside, skip_special_tokens=False)] == expected
        assert set(decode(ends, skip_special_tokens=False)) == {"\n"}


def joined_titles(tokenizer: CareerTokenizer, titles: tuple[str, ...]) -> list[str]:
    """Return titles whose last character the tokenizer's own rules join to the line's end."""
    own = tokenizer.hugging_face.backend_tokenizer
    encodings = own.encode_batch([f"1984: {title}\n1985: {title}\n" for title in titles], add_special_tokens=False)
    places = [len(f"1984: {title}") for title in titles]
    return [
        title
        for title, encoding, place in zip(titles, encodings, places, strict=True)
        if any(start < place < end for start, end in encoding.offsets)
    ]


def test_the_readers_share_their_lists_of_titles() -> None:
    psid, resumes = shipped("psid81"), shipped("resumes")
    assert shipped("nlsy79") == shipped("nlsy97") == psid == resumes


@pytest.mark.parametrize("reader", ["psid81", "wage_panel", "synthetic"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_shipped_title_ends_at_a_token_boundary(family: str, reader: str) -> None:
    vocabulary, tokenizer = shipped(reader), family_tokenizer(family)
    check_spans(texts_of(settings_of([]).template, vocabulary), tokenizer)
    prompts = [f"born in 1963.\n1984: {vocabulary.titles[-1]}\n1985{education}:" for education in ("", " (college)")]
    assert common_title_trie(prompts, vocabulary, tokenizer).ends_T.size == len(vocabulary)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("family", FAMILIES)
def test_so_it_does_in_every_template(family: str, template: str) -> None:
    texts = texts_of(settings_of([f"template={template}"]).template, every_twelfth_title())
    check_spans(texts, family_tokenizer(family))


@functools.cache
def every_twelfth_title() -> OccupationVocabulary:
    """Return every twelfth title of occ1990dd, and all that end in a period."""
    vocabulary = shipped("psid81")
    title_of = vocabulary.title_of()
    with_period = [code for code, title in title_of.items() if title.endswith(".")]
    assert len(with_period) == 20
    codes = tuple(dict.fromkeys([*vocabulary.codes[::12], *with_period]))
    return OccupationVocabulary(codes, tuple(title_of[code] for code in codes))


@pytest.mark.parametrize(("reader", "family"), [("psid81", "llama3"), ("psid81", "gemma"), ("resumes", "qwen2.5")])
def test_stores_of_psid_and_of_coded_resumes_are_made(reader: str, family: str, tmp_path: Path) -> None:
    """Preparing tries all titles of the list, so one that is joined to its line's end had refused the whole corpus."""
    made_tokenizer(family).save(tmp_path / "tokenizer")
    if reader == "psid81":
        people = [{**HEAD, ("ER30001", 0): number} for number in range(1, 21)]
        source = write_cart(tmp_path / "cart", people)
        place = f"data.corpora.psid81.path={source}"
    else:
        rows = [
            {"id": str(person), "title": "Lawyer", "start": "2010", "end": "2011", "education": None}
            for person in range(30)
        ]
        (tmp_path / "r.jsonl").write_text(rows_of(*rows))
        place = f"data.corpora.resumes.path={tmp_path}/r.jsonl"
    overrides = [f"data={reader}", place, f"store.root={tmp_path}/stores", "tokenizer=pretrained"]
    store = prepare_store(settings_of([*overrides, f"tokenizer.path={tmp_path}/tokenizer"]))
    tokenizer, careers = load_tokenizer(str(store.folder / "tokenizer")), store.careers("train")
    title_of, spans = store.vocabulary.title_of(), careers.title_spans(0)
    texts = [tokenizer.backend.decode(careers.token_ids(0)[start : end + 1]) for start, end in spans]
    assert [text.strip(" ") for text in texts] == [f"{title_of[job.occupation]}\n" for job in careers.history(0).jobs]


@pytest.mark.parametrize("family", FAMILIES)
def test_titles_may_be_followed_by_an_empty_line_or_by_nothing(family: str) -> None:
    for ending in ((), ("",), ("", "<END OF DATA>")):
        template = dataclasses.replace(settings_of([]).template, ending=ending)
        check_spans(texts_of(template, every_twelfth_title()), family_tokenizer(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_small_tokenizers_join_what_the_real_ones_join(family: str) -> None:
    titles = shipped("psid81").titles
    joined = joined_titles(family_tokenizer(family), titles)
    if family in JOINING:
        assert {title for title in titles if title.endswith(".")} <= set(joined)
    else:
        assert not joined


@pytest.mark.parametrize("family", JOINING)
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="▁"), min_size=1, max_size=9),
        min_size=1, max_size=4,
    )
)  # fmt: skip
def test_titles_of_one_s_own_may_end_in_any_character(family: str, titles: list[str]) -> None:
    text, spans = "", []
    for title in titles:
        text += "1984 (college):"
        spans.append((len(text), len(text) + 1 + len(title)))
        text += f" {title}\n"
    # Not decoded: normalizers write some characters in another form.
    (career,) = tokenize_careers([CareerText(text, tuple(spans))], family_tokenizer(family))
    newline = career.ids[career.title_spans[0][1]]
    assert family_tokenizer(family).backend.decode([newline]) == "\n"
    assert [career.ids[end] for _, end in career.title_spans] == [newline] * len(titles)


@pytest.mark.parametrize("family", ("llama3", "qwen2.5", "tekken"))
def test_the_ids_are_those_of_the_lines_one_by_one_and_of_the_line_break(family: str) -> None:
    tokenizer = family_tokenizer(family)
    for text in texts_of(settings_of(["template=titles_first"]).template, shipped("psid81"))[:9]:
        alone = [tokenizer.hugging_face(line, add_special_tokens=False)["input_ids"] for line in text.text.split("\n")]
        (newline,) = tokenizer.hugging_face("\n", add_special_tokens=False)["input_ids"]
        expected = [*tokenizer.leading, *alone[0]]
        for ids in alone[1:]:
            expected += [newline, *ids]
        assert list(tokenize_careers([text], tokenizer)[0].ids) == expected


@pytest.mark.parametrize("family", ("llama2", "gpt2", "smollm2"))
def test_tokenizers_that_keep_line_ends_apart_are_left_as_they_are(family: str) -> None:
    tokenizer = family_tokenizer(family)
    for text in texts_of(settings_of(["template=titles_and_examples_first"]).template, shipped("psid81"))[:9]:
        own = tokenizer.hugging_face(text.text, add_special_tokens=False)["input_ids"]
        assert list(tokenize_careers([text], tokenizer)[0].ids) == [*tokenizer.leading, *own]


def test_llama2_is_left_as_it_is(any_llama_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(str(any_llama_tokenizer))
    assert tokenizer.backend is tokenizer.hugging_face.backend_tokenizer
    assert tokenizer.reads_all_bytes


@pytest.mark.parametrize("family", JOINING)
def test_what_is_saved_is_the_tokenizer_s_own(family: str, tmp_path: Path) -> None:
    tokenizer = made_tokenizer(family)
    tokenizer.save(tmp_path)
    saved, own = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), made_hugging_face(family).backend_tokenizer
    assert json.loads(saved.to_str())["pre_tokenizer"] == json.loads(own.to_str())["pre_tokenizer"]
    again = load_tokenizer(str(tmp_path))
    assert again.fingerprint() == tokenizer.fingerprint()
    text = "1984: Therapists, n.e.c.\n1985: Nurses (RN)\n"
    assert again.backend.encode(text).ids == tokenizer.backend.encode(text).ids


def test_the_rule_is_part_of_the_fingerprint() -> None:
    with_rule = made_tokenizer("llama3")
    without = dataclasses.replace(with_rule, backend=with_rule.hugging_face.backend_tokenizer)
    assert with_rule.fingerprint() != without.fingerprint()


def test_a_tokenizer_that_joins_titles_to_their_prompt_is_refused() -> None:
    """Pieces over blanks cannot be cut apart by a rule about line ends."""
    backend = Tokenizer(models.BPE({"<unk>": 0, **{c: at for at, c in enumerate(": Cok1984\nThewasbrni63.(mlg)Fdv,5s", 1)}, ": ": 90}, [(":", " ")], unk_token="<unk>"))  # fmt: skip
    tokenizer = CareerTokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=backend), backend, (), True)
    with raises("title-boundary/title-not-on-token-boundary", "'Cooks'"):
        title_token_ids("1984:", OccupationVocabulary(("a",), ("Cooks",)), tokenizer)


# Characters without a token


def with_few_characters(*, unknown: str | None) -> CareerTokenizer:
    """Return a tokenizer of ASCII characters alone; what else there is becomes `unknown`, or nothing."""
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    pieces = {character: at for at, character in enumerate([*characters, "<unk>"])}
    backend = Tokenizer(models.BPE(pieces, [], unk_token=unknown))
    backend.decoder = decoders.Fuse()
    hugging_face = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=unknown)
    return check_tokenizer(hugging_face, "a small tokenizer")


@pytest.mark.parametrize("unknown", ["<unk>", None])
def test_titles_with_characters_that_have_no_token_are_named(unknown: str | None) -> None:
    titles = ("Cooks", "Café owners", "Cafè owners", "Bäcker", "Zimmerfrau in München")
    vocabulary = OccupationVocabulary(tuple("abcde"), titles)
    characters, named = "'é', 'è', 'ä' and 1 more", "'Café owners', 'Cafè owners', 'Bäcker' and 1 more"
    with raises("tokenizer/unknown-characters", characters, "4 of 5 titles", named):
        title_token_ids("1984:", vocabulary, with_few_characters(unknown=unknown))


@pytest.mark.parametrize("unknown", ["<unk>", None])
def test_so_are_names_in_a_career(unknown: str | None) -> None:
    tokenizer = with_few_characters(unknown=unknown)
    text = "<A worker from the Über dataset>\n1984 (Collège): Cooks\n"
    end = len(text) - 1
    career = CareerText(text, ((end - len(" Cooks"), end),))
    with raises("tokenizer/unknown-characters", "'Ü', 'è'", "'<A worker from the Über dataset>'"):
        tokenize_careers([career], tokenizer)
    plain = text.replace("Ü", "U").replace("è", "e")
    (tokenized,) = tokenize_careers([dataclasses.replace(career, text=plain)], tokenizer)
    assert tokenizer.backend.decode_batch([[each] for each in tokenized.ids]) == list(plain)


def test_two_titles_of_the_same_tokens_are_named() -> None:
    hugging_face = made_hugging_face("llama3")
    hugging_face.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizer = check_tokenizer(hugging_face, "a small tokenizer")
    vocabulary = OccupationVocabulary(("a", "b", "c"), ("Cooks", "Technicians²", "Technicians2"))
    with raises("title-boundary/identical-title-tokens", "'Technicians²'", "'Technicians2'"):
        title_token_ids("1984:", vocabulary, tokenizer)


# Identity, and files that cannot be opened


def test_the_identity_is_that_of_what_is_opened(tmp_path: Path) -> None:
    one, other = (made_tokenizer("gpt2", vocabulary_size=size) for size in (300, 310))
    save_vocabulary_and_merges(one, tmp_path / "tokenizer")
    place = settings_of(["tokenizer=pretrained", f"tokenizer.path={tmp_path}/tokenizer", "data=wage_panel"])
    first, store = tokenizer_identity(str(tmp_path / "tokenizer"), None, None), locate_store(place).folder
    assert tokenizer_identity(str(tmp_path / "tokenizer"), None, None) == first
    # The same rules in other files are the same tokenizer.
    load_tokenizer(str(tmp_path / "tokenizer")).save(tmp_path / "saved")
    assert (tmp_path / "saved/tokenizer.json").is_file()
    assert not (tmp_path / "saved/merges.txt").exists()
    assert tokenizer_identity(str(tmp_path / "saved"), None, None) == first
    # Other merges are another one, with a store of its own.
    save_vocabulary_and_merges(other, tmp_path / "tokenizer")
    assert tokenizer_identity(str(tmp_path / "tokenizer"), None, None) != first
    assert locate_store(place).folder != store
    save_vocabulary_and_merges(one, tmp_path / "tokenizer")
    assert locate_store(place).folder == store


def test_the_identity_does_not_hang_on_how_rules_are_written() -> None:
    tokenizer = made_tokenizer("gpt2")
    content = json.loads(tokenizer.backend.to_str())
    content["model"]["merges"] = [" ".join(each) for each in content["model"]["merges"]]  # as before version 0.20
    content["model"] = {name: value for name, value in content["model"].items() if value is not None}
    content["model"]["vocab"] = dict(reversed(content["model"]["vocab"].items()))
    again = Tokenizer.from_str(json.dumps(content))
    assert dataclasses.replace(tokenizer, backend=again).fingerprint() == tokenizer.fingerprint()


def saved_content(tmp_path: Path) -> dict:
    made_tokenizer("llama3").save(tmp_path)
    return json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))


def test_a_file_s_own_limit_and_padding_cut_and_fill_nothing(tmp_path: Path) -> None:
    content = saved_content(tmp_path)
    content["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 4096}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 2, "pad_type_id": 0,
        "pad_token": "</s>",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    texts = texts_of(settings_of([]).template, shipped("wage_panel"))
    assert tokenize_careers(texts, load_tokenizer(str(tmp_path))) == tokenize_careers(texts, made_tokenizer("llama3"))


def test_tokens_at_random_are_refused(tmp_path: Path) -> None:
    content = saved_content(tmp_path)
    content["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with raises("tokenizer/tokenizer-with-dropout", "0.5"):
        load_tokenizer(str(tmp_path))


MARKS = {
    "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
}  # fmt: skip
OF_ANOTHER_VERSION = {
    "version": ("tokenizer.json", {"version": "2.0"}, "Unknown tokenizer version '2.0'"),
    "model": ("tokenizer.json", {"model": {"type": "NewBPE"}}, "did not match any variant"),
    "rule": ("tokenizer.json", {"pre_tokenizer": {"type": "Later"}}, "did not match any variant"),
    "a token": ("tokenizer.json", {"post_processor": {**MARKS, "special_tokens": {}}}, "no entry found for key"),
    "marks": ("tokenizer.json", {"post_processor": {"type": "Later"}}, "did not match any variant"),
    "special tokens": ("tokenizer_config.json", {"extra_special_tokens": 7}, "extra_special_tokens must be"),
    "a package": ("tokenizer_config.json", {"tokenizer_class": "MistralCommonBackend"}, "requires the mistral-common"),
    "a number": ("tokenizer_config.json", {"bos_token": 5}, "bos_token has to be"),
}


@pytest.mark.parametrize("kind", OF_ANOTHER_VERSION)
def test_files_of_another_version_are_refused_with_one_line(kind: str, tmp_path: Path) -> None:
    name, change, why = OF_ANOTHER_VERSION[kind]
    saved_content(tmp_path)
    content = json.loads((tmp_path / name).read_text(encoding="utf-8"))
    (tmp_path / name).write_text(json.dumps({**content, **change}), encoding="utf-8")
    with raises("tokenizer/unreadable-tokenizer") as error:
        load_tokenizer(str(tmp_path))
    assert why in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [b"", b"[]", b"null", b'{"model":', b"\x00\xff"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_files_are_refused_with_one_line(name: str, damage: bytes, tmp_path: Path) -> None:
    saved_content(tmp_path)
    (tmp_path / name).write_bytes(damage)
    with raises("tokenizer/unreadable-tokenizer") as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)


def test_rank_files_alone_are_refused_with_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text(json.dumps({"config": {"pattern": "x", "version": "v99"}, "vocab": []}))
    with raises("tokenizer/unreadable-tokenizer"):
        load_tokenizer(str(tmp_path))
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    with raises("tokenizer/no-tokenizer"):
        load_tokenizer(str(tmp_path))


def test_the_small_tokenizers_cut_before_every_line_break() -> None:
    """The rule by itself, with no other one before it."""
    cut = pre_tokenizers.Split("\n", "isolated")
    assert [piece for piece, _ in cut.pre_tokenize_str("a.\n\nb")] == ["a.", "\n", "\n", "b"]
