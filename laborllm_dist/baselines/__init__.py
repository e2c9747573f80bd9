"""Models to compare with; each ends in a score table."""
