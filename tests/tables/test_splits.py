import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipfh.core.errors import InputError
from clipfh.tables.records import make_table
from clipfh.tables.splits import (
    PROTOCOLS,
    assign_val_identities,
    count_possible_splits,
    draw_queries,
    fold_val,
    hold_out_val,
    measurable_identities,
    num_queries,
    official_split,
    random_query_gallery_splits,
    read_splits,
    split_test_images,
)


@st.composite
def tables(draw):
    """Test identities by (number of query, number of gallery photos), one of them always with a match; some train."""
    sizes = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=8))
    sizes = [(1, 1), *(size for size in sizes if sum(size))]
    rows = [("train/0.jpg", "other", "train", "")]
    for item, (queries, gallery) in enumerate(sizes):
        rows += [(f"{item}/q{n}.jpg", f"item {item}", "query", "") for n in range(queries)]
        rows += [(f"{item}/g{n}.jpg", f"item {item}", "gallery", "") for n in range(gallery)]
    return make_table(rows)


def table_of(*photos_per_identity):
    rows = []
    for item, photos in enumerate(photos_per_identity):
        rows += [(f"{item}/{n}.jpg", str(item), "query" if n == 0 else "gallery", "") for n in range(photos)]
    return make_table(rows)


@given(tables(), st.sampled_from(PROTOCOLS), st.integers(0, 2**32))
def test_random_splits_keep_the_protocol(table, protocol, seed):
    test = table[table["split"] != "train"]
    item_of = dict(zip(test["image"], test["item_id"], strict=True))
    with_query = set(test.loc[test["split"] == "query", "item_id"])
    splits = random_query_gallery_splits(table, num_splits=10, seed=seed, protocol=protocol)
    assert len(splits) == 10
    for split in splits:
        query, gallery = split["query"], split["gallery"]
        assert not set(query) & set(gallery)
        assert sorted(query + gallery) == sorted(item_of)  # every test photo, each once, nobody else's
        gallery_items = [item_of[image] for image in gallery]
        for image in query:
            assert item_of[image] in gallery_items
            assert item_of[image] in with_query
        for item_id, photos in test.groupby("item_id").size().items():
            drawn = sum(item_of[image] == item_id for image in query)
            expected = num_queries(photos, protocol) if item_id in with_query else 0
            assert drawn == expected


@given(tables(), st.sampled_from(PROTOCOLS), st.integers(0, 2**32))
def test_random_splits_are_seeded_and_differ(table, protocol, seed):
    splits = random_query_gallery_splits(table, num_splits=10, seed=seed, protocol=protocol)
    shuffled = table.sample(frac=1, random_state=1)
    assert splits == random_query_gallery_splits(shuffled, num_splits=10, seed=seed, protocol=protocol)
    assert splits[:4] == random_query_gallery_splits(table, num_splits=4, seed=seed, protocol=protocol)
    different = {tuple(split["query"]) for split in splits}
    assert len(different) == min(10, count_possible_splits(table, protocol))


def test_seeds_give_different_splits():
    table = table_of(*[6] * 10)
    first, second = (random_query_gallery_splits(table, seed=seed, protocol="half") for seed in (0, 1))
    assert first != second


def test_every_photo_is_a_query_at_some_time():
    table = table_of(5, 4)
    splits = random_query_gallery_splits(table, num_splits=40, seed=0, protocol="half")
    assert set().union(*(split["query"] for split in splits)) == set(table["image"])


def test_count_possible_splits():
    assert count_possible_splits(table_of(5, 4, 1), "half") == 10 * 6
    assert count_possible_splits(table_of(5, 4, 1), "one_gallery") == 5 * 4


@pytest.mark.parametrize(
    ("photos", "protocol", "expected"),
    [(1, "half", 0), (2, "half", 1), (3, "half", 1), (7, "half", 3), (1, "one_gallery", 0), (7, "one_gallery", 6)],
)
def test_num_queries(photos, protocol, expected):
    assert num_queries(photos, protocol) == expected


