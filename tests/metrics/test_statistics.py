import math
import statistics as standard_library

import numpy as np
import pytest

from clipfh.metrics import statistics
from clipfh.metrics.statistics import bootstrap_interval, mean_and_std, paired_bootstrap_difference


def test_mean_and_std_agree_with_the_standard_library():
    values = [0.41, 0.44, 0.39, 0.47]
    mean, std = mean_and_std(values)
    assert mean == pytest.approx(standard_library.mean(values))
    assert std == pytest.approx(standard_library.stdev(values))  # N - 1, not N


def test_one_split_has_no_deviation():
    mean, std = mean_and_std([0.5])
    assert mean == 0.5
    assert math.isnan(std)


@pytest.mark.parametrize("values", [[], [[0.1, 0.2]], [0.1, math.nan], [math.inf]])
def test_impossible_values_are_refused(values):
    with pytest.raises(ValueError, match="values"):
        mean_and_std(values)


def test_interval_matches_a_plain_loop():
    rng = np.random.default_rng(3)
    values, item_ids = rng.random(40), rng.choice(list("abcdefg"), 40)
    of_identity = [values[item_ids == name] for name in np.unique(item_ids)]
    generator = np.random.default_rng(5)
    drawn = [[of_identity[i] for i in generator.integers(7, size=7)] for _ in range(400)]
    means = [np.concatenate(resample).mean() for resample in drawn]
    interval = bootstrap_interval(values, item_ids, confidence=0.9, num_resamples=400, seed=5)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(np.quantile(means, 0.05))
    assert interval.high == pytest.approx(np.quantile(means, 0.95))


def test_interval_agrees_with_the_normal_approximation_on_many_identities():
    values = (np.random.default_rng(0).random(4000) < 0.3).astype(float)
    interval = bootstrap_interval(values, np.arange(4000))
    half_width = 1.96 * values.std() / math.sqrt(len(values))
    assert interval.low == pytest.approx(values.mean() - half_width, abs=0.002)
    assert interval.high == pytest.approx(values.mean() + half_width, abs=0.002)


def test_photos_that_are_found_or_missed_together_are_no_more_evidence_than_one():
    found = (np.random.default_rng(0).random(500) < 0.4).astype(float)
    once = bootstrap_interval(found, np.arange(500), seed=1)
    eight_times = bootstrap_interval(np.repeat(found, 8), np.repeat(np.arange(500), 8), seed=1)
    assert eight_times == pytest.approx(once)
    as_if_independent = bootstrap_interval(np.repeat(found, 8), np.arange(4000), seed=1)
    assert once.high - once.low == pytest.approx(8**0.5 * (as_if_independent.high - as_if_independent.low), rel=0.1)


def test_seed_decides_and_chunks_do_not(monkeypatch):
    values, item_ids = np.random.default_rng(1).random(50), np.arange(50)
    whole = bootstrap_interval(values, item_ids, num_resamples=200, seed=1)
    assert whole == bootstrap_interval(values, item_ids, num_resamples=200, seed=1)
    assert whole != bootstrap_interval(values, item_ids, num_resamples=200, seed=2)
    monkeypatch.setattr(statistics, "_DRAWS_PER_CHUNK", 350)  # 7 resamples at a time; 200 is no multiple
    assert whole == pytest.approx(bootstrap_interval(values, item_ids, num_resamples=200, seed=1))


