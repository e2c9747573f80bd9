"""Documents of headings, paragraphs, lists, tables and commands, written as Markdown and as PDF."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeAlias

from laborllm_dist.plain_text import markdown_text, visible

BODY_POINTS, HEADING_POINTS, CODE_POINTS, LINE_MM = 10, (18, 14, 12), 8, 5
FONTS = {"": "DejaVuSans.ttf", "B": "DejaVuSans-Bold.ttf"}
NARROWEST, WIDEST = 10, 60  # letters of a column, which share the width of the page
# A PDF holds the time when it was made; the same content must give the same bytes.
NO_TIME = datetime(2000, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Text."""

    text: str


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Commands or a listing of files, line for line."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table; every row has as many cells as there are columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Block: TypeAlias = Heading | Paragraph | Bullets | Code | Table


def to_markdown(blocks: Sequence[Block]) -> str:
    """Return a document as Markdown; nothing in its texts is read as markup."""
    return "\n".join(map(_markdown_of, blocks))


def _markdown_of(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {markdown_text(text)}\n"
        case Paragraph(text):
            return f"{markdown_text(text)}\n"
        case Bullets(items):
            return "".join(f"- {markdown_text(item)}\n" for item in items)
        case Code(text):
            longest = max((len(run) for run in re.findall("`+", text)), default=0)
            fence = "`" * max(3, longest + 1)
            return f"{fence}\n{text}\n{fence}\n"
        case Table(columns, rows):
            lines = [_cells(columns), "| --- " * len(columns) + "|", *map(_cells, rows)]
            return "\n".join(lines) + "\n"


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(markdown_text, cells))} |"


def write_pdf(blocks: Sequence[Block], path: Path) -> None:
    """Write a document as PDF (A4) with embedded fonts; the same blocks give the same bytes."""
    import matplotlib
    from fpdf import FPDF
    from fpdf.fonts import FontFace

    pdf = FPDF()
    pdf.set_creation_date(NO_TIME)
    fonts = Path(matplotlib.get_data_path()) / "fonts/ttf"
    for style, file in FONTS.items():
        pdf.add_font("text", style, fonts / file)
    pdf.add_font("code", "", fonts / "DejaVuSansMono.ttf")
    pdf.add_page()
    for block in blocks:
        pdf.set_font("text", "", BODY_POINTS)
        match block:
            case Heading(text, level):
                pdf.ln(LINE_MM / 2)
                pdf.set_font("text", "B", HEADING_POINTS[min(level, len(HEADING_POINTS)) - 1])
                pdf.multi_cell(0, LINE_MM * 1.5, visible(text), align="L", new_x="LMARGIN", new_y="NEXT")
            case Paragraph(text):
                pdf.multi_cell(0, LINE_MM, visible(text), align="L", new_x="LMARGIN", new_y="NEXT")
            case Bullets(items):
                for item in items:
                    pdf.multi_cell(0, LINE_MM, f"\N{BULLET} {visible(item)}", align="L", new_x="LMARGIN", new_y="NEXT")
            case Code(text):
                pdf.set_font("code", "", CODE_POINTS)
                shown = "\n".join(map(visible, text.split("\n")))
                pdf.multi_cell(0, LINE_MM * 0.8, shown, align="L", new_x="LMARGIN", new_y="NEXT")
            case Table(columns, rows):
                pdf.set_font("text", "", CODE_POINTS)
                widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
                with pdf.table(
                    text_align="LEFT",
                    headings_style=FontFace(emphasis="BOLD"),
                    line_height=LINE_MM * 0.9,
                    col_widths=tuple(min(max(width, NARROWEST), WIDEST) for width in widths),
                ) as table:
                    for cells in (columns, *rows):
                        table.row([visible(cell) for cell in cells])
        pdf.ln(LINE_MM / 2)
    pdf.output(str(path))
