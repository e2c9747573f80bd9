"""A model that is worse than the uniform distribution over titles, or than titles' shares, is warned of in one line."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import pytest
from helpers.runs import settings_of

from laborllm_dist.config.run import RunSettings
from laborllm_dist.store.build import prepare_store
from laborllm_dist.store.naive_perplexity import WithoutModel, score_without_model, warning_if_no_better
from laborllm_dist.store.store import TokenStore
from laborllm_dist.training.state import INITIAL_STATE, state_from_values
from laborllm_dist.training.train import warn_if_no_better

FIVE = WithoutModel(num_titles=5, uniform=math.log(5), marginal=math.log(4.1))


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSettings, TokenStore]:
    """Prepare forty people with three titles: "Cooks" for three years in four."""
    folder = tmp_path_factory.mktemp("panel")
    lines = [f"{person},{1990 + year},{(person + year) % 4 // 3}" for person in range(40) for year in range(3)]
    (folder / "careers.csv").write_text("person,year,occupation\n" + "\n".join(lines) + "\n")
    (folder / "titles.csv").write_text("code,title\n0,Cooks\n1,Bakers\n2,Waiters\n")
    of_panel = "data.corpora.long_panel"
    absent = ("birth_year", "gender", "ethnicity", "region", "education")
    settings = settings_of(
        [
            "data=long_panel",
            f"store.root={folder}/stores",
            f"{of_panel}.path={folder}/careers.csv",
            f"{of_panel}.vocabulary.path={folder}/titles.csv",
            *(f"{of_panel}.columns.{name}=null" for name in absent),
            "tokenizer.vocabulary_size=300",
        ]
    )
    return settings, prepare_store(settings)


def test_what_needs_no_model_is_scored_one_observation_at_a_time(panel: tuple[RunSettings, TokenStore]) -> None:
    settings, store = panel
    observed = {
        split: [job.occupation for row in range(len(rows)) for job in rows.history(row).jobs]
        for split in ("train", "validation")
        for rows in [store.careers(split)]  # type: ignore[arg-type]
    }
    counts = Counter(observed["train"])
    total = len(observed["train"]) + 3  # each title is counted once more, that which nobody has too
    marginal = -sum(math.log((counts[code] + 1) / total) for code in observed["validation"])
    others = score_without_model(store, store.careers("validation"), settings)
    assert others.num_titles == 3
    assert others.uniform == pytest.approx(math.log(3), rel=1e-12)
    assert others.marginal == pytest.approx(marginal / len(observed["validation"]), rel=1e-12)


@pytest.mark.parametrize(
    ("perplexity", "warning_text"),
    [
        (4.0, None),
        (4.5, "worse than the marginal distribution: perplexity 4.500 (uniform over 5 titles 5.000, their shares in "),
        (63.0, "worse than the uniform and the marginal distributions: perplexity 63.00 (uniform over 5 titles 5.000"),
        (12_345.0, "perplexity 12,345 (uniform"),
        (1e300, "perplexity 1.0e300 (uniform"),
    ],
)
def test_the_warning_by_hand(perplexity: float, warning_text: str | None) -> None:
    warning = warning_if_no_better("mine", "test", math.log(perplexity), FIVE)
    assert warning is None if warning_text is None else warning_text in (warning or "")
    assert "\n" not in (warning or "")


def test_a_loss_whose_exponential_no_float_holds_has_its_perplexity_too() -> None:
    assert "perplexity 1.0e1000 (" in (warning_if_no_better("mine", "test", 1000 * math.log(10) + 1e-9, FIVE) or "")


def test_a_model_as_good_as_both_is_not_warned_of_and_one_may_be_worse_than_uniform_alone() -> None:
    assert warning_if_no_better("mine", "test", FIVE.marginal, FIVE) is None
    rare = WithoutModel(num_titles=5, uniform=math.log(5), marginal=math.log(9))
    assert "worse than the uniform distribution:" in (warning_if_no_better("mine", "test", math.log(6), rare) or "")


@pytest.mark.parametrize("best_by", ["title", "token"])
def test_a_training_warns_once_of_its_best_weights(
    best_by: str, panel: tuple[RunSettings, TokenStore], capsys: pytest.CaptureFixture[str]
) -> None:
    settings, store = panel
    settings = dataclasses.replace(settings, training=dataclasses.replace(settings.training, best_by=best_by))
    worse = INITIAL_STATE.after_step(1.0, 7, 5).after_validation(0.4, math.log(63)).after_step(1.0, 7, 5)
    worse = worse.after_validation(0.5, math.log(1.1))  # better titles, but not the best weights
    warn_if_no_better(worse, store, settings)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == printed.err.count("warning:") == 1
    assert "unnamed predicts the titles of the validation people worse than the uniform and the marginal" in printed.err
    assert "perplexity 63.00 (uniform over 3 titles 3.000" in printed.err
    assert "training.epochs" in printed.err

    better = INITIAL_STATE.after_step(1.0, 7, 5).after_validation(0.4, math.log(1.1))
    warn_if_no_better(better, store, settings)
    assert capsys.readouterr().err == ""


def test_validations_of_earlier_versions_say_nothing_of_titles(
    panel: tuple[RunSettings, TokenStore], capsys: pytest.CaptureFixture[str]
) -> None:
    settings, store = panel
    values = dataclasses.asdict(INITIAL_STATE.after_step(1.0, 7, 5).after_validation(99.0))
    values["validations"] = [{"step": 1, "loss": 99.0}]
    warn_if_no_better(state_from_values(values), store, settings)
    assert capsys.readouterr().err == ""
