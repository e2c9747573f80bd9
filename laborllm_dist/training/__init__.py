"""Training: schedule, validation, the loop, and the run's folder."""
