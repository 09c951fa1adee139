from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from clipfh.core.cli import option
from clipfh.core.config_file import IN_FILE
from clipfh.core.errors import InputError
from clipfh.models.averaged_weights import STEPS_AT_ONCE, AveragedWeights
from clipfh.models.clip import encode_texts, freeze_text_encoder, is_text_parameter, load_clip
from clipfh.training.state import (
    BestSoFar,
    binding_flags,
    decay_groups,
    require_finite,
    require_same_flags,
)


def test_only_matrices_are_decayed():
    module = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Linear(4, 2))
    module.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
    module[2].bias.requires_grad_(False)
    decayed, plain = decay_groups(module, 0.1, 0.5, name="image")
    assert decayed["params"] == [module[0].weight, module[2].weight]
    assert {id(p) for p in plain["params"]} == {
        id(p) for p in (module.scale, module[0].bias, module[1].weight, module[1].bias)
    }
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)
    assert decayed["lr"] == plain["lr"] == 0.1 and decayed["name"] == plain["name"] == "image"


def test_groups_without_parameters_are_left_out():
    assert len(decay_groups(nn.LayerNorm(3), 0.1, 0.5)) == 1
    assert decay_groups(nn.Linear(2, 2).requires_grad_(False), 0.1, 0.5) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_no_number_stops_the_run(value):
    images = [f"{number}.jpg" for number in range(9)]
    terms = {"triplet": torch.tensor(1.0), "center": torch.tensor(value)}
    with pytest.raises(InputError) as caught:
        require_finite(terms, epoch=3, batch=7, images=images)
    message = str(caught.value)
    assert "not finite (center) in epoch 3, batch 7; its images: 0.jpg, 1.jpg" in message
    assert "7.jpg ..." in message and "8.jpg" not in message
    require_finite({"triplet": torch.tensor(1.0)}, epoch=1, batch=1, images=images)


def test_best_so_far():
    best = BestSoFar(patience=2)
    assert [best.update(value, epoch) for epoch, value in enumerate([0.1, 0.3, 0.3, float("nan"), 0.2], start=1)] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert (best.value, best.epoch) == (0.3, 2)
    assert [best.should_stop(epoch) for epoch in (2, 3, 4)] == [False, False, True]
    assert not BestSoFar(patience=0).should_stop(100)
    assert BestSoFar(patience=1).update(0.0, 1)  # even nothing is better than not having measured


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_averaged_weights(decay):
    torch.manual_seed(0)
    clip = load_clip("tiny-rn", "random", image_size=32)
    freeze_text_encoder(clip.model)
    ema = AveragedWeights(clip.model, decay)
    expected = {}
    for _ in range(3):
        with torch.no_grad():
            for parameter in clip.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1)
        clip.model.train().encode_image(torch.randn(4, 3, 32, 32))
        ema.update_parameters(clip.model)
        for name, value in clip.model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value if name in expected else value.clone()
    running = [name for name in expected if name.endswith(("running_mean", "running_var"))]
    assert running
    for name, value in clip.model.state_dict().items():
        averaged = ema.module.state_dict()[name]
        if name.endswith("num_batches_tracked"):
            assert averaged.dtype == torch.int64 and averaged == 3
        elif is_text_parameter(name):
            assert torch.equal(averaged, value), name
        else:
            torch.testing.assert_close(averaged, expected[name], msg=name)
            assert torch.equal(averaged, value) is (decay == 0.0), name
    text = encode_texts(replace(clip, model=ema.module), ["a red mug"], "cpu")
    assert torch.equal(text, encode_texts(clip, ["a red mug"], "cpu")) and text.isfinite().all()


def test_an_average_that_follows_several_steps_at_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average, decay = AveragedWeights(model, 0.9), 0.9
    expected = None
    for step in range(1, 12):
        with torch.no_grad():
            model[0].weight.add_(1.0)
        average.update_parameters(model, now=step == 11)
        weight = model[0].weight.detach().clone()
        if step == 1:
            expected, last = weight, 1
        elif step - last == STEPS_AT_ONCE or step == 11:  # 5, 9, and 11 at the end
            expected = decay ** (step - last) * expected + (1 - decay ** (step - last)) * weight
            last = step
        torch.testing.assert_close(average.module[0].weight.detach(), expected)
    assert average.n_averaged == 11


def test_an_average_is_continued_from_its_state():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    whole, part = AveragedWeights(model, 0.5), AveragedWeights(model, 0.5)
    whole.update_parameters(model)
    part.update_parameters(model)
    again = AveragedWeights(nn.Linear(3, 2), 0.5)
    again.load_state_dict(part.state_dict())
    for step in range(6):
        with torch.no_grad():
            model.weight.mul_(3.0)
        whole.update_parameters(model, now=step == 5)
        again.update_parameters(model, now=step == 5)
        assert torch.equal(whole.module.weight, again.module.weight)
    assert not torch.equal(whole.module.weight, model.weight)


@dataclass(frozen=True)
class Flags:
    lr: float = 0.1
    added_later: int = 0


def test_a_run_from_before_a_flag_is_continued_with_its_default():
    before = binding_flags(Flags())
    del before["added_later"]
    require_same_flags(before, Flags())
    with pytest.raises(InputError, match=r"--added_later 0 \(now 2\)"):
        require_same_flags(before, Flags(added_later=2))
    with pytest.raises(InputError, match=r"--lr 0.1 \(now 0.2\)"):
        require_same_flags(before, Flags(lr=0.2))


@dataclass(frozen=True, kw_only=True)
class WithLaterOnes(Flags):
    wise_ft: int = option(IN_FILE, "steps")
    lora_rank: int = option(IN_FILE, "rank")
    min_batches: int = option(IN_FILE, "batches")
    freeze_text_blocks: bool = option(IN_FILE, "held")


def test_a_run_from_before_there_were_flags_went_without():
    before = binding_flags(Flags())
    without = {"wise_ft": 0, "lora_rank": 0, "min_batches": 1, "freeze_text_blocks": False}
    require_same_flags(before, WithLaterOnes(**without))
    for name, value in {"wise_ft": 4, "lora_rank": 8, "min_batches": 30, "freeze_text_blocks": True}.items():
        with pytest.raises(InputError, match=rf"--{name} {without[name]} \(now {value}\)"):
            require_same_flags(before, WithLaterOnes(**{**without, name: value}))
