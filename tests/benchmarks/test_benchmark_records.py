"""Records of benchmarks: the spread of repeats, files, tables, and the page of the manual that is made from them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import records
from records import Record, RecordFile, Spread, filled, goal, markdown_table, newest, print_table, summaries


@pytest.fixture
def file(tmp_path: Path) -> RecordFile:
    return RecordFile.begin("speed", "Speed", tmp_path)


def test_a_spread_is_the_smallest_the_middle_and_the_largest() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(1.0, 3.0, 10.0, 3)
    assert Spread.of([4.0, 1.0, 2.0, 10.0]) == Spread(1.0, 3.0, 10.0, 4)  # the middle of two is their mean
    assert str(Spread.of([3.0, 1.0, 10.0])) == "3 (1 to 10)"
    assert str(Spread.of([2.5])) == "2.5"


def test_repeats_of_a_subject_are_one_summary() -> None:
    first, other, last = (
        Record("training", "ZeRO-2", "passed", {"tokens": 10.0}, "cold", load=1.0),
        Record("training", "ZeRO-3", numbers={"tokens": 7.0}),
        Record("training", "ZeRO-2", "missed", {"tokens": 30.0, "GiB": 2.0}, load=3.0),
    )
    zero_2, zero_3 = summaries([first, other, last])
    assert (zero_2.subject, zero_2.outcome, zero_2.note) == ("ZeRO-2", "missed", None)
    assert zero_2.numbers == {"tokens": Spread(10.0, 20.0, 30.0, 2), "GiB": Spread(2.0, 2.0, 2.0, 1)}
    assert zero_2.load == Spread(1.0, 2.0, 3.0, 2)
    assert zero_3.load is None


def test_a_repeat_that_failed_is_not_hidden_by_a_later_one_that_passed() -> None:
    repeats = [
        Record("kills", "optimizer", "passed"),
        Record("kills", "optimizer", "failed", note="step 3 differs"),
        Record("kills", "optimizer", "passed", note="all the same"),
        Record("kills", "data", "measured"),
        Record("kills", "data", "skipped", note="not installed"),
    ]
    assert [(each.subject, each.outcome, each.note) for each in summaries(repeats)] == [
        ("optimizer", "failed", "step 3 differs"), ("data", "skipped", "not installed")
    ]  # fmt: skip


def test_a_file_says_where_and_how_and_holds_every_repeat_and_the_spread(file: RecordFile) -> None:
    for tokens in (10.0, 30.0, 11.0):
        file.add(Record("training", "ZeRO-2", numbers={"tokens": tokens}))
    content = json.loads(file.path.read_text())
    assert content["environment"].keys() == {"started", "command", "commit", "hardware", "versions"}
    assert "torch" in content["environment"]["versions"]
    assert [record["numbers"]["tokens"] for record in content["records"]] == [10.0, 30.0, 11.0]
    assert all(record["load"] >= 0 for record in content["records"])
    (summary,) = content["summaries"]
    assert summary["numbers"]["tokens"] == {"min": 10.0, "median": 11.0, "max": 30.0, "repeats": 3}


def test_a_second_start_on_a_day_leaves_the_file_of_the_first(file: RecordFile, tmp_path: Path) -> None:
    file.add(Record("training", "x", numbers={"tokens": 1.0}))
    second = RecordFile.begin("speed", "Speed", tmp_path)
    assert second.path != file.path
    assert len(file.read()[2]) == 1
    assert newest("speed", tmp_path) == second
    assert newest("memory", tmp_path) is None


def test_the_newest_result_is_of_the_last_day_then_of_the_last_start(tmp_path: Path) -> None:
    for name in ("2026-11-29-a", "2026-11-29-a.2", "2026-11-29-a.10", "2026-11-28-a.11", "2026-12-30-a-b"):
        (tmp_path / f"{name}.json").write_text("{}")
    assert newest("a", tmp_path) == RecordFile(tmp_path / "2026-11-29-a.10.json")


def test_a_table_has_a_column_for_each_number_and_one_for_outcomes_that_differ() -> None:
    rows = [
        Record("training", "a | b", "passed", {"tokens_per_second": 1234.5}, load=2.0),
        Record("training", "c", "skipped", note="not installed"),
        Record("evaluation", "d", numbers={"x": 1.0}),
    ]
    assert markdown_table(rows, "training").splitlines() == [
        "| training | tokens per second | outcome | load | note |",
        "|---|---|---|---|---|",
        "| a / b | 1,234 | passed | 2 |  |",
        "| c |  | skipped |  | not installed |",
    ]
    assert markdown_table(rows, "evaluation").splitlines() == ["| evaluation | x |", "|---|---|", "| d | 1 |"]


def test_a_goal_is_met_by_the_median_of_the_ratios(file: RecordFile) -> None:
    goal(file, "training / Trainer", [1.4, 1.6, 9.0], least=1.5)
    goal(file, "training / SFTTrainer", [9.0, 1.0, 1.0], least=1.05)
    assert [(each.subject, each.outcome) for each in summaries(file.read()[2])] == [
        ("training / Trainer", "passed"), ("training / SFTTrainer", "missed")
    ]  # fmt: skip


def test_a_page_is_filled_with_the_tables_of_the_newest_results(file: RecordFile, tmp_path: Path) -> None:
    file.add(Record("ZeRO stage", "2", numbers={"tokens": 5.0}))
    begin = records.BEGIN.format(name="speed/ZeRO stage")
    page = f"before\n\n{begin}\nold\n{records.END}\n\nafter"
    made = filled(page, tmp_path)
    assert made.startswith(f"before\n\n{begin}\n\n| ZeRO stage | tokens | load |")
    assert file.path.name in made
    assert "old" not in made
    assert made.endswith(f"{records.END}\n\nafter")
    assert filled(made, tmp_path) == made
    for missing in ("memory/goals", "speed/goals"):  # no such file, no such part in it
        assert "Goals: not measured." in filled(page.replace("speed/ZeRO stage", missing), tmp_path)


def test_the_page_of_the_manual_is_that_of_the_results() -> None:
    page = records.PAGE.read_text(encoding="utf-8")
    assert page.count(records.END) >= 8
    assert filled(page) == page


@pytest.mark.parametrize("path", sorted(records.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_markdown_of_a_result_and_its_summaries_are_those_of_its_records(path: Path) -> None:
    file = RecordFile(path)
    assert path.with_suffix(".md").read_text(encoding="utf-8") == file.markdown()
    for summary in json.loads(path.read_text(encoding="utf-8"))["summaries"]:
        for name, spread in summary["numbers"].items():
            repeats = sorted(
                record.numbers[name]
                for record in file.read()[2]
                if (record.part, record.subject) == (summary["part"], summary["subject"]) and name in record.numbers
            )
            middle = len(repeats) // 2
            median = repeats[middle] if len(repeats) % 2 else (repeats[middle - 1] + repeats[middle]) / 2
            assert (spread["min"], spread["max"], spread["repeats"]) == (repeats[0], repeats[-1], len(repeats))
            assert math.isclose(spread["median"], median)


@pytest.mark.parametrize(("value", "text"), [(12.0, "12"), (0.43219, "0.4322"), (41234.5, "41,234"), (1e-5, "1e-05")])
def test_numbers_are_written_short(value: float, text: str, capsys, file: RecordFile) -> None:
    file.add(Record("a", "b", "measured", {"tokens_per_second": value}))
    assert f"tokens per second {text}" in capsys.readouterr().out


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_the_printed_table_is_whole_at_any_width(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: RecordFile
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    record = Record("training", "7B", "measured", {"tokens per second": 12345.0}, note="Ж" * 50 + " [x]")
    print_table("Speed", file.read()[1], summaries([record]))
    table = capsys.readouterr().out.split("Speed")[1]
    assert "12,345" in table
    assert table.count("Ж") == 50
    assert "[x]" in table
    assert max(map(len, table.splitlines())) <= width
