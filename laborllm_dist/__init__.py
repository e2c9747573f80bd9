"""Fine-tune language models on career histories and score every occupation exactly, over any number of ranks."""

import logging

__version__ = "0.1.0"

# peft imports bitsandbytes wherever transformers is imported; its note about an optional CPU kernel helps nobody here.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
