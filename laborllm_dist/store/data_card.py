"""The data card of a store: its content by corpus, year and occupation, and what was left out, in readable form.

`data_card.json` has every number, `data_card.md` the same as tables. Next to the three surveys it shows the figures
that LABOR-LLM reports for them, so that a user sees at once how close an extract is to the paper's data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from laborllm_dist.careers.corpus import corpus_notes, reachable_by_year
from laborllm_dist.careers.corpus_counts import CorpusCounts
from laborllm_dist.careers.splits import SPLITS
from laborllm_dist.config.corpora import CorpusSettings
from laborllm_dist.config.data import DataSettings
from laborllm_dist.plain_text import markdown_code, markdown_text
from laborllm_dist.tables.scores import TRANSITIONS

# People, person-years, and shares of first, moving and staying observations in LABOR-LLM (arXiv 2406.17972, v4), as
# noted from the paper; its tables were not at hand to check them against.
PAPER: Mapping[str, tuple[int, int, tuple[float, float, float]]] = {
    "psid": (31_056, 313_622, (0.099, 0.427, 0.474)),
    "nlsy79": (12_479, 259_778, (0.048, 0.440, 0.512)),
    "nlsy97": (8_984, 148_795, (0.060, 0.454, 0.485)),
}

MOST_CODES = 1_000  # number of a corpus's unmapped codes that the card lists
_SHOWN_CODES = 50  # number of them in the Markdown
_CUT_LABELS = {
    "cut_people": "people whose history was truncated",
    "cut_observations": "person-years whose history was truncated",
}
_PLURAL = {"person-year": "person-years", "job": "jobs", "person": "people"}


@dataclass(frozen=True, slots=True)
class SharedPeople:
    """How many people two corpora of one population share."""

    one: str
    other: str
    population: str
    num: int


def card_values(
    counts_of: Mapping[str, CorpusCounts],
    data: DataSettings,
    title_of: Mapping[str, str],
    missing_variables: Mapping[str, Sequence[str]],
    truncated: Mapping[str, Mapping[str, int]],
    shared: Sequence[SharedPeople],
) -> dict[str, Any]:
    """Return the card as JSON values.

    Args:
        counts_of: counts by corpus.
        data: the corpora.
        title_of: title of every occupation.
        missing_variables: of the method, that a corpus's extract lacks.
        truncated: by corpus, the counts of truncated careers (store.CUT_COUNTS); empty if the template truncates none.
        shared: how many people each two corpora of one population share.
    """
    corpora = {
        name: {
            **_corpus_values(counts, data.corpora[name], title_of),
            "variables_missing": list(missing_variables.get(name, ())),
            **truncated[name],
        }
        for name, counts in counts_of.items()
    }
    pairs = [{"corpora": [each.one, each.other], "population": each.population, "people": each.num} for each in shared]
    return {"data": data.name, "corpora": corpora, "shared_people": pairs}


def _corpus_values(counts: CorpusCounts, corpus: CorpusSettings, title_of: Mapping[str, str]) -> dict[str, Any]:
    num_people, num_observations = counts.careers, counts.observations
    paper = PAPER.get(corpus.kind)
    reachable = reachable_by_year(corpus)
    return {
        "survey": corpus.survey,
        "people_read": counts.people_read,
        "people": {"all": num_people, **{split: counts.people[split] for split in SPLITS}},
        "observations": num_observations,
        "shares": {kind: counts.kinds[kind] / num_observations if num_observations else None for kind in TRANSITIONS},
        "paper": paper
        and {"people": paper[0], "observations": paper[1], "shares": dict(zip(TRANSITIONS, paper[2], strict=True))},
        "years": [
            {
                "year": year,
                "observations": codes.total(),
                "occupations": len(codes),
                "reachable": len(reachable[year]) if year in reachable else None,
            }
            for year, codes in sorted(counts.years.items())
        ],
        "occupations": [
            {"code": code, "title": title_of[code], "observations": count}
            for code, count in sorted(counts.occupations.items(), key=lambda item: (-item[1], item[0]))
        ],
        "left_out": [
            {"unit": each.unit, "reason": each.reason, "count": each.count, "years": each.years}
            for each in counts.left_out()
        ],
        "unmapped_codes": [
            {"code": code, "reason": reason, "count": count}
            for (reason, code), count in counts.unmapped_codes(MOST_CODES)
        ],
        "taken_otherwise": [{"what": note, "count": None} for note in corpus_notes(corpus)]
        + [{"what": what, "count": count} for what, count in sorted(counts.changes.items())],
    }


def card_markdown(card: Mapping[str, Any]) -> str:
    """Return the card as Markdown."""
    lines = [f"# Data card of {markdown_text(card['data'])}", ""]
    if split := card.get("split"):
        texts = (
            f"{name} {', '.join(value) if isinstance(value, (list, tuple)) else value}"
            for name, value in split.items()
            if value is not None
        )
        lines += [f"Split: {markdown_text('; '.join(texts))}.", ""]
    for name, values in card["corpora"].items():
        lines += [f"## {markdown_text(values['survey'])} ({markdown_code(name)})", "", *_summary(values), ""]
        lines += ["### Left out", "", *_left_out(values["left_out"]), ""]
        if unmapped := values["unmapped_codes"]:
            lines += ["### Codes without an occupation", "", *_unmapped(unmapped), ""]
        if otherwise := values["taken_otherwise"]:
            lines += ["### Read otherwise than written", "", *_otherwise(otherwise), ""]
        if lacking := values["variables_missing"]:
            named = ", ".join(map(markdown_text, lacking))
            lines += ["### Not in the extract", "", f"{len(lacking)} variables: {named}.", ""]
        lines += ["### Years", "", *_years(values["years"]), ""]
        lines += ["### Occupations", "", *_occupations(values), ""]
    if shared := card["shared_people"]:
        rows = [(" and ".join(each["corpora"]), each["population"], f"{each['people']:,}") for each in shared]
        lines += ["## People in two corpora", "", *_table(("corpora", "population", "people"), rows, right=(2,)), ""]
    return "\n".join(lines).rstrip() + "\n"


def _summary(values: Mapping[str, Any]) -> list[str]:
    paper = values["paper"]
    rows: list[tuple[str, str, str]] = [
        ("people in the source", f"{values['people_read']:,}", ""),
        ("people with a career", f"{values['people']['all']:,}", f"{paper['people']:,}" if paper else ""),
        *((f"of them {split}", f"{values['people'][split]:,}", "") for split in SPLITS),
        ("person-years", f"{values['observations']:,}", f"{paper['observations']:,}" if paper else ""),
        *(
            (f"share {kind}", _share(values["shares"][kind]), _share(paper["shares"][kind]) if paper else "")
            for kind in TRANSITIONS
        ),
        *((label, f"{values[name]:,}", "") for name, label in _CUT_LABELS.items() if name in values),
    ]
    if paper is None:
        return _table(("", "here"), [row[:2] for row in rows], right=(1,))
    note = "LABOR-LLM: figures noted from arXiv 2406.17972, not checked against its tables."
    return [*_table(("", "here", "LABOR-LLM"), rows, right=(1, 2)), "", note]


def _left_out(reasons: Sequence[Mapping[str, Any]]) -> list[str]:
    if not reasons:
        return ["Nothing."]
    rows = [(_PLURAL[each["unit"]], each["reason"], f"{each['count']:,}") for each in reasons]
    return _table(("what", "reason", "count"), rows, right=(2,))


def _unmapped(codes: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [(each["code"], each["reason"], f"{each['count']:,}") for each in codes[:_SHOWN_CODES]]
    table = _table(("code", "reason", "person-years left out"), rows, right=(2,))
    more = len(codes) - _SHOWN_CODES
    return table if more <= 0 else [*table, "", f"{more:,} more codes are in data_card.json."]


def _otherwise(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [(each["what"], "" if each["count"] is None else f"{each['count']:,}") for each in entries]
    return _table(("what", "times"), rows, right=(1,))


def _years(years: Sequence[Mapping[str, Any]]) -> list[str]:
    known = any(each["reachable"] is not None for each in years)
    rows = [
        (str(each["year"]), f"{each['observations']:,}", f"{each['occupations']:,}", str(each["reachable"] or ""))
        for each in years
    ]
    note = "Reachable: occupations and states that the year's census codes lead to; no other can be observed."
    if not known:
        return _table(("year", "person-years", "occupations"), [row[:3] for row in rows], right=(1, 2))
    return [*_table(("year", "person-years", "occupations", "reachable"), rows, right=(1, 2, 3)), "", note]


def _occupations(values: Mapping[str, Any]) -> list[str]:
    rows = [(each["code"], each["title"], f"{each['observations']:,}") for each in values["occupations"]]
    return _table(("code", "title", "person-years"), rows, right=(2,))


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int]) -> list[str]:
    """Return a Markdown table of texts; the columns of `right` hold numbers."""
    rule = [("---:" if place in right else "---") for place in range(len(header))]
    lines = [[markdown_text(cell) for cell in cells] for cells in (header, *rows)]
    return ["| " + " | ".join(cells) + " |" for cells in (lines[0], rule, *lines[1:])]
