"""Write summary.json: every number of the page in full precision, under keys that stay.

    format                   1; another number means that keys have changed
    split, measure           whose observations; which log-likelihood (`title`, `terminated` or `normalised`)
    num_people, num_observations
    interval_level           0.95; all `low` and `high` are percentiles over resamples of people
    bootstrap_draws, seed
    few_people_below         groups with fewer people are flagged `few_people`
    models[]                 best first: model, true_model, perplexity, mean_log_likelihood_nats,
                             nats_to_truth (null without a true model), num_people, num_observations,
                             worse_than (in words: floors that the model is below; equal shares for all titles, and the
                             marginal, where their tables are there)
    pairs[]                  first, second, difference_nats (first minus second, per observation; above 0: the first is
                             better), perplexity_ratio (first / second), perplexity_difference (first - second),
                             share_first_better (of resamples, a tie counts half)
    groupings[]              name (transition, gender, ethnicity, region, education, birth_decade, survey, year),
                             title, note, groups[]
    groupings[].groups[]     group, recorded, few_people, num_people, num_observations,
                             scores[]: model, perplexity, mean_log_likelihood_nats
    titles[]                 of models with a table of titles: model, valid_titles (mean mass of all titles),
                             normalised_perplexity, top_1, top_5, top_10 (shares), largest_bound
    sources[]                model, name_in_file, run, file, split, careers, code, details

An estimate is {value, low, high}. `low` and `high` are null where resampling people gives no interval, as in a group
of one person; a number too large for float64 is null too.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from laborllm_dist.io.files import finite_or_null
from laborllm_dist.report.numbers import ReportNumbers

FORMAT = 1


def summary_text(numbers: ReportNumbers) -> str:
    """Give the report's numbers as JSON text, ending in a newline."""
    values = {"format": FORMAT, **asdict(numbers)}
    return json.dumps(finite_or_null(values), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
