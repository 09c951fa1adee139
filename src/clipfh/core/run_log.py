"""The log of one training run: lines, rows, TensorBoard, and the configuration that repeats it."""

import atexit
import json
import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipfh.core.cli import jsonable
from clipfh.core.errors import InputError
from clipfh.core.files import replace_atomically, write_json
from clipfh.core.run import environment

STEPS_AT_ONCE = 50  # of TensorBoard: values stay where they were computed until so many steps are written


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block.

    TensorBoard hands its values to a thread. An interrupt while it does so can leave the lock that both use taken for
    ever, and then the process does not end.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        handler(signal.SIGINT, None)


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
        with uninterrupted():
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
            with uninterrupted():
                for name, value in row.items():
                    if isinstance(value, (int, float)) and name != "epoch":
                        self._tensorboard.add_scalar(f"epoch/{name}", value, row["epoch"])

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Show an image in TensorBoard: (H, W, 3) uint8."""
        if self.is_writer:
            with uninterrupted():
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
