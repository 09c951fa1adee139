"""The one exception that means: the input is wrong, not the program; and how its message shows a foreign value."""

import os
import re
import unicodedata
from typing import Any

_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # the direction of writing, until they are closed


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


def with_short_words(line: str, longest: int = 300) -> str:
    """`line`, where long words lose their middle, as few as bring it to `longest`: foreign values nobody has to read.

    A word of 200 characters stays where there is room for it, and the path of a file or folder that is there always
    does: it is shown to be opened. Many short words are not cut.
    """
    for length in (200, 100, 60):
        line = re.sub(r"\S+", lambda word, length=length: _without_middle(word.group(), length), line)
        if len(line) <= longest:
            break
    return line


def _without_middle(word: str, length: int) -> str:
    if len(word) <= length or os.path.exists(word.strip("()'\",:;").rstrip(".")):
        return word
    return f"{word[: length // 2]}...{word[-length // 2 :]}"


def printable(value: Any) -> str:
    """The text without what a terminal would act on or cannot show.

    Control characters, the marks that turn the direction of writing, line breaks and halves of surrogate pairs become
    escapes such as `\\x1b`; the joiners inside emoji and Persian words stay.
    """
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if character in _TURNS or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        else character
        for character in str(value)
    )
