"""The traffic that is planned is what two ranks send: every collective of a step is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.processes import PROJECT, run_well
from helpers.runs import settings_of

from laborllm_dist.models.dims import shape_of
from laborllm_dist.planning.throughput import traffic_of_step

# Matrices above 100,000 weights, below which ZeRO-3 never cuts a weight apart; 300,000 of 3,975,360 stay gathered.
MODEL = [
    "model.llama.hidden_size=320", "model.llama.intermediate_size=864", "model.llama.num_layers=3",
    "model.llama.tied_embeddings=false", "zero.bucket_size=30000", "plan.num_gpus=2",
]  # fmt: skip
CASES = {
    "ZeRO-0": ["zero=stage0"],
    "ZeRO-1, bf16": ["zero=stage1", "zero.precision=bf16"],
    "ZeRO-2, bf16": ["zero=stage2_bf16"],
    "ZeRO-3": ["zero=stage3"],
    "ZeRO-3, bf16, layers computed again": ["zero=stage3_bf16", "compute=large"],
}


@pytest.mark.ranks
def test_planned_traffic_is_what_two_ranks_send(tmp_path: Path) -> None:
    cases = {name: [*MODEL, *overrides] for name, overrides in CASES.items()}
    program = str(PROJECT / "tests/programs/traffic.py")
    text = run_well(program, [json.dumps(cases)], world_size=2, log=tmp_path / "log")
    (line,) = (line for line in text.splitlines() if line.startswith("BYTES "))
    counted = json.loads(line.removeprefix("BYTES "))
    planned = {}
    for name, overrides in cases.items():
        settings = settings_of(overrides)
        planned[name] = traffic_of_step(shape_of(settings.model, num_ids=400), settings, 2).total
    assert counted == {name: pytest.approx(num_bytes, rel=0.05) for name, num_bytes in planned.items()}
