"""What the fuzzers share: how files and values are damaged, what may come of it, how many cases there were.

A case is one damaged file, value or text that is given to the functions behind a command. What may come of it is a
result, which the test compares with an independent one, or an error of this software in the form that a command
prints. Anything else fails: another exception, more than SECONDS for a case, more than 2 GiB on top of what the
process had. Cases are the same in every run. FUZZ_EFFORT=10 makes ten times as many, other ones each time (or those
of --hypothesis-seed).
"""

from __future__ import annotations

import functools
import os
import resource
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st

from laborllm_dist.errors import LaborError

Result = TypeVar("Result")
EFFORT = int(os.environ.get("FUZZ_EFFORT", "1"))
SECONDS, BYTES = 30, 2 << 30  # that a case may take
LONGEST_LINE, MOST_LINES = 2_500, 13  # of a refusal: a line a problem, ten of them, heading and advice
# Cases of the files that use this; test_fuzz_settings.py sees to it that they are enough.
FEWEST_CASES = {
    "test_fuzz_settings": 740,
    "test_fuzz_tables": 2250,
    "test_fuzz_surveys": 650,
    "test_fuzz_stores": 1260,
    "test_fuzz_models": 730,
}
CASES: Counter[str] = Counter()


def contents_of(write: Callable[[Path], object]) -> dict[str, bytes]:
    """Return the files that a function writes into a folder, by name: many cases then begin with them."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def write_contents(folder: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def fuzz(number: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a test of hypothesis to try so many cases, and count them."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def counted(*arguments: Any, **named: Any) -> None:
            test(*arguments, **named)
            CASES[test.__module__] += 1

        return settings(
            max_examples=number * EFFORT,
            derandomize=EFFORT == 1,
            database=None,
            deadline=timedelta(seconds=SECONDS),
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )(counted)

    return decorate


def check_number_of_cases(request: pytest.FixtureRequest) -> None:
    """Refuse that a file has tried fewer cases than it says; its last test calls this."""
    name = request.module.__name__
    names = {each for each in vars(request.module) if each.startswith("test_")}
    if names > {item.originalname for item in request.session.items if item.module is request.module}:
        pytest.skip("not all tests of the file were run")
    print(f"{name}: {CASES[name]:,} cases")
    assert CASES[name] >= FEWEST_CASES[name]


@contextmanager
def limited_memory() -> Iterator[None]:
    """Let the process take no more than BYTES on top of the memory that it has."""
    held = next(
        int(line.split()[1]) << 10
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmData:")
    )
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (held + BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@dataclass(frozen=True)
class Rejection:
    """An error of this software."""

    kind: type[LaborError]
    text: str


def outcome(work: Callable[[], Result]) -> Result | Rejection:
    """Return what work gives, or its refusal, which must be one clear line (or a line a problem)."""
    try:
        result = work()
    except LaborError as error:
        check_message(str(error))
        event("refused")  # shown by --hypothesis-show-statistics
        return Rejection(type(error), str(error))
    event("accepted")
    return result


def check_message(text: str) -> None:
    """Refuse a message that is empty, long, or could break a terminal: one line, then indented ones for problems."""
    first, *more = text.split("\n")
    assert first.strip() and len(more) < MOST_LINES, text
    for line in (first, *more):
        assert len(line) <= LONGEST_LINE, f"{len(line)} letters: {line[:300]}"
        assert not any(unicodedata.category(sign) in ("Cc", "Zl", "Zp") for sign in line), repr(line)
    assert all(line.startswith("  ") for line in more), text


# ---------------------------------------------------------------------------------------------------- what is damaged

TEXTS = (
    "", " ", "\t", "\n", "\r", "\0", "\x1b[31m", "\u2028", "\u00a0", "\ufeff", "\ud800", "\u0663", "\U0001f600", '"',
    "'", ",", ";", "\\", "/", "{", "}", "[", "]", "null", "None", "nan", "NaN", "inf", "-inf", "true", "-", "+", ".",
    "0", "-0", "-1", "1.5", "1e5", "1e+05", "1e400", "12.0", "0x10", "007", "1_000", "1,000", "9" * 30, "9" * 5000,
    "x" * 3000, "[bold]", "[/x]", "$x_1$", "{}", "%s", "{title}", "=1+1", "../x", "a\nb", "<script>", "\u4e2d\u6587",
)  # fmt: skip
NUMBERS = (
    0, -1, 1, 2, 3, 255, 65_536, 100_000, 2**31 - 1, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.0, -0.0, 0.5, 1.5,
    1e-300, 1e300, -1e300, 1e15, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip


def nested(depth: int, *, as_objects: bool) -> Any:
    """Return lists or objects in each other."""
    value: Any = None
    for _ in range(depth):
        value = {"x": value} if as_objects else [value]
    return value


def hostile_values() -> st.SearchStrategy[Any]:
    """Return values of JSON that nobody expects."""
    return st.one_of(
        st.sampled_from((None, True, False)),
        st.sampled_from(NUMBERS),
        st.sampled_from(TEXTS),
        st.sampled_from(([], {}, [None], [[]], [{}], {"": None}, {"x": 1}, [1, "x"], ["x"] * 1000)),
        st.builds(nested, st.sampled_from((3, 50)), as_objects=st.booleans()),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
    )


def places_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in a tree of dicts and lists, the tree's own first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for name, each in inner for place in places_of(each, (*path, name)))]


def changed_value(tree: Any, path: tuple[Any, ...]) -> Any:
    """Return the value at a path."""
    for name in path:
        tree = tree[name]
    return tree


GONE = object()


def changed_at(tree: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """Return a tree with another value at a path; change may return GONE, to leave it out. A path may be gone itself."""
    if not path:
        return change(tree)
    name, *rest = path
    is_there = name in tree if isinstance(tree, dict) else isinstance(tree, list) and name in range(len(tree))
    if not is_there:
        return tree
    inner = changed_at(tree[name], tuple(rest), change)
    if isinstance(tree, dict):
        return {key: each for key, each in {**tree, name: inner}.items() if each is not GONE}
    return [each for each in [*tree[:name], inner, *tree[name + 1 :]] if each is not GONE]


def damaged_trees(tree: Any) -> st.SearchStrategy[Any]:
    """Return trees like one of JSON, with one to three values replaced, left out, wrapped, moved or with new names."""
    paths = places_of(tree)
    change = st.one_of(
        st.builds(lambda value: lambda _: value, hostile_values()),
        st.builds(lambda value: lambda _: value, hostile_values()),
        st.builds(lambda path: lambda _: changed_value(tree, path), st.sampled_from(paths)),
        st.builds(
            lambda name, value: lambda old: {**old, name: value} if isinstance(old, dict) else GONE,
            st.sampled_from(TEXTS),
            hostile_values(),
        ),
        st.sampled_from((lambda _: GONE, lambda old: [old], lambda old: str(old)[:3000])),
    )

    def changed(changes: list[tuple[tuple[Any, ...], Callable[[Any], Any]]]) -> Any:
        node = tree
        for path, each in changes:
            value = changed_at(node, path, each)
            node = {} if value is GONE else value
        return node

    number = st.sampled_from((1, 1, 1, 2, 3))
    return number.flatmap(
        lambda size: st.lists(st.tuples(st.sampled_from(paths), change), min_size=size, max_size=size)
    ).map(changed)


@st.composite
def damaged_bytes(
    draw: st.DrawFn, content: bytes, *, tokens: tuple[str, ...] = TEXTS, part: tuple[bytes, bytes] | None = None
) -> bytes:
    """Return a file with bits flipped, bytes lost, doubled or moved, or a text in another's place.

    Args:
        draw: of hypothesis.
        content: of the file.
        tokens: the texts that are put in.
        part: begin and end of the part that is damaged; None: all of it.
    """
    if part is not None:
        begin = content.index(part[0])
        end = content.index(part[1], begin) + len(part[1])
        return content[:begin] + draw(damaged_bytes(content[begin:end], tokens=tokens)) + content[end:]
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        if not content:
            return content
        at = draw(st.integers(0, len(content) - 1))
        size = draw(st.sampled_from((1, 1, 1, 2, 3, 8, 100)))
        match draw(st.sampled_from(("flip", "flip", "byte", "cut", "lose", "double", "insert", "replace", "move"))):
            case "flip":
                bit = draw(st.integers(0, 7))
                content = content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
            case "byte":
                content = content[:at] + bytes([draw(st.integers(0, 255))]) + content[at + 1 :]
            case "cut":
                content = content[:at]
            case "lose":
                content = content[:at] + content[at + size :]
            case "double":
                content = content[: at + size] + content[at:]
            case "insert":
                content = content[:at] + as_bytes(draw(st.sampled_from(tokens))) + content[at:]
            case "replace":
                content = content[:at] + as_bytes(draw(st.sampled_from(tokens))) + content[at + size :]
            case "move":
                to = draw(st.integers(0, len(content) - 1))
                moved, rest = content[at : at + size], content[:at] + content[at + size :]
                content = rest[:to] + moved + rest[to:]
    return content


def as_bytes(text: str) -> bytes:
    """Return a text as UTF-8, half characters included."""
    return text.encode("utf-8", "surrogatepass")
