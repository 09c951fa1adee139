"""The tensors of a TorchScript archive, read without running anything of it.

`torch.jit.load` executes what the archive's classes define, `__setstate__` first of all. OpenAI publishes CLIP's
weights as such archives, so they are read here: as a zip whose `data.pkl` names modules, attributes and tensors, and
whose `data/` holds the numbers.
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class _Inert:
    """Stands for every object of the archive's own classes: keeps its state, and has no behaviour."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)  # checks the bounds of the storage


def _values(values: list) -> list:
    return values


class _TensorUnpickler(pickle.Unpickler):
    """Resolves tensors and inert objects only; every other name is refused before it is imported."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}data.pkl"))
        self._archive, self._root, self._storages = archive, root, {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return type(name, (_Inert,), {})
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name in ("build_intlist", "build_doublelist", "build_boollist"):
            return _values
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no tensor")

    def persistent_load(self, reference: Any) -> Tensor:
        _, dtype, key, *_ = reference
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._root}data/{key}"))
            self._storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._storages[key]


def read_torchscript_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of the archive by its dotted name, as `state_dict` would name it, in the archive's dtypes.

    Attributes that are tensors are among them (`visual.attn_mask`): a file doesn't tell them from buffers.

    Raises:
        pickle.UnpicklingError: the archive refers to something that is no tensor.
        Exception: damaged archives make zipfile, pickle and torch raise anything.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")[: -len("data.pkl")]
        module = _TensorUnpickler(archive, root).load()
    tensors, seen, open_objects = {}, set(), [("", module)]
    while open_objects:
        prefix, owner = open_objects.pop()
        if id(owner) in seen or not isinstance(getattr(owner, "state", None), dict):
            continue
        seen.add(id(owner))
        for name, value in owner.state.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}{name}"] = value
            elif isinstance(value, _Inert):
                open_objects.append((f"{prefix}{name}.", value))
    return tensors
