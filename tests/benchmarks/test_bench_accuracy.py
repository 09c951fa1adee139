"""The parts of the accuracy benchmark that decide: which learning rate a peer gets, and what the table says."""

import math
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from places import ROOT
from pytorch_metric_learning.losses import TripletMarginLoss
from torch.optim import Adam

import clipfh.models.torchvision_guard  # noqa: F401  (before torchvision)
from clipfh.images.pixels import Pixels
from clipfh.models.clip import load_clip
from clipfh.training.data import TrainingData, validate

from torchvision import transforms as T  # isort: skip

sys.path.insert(0, str(ROOT / "benchmarks"))

import accuracy_contestants
import accuracy_training
import bench_accuracy
from accuracy_contestants import CONTESTANTS, OnFeatures, OnMined, Recipe
from accuracy_training import costs, steps_within, train
from bench_accuracy import LADDER, OURS, START, TITLES, Work, best_rate, compared
from report import _section


@pytest.mark.parametrize(
    ("peak", "chosen", "tried"),
    [
        (1e-4, 1e-4, {3e-5, 1e-4, 3e-4, 1e-3}),
        (1e-3, 1e-3, {3e-5, 1e-4, 3e-4, 1e-3, 3e-3}),
        (1.0, 1e-2, {3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2}),
        (1e-7, 1e-6, {1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3}),
    ],
)
def test_rates_are_tried_until_the_best_is_not_at_an_end(peak, chosen, tried):
    asked = set()

    def val_mAP(rate):  # noqa: N802
        asked.add(rate)
        return -abs(math.log(rate / peak))

    assert best_rate(LADDER, 3, 6, val_mAP) == chosen
    assert asked == tried


def test_no_rate_is_chosen_where_one_has_not_run():
    assert best_rate(LADDER, 3, 6, lambda rate: None if rate == 3e-4 else rate) is None


def result(*average_precision, rank1=0.5):
    mAP = sum(average_precision) / len(average_precision)
    return {"rank1": rank1, "mAP": mAP, "average_precision": list(average_precision), "item_ids": ["a", "a", "b"]}


def test_a_row_averages_the_seeds_and_takes_the_difference_to_ours():
    theirs = [{**result(0.2, 0.4, 0.3), "lr": 1e-4}, {**result(0.4, 0.6, 0.5), "lr": 1e-4}]
    ours = [result(0.5, 0.7, 0.6), result(0.5, 0.7, 0.6)]
    row = compared("pml_sop", theirs, ours)
    # each query gains 0.2 on the mean of the seeds, whichever identities are drawn
    assert (row["mAP"], row["difference"], row["low"], row["high"]) == (0.4, 0.2, 0.2, 0.2)
    assert row["mAP_std"] == pytest.approx(0.1414, abs=1e-4)
    assert row["cells"]["mAP"] == "40.0 ± 14.1"
    assert row["cells"]["stage 2 less it, mAP"] == "+20.0 [20.0, 20.0]"
    assert row["cells"]["learning rate"] == "0.0001"


def test_ours_has_no_difference_and_one_seed_no_deviation():
    row = compared("ours", [result(0.5, 0.7, 0.6)], [result(0.5, 0.7, 0.6)])
    assert "difference" not in row and "mAP_std" not in row
    assert row["cells"]["Rank-1"] == "50.0"


def test_the_readme_shows_the_cells_in_place_of_time_and_memory():
    row = compared("start", [result(0.5, 0.7, 0.6)], [result(0.5, 0.7, 0.6)])
    content = {"machine": "M", "date": "D", "versions": {}, "bars": [], "rows": [row]}
    lines = _section("accuracy", content).splitlines()
    assert lines[-4].startswith("| case | Rank-1 | mAP | stage 2 less it, mAP |")
    assert lines[-2].startswith("| stage 1, the start of all | 50.0 | 60.0 | +0.0 [0.0, 0.0] |")


def test_every_contestant_has_a_title():
    assert {START, OURS, *CONTESTANTS} == set(TITLES)


