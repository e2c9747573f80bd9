"""Metrics of a training: metrics.jsonl and wandb."""
