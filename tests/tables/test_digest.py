import pytest

from clipfh.core.errors import InputError
from clipfh.tables.digest import digest_of, require_unseen, seen_with, table_digest
from clipfh.tables.records import make_table

ROWS = [
    ("a/0.jpg", "a", "train", "1"),
    ("b/0.jpg", "b", "val", ""),
    ("c/0.jpg", "c", "query", "1"),
    ("c/1.jpg", "c", "gallery", "2"),
    ("d/0.jpg", "d", "gallery", ""),
]


def digest(folder, rows=ROWS):
    return table_digest(make_table(rows), folder)


def test_the_digest_is_of_images_sizes_identities_splits_and_cameras(tmp_path):
    first = digest(tmp_path)
    assert digest(tmp_path, ROWS[::-1]) == first
    changes = [
        ("e/0.jpg", "a", "train", "1"),
        ("a/0.jpg", "e", "train", "1"),
        ("a/0.jpg", "a", "val", "1"),
        ("a/0.jpg", "a", "train", "0"),
        ("a/0.jpg", "a", "train", ""),
    ]
    digests = [digest(tmp_path, [change, *ROWS[1:]]) for change in changes] + [digest(tmp_path, ROWS[:-1])]
    for size in (3, 4):  # other photos of the same name
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / "0.jpg").write_bytes(b"x" * size)
        digests.append(digest(tmp_path))
    assert len({first, *digests}) == 1 + len(digests)


def test_values_do_not_run_into_each_other():
    assert digest_of([("a", "b c")]) != digest_of([("a b", "c")])
    assert digest_of([("a\n", "b")]) != digest_of([("a", "\nb")])
    assert digest_of([("a",), ("b",)]) == digest_of([("b",), ("a",)])


def test_what_weights_have_seen_grows_from_training_to_training():
    seen = seen_with({}, "first", make_table(ROWS))
    assert seen == {"first": ["a", "b"]}
    again = seen_with(seen, "second", make_table([("x.jpg", "x", "train", "")]))
    assert again == {"first": ["a", "b"], "second": ["x"]} and seen == {"first": ["a", "b"]}


def require(seen, rows=ROWS, *, unrelated_ids=False):
    require_unseen(seen, "now", make_table(rows), weights="run_BEST.pth", name="mugs", unrelated_ids=unrelated_ids)


def test_test_identities_that_were_seen_are_counted_and_refused(capsys):
    require({})
    require({"then": ["a", "x"]})
    require({"now": ["a", "b"]})  # within one dataset the splits are disjoint
    for seen, count in (({"then": ["c", "x"]}, 1), ({"then": ["c"], "before": ["d", "a"], "now": []}, 2)):
        with pytest.raises(InputError, match=f"{count} of the 2 test identities of mugs were trained or validated on"):
            require(seen)
    assert capsys.readouterr().out == ""
    require({"then": ["c", "d"]}, unrelated_ids=True)
    assert "2 of 2 test ids" in capsys.readouterr().out


def test_val_identities_that_were_seen_are_said(capsys):
    require({"then": ["b", "x"]})
    assert "1 of 1 val identities were trained on before" in capsys.readouterr().out
