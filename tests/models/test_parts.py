"""The pretrained parts that packages carry, and the CLIP that is made of them."""

import hashlib
import importlib.util

import pytest
import torch

from clipfh.core.errors import InputError
from clipfh.models import parts
from clipfh.models.backbones import build_backbone, load_backbone_weights, normalisation_of
from clipfh.models.clip import encode_texts, load_clip, without_padding
from clipfh.models.names import require_transformers

needs_parts = pytest.mark.skipif(not parts.has_parts(), reason="needs the extra parts")


@needs_parts
def test_the_image_weights_are_those_of_the_backbone_and_its_classifier():
    weights = parts.image_weights()
    assert weights["classifier.weight"].shape == (1000, 1280)
    backbone, num_features = build_backbone(parts.IMAGE_MODEL, 64)
    before = backbone.conv_stem.weight.clone()
    load_backbone_weights(backbone, parts.IMAGE_MODEL, "pretrained")  # no download: the package's
    assert num_features == 1280 and not torch.equal(before, backbone.conv_stem.weight)
    assert torch.equal(backbone.conv_stem.weight, weights["conv_stem.weight"])
    assert normalisation_of(parts.IMAGE_MODEL, "pretrained") == ((127 / 255,) * 3, (128 / 255,) * 3)
    # names and tensors pair up: no mean among the variances
    assert all((value >= 0).all() for name, value in weights.items() if name.endswith("running_var"))
    assert all((value < 0).any() for name, value in weights.items() if name.endswith("running_mean"))


@needs_parts
@pytest.mark.parametrize("read, digest", [("image_weights", "_IMAGE_DIGEST"), ("text_weights", "_TEXT_DIGEST")])
def test_other_weights_than_the_published_ones_are_refused(monkeypatch, read, digest):
    monkeypatch.setattr(parts, digest, hashlib.sha256(b"others").hexdigest())
    with pytest.raises(InputError, match="holds other weights than the published ones"):
        getattr(parts, read)()


def test_without_the_packages_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not parts.has_parts() and parts.text_folder() is None
    for read in (parts.image_weights, parts.text_weights):
        with pytest.raises(InputError, match=r"package .*-model with .* is missing; install them with: bash"):
            read()
    with pytest.raises(InputError, match=r"--setup-only.*\[parts\].*Or take --model tiny-rn"):
        require_transformers("small-clip")


@needs_parts
def test_the_text_tower_understands_words():
    clip = load_clip("small-clip", "random")
    weights = parts.text_weights()
    tower = clip.model.text.transformer
    tower.load_state_dict({name: weights[name] for name in tower.state_dict()})
    torch.nn.init.eye_(clip.model.text.proj.weight)
    kitten, cat, lorry, _ = encode_texts(clip, ["a kitten", "a small cat", "a lorry", "a much longer text " * 9], "cpu")
    assert kitten @ cat > 0.6 > 0.4 > kitten @ lorry


@needs_parts
def test_padding_is_not_computed_and_changes_nothing():
    clip = load_clip("small-clip", "random")
    tokens = clip.tokenizer(["red", "a photo of a red apple"])
    (short,) = without_padding(clip.model.text, (tokens,))
    assert tokens.shape == (2, 77) and short.shape == (2, 8)
    clip.model.eval()
    with torch.inference_mode():
        expected = clip.model.text.proj(padded_mean(clip.model.text, tokens))
        torch.testing.assert_close(clip.model.encode_text(tokens), expected, atol=1e-5, rtol=1e-5)


def padded_mean(tower, tokens):
    """The mean feature of what is no padding, the long way."""
    mask = (tokens != tower.config.pad_token_id).long()
    hidden = tower.transformer(input_ids=tokens, attention_mask=mask).last_hidden_state
    return (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
