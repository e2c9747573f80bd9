"""Run a command from any folder: python -m laborllm_dist NAME, deepspeed --module laborllm_dist NAME."""

from laborllm_dist.cli import main

if __name__ == "__main__":
    main()
