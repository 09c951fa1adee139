"""The results table: `results/summary.csv` as a terminal table, as `results/summary.md` and in the README.

    python -m clipfh.reports.results_table                        # print the table and write results/summary.md
    python -m clipfh.reports.results_table --dataset synthetic    # one dataset only
    python -m clipfh.reports.results_table --readme README.md     # also between the markers of the README

The newest evaluation of every stage and variant is one row, with those of the same recipe's other training seeds. One
by another protocol or other prompts than the prepared dataset's has a row of its own. All tables come from one
function.
"""

import math
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipfh.core.cli import option, run_script
from clipfh.core.errors import InputError
from clipfh.core.files import write_text
from clipfh.core.paths import RESULTS_DIR, ROOT, display
from clipfh.metrics.statistics import MeanStd
from clipfh.reports.charts import stage_comparison_figure
from clipfh.reports.gains import (
    Gain,
    difference_and_p,
    is_of_other_training,
    mean_ap_gain,
    other_start,
    previous_stage,
)
from clipfh.reports.results_index import write_index
from clipfh.reports.stage_results import (
    StageResult,
    evaluation_label,
    of_present_data,
    stage_label,
    stage_number,
    stage_results,
)
from clipfh.reports.summary import read_summary
from clipfh.reports.text_table import WIDTH, Table, render_table

README_BEGIN, README_END = "<!-- results:begin -->", "<!-- results:end -->"
_FIGURE_LABELS = {"rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10", "mAP": "mAP", "mINP": "mINP"}
_GAIN_NOTE = (
    "Gain: points of mAP over the stage before, with the 95% interval and the two-sided p of a paired bootstrap over "
    "test identities (a bare number under 10 of them, and without an evaluation's per_query.csv)."
)
_RANDOM_NOTE = "Random: mean ± standard deviation over the random splits."
_TEXT_NOTE = "Text: prompts as queries."
_SEEDS_NOTE = (
    "n: training seeds of one recipe; figures are means over them, official and text ± their standard deviation. "
    "Intervals average each query over the seeds first, and do not tell what other seeds would give."
)
_PROTOCOL = "protocol"
_PROTOCOL_NOTE = "Protocol: where it is not the prepared dataset's own; a gain is over a row of the same one."
_KEPT_NOTE = "Kept: top-1 on the probe, relative to that of stage 1."
_RERANKED = "re-ranked"
_RERANKED_NOTE = (
    "Re-ranked: the official split by k-reciprocal neighbours or query expansion, for which the test photos are looked "
    "at together, or by text_fusion, for which a query is a photo with its description; to be compared with its like "
    "alone."
)


@dataclass(frozen=True)
class Config:
    """What the report reads and writes."""

    results_dir: Path = option(RESULTS_DIR, "folder of summary.csv; summary.md and summary.png are written into it")
    dataset: str | None = option(None, "only this dataset")
    readme: Path | None = option(None, "also replace the block between the results markers of this file")


def result_tables(results: Sequence[StageResult], results_dir: Path | None = None) -> list[Table]:
    """One table a dataset, percent with one decimal; columns that would be empty are left out.

    Gains have intervals where `results_dir` holds the evaluations' own folders with the figures of single queries.
    """
    tables = []
    for dataset in dict.fromkeys(result.dataset for result in results):
        chosen = [result for result in results if result.dataset == dataset]
        models = list(dict.fromkeys(result.model for result in chosen))
        befores = [previous_stage(result, chosen, results_dir) for result in chosen]
        gains = [_gains(result, before, results_dir) for result, before in zip(chosen, befores, strict=True)]
        cells: list[Mapping[tuple[str, str], str]] = [
            {**_cells(result, its), ("kept", "of probe"): _kept(result, chosen, results_dir)}
            for result, its in zip(chosen, gains, strict=True)
        ]
        columns = [column for column in cells[0] if any(row[column] for row in cells)]
        if len(models) == 1:
            columns.remove(("", "model"))
        if all(len(result.runs) == 1 for result in chosen):
            columns.remove(("", "n"))
        title = f"{dataset} · {models[0]}" if len(models) == 1 else dataset
        date = max(result.time for result in chosen)[:10]
        rows = [[row[column] for column in columns] for row in cells]
        compared = [
            (result, before)
            for result, before, its in zip(chosen, befores, gains, strict=True)
            if before and any(its.values())
        ]
        notes = [*_left_out(chosen, gains), *_other_seeds(compared), *_other_trainings(compared, chosen, results_dir)]
        notes += _other_starts(chosen, befores, results_dir)
        tables.append(Table(title, date, columns, rows, notes))
    return tables


