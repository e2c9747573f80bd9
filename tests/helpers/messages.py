"""The messages of all errors as they stand in the code: python tests/helpers/messages.py writes tests/assets/messages.txt.

A line is label, file and text; what a message fills in is in braces. Words can be improved without a change of tests:
these look at the label, and the list shows in review what users will read.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from laborllm_dist import errors

PROJECT = Path(__file__).resolve().parents[2]
SNAPSHOT = PROJECT / "tests" / "assets" / "messages.txt"
CLASSES = {
    name for name, each in vars(errors).items() if isinstance(each, type) and issubclass(each, errors.LaborError)
}
# Raised with the text of another error, or without one.
WITHOUT_TEXT = {"PeerFailedError", "OutputClosedError"}


@dataclass(frozen=True, slots=True)
class Message:
    """One place where an error is made."""

    kind: str
    code: str | None
    file: str
    line: int
    text: str

    @property
    def label(self) -> str:
        """The label that users see."""
        return getattr(errors, self.kind)(code=self.code or "").label


def messages() -> list[Message]:
    """Return all errors that the package makes, by label."""
    all_messages = [message for path in sorted((PROJECT / "laborllm_dist").rglob("*.py")) for message in _of_file(path)]
    return sorted(all_messages, key=lambda message: (message.label, message.file, message.text))


def _of_file(path: Path) -> Iterator[Message]:
    for node in ast.walk(ast.parse(path.read_text())):
        name = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Call) and name in CLASSES - WITHOUT_TEXT:
            codes = [word.value for word in node.keywords if word.arg == "code"]
            code = codes[0].value if codes and isinstance(codes[0], ast.Constant) else None
            text = _text_of(node.args[0]) if node.args else ""
            yield Message(name, code, str(path.relative_to(PROJECT / "laborllm_dist")), node.lineno, text)


def _text_of(node: ast.expr) -> str:
    """Return a text with what is filled in as {...}, whether it is one text, several or a choice of two."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            f"{{{ast.unparse(part.value)}}}" if isinstance(part, ast.FormattedValue) else _text_of(part)
            for part in node.values
        )
    if isinstance(node, ast.BinOp):
        return _text_of(node.left) + _text_of(node.right)
    return f"{{{ast.unparse(node)}}}"


def snapshot() -> str:
    """Return the content of the list."""
    lines = [f"{message.label}  {message.file}\n    {_one_line(message.text)}\n" for message in messages()]
    return "".join(lines)


def _one_line(text: str) -> str:
    return re.sub(r"\s*\n\s*", " / ", text)


if __name__ == "__main__":
    SNAPSHOT.write_text(snapshot(), encoding="utf-8")
