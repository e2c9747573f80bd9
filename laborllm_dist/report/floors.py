"""What every model should beat: equal shares for all titles, and the titles' shares among training people.

A model below one of these floors is of no use, which its numbers alone do not show. Both are read from score tables:
the number of titles from a table of all titles or a baseline's, the marginal from the baseline's own table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from laborllm_dist.report.load import FloatArray, ScoredModel

MARGINAL = "marginal"  # the baseline's name in score tables
ROUNDING = 1e-9  # nats


def floors_missed(
    models: Sequence[ScoredModel], mean_M: FloatArray, num_titles: int | None
) -> tuple[tuple[str, ...], ...]:
    """Return, for each model, the floors that it is worse than, as words.

    Args:
        models: of a report.
        mean_M: their mean log-likelihoods in nats, on the same observations.
        num_titles: that there are to choose from; None: not known.
    """
    missed: list[tuple[str, ...]] = []
    for place, model in enumerate(models):
        words: list[str] = []
        if num_titles is not None and mean_M[place] < -math.log(num_titles) - ROUNDING:
            words.append(f"uniform over {num_titles:,} titles")
        marginals = _marginals_for(model, models)
        if marginals and mean_M[place] < max(mean_M[at] for at in marginals) - ROUNDING:
            words.append("the marginal shares")
        missed.append(tuple(words))
    return tuple(missed)


def _marginals_for(model: ScoredModel, models: Sequence[ScoredModel]) -> list[int]:
    """Return the places of the marginals of a model's own runs; where they have none, of all runs."""
    places = [place for place, other in enumerate(models) if _is_marginal(other)]
    runs = {file.run for file in model.files}
    own = [place for place in places if runs & {file.run for file in models[place].files}]
    return own or places


def _is_marginal(model: ScoredModel) -> bool:
    return any(file.info.model == MARGINAL and "baseline" in file.info.details for file in model.files)
