"""LoRA: what learns, what is held, and that the merged CLIP is the one that was trained."""

import importlib.util
import sys

import pytest
import torch
from small_clips import bert_clip, open_clip_vit
from torch import nn

from clipfh.core.errors import InputError
from clipfh.models.clip import freeze_text_encoder, is_text_parameter, load_clip
from clipfh.models.image_layers import hold_image_layers, is_adapter
from clipfh.models.lora import SCALING, SelfAttention, adaptable_weights, learning_line, with_lora

import open_clip  # isort: skip  (after the guard that clipfh.models brings)
from timm.models.eva import Eva  # isort: skip

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs the extra lora")
RANK = 4


@pytest.fixture(params=["tiny-vit", "open_clip's ViT", "EfficientNet and BERT"])
def model(request, tmp_path) -> nn.Module:
    if request.param == "tiny-vit":
        return load_clip("tiny-vit", "random").model
    return open_clip_vit() if request.param == "open_clip's ViT" else bert_clip(tmp_path)


def inputs(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Three photos, three texts of different lengths."""
    size = model.visual.image_size
    side = size[0] if isinstance(size, (tuple, list)) else size
    tokens = torch.randint(1, 50, (3, getattr(model, "context_length", None) or 12))
    tokens[0, 5:] = tokens[1, 9:] = 0
    return torch.randn(3, 3, side, side), tokens


def features(model: nn.Module, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return model.encode_image(images), model.encode_text(tokens)


def moved(twin: nn.Module, steps: int = 3) -> nn.Module:
    """A twin after some steps on features that are to be small."""
    optimizer = torch.optim.AdamW([p for p in twin.parameters() if p.requires_grad], lr=0.05)
    batch = inputs(twin)
    for _ in range(steps):
        sum(part.square().sum() for part in features(twin, *batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return twin


def held(model: nn.Module, until: int, *, text: bool) -> nn.Module:
    if not text:
        freeze_text_encoder(model)
    hold_image_layers(model.visual, until)
    return model


@needs_peft
def test_at_the_start_it_is_the_original(model):
    batch = inputs(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    expected = features(model.eval(), *batch)  # with gradients: without, torch's attention takes a shorter way
    twin, merge = with_lora(model, RANK)
    for ours, theirs in zip(features(twin.eval(), *batch), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    merge()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())  # to the bit
    assert torch.equal(model.encode_image(batch[0]), expected[0])


@needs_peft
@pytest.mark.parametrize("text", [False, True], ids=["text frozen", "both"])
def test_the_merged_clip_is_the_one_that_was_trained(model, text):
    names = list(model.state_dict())
    batch = inputs(model)
    twin, merge = with_lora(held(model, 0, text=text), RANK)
    moved(twin.eval())
    model.eval()
    with torch.no_grad():
        before, trained = features(model, *batch), features(twin, *batch)
        merge()
        merged = features(model, *batch)
    torch.testing.assert_close(merged, trained, atol=1e-6, rtol=1e-5)
    assert (before[0] - trained[0]).abs().max() > 0.01 and torch.equal(before[1], trained[1]) is not text
    assert list(model.state_dict()) == names and not any(map(is_adapter, names))


@needs_peft
def test_merging_adds_the_product_of_the_adapters():
    model = open_clip_vit()
    before = {name: weight.detach().clone() for name, weight in adaptable_weights(model).items()}
    twin, merge = with_lora(model, RANK)
    state = moved(twin).state_dict()
    for _ in range(2):  # it sets, and does not add up
        merge()
    after = adaptable_weights(model)
    assert len(before) == 4 * (3 + 2)  # in_proj, out_proj and two layers of the MLP, of each block
    for name, weight in before.items():
        product = state[f"{name}.lora_B.default.weight"] @ state[f"{name}.lora_A.default.weight"]
        torch.testing.assert_close(after[name].data, weight + SCALING * product, atol=1e-6, rtol=1e-6)
        assert not torch.equal(after[name], weight) and torch.equal(state[f"{name}.base_layer.weight"], weight)


@needs_peft
@pytest.mark.parametrize("text", [False, True], ids=["text frozen", "both"])
def test_in_the_blocks_adapters_learn_alone_and_what_follows_learns_as_without(model, text):
    held(model, 0, text=text)
    without = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    twin, _ = with_lora(model, RANK)
    twin.train()
    hold_image_layers(twin.visual, 0)
    before = {name: value.clone() for name, value in twin.state_dict().items()}
    moved(twin)
    changed = {name for name, value in twin.state_dict().items() if not torch.equal(value, before[name])}
    adapters = {name for name in before if is_adapter(name)}
    assert adapters <= changed  # every one has a gradient
    rest = changed - adapters
    behind = ("visual.ln_post.", "visual.proj", "visual.head.", "ln_final.", "text_projection", "text.proj.")
    assert rest == {name for name in without if name.startswith(behind)} and len(rest) >= 3
    assert any(map(is_text_parameter, changed)) == text
    learning = {name for name, parameter in twin.named_parameters() if parameter.requires_grad}
    assert learning == changed | {"logit_scale"}  # which these features do not ask


@needs_peft
def test_held_blocks_get_no_adapters():
    model = held(open_clip_vit(), 1, text=False)
    twin, _ = with_lora(model, RANK)
    adapted = {name.split(".lora_")[0] for name, _ in twin.named_parameters() if is_adapter(name)}
    block = "visual.transformer.resblocks.2"
    assert adapted == {f"{block}.{name}" for name in ("attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")}
    hold_image_layers(twin.visual, 1, head_alone=True)
    learning = {name for name, parameter in twin.visual.named_parameters() if parameter.requires_grad}
    assert learning == {"ln_post.weight", "ln_post.bias", "proj"}


@needs_peft
def test_so_many_numbers_learn():
    model = held(open_clip_vit(), 1, text=False)
    total = sum(parameter.numel() for parameter in model.parameters())
    twin, _ = with_lora(model, RANK)
    adapters = RANK * ((32 + 96) + (32 + 32) + (32 + 128) + (128 + 32))  # of one block of width 32
    head = 32 + 32 + 32 * 24 + 1  # norm, projection, temperature
    learning = sum(parameter.numel() for parameter in twin.parameters() if parameter.requires_grad)
    assert learning == adapters + head
    expected = f"LoRA beside 4 layers: {learning:,} parameters learn, {adapters:,} of them in adapters; "
    assert learning_line(twin) == expected + f"{total - head:,} are held"


@needs_peft
def test_only_pointwise_convolutions_are_adapted():
    model = open_clip.create_model("RN50", load_weights=False, force_image_size=32)
    freeze_text_encoder(model)
    hold_image_layers(model.visual, 2)
    convolutions = adaptable_weights(model)
    expected = [f"visual.layer4.{block}.conv{number}" for block in range(3) for number in (1, 3)]
    assert sorted(convolutions) == sorted([*expected, "visual.layer4.0.downsample.0"])
    twin, merge = with_lora(model, RANK)
    twin.train()
    hold_image_layers(twin.visual, 2)
    norms = [module for module in twin.visual.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)  # the blocks' statistics are held, too
    for name in convolutions:
        nn.init.normal_(twin.get_submodule(name).lora_B["default"].weight, std=0.02)
    merge()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        trained, merged = twin.eval().encode_image(images), model.eval().encode_image(images)
    torch.testing.assert_close(merged, trained, atol=1e-6, rtol=1e-4)


@needs_peft
def test_layers_whose_weight_is_read_are_called_instead():
    model = nn.Module()
    model.visual = nn.Module()
    model.visual.trunk = Eva(32, 16, num_classes=8, embed_dim=32, depth=2, num_heads=2, qkv_fused=True)
    twin, _ = with_lora(model, RANK)
    twin.visual.trunk(torch.randn(2, 3, 32, 32)).sum().backward()
    adapters = {name: parameter for name, parameter in twin.named_parameters() if ".lora_B." in name}
    assert any(".qkv." in name for name in adapters)
    assert all(parameter.grad.abs().sum() > 0 for parameter in adapters.values())


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masked", [None, 2, 3])
def test_attention_of_linear_layers_is_torchs(batch_first, masked):
    B, L, E, heads = 2, 5, 16, 4
    attention = nn.MultiheadAttention(E, heads, batch_first=batch_first)
    nn.init.normal_(attention.in_proj_bias)
    x = torch.randn((B, L, E) if batch_first else (L, B, E))
    causal = torch.full((L, L), -torch.inf).triu(1)
    mask = None if masked is None else causal if masked == 2 else causal.expand(B * heads, L, L) + torch.randn(L)
    expected, _ = attention(x, x, x, need_weights=False, attn_mask=mask)
    found, weights = SelfAttention(attention)(x, x, x, need_weights=False, attn_mask=mask)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert weights is None


def test_a_rank_that_layers_do_not_have_is_refused():
    model = held(open_clip_vit(), -1, text=False)
    with pytest.raises(InputError, match=r"--lora_rank 33: visual.* has 32 inputs and \d+ outputs; take at most 32"):
        with_lora(model, 33)
    assert all(parameter.requires_grad for parameter in model.visual.parameters())  # nothing was changed


def test_without_a_layer_to_adapt_it_says_so():
    with pytest.raises(InputError, match=r"--lora_rank 4: no block .*--freeze_until .*--lora_rank 0 trains without"):
        with_lora(held(open_clip_vit(), 2, text=False), RANK)
    model = nn.Module()
    model.visual = nn.Module()
    model.visual.layer1, model.visual.proj = nn.Conv2d(3, 8, 3), nn.Linear(8, 8)
    with pytest.raises(InputError, match="no block of the encoders that learn has a linear layer"):
        with_lora(model, RANK)
    model.visual = nn.Linear(8, 8)
    with pytest.raises(InputError, match=r"the blocks of a Linear cannot be told apart: .* --lora_rank at 0"):
        with_lora(model, RANK)


def test_without_peft_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"needs the package peft; .*set_up.sh parts lora.*\[lora\]"):
        with_lora(open_clip_vit(), RANK)
