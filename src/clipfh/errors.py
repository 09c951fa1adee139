"""The one exception that means: the input is wrong, not the program; and how its message shows a foreign value."""

import unicodedata
from typing import Any


class InputError(Exception):
    """A user's mistake (a missing file, a malformed line, an impossible option).

    The message names the file, the value and the way out. Scripts print it without a traceback and exit with 2.
    """


def shown(value: Any, length: int = 60) -> str:
    """`value` as Python writes it, shortened to `length` characters: for a message about it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; a value that contains itself
        text = f"<{type(value).__name__}>"
    return shortened(text, length)


def shortened(value: Any, length: int = 120) -> str:
    """The first line of a text or an error's message, at most `length` characters."""
    line = next(iter(str(value).strip().split("\n")), "").strip()
    return printable(line if len(line) <= length else line[: length - 3] + "...")


def shortened_inside(line: str, length: int = 290) -> str:
    """`line` without its middle where it is longer than `length`: an error's end says the way out."""
    if len(line) <= length:
        return line
    return f"{line[: length * 2 // 3]} ... {line[len(line) - (length // 3 - 5) :]}"


def printable(value: Any) -> str:
    """The text without what a terminal would act on or cannot show.

    Control characters, the marks that turn the direction of writing, line breaks and halves of surrogate pairs become
    escapes such as `\\x1b`.
    """
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else character
        for character in str(value)
    )
