"""DistributedContext: rendezvous, collectives, the peer watchdog, Slurm, and DeepSpeed's engine."""
