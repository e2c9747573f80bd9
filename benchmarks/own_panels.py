"""Do the default settings learn on a panel of one's own, whatever its size?

    python benchmarks/own_panels.py [--only PEOPLE ...] [--folder FOLDER] [--ranks NUMBER]

Makes five panels of 300 to 10,000 people and 5 to 300 titles, and for each runs the commands of docs/own_panel.md
as they stand there: training, evaluation, baselines. Perplexities are those of the test people.

In these panels a person's next occupation depends on more than the last one: staying is likelier the longer somebody
has been in an occupation, a third of the moves lead back to the occupation held before, and where other moves lead
depends on education and gender. Titles are those of occ1990dd.
"""

from __future__ import annotations

import argparse
import csv
import math
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from records import PROJECT, Record, RecordFile

from laborllm_dist.careers.occupations.occ1990dd import occ1990dd_vocabulary
from laborllm_dist.tables.scores import read_score_table

Floats = npt.NDArray[np.float64]

EDUCATIONS = ("less than high school", "high school", "some college", "college", "graduate degree")
EDUCATION_SHARES = (0.12, 0.34, 0.26, 0.19, 0.09)
GENDERS = ("female", "male")
ETHNICITIES = ("white", "black", "hispanic", "asian")
ETHNICITY_SHARES = (0.62, 0.19, 0.14, 0.05)
REGIONS = ("northeast", "midwest", "south", "west")
HEADER = ("person", "year", "occupation", "birth_year", "gender", "ethnicity", "region", "education")
LAST_YEAR = 2023
FEWEST_YEARS, MOST_YEARS = 5, 18
RETURNING = 0.35  # share of moves that lead back to the occupation held before the present one, if there is one
TITLES_OF_A_FAMILY = 6.0  # moves within a family are this much likelier, for each title, than moves out of it
SCHOOLING_FIT = 0.7  # cost, in nats, of a level of education more or less than an occupation needs, squared


@dataclass(frozen=True, slots=True)
class LaborMarket:
    """Who moves where in a made panel: occupations [O], levels of education [E], genders [G]."""

    hold_O: Floats  # log odds of staying in the first year
    appeal_EGO: Floats  # how much an occupation attracts, by education and gender
    near_OO: Floats  # how much likelier moves between two occupations are


def make_market(num_titles: int, random: np.random.Generator) -> LaborMarket:
    """Draw a labor market of so many occupations, in families of up to eight."""
    family_O = np.arange(num_titles) // max(2, min(8, num_titles // 3))
    need_O = random.normal(0, 1.0, family_O.max() + 1)[family_O] + random.normal(0, 0.4, num_titles) + 1.7
    popularity_O = random.normal(0, 0.8, num_titles)
    by_gender_O = random.normal(0, 0.7, num_titles)
    levels_E = np.arange(len(EDUCATIONS))
    fit_EO = -SCHOOLING_FIT * (levels_E[:, None] - np.clip(need_O, 0, 4)) ** 2
    appeal_EGO = np.exp(fit_EO[:, None] + popularity_O + np.array([-0.5, 0.5])[:, None] * by_gender_O)
    near_OO = np.where(family_O[:, None] == family_O, TITLES_OF_A_FAMILY, 1.0)
    return LaborMarket(random.normal(0.0, 0.4, num_titles), appeal_EGO, near_OO)


def careers(market: LaborMarket, num_people: int, random: np.random.Generator) -> Iterator[tuple[object, ...]]:
    """Yield the rows of a panel: a person's years, one after the other, with the number of the occupation."""
    for person in range(num_people):
        education = int(random.choice(len(EDUCATIONS), p=EDUCATION_SHARES))
        gender = int(random.integers(2))
        num_years = int(random.integers(FEWEST_YEARS, MOST_YEARS + 1))
        first_year = int(random.integers(LAST_YEAR - MOST_YEARS - 6, LAST_YEAR - num_years + 2))
        facts = (
            first_year - 18 - int(random.integers(12)),
            GENDERS[gender],
            ETHNICITIES[random.choice(len(ETHNICITIES), p=ETHNICITY_SHARES)],
            REGIONS[random.integers(len(REGIONS))],
            EDUCATIONS[education],
        )
        appeal_O = market.appeal_EGO[education, gender]
        now = int(random.choice(len(appeal_O), p=appeal_O / appeal_O.sum()))
        before, tenure = None, 1
        for year in range(first_year, first_year + num_years):
            if year > first_year:
                odds = math.exp(market.hold_O[now] + 1.1 * math.log(tenure))
                if random.random() < odds / (1 + odds):
                    tenure += 1
                else:
                    to = _moves_to(market.near_OO[now] * appeal_O, now, before, random)
                    before, now, tenure = now, to, 1
            yield (person + 1, year, now, *facts)


