import numpy as np
import pandas as pd
import pytest

from clipfh.evaluation.details import by_gallery_photos, categories, confused_pairs
from clipfh.metrics.query_groups import figures_by_group
from clipfh.metrics.retrieval import RetrievalFigures


def figures(precision, rank):
    precision, rank = np.array(precision), np.array(rank)
    return RetrievalFigures(0, 0, 0, 0, 0, int((rank > 0).sum()), int((rank == 0).sum()), 9, precision, rank)


def table(*rows):
    return pd.DataFrame(rows, columns=["image", "item_id"])


def test_figures_by_group():
    groups = figures_by_group(["b", "a", "b", "c"], figures([0.5, 1.0, 0.25, np.nan], [2, 1, 1, 0]))
    assert groups == [("b", 2, 0.5, 0.375), ("a", 1, 1.0, 1.0)]
    with pytest.raises(ValueError, match="1 groups for 2 queries"):
        figures_by_group(["a"], figures([1.0, 1.0], [1, 1]))


def test_categories_are_folders_that_several_identities_share():
    deep = [(f"img/{kind}/id{n}/1.jpg", f"id{n}") for n, kind in enumerate(["A/x", "A/x", "A/y", "B/x"])]
    assert categories(table(*deep)) == ["A/x", "A/x", "A/y", "B/x"]
    assert categories(table(("cats/1.jpg", "a"), ("cats/2.jpg", "b"), ("3.jpg", "c"))) == ["cats", "cats", ""]
    assert categories(table(("a/1.jpg", "a"), ("a/2.jpg", "a"), ("b/1.jpg", "b"))) is None  # folders are identities
    assert categories(table(("query/1.jpg", "a"), ("query/2.jpg", "b"))) is None
    assert categories(table(("1.jpg", "a"), ("2.jpg", "b"))) is None


def test_groups_by_gallery_photos():
    query = table(*((f"{item}.jpg", item) for item in "abcd"))
    gallery = table(*((f"{n}.jpg", item) for n, item in enumerate("aaabcccccccc")))
    groups = by_gallery_photos(query, gallery, figures([0.1, 0.2, 0.3, np.nan], [1, 2, 3, 0]))
    assert [(group.name, group.num_query, group.mAP) for group in groups] == [
        ("1", 1, 0.2),
        ("3 to 4", 1, 0.1),
        ("5 to 8", 1, 0.3),
    ]


def test_pairs_that_are_mixed_up_count_in_both_directions():
    rows = [
        ("1.jpg", "a", 1, "9.jpg", "b", 0.5, False),
        ("1.jpg", "a", 2, "8.jpg", "c", 0.4, False),
        ("2.jpg", "b", 1, "7.jpg", "a", 0.8, False),
        ("3.jpg", "c", 1, "6.jpg", "c", 0.9, True),
        ("4.jpg", "c", 1, "5.jpg", "d", 0.9, False),
    ]
    columns = ["query", "query_item_id", "rank", "image", "item_id", "similarity", "is_match"]
    rankings = pd.DataFrame(rows, columns=columns)
    prompts = {name: [f"a {name}", "another"] for name in "abcd"}
    first, second = confused_pairs(rankings, prompts)
    assert first == {
        "item_ids": ["b", "a"],
        "num_query": 2,
        "images": ["2.jpg", "7.jpg"],
        "similarity": 0.8,
        "prompts": ["a b", "a a"],
    }
    assert (second["item_ids"], second["num_query"]) == (["c", "d"], 1)
    assert confused_pairs(rankings[rankings["is_match"]], prompts) == []
