"""What all HTML pages share: the frame with its style, tables, small photos. A page needs nothing from elsewhere."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from clipfh.core.files import write_text
from clipfh.reports.drawing import DPI
from clipfh.reports.figures import read_photo

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; line-height: 1.25; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; border-bottom: 1px solid #8884; white-space: nowrap; text-align: right; }
th:first-child, td:first-child { text-align: left; white-space: normal; } th { font-weight: 600; }
.pairs td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.pairs td:first-child { overflow-wrap: break-word; min-width: 5rem; }
.note { color: #777; color: light-dark(#666, #aaa); font-size: .9rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; background: white; }
.row { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: .6rem 0; border-bottom: 1px solid #8884; }
.row > div { min-width: 0; } .row p { margin: 0; font-size: .85rem; overflow-wrap: anywhere; }
.photos { display: flex; gap: .35rem; } .photos figure { margin: 0; width: 92px; font-size: .75rem; }
.photos img, .absent { display: block; box-sizing: border-box; width: 92px; height: 92px; object-fit: contain;
  border: 2px solid #8886; background: #8882; }
.photos figcaption { overflow-wrap: anywhere; line-height: 1.25; } .absent { padding: .3rem; overflow: hidden; }
.match img { border: 3px solid #009e73; } .other img { border: 3px dashed #d55e00; }
"""

PHOTO_PX = 92  # the longer side of small photos; some 3 KB each


class Markup(str):
    """Text that is HTML already: what `table` does not escape."""


def write_page(path: Path, title: str, parts: Sequence[str], *, style: str = "") -> Path:
    """Write one page and return its path.

    Args:
        path: of the file.
        title: of the window, as plain text.
        parts: the HTML of its body; what users wrote is escaped in it.
        style: CSS besides the one that all pages share.

    Raises:
        InputError: the folder cannot be written.
    """
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style>"
    )
    body = "\n".join(parts)
    write_text(path, f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n')
    return path


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls sideways where it is too wide; cells are escaped, but for those that are `Markup`."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _cell(cell: str) -> str:
    return cell if isinstance(cell, Markup) else escape(cell)


def pairs(values: Mapping[str, Any]) -> str:
    """A table of names and their values, escaped."""
    rows = "".join(f"<tr><td>{escape(str(k))}</td><td>{escape(str(v))}</td></tr>" for k, v in values.items())
    return f'<table class="pairs">{rows}</table>'


def small_photo(path: Path, caption: str, verdict: bool | None = None) -> str:
    """A photo as part of the page itself, so that the page can be moved without it.

    Args:
        path: of the photo; one that has gone since leaves a box with its name.
        caption: below it.
        verdict: whether it matches, as a frame and a sign; None: neither.

    Raises:
        InputError: it is there, and cannot be read.
    """
    kind = {None: "", True: "match", False: "other"}[verdict]
    sign = {None: "", True: "✓ ", False: "✗ "}[verdict]
    if path.exists():
        buffer = io.BytesIO()
        Image.fromarray(read_photo(path, PHOTO_PX / DPI)).save(buffer, "JPEG", quality=80)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        shown = f'<img src="data:image/jpeg;base64,{data}" alt="{escape(path.name)}" loading="lazy">'
    else:
        shown = f'<span class="absent">{escape(path.name)} is gone</span>'
    return f'<figure class="{kind}">{shown}<figcaption>{sign}{escape(caption)}</figcaption></figure>'
