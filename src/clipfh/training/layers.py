"""Which layers of a CLIP learn, from when, and how fast."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from clipfh.core.cli import option
from clipfh.core.config_file import IN_FILE
from clipfh.models.clip import is_text_parameter
from clipfh.models.image_layers import hold_image_layers, layers_of


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The flags that treat the layers of the image encoder differently."""

    freeze_until: int = option(
        IN_FILE, "last block of the image encoder that is frozen, with all before it; -1: none", at_least=-1
    )
    head_epochs: int = option(
        IN_FILE, "first epochs in which the blocks are held, and what follows them learns alone", at_least=0
    )
    layer_decay: float = option(
        IN_FILE, "a block's learning rate, relative to that of the block behind it", above=0, at_most=1
    )
    head_lr_scale: float = option(
        IN_FILE, "learning rate of what follows the blocks (norm, projection), relative to --lr", above=0
    )

    def hold(self, model: nn.Module, epoch: int = 0) -> None:
        """Let what learns in `epoch` (from 1 on; 0: what learns in any) learn; call it after `model.train()`."""
        hold_image_layers(model.visual, self.freeze_until, head_alone=0 < epoch <= self.head_epochs)

    def groups(
        self, model: nn.Module, lr: float, weight_decay: float, *, text_lr_scale: float = 1.0
    ) -> list[dict[str, Any]]:
        """AdamW's parameter groups of what learns in a CLIP.

        The last block learns at `lr`, each block before it at `layer_decay` times the rate of the one behind it (Clark
        et al. 2020), the text encoder at `text_lr_scale` times `lr`. Biases, norms and scalars are not decayed.
        """
        rates = {name: lr * (text_lr_scale if is_text_parameter(name) else 1.0) for name, _ in model.named_parameters()}
        if self.layer_decay != 1 or self.head_lr_scale != 1:
            layers = layers_of(model.visual)
            last = max(layers.values())
            for name, layer in layers.items():
                depth = self.head_lr_scale if layer == last else self.layer_decay ** (last - 1 - layer)
                rates[f"visual.{name}"] = lr * depth
        groups: dict[tuple[bool, float], dict[str, Any]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                key = parameter.ndim < 2, rates[name]
                new = {"params": [], "lr": rates[name], "weight_decay": 0.0 if key[0] else weight_decay}
                groups.setdefault(key, new)["params"].append(parameter)
        return [groups[key] for key in sorted(groups, key=lambda key: key[0])]  # matrices first
