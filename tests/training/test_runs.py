"""The start of a run: one that is continued in another folder brings its best epoch along."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from clipfh.core.cli import section
from clipfh.core.errors import InputError
from clipfh.models.checkpoint import write_best_and_last
from clipfh.training.runs import Place, TrainingRun, start_run
from clipfh.training.settings import Optimisation, Run
from clipfh.training.state import binding_flags

OPTIMISATION = Optimisation(
    epochs=3, weight_decay=0, warmup_fraction=0, clip_grad=1, accumulate=1, ema_decay=0, keep_start=0, patience=0
)
RECORDED = {
    **{"stage": 2, "model": "tiny-rn", "dataset": "photos", "variant": "", "image_size": 32, "mean": [0.5] * 3},
    **{"std": [0.5] * 3, "data_digest": "0", "seen_identities": {}},
}
STATE = {key: {} for key in ("modules", "optimizers", "scheduler", "sampler", "random")} | {"step": 1}


@dataclass(frozen=True)
class Config:
    run: Run = section()
    optimisation: Optimisation = section()


def stopped_run(folder: Path, *, best_epoch: int, epoch: int, is_best: bool, **recorded: object) -> Path:
    """LAST of a run that was stopped after `epoch`; and its BEST, where it has one."""
    flags = binding_flags(Config(Run(), OPTIMISATION))
    state = {**STATE, "best": {"epoch": best_epoch}, "epoch": epoch, "flags": flags}
    content = {**RECORDED, **recorded, "epoch": epoch, "state_dict": {"weight": torch.ones(2)}}
    folder.mkdir()
    write_best_and_last(folder, "run", content, is_best=is_best, training=state)
    return folder / "run_LAST.pth"


def continued(last: Path, folder: Path, **recorded: object) -> TrainingRun:
    place = Place(2, torch.device("cpu"), 0, folder, folder)
    config = Config(Run(resume_ckpt=last), OPTIMISATION)
    run = start_run(place, config, {**RECORDED, **recorded}, prefix="clip", restore=lambda state: None)
    run.log.close()
    return run


@pytest.mark.parametrize(("best_epoch", "epoch"), [(1, 1), (1, 2), (0, 3)], ids=["val", "since then worse", "no val"])
def test_a_run_that_goes_on_in_another_folder_has_its_best_epoch_there(tmp_path, best_epoch, epoch):
    last = stopped_run(tmp_path / "old", best_epoch=best_epoch, epoch=epoch, is_best=True)
    before = last.with_name("run_BEST.pth").read_bytes()
    run = continued(last, tmp_path / "new")
    assert run.best == tmp_path / "new" / "run_BEST.pth" and run.best.read_bytes() == before
    assert sorted(path.name for path in run.best.parent.iterdir()) == ["run", "run_BEST.pth"]


def test_a_best_epoch_that_is_in_place_stays(tmp_path):
    last = stopped_run(tmp_path / "old", best_epoch=1, epoch=1, is_best=True)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "run_BEST.pth").write_bytes(b"of a later epoch")
    assert continued(last, tmp_path / "new").best.read_bytes() == b"of a later epoch"


@pytest.mark.parametrize("folder", ["old", "new"])
@pytest.mark.parametrize(("best_epoch", "epoch"), [(1, 2), (0, 3)])
def test_a_best_epoch_that_is_missing_is_said_before_anything_is_written(tmp_path, folder, best_epoch, epoch):
    last = stopped_run(tmp_path / "old", best_epoch=best_epoch, epoch=epoch, is_best=False)
    with pytest.raises(InputError, match=r"old/run_BEST\.pth is missing: .*beside its _LAST checkpoint\. Copy it, too"):
        continued(last, tmp_path / folder)
    assert list((tmp_path / "old").iterdir()) == [last] and not (tmp_path / "new").exists()


def test_a_file_that_was_renamed_goes_on_under_its_name_with_a_best_epoch_of_that_name(tmp_path):
    last = stopped_run(tmp_path / "old", best_epoch=1, epoch=1, is_best=True)
    last = last.rename(last.with_name("kept.pth"))
    with pytest.raises(InputError, match=r"kept_BEST\.pth is missing"):
        continued(last, tmp_path / "old")
    last.with_name("run_BEST.pth").rename(last.with_name("kept_BEST.pth"))
    assert continued(last, tmp_path / "new").best == tmp_path / "new" / "kept_BEST.pth"


def test_without_val_there_is_no_best_epoch_before_the_last(tmp_path):
    last = stopped_run(tmp_path / "old", best_epoch=0, epoch=2, is_best=False)
    assert not continued(last, tmp_path / "new").best.exists()


@pytest.mark.parametrize("kept", [{"train_seed": 4, "recipe": "own", "start_recipe": "of stage 2"}, {}])
def test_a_continued_run_keeps_what_it_started_from(tmp_path, kept):
    """Its weights are loaded from LAST, whose recipe is its own; of an older version nothing is known."""
    last = stopped_run(tmp_path / "old", best_epoch=0, epoch=1, is_best=False, **kept)
    run = continued(last, tmp_path / "old", start_recipe="own")
    assert {
        name: run.recorded[name] for name in ("train_seed", "recipe", "start_recipe") if name in run.recorded
    } == kept