def test_sizes_are_the_same_for_all_whatever_the_files_of_stage_2_say(monkeypatch, tmp_path):
    commands, sizes = [], []
    monkeypatch.setattr(bench_accuracy, "load_dataset", lambda dataset: SimpleNamespace(folder=tmp_path))
    monkeypatch.setattr(bench_accuracy, "train_by_script", lambda command: commands.append(" ".join(command)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bench_accuracy.prepare_ours("set", smoke=False, seed=0, epochs=None)()
    assert "--image_size 128 --eval_image_size 160" in commands[0]
    monkeypatch.setattr(accuracy_training, "load_clip", lambda *names, image_size, **more: sizes.append(image_size))
    accuracy_training.load_model(SimpleNamespace(resize_mode=None))
    assert sizes == [160]


# ---- which results are kept


@pytest.fixture
def trainings(monkeypatch):
    """Trainings that a `Work` asked for; each takes no time."""
    asked = []

    def run(cases, rounds):
        (case,) = cases
        asked.append(case.name)
        value = {"step": 1.0, "val": 1.0}
        return {case.name: [SimpleNamespace(value=value, seconds=0.0)]}

    monkeypatch.setattr(bench_accuracy, "run_in_turn", run)
    monkeypatch.setattr(bench_accuracy, "_version", lambda package: f"1 of {package}")
    return asked


def changed(monkeypatch, folder, name, before, after):
    """Let the folder `bench_accuracy.<name>` be a copy of itself, with `after` in place of the text `before`."""
    original, number = getattr(bench_accuracy, name), 0
    for file in [*original.glob("*.py"), *original.glob("config/*.yaml")]:
        text = file.read_text("utf-8")
        number += text.count(before)
        copy = folder / file.relative_to(original)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text.replace(before, after), "utf-8")
    assert number
    monkeypatch.setattr(bench_accuracy, name, folder)


@pytest.mark.parametrize(
    ("before", "after", "again"),
    [
        ("miner=HardTripletsMiner()", "miner=HardTripletsMiner", True),
        ("features = features.float()", "features = features.double()", True),  # of all that is on features
        ("scale=(0.16, 1)", "scale=(0.08, 1)", True),
        ("loss.backward()", "(2 * loss).backward()", True),
        ("Soft-margin triplets, the hardest", "Triplets with a soft margin, the hardest", False),
        ("# its config gives the rate alone", "# the rate alone", False),
    ],
)
def test_a_peer_is_trained_again_where_its_code_changes_and_not_its_words(
    monkeypatch, tmp_path, trainings, before, after, again
):
    work = Work("set", tmp_path / "results", "origin")
    work.costs("oml_inshop"), work.costs("oml_inshop")
    assert trainings == ["oml_inshop_costs"]
    changed(monkeypatch, tmp_path / "code", "FOLDER", before, after)
    work.costs("oml_inshop")
    assert trainings == ["oml_inshop_costs"] * (1 + again)


def test_a_peer_is_trained_again_with_another_version_of_its_library(monkeypatch, tmp_path, trainings):
    work = Work("set", tmp_path, "origin")
    work.costs("pml_sop")
    monkeypatch.setattr(bench_accuracy, "_version", lambda package: f"2 of {package}")
    work.costs("pml_sop")
    assert trainings == ["pml_sop_costs"] * 2


@pytest.mark.parametrize(
    ("before", "after", "again"),
    [
        ("keep_start: 0.", "keep_start: 0.1", True),
        ('"epsilon": 0.34', '"epsilon": 0.43', True),
        ("image_size: 1", "image_size: 2", False),  # of views and of photos: the benchmark has its own
        ("The sum of the chosen terms", "The chosen terms' sum", False),
    ],
)
def test_stage_2_is_trained_again_where_its_values_or_its_loss_change(
    monkeypatch, tmp_path, trainings, before, after, again
):
    work = Work("set", tmp_path / "results", "origin")
    work.ours(0), work.ours(0)
    assert trainings == ["ours_seed0"]
    changed(monkeypatch, tmp_path / "code", "STAGE2", before, after)
    work.ours(0)
    assert trainings == ["ours_seed0"] * (1 + again)


# ---- the peers' training


def made_peer(lr: float):
    """A peer on 4 identities of 3 patterns, val and train being the same: what it learns, it finds."""
    clip = load_clip("tiny-rn", "random")
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 3)
    array = generator.integers(0, 256, (12, clip.image_size, clip.image_size, 3), dtype=np.uint8)
    images = [f"{number}.png" for number in range(12)]
    table = pd.DataFrame({"image": images, "item_id": labels.astype(str), "camera": ""})
    pixels = Pixels(array, tuple(images), ())
    pictures = TrainingData(pixels, table, table, np.arange(12), np.arange(2), exclude_same_camera=False)
    setting = SimpleNamespace(labels=labels)
    visual = clip.model.visual
    loss = OnFeatures(TripletMarginLoss(margin=0.2), normalise=True)
    view = T.ToTensor()
    recipe = Recipe([list(range(12))], view, loss, Adam(visual.parameters(), lr=lr), lambda share: 1.0 - share / 2)
    return clip, pictures, recipe, setting


