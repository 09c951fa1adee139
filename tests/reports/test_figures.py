import warnings

import numpy as np
import pytest
from PIL import Image
from summary_rows import make_row, random_rows

from clipfh.core.errors import InputError
from clipfh.reports.drawing import printable, shortened, text_width, wrapped
from clipfh.reports.figures import (
    RankedImage,
    RankedQuery,
    ranked_results_figure,
    stage_comparison_figure,
    training_curves_figure,
)
from clipfh.reports.summary import append_rows, read_summary

GREEN, RED = (0, 158, 115), (213, 94, 0)
STRANGE = "黒いドレス 🎽 $x_1$ {a}\\frac \x07\n\ttab é العربية हिन्दी \ud800"


@pytest.fixture
def image_dir(tmp_path):
    root = tmp_path / "images"
    for index in range(6):
        path = root / f"item{index // 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24 + 8 * index, 40), (40 * index, 90, 255 - 40 * index)).save(path)
    return root


def ranked(verdicts, item="item0"):
    return [RankedImage(f"item{i % 3}/{i % 3 * 2}.png", item, 0.9 - i / 10, v) for i, v in enumerate(verdicts)]


def pixels_of(path, color):
    with Image.open(path) as image:
        distance = np.abs(np.asarray(image.convert("RGB")).astype(int) - color).max(axis=-1)
    return int((distance < 12).sum())


def test_matches_are_green_and_others_red(tmp_path, image_dir):
    row = RankedQuery("item0", ranked([True] * 3), image="item0/1.png", average_precision=1.0, first_match_rank=1)
    ranked_results_figure(tmp_path / "good.png", image_dir, [row], title="All right", top=3)
    row = RankedQuery("item0", ranked([False] * 3), image="item0/1.png")
    ranked_results_figure(tmp_path / "bad.png", image_dir, [row], title="All wrong", top=3)
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    assert pixels_of(good, GREEN) > 4 * pixels_of(bad, GREEN) > 0  # the legend shows one badge of each
    assert pixels_of(bad, RED) > 4 * pixels_of(good, RED) > 0


def test_photographs_are_seen(tmp_path, image_dir):
    row = RankedQuery("item0", ranked([True]), image="item0/1.png")
    ranked_results_figure(tmp_path / "a.png", image_dir, [row], title="", top=1)
    assert pixels_of(tmp_path / "a.png", (40, 90, 215)) > 10_000  # the colour of item0/1.png


def test_a_row_may_be_shorter_than_top_and_rows_set_the_height(tmp_path, image_dir):
    row = RankedQuery("item0", ranked([True, False]), image="item0/1.png")
    ranked_results_figure(tmp_path / "one.png", image_dir, [row], title="x")
    ranked_results_figure(tmp_path / "three.jpg", image_dir, [row] * 3, title="x")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "three.jpg") as three:
        assert one.width == three.width and three.height > 2 * one.height


