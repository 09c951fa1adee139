"""Checkpoints: plain tensors and plain values, written whole or not at all, loaded with `weights_only=True`."""

import hashlib
import math
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from clipfh.core.cli import MAX_IMAGE_SIZE
from clipfh.core.errors import InputError, printable, shortened, shown
from clipfh.core.files import replace_atomically
from clipfh.core.names import is_name
from clipfh.core.paths import display, stage_dir
from clipfh.core.values import is_texts


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 1000 and printable(value) == value


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_seed(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_fold(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_count, value))


def _is_size(value: Any) -> bool:
    sides = [value, value] if type(value) is int else value
    return (
        isinstance(sides, (list, tuple))
        and len(sides) == 2
        and all(type(side) is int and 0 < side <= MAX_IMAGE_SIZE for side in sides)
    )


def _is_colour(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(map(_is_number, value))


def _is_spread(value: Any) -> bool:
    return _is_colour(value) and min(value) > 0


# what a checkpoint may record, with the check of its value
_TYPES: dict[str, Callable[[Any], bool]] = {
    "stage": _is_count,
    "model": _is_text,
    "dataset": is_name,
    "variant": _is_text,
    "epoch": _is_count,
    "val_mAP": _is_number,
    "val_mean_mAP": _is_number,
    "val_recall": _is_number,
    "first_weights": _is_text,
    "alpha": _is_number,
    "interpolation": lambda value: isinstance(value, dict) and all(map(_is_number, [*value, *value.values()])),
    "image_size": _is_size,
    "resize_mode": _is_text,
    "mean": _is_colour,
    "std": _is_spread,
    "quick_gelu": lambda value: isinstance(value, bool),
    "image_encoder": _is_text,
    "image_weights": _is_text,
    "text_model": _is_text,
    "text_digest": _is_text,
    "data_digest": _is_text,
    "val_fold": _is_fold,
    "seen_identities": lambda value: isinstance(value, dict) and all(map(is_texts, value.values())),
    "seen_faces": lambda value: isinstance(value, torch.Tensor) and value.dtype == torch.int64,
    "head_layers": _is_count,
    "head_norm": _is_text,
    "head_dropout": _is_number,
    "gan": _is_text,
    "part": _is_text,
    "run": is_name,
    "train_seed": _is_seed,
    "recipe": _is_text,
    "start_recipe": _is_text,
    "settings": lambda value: isinstance(value, dict),
    "captions": lambda value: isinstance(value, dict),
    "clip": lambda value: isinstance(value, dict),
    "faces": lambda value: isinstance(value, dict),
    "flags": lambda value: isinstance(value, dict),
    "row": lambda value: isinstance(value, dict),
    "training": lambda value: isinstance(value, dict),
}
_FINE_TUNED = ("model", "dataset", "variant", "epoch", "image_size", "mean", "std", "state_dict")
_FINE_TUNED += ("data_digest", "seen_identities")
_ALIGNED = ("model", "dataset", "data_digest", "variant", "epoch", "val_recall", "state_dict")
_ALIGNED += ("image_encoder", "image_weights", "image_size", "text_model", "text_digest", "mean", "std")
_ALIGNED += ("head_layers", "head_norm", "head_dropout", "quick_gelu")
# what one of each stage always records
_RECORDED = {2: _FINE_TUNED, 3: _FINE_TUNED, 4: _ALIGNED, 5: ("gan", "data_digest")}
# what continues a run, see `clipfh.training.loop.Loop.state`
_TRAINING = {
    **dict.fromkeys(("modules", "optimizers", "scheduler", "sampler", "random", "best", "flags"), dict),
    **dict.fromkeys(("epoch", "step"), int),
}


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Save a dictionary of tensors and plain values (nested dictionaries, lists, numbers, strings) atomically.

    Raises:
        InputError: it cannot be written, as on a full disk; what `path` held before is still there.
    """
    try:
        with replace_atomically(path) as temporary:
            torch.save(content, temporary)
    except RuntimeError as error:  # torch's writer: what cannot be saved, or a disk that failed
        raise InputError(f"cannot write {path} ({shortened(error)})") from error


def write_best_and_last(
    folder: Path, run: str, content: dict[str, Any], *, is_best: bool, training: dict[str, Any]
) -> None:
    """Save an epoch of a run: `<run>_LAST.pth` with the state that continues it, and a new best as `<run>_BEST.pth`."""
    if is_best:
        write_checkpoint(folder / f"{run}_BEST.pth", content)
    write_checkpoint(folder / f"{run}_LAST.pth", {**content, "training": training})


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU.

    This is the one place where a checkpoint's values are checked: what it records has its type, see `_TYPES`.

    Raises:
        InputError: the file is missing, damaged, holds more than tensors and plain values, or a value of another type.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise InputError(f"checkpoint {path} is no regular file")  # reading a pipe would wait for ever
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
    except (RuntimeError, EOFError, ValueError, OSError, KeyError, TypeError, RecursionError) as error:
        if "mmap can only be used" in str(error):  # torch's word for what is not in the format of its files
            raise InputError(f"{path} is no checkpoint: it is not in the format that torch.save writes") from error
        raise InputError(f"checkpoint {path} cannot be read ({shortened(error)}); make it again") from error
    if not isinstance(content, dict):
        raise InputError(f"checkpoint {path} is not a dictionary of tensors")
    if "stage" in content or content.keys() >= {"model", "image_size", "state_dict"}:  # ours, no foreign weights
        for key, is_valid in _TYPES.items():
            if key in content and not is_valid(content[key]):
                raise InputError(f"checkpoint {path}: {key} is {shown(content[key])}; it is damaged or made elsewhere")
    return content


def read_stage_checkpoint(path: Path, stage: int) -> dict[str, Any]:
    """Load a checkpoint that has to be of `stage`, with all that such a one records.

    Raises:
        InputError: as `read_checkpoint`; or it is of another stage, or lacks something.
    """
    content = read_checkpoint(path)
    if content.get("stage") != stage:
        raise InputError(f"{path} is of stage {content.get('stage')}, not of stage {stage}")
    require_keys(path, content, _RECORDED[stage])
    return content


def require_keys(path: Path, content: dict[str, Any], keys: Iterable[str]) -> None:
    """Refuse a checkpoint that lacks any of `keys`.

    Raises:
        InputError: it does; the message names them.
    """
    absent = [key for key in keys if key not in content]
    if absent:
        raise InputError(f"{path} lacks {', '.join(absent)}: it is no such checkpoint of this version")


def newest_checkpoint(
    folder_stage: int, pattern: str, *, made_by: str, data_digest: str | None = None, **recorded: Any
) -> Path:
    """The newest checkpoint of stage `folder_stage` that matches `pattern` and records the given values.

    Those that were trained on the data of `data_digest` go before the others. One of a fold (`--val_fold`) is of that
    fold alone: another digest passes it over.

    Raises:
        InputError: there is none; the message names the command `made_by`, and says how many are of folds.
    """
    folder = stage_dir(folder_stage) / "checkpoints"
    found = sorted(folder.glob(pattern), key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
    of_other_data: list[Path] = []
    of_folds = 0
    for path in found:
        try:
            content = read_checkpoint(path)
        except InputError as error:  # it is not asked for by its name: an older one may do
            print(f"note: passed over {shortened(error)}")
            continue
        if all(content.get(key) == value for key, value in recorded.items()):
            is_of_fold = "val_fold" in content
            if content.get("data_digest") == data_digest or (data_digest is None and not is_of_fold):
                return path
            if is_of_fold:  # `require_unseen` has no reason to refuse it: the dataset's test identities are unseen
                of_folds += 1
            else:
                of_other_data.append(path)
    if of_other_data:
        return of_other_data[0]  # whether it may be used, `clipfh.tables.digest.require_unseen` decides
    wanted = ", ".join(f"{key} {value}" for key, value in recorded.items())
    but = f" (passed over {of_folds} of --val_fold: outside its fold, one is taken by its path)" if of_folds else ""
    raise InputError(f"no checkpoint {pattern} with {wanted} in {display(folder)}{but}. Make one with: {made_by}")


def require_training_state(content: dict[str, Any], path: Path, model: str, data_digest: str) -> dict[str, Any]:
    """The part of a `_LAST` checkpoint, read with `read_stage_checkpoint`, that resumes a run.

    Raises:
        InputError: the checkpoint is of another architecture or other data, or holds weights only.
    """
    if content["model"] != model:
        raise InputError(f"{path} is of model {content['model']}; this run is of {model}")
    if content["data_digest"] != data_digest:
        raise InputError(
            f"{path} was trained on other photos or splits of {content['dataset']} than there are now; prepare them as "
            "then, or train anew"
        )
    state = content.get("training")
    if state is None:
        raise InputError(f"{path} holds weights only; resume from the _LAST checkpoint of the same run")
    absent = [key for key, kind in _TRAINING.items() if not isinstance(state.get(key), kind)]
    if absent:
        raise InputError(f"{path}: what continues the run is damaged ({', '.join(absent)}); resume from another")
    return state


def weights_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the names, types, shapes and bytes of a state dict: the same for bit-identical weights only."""
    digest = hashlib.sha256()  # processors have instructions for it: twice as fast as BLAKE2
    for name, value in weights.items():
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
