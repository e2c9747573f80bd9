"""Starts the suite from any folder, installed or not: python benchmarks/gpu_suite."""

import sys
from importlib import import_module
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    # In place of this folder, whose modules are gpu_suite.NAME; the project may not be installed.
    sys.path[:1] = [str(BENCHMARKS), str(BENCHMARKS.parent)]
    sys.exit(import_module("gpu_suite.runner").main())
