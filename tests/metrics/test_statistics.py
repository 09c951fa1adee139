import math
import statistics as standard_library

import numpy as np
import pytest

from clipfh.metrics import statistics
from clipfh.metrics.statistics import bootstrap_interval, mean_and_std


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
