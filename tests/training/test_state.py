import copy
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import nn

from clipfh.core.errors import InputError
from clipfh.core.run import seed_everything
from clipfh.models.averaged_weights import STEPS_AT_ONCE, AveragedWeights
from clipfh.models.checkpoint import read_checkpoint, write_checkpoint
from clipfh.models.clip import encode_texts, freeze_text_encoder, is_text_parameter, load_clip
from clipfh.training.sampler import PKSampler
from clipfh.training.schedule import cosine_with_warmup
from clipfh.training.state import (
    BestSoFar,
    binding_flags,
    clipped_step,
    decay_groups,
    require_finite,
    require_same_flags,
    restore_training_state,
    training_state,
)

LABELS = [number % 6 for number in range(30)]
TOTAL_EPOCHS, STOP_AFTER = 5, 2


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


@pytest.mark.parametrize("max_norm", [1e-3, 1e6])
def test_a_clipped_step_is_clip_grad_norm_and_a_step(max_norm):
    torch.manual_seed(0)
    convolution = nn.Conv2d(64, 64, 3).to(memory_format=torch.channels_last)
    models = [nn.Sequential(convolution, nn.Conv2d(64, 8, 3), nn.BatchNorm2d(8)) for _ in range(2)]
    models[1] = copy.deepcopy(models[0])
    optimizers = [torch.optim.AdamW(decay_groups(model, 0.1, 0.2), eps=1e-6, fused=True) for model in models]
    for _ in range(4):
        images = torch.randn(4, 64, 8, 8)
        for model in models:
            model(images).pow(3).sum().backward()
        expected = torch.nn.utils.clip_grad_norm_(models[0].parameters(), max_norm)
        optimizers[0].step()
        norm = clipped_step(optimizers[1], max_norm)
        torch.testing.assert_close(norm, expected)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
    for ours, theirs in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
        assert ours.shape == theirs.shape and ours.stride() == theirs.stride()
        for name, moment in optimizers[1].state[ours].items():
            assert moment.shape == optimizers[0].state[theirs][name].shape
    assert not hasattr(optimizers[1], "grad_scale")


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


def new_parts(seed, *, extra=()):
    seed_everything(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 6))
    modules = {"model": model, **{name: nn.Linear(2, 2) for name in extra}}
    optimizer = torch.optim.AdamW(decay_groups(model, lr=0.05, weight_decay=0.1))
    factor = partial(cosine_with_warmup, total_steps=TOTAL_EPOCHS * 5, warmup_steps=3)
    return {
        "modules": modules,
        "optimizers": {"model": optimizer},
        "scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor),
        "sampler": PKSampler(LABELS, 3, 2, seed=7),
        "best": BestSoFar(patience=2),
    }


def train(parts, first_epoch, last_epoch, step=0):
    images = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor(LABELS)
    model, optimizer = parts["modules"]["model"], parts["optimizers"]["model"]
    for epoch in range(first_epoch, last_epoch + 1):
        parts["sampler"].set_epoch(epoch)
        for batch in parts["sampler"]:
            noisy = images[batch] + 0.1 * torch.randn(len(batch), 6)  # draws from the global generator
            loss = nn.functional.cross_entropy(model(noisy), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            parts["scheduler"].step()
            step += 1
        parts["best"].update(-loss.item(), epoch)
    return step


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path):
    whole = new_parts(0)
    step = train(whole, 1, TOTAL_EPOCHS)

    part = new_parts(0)
    stopped_at = train(part, 1, STOP_AFTER)
    state = training_state(**part, epoch=STOP_AFTER, step=stopped_at)
    write_checkpoint(tmp_path / "LAST.pth", {"training": state})

    resumed = new_parts(99)  # other weights, other random numbers
    torch.rand(5)
    state = read_checkpoint(tmp_path / "LAST.pth")["training"]
    assert restore_training_state(state, **resumed) == (STOP_AFTER, stopped_at)
    assert train(resumed, STOP_AFTER + 1, TOTAL_EPOCHS, stopped_at) == step
    for name, value in whole["modules"]["model"].state_dict().items():
        assert torch.equal(resumed["modules"]["model"].state_dict()[name], value), name
    assert not torch.equal(part["modules"]["model"][0].weight, whole["modules"]["model"][0].weight)
    assert resumed["scheduler"].get_last_lr() == whole["scheduler"].get_last_lr()
    assert resumed["best"] == whole["best"]
    assert resumed["sampler"].state_dict() == whole["sampler"].state_dict()
    for ours, theirs in zip(
        resumed["optimizers"]["model"].state.values(), whole["optimizers"]["model"].state.values(), strict=True
    ):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(("saved", "here"), [((), ("center",)), (("center",), ())])
def test_a_run_with_other_losses_is_not_resumed(saved, here):
    state = training_state(**new_parts(0, extra=saved), epoch=1, step=5)
    with pytest.raises(
        InputError, match=r"started with other flags .*modules .*its config.json has the ones to repeat"
    ):
        restore_training_state(state, **new_parts(0, extra=here))


def test_a_run_with_other_parameters_is_not_resumed():
    state = training_state(**new_parts(0), epoch=1, step=5)
    parts = new_parts(0)
    parts["modules"]["model"][3] = nn.Linear(8, 7)
    with pytest.raises(InputError, match="started with other flags"):
        restore_training_state(state, **parts)
    parts = new_parts(0)
    parts["optimizers"]["model"] = torch.optim.AdamW(parts["modules"]["model"].parameters())
    with pytest.raises(InputError, match="started with other flags"):
        restore_training_state(state, **parts)
    parts = new_parts(0) | {"sampler": PKSampler(LABELS, 3, 2, seed=8)}
    with pytest.raises(InputError, match="seed"):
        restore_training_state(state, **parts)
