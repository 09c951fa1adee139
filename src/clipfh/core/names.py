"""Names that become folders: of a dataset, a run, a variant. They are checked once, where they enter."""

import re
from typing import Any

from clipfh.core.errors import InputError, shown

_NAME = re.compile(r"\w[\w.+-]{0,99}")


def is_name(value: Any) -> bool:
    """Whether `value` can name a folder and stand in a table: letters, digits and `_ . + -`, at most 100."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def require_name(value: Any, origin: str) -> str:
    """`value`, a name that `origin`, a flag or a file, gave.

    Raises:
        InputError: it is none.
    """
    if not is_name(value):
        raise InputError(f"{origin} {shown(value)} cannot name a folder; use letters, digits and _ . + - only")
    return value


def as_name(text: str) -> str:
    """`text`, such as a folder's name, as a name: what cannot stand in one becomes `_`."""
    return re.sub(r"[^\w.+-]|^[^\w]", "_", text)[:100] or "_"
