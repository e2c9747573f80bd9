"""Slow, obvious answers to compare with."""