def test_more_confidence_is_wider_and_a_constant_has_no_width():
    values, item_ids = np.random.default_rng(2).random(60), np.arange(60)
    narrow, wide = (bootstrap_interval(values, item_ids, confidence=confidence) for confidence in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high
    assert bootstrap_interval([0.25] * 8, list("aabbcccd")) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("options", [{"confidence": 0}, {"confidence": 1.0}, {"num_resamples": 0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval([0.1, 0.2], ["a", "b"], **options)


def test_a_query_without_an_identity_is_refused():
    with pytest.raises(ValueError, match="identities of 1 queries"):
        bootstrap_interval([0.1, 0.2], ["a"])


def random_pair(num_query=60, num_identities=9):
    rng = np.random.default_rng(4)
    before = rng.random(num_query)
    after = np.clip(before + rng.normal(0.05, 0.1, num_query), 0, 1)
    return before, after, rng.choice([f"id{i}" for i in range(num_identities)], num_query)


def test_difference_matches_a_plain_loop():
    before, after, item_ids = random_pair()
    names = np.unique(item_ids)
    generator = np.random.default_rng(5)
    drawn = []
    for _ in range(500):
        picked = [item_ids == names[i] for i in generator.integers(len(names), size=len(names))]
        old, new = (np.concatenate([values[mask] for mask in picked]) for values in (before, after))
        drawn.append(new.mean() - old.mean())
    below, above = sum(d <= 0 for d in drawn), sum(d >= 0 for d in drawn)
    found = paired_bootstrap_difference(before, after, item_ids, confidence=0.9, num_resamples=500, seed=5)
    assert found.difference == pytest.approx(after.mean() - before.mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.05, 0.95])))
    assert found.p == pytest.approx(min(1, 2 * (1 + min(below, above)) / 501))
    assert (found.num_query, found.num_left_out) == (60, 0)


def test_difference_of_two_identities_by_hand():
    # gains: a +0.2 on two queries, b -0.1 on one. Drawn are aa (+0.2), ab and ba (+0.1), bb (-0.1), each a quarter
    found = paired_bootstrap_difference([0.1, 0.3, 0.5], [0.3, 0.5, 0.4], list("aab"), num_resamples=20_000)
    assert found.difference == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((-0.1, 0.2))
    assert found.p == pytest.approx(0.5, abs=0.02)  # twice the share of bb


def test_equal_figures_differ_by_nothing():
    values, _, item_ids = random_pair()
    assert paired_bootstrap_difference(values, values, item_ids)[:4] == (0, 0, 0, 1)


def test_difference_turned_round_is_its_negative():
    before, after, item_ids = random_pair()
    there, back = (paired_bootstrap_difference(*pair, item_ids) for pair in ((before, after), (after, before)))
    assert back[:4] == pytest.approx((-there.difference, -there.high, -there.low, there.p))


def test_a_gain_of_every_query_has_the_smallest_p():
    found = paired_bootstrap_difference([0.1, 0.2, 0.3], [0.2, 0.3, 0.4], list("abc"), num_resamples=199)
    assert found[:4] == pytest.approx((0.1, 0.1, 0.1, 2 / 200))


def test_pairs_are_more_certain_than_two_intervals():
    before, _, item_ids = random_pair(400, 80)
    after = before + np.random.default_rng(1).normal(0.02, 0.02, 400)
    paired = paired_bootstrap_difference(before, after, item_ids)
    alone = bootstrap_interval(before, item_ids)
    assert paired.high - paired.low < (alone.high - alone.low) / 5
    assert paired.p < 0.05 and paired.low > 0


def test_p_is_below_5_percent_about_as_often_as_nothing_is_there():
    rng = np.random.default_rng(7)
    found = [
        paired_bootstrap_difference(np.zeros(50), rng.normal(size=50), np.arange(50), num_resamples=400, seed=i)
        for i in range(400)
    ]
    assert 0.02 < np.mean([difference.p < 0.05 for difference in found]) < 0.1
    excluded = np.mean([difference.low > 0 or difference.high < 0 for difference in found])
    assert np.mean([difference.p < 0.05 for difference in found]) == pytest.approx(excluded, abs=0.01)


def test_queries_that_lack_a_figure_are_left_out_and_counted():
    before, after, item_ids = random_pair()
    whole = paired_bootstrap_difference(before, after, item_ids)
    nan = math.nan
    more = paired_bootstrap_difference(
        [*before, nan, 0.5, nan], [*after, 0.9, nan, nan], [*item_ids, "id0", "other", "id1"]
    )
    assert more == (*whole[:5], 3)


def test_seed_decides_and_chunks_do_not_of_a_difference(monkeypatch):
    pair = random_pair()
    whole = paired_bootstrap_difference(*pair, num_resamples=200, seed=1)
    assert whole == paired_bootstrap_difference(*pair, num_resamples=200, seed=1)
    assert whole != paired_bootstrap_difference(*pair, num_resamples=200, seed=2)
    monkeypatch.setattr(statistics, "_DRAWS_PER_CHUNK", 70)
    assert whole == pytest.approx(paired_bootstrap_difference(*pair, num_resamples=200, seed=1))


@pytest.mark.parametrize(
    ("before", "after", "item_ids"),
    [
        ([0.1], [0.1, 0.2], ["a", "b"]),
        ([0.1, 0.2], [0.1, 0.2], ["a"]),
        ([[0.1]], [[0.1]], ["a"]),
        ([], [], []),
        ([0.1, math.nan], [math.nan, 0.2], ["a", "b"]),
        ([0.1], [math.inf], ["a"]),
    ],
)
def test_what_cannot_be_paired_is_refused(before, after, item_ids):
    with pytest.raises(ValueError, match=r"shape|in common"):
        paired_bootstrap_difference(before, after, item_ids)


@pytest.mark.parametrize("options", [{"confidence": 0}, {"confidence": 1.0}, {"num_resamples": 0}])
def test_impossible_options_of_a_difference_are_refused(options):
    with pytest.raises(ValueError, match="confidence"):
        paired_bootstrap_difference([0.1, 0.2], [0.2, 0.1], ["a", "b"], **options)
