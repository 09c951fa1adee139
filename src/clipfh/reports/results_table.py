"""The results table: `results/summary.csv` as a terminal table, as `results/summary.md` and in the README.

    python -m clipfh.reports.results_table                        # print the table and write results/summary.md
    python -m clipfh.reports.results_table --dataset synthetic    # one dataset only
    python -m clipfh.reports.results_table --readme README.md     # also between the markers of the README

The newest evaluation of every stage and variant is one row. All tables come from one function.
"""

import math
import re
import subprocess
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipfh.core.cli import option, run_script
from clipfh.core.errors import InputError
from clipfh.core.files import write_text
from clipfh.core.paths import RESULTS_DIR, ROOT, display
from clipfh.metrics.statistics import MeanStd
from clipfh.reports.charts import stage_comparison_figure
from clipfh.reports.stage_results import StageResult, of_present_data, stage_label, stage_number, stage_results
from clipfh.reports.summary import read_summary

README_BEGIN, README_END = "<!-- results:begin -->", "<!-- results:end -->"
_FIGURE_LABELS = {"rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10", "mAP": "mAP", "mINP": "mINP"}
_NOTE = (
    "Percent. Random: mean ± standard deviation over the random splits. Gain: points of mAP over the stage before "
    "(random splits, or the official one where a stage has no random splits). Text: prompts as queries."
)
_RERANKED = "re-ranked"
_NOTE_RERANKED = (
    " Re-ranked: the official split by k-reciprocal neighbours or query expansion (metrics.json says which), for which "
    "the test photos are looked at together; to be compared with nothing but its like."
)


@dataclass(frozen=True)
class Config:
    """What the report reads and writes."""

    results_dir: Path = option(RESULTS_DIR, "folder of summary.csv; summary.md and summary.png are written into it")
    dataset: str | None = option(None, "only this dataset")
    readme: Path | None = option(None, "also replace the block between the results markers of this file")


@dataclass(frozen=True)
class Table:
    """The results on one dataset, every cell as text, ready for any rendering.

    Attributes:
        title: the dataset, and the model where there is only one.
        date: of the newest evaluation, `YYYY-MM-DD`.
        columns: (group, name) of each column; columns of one group stand together.
        rows: one row a stage, variant and model.
    """

    title: str
    date: str
    columns: list[tuple[str, str]]
    rows: list[list[str]]


def result_tables(results: Sequence[StageResult]) -> list[Table]:
    """One table a dataset, percent with one decimal; columns that would be empty are left out."""
    tables = []
    for dataset in dict.fromkeys(result.dataset for result in results):
        chosen = [result for result in results if result.dataset == dataset]
        models = list(dict.fromkeys(result.model for result in chosen))
        cells: list[Mapping[tuple[str, str], str]] = [_cells(result, chosen) for result in chosen]
        columns = [column for column in cells[0] if any(row[column] for row in cells)]
        if len(models) == 1:
            columns.remove(("", "model"))
        title = f"{dataset} · {models[0]}" if len(models) == 1 else dataset
        date = max(result.time for result in chosen)[:10]
        tables.append(Table(title, date, columns, [[row[column] for column in columns] for row in cells]))
    return tables


def _cells(result: StageResult, others: Sequence[StageResult]) -> dict[tuple[str, str], str]:
    """The row of one result: (group, column) to text."""
    cells = {("", "stage"): stage_label(result.stage), ("", "variant"): result.variant, ("", "model"): result.model}
    for name in ("rank1", "mAP"):
        cells["random", _FIGURE_LABELS[name]] = _percent_and_std(result.random.get(name))
    gain = mean_ap_gain(result, previous_stage(result, others))
    cells["random", "gain"] = "" if gain is None else f"{100 * gain:+.1f}"
    for name, label in _FIGURE_LABELS.items():
        cells["official", label] = _percent(result.official.get(name))
    for name in ("rank1", "mAP"):
        cells["text", _FIGURE_LABELS[name]] = _percent(result.text_to_image.get(name))
    for name in ("rank1", "mAP"):
        cells[_RERANKED, _FIGURE_LABELS[name]] = _percent(result.reranked.get(name))
    return cells


def previous_stage(result: StageResult, others: Sequence[StageResult]) -> StageResult | None:
    """What `result` is compared with: the same dataset and model, the nearest lower stage number.

    Where that stage has several variants, the one of the same name, or else the one evaluated last.
    """
    number = stage_number(result.stage)
    before = [
        other
        for other in others
        if (other.dataset, other.model) == (result.dataset, result.model) and 0 <= stage_number(other.stage) < number
    ]
    return max(
        before, key=lambda other: (stage_number(other.stage), other.variant == result.variant, other.time), default=None
    )


def mean_ap_gain(after: StageResult, before: StageResult | None) -> float | None:
    """The difference in mAP over the random splits, or on the official one; None where they share no protocol."""
    if before is None:
        return None
    if after.random and before.random:
        return after.random["mAP"].mean - before.random["mAP"].mean
    if after.official and before.official:
        return after.official["mAP"] - before.official["mAP"]
    return None


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _percent_and_std(value: MeanStd | None) -> str:
    if value is None or math.isnan(value.std):
        return "" if value is None else _percent(value.mean)
    return f"{100 * value.mean:.1f} ± {100 * value.std:.1f}"


