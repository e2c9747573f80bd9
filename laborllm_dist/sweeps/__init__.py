"""Sweeps: many runs over model size and data, the table of their points, and the scaling law fitted to it."""
