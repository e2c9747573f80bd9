"""Metrics of a training: metrics.jsonl, and the trackers that show a copy."""
