"""Values as they stand in users' files (ids, cameras, labels, paths), each in its one spelling."""

import math
import unicodedata
from pathlib import PurePosixPath
from typing import Any

from clipfh.core.errors import InputError, printable, shown


def text_of(value: Any, where: str) -> str:
    """An id, a camera or a label as it may stand in JSON or come out of a data frame, as text.

    Text stays, a whole number is its digits (0 is a value; `4` and `4.0` are the same), null and NaN are nothing: "".

    Args:
        value: as it was read.
        where: the file, the image and the key, for the message.

    Raises:
        InputError: true, false, a list, an object or an infinity; text with control characters.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value in (math.inf, -math.inf):
        raise InputError(f"{where} is {shown(value)}; write a text or a number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value) if str(value).strip() else ""
    if printable(text) != text:
        raise InputError(f"{where} is {shown(value)}, which holds control or unprintable characters")
    return text


def normal_id(item_id: str) -> str:
    """The one spelling of an id: with composed letters, as Linux writes them, not decomposed ones, as macOS does."""
    return item_id if item_id.isascii() else unicodedata.normalize("NFC", item_id)


def normal_path(image: str) -> str:
    """The one spelling of a path: `./a//b.jpg` is `a/b.jpg`. Where it leads stays as it is."""
    return PurePosixPath(image).as_posix() if image else image


def leaves_root(image: str) -> bool:
    """Whether this path, in its one spelling, is none below an image root."""
    path = PurePosixPath(image)
    return path.is_absolute() or ".." in path.parts or "\\" in image or not path.parts or ":" in path.parts[0]


def without_lone_surrogates(text: str) -> str:
    """JSON can carry half of a surrogate pair; UTF-8 files and the tokenizer can't."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_texts(value: Any) -> bool:
    """Whether it is a list of strings."""
    return isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value)
