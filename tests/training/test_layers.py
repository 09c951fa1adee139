"""Which layers of a CLIP learn, and how fast."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from clipfh.core.errors import InputError
from clipfh.core.run import seed_everything
from clipfh.models.averaged_weights import AveragedWeights
from clipfh.models.clip import load_clip, require_any_size
from clipfh.models.frozen_text_clip import CLIPImageEncoder
from clipfh.models.image_layers import follows_batch, hold_image_layers, layers_of
from clipfh.training.layers import Layers
from clipfh.training.state import decay_groups

import open_clip  # isort: skip  (after the guard that clipfh.models brings)
from open_clip.timm_model import TimmModel  # isort: skip

PLAIN = Layers(
    freeze_until=-1,
    head_epochs=0,
    layer_decay=1.0,
    head_lr_scale=1.0,
    hold_statistics=False,
    lora_rank=0,
    lora_lr_scale=10.0,
)


def small_rn50() -> nn.Module:
    return open_clip.create_model("RN50", load_weights=False).visual


@pytest.fixture(scope="module")
def towers():
    seed_everything(0)
    return {
        "tiny-rn": load_clip("tiny-rn", "random", image_size=32).model,
        "tiny-vit": load_clip("tiny-vit", "random").model,
    }


@pytest.fixture
def tiny_rn(towers):
    yield towers["tiny-rn"]
    towers["tiny-rn"].requires_grad_(True).train()


def test_layers_are_counted_from_the_pixels_on(towers):
    layers = layers_of(towers["tiny-rn"].visual)
    assert layers["trunk.conv1.0.weight"] == 0 and layers["trunk.layer1.0.conv1.weight"] == 1
    assert layers["trunk.layer4.0.bn2.bias"] == 4 and layers["trunk.fc.weight"] == 5 == max(layers.values())
    layers = layers_of(towers["tiny-vit"].visual)
    assert {layers[name] for name in ("conv1.weight", "class_embedding", "positional_embedding", "ln_pre.bias")} == {0}
    assert layers["transformer.resblocks.0.ln_1.weight"] == 1 and layers["transformer.resblocks.5.ln_1.weight"] == 6
    assert layers["ln_post.weight"] == layers["proj"] == 7
    layers = layers_of(small_rn50())
    assert layers["conv1.weight"] == layers["bn3.bias"] == 0 and layers["layer1.0.conv1.weight"] == 1
    assert layers["layer4.2.bn3.weight"] == 4 and layers["attnpool.positional_embedding"] == 5


@pytest.mark.parametrize("name", ["resnet18", "resnet10t"], ids=["torchvision", "timm"])
def test_backbones_have_the_same_layers(name):
    layers = layers_of(CLIPImageEncoder(name, 16))
    assert layers["backbone.layer1.0.conv1.weight"] == 1 and layers["backbone.layer4.0.conv1.weight"] == 4
    assert min(layers.values()) == 0 and layers["head.2.weight"] == 5 == max(layers.values())


@pytest.mark.parametrize(
    ("name", "blocks", "behind"),
    [
        ("EVA02-B-16", 12, {"trunk.norm", "trunk.head"}),
        ("ViT-B-16-SigLIP", 12, {"trunk.norm", "trunk.attn_pool"}),
        ("vit_medium_patch16_gap_256", 12, {"trunk.norm", "head.proj"}),
        ("convnext_base", 4, {"trunk.head", "head.proj"}),
        ("swin_base_patch4_window7_224", 4, {"trunk.norm", "head.proj"}),
    ],
)
def test_norms_behind_the_blocks_of_timm_are_of_the_last_layer(name, blocks, behind):
    with torch.device("meta"):  # names are enough
        vision = open_clip.get_model_config(name)["vision_cfg"]
        pool, proj = vision["timm_pool"], vision["timm_proj"]
        visual = TimmModel(vision["timm_model_name"], 512, pool=pool, proj=proj, image_size=vision["image_size"])
    layers = layers_of(visual)
    assert max(layers.values()) == blocks + 1 and set(layers.values()) == set(range(blocks + 2))
    found = {".".join(name.split(".")[:2]) for name, layer in layers.items() if layer == blocks + 1}
    assert found == behind
    hold_image_layers(visual, -1, head_alone=True)
    assert {name for name, p in visual.named_parameters() if p.requires_grad} == {
        name for name, layer in layers.items() if layer == blocks + 1
    }


def test_the_last_convolution_of_an_efficientnet_is_of_its_last_block():
    with torch.device("meta"):
        layers = layers_of(TimmModel("efficientnet_lite0", 16, pretrained=False))
    assert layers["trunk.conv_stem.weight"] == 0 and layers["trunk.blocks.6.0.conv_pw.weight"] == 7
    assert layers["trunk.conv_head.weight"] == layers["trunk.bn2.bias"] == 7
    assert {name for name, layer in layers.items() if layer == 8} == {"head.proj.weight"}


@pytest.mark.parametrize("until", [-1, 0, 2, 3])
def test_held_layers_get_no_gradient_and_keep_their_statistics(tiny_rn, until):
    tiny_rn.train()
    hold_image_layers(tiny_rn.visual, until)
    layers = layers_of(tiny_rn.visual)
    before = {name: value.clone() for name, value in tiny_rn.visual.named_buffers()}
    tiny_rn.encode_image(torch.randn(4, 3, 32, 32)).square().sum().backward()
    for name, parameter in tiny_rn.visual.named_parameters():
        is_held = until >= 0 and layers[name] <= until + 1
        assert (parameter.grad is None) == is_held, name
        parameter.grad = None
    for name, value in tiny_rn.visual.named_buffers():
        parameter = f"{name.rpartition('.')[0]}.weight"
        is_held = until >= 0 and layers[parameter] <= until + 1
        assert torch.equal(value, before[name]) == is_held, name


def test_the_head_learns_alone_for_some_epochs_and_then_with_the_rest(tiny_rn):
    layers = replace(PLAIN, freeze_until=0, head_epochs=2)
    learning = []
    for epoch in (0, 1, 2, 3):
        tiny_rn.train()
        layers.hold(tiny_rn, epoch)
        learning.append({name for name, p in tiny_rn.visual.named_parameters() if p.requires_grad})
    assert learning[1] == learning[2] == {"trunk.fc.weight", "trunk.fc.bias"} and learning[0] == learning[3]
    assert "trunk.layer2.0.conv1.weight" in learning[0] and "trunk.layer1.0.conv1.weight" not in learning[0]
    assert tiny_rn.visual.trunk.layer2[0].bn1.training and not tiny_rn.visual.trunk.layer1[0].bn1.training


@pytest.mark.parametrize("until", [4, 99])
def test_more_blocks_than_there_are_cannot_be_frozen(tiny_rn, until):
    with pytest.raises(InputError, match=rf"--freeze_until {until}: the image encoder has 4 blocks, 0 to 3"):
        hold_image_layers(tiny_rn.visual, until)


def test_plain_groups_are_those_of_the_whole_model(tiny_rn):
    ours, theirs = PLAIN.groups(tiny_rn, 0.1, 0.5), decay_groups(tiny_rn, 0.1, 0.5)
    assert [group["weight_decay"] for group in ours] == [0.5, 0.0]
    for mine, its in zip(ours, theirs, strict=True):
        assert mine["lr"] == its["lr"] and all(a is b for a, b in zip(mine["params"], its["params"], strict=True))


def test_rates_fall_from_block_to_block(tiny_rn):
    layers = replace(PLAIN, layer_decay=0.5, head_lr_scale=3.0, freeze_until=0)
    layers.hold(tiny_rn)
    groups = layers.groups(tiny_rn, 0.8, 0.1, text_lr_scale=0.25)
    rate = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    named = dict(tiny_rn.named_parameters())
    assert rate[named["visual.trunk.layer4.0.conv1.weight"]] == pytest.approx(0.8)
    assert rate[named["visual.trunk.layer3.0.bn1.bias"]] == pytest.approx(0.4)
    assert rate[named["visual.trunk.layer2.0.conv1.weight"]] == pytest.approx(0.2)
    assert rate[named["visual.trunk.fc.weight"]] == pytest.approx(2.4)
    assert rate[named["token_embedding.weight"]] == pytest.approx(0.2) and rate[named["logit_scale"]] == 0.8
    assert named["visual.trunk.layer1.0.conv1.weight"] not in rate and len(rate) == len(set(rate))
    assert all(
        (parameter.ndim < 2) == (group["weight_decay"] == 0) for group in groups for parameter in group["params"]
    )


def test_adapters_have_a_rate_of_their_own(tiny_rn):
    pytest.importorskip("peft", reason="needs the extra lora")
    layers = replace(PLAIN, layer_decay=0.5, head_lr_scale=3.0, freeze_until=2, lora_rank=4, lora_lr_scale=8.0)
    layers.hold(tiny_rn)
    model, merge = layers.adapt(tiny_rn)
    groups = layers.groups(model, 0.8, 0.1, text_lr_scale=0.25)
    rate = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    named = dict(model.named_parameters())
    assert rate[named["visual.trunk.layer4.0.downsample.1.lora_A.default.weight"]] == pytest.approx(8 * 0.8)
    assert rate[named["transformer.resblocks.0.mlp.c_fc.lora_B.default.weight"]] == pytest.approx(8 * 0.25 * 0.8)
    assert rate[named["visual.trunk.fc.weight"]] == pytest.approx(2.4) and rate[named["text_projection"]] == 0.2
    assert {name for name, parameter in named.items() if parameter in rate} == {
        name for name, parameter in named.items() if parameter.requires_grad
    }
    assert layers.told(model).startswith("LoRA beside ") and merge is not None
    layers.hold(model)
    assert follows_batch(tiny_rn) and not follows_batch(model)  # without a block that learns, no statistics do


def test_without_a_rank_the_model_itself_learns(tiny_rn):
    assert PLAIN.adapt(tiny_rn) == (tiny_rn, None) and PLAIN.told(tiny_rn) == ""


def test_the_average_lies_between_the_start_and_what_was_learned():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    average = AveragedWeights(model, 0.0, keep_start=0.25)
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1
        average.update_parameters(model)
    for name in ("0.weight", "1.bias"):
        torch.testing.assert_close(average.module.state_dict()[name], start[name] + 0.75 * 3)
    again = AveragedWeights(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), 0.0, keep_start=0.25)
    again.load_state_dict(average.state_dict())  # a continued run knows the start
    again.update_parameters(model)
    torch.testing.assert_close(again.module.state_dict(), average.module.state_dict())
    kept = AveragedWeights(model, 0.5)
    assert not any(name.startswith("start") for name in kept.state_dict())


def test_the_average_of_what_is_held_for_an_epoch_follows_later():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    average = AveragedWeights(model, 0.0)
    model[0].requires_grad_(False)
    average.update_parameters(model)
    model[0].requires_grad_(True)
    with torch.no_grad():
        model[0].weight += 1
    average.update_parameters(model)
    assert torch.equal(average.module[0].weight, model[0].weight)


def test_only_convolutions_take_photos_of_another_size(towers):
    clip = load_clip("tiny-rn", "random", image_size=32)
    require_any_size(clip.model.visual, 48, clip.name)
    require_any_size(clip.model.visual, (64, 32), clip.name)
    with pytest.raises(InputError, match="tiny-vit takes photos of one size"):
        require_any_size(load_clip("tiny-vit", "random").model.visual, 48, "tiny-vit")


def test_held_statistics_stay_while_scale_and_shift_learn(tiny_rn):
    held = replace(PLAIN, hold_statistics=True)
    norms = [module for module in tiny_rn.visual.modules() if isinstance(module, nn.BatchNorm2d)]
    tiny_rn.train()
    held.hold(tiny_rn, epoch=1)
    assert not follows_batch(tiny_rn)
    before = [norm.running_mean.clone() for norm in norms]
    tiny_rn.encode_image(torch.randn(4, 3, 32, 32)).sum().backward()
    assert norms and all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))
    assert all(norm.weight.grad is not None for norm in norms)
    tiny_rn.zero_grad(set_to_none=True)
    tiny_rn.train()
    PLAIN.hold(tiny_rn, epoch=1)
    assert follows_batch(tiny_rn)
    tiny_rn.encode_image(torch.randn(4, 3, 32, 32))
    assert not any(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))
