r"""Names are text, whatever is in them: titles, people, models, groups and paths, wherever they are shown.

What a name holds may mean something where it is shown: an escape code to a terminal, a vertical bar to a table in
Markdown, an equals sign to a spreadsheet. Each kind of output has one function here (a page in HTML escapes by itself),
so that a reader sees the characters and nothing obeys them. A character that cannot be seen, or that changes the order
of others, is shown as its escape: a line break as \n.
"""

from __future__ import annotations

import html
import re

_ORDER = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))  # characters that turn the direction of those after them
_UNSEEN = (
    *range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0xFEFF, *range(0xFFF9, 0xFFFC),
    *range(0xD800, 0xE000),  # of names of files that are not UTF-8
)  # fmt: skip
ESCAPES = {code: chr(code).encode("unicode_escape").decode("ascii") for code in sorted({*_UNSEEN, *_ORDER})}
# What Markdown reads as a mark: an underscore between letters, as in a setting's name, is none.
_MARKS = re.compile(r"[\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<!\S)#")
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}",
    "\N{MINUS SIGN}": "$-$", "\N{NO-BREAK SPACE}": "~", "\N{EN DASH}": "--",
}  # fmt: skip
# What a spreadsheet takes for a formula, in the wide forms of East Asian keyboards too; numbers are none.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def visible(text: str) -> str:
    """Return a text on one line, with escapes in the place of characters that cannot be seen."""
    return text.translate(ESCAPES)


def markdown_text(text: str) -> str:
    """Return a text that Markdown shows as it stands, in a line or a table's cell; nothing in it is read as HTML."""
    return _MARKS.sub(r"\\\g<0>", html.escape(visible(text), quote=False))


def markdown_code(text: str) -> str:
    """Return a text as code in Markdown, between more backticks than it has in a row."""
    text = visible(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    blank = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{blank}{text}{blank}{fence}"


def latex_text(text: str) -> str:
    """Return a text that LaTeX sets as it stands, in a line or a table's cell; nothing in it is read as a command."""
    return "".join(_LATEX.get(character, character) for character in visible(text))


def sheet_cell(text: str) -> str:
    """Return a text as a CSV's cell that no spreadsheet takes for a formula: with an apostrophe before it."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def from_sheet_cell(cell: str) -> str:
    """Return the text that `sheet_cell` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
