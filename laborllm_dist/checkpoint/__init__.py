"""Checkpoints that a training resumes from."""