def _moves_to(weights_O: Floats, now: int, before: int | None, random: np.random.Generator) -> int:
    if before is not None and random.random() < RETURNING:
        return before
    weights_O = weights_O.copy()
    weights_O[now] = 0
    return int(random.choice(len(weights_O), p=weights_O / weights_O.sum()))


def write_panel(folder: Path, num_people: int, num_titles: int, seed: int) -> None:
    """Write careers.csv and titles.csv of a made panel, the same for the same seed."""
    random = np.random.default_rng([seed, num_people, num_titles])
    known = occ1990dd_vocabulary()
    picked = np.linspace(0, len(known) - 5, num_titles).round().astype(int)  # the last are states
    titles = [known.titles[place] for place in picked]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "titles.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("code", "title"), *enumerate(titles)])
    with (folder / "careers.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([HEADER, *careers(make_market(num_titles, random), num_people, random)])


@dataclass(frozen=True, slots=True)
class Panel:
    """The size of a made panel."""

    num_people: int
    num_titles: int


PANELS = (Panel(300, 5), Panel(1_000, 20), Panel(2_500, 60), Panel(5_000, 120), Panel(10_000, 300))
SEED = 2026  # of the panels; the settings were chosen on panels of other seeds
TABLES = {"language model": "test", "first-order": "test.first_order", "marginal": "test.marginal"}


def documented_commands() -> list[list[str]]:
    """Return the command lines that docs/own_panel.md gives."""
    page = (PROJECT / "docs/own_panel.md").read_text(encoding="utf-8")
    block = page.split("```bash")[1].split("```")[0].replace("\\\n", " ")
    return [shlex.split(line) for line in block.splitlines() if line.strip()]


def started(command: list[str], num_ranks: int | None) -> list[str]:
    """Return a command with a port that nobody has and, where it is given, a number of ranks."""
    if command[0] != "deepspeed":
        return command
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [] if num_ranks is None else ["--num_gpus", str(num_ranks)]
    return ["deepspeed", "--master_port", str(port), *ranks, *command[1:]]


def run_panel(panel: Panel, folder: Path, num_ranks: int | None) -> tuple[dict[str, float], list[float], str]:
    """Make a panel, run the commands in its folder, and return perplexities, seconds of each command, and the plan."""
    write_panel(folder, panel.num_people, panel.num_titles, SEED)
    (folder / "launch").symlink_to(PROJECT / "launch")
    seconds: list[float] = []
    output = ""
    for command in documented_commands():
        begun = time.monotonic()
        done = subprocess.run(started(command, num_ranks), cwd=folder, capture_output=True, text=True, check=False)
        seconds.append(time.monotonic() - begun)
        output += done.stdout + done.stderr
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with code {done.returncode}:\n{output[-3000:]}")
    scores = folder / "runs/mine/scores"
    perplexities = {
        name: float(np.exp(-read_score_table(scores / f"{table}.parquet")[0]["title"].to_numpy().mean()))
        for name, table in TABLES.items()
    }
    plan = next(line for line in output.splitlines() if line.startswith("plan:") and " steps of " in line)
    return {**perplexities, "uniform": float(panel.num_titles)}, seconds, plan


def main() -> None:
    """Measure each panel."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--only", type=int, nargs="+", metavar="PEOPLE", help="panels of so many people only")
    arguments.add_argument("--folder", type=Path, help="where to leave panels and runs (default: a temporary folder)")
    arguments.add_argument("--ranks", type=int, help="processes of training and evaluation (default: deepspeed's)")
    chosen = arguments.parse_args()
    panels = [panel for panel in PANELS if not chosen.only or panel.num_people in chosen.only]
    file, worse = RecordFile.begin("own-panels", "Default settings on panels of one's own: perplexities"), []
    with tempfile.TemporaryDirectory() as temporary:
        for panel in panels:
            folder = (chosen.folder or Path(temporary)) / f"panel_{panel.num_people}"
            perplexities, seconds, plan = run_panel(panel, folder, chosen.ranks)
            names = ("train_seconds", "evaluate_seconds", "compare_seconds")
            numbers = {**perplexities, **dict(zip(names, seconds, strict=True))}
            is_worse = perplexities["language model"] >= perplexities["first-order"]
            subject = f"{panel.num_people:,} people, {panel.num_titles} titles"
            file.add(Record("panels", subject, "failed" if is_worse else "passed", numbers, plan))
            worse += [panel.num_people] * is_worse
    file.end()
    if worse:
        raise SystemExit(f"not better than first-order: the panels of {worse} people")


if __name__ == "__main__":
    main()
