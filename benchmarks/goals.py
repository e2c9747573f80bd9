"""Do the results meet their goals? Exit code 1 where one does not.

    python benchmarks/goals.py          after make quickstart synthetic

Wage panel: the language model is no worse than the first-order model. Synthetic market: its perplexity lies between
that of the truth and that of the first-order model, beyond the 95 % interval of the paired difference.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RUNS = Path("runs")


def read_summary(run: str) -> dict[str, Any]:
    """Return a run's summary."""
    path = RUNS / run / "report/summary.json"
    if not path.is_file():
        sys.exit(f"error: no report at {path}; run make quickstart synthetic first")
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return summary


def gain_nats(summary: dict[str, Any], better: str, worse: str) -> dict[str, float]:
    """Return the paired gain of one model over another, value, low and high, nats per observation."""
    for pair in summary["pairs"]:
        gain: dict[str, float] = pair["difference_nats"]
        if (pair["first"], pair["second"]) == (better, worse):
            return gain
        if (pair["second"], pair["first"]) == (better, worse):
            return {"value": -gain["value"], "low": -gain["high"], "high": -gain["low"]}
    sys.exit(f"error: no pair {better}, {worse} in the report")


def main() -> None:
    """Print each goal and whether it is met."""
    wage, market = read_summary("quickstart"), read_summary("synthetic_small")
    goals = [
        ("wage panel: no worse than first-order", gain_nats(wage, "quickstart", "first-order"), "value"),
        ("market: better than first-order", gain_nats(market, "synthetic_small", "first-order"), "low"),
        ("market: the truth is better still", gain_nats(market, "truth", "synthetic_small"), "low"),
    ]
    for name, gain, bound in goals:
        met = "met" if gain[bound] >= 0 else "MISSED"
        print(f"{met}  {name}: {gain['value']:+.4f} nats per observation ({gain['low']:+.4f} to {gain['high']:+.4f})")
    sys.exit(int(any(gain[bound] < 0 for _, gain, bound in goals)))


if __name__ == "__main__":
    main()
