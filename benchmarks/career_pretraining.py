"""Does CAREER gain from pretraining on resumes, as its authors report?

    python benchmarks/career_pretraining.py [--people 1000] [--resumes 8000] [--folder FOLDER]

A small survey, and the resumes of other people of the same synthetic labor market, as CAREER's are: one job a year,
nobody out of work or in school, no covariates. CAREER is trained on the survey alone, on both together, and on the
resumes first; the last two have the same limit of updates in all. Validation people end each training, for the first
and the last the survey's; the records say at which update. Perplexities (title) are those of the survey's test people;
gains from pretraining have paired 95 % intervals.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from records import PROJECT, Record, RecordFile

from laborllm_dist.careers.occupations.occ1990dd import EDUCATION, NOT_IN_LABOR_FORCE, UNEMPLOYED
from laborllm_dist.careers.readers.synthetic.market import make_market
from laborllm_dist.careers.types import CareerHistory
from laborllm_dist.config.corpora import SyntheticSettings
from laborllm_dist.report.bootstrap import ResampledPeople, resample_means
from laborllm_dist.tables.scores import TRANSITIONS, read_score_table, transition_of

HEADER = ("person", "year", "occupation", "birth_year", "gender", "ethnicity", "region", "education")
NOT_A_JOB = {UNEMPLOYED, NOT_IN_LABOR_FORCE, EDUCATION}
MARKET_SEED, DRAWS, DRAWS_SEED = 1, 2000, 1
SURVEY = (
    "data=long_panel",
    "data.corpora.long_panel.path=survey.csv",
    "data.corpora.long_panel.survey=SURVEY",
    "data.corpora.long_panel.vocabulary.path=titles.csv",
    "split.train=0.3",
    "split.validation=0.1",
)
RESUMES = (
    "+corpus@data.corpora.resumes=long_panel",
    "data.corpora.resumes.path=resumes.csv",
    "data.corpora.resumes.survey=RESUMES",
    "data.corpora.resumes.vocabulary.path=titles.csv",
)
SURVEY_UPDATES, RESUMES_UPDATES = 300, 400  # at most; validation people may end a training before
FITS: Mapping[str, tuple[Sequence[str], str, str, int]] = {  # data, pretrain_on, learning rate, most updates
    "survey_alone": (SURVEY, "[]", "5.0e-4", SURVEY_UPDATES),
    # The same data as with pretraining, so as many updates in all.
    "together": ((*SURVEY, *RESUMES), "[]", "5.0e-4", SURVEY_UPDATES + RESUMES_UPDATES),
    # As its authors have it: a lower rate afterwards.
    "pretrained": ((*SURVEY, *RESUMES), "[RESUMES]", "1.0e-4", SURVEY_UPDATES),
}


def write_market(folder: Path, num_people: int, num_resumes: int) -> None:
    """Write survey.csv, resumes.csv and titles.csv."""
    market = make_market(SyntheticSettings(num_people=num_people + num_resumes, seed=MARKET_SEED))
    careers = market.careers()
    write_rows(folder / "survey.csv", HEADER, (row for career in islice(careers, num_people) for row in _rows(career)))
    jobs = (row for career in careers for row in _rows(career) if row[2] not in NOT_A_JOB)
    write_rows(folder / "resumes.csv", HEADER, ([*row[:3], *[""] * (len(HEADER) - 3)] for row in jobs))
    titles = zip(market.vocabulary.codes, market.vocabulary.titles, strict=True)
    write_rows(folder / "titles.csv", ("code", "title"), titles)


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _rows(career: CareerHistory) -> list[list[str]]:
    about = [str(value or "") for value in (career.birth_year, career.gender, career.ethnicity, career.region)]
    return [[career.person, str(job.year), job.occupation, *about, job.education or ""] for job in career.jobs]


def run(folder: Path, script: str, *settings: str) -> None:
    """Run a script of launch/ in a folder."""
    subprocess.run([sys.executable, str(PROJECT / "launch" / script), *settings], cwd=folder, check=True)


def compare(folder: Path) -> None:
    """Record perplexities of all, and the paired gains from pretraining."""
    paths = [folder / f"runs/{name}/scores/test.career.parquet" for name in FITS]
    tables = [survey_scores(path) for path in paths]
    table, keys = tables[0], ["person", "position"]
    if any(each.select(keys) != table.select(keys) for each in tables):
        raise SystemExit("the runs scored different observations")
    scores_MN = np.stack([each["title"].to_numpy() for each in tables])
    pairs = zip(table["previous"].to_pylist(), table["occupation"].to_pylist(), strict=True)
    group_N = np.array([1 + TRANSITIONS.index(transition_of(*pair)) for pair in pairs])
    group_KN = np.stack([np.zeros_like(group_N), group_N])
    _, person_N = np.unique(table["person"].to_numpy(zero_copy_only=False), return_inverse=True)
    num_people = int(person_N.max()) + 1
    means = resample_means(scores_MN, group_KN, ResampledPeople(person_N, num_people, None, DRAWS, DRAWS_SEED))
    file = RecordFile.begin("career-pretraining", "CAREER pretrained on resumes")
    file.add(Record("test", "survey", numbers={"people": num_people, "observations": len(table)}))
    of_fit = {
        name: (sample_G, draws_GD)
        for name, sample_G, draws_GD in zip(FITS, means.sample_MG, means.draws_MGD, strict=True)
    }
    for (name, (sample_G, draws_GD)), path in zip(of_fit.items(), paths, strict=True):
        numbers = intervals(np.exp(-sample_G), np.exp(-draws_GD))
        file.add(Record("perplexity", name, numbers=numbers, note=best_updates(path)))
    sample_G, draws_GD = of_fit.pop("pretrained")
    for name, (other_G, other_GD) in of_fit.items():
        numbers = intervals(sample_G - other_G, draws_GD - other_GD)
        file.add(Record("gain, nats", f"pretrained over {name}", numbers=numbers))
    file.end()


def survey_scores(path: Path) -> pa.Table:
    """Return the rows of a score table that are about the survey."""
    table = read_score_table(path)[0]
    return table.filter(pc.equal(table["survey"], "SURVEY")).combine_chunks()


def best_updates(path: Path) -> str:
    """Return the update whose weights a score table is of, and that of the pretraining if there was one."""
    details = read_score_table(path)[1].details
    before = (
        f", after {details['pretraining_best_update']} of pretraining" if "pretraining_best_update" in details else ""
    )
    return f"best update: {details['best_update']}{before}"


def intervals(value_G: npt.NDArray[np.float64], draws_GD: npt.NDArray[np.float64]) -> dict[str, float]:
    """Return the number of each group of transitions with its 95 % interval."""
    numbers: dict[str, float] = {}
    for name, value, draws_D in zip(("all", *TRANSITIONS), value_G, draws_GD, strict=True):
        low, high = np.nanpercentile(draws_D, [2.5, 97.5])
        numbers |= {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
    return numbers


def main() -> None:
    """Make the data, train all three, and compare them."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--people", type=int, default=1000, help="people of the survey (30 %% of them to train on)")
    arguments.add_argument("--resumes", type=int, default=8000, help="resumes (30 %% of them to train on)")
    arguments.add_argument("--folder", type=Path, help="where to leave data and runs (default: a temporary folder)")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write_market(folder, chosen.people, chosen.resumes)
        for name, (data, pretrain_on, rate, most_updates) in FITS.items():
            run(folder, "prepare.py", *data, f"name={name}")
            run(
                folder, "baselines.py", f"run=runs/{name}", "baselines=[career]", "threads=1", "+schedule=cpu",
                f"career.pretrain_on={pretrain_on}", f"career.fit.learning_rate={rate}",
                f"career.fit.max_updates={most_updates}", f"career.pretraining.max_updates={RESUMES_UPDATES}",
            )  # fmt: skip
        compare(folder)


if __name__ == "__main__":
    main()
