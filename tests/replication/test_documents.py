"""Documents as Markdown and as PDF."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

from laborllm_dist.replication.documents import Block, Bullets, Code, Heading, Paragraph, Table, to_markdown, write_pdf

DOCUMENT: list[Block] = [
    Heading("A *title* | <b>", 1),
    Paragraph("Text with [brackets] and a\nbreak."),
    Bullets(("one", "two & three")),
    Code("a line\n```\nanother"),
    Table(("name", "value"), (("a|b", "1"), ("Pr\u00e9vert \u4e2d", "2"))),
]


def test_markdown_shows_texts_as_they_stand() -> None:
    assert to_markdown(DOCUMENT) == (
        "# A \\*title\\* \\| &lt;b&gt;\n"
        "\n"
        "Text with \\[brackets\\] and a\\\\nbreak.\n"
        "\n"
        "- one\n- two &amp; three\n"
        "\n"
        "````\na line\n```\nanother\n````\n"
        "\n"
        "| name | value |\n| --- | --- |\n| a\\|b | 1 |\n| Pr\u00e9vert \u4e2d | 2 |\n"
    )


def test_a_pdf_is_the_same_bytes_again_and_embeds_its_fonts(tmp_path: Path) -> None:
    write_pdf(DOCUMENT, tmp_path / "one.pdf")
    write_pdf(DOCUMENT, tmp_path / "two.pdf")
    content = (tmp_path / "one.pdf").read_bytes()
    assert content.startswith(b"%PDF") and content == (tmp_path / "two.pdf").read_bytes()
    assert content.count(b"/FontFile2") == 3  # text, bold, code
    pages = [
        zlib.decompressobj().decompress(each) for each in re.findall(rb"stream\r?\n(x.*?)endstream", content, re.S)
    ]
    assert sum(page.count(b" Tj") + page.count(b" TJ") for page in pages) >= 10  # lines and cells of text