def _gains(result: StageResult, before: StageResult | None, results_dir: Path | None) -> dict[str, Gain | None]:
    return {protocol: mean_ap_gain(result, before, protocol, results_dir) for protocol in ("official", "text_to_image")}


def _kept(result: StageResult, others: Sequence[StageResult], results_dir: Path | None) -> str:
    """Top-1 on the probe relative to that of the same first weights in stage 1 on the same one, percent."""
    start = _before_on_probe(result, others)
    if start is None or other_start(result, start, results_dir):
        return ""
    return f"{100 * result.probe['rank1'].mean / start.probe['rank1'].mean:.1f}"


def _before_on_probe(result: StageResult, others: Sequence[StageResult]) -> StageResult | None:
    """Stage 1 on the probe of `result`; None where there is none, or it knew nothing."""
    like = (result.model, result.detail, result.probe_name)
    same = [other for other in others if (other.model, other.detail, other.probe_name) == like]
    start = next((other for other in same if stage_number(other.stage) == 1 and other.probe), None)
    if start is None or start is result or not result.probe or not start.probe["rank1"].mean:
        return None
    return start


def _cells(result: StageResult, gains: Mapping[str, Gain | None]) -> dict[tuple[str, str], str]:
    """The row of one result: (group, column) to text."""
    cells = {("", "stage"): stage_label(result.stage), ("", "variant"): result.variant, ("", "model"): result.model}
    cells["", _PROTOCOL] = result.detail
    cells["", "n"] = str(len(result.runs))
    for name in ("rank1", "rank5", "rank10", "mAP"):
        cells["official", _FIGURE_LABELS[name]] = _percent(result.official.get(name), std=name in ("rank1", "mAP"))
    cells["official", "gain"], cells["official", "p"] = _gain_and_p(gains["official"])
    cells["official", _FIGURE_LABELS["mINP"]] = _percent(result.official.get("mINP"), std=False)
    for name in ("rank1", "mAP"):
        cells["random", _FIGURE_LABELS[name]] = _percent(result.random.get(name))
    for name in ("rank1", "mAP"):
        cells["text", _FIGURE_LABELS[name]] = _percent(result.text_to_image.get(name))
    cells["text", "gain"], cells["text", "p"] = _gain_and_p(gains["text_to_image"])
    for name in ("rank1", "mAP"):
        cells[_RERANKED, _FIGURE_LABELS[name]] = _percent(result.reranked.get(name))
    cells[_RERANKED, "by"] = result.reranked_by if result.reranked else ""
    return cells


def _left_out(results: Sequence[StageResult], gains: Sequence[Mapping[str, Gain | None]]) -> list[str]:
    """Which gains are not over all queries."""
    return [
        f"The gain of {evaluation_label(result.stage, result.variant)} "
        f"({protocol.replace('_', ' ')}) is over {gain.paired.num_query:,} queries; {gain.paired.num_left_out:,} that "
        "not all its evaluations could measure are left out."
        for result, of_result in zip(results, gains, strict=True)
        for protocol, gain in of_result.items()
        if gain and gain.paired and gain.paired.num_left_out
    ]


def _other_seeds(compared: Sequence[tuple[StageResult, StageResult]]) -> list[str]:
    """Which gains are over a stage of other training seeds, or of more or fewer; stage 1 has none."""
    told = [(result, _told_seeds(result, before)) for result, before in compared if stage_number(before.stage) > 1]
    return [
        f"The gain of {evaluation_label(result.stage, result.variant)} compares {seeds}."
        for result, seeds in told
        if seeds
    ]


