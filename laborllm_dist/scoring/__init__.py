"""Scoring: log-likelihoods of titles, in units that do not depend on ranks, merged into a score table."""
