"""What a baseline knows of every observation, as arrays: earlier occupations, tenure, years, education and covariates.

Everything is known before the occupation of the year is: the year and the education are those of the year that is
predicted, as in a language model's prompt.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from laborllm_dist.io.files import translate_disk_errors
from laborllm_dist.store.store import CareerTable, whole_careers

Integers = npt.NDArray[np.int64]
STATIC = ("gender", "ethnicity", "region", "birth_year")  # covariates of a person
VARYING = ("year", "education")  # covariates of an observation
CAREERS_PER_BLOCK = 2_000  # whose features are computed at once
NOT_OF_OBSERVATIONS = ("covariates", "num_categories", "lengths", "num_occupations")  # fields that are no such array


@dataclass(frozen=True, slots=True)
class Categories:
    """The values of each covariate among training people; category 0 is everything else."""

    values: dict[str, pa.Array]

    def sizes(self) -> dict[str, int]:
        """Return the number of categories of each covariate, the unknown one included."""
        return {name: len(values) + 1 for name, values in self.values.items()}

    def encode(self, name: str, column: pa.ChunkedArray) -> Integers:
        """Return the category of each value."""
        places = pc.fill_null(pc.index_in(column.combine_chunks(), self.values[name]), -1)
        return np.asarray(places, dtype=np.int64) + 1


def categories_of(train: CareerTable) -> Categories:
    """Return the values that covariates have among training people, sorted."""
    columns = {name: train.table[name] for name in STATIC} | {
        "year": pc.list_flatten(train.table["years"]),
        "education": pc.list_flatten(train.table["educations"]),
    }
    return Categories({name: _sorted_values(column) for name, column in columns.items()})


def _sorted_values(column: pa.ChunkedArray) -> pa.Array:
    values = pc.drop_null(pc.unique(column))
    return values.take(pc.sort_indices(values))


@dataclass(frozen=True, slots=True)
class CareerFeatures:
    """Observations in the order of careers and jobs; every array is [observations].

    Attributes:
        career: row of the career.
        position: index of the job in its career, from 0.
        occupation: place in the vocabulary.
        previous: occupation before; the size of the vocabulary where there is none.
        second_previous: the one before that; the size of the vocabulary where there is none.
        year: calendar year.
        tenure: years since the present spell in `previous` began, 0 for a first observation.
        experience: years since the first observation.
        is_gap: whether the year does not follow the year of the observation before.
        is_new_education: whether the education differs from that of the observation before.
        is_scored: whether the observation is one of the split; the others are history only.
        covariates: categories by name, those of a person repeated for each observation.
        num_categories: number of categories of each covariate.
        lengths: number of observations of each career, [careers].
        num_occupations: size of the vocabulary.
    """

    career: Integers
    position: Integers
    occupation: Integers
    previous: Integers
    second_previous: Integers
    year: Integers
    tenure: Integers
    experience: Integers
    is_gap: npt.NDArray[np.bool_]
    is_new_education: npt.NDArray[np.bool_]
    is_scored: npt.NDArray[np.bool_]
    covariates: dict[str, Integers]
    num_categories: dict[str, int]
    lengths: Integers
    num_occupations: int

    def __len__(self) -> int:
        return len(self.occupation)

    def of_careers(self, is_chosen: npt.NDArray[np.bool_]) -> CareerFeatures:
        """Return the features of some careers; `is_chosen` is [careers]."""
        if is_chosen.all():
            return self
        chosen = self._of_observations(np.repeat(is_chosen, self.lengths))
        career = np.repeat(np.arange(int(is_chosen.sum())), self.lengths[is_chosen])
        return dataclasses.replace(chosen, career=career, lengths=self.lengths[is_chosen])

    def scored(self) -> CareerFeatures:
        """Return the features of the observations of the split alone."""
        if self.is_scored.all():
            return self
        lengths = np.bincount(self.career, self.is_scored, len(self.lengths)).astype(np.int64)
        return dataclasses.replace(self._of_observations(self.is_scored), lengths=lengths)

    def _of_observations(self, rows: npt.NDArray[np.bool_]) -> CareerFeatures:
        """Return the arrays of some observations; `lengths` are still those of all."""
        arrays = {
            field.name: getattr(self, field.name)[rows]
            for field in dataclasses.fields(self)
            if field.name not in NOT_OF_OBSERVATIONS
        }
        covariates = {name: column[rows] for name, column in self.covariates.items()}
        return dataclasses.replace(self, **arrays, covariates=covariates)

    @property
    def starts(self) -> Integers:
        """Index of the first observation of each career, [careers]."""
        return np.cumsum(self.lengths) - self.lengths


def career_features(
    careers: CareerTable, categories: Categories, earlier: Sequence[CareerTable] = ()
) -> CareerFeatures:
    """Return the features of all observations of a split, and of the jobs before them.

    Args:
        careers: of the split; a career may be several rows.
        categories: of covariates.
        earlier: with split_by=year, the careers of the splits before it, whose jobs are the history of these.
    """
    careers, is_scored = whole_careers(careers, earlier)
    lengths = careers.num_observations()
    starts = np.cumsum(lengths) - lengths
    career = np.repeat(np.arange(len(careers)), lengths)
    previous, occupation = careers.transitions()
    years = np.asarray(pc.list_flatten(careers.table["years"]), dtype=np.int64)
    is_first = np.zeros(len(years), dtype=bool)
    is_first[starts] = True
    varying = {"year": careers.table["years"], "education": careers.table["educations"]}
    covariates = {name: categories.encode(name, careers.table[name])[career] for name in STATIC}
    covariates |= {name: categories.encode(name, pc.list_flatten(column)) for name, column in varying.items()}
    second_previous = np.roll(previous, 1)
    second_previous[is_first] = len(careers.vocabulary)
    return CareerFeatures(
        career=career,
        position=np.arange(len(years)) - starts[career],
        occupation=occupation,
        previous=previous,
        second_previous=second_previous,
        year=years,
        tenure=_tenure(years, previous, occupation, is_first),
        experience=years - years[starts][career],
        is_gap=np.where(is_first, False, np.diff(years, prepend=years[:1]) != 1),
        is_new_education=np.where(is_first, False, np.diff(covariates["education"], prepend=0) != 0),
        is_scored=is_scored,
        covariates=covariates,
        num_categories=categories.sizes(),
        lengths=lengths,
        num_occupations=len(careers.vocabulary),
    )


def features_on_disk(
    careers: CareerTable, categories: Categories, folder: Path, earlier: Sequence[CareerTable] = ()
) -> CareerFeatures:
    """Return the features that `career_features` returns as arrays in temporary files, read page by page.

    They are computed for some careers at a time, so memory does not grow with the number of people. The files have no
    names: the operating system deletes them with the process.

    Args:
        careers: of the split.
        categories: of the covariates.
        folder: on a disk with 200 bytes for each observation.
        earlier: as in `career_features`.
    """
    careers, is_scored = whole_careers(careers, earlier)
    num_rows = int(careers.num_observations().sum())
    lengths, arrays, covariates, done = careers.num_observations(), dict[str, Any](), dict[str, Any](), 0

    def column(columns: dict[str, Any], name: str, values: npt.NDArray[Any], done: int) -> None:
        if name not in columns:
            with translate_disk_errors(folder), tempfile.TemporaryFile(dir=folder) as file:
                columns[name] = np.memmap(file, values.dtype, "w+", shape=(num_rows,))
        columns[name][done : done + len(values)] = values

    for first in range(0, len(careers), CAREERS_PER_BLOCK):
        block = dataclasses.replace(careers, table=careers.table.slice(first, CAREERS_PER_BLOCK))
        part = career_features(block, categories)
        for field in dataclasses.fields(CareerFeatures):
            if field.name not in (*NOT_OF_OBSERVATIONS, "is_scored"):
                values = getattr(part, field.name)
                column(arrays, field.name, values + first if field.name == "career" else values, done)
        for name, values in part.covariates.items():
            column(covariates, name, values, done)
        done += len(part)
    column(arrays, "is_scored", is_scored, 0)
    return CareerFeatures(
        **arrays,
        covariates=covariates,
        num_categories=categories.sizes(),
        lengths=lengths,
        num_occupations=len(careers.vocabulary),
    )


def _tenure(years: Integers, previous: Integers, occupation: Integers, is_first: npt.NDArray[np.bool_]) -> Integers:
    """Return the years from the first observation of the present spell in the previous occupation to this year."""
    opens_spell = is_first | (occupation != previous)
    opened = np.maximum.accumulate(np.where(opens_spell, np.arange(len(years)), 0))  # of each observation's own spell
    return np.where(is_first, 0, years - years[np.roll(opened, 1)])
