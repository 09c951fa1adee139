import numpy as np
import pytest

from clipfh.metrics.query_changes import query_changes


def test_counts_and_places_of_a_hand_written_table():
    before = np.array([0.5, 0.2, 0.9, np.nan, 0.4, 0.3])
    after = np.array([0.6, 0.1, 0.9 + 1e-12, 0.7, np.nan, 0.9])
    changes = query_changes(before, after)
    assert (changes.better, changes.worse, changes.equal, changes.num_left_out) == (2, 1, 1, 2)
    assert changes.most(5, gained=True).tolist() == [5, 0] and changes.most(1, gained=True).tolist() == [5]
    assert changes.most(5, gained=False).tolist() == [1]


def test_values_that_do_not_fit():
    with pytest.raises(ValueError, match="shapes"):
        query_changes(np.zeros(2), np.zeros(3))
