"""Model soups: which checkpoints have a mean, what it is, and what is said of it."""

from pathlib import Path

import pytest
import torch

from clipfh.core.errors import InputError
from clipfh.models.checkpoint import write_checkpoint
from clipfh.training.soup import mean_weights, mixed, read_alike

RECORDED = {
    **{"stage": 2, "model": "tiny-rn", "dataset": "photos", "variant": "ms", "epoch": 3, "image_size": 32},
    **{"mean": [0.5] * 3, "std": [0.5] * 3, "data_digest": "0", "seen_identities": {"0": ["a", "b"]}},
    **{"first_weights": "first.pth", "recipe": "r", "train_seed": 0, "val_mAP": 0.5, "alpha": 0.75},
}


def checkpoint(value: float, **recorded: object) -> dict:
    state = {"weight": torch.full((2, 3), value), "num_batches_tracked": torch.tensor(7)}
    return {**RECORDED, "state_dict": state, **recorded}


def saved(folder: Path, *contents: dict) -> list[Path]:
    paths = [folder / f"run{number}_BEST.pth" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        write_checkpoint(path, content)
    return paths


def test_the_mean_of_weights():
    one, two, three = (checkpoint(value)["state_dict"] for value in (1.0, 2.0, 6.0))
    mean = mean_weights([one, two, three])
    assert torch.equal(mean["weight"], torch.full((2, 3), 3.0)) and mean["weight"].dtype == torch.float32
    assert mean["num_batches_tracked"] == 7 and mean["num_batches_tracked"].dtype == torch.int64
    half = torch.tensor([1.0, 1.0, 1.0009765625]).half()  # added up in half precision, the last bit would be lost
    assert mean_weights([{"w": half}] * 3)["w"].equal(half)
    with pytest.raises(InputError, match="different layers"):
        mean_weights([one, {**two, "more": torch.ones(1)}])


def test_what_a_soup_says_of_itself():
    contents = [checkpoint(1.0, epoch=2), checkpoint(2.0, train_seed=1, seen_identities={"0": ["b"], "1": ["c"]})]
    soup = mixed(contents)
    assert soup["variant"] == "ms_soup2" and soup["epoch"] == 3 and soup["stage"] == 2
    assert soup["seen_identities"] == {"0": ["a", "b"], "1": ["c"]}  # what any of them has seen
    assert {"train_seed", "alpha", "val_mAP", "training"}.isdisjoint(soup)
    assert soup["recipe"] not in ("r", "") and soup["recipe"] == mixed(contents[::-1])["recipe"]
    assert soup["recipe"] != mixed([contents[0], checkpoint(2.0, train_seed=2)])["recipe"]
    one, same, other = (checkpoint(1.0, start_recipe=start) for start in ("s", "s", "t"))
    assert mixed([one, same])["start_recipe"] == "s" and "start_recipe" not in mixed([one, other])


def test_trainings_that_have_a_mean(tmp_path):
    assert len(read_alike(saved(tmp_path, checkpoint(1.0), checkpoint(2.0, train_seed=1)))) == 2


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ({"train_seed": 0}, "one recipe, seed and epoch"),
        ({"first_weights": "other.pth"}, "first_weights other.pth and first.pth"),
        ({"data_digest": "1"}, "data_digest 1 and 0"),
        ({"variant": "triplet"}, "variant triplet and ms"),
        ({"image_size": 64}, "image_size 64 and 32"),
        ({"stage": 3}, "is of stage 3"),
    ],
)
def test_trainings_that_have_none(tmp_path, second, says):
    paths = saved(tmp_path, checkpoint(1.0), checkpoint(2.0, **{"train_seed": 1, **second}))
    with pytest.raises(InputError, match=says):
        read_alike(paths)


def test_one_checkpoint_other_stages_and_random_starts_are_refused(tmp_path):
    one, two = saved(tmp_path, checkpoint(1.0, first_weights="random"), checkpoint(2.0, first_weights="random"))
    with pytest.raises(InputError, match="not of 1"):
        read_alike([one])
    with pytest.raises(InputError, match="began with random weights"):
        read_alike([one, two])
    (other,) = saved(tmp_path, checkpoint(1.0, stage=0))
    with pytest.raises(InputError, match="of stage 0; soups are of stages 2 and 3"):
        read_alike([other, two])
