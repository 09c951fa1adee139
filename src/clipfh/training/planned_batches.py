"""What the batch samplers share: an epoch is planned as a whole, and resumed in its middle."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clipfh.core.errors import InputError


class PlannedBatches:
    """The part that both samplers share: epochs and position. `_plan(number)` gives the batches of a pass.

    An epoch is one pass over the images, or so many that it has the batches that are asked for.
    """

    def __init__(self, seed: int, settings: dict[str, Any]) -> None:
        if seed < 0:
            raise InputError(f"the sampler's seed is {seed}; choose a seed of 0 or more")
        self._seed = seed
        self._settings = {"seed": seed, **settings}
        self._notes: list[str] = []
        self._num_batches, self._passes = 0, 1  # of a pass, and of an epoch: `_set_length`
        self._epoch, self._start, self._yielded, self._finished = 0, 0, 0, False

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self._passes * self._num_batches

    def _set_length(self, num_batches: int, min_batches: int) -> None:
        """Let a pass have `num_batches` batches, and an epoch the passes that make `min_batches` or more."""
        self._num_batches, self._passes = num_batches, max(1, -(-min_batches // num_batches))
        if self._passes > 1:  # one pass is what states without the key are of
            self._settings["passes"] = self._passes
            self._notes.append(f"all photos make {num_batches:,} batches: an epoch is {self._passes} passes over them")

    @property
    def note(self) -> str:
        """A line for the log: images that are drawn repeatedly or left out, and several passes; else empty."""
        return "; ".join(self._notes)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, from its first batch, or from where `load_state_dict` stopped in it.

        Without this call, every iteration that ran to its end is followed by the next epoch.
        """
        if epoch < 0:
            raise ValueError(f"epochs count from 0, not {epoch}")
        if epoch != self._epoch or self._finished:
            self._epoch, self._start, self._yielded, self._finished = epoch, 0, 0, False

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of the epoch; an iteration that is given up does not change the next one."""
        if self._finished:
            self.set_epoch(self._epoch + 1)
        start, self._start = self._start, 0
        self._yielded = start
        batches: Sequence[np.ndarray] = ()
        for number in range(start, len(self)):
            passes, place = divmod(number, self._num_batches)
            if place == 0 or number == start:
                batches = self._plan(self._epoch * self._passes + passes)
            self._yielded = number + 1
            yield batches[place].ravel().tolist()
        self._finished = True

    def state_dict(self, batches_done: int | None = None) -> dict[str, Any]:
        """Return the position as plain values.

        Args:
            batches_done: how many batches of this epoch the training has used. By default the number that
                were yielded, which is more where a DataLoader with workers fetches ahead: give it there.
        """
        if batches_done is None and self._finished:
            return {"epoch": self._epoch + 1, "batches_done": 0, "settings": dict(self._settings)}
        done = max(self._yielded, self._start) if batches_done is None else int(batches_done)
        if not 0 <= done <= len(self):
            raise ValueError(f"batches_done must be 0 to {len(self)}, not {done}")
        return {"epoch": self._epoch, "batches_done": done, "settings": dict(self._settings)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken: the next iteration yields the rest of its epoch, batch for batch.

        Raises:
            InputError: the state was taken with other data or settings.
        """
        saved = state.get("settings", {})
        for name, value in self._settings.items():
            if saved.get(name) != value:
                raise InputError(
                    f"the sampler's state was saved with {name} = {saved.get(name)}, this run has {value}; "
                    "resume with the same data and flags, or start anew without --resume_ckpt"
                )
        self._epoch, self._start, self._finished = int(state["epoch"]), int(state["batches_done"]), False
        self._yielded = self._start

    def _plan(self, number: int) -> Sequence[np.ndarray]:
        raise NotImplementedError