def render_table(table: Table, *, markdown: bool) -> str:
    """The table as text with aligned columns: Markdown, or two header lines and rules for a terminal."""
    if markdown:
        header = [f"{group} {name}".strip() for group, name in table.columns]
        rows = [[cell.replace("|", "\\|") for cell in row] for row in table.rows]
    else:
        header, rows = [name for _, name in table.columns], table.rows
    widths = [max(3, *map(_width, column)) for column in zip(header, *rows, strict=True)]
    is_text = [group == "" for group, _ in table.columns]
    lines = [
        [_padded(cell, width, left) for cell, width, left in zip(row, widths, is_text, strict=True)]
        for row in (header, *rows)
    ]
    if markdown:
        rule = ["-" * width if left else "-" * (width - 1) + ":" for width, left in zip(widths, is_text, strict=True)]
        return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))
    texts = ["  ".join(line) for line in lines]
    rule = "─" * _width(texts[0])
    return "\n".join(text.rstrip() for text in (_group_line(table, widths), texts[0], rule, *texts[1:], rule))


def _group_line(table: Table, widths: Sequence[int]) -> str:
    """The names of the groups, each over its columns, between dashes."""
    parts = []
    for group in dict.fromkeys(group for group, _ in table.columns):
        own = [width for (name, _), width in zip(table.columns, widths, strict=True) if name == group]
        width = sum(own) + 2 * (len(own) - 1)
        parts.append(f" {group} ".center(width, "─") if group else " " * width)
    return "  ".join(parts)


def _width(text: str) -> int:
    """Terminal cells: East Asian wide characters take two, combining marks none."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def _padded(text: str, width: int, left: bool) -> str:
    space = " " * (width - _width(text))
    return text + space if left else space + text


def markdown_report(tables: Sequence[Table], commit: str | None) -> str:
    """All tables in Markdown, each with its dataset, model, date and the commit of the code where it is known."""
    parts = []
    for table in tables:
        origin = f"**{table.title}**, evaluated {table.date}" + (
            f", table written at commit `{commit}`" if commit else ""
        )
        parts += [origin, render_table(table, markdown=True)]
    return "\n\n".join([*parts, note_below(tables)])


def note_below(tables: Sequence[Table]) -> str:
    """What the columns of the tables mean."""
    groups = {group for table in tables for group, _ in table.columns}
    return _NOTE + (_NOTE_RERANKED if _RERANKED in groups else "")


def git_commit(directory: Path) -> str | None:
    """The short hash of the checked-out commit around `directory`, or None outside of git."""
    command = ["git", "-C", str(directory), "rev-parse", "--short", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def replace_readme_block(readme: Path, markdown: str) -> None:
    """Replace what stands between the results markers of `readme`.

    Raises:
        InputError: the file is missing or unreadable, or does not hold each marker once, in order.
    """
    try:
        text = readme.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {readme}: {error}") from error
    counts = text.count(README_BEGIN), text.count(README_END)
    blocks = re.findall(f"{README_BEGIN}.*?{README_END}", text, flags=re.DOTALL)
    if counts != (1, 1) or not blocks:
        raise InputError(
            f"{readme} needs the lines {README_BEGIN} and {README_END}, once each and in this order, "
            "where the results table goes"
        )
    write_text(readme, text.replace(blocks[0], f"{README_BEGIN}\n{markdown}\n{README_END}"))


def main(config: Config) -> None:
    """Write summary.md (and the block of the README) and print the table."""
    path = config.results_dir / "summary.csv"
    summary = read_summary(path)
    results = stage_results(summary)
    if not results:
        raise InputError(f"{path} holds no evaluation yet. Make some with: bash run_all.sh")
    if config.dataset is not None:
        known = sorted({result.dataset for result in results})
        results = [result for result in results if result.dataset == config.dataset]
        if not results:
            raise InputError(f"{path} holds no row of dataset {config.dataset!r}; it holds {', '.join(known)}")
        summary = summary[summary["dataset"] == config.dataset]
    before = len(summary) - len(of_present_data(summary))
    if before:
        print(f"note: {before:,} rows of {path.name} are of other photos or splits than a dataset has now: left out")
    tables = result_tables(results)
    markdown = markdown_report(tables, git_commit(ROOT))
    if config.readme is not None:
        replace_readme_block(config.readme, markdown)
    write_text(config.results_dir / "summary.md", f"# Results\n\n{markdown}\n")
    stage_comparison_figure(config.results_dir / "summary.png", summary)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without ± or rules still gets the figures
    for table in tables:
        print(f"\n{table.title}, percent\n\n{render_table(table, markdown=False)}")
    print(f"\n{note_below(tables)}\nWritten to summary.md and summary.png in {display(config.results_dir)}")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
