"""Training curves: every point against numbers worked out by hand from a few lines of metrics.jsonl."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.scores import step, write_metrics

from laborllm_dist.report.training_curves import MOST_POINTS, TrainingPoint, ValidationPoint, training_curves


def test_a_short_training_has_a_point_per_step_and_per_validation(tmp_path: Path) -> None:
    measured = {"validation_nats_per_token": 3.5, "validation_nats_per_title": 7.0}
    later = {"validation_nats_per_token": 3.0, "validation_nats_per_title": 7.5}
    write_metrics(tmp_path / "a", [step(1, 5.0, 10), step(2, 4.0, 30, **measured), step(3, 3.0, 20, **later)])
    (tmp_path / "b").mkdir()  # baselines alone
    (curve,) = training_curves([str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "a")])
    assert curve.training == (TrainingPoint(1, 0.5, 5.0), TrainingPoint(2, 1.0, 4.0), TrainingPoint(3, 1.5, 3.0))
    assert curve.validation == (ValidationPoint(2, 1.0, 3.5, 7.0), ValidationPoint(3, 1.5, 3.0, 7.5))
    assert (curve.num_steps, curve.num_tokens, curve.num_epochs, curve.peak_learning_rate) == (3, 60, 1.5, 0.1)
    assert curve.best_step == 2  # by titles, though tokens are better at step 3


def test_a_long_training_is_averaged_over_tokens(tmp_path: Path) -> None:
    lines = [step(number, float(number), 1 + number % 2) for number in range(1, 2 * MOST_POINTS + 2)]
    write_metrics(tmp_path, lines)
    (curve,) = training_curves([str(tmp_path)])
    assert curve.steps_per_point == 3 and len(curve.training) == 201  # ceil(601 / 300), ceil(601 / 3)
    assert curve.training[0].step == 3
    assert curve.training[0].nats_per_token == pytest.approx((1 * 2 + 2 * 1 + 3 * 2) / 5)
    assert curve.training[-1].step == 601 and curve.training[-1].nats_per_token == 601.0
    assert curve.validation == () and curve.best_step is None


def test_damaged_and_non_finite_lines_are_left_out(tmp_path: Path) -> None:
    bad = [step(2, float("nan"), 10), {"step": 3}, step(4, 2.0, 10, validation_nats_per_token=float("inf"))]
    write_metrics(tmp_path, [step(1, 5.0, 10), *bad, step(5, 4.0, 10)], rest=b'{"step": 6, "loss_na')
    (curve,) = training_curves([str(tmp_path)])
    assert [point.step for point in curve.training] == [1, 5]


def test_a_log_without_steps_has_no_curve(tmp_path: Path) -> None:
    write_metrics(tmp_path, [], rest=b"\n[]\n")
    assert training_curves([str(tmp_path)]) == ()
