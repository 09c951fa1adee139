"""Other ways to compute a step: what they keep, and what they refuse."""

import copy

import pytest
import torch
from torch import nn

from clipfh.core.errors import InputError
from clipfh.models.clip import load_clip
from clipfh.models.image_layers import hold_batch_norm_statistics, hold_image_layers
from clipfh.training.computing import Computing


def gradients(model, images, tokens):
    model.zero_grad()
    features = torch.cat([model.encode_image(images), model.encode_text(tokens)])
    features.square().sum().backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of the tracer
@pytest.mark.parametrize("computing", [Computing(grad_checkpointing=True), Computing(compile=True)], ids=str)
def test_gradients_stay_those_of_the_plain_way(computing, monkeypatch):
    compiled, compile_it = [], nn.Module.compile

    def traced(module):
        compiled.append(module)
        compile_it(module, backend="aot_eager")  # the graphs, without the minutes of a C++ compiler

    monkeypatch.setattr(nn.Module, "compile", traced)
    clip = load_clip("tiny-vit", "random")
    plain = clip.model.train()
    images, tokens = torch.rand(4, 3, clip.image_size, clip.image_size), clip.tokenizer(["a shirt", "red shoes"])
    expected = gradients(plain, images, tokens)
    model = copy.deepcopy(plain)
    computing.prepare(model)
    found = gradients(model, images, tokens)
    assert found.keys() == expected.keys() and model.state_dict().keys() == plain.state_dict().keys()
    assert compiled == ([model.visual, model.transformer] if computing.compile else [])
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5 * value.abs().max().item() + 1e-6, msg=name)


def test_batch_norms_would_take_a_batch_twice():
    model = load_clip("tiny-rn", "random").model.train()
    hold_image_layers(model.visual, 2)  # the last block's still learn
    with pytest.raises(InputError, match="--hold_statistics"):
        Computing(grad_checkpointing=True).prepare(model)
    hold_batch_norm_statistics(model.visual)
    Computing(grad_checkpointing=True).prepare(model)


def test_batch_norms_in_held_blocks_take_nothing():
    model = load_clip("tiny-rn", "random").model.train()
    hold_image_layers(model.visual, 3)
    Computing(grad_checkpointing=True).prepare(model)
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.encode_image(torch.randn(4, 3, 64, 64)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
