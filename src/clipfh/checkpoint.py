"""Checkpoints: plain tensors and plain values, written whole or not at all, loaded with `weights_only=True`."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clipfh.errors import InputError
from clipfh.files import replace_atomically
from clipfh.paths import display, stage_dir


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Save a dictionary of tensors and plain values (nested dictionaries, lists, numbers, strings) atomically."""
    with replace_atomically(path) as temporary:
        torch.save(content, temporary)


def write_best_and_last(
    folder: Path, run: str, content: dict[str, Any], *, is_best: bool, training: dict[str, Any]
) -> None:
    """Save an epoch of a run: `<run>_LAST.pth` with the state that continues it, and a new best as `<run>_BEST.pth`."""
    if is_best:
        write_checkpoint(folder / f"{run}_BEST.pth", content)
    write_checkpoint(folder / f"{run}_LAST.pth", {**content, "training": training})


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU.

    Raises:
        InputError: the file is missing, damaged, or holds more than tensors and plain values.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise InputError(f"checkpoint {path} does not exist") from None
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path} is not a file of plain tensors and values; it is not loaded, as that could "
            "run code. A whole pickled module? Save its state_dict() where it was made"
        ) from error
    except IsADirectoryError:
        raise InputError(f"checkpoint {path} is a folder; give one of its .pth files") from None
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise InputError(f"checkpoint {path} cannot be read ({str(error).splitlines()[0]}); make it again") from error
    if not isinstance(content, dict):
        raise InputError(f"checkpoint {path} is not a dictionary of tensors")
    return content


def newest_checkpoint(folder_stage: int, pattern: str, *, made_by: str, **recorded: Any) -> Path:
    """The newest checkpoint of stage `folder_stage` that matches `pattern` and records the given values.

    Raises:
        InputError: there is none; the message names the command `made_by`.
    """
    folder = stage_dir(folder_stage) / "checkpoints"
    found = sorted(folder.glob(pattern), key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
    for path in found:
        content = read_checkpoint(path)
        if all(content.get(key) == value for key, value in recorded.items()):
            return path
    wanted = ", ".join(f"{key} {value}" for key, value in recorded.items())
    raise InputError(f"no checkpoint {pattern} with {wanted} in {display(folder)}. Make one with: {made_by}")


def require_training_state(content: dict[str, Any], path: Path, model: str, stage: int) -> dict[str, Any]:
    """The part of a `_LAST` checkpoint that resumes a run.

    Raises:
        InputError: the checkpoint is of another stage or architecture, or holds weights only.
    """
    if content.get("stage") != stage or content.get("model") != model:
        raise InputError(
            f"{path} is of stage {content.get('stage')} and model {content.get('model')}; "
            f"this run is stage {stage} with {model}"
        )
    if "training" not in content:
        raise InputError(f"{path} holds weights only; resume from the _LAST checkpoint of the same run")
    return content["training"]


def weights_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the names, types, shapes and bytes of a state dict: the same for bit-identical weights only."""
    digest = hashlib.sha256()  # processors have instructions for it: twice as fast as BLAKE2
    for name, value in weights.items():
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
