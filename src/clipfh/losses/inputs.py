"""What every loss does to its inputs first: check their shapes, and leave reduced precision.

Half-precision inputs (from autocast or a half-precision model) are computed in float32, because sums over a batch and
exponentials of logits up to 100 lose too much in float16 and bfloat16; float32 and float64 stay as they are.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor


def to_full_precision(features: Tensor) -> Tensor:
    """Return float32 for half-precision `features`, and `features` itself for float32 and float64."""
    return features if features.dtype in (torch.float32, torch.float64) else features.float()


def scale_like(features: Tensor, logit_scale: float | Tensor) -> Tensor:
    """`logit_scale` as a 0-d tensor with the dtype and device of `features`, still connected to its gradient."""
    return torch.as_tensor(logit_scale, dtype=features.dtype, device=features.device).reshape(())


def without_autocast(features: Tensor) -> AbstractContextManager:
    """A context in which matrix products on the device of `features` keep their inputs' precision."""
    return torch.autocast(device_type=features.device.type, enabled=False)


def check_labelled_features(features: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless `features` is (N, D) with N >= 1 and `labels` is (N,)."""
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(f"features must be (N, D) with N >= 1, not {tuple(features.shape)}")
    if labels.shape != features.shape[:1]:
        raise ValueError(f"labels must be ({len(features)},), one for each row of features, not {tuple(labels.shape)}")


def zero_of(features: Tensor) -> Tensor:
    """A zero that `backward` accepts, with zero gradients; not finite where `features` are not, so that it shows."""
    return features.sum() * 0.0
