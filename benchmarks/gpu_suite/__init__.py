"""What a GPU makes of this software: correctness, training, evaluation and peers, in one command (runner.py)."""
