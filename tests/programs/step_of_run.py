"""Do with a run's folder what the script of launch/ by this file's name does, without a model or the package.

The file `journal` of the working folder gets a line for every start, and `gpus_SEED` one with the GPUs that a training
or evaluation may use. A run's record is copied from `records`. Where
the folder has a file `fail_SEED`, the training with this seed fails; where it has `wait_SEED`, it waits to be stopped.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    step, arguments = Path(sys.argv[0]).stem, dict(word.partition("=")[::2] for word in sys.argv[1:])
    run = Path(arguments["run"].strip('"') if "run" in arguments else f"{arguments['output_dir']}/{arguments['name']}")
    (seed,) = re.findall(r"-seed(\d+)-", run.name)
    with Path("journal").open("a") as file:
        file.write(f"{step} {seed}\n")
    if step in ("train", "evaluate"):
        with Path(f"gpus_{seed}").open("a") as file:
            file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "") + "\n")
    if step in ("prepare", "train"):
        if step == "train" and Path(f"fail_{seed}").exists():
            print("error: the loss of step 7 is nan [non-finite-loss/bad-step]")
            print("[launch.py:325:sigkill_handler] Killing subprocess 17")
            sys.exit(2)
        run.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path("records") / run.name / "settings.json", run)
        if step == "train" and Path(f"wait_{seed}").exists():
            signal.signal(signal.SIGTERM, stop)
            Path(f"waits_{seed}").touch()
            time.sleep(300)
        return
    names = re.findall(r"\w+", arguments.get("baselines", ""))
    for table in [f"test.{name}.parquet" for name in names] or ["test.parquet"]:
        (run / "scores").mkdir(exist_ok=True)
        (run / "scores" / table).touch()


def stop(number: int, frame: object) -> None:
    print("stopped: on request, after step 1, which is saved")
    sys.exit(75)


if __name__ == "__main__":
    main()