def test_impossible_splits_say_why():
    with pytest.raises(InputError, match="no random split can be drawn"):
        random_query_gallery_splits(make_table([("a.jpg", "1", "train", "")]), seed=0, protocol="half")
    with pytest.raises(InputError, match="no random split can be drawn"):
        random_query_gallery_splits(table_of(1, 1), seed=0, protocol="half")
    with pytest.raises(InputError, match="unknown split protocol 'thirds'; the protocols are half, one_gallery"):
        random_query_gallery_splits(table_of(3), seed=0, protocol="thirds")


def test_first_random_split_is_the_readers_own():
    """Datasets without an official split take the first random one of the same seed."""
    images = {"1": ["a", "b", "c"], "2": ["d", "e"], "10": ["f"]}
    table = make_table(split_test_images(images, "one_gallery", np.random.default_rng(7)))
    splits = random_query_gallery_splits(table, num_splits=2, seed=7, protocol="one_gallery")
    assert splits[0]["query"] == official_split(table)["query"]
    assert len(splits[0]["query"]) == 3


def test_draw_queries_does_not_depend_on_order():
    images = {"1": ["a", "b", "c"], "2": ["d", "e"]}
    turned = {"2": ["e", "d"], "1": ["c", "a", "b"]}
    first, second = (draw_queries(group, "half", np.random.default_rng(0)) for group in (images, turned))
    assert first == second


@given(st.sets(st.text(max_size=5), max_size=60), st.floats(0, 0.99), st.integers(0, 2**32))
def test_val_identities(item_ids, fraction, seed):
    val = assign_val_identities(item_ids, fraction, seed)
    assert val <= item_ids
    assert val == assign_val_identities(sorted(item_ids, reverse=True) * 2, fraction, seed)
    if fraction == 0 or len(item_ids) < 4:
        assert not val
    else:
        assert len(val) == max(2, round(fraction * len(item_ids)))


def test_val_identities_of_the_datasets():
    assert len(assign_val_identities(map(str, range(3997)), 0.1, 0)) == 400
    assert len(assign_val_identities(map(str, range(41)), 0.1, 0)) == 4
    with pytest.raises(ValueError, match="fraction"):
        assign_val_identities(["a"], 1.0, 0)


def write_splits(path, **changes):
    split = {"query": ["0/0.jpg"], "gallery": ["0/1.jpg", "1/0.jpg"]}
    path.write_text(json.dumps({"official": split, "random": [split], **changes}))
    return path


def test_read_splits(tmp_path):
    table = table_of(2, 1)
    path = write_splits(tmp_path / "image_splits.json")
    assert read_splits(path, table)["official"]["query"] == ["0/0.jpg"]
    written = {"official": official_split(table), "random": random_query_gallery_splits(table, seed=0, protocol="half")}
    path.write_text(json.dumps(written))
    assert read_splits(path, table) == written


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"random": None}, "unexpected shape"),
        ({"official": {"query": []}}, "unexpected shape"),
        ({"official": {"query": [1], "gallery": []}}, "unexpected shape"),
        ({"official": {"query": [], "gallery": ["0/0.jpg"]}}, "official split: no query image"),
        ({"random": [{"query": ["0/0.jpg"], "gallery": ["0/0.jpg"]}]}, r"random 0 split: 0/0\.jpg is listed twice"),
        ({"random": [{"query": ["9/9.jpg"], "gallery": ["0/0.jpg"]}]}, r"random 0 split: 9/9\.jpg is no test image"),
        ({"random": [{"query": ["train.jpg"], "gallery": ["0/0.jpg"]}]}, r"train\.jpg is no test image"),
    ],
)
def test_read_splits_rejects(tmp_path, changes, message):
    rows = table_of(2, 1).itertuples(index=False, name=None)
    table = make_table([*rows, ("train.jpg", "t", "train", "")])
    with pytest.raises(InputError, match=message):
        read_splits(write_splits(tmp_path / "image_splits.json", **changes), table)


