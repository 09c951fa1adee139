"""Two evaluations of one dataset beside each other, query by query: `results/compare_<A>_<B>.html`.

    python -m clipfh.reports.compare synthetic_stage1_20260301_093000 synthetic_stage3_v4_20260301_101500

Which queries the second one finds better and which worse than the first, with their photos and what either ranks first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clipfh.core.cli import Parser, add_flag, build, config_fields, option, run_script
from clipfh.core.errors import InputError, shown
from clipfh.core.files import read_json
from clipfh.core.paths import RESULTS_DIR, ROOT, display
from clipfh.core.values import leaves_root
from clipfh.metrics.query_changes import QueryChanges, query_changes
from clipfh.metrics.statistics import paired_bootstrap_difference
from clipfh.reports.gains import FEWEST_IDENTITIES, difference_and_p
from clipfh.reports.page import pairs, small_photo, table, write_page
from clipfh.reports.per_query import PER_QUERY, read_average_precision
from clipfh.reports.picture import read_rankings
from clipfh.reports.stage_results import evaluation_label

MOST = 6  # queries that gained, that lost, that are hard for both
FIRST = 3  # gallery photos of each ranking
_NAMED = 10  # queries of one evaluation alone that are named


@dataclass(frozen=True)
class Config:
    """The command line."""

    before: str = option("", "folder of the first evaluation, or its name below --results_dir")
    after: str = option("", "of the one that is compared with it")
    results_dir: Path = option(RESULTS_DIR, "where the page goes")


@dataclass(frozen=True)
class EvaluatedRun:
    """What the folder of an evaluation says.

    Attributes:
        name: of the folder.
        dataset, data_digest, model: what was evaluated, on what.
        label: of its stage and variant, and of what was measured otherwise than the dataset says.
        image_dir: the image root.
        average_precision: of the official split's queries, see `read_average_precision`.
        rankings: of the same queries, see `read_rankings`.
    """

    name: str
    dataset: str
    data_digest: str
    model: str
    label: str
    image_dir: Path
    average_precision: pd.Series
    rankings: pd.DataFrame


def read_evaluated_run(run_dir: Path) -> EvaluatedRun:
    """Read `metrics.json`, `per_query.csv` and `rankings.csv` of an evaluation's folder.

    Raises:
        InputError: one of them is missing or damaged, or names an image outside the image root.
    """
    metrics = read_json(run_dir / "metrics.json", made_by="bash run_all.sh", check=_is_of_run)
    precision = read_average_precision(run_dir, "official")
    if precision is None:
        raise InputError(f"{run_dir} has no {PER_QUERY} with queries of the official split; evaluate again")
    for query in precision.index.get_level_values("query"):
        if leaves_root(query):  # its photo becomes a part of the page
            raise InputError(f"{run_dir / PER_QUERY}: {shown(query)} is no image below the image root; evaluate again")
    label = evaluation_label(str(metrics["stage"]), metrics["variant"], metrics.get("detail", ""))
    names = ("dataset", "data_digest", "model")
    image_dir = ROOT / metrics.get("image_dir", "absent")  # of an earlier version: without photos
    rankings = read_rankings(run_dir / "rankings.csv")
    return EvaluatedRun(run_dir.name, *(metrics[name] for name in names), label, image_dir, precision, rankings)


def _is_of_run(value: Any) -> bool:
    texts = ("dataset", "data_digest", "model", "variant")
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(name), str) for name in texts)
        and isinstance(value.get("stage"), (int, str))
        and all(isinstance(value.get(name, ""), str) for name in ("image_dir", "detail"))
    )


def comparison_name(before: str, after: str) -> str:
    """The file that compares the evaluations of these names."""
    return f"compare_{before}_{after}.html"


def write_comparison(results_dir: Path, before_dir: Path, after_dir: Path) -> Path:
    """Write the page that compares two evaluations into `results_dir`, and return its path.

    Its photos are parts of it, so that it can be moved and sent.

    Raises:
        InputError: an evaluation's files are missing or damaged, they are of different data, have no query in common,
            or the page cannot be written.
    """
    before, after = read_evaluated_run(before_dir), read_evaluated_run(after_dir)
    if (before.dataset, before.data_digest) != (after.dataset, after.data_digest):
        raise InputError(
            f"{before.name} is of {before.dataset} ({before.data_digest}) and {after.name} of {after.dataset} "
            f"({after.data_digest}): only evaluations of the same photos and splits can be compared"
        )
    both = pd.concat(
        [before.average_precision, after.average_precision], axis=1, join="outer", keys=["before", "after"]
    )
    both = both.dropna(how="all")  # without a match, for both
    if both.dropna().empty:
        raise InputError(f"{before.name} and {after.name} have no query with a figure in common")
    changes = query_changes(both["before"].to_numpy(), both["after"].to_numpy())
    path = Path(results_dir) / comparison_name(before.name, after.name)
    title = f"{before.dataset}: {before.label} and {after.label}"
    parts = [f"<h1>{escape(title)}</h1>", _runs(before, after), *_summary(both, changes)]
    for heading, places in (
        ("Gained most", changes.most(MOST, gained=True)),
        ("Lost most", changes.most(MOST, gained=False)),
        ("Hard for both", hardest(both)),
    ):
        parts.append(f"<h2>{heading}</h2>")
        parts += [_query(both.iloc[place], before, after) for place in places] or ["<p>None.</p>"]
    parts += _not_shared(both, before, after)
    return write_page(path, title, parts)


def hardest(both: pd.DataFrame) -> np.ndarray:
    """The places of the `MOST` queries whose better figure of the two is the lowest."""
    better = both.dropna().max(axis=1)
    return both.index.get_indexer(better.sort_values(kind="stable").index[:MOST])


def _runs(before: EvaluatedRun, after: EvaluatedRun) -> str:
    return pairs({"before": f"{before.name} ({before.model})", "after": f"{after.name} ({after.model})"})


def _summary(both: pd.DataFrame, changes: QueryChanges) -> list[str]:
    """The counts, and the difference in mAP with its interval where there are identities enough for one."""
    shared = both.dropna()
    item_ids = both.index.get_level_values("item_id")
    num_identities = shared.index.get_level_values("item_id").nunique()
    if num_identities >= FEWEST_IDENTITIES:
        paired = paired_bootstrap_difference(both["before"], both["after"], item_ids)
        difference, p = difference_and_p(paired.difference, paired)
        note = f"Interval (95%) and two-sided p: paired bootstrap over the {num_identities:,} identities."
    else:
        difference, p = difference_and_p((shared["after"] - shared["before"]).mean(), None)
        note = f"No interval: of {num_identities} identities it would say little; it takes {FEWEST_IDENTITIES}."
    headings = ("official split", "mAP before", "mAP after", "difference", "p", "better", "worse", "equal")
    means = [f"{100 * shared[name].mean():.1f}" for name in ("before", "after")]
    counts = [f"{number:,}" for number in (changes.better, changes.worse, changes.equal)]
    row = [f"{len(shared):,} shared queries", *means, difference, p, *counts]
    told = f"Better, worse, equal: queries by their average precision. mAP in percent. {note}"
    return [table(headings, [row]), f'<p class="note">{escape(told)}</p>']


def _query(values: pd.Series, before: EvaluatedRun, after: EvaluatedRun) -> str:
    """One query: its photo, and what either evaluation ranks first for it."""
    query, item_id, _ = values.name
    photo = small_photo(after.image_dir / query, item_id)
    parts = [f'<div><p>query</p><div class="photos">{photo}</div></div>']
    for run, name in ((before, "before"), (after, "after")):
        ranking = run.rankings[run.rankings["query"] == query].head(FIRST)
        hits = [
            small_photo(run.image_dir / hit.image, f"{hit.item_id} {hit.similarity:.3f}", bool(hit.is_match))
            for hit in ranking.itertuples()
        ]
        head = f"{name}: average precision {values[name]:.3f}"
        parts.append(f'<div><p>{escape(head)}</p><div class="photos">{"".join(hits)}</div></div>')
    return f'<div class="row">{"".join(parts)}</div>'


def _not_shared(both: pd.DataFrame, before: EvaluatedRun, after: EvaluatedRun) -> list[str]:
    """Which queries only one of the evaluations has, as where photos were left out; nothing where there are none."""
    parts = []
    for name, run in (("after", before), ("before", after)):
        alone = both.index[both[name].isna()].get_level_values("query")
        if len(alone):
            more = f" and {len(alone) - _NAMED:,} more" if len(alone) > _NAMED else ""
            told = f"{len(alone):,} queries of {run.name} alone: {', '.join(alone[:_NAMED])}{more}"
            parts.append(f"<p>{escape(told)}</p>")
    return ["<h2>Not shared</h2>", *parts] if parts else []


def run_folder(results_dir: Path, name: str) -> Path:
    """The folder of an evaluation, given as a path or by its name.

    Raises:
        InputError: there is none.
    """
    for path in (Path(name), results_dir / name):
        if name and (path / "metrics.json").is_file():
            return path.resolve()
    raise InputError(f"{shown(name)} is no evaluation: no folder {results_dir / name} with a metrics.json")


def parse_runs(config_class: type[Config], description: str | None, arguments: Sequence[str] | None = None) -> Config:
    """The two evaluations stand without flags: they are what the command is about."""
    parser = Parser(description=description)
    for name, (field, hint) in config_fields(config_class).items():
        if name in ("before", "after"):
            parser.add_argument(name, metavar=name.upper(), help=field.metadata["help"])
        else:
            add_flag(parser, field, hint, name, field.default)
    return build(config_class, vars(parser.parse_args(arguments)))


def main(config: Config) -> None:
    """Find both evaluations, and write their page."""
    before, after = (run_folder(config.results_dir, name) for name in (config.before, config.after))
    print(f"wrote {display(write_comparison(config.results_dir, before, after))}")


if __name__ == "__main__":
    run_script(main, Config, __doc__, parse_runs)
