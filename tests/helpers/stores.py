"""Small stores of a synthetic market."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from helpers.panels import panels
from helpers.runs import settings_of, small_run
from laborllm_dist.config.run import RunSettings

NUM_PEOPLE = 90


def small(folder: Path, *more: str) -> RunSettings:
    return settings_of(small_run(folder, "store.people_per_shard=20", *more, num_people=NUM_PEOPLE))


def pooled(folder: Path, *surveys: str, **changes) -> RunSettings:
    for survey in surveys:
        years = (1984, 1984 + ord(survey[0]))  # corpora differ
        rows = "".join(f"{person},{year},1\n" for person in range(40) for year in years)
        (folder / f"{survey}.csv").write_text("person,year,occupation\n" + rows)
        (folder / f"{survey}_titles.csv").write_text("code,title\n1,Cooks\n")
    return dataclasses.replace(small(folder), data=panels(folder, *surveys, **changes))
