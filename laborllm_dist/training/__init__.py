"""Training: plan, schedule, validation, the loop, and what a run says."""
