"""One run of a script: its seed, device and precision, and the files that it leaves behind."""

import atexit
import contextlib
import itertools
import json
import logging
import os
import platform
import random
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipfh.core.errors import InputError, shortened
from clipfh.core.files import replace_atomically, writable_folder, write_json
from clipfh.core.paths import ROOT

STEPS_AT_ONCE = 50  # of TensorBoard: values stay where they were computed until so many steps are written
DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")
PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "numpy", "pandas", "Pillow")


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and the number of processes, as `torchrun` sets them; (0, 1) without it.

    Raises:
        InputError: the variables hold no such numbers; or several processes. Sampler, seeds and logs know ranks, but
            gradients are not exchanged yet: every process would train a model of its own on a part of the batches.
    """
    try:
        rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError as error:
        raise InputError(f"RANK and WORLD_SIZE are whole numbers, as torchrun sets them ({shortened(error)})") from None
    if not 0 <= rank < world_size:
        raise InputError(f"RANK is {rank} and WORLD_SIZE {world_size}; unset both for a run in one process")
    if world_size > 1:
        raise InputError(f"WORLD_SIZE is {world_size}: train in one process, and choose its GPU with --device cuda:N")
    return rank, world_size


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed Python, NumPy and torch; every rank draws differently."""
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
        torch.cuda.set_rng_state_all(state["cuda"])
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


def jsonable(config: Any) -> dict[str, Any]:
    """A dataclass as JSON values, by the names of its flags: paths become strings, a nested field is `outer.inner`."""
    values = {}
    for name, value in asdict(config).items():
        inner = {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
        values.update({key: str(v) if isinstance(v, Path) else v for key, v in inner.items()})
    return values


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


class RunLog:
    """The log folder of one training run: `train.log`, `metrics.jsonl`, TensorBoard events, `config.json`.

    Only rank 0 writes; on other ranks every method does nothing.

    Args:
        folder: of the log; made where it is missing.
        config: the run's flags, a dataclass.
        extra: more to keep in `config.json`.
        rank: of this process.
        last_row: where a run is continued, the row of `metrics.jsonl` that belongs to its checkpoint. The file is made
            to end with it: a kill may have come before the row was written, or after rows that are computed again.
            A row of epoch 0, or an empty one: none was written yet.

    Raises:
        InputError: the folder cannot be written, or holds a `metrics.jsonl` that is no such file.
    """

    def __init__(
        self,
        folder: Path,
        config: Any,
        *,
        extra: dict[str, Any] | None = None,
        rank: int = 0,
        last_row: dict[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.is_writer = rank == 0
        if not self.is_writer:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if last_row is not None:
                self._end_with(last_row)
            handler = logging.FileHandler(folder / "train.log", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"cannot write the log folder {folder}: {error.strerror}. Choose another --log_dir"
            ) from error
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        self._logger = logging.Logger("run")  # its own, not a global: two runs in one process stay apart
        self._logger.addHandler(handler)
        self._tensorboard = SummaryWriter(str(folder))
        self._steps: list[tuple[int, float, dict[str, float | torch.Tensor]]] = []  # step, time, values
        atexit.register(self.close)  # a run that is stopped keeps its last steps
        self._metrics = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        write_json(folder / "config.json", {"config": jsonable(config), **(extra or {}), **environment()})

    def say(self, message: str) -> None:
        """Print a line, and keep it in `train.log`."""
        if self.is_writer:
            print(message, flush=True)
            self._logger.info(message)

    def step(self, step: int, values: dict[str, float | torch.Tensor]) -> None:
        """Keep the values of one optimiser step for TensorBoard, numbers or 0-d tensors on any one device.

        They are written some steps at once, so that a step neither waits for the device nor for a file.
        """
        if self.is_writer:
            detached = {name: v.detach() if isinstance(v, torch.Tensor) else v for name, v in values.items()}
            self._steps.append((step, time.time(), detached))
            if len(self._steps) >= STEPS_AT_ONCE:
                self._write_steps()

    def _write_steps(self) -> None:
        tensors = [v.float() for _, _, values in self._steps for v in values.values() if isinstance(v, torch.Tensor)]
        numbers = iter(torch.stack(tensors).tolist() if tensors else [])  # one transfer
        for step, when, values in self._steps:
            for name, value in values.items():
                number = next(numbers) if isinstance(value, torch.Tensor) else value
                self._tensorboard.add_scalar(f"step/{name}", number, step, walltime=when)
        self._steps.clear()

    def epoch(self, row: dict[str, Any]) -> None:
        """Append one epoch's line to `metrics.jsonl` and its numbers to TensorBoard; `row` has the key `epoch`."""
        if self.is_writer:
            self._write_steps()
            self._metrics.write(json.dumps(row) + "\n")
            self._metrics.flush()
            for name, value in row.items():
                if isinstance(value, (int, float)) and name != "epoch":
                    self._tensorboard.add_scalar(f"epoch/{name}", value, row["epoch"])

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Show an image in TensorBoard: (H, W, 3) uint8."""
        if self.is_writer:
            self._tensorboard.add_image(name, pixels, step, dataformats="HWC")

    def _end_with(self, row: dict[str, Any]) -> None:
        """Cut `metrics.jsonl` behind `row`, or behind what came before it and add it."""
        rows = self.epochs() if (self.folder / "metrics.jsonl").exists() else []
        place = _place(row)
        kept = [before for before in rows if _place(before) < place] + ([row] if place[1] else [])
        if kept != rows:
            with replace_atomically(self.folder / "metrics.jsonl") as temporary:
                temporary.write_text("".join(json.dumps(before) + "\n" for before in kept), encoding="utf-8")

    def epochs(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl` so far, those of a resumed run's earlier part included.

        Raises:
            InputError: a line is no JSON object; a last line without its end is what a kill left, and is left out.
        """
        path = self.folder / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1]
        try:
            rows = [json.loads(line) for line in lines]
            if all(isinstance(row, dict) and isinstance(row.get("epoch"), int) for row in rows):
                return rows
        except (ValueError, RecursionError):
            pass  # the message below says it
        raise InputError(f"{path} is not the log of a run: every line is a JSON object with its epoch; move it away")

    def close(self) -> None:
        """Write what is left, and close the files."""
        if self.is_writer:
            atexit.unregister(self.close)
            self._write_steps()
            self._metrics.close()
            self._tensorboard.close()
            for handler in self._logger.handlers:
                handler.close()


def _place(row: dict[str, Any]) -> tuple[int, int]:
    """Where a row of `metrics.jsonl` stands: stage 5 trains two GANs, one after the other, each from epoch 1."""
    return (1 if row.get("gan") == "text2img" else 0, row.get("epoch", 0))
