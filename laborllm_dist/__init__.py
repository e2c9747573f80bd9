"""Fine-tune language models on career histories and score every occupation exactly, over any number of ranks."""

__version__ = "0.1.0"
