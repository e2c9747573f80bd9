"""The fingerprint of a model's weights, which identifies them in runs, exports and score tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from laborllm_dist.errors import ModelError
from laborllm_dist.io.files import checksums_of, sha256_of_checksums
from laborllm_dist.io.recorded_folder import RECORD, DamagedRecordError, changed_file, read_record
from laborllm_dist.models.lora import ADAPTER_CONFIG, ADAPTER_FILE
from laborllm_dist.models.safetensors_loading import files_of_weights

PICKLES = "pytorch_model*.bin"


def weights_fingerprint(folder: Path, weights: str) -> str:
    """Return 16 hexadecimal digits that identify the weights and configuration of a model's or adapter's folder.

    Args:
        folder: of the model.
        weights: format to open, safetensors or pickle.

    Raises:
        ModelError: if the folder has no such files, or a file has changed since this software wrote it.
    """
    known = recorded_checksums(folder)
    if (folder / ADAPTER_FILE).is_file() and (folder / ADAPTER_CONFIG).is_file():
        return _fingerprint([folder / ADAPTER_CONFIG, folder / ADAPTER_FILE], known)
    files = [folder / "config.json", *files_of_weights(folder, weights)]
    if len(files) < 2 or not files[0].is_file():
        pattern = "*.safetensors" if weights == "safetensors" else PICKLES
        others = "; model.weights=pickle opens its *.bin files, which can run code of whoever made them"
        hint = others if weights == "safetensors" and any(folder.glob(PICKLES)) else ""
        raise ModelError(
            f"{folder} is not a model folder: expected config.json and {pattern}{hint}", code="not-a-model-folder"
        )
    return _fingerprint(files, known)


def _fingerprint(files: Sequence[Path], known: Mapping[str, str]) -> str:
    """Return a fingerprint of the content of files; files with known checksums are not read again."""
    unknown = [file for file in files if file.name not in known]
    checksums = dict(zip(unknown, checksums_of(unknown), strict=True))
    return sha256_of_checksums(known.get(file.name) or checksums[file] for file in files)


def recorded_checksums(folder: Path) -> Mapping[str, str]:
    """Return the recorded checksums of a folder that this software wrote, after checking its files; else an empty dict.

    Raises:
        ModelError: naming the first file that has changed.
    """
    record = None
    try:
        record = read_record(folder)
        changed = None if record is None else changed_file(folder, record)
    except DamagedRecordError as error:
        changed = str(error)
    if changed is not None:
        raise ModelError(
            f"{changed}; the command that wrote {folder} writes it again (start train.py or convert_gguf.py "
            f"again); if the "
            f"change is intentional, delete {folder / RECORD}",
            code="model-folder-changed",
        )
    return (record.files if record is not None else None) or {}
