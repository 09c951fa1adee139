"""What the training loops of the stages share: parameter groups, the state that resumes a run, when to stop."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from clipfh.errors import InputError
from clipfh.run import jsonable, random_state, restore_random_state


def decay_groups(module: nn.Module, lr: float, weight_decay: float, **other: Any) -> list[dict[str, Any]]:
    """AdamW parameter groups of the trainable parameters; biases, norms and scalars are not decayed, as in CLIP."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "lr": lr, "weight_decay": weight_decay, **other},
        {"params": [p for p in trainable if p.ndim < 2], "lr": lr, "weight_decay": 0.0, **other},
    ]
    return [group for group in groups if group["params"]]


class _AveragedWeights(AveragedModel):
    def update_parameters(self, model: nn.Module) -> None:
        super().update_parameters(model)
        # buffers also hold counters, and constants such as the causal mask, whose -inf has no average
        for ours, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            ours.copy_(torch.where(ours.isfinite(), ours, theirs) if ours.is_floating_point() else theirs)


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the weights and running statistics of `model`.

    `update_parameters(model)` brings it up to date after each step; counters and values that are not finite are copied.

    The average is what is validated and saved: it generalises better than the last step's weights, and its val figure
    is steadier, so that BEST is less a matter of luck (Izmailov et al. 2018; Morales-Brotons et al. 2024). Frozen
    parameters stay bit-identical. A decay of 0 follows the model itself.
    """
    return _AveragedWeights(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def require_finite(terms: dict[str, torch.Tensor], *, epoch: int, batch: int, images: list[str]) -> None:
    """Stop a run whose loss is no longer a number, naming the batch.

    Raises:
        InputError: a term is NaN or infinite; the message names the term, the epoch, the batch and its images.
    """
    broken = [name for name, value in terms.items() if not math.isfinite(value.item())]
    if broken:
        raise InputError(
            f"the loss is not finite ({', '.join(broken)}) in epoch {epoch}, batch {batch}; its images: "
            f"{', '.join(images[:8])}{' ...' if len(images) > 8 else ''}. Lower --lr, or look at these images."
        )


@dataclass
class BestSoFar:
    """Follows a val figure: which epoch was best, and whether to go on.

    Attributes:
        patience: epochs without a new best after which training stops; 0 never stops.
        value: the best so far, -1 before the first.
        epoch: its epoch.
    """

    patience: int
    value: float = -1.0
    epoch: int = 0

    def update(self, value: float, epoch: int) -> bool:
        """Take the figure of `epoch`; True where it is a new best."""
        if value > self.value:
            self.value, self.epoch = value, epoch
            return True
        return False

    def should_stop(self, epoch: int) -> bool:
        """Whether `patience` epochs have passed without a new best."""
        return self.patience > 0 and epoch - self.epoch >= self.patience


def epoch_line(row: dict[str, Any], epochs: int, *, is_best: bool) -> str:
    """What is printed of an epoch: its loss terms, val figures and duration, from its line of `metrics.jsonl`."""
    losses = " ".join(f"{k.removeprefix('loss_')} {v:.3f}" for k, v in row.items() if k.startswith("loss_"))
    return (
        f"epoch {row['epoch']}/{epochs}  {losses}  val mAP {100 * row['val_mAP']:.1f} "
        f"Rank-1 {100 * row['val_rank1']:.1f}  {row['seconds']:.1f} s{'  BEST' if is_best else ''}"
    )


# What may differ between a run and its continuation: where things are, not what is computed.
_MAY_DIFFER = {
    *("device", "precision", "patience", "skip_unreadable", "resume_ckpt", "save_path", "log_dir"),
    *("pretrained", "init_ckpt", "metadata_dir", "image_dir", "image_meta", "prompt_json"),
}


def binding_flags(config: Any) -> dict[str, Any]:
    """The flags of a run that its continuation has to repeat."""
    return {name: value for name, value in jsonable(config).items() if name not in _MAY_DIFFER}


def require_same_flags(before: dict[str, Any], config: Any) -> None:
    """Refuse to continue a run with flags that would bend it, such as another learning rate or number of epochs.

    Args:
        before: `binding_flags` of the run to continue.
        config: of this run.

    Raises:
        InputError: flags that differ, with their first values.
    """
    now = binding_flags(config)
    changed = sorted(name for name in now if before.get(name) != now[name])
    if changed:
        was = ", ".join(f"--{name} {before.get(name)} (now {now[name]})" for name in changed)
        raise InputError(f"the run to resume was started with other flags: {was}. Repeat the first ones")


def training_state(
    *,
    modules: dict[str, nn.Module],
    optimizers: dict[str, Optimizer],
    scheduler: LRScheduler,
    sampler: Any,
    best: BestSoFar,
    epoch: int,
    step: int,
) -> dict[str, Any]:
    """All that continues a run after `epoch` as if it had not stopped, as plain values and tensors."""
    return {
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
        # the factor's function is made again from the flags; the counter is all that it needs
        "scheduler": {key: value for key, value in scheduler.state_dict().items() if key != "lr_lambdas"},
        "sampler": sampler.state_dict(),
        "random": random_state(),
        "best": {"value": best.value, "epoch": best.epoch},
        "epoch": epoch,
        "step": step,
    }


def restore_training_state(
    state: dict[str, Any],
    *,
    modules: dict[str, nn.Module],
    optimizers: dict[str, Optimizer],
    scheduler: LRScheduler,
    sampler: Any,
    best: BestSoFar,
) -> tuple[int, int]:
    """Put everything that `training_state` saved back in place; returns the last finished epoch and step.

    Raises:
        InputError: the run that is resumed had other losses, parameters or sampler settings.
    """
    try:
        for kind, parts in (("modules", modules), ("optimizers", optimizers)):
            if parts.keys() != state[kind].keys():
                raise ValueError(f"{kind} {', '.join(state[kind])}; this run has {', '.join(parts)}")
        for name, module in modules.items():
            module.load_state_dict(state["modules"][name])
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the run to resume was started with other flags ({str(error).splitlines()[0][:160]}); "
            "its config.json has the ones to repeat"
        ) from error
    scheduler.load_state_dict({**state["scheduler"], "lr_lambdas": [None] * len(scheduler.lr_lambdas)})
    sampler.load_state_dict(state["sampler"])
    best.value, best.epoch = state["best"]["value"], state["best"]["epoch"]
    restore_random_state(state["random"])
    return state["epoch"], state["step"]
