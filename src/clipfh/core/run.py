"""One run of a script: its seed, device and precision, and the files that it leaves behind."""

import atexit
import contextlib
import itertools
import platform
import random
import subprocess
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipfh.core.errors import InputError, shortened
from clipfh.core.files import writable_folder
from clipfh.core.paths import ROOT
from clipfh.core.processes import world_size

DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")
PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "numpy", "pandas", "Pillow")


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed Python, NumPy and torch; every process of a run draws differently."""
    random.seed(seed + 1000 * rank)
    np.random.seed((seed + 1000 * rank) % 2**32)
    torch.manual_seed(seed + 1000 * rank)


def pick_device(name: str) -> torch.device:
    """`auto` (CUDA, then Apple's MPS, then the CPU) or a device by its name.

    Raises:
        InputError: no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in DEVICE_TYPES or (device.type == "cpu" and device.index):
            raise RuntimeError("no device that computes")  # meta keeps no values; cpu:5 is taken, and computes wrongly
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"--device {shortened(name)} cannot be used here ({shortened(error)}); try auto or cpu"
        ) from error
    return device


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Mixed precision where the device has it: bfloat16 with `auto` on CUDA and on CPUs that compute in it.

    Args:
        device: of the computation.
        precision: `auto`, `float32` or `bfloat16`.
    """
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        # devices without these instructions emulate bfloat16, several times slower than float32
        fast = fast or (device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported() and _cpu_has_bf16())
        precision = "bfloat16" if fast else "float32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _cpu_has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def random_state() -> dict[str, Any]:
    """The state of every random generator, as plain values and tensors."""
    numpy_state = np.random.get_state()
    python_state = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]],
        "python": [python_state[0], list(python_state[1]), python_state[2]],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo `random_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])  # there may have been more
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    major, values, gauss = state["python"]
    random.setstate((major, tuple(values), gauss))


def environment() -> dict[str, Any]:
    """Versions, machine and git commit: what it takes to repeat a run."""
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git_commit": git_commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def git_commit() -> str | None:
    """The checkout's commit, with `+changes` where files differ from it; None outside a git checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        commit = git("rev-parse", "HEAD").strip()
        return commit + ("+changes" if git("status", "--porcelain").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def new_run_folder(parent: Path, prefix: str, flag: str, *, checkpoints: Path | None = None) -> Path:
    """Make the folder `<parent>/<prefix>_YYYYMMDD_HHMMSS`, local time, for one run: no other run gets the same.

    Runs that start within the same second get `_2`, `_3` and so on behind it. The folder's name is the run's.

    Args:
        parent: folder of the runs.
        prefix: what the name begins with.
        flag: that chooses another `parent`, for the message.
        checkpoints: where the run's checkpoints will lie, `<run>_*.pth`: the name is taken there too, by a hidden file
            that goes with this process, as runs with logs in different folders may share it.

    Raises:
        InputError: the folder cannot be made.
    """
    parent = writable_folder(parent, flag)
    name = f"{prefix}_{datetime.now():%Y%m%d_%H%M%S}"
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}_{number}")
        try:
            folder.mkdir()  # fails where another process was first
            if checkpoints is not None:
                taken = checkpoints / f".{folder.name}.running"
                taken.touch(exist_ok=False)
                atexit.register(taken.unlink, missing_ok=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(f"cannot make the folder {folder}: {error.strerror}. Choose another {flag}") from error
    raise AssertionError("unreachable: counting never ends")
