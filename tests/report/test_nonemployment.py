"""The states without an occupation are found by code, by title in the token store, and by a run's own settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.processes import PROJECT

from laborllm_dist.careers.occupations.vocabulary import write_vocabulary
from laborllm_dist.careers.readers.synthetic.titles import STATE_CODES
from laborllm_dist.careers.types import OccupationVocabulary
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.data import TitleSettings
from laborllm_dist.config.evaluation import ReportSettings, StateWords
from laborllm_dist.config.reader import settings_to_values
from laborllm_dist.config.run import RunSettings
from laborllm_dist.report.nonemployment import LaborStates, find_states
from laborllm_dist.text.title_variants import display_vocabulary

WORDS = compose_settings(ReportSettings, "report", ["runs=[x]"]).states


@pytest.mark.parametrize(
    "codes",
    [("unemployed", "not_in_labor_force", "not_working", "education"), STATE_CODES],
    ids=["occ1990dd", "synthetic market"],
)
def test_states_of_the_shipped_lists_are_known_by_code(codes: tuple[str, ...]) -> None:
    states = find_states((), ("4", *codes, "889"), WORDS)
    assert states.all_codes == set(codes)
    assert "not_working" not in codes or states.not_working == ("not_working",)


def test_every_state_of_the_shipped_list_has_a_word() -> None:
    lines = (PROJECT / "laborllm_dist/careers/tables/occ1990dd.csv").read_text().splitlines()
    codes = [line.split(",")[0] for line in lines if line.endswith(",state")]
    assert set(codes) == find_states((), codes, WORDS).all_codes


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Give a run of a panel with codes of its own for states, two known by title, one by the panel's settings."""
    settings = compose_settings(
        RunSettings,
        "run",
        [
            "data=long_panel",
            "data.corpora.long_panel.status.codes.enrolled='903'",
            f"output_dir={tmp_path}",
            "name=run",
        ],
    )
    store = tmp_path / "store"
    store.mkdir()
    write_vocabulary(
        OccupationVocabulary(("1", "901", "902", "903"), ("Cooks", "UNEMPLOYED", "Out of the labor force", "Lycée")),
        store / "occupations.csv",
    )
    template = settings_to_values(settings)["template"]
    (store / "manifest.json").write_text(json.dumps({"fingerprint": "f", "identity": {"template": template}}))
    record = {
        "fingerprint": "r", "store": {"folder": str(store), "fingerprint": "f"}, "weights": None,
        "settings": settings_to_values(settings), "versions": [],
    }  # fmt: skip
    (tmp_path / "run").mkdir()
    (tmp_path / "run/settings.json").write_text(json.dumps(record))
    return tmp_path / "run"


def test_titles_and_settings_of_a_run_tell_its_own_codes(run: Path) -> None:
    states = find_states([str(run)], ("1", "901", "902", "903"), WORDS)
    assert states == LaborStates(("901",), ("902",), (), ("903",))


def test_titles_that_a_text_shows_shuffled_tell_what_they_told_before(run: Path) -> None:
    store, shuffled = run.parent / "store", TitleSettings("shuffled", None, 3)
    codes, titles = ("1", "901", "902", "903"), ("Cooks", "Unemployed", "Not in labor force", "School")
    shown = display_vocabulary(OccupationVocabulary(codes, titles), shuffled)
    assert all(one != other for one, other in zip(shown.titles, titles, strict=True))
    write_vocabulary(shown, store / "occupations.csv")
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["identity"]["template"]["titles"] = settings_to_values(shuffled)
    (store / "manifest.json").write_text(json.dumps(manifest))
    assert find_states([str(run)], codes, WORDS) == LaborStates(("901",), ("902",), (), ("903",))


def test_without_the_store_only_settings_and_codes_tell(run: Path) -> None:
    (run.parent / "store/manifest.json").unlink()
    states = find_states([str(run)], ("1", "901", "902", "903"), WORDS)
    assert states == LaborStates((), (), (), ("903",))


def test_a_folder_that_is_no_run_has_codes_alone(tmp_path: Path) -> None:
    words = StateWords(unemployed=("Arbeitslos",))
    assert find_states([str(tmp_path)], ("arbeitslos", "2"), words) == LaborStates(("arbeitslos",), (), (), ())
