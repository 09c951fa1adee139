"""One HTML page for one evaluation: what was measured, on what, with which configuration, and the figures."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from clipfh.core.files import write_text
from clipfh.metrics.statistics import mean_and_std
from clipfh.reports.summary import FRACTIONS, PROTOCOLS

_PROTOCOL_NAMES = {
    "official": "official split",
    "random": "random splits",
    "text_to_image": "text to image",
    "probe": "classes of the probe",
    "official_reranked": "official split, re-ranked",
}
_HEADINGS = ("protocol", "Rank-1", "Rank-5", "Rank-10", "mAP", "mINP", "queries", "gallery")
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; line-height: 1.25; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; border-bottom: 1px solid #8884; white-space: nowrap; text-align: right; }
th:first-child, td:first-child { text-align: left; white-space: normal; } th { font-weight: 600; }
.pairs td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.pairs td:first-child { overflow-wrap: break-word; min-width: 5rem; } .note { color: #777; font-size: .9rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; background: white; }
"""


def write_run_report(
    run_dir: Path,
    *,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    clustering: Mapping[str, float] | None = None,
    counts: Mapping[str, int] | None = None,
    configuration: Mapping[str, Any] | None = None,
    figures: Sequence[tuple[Path, str]] = (),
) -> Path:
    """Write `report.html` into the run's folder and return its path.

    Args:
        run_dir: the folder of the run; the page links to figures relative to it, so that it can be moved as a whole.
        title: the heading, such as "Stage 3 on synthetic: clip_joint_20260301_093000".
        rows: the rows of this evaluation, as `clipfh.reports.summary.append_rows` takes them, fractions 0..1.
        clustering: NMI and ARI as fractions, and of how many clusters and images.
        counts: what was left out, reason to number; zeros are shown too, since they are an answer.
        configuration: flags, commit, versions, seed.
        figures: (picture inside `run_dir`, caption), in order.

    Raises:
        InputError: the folder cannot be written.
        ValueError: a figure is missing or outside `run_dir`.
    """
    run_dir = Path(run_dir)
    parts = [
        f"<h1>{escape(title)}</h1>",
        "<h2>Figures of merit</h2>",
        _table(_HEADINGS, _metric_rows(rows)),
        '<p class="note">Percent; over several splits, mean ± standard deviation.</p>',
    ]
    splits = [row for row in rows if row["protocol"] == "random"]
    if splits:
        cells = [
            [f"split {row['split']}", *(f"{100 * row[n]:.1f}" for n in FRACTIONS), *_sizes([row])] for row in splits
        ]
        table = _table(("random split", *_HEADINGS[1:]), cells)
        parts.append(f"<details><summary>Each random split</summary>{table}</details>")
    if clustering:
        of = f"{clustering['num_clusters']:,} clusters of {clustering['num_images']:,} images"
        cells = [[f"k-means, {of}", *(f"{100 * clustering[name]:.1f}" for name in ("NMI", "ARI"))]]
        parts.append(_table(("clusters against identities", "NMI", "ARI"), cells))
    if counts:
        parts += ["<h2>Left out</h2>", _pairs(counts)]
    if figures:
        parts.append("<h2>Figures</h2>")
    for picture, caption in figures:
        text, link = escape(caption), quote(_relative(Path(picture), run_dir))
        parts.append(
            f'<figure><a href="{link}"><img src="{link}" alt="{text}"></a><figcaption>{text}</figcaption></figure>'
        )
    if configuration:
        parts += ["<h2>Configuration</h2>", _pairs(configuration)]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    )
    path = run_dir / "report.html"
    body = "\n".join(parts)
    write_text(path, f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n')
    return path


def _metric_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One line a protocol."""
    table = []
    for protocol in PROTOCOLS:
        chosen = [row for row in rows if row["protocol"] == protocol]
        if not chosen:
            continue
        name = ", ".join(filter(None, (_PROTOCOL_NAMES[protocol], chosen[0]["detail"])))
        line = [f"{name}{f' ({len(chosen)})' if len(chosen) > 1 else ''}"]
        for name in FRACTIONS:
            mean, std = mean_and_std([float(row[name]) for row in chosen])
            line.append(f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if len(chosen) > 1 else ""))
        table.append([*line, *_sizes(chosen)])
    return table


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


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _pairs(values: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><td>{escape(str(k))}</td><td>{escape(str(v))}</td></tr>" for k, v in values.items())
    return f'<table class="pairs">{rows}</table>'
