"""What the training loops of the stages share: parameter groups, the state that resumes a run, when to stop."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from clipfh.core.cli import config_fields, jsonable
from clipfh.core.config_file import IN_FILE
from clipfh.core.errors import InputError


def decay_groups(module: nn.Module, lr: float, weight_decay: float, **other: Any) -> list[dict[str, Any]]:
    """AdamW parameter groups of the trainable parameters; biases, norms and scalars are not decayed, as in CLIP."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "lr": lr, "weight_decay": weight_decay, **other},
        {"params": [p for p in trainable if p.ndim < 2], "lr": lr, "weight_decay": 0.0, **other},
    ]
    return [group for group in groups if group["params"]]


def require_finite(terms: dict[str, torch.Tensor], *, epoch: int, batch: int, images: list[str]) -> None:
    """Stop a run whose loss is no longer a number, naming the batch. Waits for the device once.

    Raises:
        InputError: a term is NaN or infinite; the message names the term, the epoch, the batch and its images.
    """
    if not math.isfinite(sum(value.detach() for value in terms.values()).item()):
        broken = [name for name, value in terms.items() if not math.isfinite(value.item())] or ["their sum"]
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
        start: the figures before training, where they were measured.
    """

    patience: int
    value: float = -1.0
    epoch: int = 0
    start: dict[str, float] | None = None

    def update(self, value: float, epoch: int) -> bool:
        """Take the figure of `epoch`; True where it is a new best."""
        if value > self.value:
            self.value, self.epoch = value, epoch
            return True
        return False

    def should_stop(self, epoch: int) -> bool:
        """Whether `patience` epochs have passed without a new best."""
        return self.patience > 0 and epoch - self.epoch >= self.patience


@dataclass(frozen=True)
class Validation:
    """What an epoch gave on val.

    Attributes:
        figures: of the epoch's row, 0..1; higher is better. `Loop` knows which of them BEST is chosen by.
        text: of the epoch's line.
    """

    figures: dict[str, float]
    text: str


def epoch_line(row: dict[str, Any], epochs: int, val: Validation | None, *, is_best: bool) -> str:
    """What is printed of an epoch: its loss terms, val figures and duration, from its line of `metrics.jsonl`."""
    losses = " ".join(f"{k.removeprefix('loss_')} {v:.3f}" for k, v in row.items() if k.startswith("loss_"))
    figures = f"{val.text}  " if val else ""
    return f"epoch {row['epoch']}/{epochs}  {losses}  {figures}{row['seconds']:.1f} s{'  BEST' if is_best else ''}"


# Flags of a run that began before there were such flags, where the files now turn them on.
_BEFORE_THERE_WERE = {
    "wise_ft": 0,
    "lora_rank": 0,
    "hold_statistics": False,
    "text": "prompts",
    "freeze_text_blocks": False,
    "min_batches": 1,
}

# What may differ between a run and its continuation: where things are, not what is computed.
_MAY_DIFFER = {
    *("device", "precision", "patience", "skip_unreadable", "resume_ckpt", "save_path", "log_dir"),
    *("verify", "grad_checkpointing", "compile"),
    *("pretrained", "init_ckpt", "metadata_dir", "image_dir", "image_meta", "prompt_json"),
    *("data_root", "baseline", "checkpoint_dir"),
}


def binding_flags(config: Any) -> dict[str, Any]:
    """The flags of a run that its continuation has to repeat."""
    return {name: value for name, value in jsonable(config).items() if name not in _MAY_DIFFER}


def require_same_flags(before: dict[str, Any], config: Any) -> None:
    """Refuse to continue a run with flags that would bend it, such as another learning rate or number of epochs.

    Args:
        before: `binding_flags` of the run to continue; it may be of a version with fewer flags.
        config: of this run.

    Raises:
        InputError: flags that differ, with their first values.
    """
    now = binding_flags(config)
    # a flag that did not exist yet had the effect of its default, or of what the files say
    defaults = {name: field.default for name, (field, _) in config_fields(type(config)).items()}
    defaults = {name: now.get(name) if value is IN_FILE else value for name, value in defaults.items()}
    before = {**defaults, **_BEFORE_THERE_WERE, **before}
    changed = sorted(name for name in now if before.get(name) != now[name])
    if changed:
        was = ", ".join(f"--{name} {before.get(name)} (now {now[name]})" for name in changed)
        raise InputError(f"the run to resume was started with other flags: {was}. Repeat the first ones")


def load_states(parts: Mapping[str, nn.Module | Optimizer], states: dict[str, Any]) -> None:
    """Give each of `parts` its state of a run that is continued.

    Raises:
        InputError: the states are of other parts, or of parts of other shapes.
    """
    try:
        if parts.keys() != states.keys():
            raise ValueError(f"{', '.join(states)}; this run has {', '.join(parts)}")
        for name, part in parts.items():
            part.load_state_dict(states[name])
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the run to resume was started with other flags ({str(error).splitlines()[0][:160]}); "
            "its config.json has the ones to repeat"
        ) from error
