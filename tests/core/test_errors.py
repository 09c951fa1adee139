"""How a message shows long values."""

from clipfh.core.errors import with_short_words


def test_a_path_that_can_be_opened_is_never_cut(tmp_path):
    folder = tmp_path / ("a" * 120) / ("b" * 120)
    folder.mkdir(parents=True)
    listing = folder / "unreadable_images.csv"
    missing = folder / "missing.csv"
    listing.touch()
    line = f"2 of 9 images cannot be read. All are listed in {listing}. Mend them, or see ({missing}) and {'x' * 400}"
    shown = with_short_words(line)
    assert f"listed in {listing}. Mend" in shown
    assert str(missing) not in shown and "x" * 61 not in shown


def test_a_name_that_no_file_can_have_is_cut():
    for value in ("x" * 10_000, "a/" * 10_000, "x\0" * 500):
        assert len(with_short_words(f"no such file: {value}")) < 300
