"""The notebook runs from its first cell to its last, shows what it has stored, and its table has the right numbers.

`pytest --record-golden tests/docs/test_notebook.py` stores the outputs anew.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.notebooks import read_notebook, run_cells, write_notebook
from helpers.processes import PROJECT

NOTEBOOK = PROJECT / "docs/from_scores_to_paper.ipynb"


def printed_lines(notebook: dict[str, Any]) -> list[str]:
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return [line for output in outputs for line in output.get("text", [])]


def test_the_notebook_runs_and_its_table_has_the_perplexities_of_the_score_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = read_notebook(NOTEBOOK)
    stored = printed_lines(notebook)
    run_cells(notebook)
    if request.config.getoption("--record-golden"):
        write_notebook(notebook, NOTEBOOK)
    else:
        assert printed_lines(notebook) == stored, "--record-golden stores the outputs anew"
    table = Path("paper/perplexity.tex").read_text()
    for path in Path("runs/notebook/scores").glob("*.parquet"):
        scores = pq.read_table(path)["title"].to_pylist()
        perplexity = math.exp(-math.fsum(scores) / len(scores))
        assert re.search(rf"(?m)^{path.stem.removeprefix('test.')} & {perplexity:.3f} & \[", table)
    assert table.startswith(r"\begin{tabular}{lrrr}")
    assert Path("paper/by_transition.pdf").read_bytes().startswith(b"%PDF-")
    (figure,) = [
        output["data"]["image/svg+xml"]
        for cell in notebook["cells"]
        for output in cell.get("outputs", [])
        if "data" in output
    ]
    assert "<svg" in "".join(figure)
