"""Careers of one's own: epochs by the number of people, titles that are one token, and experiments left as they were."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from helpers.errors import raises
from helpers.runs import settings_of

from laborllm_dist.batching.training_plan import epochs_of, plan_training
from laborllm_dist.config.reader import settings_to_values
from laborllm_dist.store.build import prepare_store
from laborllm_dist.store.run_tokenizer import constant_phrases
from laborllm_dist.store.tokenizer import CareerTokenizer, WholeTokens, load_tokenizer, train_tokenizer
from laborllm_dist.training.progress import describe_plan

PRETRAINED = ("model=pretrained", "model.path=folder", "tokenizer=pretrained")


@pytest.mark.parametrize(
    ("num_people", "epochs"),
    [
        (1, 40),
        (210, 40),  # 7 steps an epoch: 1,000 would take 143
        (831, 39),  # 26 steps: 38 epochs have 988, 39 have 1,014
        (1_750, 19),  # 55 steps: 18 epochs have 990, 19 have 1,045
        (7_000, 5),  # 219 steps: 4 epochs have 876, 5 have 1,095
        (70_000, 3),  # 2,188 steps
    ],
)
def test_epochs_by_the_number_of_training_people_by_hand(num_people: int, epochs: int) -> None:
    steps_per_epoch = -(-num_people // 32)
    assert epochs_of(settings_of(["data=long_panel"]), steps_per_epoch) == epochs


def test_epochs_that_are_given_are_taken_and_pretrained_weights_take_few() -> None:
    assert epochs_of(settings_of(["data=long_panel", "training.epochs=2"]), 7) == 2
    assert epochs_of(settings_of(["data=long_panel", *PRETRAINED]), 7) == 3
    assert epochs_of(settings_of(["data=long_panel", "training=default"]), 7) == 3


@pytest.mark.parametrize(
    ("overrides", "values"),
    [
        (["training.epochs=null"], ("training.epochs:", "training.min_steps")),
        (["data=long_panel", "training.max_epochs=null"], ("training.epochs:", "null")),
        (["data=long_panel", "training.max_epochs=2"], ("training.max_epochs:", "3 to 100,000", "got 2")),
        (["data=long_panel", "training.min_steps=0"], ("training.min_steps:", "from 1 to", "got 0")),
        (["tokenizer=pretrained", "tokenizer.titles=whole"], ("tokenizer.titles: expected pieces",)),
    ],
)
def test_what_decides_nothing_is_refused(overrides: list[str], values: tuple[str, ...]) -> None:
    with raises("settings/invalid", *values):
        settings_of(overrides)


def test_what_is_asked_for_goes_before_what_careers_of_one_s_own_are_given() -> None:
    own = settings_of(["data=long_panel"])
    assert (own.tokenizer.titles, own.training.epochs, own.optimizer.learning_rate) == ("whole", None, 6e-3)
    settings = settings_of(["data=long_panel", *PRETRAINED, "optimizer=finetune"])
    assert (settings.tokenizer.titles, settings.optimizer.learning_rate) == ("pieces", 1e-5)
    experiment = settings_of(["+experiment=pooled_7b", "data=long_panel"])
    assert (experiment.tokenizer.kind, experiment.training.epochs, experiment.optimizer.name) == (
        "pretrained",
        3,
        "adamw",
    )


def test_other_data_keep_the_defaults() -> None:
    quickstart = settings_to_values(settings_of(["+experiment=quickstart"]))
    assert quickstart["tokenizer"] == {
        "kind": "trained", "path": None, "vocabulary_size": 512, "training_people": 10_000, "titles": "pieces",
    }  # fmt: skip
    assert quickstart["training"] == {
        "seed": 1, "epochs": 20, "validations_per_epoch": 1, "checkpoint_every_steps": None, "save_total_limit": 2,
        "log_every_steps": 10, "best_by": "title", "patience": None, "on_bad_step": "stop", "loss_spike_ratio": 3.0,
        "loss_spike_window": 50, "max_consecutive_skips": 10, "min_steps": None, "max_epochs": None,
        "context_loss_weight": 1.0, "bootstrap_seed": None,
    }  # fmt: skip
    assert quickstart["optimizer"]["learning_rate"] == 6e-3
    assert settings_of([]).optimizer.learning_rate == 1e-3


TITLES = ("Cooks", "Cooks, n.e.c.", "Chefs: pastry (hot)", "job_144", "Köche  und Bäcker", "C++")
HEADING = "The worker was born in 1963.\nThe worker has records:\n"


def lines_of(titles: tuple[str, ...]) -> str:
    return "".join(f"{1990 + place} (some college): {title}\n" for place, title in enumerate(titles))


@pytest.fixture(scope="module")
def whole() -> CareerTokenizer:
    phrases = ["The worker was born in", "The worker has records:"]
    text = HEADING + lines_of(TITLES) + "<END OF DATA>"
    return train_tokenizer([text] * 20, vocabulary_size=400, whole_tokens=WholeTokens(TITLES, phrases))


def pieces(tokenizer: CareerTokenizer, text: str) -> list[str]:
    encoding = tokenizer.backend.encode(text, add_special_tokens=False)
    return [text[start:end] for start, end in encoding.offsets]


def test_a_line_is_its_year_its_education_its_title_and_its_end(whole: CareerTokenizer) -> None:
    expected = []
    for place, title in enumerate(TITLES):
        expected += [f"{1990 + place}", " (some college):", f" {title}", "\n"]
    assert pieces(whole, HEADING + lines_of(TITLES))[-len(expected) :] == expected
    assert pieces(whole, HEADING)[0] == "The worker was born in"
    assert pieces(whole, HEADING)[-2:] == ["The worker has records:", "\n"]


def test_what_has_no_token_is_written_in_pieces_and_comes_back(whole: CareerTokenizer) -> None:
    text = HEADING + "2031 (kindergarten): Cooks, of pastry\n1990: Cooks\n"
    ids = whole.backend.encode(text, add_special_tokens=False).ids
    assert whole.hugging_face.decode(ids, clean_up_tokenization_spaces=False) == text
    assert pieces(whole, text)[-2:] == [" Cooks", "\n"]
    assert " Cooks, of pastry" not in pieces(whole, text)


def test_the_tokenizer_is_the_same_when_it_is_opened_again(whole: CareerTokenizer, tmp_path: Path) -> None:
    whole.save(tmp_path / "tokenizer")
    opened = load_tokenizer(str(tmp_path / "tokenizer"))
    text = HEADING + lines_of(TITLES)
    assert opened.backend.encode(text).ids == whole.backend.encode(text).ids
    assert opened.fingerprint() == whole.fingerprint()


def test_constant_phrases_are_the_template_s_words_between_its_facts() -> None:
    assert constant_phrases(settings_of([]).template) == [
        "<A worker from the",
        "The following information is available about the work history of a",
        " US worker",
        " residing in the",
        "The worker was born in",
        "The worker has the following records of work experience, one entry per line, including year, education level, "
        "and the job title:",
        "<END OF DATA>",
    ]


def test_a_store_of_one_s_own_careers_has_one_token_a_title_and_the_plan_its_epochs(tmp_path: Path) -> None:
    titles = [f"Operators of machine {number}, n.e.c." for number in range(9)]
    with (tmp_path / "titles.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("code", "title"), *enumerate(titles)])
    with (tmp_path / "careers.csv").open("w", newline="") as file:
        rows = [(person, 1990 + year, (person * year) % 9, "college") for person in range(60) for year in range(4)]
        csv.writer(file).writerows([("person", "year", "occupation", "education"), *rows])
    place = "data.corpora.long_panel"
    absent = ("birth_year", "gender", "ethnicity", "region")
    settings = settings_of(
        [
            "data=long_panel",
            f"store.root={tmp_path}/stores",
            f"{place}.path={tmp_path}/careers.csv",
            f"{place}.vocabulary.path={tmp_path}/titles.csv",
            *(f"{place}.columns.{name}=null" for name in absent),
        ]
    )
    store = prepare_store(settings)
    for row in range(store.num_texts("train")):
        spans = store.careers("train").title_spans(row)
        assert (spans[:, 1] - spans[:, 0] == 1).all()
    plan = plan_training(store, settings, world_size=1)
    steps_per_epoch = -(-store.num_people("train") // 32)
    assert (plan.num_epochs, plan.num_steps) == (40, 40 * steps_per_epoch)
    assert f"{40 * steps_per_epoch} steps of 32 careers (40 epochs)" in describe_plan(settings, plan, 1, 1)
