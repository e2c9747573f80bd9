"""Are two runs the same, bit for bit? Exit code 1 where something differs.

    python benchmarks/compare_runs.py runs/A runs/B
    python benchmarks/compare_runs.py ../older/runs/A runs/A --rename OLD=NEW      where a column was renamed

One line each for the exported weights (and the adapter), the loss of every step, and every table that either run has in
scores/, column by column. The script reads the files themselves and not through the package, so the runs may come from
different versions. It compares no metadata (versions, fingerprints, names of settings) but the order of occupations.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Parts = dict[str, Any]  # what is compared, by name; equal values are equal bits


def digest(*pieces: Any) -> str:
    """Return a checksum of buffers of bytes."""
    checksum = hashlib.sha256()
    for piece in pieces:
        checksum.update(piece)
    return checksum.hexdigest()


def tensors(folder: Path) -> Parts:
    """Return type, shape and a checksum of every tensor in the safetensors files of a folder."""
    parts: Parts = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                start, end = entry["data_offsets"]
                file.seek(8 + length + start)
                parts[name] = (entry["dtype"], entry["shape"], digest(file.read(end - start)))
    return parts


def step_losses(path: Path) -> Parts:
    """Return the loss of every step; a step that was repeated after a kill counts once, with its last value."""
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines()) if path.is_file() else ()
    return {f"step {line['step']}": line["loss_nats_per_token"] for line in lines if "loss_nats_per_token" in line}


def columns(path: Path, renamed: Mapping[str, str]) -> Parts:
    """Return a checksum of every column of a Parquet file, of its type and of its list of occupations."""
    if not path.is_file():
        return {}
    table = pq.read_table(path)
    parts: Parts = {}
    for name in table.column_names:
        column = pa.table({"column": table[name].combine_chunks()})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, column.schema) as writer:
            writer.write_table(column)
        parts[renamed.get(name, name)] = digest(sink.getvalue())
    if occupations := (table.schema.metadata or {}).get(b"occupations"):
        parts["order of occupations"] = digest(occupations)
    return parts


def verdict(subject: str, read: Callable[[Path], Parts], runs: tuple[Path, Path]) -> tuple[str, bool]:
    """Return one line on what a function reads from two runs, and whether it is the same."""
    first, second = map(read, runs)
    if first == second:
        return f"{subject}: {f'equal ({len(first)})' if first else 'in neither run'}", True
    if not first or not second:
        return f"{subject}: only in {runs[1] if second else runs[0]}", False
    different = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    shown = ", ".join(different[:5]) + (", ..." if len(different) > 5 else "")
    return f"{subject}: DIFFERENT ({len(different)} of {len({**first, **second})}): {shown}", False


def compare(runs: tuple[Path, Path], renamed: Mapping[str, str]) -> tuple[list[str], bool]:
    """Return a line for each part of two runs, and whether all of them are the same."""

    def scores(name: str) -> Callable[[Path], dict[str, Any]]:
        return lambda run: columns(run / "scores" / name, renamed)

    tables = sorted({path.name for run in runs for path in (run / "scores").glob("*.parquet")})
    verdicts = [
        verdict("tensors of export", lambda run: tensors(run / "export"), runs),
        verdict("tensors of adapter", lambda run: tensors(run / "adapter"), runs),
        verdict("losses of metrics.jsonl", lambda run: step_losses(run / "metrics.jsonl"), runs),
        *(verdict(f"columns of scores/{name}", scores(name), runs) for name in tables),
    ]
    return [line for line, _ in verdicts], all(is_same for _, is_same in verdicts)


def main() -> None:
    """Print the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN")
    parser.add_argument("--rename", action="append", default=[], metavar="OLD=NEW")
    arguments = parser.parse_args()
    for run in arguments.runs:
        if not (run / "settings.json").is_file():
            parser.exit(2, f"error: {run} is not the folder of a run: it has no settings.json\n")
    lines, is_same = compare(tuple(arguments.runs), dict(pair.split("=", 1) for pair in arguments.rename))
    print(*lines, sep="\n")
    sys.exit(0 if is_same else 1)


if __name__ == "__main__":
    main()
