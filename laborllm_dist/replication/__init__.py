"""A replication package of runs: software, settings, programs, tables and figures, and a README for the data editor."""
