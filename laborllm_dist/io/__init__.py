"""Files, locks, the run directory, and the console."""
