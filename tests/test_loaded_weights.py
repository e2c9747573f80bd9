from pathlib import Path
from launching import PROJECT, run_ranks, run_well


def test_x(tmp_path):
    out = run_ranks(str(PROJECT / "tests/loaded_program.py"), [str(tmp_path / "m")], world_size=2, log=tmp_path / "log")
    print(out.text, out.codes)
    assert 0
