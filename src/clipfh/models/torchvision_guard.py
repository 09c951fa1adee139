"""Import this module before torchvision, open_clip or timm: it makes torchvision importable beside a CPU torch.

PyPI's torchvision is compiled against the CUDA torch. Beside a CPU build of torch its extension does not load, and its
import then ends with `operator torchvision::nms does not exist`, because it describes the shapes of `nms` and `qnms`
without asking whether they exist. Declared without an implementation, they let the import pass; nothing here calls
them, and a call still says that the compiled operators are missing.

They are declared only after the import has failed for that reason: where the extension loads, a second declaration
of the same operators would end the process.
"""

import importlib
import sys

import torch

_SCHEMAS = tuple(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms"))
_library: torch.library.Library | None = None  # kept: torch withdraws the declarations when this object goes


def import_torchvision() -> None:
    """Import torchvision, declaring its two missing operators if that is what stops it.

    Raises:
        ImportError, RuntimeError: torchvision is absent, or fails for another reason.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error) or "does not exist" not in str(error):
            raise
        _declare_missing_operators()
        _forget_half_imported_modules()
        importlib.import_module("torchvision")


def _declare_missing_operators() -> None:
    global _library
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            _library.define(schema)


def _forget_half_imported_modules() -> None:
    """Python keeps the submodules of a failed import; a second import must run them again."""
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]


import_torchvision()
