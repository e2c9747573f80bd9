"""Survey weights: read from files as they are, refused where an observation has none or two."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.errors import raises
from helpers.scores import report_on, write_scores

from laborllm_dist.config.evaluation import WeightSettings
from laborllm_dist.report.survey_weights import read_weights

OBSERVATIONS = pa.table(
    {"survey": ["PSID", "PSID", "PSID"], "person": ["12", "12", "7"], "year": pa.array([1990, 1991, 1990], pa.int32())}
)


def read(path: Path, text: str, **settings: str | None) -> np.ndarray:
    path.write_text(text)
    weights = read_weights(WeightSettings(path=str(path), **settings), OBSERVATIONS)  # type: ignore[arg-type]
    assert weights is not None
    return weights


def test_without_a_file_there_are_no_weights() -> None:
    assert read_weights(WeightSettings(), OBSERVATIONS) is None


def test_a_person_has_one_weight_or_one_per_year(tmp_path: Path) -> None:
    of_people = "person,weight,other\n7,0,x\n12.0,1.5,y\n12,1.5,z\n9,,\n"
    assert read(tmp_path / "w.csv", of_people).tolist() == [1.5, 1.5, 0]
    by_year = "ID,wt,yr\n12,2,1991\n12,1,1990.0\n7,3,1990\n"
    assert read(tmp_path / "w.csv", by_year, person="ID", column="wt", year="yr").tolist() == [1, 2, 3]


def test_compressed_and_parquet_files_are_read_too(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "w.csv.gz", "wt") as file:
        file.write("person,weight\n7,1\n12,2\n")
    zipped = read_weights(WeightSettings(path=str(tmp_path / "w.csv.gz")), OBSERVATIONS)
    pq.write_table(pa.table({"person": [7, 12], "weight": [1.0, 2.0]}), tmp_path / "w.parquet")
    columns = read_weights(WeightSettings(path=str(tmp_path / "w.parquet")), OBSERVATIONS)
    assert zipped is not None and columns is not None
    assert zipped.tolist() == columns.tolist() == [2, 2, 1]


def test_weights_of_short_floats_have_the_value_that_they_hold(tmp_path: Path) -> None:
    weights = pa.array([0.1, 123_456_789.0], pa.float32())
    pq.write_table(pa.table({"person": [7, 12], "weight": weights}), tmp_path / "w.parquet")
    actual = read_weights(WeightSettings(path=str(tmp_path / "w.parquet")), OBSERVATIONS)
    assert actual is not None
    assert actual.tolist() == [123_456_792.0, 123_456_792.0, float(np.float32(0.1))]  # the nearest floats of 32 bits


def test_surveys_may_share_ids_if_the_file_names_them(tmp_path: Path) -> None:
    both = OBSERVATIONS.set_column(0, "survey", pa.array(["NLSY79", "NLSY79", "PSID"])).set_column(
        1, "person", pa.array(["7", "7", "7"])
    )
    path = tmp_path / "w.csv"
    path.write_text("person,weight,survey\n7,1,NLSY79\n7,2,PSID\n")
    weights = read_weights(WeightSettings(path=str(path), survey="survey"), both)
    assert weights is not None and weights.tolist() == [1, 1, 2]
    with raises("data-file/weights-without-survey", "NLSY79, PSID", "weights.survey="):
        read_weights(WeightSettings(path=str(path)), both)


@pytest.mark.parametrize(
    ("text", "settings", "code", "words"),
    [
        ("person,weight\n12,1\n", {}, "observation-without-weight", "for 1 of 3 observations, first of person '7'"),
        ("person,weight\n12,1\n12,2\n7,1\n", {}, "two-weights", "person '12' has the weights 1 and 2; weights.year="),
        ("person,weight\n12,-1\n7,1\n", {}, "invalid-weight", "'12' is '-1'; expected a number of 0 or more"),
        ("person,weight\n12,inf\n7,1\n", {}, "invalid-weight", "'12' is 'inf'"),
        (
            "person,weight\n12,NA\n7,1\n",
            {},
            "observation-without-weight",
            "for 2 of 3 observations, first of person '12'",
        ),
        ("person,weight\n1234567890123456.0,1\n", {}, "rounded-float-ids", "column person: '1234567890123456.0' is a"),
        ("person,weight\n12,heavy\n7,1\n", {}, "invalid-weight", "'12' is 'heavy'"),
        ("person,weight\n12,0\n7,0\n", {}, "all-weights-zero", "the weights of all observations are 0"),
        ("person,weight\n12,1_0\n7,1\n", {}, "invalid-weight", "'12' is '1_0'"),
        (
            "person,weight\n12,1\n7,1\n",
            {"column": "wt"},
            "invalid-content",
            "columns are person, weight; weights.column=",
        ),
        ("person,weight,weight\n12,1,2\n7,1,1\n", {}, "invalid-content", "weight: this column appears twice"),
        ("person,weight\n12\n7,1\n", {}, "invalid-content", "line 2: 1 values, the header has 2"),
        ("person;weight\n12;1\n7;1\n", {}, "wrong-column-separator", "separated by semicolons"),
        ("", {}, "empty-file", "the file is empty"),
        ("person,weight,year\n12,1,x\n", {"year": "year"}, "invalid-weight-year", "'x' is no calendar year"),
    ],
)
def test_what_cannot_be_a_weight_is_refused(
    text: str, settings: dict[str, str], code: str, words: str, tmp_path: Path
) -> None:
    with raises(f"data-file/{code}", words) as error:
        read(tmp_path / "w.csv", text, **settings)
    assert str(error.value).count("\n") == (code == "invalid-content")  # a line a problem


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with raises("data-file/no-weight-file", tmp_path / "absent.csv", "weights.path"):
        read_weights(WeightSettings(path=str(tmp_path / "absent.csv")), OBSERVATIONS)


def test_a_weighted_report_has_the_weighted_perplexity_and_the_best_model_first(tmp_path: Path) -> None:
    write_scores(tmp_path / "run/scores/test.parquet", "llm", [1, 2, 2, 3, 2])
    write_scores(tmp_path / "run/scores/test.logit.parquet", "logit", [3, 2, 2, 2, 2])  # better on c, worse on a
    (tmp_path / "w.csv").write_text("person,weight\na,1\nb,2\nc,4\n")
    plain = report_on(tmp_path / "run", output=tmp_path / "plain")
    weighted = report_on(
        tmp_path / "run", output=tmp_path / "weighted", weights=WeightSettings(path=str(tmp_path / "w.csv"))
    )
    assert [model.model for model in plain.models] == ["llm", "logit"]
    assert [model.model for model in weighted.models] == ["logit", "llm"]
    # Halvings of llm: a has 1 and 2, b 2, c 3 and 2; weights 1, 1, 2, 4, 4.
    by_name = {model.model: model for model in weighted.models}
    assert by_name["llm"].perplexity.value == pytest.approx(2 ** ((1 + 2 + 2 * 2 + 4 * 3 + 4 * 2) / 12))
    assert by_name["logit"].perplexity.value == pytest.approx(2 ** ((3 + 2 + 2 * 2 + 4 * 2 + 4 * 2) / 12))
    assert (by_name["llm"].num_people, by_name["llm"].num_observations) == (3, 5)
    summary = json.loads(weighted.summary.read_text())
    assert summary["weights"]["effective_observations"] == pytest.approx(12**2 / (1 + 1 + 4 + 16 + 16))
    difference = summary["pairs"][0]["difference_nats"]["value"]
    assert difference == pytest.approx((-2 + 0 + 0 + 4 * 1 + 0) / 12 * math.log(2))
    assert "survey weights <strong>weight</strong>" in weighted.page.read_text()
