"""What a stage adds to the stage before: the difference in mAP over the same queries, and how certain it is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from clipfh.core.files import read_json
from clipfh.metrics.statistics import Difference, paired_bootstrap_difference
from clipfh.reports.per_query import mean_average_precision_of
from clipfh.reports.stage_results import StageResult, evaluation_label, stage_number

# The percentile bootstrap takes the spread of few identities as known: of gains of nothing it calls 16% significant at
# p < .05 with 5 identities, with 10 of them 9% where all have as many queries, and 11% where these differ (20: 7%).
FEWEST_IDENTITIES = 10


@dataclass(frozen=True)
class Gain:
    """A difference in mAP, as a fraction.

    `paired` is None where the queries' own figures are missing, or are of fewer than `FEWEST_IDENTITIES` identities.
    """

    mAP: float  # noqa: N815  (the field's spelling)
    paired: Difference | None = None


def difference_and_p(mAP: float, paired: Difference | None) -> tuple[str, str]:
    """A difference in mAP, a fraction, such as `+5.3 [3.9, 6.8]` and `0.012`; without an interval, the number alone."""
    number = f"{100 * mAP:+.1f}"
    if paired is None:
        return number, ""
    interval = f"[{100 * paired.low:.1f}, {100 * paired.high:.1f}]"
    return f"{number} {interval}", "<0.001" if paired.p < 0.001 else f"{paired.p:.3f}"


def previous_stage(
    result: StageResult, others: Sequence[StageResult], results_dir: Path | None = None
) -> StageResult | None:
    """What `result` is compared with: the same dataset and model, measured alike, the nearest lower stage number.

    Where that stage has several variants, the one that `result` was trained from, where `results_dir` tells; or else
    the one of the same name, or else the one evaluated last, among soups where `result` is one
    (`clipfh.training.soup`), else among single trainings, if there are such. A soup is compared with a soup, if there
    is one, rather than with the trainings that those in it began with: what mixing adds is in both.

    Raises:
        InputError: the `metrics.json` of an evaluation is damaged.
    """
    number = stage_number(result.stage)
    before = [
        other
        for other in others
        if (other.dataset, other.model, other.detail) == (result.dataset, result.model, result.detail)
        and 0 <= stage_number(other.stage) < number
    ]
    starts = _starts(result, others, results_dir) if before else []
    is_soup = _is_soup(result)

    def nearness(other: StageResult) -> tuple[int, bool, bool, bool, bool, str]:
        is_start, has_name = bool(other.recipe) and other.recipe in starts, other.variant == result.variant
        soup = _is_soup(other)
        return stage_number(other.stage), soup or not is_soup, is_start, has_name, soup == is_soup, other.time

    return max(before, key=nearness, default=None)


def _is_soup(result: StageResult) -> bool:
    return re.search(r"_soup\d+$", result.variant) is not None


def is_of_other_training(
    after: StageResult, before: StageResult, others: Sequence[StageResult], results_dir: Path | None
) -> bool:
    """Whether `after` was trained from something else than `before`, which is `previous_stage`'s of it.

    Not where an evaluation does not say, as those of earlier versions; nor where `before` is no training, and
    `other_start` tells what has to be told; nor of two soups, which do not say what is in them.

    Raises:
        InputError: the `metrics.json` of an evaluation is damaged.
    """
    starts = _starts(after, others, results_dir)
    if stage_number(before.stage) <= 1 or None in starts or (_is_soup(after) and _is_soup(before)):
        return False
    return before.recipe not in starts if before.recipe else starts[-1] == ""


def _starts(result: StageResult, others: Sequence[StageResult], results_dir: Path | None) -> list[str | None]:
    """The recipe of the weights that `result` was trained from; empty is pretrained ones, None is not known.

    Where these are of the same stage, as v3 of stage 3 is trained from v2, what they were trained from follows, for
    this is what such a stage began with; as far as their evaluations are among `others`.
    """
    found: list[str | None] = []
    of: StageResult | None = result
    while of is not None:
        start = _start_recipe(of, results_dir) if results_dir else None
        if start in found:  # no training makes that; of files that were changed, it must not go on for ever
            break
        found.append(start)
        number = stage_number(result.stage)
        same = (other for other in others if start and other.recipe == start and stage_number(other.stage) == number)
        of = next(same, None)
    return found


def _start_recipe(result: StageResult, results_dir: Path) -> str | None:
    """As `clipfh.evaluation.settings.EvaluationLabels`; None, too, where the training seeds do not say the same."""
    starts = (metrics.get("start_recipe") for metrics in _metrics(result, results_dir))
    found = {start if start is None else str(start) for start in starts}
    return found.pop() if len(found) == 1 else None


def other_start(after: StageResult, before: StageResult, results_dir: Path | None) -> str:
    """Why two stages cannot be compared: `after` was trained from other weights than `before` is of.

    Empty where both are of the same first weights, or an evaluation does not say which, as those of earlier versions.

    Raises:
        InputError: the `metrics.json` of an evaluation is damaged.
    """
    found = [first_weights(result, results_dir) if results_dir else set() for result in (after, before)]
    if not all(found) or found[0] == found[1]:
        return ""
    told = [
        f"{evaluation_label(result.stage, result.variant)} began with {', '.join(sorted(weights))}"
        for result, weights in zip((after, before), found, strict=True)
    ]
    return f"{told[0]}, {told[1]}: they are not compared."


def first_weights(result: StageResult, results_dir: Path) -> set[str]:
    """The weights that all fine-tuning began with, of each training seed; empty where one of them is not known."""
    weights = {str(metrics.get("first_weights") or "") for metrics in _metrics(result, results_dir)}
    return set() if "" in weights else weights


def _metrics(result: StageResult, results_dir: Path) -> list[dict[str, Any]]:
    """What `metrics.json` holds of each training seed; nothing where one of them is missing."""
    files = [results_dir / run / "metrics.json" for run in result.runs]
    if "" in result.runs or not all(file.is_file() for file in files):
        return []
    return [read_json(file, made_by="bash run_all.sh") for file in files]


def mean_ap_gain(
    after: StageResult, before: StageResult | None, protocol: str, results_dir: Path | None = None
) -> Gain | None:
    """The gain in mAP on the official split, or of text queries; None where one of them was not measured so.

    None, too, where they are of other first weights, see `other_start`.

    Of a stage with several training seeds, the average precision of each query is averaged over them first. Identities
    are drawn, see `paired_bootstrap_difference`.

    Args:
        after, before: the stages.
        protocol: `official` or `text_to_image`.
        results_dir: the folder with the evaluations' own folders; None: without interval.

    Raises:
        InputError: the figures of an evaluation's queries, or its `metrics.json`, are damaged.
    """
    if before is None or not getattr(after, protocol) or not getattr(before, protocol):
        return None
    if other_start(after, before, results_dir):
        return None
    difference = getattr(after, protocol)["mAP"].mean - getattr(before, protocol)["mAP"].mean
    paired = _paired(before, after, protocol, results_dir) if results_dir else None
    return Gain(paired.difference, paired) if paired else Gain(difference)


def _paired(before: StageResult, after: StageResult, protocol: str, results_dir: Path) -> Difference | None:
    """The difference over the queries that both have; None where a file is missing, or of too few identities."""
    if "" in (*before.runs, *after.runs):
        return None
    both = [
        mean_average_precision_of([results_dir / run for run in result.runs], protocol) for result in (before, after)
    ]
    if any(values is None for values in both):
        return None
    table = pd.concat(both, axis=1, keys=["before", "after"]).dropna(how="all")  # without a match, for both
    if table.dropna().index.get_level_values("item_id").nunique() < FEWEST_IDENTITIES:
        return None
    return paired_bootstrap_difference(table["before"], table["after"], table.index.get_level_values("item_id"))