def test_read_splits_missing(tmp_path):
    with pytest.raises(
        InputError, match=r"does not exist\. Make it with: python preprocessing/05_make_retrieval_splits"
    ):
        read_splits(tmp_path / "image_splits.json", table_of(2))


def test_val_identities_are_drawn_among_those_that_can_be_found_again():
    photos = [(f"several{n}", "") for n in range(10)] * 2 + [(f"single{n}", "") for n in range(90)]
    measurable = measurable_identities(photos, exclude_same_camera=False)
    assert measurable == {f"several{n}" for n in range(10)}
    ids = [item_id for item_id, _ in photos]
    for seed in range(5):
        val = assign_val_identities(ids, 0.1, seed, measurable=measurable)
        assert len(val) == 5 and val < measurable  # a tenth would be 10: half of them are left to learn from
    assert len(assign_val_identities(ids, 0.1, 0, measurable={"several1"})) == 10  # nothing can be measured anyway
    everything = assign_val_identities(ids, 0.1, 3, measurable=set(ids))
    assert everything == assign_val_identities(ids, 0.1, 3)


@pytest.mark.parametrize(("exclude_same_camera", "expected"), [(False, {"a", "b", "d"}), (True, {"a", "d"})])
def test_what_it_takes_to_be_found_again(exclude_same_camera, expected):
    photos = [("a", "1"), ("a", "2"), ("b", "1"), ("b", "1"), ("c", "1"), ("d", ""), ("d", "")]
    assert measurable_identities(iter(photos), exclude_same_camera=exclude_same_camera) == expected


@pytest.mark.parametrize(("fraction", "count"), [(0, 0), (0.25, 5), (0.5, 10)])
def test_val_is_drawn_anew(fraction, count):
    rows = [(f"{item}/{n}.jpg", str(item), "val" if item == 3 else "train", "") for item in range(20) for n in (0, 1)]
    table = make_table([*rows, ("t.jpg", "t", "query", "")])
    again = hold_out_val(table, fraction, 0, exclude_same_camera=False)
    assert again.loc[again["split"] == "val", "item_id"].nunique() == count
    assert again.loc[again["split"] == "train", "item_id"].nunique() == 20 - count
    assert (again["split"] == "query").sum() == 1 and again["image"].equals(table["image"])


def folded_table(num_train: int, num_val: int):
    """Identities with two photos each, one train identity with a single one, and a test identity."""
    names = [(f"train{n}", "train") for n in range(num_train)] + [(f"val{n}", "val") for n in range(num_val)]
    rows = [(f"{name}/{photo}.jpg", name, split, "") for name, split in names for photo in range(2)]
    rows += [
        ("single/0.jpg", "single", "train", ""),
        ("test/0.jpg", "test", "query", ""),
        ("test/1.jpg", "test", "gallery", ""),
    ]
    return make_table(rows)


@pytest.mark.parametrize("num_folds", [2, 3, 4])
def test_each_identity_is_validated_on_in_one_fold(num_folds):
    table = folded_table(7, 2)
    folds = [fold_val(table, fold, num_folds, exclude_same_camera=False) for fold in range(num_folds)]
    val = [set(fold.loc[fold["split"] == "val", "item_id"]) for fold in folds]
    assert sorted(item_id for ids in val for item_id in ids) == sorted(set(table["item_id"]) - {"single", "test"})
    assert max(map(len, val)) - min(map(len, val)) <= 1
    for fold in folds:
        train = set(fold.loc[fold["split"] == "train", "item_id"])
        assert "single" in train and not train & set(fold.loc[fold["split"] == "val", "item_id"])
        assert fold["image"].tolist() == table["image"].tolist()
        assert fold.loc[fold["item_id"] == "test", "split"].tolist() == ["query", "gallery"]
    again = fold_val(table.sample(frac=1, random_state=0), 1, num_folds, exclude_same_camera=False)
    assert set(again.loc[again["split"] == "val", "item_id"]) == val[1]


def test_too_few_identities_for_so_many_folds():
    with pytest.raises(InputError, match="4 folds of 7 train identities"):
        fold_val(folded_table(5, 2), 0, 4, exclude_same_camera=False)
