"""The image encoder as layers, from the pixels on: which of them learn, and which learn fast.

Layer 0 is the stem (the first convolution or patch embedding with its norm, position embeddings), layer i + 1 is block
i, and the last layer is what follows the blocks: norm, pooling, projection. A block is a block of a transformer, a
stage of a convolutional network, or one of timm's coarse groups; the last of an EfficientNet has its last convolution.
"""

import re
from types import SimpleNamespace

from torch import nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

import clipfh.models.torchvision_guard  # noqa: F401  (before timm)
from clipfh.core.errors import InputError
from clipfh.core.processes import world_size

from timm.layers import convert_sync_batchnorm  # isort: skip
from timm.models import group_parameters  # isort: skip


def layers_of(visual: nn.Module) -> dict[str, int]:
    """The layer of each parameter of an image encoder of open_clip or of `clipfh.models.frozen_text_clip`, by its name.

    Raises:
        InputError: an architecture without blocks that are known here.
    """
    part = next((part for part in ("trunk", "backbone") if hasattr(visual, part)), None)  # which holds the blocks
    prefix, encoder = (f"{part}.", getattr(visual, part)) if part else ("", visual)
    names = {name: name.removeprefix(prefix) for name, _ in visual.named_parameters()}
    if hasattr(encoder, "group_matcher"):  # timm's, which groups by name; what no group matches is behind all of them
        behind = "?"
        with_it = SimpleNamespace(named_parameters=lambda: [*encoder.named_parameters(), (behind, None)])
        groups = group_parameters(with_it, encoder.group_matcher(coarse=True), reverse=True)
        last = groups[behind]
        # a last norm, which transformers of timm put to their last block
        return {name: last if short.startswith("norm.") else groups.get(short, last) for name, short in names.items()}
    is_residual = hasattr(encoder, "layer1")  # its stages are counted from 1
    pattern = r"layer(\d+)\." if is_residual else r"transformer\.resblocks\.(\d+)\."
    found = {name: re.match(pattern, short) for name, short in names.items()}
    blocks = {name: int(match[1]) - is_residual + 1 for name, match in found.items() if match}
    if not blocks:
        raise InputError(
            f"the blocks of a {type(encoder).__name__} cannot be told apart: leave --freeze_until at -1 and "
            "--lora_rank at 0"
        )
    stem = re.compile(r"(conv\d*|bn\d+|ln_pre)\.|(class_embedding|positional_embedding)$")
    last = max(blocks.values()) + 1
    return {name: blocks.get(name, 0 if stem.match(short) else last) for name, short in names.items()}


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter of `clipfh.models.lora`."""
    return ".lora_" in name


def hold_image_layers(visual: nn.Module, until: int, *, head_alone: bool = False) -> None:
    """Keep the stem and the blocks 0 to `until` of an image encoder as they are, and let all after them learn.

    Held parameters get no gradient, and their batch norms use their own statistics. As nothing before them learns, the
    backward pass ends behind them. To be called after `model.train()`, which puts batch norms back into train mode.
    Of an encoder with adapters (`clipfh.models.lora`) the stem is held, and in its blocks learn the adapters alone.

    Args:
        visual: the image encoder.
        until: the last held block; -1: none, the stem learns too.
        head_alone: hold all blocks.

    Raises:
        InputError: there are not so many blocks.
    """
    if until < 0 and not head_alone and all(parameter.requires_grad for parameter in visual.parameters()):
        return  # also for architectures whose blocks are not known
    layers = layers_of(visual)
    last = max(layers.values())
    if until > last - 2:
        raise InputError(f"--freeze_until {until}: the image encoder has {last - 1} blocks, 0 to {last - 2}")
    held = last - 1 if head_alone else until + 1 if until >= 0 else -1
    with_adapters = any(map(is_adapter, layers))
    for name, parameter in visual.named_parameters():
        may_learn = not with_adapters or layers[name] == last or is_adapter(name)
        parameter.requires_grad_(may_learn and layers[name] > held)
    for module in visual.modules():
        if isinstance(module, _BatchNorm) and module.weight is not None and not module.weight.requires_grad:
            module.eval()


def hold_batch_norm_statistics(visual: nn.Module) -> None:
    """Let all batch norms of an image encoder normalise by the statistics that they have, and keep them.

    Their scale and shift learn as before. To be called after `model.train()`, which puts them back into train mode.
    """
    for module in visual.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def follows_batch(model: nn.Module) -> bool:
    """Whether any batch norm of `model` normalises by the batch and learns its statistics: is in train mode."""
    return any(isinstance(module, _BatchNorm) and module.training for module in model.modules())


def share_batch_norm_statistics(model: nn.Module) -> None:
    """In several processes, let batch norms on GPUs normalise by the rows of all of them; to be called once."""
    if world_size() > 1 and next(model.parameters()).is_cuda:
        convert_sync_batchnorm(model)


def require_shared_statistics(model: nn.Module) -> None:
    """Refuse batch norms that would normalise by the rows of one process of several; `model` is in train mode.

    Raises:
        InputError: there are some.
    """
    alone = (
        module.training and isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm)
        for module in model.modules()
    )
    if world_size() > 1 and any(alone):
        raise InputError(
            "batch norms normalise by the batch, which several processes share on GPUs alone: let them keep their "
            "statistics (stages 2 and 3: --hold_statistics; stage 4: --freeze_backbone), or train in one process"
        )
