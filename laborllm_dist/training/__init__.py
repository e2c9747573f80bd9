"""Training: plan, schedule, validation, the loop, and progress messages."""
