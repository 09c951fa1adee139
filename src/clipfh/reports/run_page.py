"""One HTML page for one evaluation: what was measured, on what, with which configuration, and the figures."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from clipfh.metrics.statistics import mean_and_std
from clipfh.reports import details_section, interactive_map
from clipfh.reports.details_section import details_sections
from clipfh.reports.gains import FEWEST_IDENTITIES
from clipfh.reports.page import pairs, table, write_page
from clipfh.reports.summary import FRACTIONS, PROTOCOLS

_PROTOCOL_NAMES = {
    "official": "official split",
    "random": "random splits",
    "text_to_image": "text to image",
    "probe": "classes of the probe",
    "official_reranked": "official split, re-ranked",
}
_HEADINGS = ("protocol", "Rank-1", "Rank-5", "Rank-10", "mAP", "mINP", "queries", "gallery")


def write_run_report(
    run_dir: Path,
    *,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    clustering: Mapping[str, float] | None = None,
    intervals: Mapping[str, Sequence[float] | None] | None = None,
    details: Mapping[str, Any] | None = None,
    image_dir: Path = Path(),
    counts: Mapping[str, int] | None = None,
    configuration: Mapping[str, Any] | None = None,
    figures: Sequence[tuple[Path, str]] = (),
    sections: Sequence[str] = (),
) -> Path:
    """Write `report.html` into the run's folder and return its path.

    Args:
        run_dir: the folder of the run; the page links to figures relative to it, so that it can be moved as a whole.
        title: the heading, such as "Stage 3 on synthetic: clip_joint_20260301_093000".
        rows: the rows of this evaluation, as `clipfh.reports.summary.append_rows` takes them, fractions 0..1.
        clustering: NMI and ARI as fractions, and of how many clusters and images.
        intervals: figure of the official split, such as "mAP", to the bounds of its 95% bootstrap interval, fractions;
            None where there are too few identities for one.
        details: of the official split, see `clipfh.evaluation.details.measure_details`.
        image_dir: the image root, for the photos of the details.
        counts: what was left out, reason to number; zeros are shown too, since they are an answer.
        configuration: flags, commit, versions, seed.
        figures: (picture inside `run_dir`, caption), in order.
        sections: HTML that follows them, see `interactive_map`.

    Raises:
        InputError: the folder cannot be written, or a photo of the details cannot be read.
        ValueError: a figure is missing or outside `run_dir`.
    """
    run_dir = Path(run_dir)
    parts = [
        f"<h1>{escape(title)}</h1>",
        "<h2>Figures of merit</h2>",
        table(_HEADINGS, _metric_rows(rows)),
        '<p class="note">Percent; over several splits, mean ± standard deviation.</p>',
    ]
    if intervals and None in intervals.values():
        parts.append(
            f"<p>Official split, no bootstrap intervals: resampling fewer than {FEWEST_IDENTITIES} identities would "
            "say little.</p>"
        )
    elif intervals:
        bounds = ", ".join(f"{name} {100 * low:.1f} to {100 * high:.1f}" for name, (low, high) in intervals.items())
        parts.append(f"<p>Official split, 95% bootstrap intervals over identities: {escape(bounds)}.</p>")
    splits = [row for row in rows if row["protocol"] == "random"]
    if splits:
        cells = [
            [f"split {row['split']}", *(f"{100 * row[n]:.1f}" for n in FRACTIONS), *_sizes([row])] for row in splits
        ]
        of_splits = table(("random split", *_HEADINGS[1:]), cells)
        parts.append(f"<details><summary>Each random split</summary>{of_splits}</details>")
    if clustering:
        of = f"{clustering['num_clusters']:,} clusters of {clustering['num_images']:,} images"
        cells = [[f"k-means, {of}", *(f"{100 * clustering[name]:.1f}" for name in ("NMI", "ARI"))]]
        parts.append(table(("clusters against identities", "NMI", "ARI"), cells))
    if details:
        parts += details_sections(details, image_dir)
    if counts:
        parts += ["<h2>Left out</h2>", pairs(counts)]
    if figures:
        parts.append("<h2>Figures</h2>")
    for picture, caption in figures:
        text, link = escape(caption), quote(_relative(Path(picture), run_dir))
        parts.append(
            f'<figure><a href="{link}"><img src="{link}" alt="{text}"></a><figcaption>{text}</figcaption></figure>'
        )
    if sections:
        parts += ["<h2>Map</h2>", *sections]
    if configuration:
        parts += ["<h2>Configuration</h2>", pairs(configuration)]
    return write_page(run_dir / "report.html", title, parts, style=details_section.STYLE + interactive_map.STYLE)


def _metric_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One line a protocol."""
    lines = []
    for protocol in PROTOCOLS:
        chosen = [row for row in rows if row["protocol"] == protocol]
        if not chosen:
            continue
        name = ", ".join(filter(None, (_PROTOCOL_NAMES[protocol], chosen[0]["detail"])))
        line = [f"{name}{f' ({len(chosen)})' if len(chosen) > 1 else ''}"]
        for name in FRACTIONS:
            mean, std = mean_and_std([float(row[name]) for row in chosen])
            line.append(f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if len(chosen) > 1 else ""))
        lines.append([*line, *_sizes(chosen)])
    return lines


def _sizes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Numbers of queries and gallery images; a range where splits differ."""
    sizes = []
    for name in ("num_query", "num_gallery"):
        values = [int(row[name]) for row in rows]
        low, high = min(values), max(values)
        sizes.append(f"{low:,}" if low == high else f"{low:,} to {high:,}")
    return sizes


def _relative(picture: Path, run_dir: Path) -> str:
    picture = picture if picture.is_absolute() else run_dir / picture
    if not picture.is_file() or not picture.resolve().is_relative_to(run_dir.resolve()):
        raise ValueError(
            f"{picture} is not a file inside {run_dir}; the page links to its figures relative to that folder"
        )
    return picture.resolve().relative_to(run_dir.resolve()).as_posix()
