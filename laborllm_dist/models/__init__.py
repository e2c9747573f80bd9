"""Models: loading, attention, log-likelihood, LoRA, inference, export."""
