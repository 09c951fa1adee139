"""One reader a dataset of identities; all of them return the same thing, a `Dataset` (`fer2013` alone reads faces).

A reader is a module with `read(data_root, *, seed=0, ...) -> Dataset`. Its docstring states the raw layout that it
expects, the source and the protocol. Images stay where they are.
"""

import importlib
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipfh.core.errors import InputError
from clipfh.tables.dataset import Dataset
from clipfh.tables.splits import hold_out_val

DATASET_NAMES = ("synthetic", "inshop", "hands11k", "hd", "market1501", "grocery", "folder")  # each a module here


def read_dataset(
    name: str, data_root: Path, *, seed: int = 0, val_fraction: float | None = None, **options: Any
) -> Dataset:
    """Read the dataset `name` from `data_root`; `options` are the further arguments of its reader.

    `val_fraction` is the share of the train identities to validate on, if not a tenth; 0: none.

    Raises:
        InputError: unknown name or option, or what the reader raises.
    """
    known = reader_options(name)
    for option in options:
        if option not in known:
            has = f"its options are {', '.join(known)}" if known else "it has no options"
            raise InputError(f"the dataset {name} has no option {option!r}; {has}")
    dataset = _reader_module(name).read(Path(data_root), seed=seed, **options)
    if val_fraction is None:
        return dataset
    table = hold_out_val(dataset.table, val_fraction, seed, exclude_same_camera=dataset.exclude_same_camera)
    return replace(dataset, table=table)


def reader_options(name: str) -> dict[str, Any]:
    """The options of the reader of dataset `name`, with their defaults."""
    parameters = inspect.signature(_reader_module(name).read).parameters.values()
    return {
        parameter.name: parameter.default for parameter in parameters if parameter.name not in ("data_root", "seed")
    }


def expected_layout(name: str) -> str:
    """What the raw folder of dataset `name` looks like; empty where it is generated."""
    return getattr(_reader_module(name), "LAYOUT", "")


def _reader_module(name: str) -> Any:
    if name not in DATASET_NAMES:
        raise InputError(f"unknown dataset {name!r}; the datasets are {', '.join(DATASET_NAMES)}")
    return importlib.import_module(f"clipfh.datasets.{name}")  # on demand: a reader may need much, such as a renderer
