"""Does prepare's memory stay flat, and how fast is it?

    python benchmarks/prepare_throughput.py [--synthetic | --resumes] [--shards N] [--repeats N] [people ...]

Prepares token stores, each in a process of its own, and measures people per minute, peak resident memory and bytes per
career. `--synthetic`: careers of the made labor market. `--resumes`: a JSONL file of made resumes, one row a job, with
free job titles (titles of the Census index with ranks, employers and typing errors), which are coded to occ1990dd.
Default: synthetic, one process; 10,000, 100,000 and 1,000,000 people.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from records import Record, RecordFile

from laborllm_dist.careers.occupations.title_index import read_index
from laborllm_dist.cli import compose_settings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.store.build import prepare_store

RANKS = ("", "", "", "", "Senior ", "Junior ", "Lead ", "Asst. ")
EMPLOYERS = ("", "", "", " at Acme", " (contract)", " - night shift", " II")
LAST_YEAR = 2024
ABSENT = ("code", "education")


def made_titles(random: np.random.Generator) -> list[str]:
    """Return 120,000 free job titles: the index's, with ranks and employers, one in ten with a letter missing."""
    known = [entry.title for entry in read_index()]
    titles = []
    for _ in range(120_000):
        title = known[int(random.integers(len(known)))]
        if random.random() < 0.1 and len(title) > 6:
            at = int(random.integers(1, len(title) - 1))
            title = title[:at] + title[at + 1 :]
        titles.append(RANKS[int(random.integers(len(RANKS)))] + title + EMPLOYERS[int(random.integers(len(EMPLOYERS)))])
    return titles


def made_rows(num_people: int) -> Iterator[str]:
    """Yield the JSON lines of people with one to eight jobs of up to seven years, one after the other."""
    random = np.random.default_rng(1)
    titles = made_titles(random)
    for person in range(num_people):
        num_jobs = 1 + int(random.integers(8))
        year = LAST_YEAR - int(random.integers(3, 40))
        # A few titles are common, most are rare, as in real resumes.
        picks = (len(titles) * random.random(num_jobs) ** 4).astype(int)
        for pick, length, month in zip(
            picks, random.integers(0, 7, num_jobs), random.integers(1, 13, num_jobs), strict=True
        ):
            if year > LAST_YEAR:
                break
            end = min(year + int(length), LAST_YEAR)
            row = {"id": f"r{person:08d}", "title": titles[pick], "start": f"{year}-{month:02d}", "end": f"{end}-12"}
            yield json.dumps(row) + "\n"
            year = end + 1


def prepare_one(kind: str, num_people: int, num_workers: int, folder: Path) -> Record:
    """Prepare one store in a folder and measure it."""
    overrides = [f"store.root={folder}/stores", f"prepare.num_workers={num_workers}"]
    if kind == "resumes":
        source = folder / "resumes.jsonl"
        with source.open("w") as file:
            file.writelines(made_rows(num_people))
        columns = "data.corpora.resumes.columns"
        overrides += [
            "data=resumes", f"data.corpora.resumes.path={source}",
            "data.corpora.resumes.occupation_from=title",
            f"data.corpora.resumes.last_year={LAST_YEAR}",
            *(f"{columns}.{name}=null" for name in ABSENT),
        ]  # fmt: skip
    else:
        overrides += ["data=synthetic", f"data.corpora.synthetic.num_people={num_people}"]
    settings = compose_settings(RunSettings, "run", overrides)
    started = time.monotonic()
    store = prepare_store(settings)
    seconds = time.monotonic() - started
    num_careers = sum(store.num_people(split) for split in ("train", "validation", "test"))
    num_bytes = sum(path.stat().st_size for path in Path(store.folder).rglob("*") if path.is_file())
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    shards = f"{num_workers} shard{'s' if num_workers > 1 else ''}"
    numbers = {
        "seconds": seconds, "careers": num_careers, "people_per_minute": num_people / seconds * 60,
        "peak_MiB_of_a_process": peak, "bytes_per_career": num_bytes / num_careers,
    }  # fmt: skip
    return Record(f"{kind}, {shards}", f"{num_people:,} people", numbers=numbers)


def main() -> None:
    """Run each size in a process of its own, so that each has its own peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", nargs="*", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--resumes", dest="kind", action="store_const", const="resumes", default="synthetic")
    parser.add_argument("--synthetic", dest="kind", action="store_const", const="synthetic")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)  # of a process that prepares one store
    arguments = parser.parse_args()
    if arguments.file is not None:
        with tempfile.TemporaryDirectory() as folder:
            record = prepare_one(arguments.kind, arguments.people[0], arguments.shards, Path(folder))
        RecordFile(arguments.file).add(record)
        return
    file = RecordFile.begin(f"prepare-{arguments.kind}", f"Preparation: {arguments.kind}")
    own = [sys.executable, __file__, f"--{arguments.kind}", "--shards", str(arguments.shards), "--file", str(file.path)]
    for _ in range(arguments.repeats):
        for num_people in arguments.people:
            subprocess.run([*own, str(num_people)], check=True)
    file.end()


if __name__ == "__main__":
    main()
