"""What every figure shares: colours, text that the font can draw, and files that are whole or absent.

Figures are made with `Figure` and the Agg canvas, never with pyplot: no global state, no display, no figure left open.
"""

import unicodedata
from functools import lru_cache
from pathlib import Path

from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clipfh.core.files import replace_atomically

# Okabe and Ito's palette: told apart with any colour vision. Colour is never the only sign, see the marks and dashes.
GREEN, RED, BLUE, ORANGE, PURPLE, SKY = "#009E73", "#D55E00", "#0072B2", "#E69F00", "#CC79A7", "#56B4E9"
SERIES_COLORS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY)
INK, GREY, PALE = "#1b1f24", "#6b7280", "#d8dce2"
FONT = "DejaVu Sans"  # comes with matplotlib, hence the same on every machine
DPI = 150

_MISSING_GLYPH = "\N{WHITE SQUARE}"


@lru_cache
def _font_path(weight: str) -> str:
    return font_manager.findfont(font_manager.FontProperties(family=FONT, weight=weight))


@lru_cache
def _drawable_codepoints() -> frozenset[int]:
    return frozenset(font_manager.get_font(_font_path("normal")).get_charmap())


@lru_cache(maxsize=4096)
def _advance(character: str, weight: str) -> float:
    """Width of a character, in units of the font size."""
    font = font_manager.get_font(_font_path(weight))
    font.set_size(100, 72)
    return font.load_char(ord(character)).linearHoriAdvance / 65536 / 100


def text_width(text: str, points: float, weight: str = "normal") -> float:
    """Width in inches of one line of `printable` text, kerning left out (hence an upper bound in practice)."""
    return sum(_advance(character, weight) for character in text) * points / 72


def printable(text: str) -> str:
    """`text` on one line, with every character that the font lacks replaced by a square.

    matplotlib would draw a box too, but warn for each character.
    """
    text = " ".join(unicodedata.normalize("NFC", text).split())
    known = _drawable_codepoints()
    return "".join(c if c == " " or (ord(c) in known and c.isprintable()) else _MISSING_GLYPH for c in text)


def shortened(text: str, inches: float, points: float, weight: str = "normal") -> str:
    """`printable` text no wider than `inches`; the middle goes, since ids differ at their ends."""
    text = printable(text)
    kept, short = len(text), text
    while kept > 2 and text_width(short, points, weight) > inches:
        kept -= 1
        short = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    return short


def wrapped(text: str, inches: float, points: float, max_lines: int) -> list[str]:
    """`printable` text in at most `max_lines` lines no wider than `inches`, an ellipsis where it was longer."""
    lines: list[str] = []
    line = ""
    for word in printable(text).split():
        longer = f"{line} {word}".lstrip()
        if line and text_width(longer, points) > inches:
            lines.append(line)
            longer = word
        line = longer
    lines.append(line)
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and text_width(last + "…", points) > inches:
            last = last[:-1]
        lines[max_lines - 1 :] = [last.rstrip(" ,;") + "…"]
    return [shortened(line, inches, points) for line in lines]  # one endless word is wider than any line


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """A white figure with an Agg canvas, known to no global state."""
    figure = Figure(figsize=(width_inches, height_inches), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure atomically in the format that the suffix of `path` names: `.png`, `.jpg`, `.svg`, `.pdf`.

    A sheet of photographs is about a third of the size as `.jpg`.

    Raises:
        InputError: the folder cannot be written.
        ValueError: another suffix.
    """
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("png", "jpg", "svg", "pdf"):
        raise ValueError(f"{path}: the suffix of a figure is .png, .jpg, .svg or .pdf")
    options = {"pil_kwargs": {"quality": 85, "subsampling": 0}} if kind == "jpg" else {}
    with replace_atomically(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=DPI, **options)
