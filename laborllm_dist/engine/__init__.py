"""The engine: ranks, models, DeepSpeed ZeRO, checkpoints and export. Only here are deepspeed and models imported."""
