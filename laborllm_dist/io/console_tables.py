"""Tables that fit any width: where there is no room, names fold, bars go, and at last every row becomes a list.

A number is never cut and never broken, and every letter of a name is shown, whatever the terminal's width: rich alone
would cut what does not fit, so that 46.4 % becomes 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rich.box import Box
from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from laborllm_dist.io.console import CONTROLS
from laborllm_dist.plain_text import ESCAPES

Cell: TypeAlias = "str | Text"
LEAST_NAME_WIDTH = 12  # of a column of names, before it becomes a list
ONE_LINE = ESCAPES  # of a text in a cell; a cell of several lines is a `Text`


@dataclass(frozen=True, slots=True)
class Column:
    """A column: `name`: texts that may fold; `number`: never broken; `bar`: left out where there is no room."""

    heading: str
    kind: Literal["name", "number", "bar"]
    style: str = ""
    usual_width: int = 0  # where there is room


@dataclass(frozen=True, slots=True)
class Row:
    """A row of cells; `begins_section`: a little apart from the one before."""

    cells: tuple[Text, ...]
    style: str
    begins_section: bool


class FoldingTable:
    """A table that rich prints at any width."""

    def __init__(self, columns: Sequence[Column], *, title: str, box: Box | None, gap: int = 1) -> None:
        """Make a table without rows; `gap`: blanks after a cell."""
        self._columns, self._title, self._box, self._gap = tuple(columns), title.translate(ONE_LINE), box, gap
        self._rows: list[Row] = []
        self._section_begins = False
        self.caption = ""

    def add_row(self, *cells: Cell, style: str = "") -> None:
        """Add a row, a cell for each column; only a `Text` may have several lines."""
        texts = tuple(Text(cell.translate(ONE_LINE)) if isinstance(cell, str) else _seen(cell) for cell in cells)
        self._rows.append(Row(texts, style, self._section_begins))
        self._section_begins = False

    def add_section(self) -> None:
        """Set the next row a little apart."""
        self._section_begins = bool(self._rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the first form that fits."""
        room = options.max_width
        for with_bars, is_stacked in ((True, False), (False, False), (False, True)):
            places = [at for at, column in enumerate(self._columns) if with_bars or column.kind != "bar"]
            headings = [_stacked(self._columns[at].heading, is_stacked) for at in places]
            widths = self._widths(places, headings, room)
            if widths is not None:
                yield self._table(places, headings, widths)
                return
        yield from self._lines(console, max(room, 2))

    def _widths(self, places: Sequence[int], headings: Sequence[str], room: int) -> list[int] | None:
        """Return the width of each column; None if there is no room for all."""
        ideal, widths = [], []
        for at, heading in zip(places, headings, strict=True):
            cells = [row.cells[at].plain for row in self._rows]
            longest = max((cell_len(line) for cell in cells for line in cell.splitlines()), default=0)
            head = max(map(cell_len, heading.splitlines()), default=0)
            is_name = self._columns[at].kind == "name"
            ideal.append(max(longest, head, self._columns[at].usual_width))
            widths.append(max(min(longest, LEAST_NAME_WIDTH), head) if is_name else max(longest, head))
        # A box has an edge on both sides and a line between columns; without one, nothing follows the last cell.
        between = len(places) * self._gap + (len(places) + 1 if self._box is not None else -self._gap)
        spare = room - between - sum(widths)
        if spare < 0:
            return None
        for _ in range(min(spare, sum(ideal) - sum(widths))):
            at = max(range(len(places)), key=lambda place: ideal[place] - widths[place])
            widths[at] += 1
        return widths

    def _table(self, places: Sequence[int], headings: Sequence[str], widths: Sequence[int]) -> Table:
        table = Table(
            box=self._box, padding=(0, self._gap, 0, 0), pad_edge=self._box is not None,
            title=Text(self._title), title_justify="left",
            caption=Text(self.caption) if self.caption else None, caption_justify="left",
        )  # fmt: skip
        for at, heading, width in zip(places, headings, widths, strict=True):
            column = self._columns[at]
            justify: Literal["left", "right"] = "right" if column.kind == "number" else "left"
            table.add_column(Text(heading), width=width, overflow="fold", justify=justify, style=column.style)
        for row in self._rows:
            if row.begins_section:
                table.add_section()
            table.add_row(*(row.cells[at] for at in places), style=row.style)
        return table

    def _lines(self, console: Console, room: int) -> Iterator[Text]:
        """Yield the lines of a list: of each row its names, then its numbers, each after its column's heading."""
        yield from Text(self._title, style="table.title").wrap(console, room, overflow="fold")
        for row in self._rows:
            if row.begins_section:
                yield Text()
            pairs = zip(self._columns, row.cells, strict=True)
            cells = [(column, cell) for column, cell in pairs if cell.plain.strip()]
            head = Text("  ").join(_on_one_line(cell) for column, cell in cells if _heads(column))
            yield from head.wrap(console, room, overflow="fold")
            for column, cell in cells:
                if column.kind == "number" and not _heads(column):
                    yield from _fact(" ".join(column.heading.split("\n")), cell.plain, room)
        if self.caption:
            yield from Text(self.caption).wrap(console, room, overflow="fold")


def _heads(column: Column) -> bool:
    """Return whether a column's cells stand in the line that heads a row's list: names, and numbers without a name."""
    return column.kind == "name" or (column.kind == "number" and not column.heading)


def _fact(heading: str, value: str, room: int) -> Iterator[Text]:
    """Yield a number after its heading, or below it; only one that is wider than the terminal goes over its edge."""
    if 4 + cell_len(heading) + cell_len(value) <= room:
        yield Text(f"  {heading}  {value}")
        return
    for text, indent in ((heading, "  "), (value, "    ")):
        fits = len(indent) + cell_len(text) <= room
        yield from map(Text, [indent + text] if fits else chop_cells(text, room))


def _seen(cell: Text) -> Text:
    return Text(cell.plain.translate(CONTROLS), style=cell.style)


def _on_one_line(cell: Text) -> Text:
    return Text(" ".join(cell.plain.splitlines()), style=cell.style)


def _stacked(heading: str, is_stacked: bool) -> str:
    return heading.replace(" (", "\n(") if is_stacked else heading
