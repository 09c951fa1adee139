"""What a raw dataset says of one identity, and its file `descriptions.json`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipfh.core.errors import InputError
from clipfh.core.files import read_json
from clipfh.core.values import normal_id


@dataclass(frozen=True)
class Description:
    """What the raw dataset says of one identity; any part may be empty."""

    category: str = ""
    color: str = ""
    lines: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()


DESCRIPTIONS_MADE_BY = "python preprocessing/00_prepare_dataset.py --dataset NAME --data_root DIR"


def read_descriptions(path: Path) -> dict[str, Description]:
    """Read `descriptions.json`: `{item_id: {"category", "color", "lines", "attributes"}}`; keys may be absent.

    Raises:
        InputError: the file is missing, malformed, or an entry has parts of another type.
    """
    descriptions = {}
    for item_id, entry in by_id(read_json(path, made_by=DESCRIPTIONS_MADE_BY), path):
        if not isinstance(entry, dict):
            raise InputError(f"{path}: the description of {item_id!r} must be an object, not {type(entry).__name__}")
        texts = {key: "" if entry.get(key) is None else entry[key] for key in ("category", "color")}
        lists = {key: [] if entry.get(key) is None else entry[key] for key in ("lines", "attributes")}
        for key, value in texts.items():
            if not isinstance(value, str):
                raise InputError(f'{path}: "{key}" of {item_id!r} must be a string, not {type(value).__name__}')
        for key, value in lists.items():
            if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
                raise InputError(f'{path}: "{key}" of {item_id!r} must be a list of strings')
        descriptions[item_id] = Description(**texts, **{key: tuple(value) for key, value in lists.items()})
    return descriptions


def by_id(entries: dict[str, Any], path: Path) -> Iterator[tuple[str, Any]]:
    """The entries of an object by item id, in the spelling of the table of images."""
    seen: set[str] = set()
    for key, value in entries.items():
        item_id = normal_id(key)
        if item_id in seen:
            raise InputError(f"{path}: {item_id!r} stands there twice, in composed and in decomposed letters")
        seen.add(item_id)
        yield item_id, value