def test_prompts_as_queries_in_any_script_draw_without_a_warning(tmp_path, image_dir):
    rows = [
        RankedQuery(STRANGE, ranked([True], item=STRANGE), prompt=text)
        for text in (STRANGE, "long " * 400, "", "x" * 900)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ranked_results_figure(tmp_path / "text.png", image_dir, rows, title=STRANGE, top=4)
    assert (tmp_path / "text.png").stat().st_size > 0


def test_missing_and_broken_images_are_named_and_nothing_is_written(tmp_path, image_dir):
    (image_dir / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    for name, message in (
        ("absent.jpg", "absent.jpg does not exist"),
        ("broken.jpg", "cannot read the image .*broken.jpg"),
    ):
        with pytest.raises(InputError, match=message):
            row = RankedQuery("a", ranked([True]), image=name)
            ranked_results_figure(tmp_path / "out" / "a.png", image_dir, [row], title="x")
    assert not (tmp_path / "out").exists()


def test_impossible_rows_are_refused(tmp_path, image_dir):
    row = RankedQuery("a", ranked([True]), image="item0/0.png", prompt="both")
    for rows in ([], [row], [RankedQuery("a", ranked([True]))]):
        with pytest.raises(ValueError, match="either an image or a prompt"):
            ranked_results_figure(tmp_path / "a.png", image_dir, rows, title="x")
    with pytest.raises(ValueError, match="suffix"):
        ranked_results_figure(tmp_path / "a.bmp", image_dir, [RankedQuery("a", [], prompt="x")], title="x")


def test_training_curves_of_flat_and_nested_metrics(tmp_path):
    flat = [{"epoch": e, "loss": 2 / e, "loss_triplet": 1 / e, "lr": 1e-4 / e, "val_mAP": e / 9} for e in range(1, 6)]
    nested = [{"epoch": e, "loss": {"total": 2 / e}, "val": {"mAP": 0.5, "rank1": None}} for e in range(1, 60)]
    for index, metrics in enumerate((flat, nested, flat[:1], [{"epoch": 1, "lr": 0.0}])):
        training_curves_figure(tmp_path / f"{index}.png", metrics, title=STRANGE)
    widths = []
    for index in range(4):
        with Image.open(tmp_path / f"{index}.png") as image:
            widths.append(image.width)
    assert widths[0] == widths[2] > widths[1] > widths[3]  # three, three, two and one panel


def test_training_curves_mark_the_first_highest_value(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("clipfh.reports.charts.save_figure", lambda figure, path: figures.append(figure))
    values = [0.1, 0.7, 0.7, float("nan"), 0.2]
    training_curves_figure(tmp_path / "a.png", [{"epoch": e, "val_mAP": v} for e, v in enumerate(values)])
    labels = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert labels == ["mAP", "BEST 0.700 (epoch 1)"]
    with pytest.raises(ValueError, match="no key"):
        training_curves_figure(tmp_path / "a.png", [{"epoch": 1, "seconds": 3}])


def test_stage_comparison_shows_every_stage(tmp_path, monkeypatch):
    figures = []
    append_rows(tmp_path / "summary.csv", [make_row(stage=1), *random_rows([0.5, 0.75], stage=2, variant="$v_1$ 黒")])
    append_rows(
        tmp_path / "summary.csv", [make_row(stage=1, dataset="hands"), make_row(stage=3, protocol="text_to_image")]
    )
    summary = read_summary(tmp_path / "summary.csv")
    stage_comparison_figure(tmp_path / "a.png", summary)
    assert (tmp_path / "a.png").stat().st_size > 0
    monkeypatch.setattr("clipfh.reports.charts.save_figure", lambda figure, path: figures.append(figure))
    stage_comparison_figure(tmp_path / "b.png", summary)
    hands, synthetic = figures[0].axes
    assert [label.get_text() for label in hands.get_yticklabels()] == ["1 zero-shot"]
    assert [label.get_text() for label in synthetic.get_yticklabels()] == ["1 zero-shot", "2 image encoder · $v_1$ □"]
    assert [text.get_text() for text in synthetic.texts] == ["50.0", "50.0", "62.5", "50.0"]
    with pytest.raises(ValueError, match="no image-to-image"):
        stage_comparison_figure(tmp_path / "c.png", summary[summary["stage"] == "3"])


def test_text_is_measured_wrapped_and_shortened():
    assert printable("a\n b\t黒") == "a b □"
    assert shortened("id_00000080", 5, 8) == "id_00000080"
    short = shortened("identity_with_a_long_name_01", 0.9, 8)
    assert short.startswith("iden") and "…" in short and short.endswith("01") and text_width(short, 8) <= 0.9
    assert wrapped("one two", 5, 8, 3) == ["one two"]
    lines = wrapped("word " * 50, 1.0, 8, 3)
    assert len(lines) == 3 and lines[-1].endswith("…") and all(text_width(line, 8) <= 1.0 for line in lines)
    assert wrapped("", 1.0, 8, 2) == [""]