def test_a_peer_trains_for_its_steps_and_leaves_its_best_weights_on_val():
    clip, pictures, recipe, setting = made_peer(lr=1e-3)
    before = {name: value.clone() for name, value in clip.model.visual.state_dict().items()}
    found = train(recipe, setting, clip, pictures, steps=5, validations=2, keep_statistics=True)
    assert found["steps"] == 5 and len(found["val_curve"]) == 3
    assert found["val_mAP"] == max(found["val_curve"]) == found["val_curve"][found["best_at"]]
    assert validate(clip, pictures, {}, torch.device("cpu"))[0].mAP == pytest.approx(found["val_mAP"], abs=1e-6)
    assert recipe.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * (1 - 4 / 5 / 2))  # the last step's
    after = clip.model.visual.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert bool(moved) == (found["best_at"] > 0)
    assert not any("running" in name for name in moved)  # statistics are kept


def test_a_peer_whose_weights_are_no_longer_finite_ends_with_its_best():
    clip, pictures, recipe, setting = made_peer(lr=float("inf"))
    found = train(recipe, setting, clip, pictures, steps=4, validations=2, keep_statistics=True)
    assert (found["best_at"], found["steps"], len(found["val_curve"])) == (0, 2, 1)
    assert all(value.isfinite().all() for value in clip.model.visual.state_dict().values())


class Seen(torch.nn.Module):
    """Keeps what it is called with, and whether in mixed precision; gives what `module` does, or a sum."""

    def __init__(self, module=None):
        super().__init__()
        self.module, self.calls = module, []

    def forward(self, first, *others):
        self.calls.append((first.dtype, torch.is_autocast_enabled("cpu")))
        return self.module(first) if self.module else first.sum()


@pytest.mark.parametrize("make", [OnFeatures, partial(OnFeatures, normalise=True), lambda loss: OnMined(loss, Seen())])
def test_the_tower_alone_is_in_mixed_precision(monkeypatch, make):
    monkeypatch.setattr(accuracy_contestants, "autocast", lambda device, precision: torch.autocast("cpu"))
    tower, loss = Seen(torch.nn.Linear(4, 3)), make(Seen())
    loss(tower, torch.rand(2, 4), torch.tensor([0, 1])).backward()
    assert tower.calls == [(torch.float32, True)]
    losses = [module for module in loss.modules() if isinstance(module, Seen)]
    assert losses and all(module.calls == [(torch.float32, False)] for module in losses)


def test_what_a_peer_costs_is_measured():
    clip, pictures, recipe, setting = made_peer(lr=0.0)
    found = costs(recipe, setting, clip, pictures)
    assert 0 < found["step"] < 10 and 0 < found["val"] < 10


@pytest.mark.parametrize(
    ("budget", "val", "steps"),
    [(100.0, 10.0, 35), (100.0, 40.0, 25), (0.1, 0.0, 1)],  # val takes more than half; less than a step is left
)
def test_a_budget_pays_measurements_first_and_then_steps(budget, val, steps):
    assert steps_within(budget, 3, {"step": 2.0, "val": val}) == steps
