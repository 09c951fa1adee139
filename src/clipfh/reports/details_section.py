"""The part of a run's page that says what stands behind its figures: groups of queries, identities mixed up."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from clipfh.reports.page import Markup, small_photo, table

STYLE = """
.bar { display: inline-block; width: 6rem; height: .6rem; background: #8884; } .bar i { display: block; height: 100%;
  background: #0072b2; } .pair { flex: 1 1 24rem; display: flex; gap: .6rem; } .pair .photos { flex: none; }
td:first-child { overflow-wrap: anywhere; } @media (max-width: 40rem) { .bar { width: 2rem; } }
"""
_HEADINGS = ("queries", "Rank-1", "", "mAP")


def details_sections(details: Mapping[str, Any], image_dir: Path) -> list[str]:
    """HTML of the details that `clipfh.evaluation.details.measure_details` gives, without their figure.

    Args:
        details: `by_category`, `num_categories`, `by_gallery_photos` and `confused`.
        image_dir: the image root.

    Raises:
        InputError: a photo of a confused pair cannot be read.
    """
    parts = []
    if details["by_category"]:
        parts.append("<h2>By category</h2>")
        parts.append(_groups("category", details["by_category"]))
        if (absent := details["num_categories"] - len(details["by_category"])) > 0:
            parts.append(f'<p class="note">{absent:,} categories of fewer queries are not shown.</p>')
    parts.append("<h2>By gallery photos of the identity</h2>")
    parts.append(_groups("gallery photos", details["by_gallery_photos"]))
    parts.append('<p class="note">Percent, official split.</p>')
    if details["confused"]:
        parts.append("<h2>Identities mixed up most</h2>")
        parts += [_pair(pair, image_dir) for pair in details["confused"]]
        note = "Queries of one whose most similar gallery photo is of the other; shown: a query, and what it found."
        parts.append(f'<p class="note">{note}</p>')
    return parts


def _groups(heading: str, groups: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [g["name"], f"{g['num_query']:,}", f"{100 * g['rank1']:.1f}", _bar(g["rank1"]), f"{100 * g['mAP']:.1f}"]
        for g in groups
    ]
    return table((heading, *_HEADINGS), rows)


def _bar(share: float) -> Markup:
    return Markup(f'<span class="bar" aria-hidden="true"><i style="width:{100 * share:.1f}%"></i></span>')


def _pair(pair: Mapping[str, Any], image_dir: Path) -> str:
    """Two identities: their photos, and below what is said of each."""
    both = zip(pair["images"], pair["item_ids"], pair["prompts"], strict=True)
    sides = "".join(
        f'<div class="pair"><div class="photos">{small_photo(image_dir / image, item_id)}</div>'
        f"<p>{escape(prompt)}</p></div>"
        for image, item_id, prompt in both
    )
    number = pair["num_query"]
    head = f"{number:,} {'query' if number == 1 else 'queries'}, similarity up to {pair['similarity']:.3f}"
    return f'<div class="row"><p style="flex-basis: 100%">{head}</p>{sides}</div>'
