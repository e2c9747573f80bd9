"""Checkpoints from which training resumes."""
