"""Basic data types: a worker's career, its yearly jobs, and the vocabulary of occupations.

They do not depend on text, tokens or models. A field that the source does not have is None, never "" or -1.
"""

from __future__ import annotations

from dataclasses import dataclass

from laborllm_dist.errors import VocabularyError


@dataclass(frozen=True, slots=True)
class Job:
    """The occupation held in one calendar year; `occupation` is a code of the vocabulary."""

    year: int
    occupation: str
    education: str | None = None


@dataclass(frozen=True, slots=True)
class CareerHistory:
    """One worker: fixed attributes and the jobs in order of year, at most one per year."""

    person: str
    survey: str
    birth_year: int | None
    gender: str | None
    ethnicity: str | None
    region: str | None
    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class OccupationVocabulary:
    """The occupations that can be predicted: codes and their titles, both unique, in a fixed order.

    Raises:
        VocabularyError: if a code or title is empty or duplicate, or a title has a line break or outer whitespace.
    """

    codes: tuple[str, ...]
    titles: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.codes) != len(self.titles):
            raise VocabularyError(
                f"{len(self.codes)} codes but {len(self.titles)} titles", code="code-title-count-mismatch"
            )
        if not self.codes:
            raise VocabularyError("the list of occupations is empty", code="empty-vocabulary")
        first_code_of: dict[str, str] = {}
        seen_codes: set[str] = set()
        for code, title in zip(self.codes, self.titles, strict=True):
            if not code:
                raise VocabularyError(f"the occupation titled {title!r} has an empty code", code="empty-code")
            if code in seen_codes:
                raise VocabularyError(
                    f"occupation code {code!r} appears twice; codes must be unique", code="duplicate-code"
                )
            seen_codes.add(code)
            if not title or title != title.strip() or "\n" in title or "\r" in title:
                raise VocabularyError(
                    f"occupation {code!r} has the title {title!r}; a title is one line, not empty, without outer "
                    "blanks",
                    code="invalid-title",
                )
            if title in first_code_of:
                raise VocabularyError(
                    f"occupations {first_code_of[title]!r} and {code!r} share the title {title!r}; "
                    "merge the two codes or change one title",
                    code="duplicate-title",
                )
            first_code_of[title] = code

    def __len__(self) -> int:
        return len(self.codes)

    def title_of(self) -> dict[str, str]:
        """Return a mapping from codes to titles."""
        return dict(zip(self.codes, self.titles, strict=True))

    def index_of(self) -> dict[str, int]:
        """Return a mapping from codes to their indices in the vocabulary."""
        return {code: index for index, code in enumerate(self.codes)}
