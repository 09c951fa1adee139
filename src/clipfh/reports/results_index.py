"""`results/index.html`: all evaluations of a results folder, newest first, with links to their pages.

    python -m clipfh.reports.results_index

Every evaluation writes it anew. Beside each stage's newest evaluation it links the comparison with the stage before,
see `clipfh.reports.compare`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from clipfh.core.cli import option, run_script
from clipfh.core.errors import InputError, shortened
from clipfh.core.paths import RESULTS_DIR, display
from clipfh.reports.compare import comparison_name, write_comparison
from clipfh.reports.gains import other_start, previous_stage
from clipfh.reports.page import Markup, table, write_page
from clipfh.reports.stage_results import evaluation_label, stage_label, stage_results
from clipfh.reports.summary import read_summary

INDEX = "index.html"
_HEADINGS = ("evaluation", "dataset", "Rank-1", "mAP", "comparison", "model", "seed", "time (UTC)")
_STYLE = "body { max-width: 76rem; } td:nth-child(2), th:nth-child(2) { text-align: left; }"
_PAGES = (
    "report.html",
    "results.md",
    "metrics.md",
    "metrics.json",
)  # what a folder is entered by, the first that is there
_NOTE = "Percent, official split; newest first. Comparison: query by query, with what the gain is over."


@dataclass(frozen=True)
class Config:
    """The command line."""

    results_dir: Path = option(RESULTS_DIR, "folder of summary.csv, which the page is written into")


def write_index(results_dir: Path) -> Path:
    """Write `index.html`, and the comparisons of stages that are not there yet; return its path.

    Raises:
        InputError: `summary.csv` is missing or malformed, or the folder cannot be written.
    """
    results_dir = Path(results_dir)
    summary = read_summary(results_dir / "summary.csv")
    comparisons = _comparisons(results_dir, summary)
    # later rows of the same second stand first, too
    newest_first = summary.iloc[::-1].sort_values("time", ascending=False, kind="stable")
    rows = [
        _row(results_dir, of_run, comparisons.get(of_run["run"].iloc[0], ""))
        for _, of_run in newest_first.groupby(["time", "run", "dataset", "stage", "variant"], sort=False)
    ]
    parts = ["<h1>Evaluations</h1>", table(_HEADINGS, rows), f'<p class="note">{escape(_NOTE)}</p>']
    links = [f'<a href="{name}">{name}</a>' for name in ("summary.md", "summary.png") if (results_dir / name).is_file()]
    if links:
        parts.append(f"<p>The newest of each stage, with what it gains: {', '.join(links)}</p>")
    others = _other_folders(results_dir, set(summary["run"]))
    if others:
        parts += ["<h2>Folders without a row in summary.csv</h2>", table(("folder", "what it holds"), others)]
    return write_page(results_dir / INDEX, "Evaluations", parts, style=_STYLE)


def _row(results_dir: Path, of_run: pd.DataFrame, comparison: str) -> list[str]:
    """One evaluation, from its rows of the summary."""
    first = of_run.iloc[0]
    official = of_run[of_run["protocol"] == "official"]
    figures = [f"{100 * official[name].iloc[0]:.1f}" if len(official) else "" for name in ("rank1", "mAP")]
    detail = official["detail"].iloc[0] if len(official) else ""
    name = evaluation_label(first["stage"], first["variant"], detail)
    time = first["time"][:16].replace("T", " ")
    entry = _entry(results_dir, first["run"], name)
    return [entry, first["dataset"], *figures, comparison, first["model"], first["seed"], time]


def _entry(results_dir: Path, run: str, name: str) -> str:
    """The link to an evaluation's page, or why there is none."""
    if not run:
        return f"{name} (its folder was not recorded)"
    if not (results_dir / run).is_dir():
        return f"{name} (its folder {run} is gone)"
    for page in _PAGES:
        if (results_dir / run / page).is_file():
            return _link(f"{run}/{page}", name)
    return f"{name} (its folder {run} holds no page)"


def _link(target: str, text: str) -> Markup:
    return Markup(f'<a href="{quote(target)}" title="{escape(target)}">{escape(text)}</a>')


def _comparisons(results_dir: Path, summary: pd.DataFrame) -> Mapping[str, str]:
    """Run to the link of its comparison with the stage before, which is written where it is missing; or why not.

    Of several training seeds, each is compared with the one at the same place of the stage before, or its first.
    """
    results, links = stage_results(summary), {}
    for result in results:
        try:
            before = previous_stage(result, results, results_dir)
            told = other_start(result, before, results_dir) if before else ""
        except InputError as error:
            links |= dict.fromkeys(result.runs, f"none: {shortened(error, 200)}")
            continue
        if told:
            links |= dict.fromkeys(result.runs, f"none with {stage_label(before.stage)}: {told}")
            continue
        for place, run in enumerate(result.runs if before else ()):
            other = before.runs[place if len(before.runs) == len(result.runs) else 0]
            if all(name and (results_dir / name / "metrics.json").is_file() for name in (run, other)):
                links[run] = _comparison(results_dir, other, run, f"with {stage_label(before.stage)}")
    return links


def _comparison(results_dir: Path, before: str, after: str, label: str) -> str:
    name = comparison_name(before, after)
    if not (results_dir / name).is_file():
        try:
            write_comparison(results_dir, results_dir / before, results_dir / after)
        except InputError as error:  # the index is of the others, too
            return f"none {label}: {shortened(error, 200)}"
    return _link(name, label)


def _other_folders(results_dir: Path, known: set[str]) -> list[list[str]]:
    """Evaluations with tables of their own, as those of stages 4 and 5, and ones that did not end."""
    rows = []
    for folder in sorted(results_dir.iterdir(), reverse=True):
        if folder.is_dir() and folder.name not in known and not folder.name.startswith("."):
            found = [name for name in _PAGES if (folder / name).is_file()]
            if found:
                rows.append([_link(f"{folder.name}/{found[0]}", folder.name), found[0]])
    return rows


def main(config: Config) -> None:
    """Write the page."""
    print(f"wrote {display(write_index(config.results_dir))}")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
