"""Which layers of a CLIP learn, from when, how fast, and by what: their weights or adapters beside them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from clipfh.core.cli import option
from clipfh.core.config_file import IN_FILE
from clipfh.models.clip import is_text_parameter
from clipfh.models.image_layers import hold_batch_norm_statistics, hold_image_layers, is_adapter, layers_of
from clipfh.models.lora import learning_line, with_lora


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The flags that treat layers differently: those of the image encoder, and with LoRA of both."""

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
    hold_statistics: bool = option(
        IN_FILE, "batch norms of the image encoder use the statistics that they came with, and keep them"
    )
    lora_rank: int = option(
        IN_FILE,
        "rank of LoRA's adapters, which learn in place of the blocks' weights and are merged before anything is saved; "
        "0: none",
        at_least=0,
    )
    lora_lr_scale: float = option(
        IN_FILE, "learning rate of LoRA's adapters, relative to that of the weights in whose place they learn", above=0
    )

    def hold(self, model: nn.Module, epoch: int = 0) -> None:
        """Let what learns in `epoch` (from 1 on; 0: what learns in any) learn; call it after `model.train()`."""
        hold_image_layers(model.visual, self.freeze_until, head_alone=0 < epoch <= self.head_epochs)
        if self.hold_statistics:
            hold_batch_norm_statistics(model.visual)

    def adapt(self, model: nn.Module) -> tuple[nn.Module, Callable[[], None] | None]:
        """What is to be trained of a CLIP, after `hold`: itself, or with LoRA a twin, and what merges that into it.

        Raises:
            InputError: as `clipfh.models.lora.with_lora`.
        """
        return with_lora(model, self.lora_rank) if self.lora_rank else (model, None)

    def told(self, model: nn.Module) -> str:
        """For the log: with LoRA, how much of what `adapt` has given learns."""
        return learning_line(model) if self.lora_rank else ""

    def groups(
        self, model: nn.Module, lr: float, weight_decay: float, *, text_lr_scale: float = 1.0
    ) -> list[dict[str, Any]]:
        """AdamW's parameter groups of what learns in a CLIP.

        The last block learns at `lr`, each block before it at `layer_decay` times the rate of the one behind it (Clark
        et al. 2020), the text encoder at `text_lr_scale` times `lr`; adapters at `lora_lr_scale` times the rate of
        their layer. Biases, norms and scalars are not decayed.
        """
        rates = {name: lr * (text_lr_scale if is_text_parameter(name) else 1.0) for name, _ in model.named_parameters()}
        if self.layer_decay != 1 or self.head_lr_scale != 1:
            layers = layers_of(model.visual)
            last = max(layers.values())
            for name, layer in layers.items():
                depth = self.head_lr_scale if layer == last else self.layer_decay ** (last - 1 - layer)
                rates[f"visual.{name}"] = lr * depth
        rates = {name: rate * (self.lora_lr_scale if is_adapter(name) else 1.0) for name, rate in rates.items()}
        groups: dict[tuple[bool, float], dict[str, Any]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                key = parameter.ndim < 2, rates[name]
                new = {"params": [], "lr": rates[name], "weight_decay": 0.0 if key[0] else weight_decay}
                groups.setdefault(key, new)["params"].append(parameter)
        return [groups[key] for key in sorted(groups, key=lambda key: key[0])]  # matrices first
