"""Find fonts for names in any script: matplotlib's own has Latin, Greek, Cyrillic and Arabic letters, and few others.

A character that the first font lacks is drawn with another font of this machine that has it; where none does, its
escape stands for it, and a note says so. The character table of a font decides what it can draw.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from matplotlib.font_manager import FontEntry, fontManager
from matplotlib.ft2font import FT2Font

FIRST = "DejaVu Sans"  # comes with matplotlib
# Tried before all others, in this order: plain faces that have a script's everyday characters.
PREFERRED = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Noto Sans CJK JP", "Noto Sans JP", "Noto Sans CJK KR",
    "Noto Sans KR", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "PingFang SC", "Hiragino Sans",
    "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "SimHei", "Noto Sans Devanagari",
    "Noto Sans Thai", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Emoji", "Segoe UI Symbol", "Symbola",
    "Arial Unicode MS",
)  # fmt: skip
# Fonts whose glyphs are boxes, or differ from the characters of their codes.
_NO_LETTERS = (
    "Last Resort", "cmb10", "cmex10", "cmmi10", "cmr10", "cmss10", "cmsy10", "cmtt10", "STIXNonUnicode", "STIXSize",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Drawable:
    """Fonts for some texts, the first that has a character draws it; `undrawn` are the characters that none has."""

    families: tuple[str, ...]
    undrawn: str

    def text(self, text: str) -> str:
        """Return a text as these fonts can draw it: escapes for what none has, nothing for what is never seen."""
        return "".join(_instead(character) if character in self.undrawn else character for character in text)


def drawable(texts: Iterable[str]) -> Drawable:
    """Find fonts for all characters of some texts."""
    characters = {character for text in texts for character in text if not character.isspace()}
    families, missing = [FIRST], characters - _characters_of(_path_of(FIRST))
    for family, path in _others() if missing else ():
        if drawn := {character for character in missing if ord(character) in _codes_of(path)}:
            families.append(family)
            missing -= drawn
        if not missing:
            break
    return Drawable(tuple(families), "".join(sorted(missing)))


def note_on(undrawn: str) -> str | None:
    """Return a line with the characters that no installed font has; None if all were drawn."""
    seen = [character for character in undrawn if _instead(character)]
    if not seen:
        return None
    shown = "".join(seen[:20]) + (f" and {len(seen) - 20:,} more" if len(seen) > 20 else "")
    return (
        f"figures: no font on this machine has {shown}; escapes such as {_instead(seen[0])} stand for them. "
        "Fonts of the family Noto Sans (CJK) have most characters; install them and start the same command again"
    )


def _instead(character: str) -> str:
    # Joiners and selectors of variants change their neighbors, and have no shape of their own.
    is_unseen = unicodedata.category(character) == "Cf" or 0xFE00 <= ord(character) <= 0xFE0F
    return "" if is_unseen else character.encode("unicode_escape").decode("ascii")


def _path_of(family: str) -> str:
    entries = [entry for entry in _plain_entries() if entry.name == family]
    return entries[0].fname


def _others() -> list[tuple[str, str]]:
    """Return families and a file of each: those that are preferred first, all others by name."""
    order = {name: place for place, name in enumerate(PREFERRED)}
    entries = sorted(_plain_entries(), key=lambda entry: (order.get(entry.name, len(order)), entry.name))
    first_of = {entry.name: entry.fname for entry in reversed(entries)}
    names = dict.fromkeys(entry.name for entry in entries)
    return [(name, first_of[name]) for name in names if name != FIRST and not name.startswith(_NO_LETTERS)]


def _plain_entries() -> list[FontEntry]:
    """Return upright fonts, those of usual weight first."""
    entries = [entry for entry in fontManager.ttflist if entry.style == "normal"]
    return sorted(entries, key=lambda entry: (str(entry.weight) not in ("400", "normal"), entry.fname))


def _characters_of(path: str) -> set[str]:
    return set(map(chr, _codes_of(path)))


@cache
def _codes_of(path: str) -> frozenset[int]:
    """Return the characters that a font has; none if it cannot be opened."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # gone since matplotlib listed it, or of a kind that it cannot draw
        return frozenset()
