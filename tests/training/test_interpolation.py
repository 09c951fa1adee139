"""WiSE-FT: of the weights between a run's first ones and its best epoch's, val chooses."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn

from clipfh.core.run_log import RunLog
from clipfh.models.averaged_weights import AveragedWeights
from clipfh.models.checkpoint import read_checkpoint, write_checkpoint
from clipfh.training.interpolation import choose_between
from clipfh.training.loop import Loop
from clipfh.training.runs import Place, TrainingRun
from clipfh.training.state import BestSoFar, Validation

RECORDED = {
    **{"stage": 2, "model": "tiny-rn", "dataset": "photos", "variant": "", "epoch": 3, "image_size": 32},
    **{"mean": [0.5] * 3, "std": [0.5] * 3, "data_digest": "0", "seen_identities": {}},
}

CHOSEN_BY = "val_mean_mAP"


@dataclass(frozen=True)
class Flags:
    seed: int = 0


class TrainedLoop:
    """What `choose_between` knows of a loop that has run: first weights of 0, best epoch's of 1."""

    def __init__(self, *, start_value: float | None) -> None:
        self.model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1), nn.Linear(1, 1))
        self.model[2].requires_grad_(False)
        self.set_all(0.0)
        self.average = AveragedWeights(self.model, 0.0, remember_start=True)
        self.set_all(1.0)
        self.best = BestSoFar(0, start=None if start_value is None else {CHOSEN_BY: start_value, "val_mAP": 0.5})
        self.chosen_by = CHOSEN_BY
        self.recorded = partial(Loop.recorded, self)
        self.measured: list[float] = []

    def set_all(self, value: float) -> None:
        with torch.no_grad():
            for tensor in [*self.model[:2].parameters(), self.model[1].running_mean, self.model[1].running_var]:
                tensor.fill_(value)

    def validate(self, best_at: float) -> Validation:
        """What is chosen by falls with the distance from `best_at`."""
        module = self.average.module
        places = {round(tensor.mean().item(), 6) for tensor in module[0].parameters()}
        places |= {round(tensor.item(), 6) for tensor in (module[1].weight, module[1].bias, module[1].running_mean)}
        (at,) = places  # weights and running statistics are equally far
        self.measured.append(at)
        value = 0.9 - abs(at - best_at) / 10
        return Validation({CHOSEN_BY: value, "val_mAP": 0.5 + at / 10, "val_rank1": 0.1}, "")


def chosen(tmp_path, best_at: float, *, start_value: float | None = None, steps: int = 4):
    loop = TrainedLoop(start_value=start_value)
    run = TrainingRun(
        "run", Place(2, torch.device("cpu"), 0, tmp_path, tmp_path), {}, {}, RunLog(tmp_path / "run", Flags())
    )
    frozen = loop.model[2].weight.clone()
    state = {name: value.clone() for name, value in loop.model.state_dict().items()}
    measured = {CHOSEN_BY: 0.9 - abs(1 - best_at) / 10, "val_mAP": 0.6}
    write_checkpoint(run.best, {**RECORDED, **measured, "state_dict": state})
    validate = partial(loop.validate, best_at)
    choose_between(loop, run, validate, steps)
    best = read_checkpoint(run.best)
    assert torch.equal(best["state_dict"]["2.weight"], frozen)
    return loop, run, best


@pytest.mark.parametrize("best_at", [0.0, 0.25, 0.75, 1.0])
def test_the_best_on_val_becomes_best(tmp_path, best_at):
    loop, run, best = chosen(tmp_path, best_at)
    assert best["alpha"] == best_at and best["interpolation"][best_at] == pytest.approx(0.9)
    assert best[CHOSEN_BY] == pytest.approx(0.9) and best["val_mAP"] == pytest.approx(0.5 + best_at / 10)
    torch.testing.assert_close(best["state_dict"]["0.weight"], torch.full((1, 2), best_at))
    torch.testing.assert_close(best["state_dict"]["1.running_var"], torch.tensor([best_at]))
    assert list(best["interpolation"]) == [0, 0.25, 0.5, 0.75, 1]
    assert best["interpolation"][1] == pytest.approx(0.9 - (1 - best_at) / 10)
    assert sorted(loop.measured) == [0, 0.25, 0.5, 0.75]  # what the best epoch gave is known
    assert (run.log.folder / "interpolation.png").stat().st_size > 1000
    said = (run.log.folder / "train.log").read_text()
    assert f"BEST is now {best_at:g}" in said and ("does not help on val" in said) == (best_at == 0)


def test_what_was_measured_before_training_is_not_measured_again(tmp_path):
    loop, _, best = chosen(tmp_path, 0.5, start_value=0.123)
    assert sorted(loop.measured) == [0.25, 0.5, 0.75] and best["interpolation"][0] == 0.123


def test_figures_of_the_first_weights_are_recorded_where_they_are_best(tmp_path):
    _, _, best = chosen(tmp_path, 0.0, start_value=0.95)
    assert best["alpha"] == 0 and best[CHOSEN_BY] == 0.95 and best["val_mAP"] == 0.5


def test_of_equal_figures_what_was_trained_further_is_taken(tmp_path):
    _, _, best = chosen(tmp_path, 0.5, steps=1)  # both ends are equally far from 0.5
    assert best["alpha"] == 1


def test_it_is_done_once(tmp_path):
    loop, run, best = chosen(tmp_path, 0.25)
    loop.measured.clear()
    choose_between(loop, run, partial(loop.validate, 0.75), 4)  # a run that is continued after its end
    assert loop.measured == [] and read_checkpoint(run.best)["alpha"] == best["alpha"] == 0.25


@pytest.mark.parametrize(("steps", "with_val"), [(0, True), (4, False)])
def test_without_steps_or_val_the_best_epoch_stays(tmp_path, steps, with_val):
    loop = TrainedLoop(start_value=None)
    run = TrainingRun(
        "run", Place(2, torch.device("cpu"), 0, tmp_path, tmp_path), {}, {}, RunLog(tmp_path / "run", Flags())
    )
    choose_between(loop, run, partial(loop.validate, 0.5) if with_val else None, steps)
    assert loop.measured == [] and not run.best.exists()


def test_the_first_weights_must_have_been_kept():
    model = nn.Linear(2, 1)
    average = AveragedWeights(model, 0.0)
    with pytest.raises(ValueError, match="remember_start"):
        average.move_between(model.state_dict(), 0.5)
