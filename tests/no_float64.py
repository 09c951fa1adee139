"""A device without float64, such as an Apple GPU, on machines that have none."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class NoFloat64(TorchFunctionMode):
    """Within it every tensor is as if on a device without float64: `double()` works on what `cpu()` returned alone."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if function is torch.Tensor.cpu:
            copy = arguments[0].clone()
            copy.is_on_cpu = True
            return copy
        if function is torch.Tensor.double and not hasattr(arguments[0], "is_on_cpu"):
            raise TypeError("the device has no float64")
        return function(*arguments, **(keywords or {}))
