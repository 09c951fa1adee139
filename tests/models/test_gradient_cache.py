"""Gradient caching against one backward of the whole batch, which is what it stands for."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipfh.core.run import autocast
from clipfh.losses import BNNeckClassifier, identity_loss, supcon_loss
from clipfh.models.clip import load_clip
from clipfh.models.gradient_cache import Tower, cached_backward

CPU = torch.device("cpu")
LABELS = torch.arange(5).repeat_interleave(2)  # of the images; one text each


class Objective(nn.Module):
    """SupCon over images and texts with a learned scale, and a classifier of the images."""

    def __init__(self, dim):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.classifier = BNNeckClassifier(dim, 5)

    def forward(self, images, texts):
        both = F.normalize(torch.cat([images, texts]).float(), dim=1)
        supcon = supcon_loss(both, torch.cat([LABELS, torch.arange(5)]), self.log_scale.exp())
        return supcon + identity_loss(self.classifier(images.float())[1], LABELS)


def towers(model, images, tokens, chunk, precision="float32"):
    def encode(function, inputs):
        with autocast(CPU, precision):
            return function(inputs)

    return [
        Tower(partial(encode, model.encode_image), lambda: images.split(chunk)),
        Tower(partial(encode, model.encode_text), lambda: tokens.split(chunk)),
    ]


def gradients(*modules):
    found = {}
    for number, module in enumerate(modules):
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                found[f"{number}.{name}"] = parameter.grad.clone()
        module.zero_grad()
    return found


def close(found, expected, tolerance):
    assert found.keys() == expected.keys() and len(found) > 10
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=tolerance, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


@pytest.fixture
def clip():
    torch.manual_seed(0)
    model = load_clip("tiny-vit", "random", image_size=32).model.train()
    return model, torch.randn(10, 3, 32, 32), torch.randint(1, 400, (5, 77)), Objective(256)


@pytest.mark.parametrize("chunk", [1, 3, 5, 10, 64])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradients_are_those_of_the_whole_batch(clip, chunk, precision):
    model, images, tokens, objective = clip
    with autocast(CPU, precision):
        features = model.encode_image(images), model.encode_text(tokens)
    loss = objective(*features)
    loss.backward()
    expected = gradients(model, objective)
    found_loss = cached_backward(
        towers(model, images, tokens, chunk, precision), objective, modules=[model], device=CPU
    )
    found = gradients(model, objective)
    if precision == "float32":
        torch.testing.assert_close(found_loss, loss.detach())
        close(found, expected, 1e-5)
        assert found["1.log_scale"] != 0 and found["1.classifier.classifier.weight"].abs().max() > 1e-3
    else:  # bfloat16 rounds to 3 digits: the sum over chunks is rounded elsewhere than the whole batch's
        close(found, expected, 0.05 * max(value.abs().max().item() for value in expected.values()))
    assert not found_loss.requires_grad


class Dropping(nn.Module):
    """A tower with dropout, whose draws differ by row."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, inputs):
        return self.layers(inputs)


def test_what_is_drawn_at_random_is_drawn_again():
    torch.manual_seed(1)
    tower, inputs = Dropping().train(), torch.randn(9, 6)

    def objective(features):
        return (F.normalize(features, dim=1) @ torch.ones(4)).square().sum()

    torch.manual_seed(7)  # the whole batch, its dropout drawn chunk by chunk
    objective(torch.cat([tower(part) for part in inputs.split(4)])).backward()
    expected, after = gradients_of(tower), torch.rand(3)

    torch.manual_seed(7)
    cached_backward([Tower(tower, lambda: inputs.split(4))], objective, modules=[tower], device=CPU)
    assert torch.equal(torch.rand(3), after)  # the second pass left no trace
    for found, value in zip(gradients_of(tower), expected, strict=True):
        torch.testing.assert_close(found, value)


def gradients_of(module):
    found = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    return found


def test_running_statistics_follow_each_chunk_once():
    torch.manual_seed(0)
    tower, again = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train() for _ in range(2))
    again.load_state_dict(tower.state_dict())
    inputs = torch.randn(8, 3)
    for part in inputs.split(4):
        again(part)
    cached_backward([Tower(tower, lambda: inputs.split(4))], lambda x: x.pow(3).sum(), modules=[tower], device=CPU)
    assert tower[1].num_batches_tracked == 2 and not torch.equal(tower[1].running_mean, torch.zeros(4))
    for name, value in again.state_dict().items():
        torch.testing.assert_close(tower.state_dict()[name], value, msg=name)


def test_gradients_are_added_to_those_that_are_there(clip):
    model, images, tokens, objective = clip
    both = towers(model, images, tokens, 4)

    def halved(*features):
        return objective(*features) / 2

    objective.eval()  # the neck's statistics stay, so that both calls are the same
    cached_backward(both, objective, modules=[model], device=CPU)
    expected = gradients(model, objective)
    for _ in range(2):
        cached_backward(both, halved, modules=[model], device=CPU)
    close(gradients(model, objective), expected, 1e-6)


def test_a_tower_that_the_loss_does_not_use_is_left_alone(clip):
    model, images, tokens, _ = clip
    cached_backward(
        towers(model, images, tokens, 4), lambda first, second: first.square().sum(), modules=[model], device=CPU
    )
    assert model.token_embedding.weight.grad is None and model.visual.conv1.weight.grad is not None


def test_no_more_than_a_chunk_is_encoded_at_once():
    seen = []

    class Counting(nn.Linear):
        def forward(self, inputs):
            seen.append((len(inputs), torch.is_grad_enabled()))
            return super().forward(inputs)

    tower, inputs = Counting(3, 2), torch.randn(7, 3)
    cached_backward([Tower(tower, lambda: inputs.split(3))], lambda x: x.sum(), modules=[tower], device=CPU)
    assert seen == [(3, False), (3, False), (1, False), (3, True), (3, True), (1, True)]