def _told_seeds(after: StageResult, before: StageResult) -> str:
    """Such as `training seeds 0, 1 with 2, 3`; empty where they are the same, or not known."""
    if len(after.runs) != len(before.runs):
        return f"{len(after.runs)} training seeds with {len(before.runs)}"
    if after.seeds == before.seeds or "" in (*after.seeds, *before.seeds):
        return ""
    seeds = "seed" if len(after.seeds) == 1 else "seeds"
    return f"training {seeds} {', '.join(after.seeds)} with {', '.join(before.seeds)}"


def _other_trainings(
    compared: Sequence[tuple[StageResult, StageResult]], results: Sequence[StageResult], results_dir: Path | None
) -> list[str]:
    """Which gains are over a training that the stage did not start from."""
    return [
        f"The gain of {evaluation_label(result.stage, result.variant)} is over "
        f"{evaluation_label(before.stage, before.variant)}, from which it was not trained."
        for result, before in compared
        if is_of_other_training(result, before, results, results_dir)
    ]


def _other_starts(
    results: Sequence[StageResult], befores: Sequence[StageResult | None], results_dir: Path | None
) -> list[str]:
    """Which stages have no gain, or kept nothing that can be said, as they began with other weights."""
    pairs = [
        (result, other)
        for result, before in zip(results, befores, strict=True)
        for other in (before, _before_on_probe(result, results))
    ]
    return list(dict.fromkeys(told for pair in pairs if pair[1] and (told := other_start(*pair, results_dir))))


def _percent(value: MeanStd | None, *, std: bool = True) -> str:
    """Such as 61.2 or, where there is a deviation and it is wanted, 61.2 ± 0.4."""
    if value is None:
        return ""
    deviation = f" ± {100 * value.std:.1f}" if std and not math.isnan(value.std) else ""
    return f"{100 * value.mean:.1f}{deviation}"


def _gain_and_p(gain: Gain | None) -> tuple[str, str]:
    return difference_and_p(gain.mAP, gain.paired) if gain else ("", "")


def markdown_report(tables: Sequence[Table], commit: str | None) -> str:
    """All tables in Markdown, each with its dataset, model, date and the commit of the code where it is known."""
    parts = []
    for table in tables:
        origin = f"**{table.title}**, evaluated {table.date}" + (
            f", table written at commit `{commit}`" if commit else ""
        )
        parts += [origin, render_table(table, markdown=True), *table.notes]
    return "\n\n".join([*parts, note_of(tables)])


def note_of(tables: Sequence[Table]) -> str:
    """What the columns of the tables mean, those that are there."""
    columns = {column for table in tables for column in table.columns}
    names = {name for column in columns for name in column}
    notes = {"gain": _GAIN_NOTE, "random": _RANDOM_NOTE, "text": _TEXT_NOTE, "n": _SEEDS_NOTE, "kept": _KEPT_NOTE}
    notes |= {_PROTOCOL: _PROTOCOL_NOTE, _RERANKED: _RERANKED_NOTE}
    return " ".join(["Percent.", *(note for name, note in notes.items() if name in names)])


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
    """Write summary.md, summary.png and index.html (and the block of the README) and print the table."""
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
    tables = result_tables(results, config.results_dir)
    markdown = markdown_report(tables, git_commit(ROOT))
    if config.readme is not None:
        replace_readme_block(config.readme, markdown)
    write_text(config.results_dir / "summary.md", f"# Results\n\n{markdown}\n")
    stage_comparison_figure(config.results_dir / "summary.png", summary)
    write_index(config.results_dir)  # which links both
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without ± or rules still gets the figures
    width = shutil.get_terminal_size((WIDTH, 24)).columns
    for table in tables:
        parts = [f"\n{table.title}, percent", render_table(table, markdown=False, width=width), *table.notes]
        print("\n\n".join(parts))
    print(f"\n{note_of(tables)}\nWritten to summary.md and summary.png in {display(config.results_dir)}")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
