"""Folders that are written as a whole: what is replaced, and what is not."""

from __future__ import annotations

from pathlib import Path

from helpers.errors import raises

from laborllm_dist.io.recorded_folder import RECORD, is_whole, read_record, replacing_folder, with_mark


def write(folder: Path, content: str) -> None:
    with replacing_folder(folder, {"run": "r"}, "move it away") as partial:
        (partial / "README.md").write_text(with_mark(f"# A card\n{content}"))
        (partial / "config.json").write_text(content)


def test_a_card_is_replaced_until_somebody_edits_it(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    write(folder, "one")
    write(folder, "two")
    (folder / RECORD).write_text("{")  # the card tells by itself
    write(folder, "three")
    card = folder / "README.md"
    card.write_text(card.read_text().replace("three", "of ours"))
    record = read_record(folder)
    assert record is not None and is_whole(folder, record)  # an edited card is no damage
    with raises("foreign-file/foreign-file-in-folder", "README.md"):
        write(folder, "four")
    assert "of ours" in card.read_text()
