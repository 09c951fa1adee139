"""The parts of the accuracy benchmark that decide: which learning rate a peer gets, and what the table says."""

import math
import sys

import pytest
from places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from accuracy_contestants import CONTESTANTS, TITLES
from bench_accuracy import LADDER, best_rate, compared
from report import _section


@pytest.mark.parametrize(
    ("peak", "chosen", "tried"),
    [
        (1e-4, 1e-4, {3e-5, 1e-4, 3e-4, 1e-3}),
        (1e-3, 1e-3, {3e-5, 1e-4, 3e-4, 1e-3, 3e-3}),
        (1.0, 1e-2, {3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2}),
        (1e-7, 1e-6, {1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3}),
    ],
)
def test_rates_are_tried_until_the_best_is_not_at_an_end(peak, chosen, tried):
    asked = set()

    def val_mAP(rate):  # noqa: N802
        asked.add(rate)
        return -abs(math.log(rate / peak))

    assert best_rate(LADDER, 3, 6, val_mAP) == chosen
    assert asked == tried


def test_no_rate_is_chosen_where_one_has_not_run():
    assert best_rate(LADDER, 3, 6, lambda rate: None if rate == 3e-4 else rate) is None


def result(*average_precision, rank1=0.5):
    mAP = sum(average_precision) / len(average_precision)
    return {"rank1": rank1, "mAP": mAP, "average_precision": list(average_precision), "item_ids": ["a", "a", "b"]}


def test_a_row_averages_the_seeds_and_takes_the_difference_to_ours():
    theirs = [{**result(0.2, 0.4, 0.3), "lr": 1e-4}, {**result(0.4, 0.6, 0.5), "lr": 1e-4}]
    ours = [result(0.5, 0.7, 0.6), result(0.5, 0.7, 0.6)]
    row = compared("pml_sop", theirs, ours)
    # each query gains 0.2 on the mean of the seeds, whichever identities are drawn
    assert (row["mAP"], row["difference"], row["low"], row["high"]) == (0.4, 0.2, 0.2, 0.2)
    assert row["mAP_std"] == pytest.approx(0.1414, abs=1e-4)
    assert row["cells"]["mAP"] == "40.0 ± 14.1"
    assert row["cells"]["stage 2 less it, mAP"] == "+20.0 [20.0, 20.0]"
    assert row["cells"]["learning rate"] == "0.0001"


def test_ours_has_no_difference_and_one_seed_no_deviation():
    row = compared("ours", [result(0.5, 0.7, 0.6)], [result(0.5, 0.7, 0.6)])
    assert "difference" not in row and "mAP_std" not in row
    assert row["cells"]["Rank-1"] == "50.0"


def test_the_readme_shows_the_cells_in_place_of_time_and_memory():
    row = compared("start", [result(0.5, 0.7, 0.6)], [result(0.5, 0.7, 0.6)])
    content = {"machine": "M", "date": "D", "versions": {}, "bars": [], "rows": [row]}
    lines = _section("accuracy", content).splitlines()
    assert lines[-4].startswith("| case | Rank-1 | mAP | stage 2 less it, mAP |")
    assert lines[-2].startswith("| stage 1, the start of all | 50.0 | 60.0 | +0.0 [0.0, 0.0] |")


def test_every_contestant_has_a_title():
    assert set(CONTESTANTS) == set(TITLES)
