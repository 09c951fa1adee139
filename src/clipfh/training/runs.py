"""A training run: the place it computes and writes in, and its start, anew or where an earlier one stopped."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from clipfh.core.errors import InputError
from clipfh.core.files import replace_atomically, require_file, writable_folder
from clipfh.core.freed_memory import keep_freed_memory
from clipfh.core.paths import display, stage_dir
from clipfh.core.processes import by_first, claim_gpu, join, rank
from clipfh.core.run import new_run_folder, pick_device, seed_everything
from clipfh.core.run_log import RunLog
from clipfh.models.checkpoint import read_stage_checkpoint, require_training_state, write_best_and_last
from clipfh.training.recipe import recipe_digest
from clipfh.training.settings import Run
from clipfh.training.state import binding_flags, require_same_flags


@dataclass(frozen=True)
class Place:
    """Where a run computes and writes.

    Attributes:
        stage: its number.
        seed: of everything that is drawn at random.
        checkpoints, logs: folders, of all runs of the stage.
    """

    stage: int
    device: torch.device
    seed: int
    checkpoints: Path
    logs: Path


def prepare_run(run: Run, stage: int) -> Place:
    """Meet the run's other processes, if any, seed everything, and find device and folders.

    Raises:
        InputError: one of them cannot be had, or the checkpoint to resume is missing.
    """
    claim_gpu()
    device = join(pick_device(run.device))
    seed_everything(run.seed)
    keep_freed_memory()
    if run.resume_ckpt:
        require_file(run.resume_ckpt, "--resume_ckpt")
    apart = "smoke" if run.smoke else ""  # so that a smoke run is never taken for the newest BEST
    checkpoints = writable_folder(run.save_path or stage_dir(stage) / "checkpoints" / apart, "--save_path")
    logs = writable_folder(run.log_dir or stage_dir(stage) / "logs" / apart, "--log_dir")
    return Place(stage, device, run.seed, checkpoints, logs)


@dataclass(frozen=True)
class TrainingRun:
    """A run that has started.

    Attributes:
        name: of its log folder, and what its checkpoints' names begin with.
        recorded: what every checkpoint says of the run.
        flags: those that a continuation has to repeat.
    """

    name: str
    place: Place
    recorded: dict[str, Any]
    flags: dict[str, Any]
    log: RunLog

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch."""
        return _best_of(self.place, self.name)

    def save(self, content: dict[str, Any], state: dict[str, Any], *, is_best: bool) -> None:
        """Write an epoch's checkpoints: `content` with what is recorded; LAST also with the `state` that continues."""
        if rank() == 0:
            state = {**state, "flags": self.flags}
            content = {**self.recorded, **content}
            write_best_and_last(self.place.checkpoints, self.name, content, is_best=is_best, training=state)


def start_run(
    place: Place,
    config: Any,
    recorded: dict[str, Any],
    *,
    prefix: str,
    restore: Callable[[dict[str, Any]], None],
    origin: Sequence[str] = (),
) -> TrainingRun:
    """Begin a run `<prefix>_YYYYMMDD_HHMMSS`, or continue that of `--resume_ckpt`.

    Args:
        place: from `prepare_run`.
        config: all flags, with the sections `run` and `optimisation`.
        recorded: what every checkpoint says of the run; among it `model` and `data_digest`.
        prefix: of the name.
        restore: takes the saved state of a run that is continued.
        origin: what the run was trained from, see `recipe_digest`; without it no recipe is recorded. A run that is
            continued keeps its recipe, and that of what it started from.

    Raises:
        InputError: the run to continue was of another model, other data or flags, or its BEST is missing. Its files are
            left alone then.
    """
    resume, last_row = config.run.resume_ckpt, None
    if resume:
        content = read_stage_checkpoint(resume, place.stage)
        state = require_training_state(content, resume, recorded["model"], recorded["data_digest"])
        require_same_flags(state["flags"], config)
        if content.get("text_digest") != recorded.get("text_digest"):
            raise InputError(f"{resume} was trained beside other text weights; pass the same --pretrained")
        restore(state)
        folder, last_row = place.logs / resume.stem.removesuffix("_LAST"), state.get("row")
        if state["best"]["epoch"] or state["epoch"] == config.optimisation.epochs:  # without val, the last one is BEST
            by_first(_bring_best, _best_of(place, folder.name), resume)
        # what is loaded is the run itself. One of an older version lacks some: it is no longer known what it began with
        of_start = ("train_seed", "recipe", "start_recipe")
        recorded = {name: value for name, value in recorded.items() if name not in of_start}
        recorded |= {name: content[name] for name in of_start if name in content}
    else:
        recorded = recorded | {"train_seed": place.seed}
        recorded |= {"recipe": recipe_digest(config, origin)} if origin else {}
        folder = by_first(partial(new_run_folder, place.logs, prefix, "--log_dir", checkpoints=place.checkpoints))
    if rank() > 0:  # all have made or read the same weights; from here on each draws for rows of its own
        seed_everything(place.seed, rank())
    log = RunLog(folder, config, rank=rank(), last_row=last_row)
    return TrainingRun(folder.name, place, recorded, binding_flags(config), log)


def _best_of(place: Place, run: str) -> Path:
    return place.checkpoints / f"{run}_BEST.pth"


def _bring_best(best: Path, resume: Path) -> None:
    """See to it that the best epoch before `resume` lies at `best`: no later one may be better.

    Raises:
        InputError: it lies neither there nor beside `resume`, or cannot be copied.
    """
    before = resume.with_name(best.name)
    if best.is_file():
        return
    if not before.is_file():
        raise InputError(
            f"{display(before)} is missing: the best epoch so far of the run to resume, which lies beside its _LAST "
            "checkpoint. Copy it, too; their names begin alike"
        )
    with replace_atomically(best) as temporary:
        shutil.copyfile(before, temporary)
