import pytest
from summary_rows import make_row, random_rows

from clipfh.reports.stage_results import latest_rows, stage_label, stage_number, stage_results
from clipfh.reports.summary import append_rows, read_summary


def test_latest_rows_keeps_the_newest_evaluation_of_each(tmp_path):
    path = tmp_path / "summary.csv"
    append_rows(path, [*random_rows([0.1, 0.2]), make_row(mAP=0.3)])
    append_rows(path, [make_row(stage=3, variant="v4", time="2026-02-01T00:00:00Z")])
    append_rows(path, random_rows([0.4, 0.5], time="2026-03-02T00:00:00Z"))
    append_rows(path, [make_row(mAP=0.9, time="2026-01-01T00:00:00Z")])  # older, though written later
    latest = latest_rows(read_summary(path))
    assert latest[["stage", "protocol", "mAP"]].values.tolist() == [
        ["3", "official", 0.5],
        ["2", "random", 0.4],
        ["2", "random", 0.5],
    ]


def test_evaluations_of_the_same_second_do_not_count_twice(tmp_path):
    path = tmp_path / "summary.csv"
    append_rows(path, random_rows([0.1, 0.2]))
    append_rows(path, random_rows([0.6, 0.8]))
    assert latest_rows(read_summary(path))["mAP"].tolist() == [0.6, 0.8]


def test_only_rows_of_what_a_dataset_holds_now_are_compared(tmp_path):
    path = tmp_path / "summary.csv"
    append_rows(path, [make_row(stage=1, data_digest="old", mAP=0.1), make_row(stage=2, data_digest="old", mAP=0.9)])
    append_rows(path, [make_row(stage=1, data_digest="new", mAP=0.2, time="2026-03-02T00:00:00Z")])
    append_rows(path, [make_row(stage=1, dataset="mugs", data_digest="old", mAP=0.3)])
    results = stage_results(read_summary(path))
    assert [(r.dataset, r.stage, r.data_digest, r.official["mAP"]) for r in results] == [
        ("mugs", "1", "old", 0.3),
        ("synthetic", "1", "new", 0.2),
    ]


def test_stage_results_average_the_random_splits_and_sort_by_stage(tmp_path):
    path = tmp_path / "summary.csv"
    append_rows(path, random_rows([0.6, 0.8], stage="stage10_x"))
    append_rows(path, [make_row(mAP=0.25), make_row(protocol="text_to_image", rank1=0.125)])
    two, ten = stage_results(read_summary(path))
    assert (two.stage, ten.stage) == ("2", "stage10_x")
    assert two.random == {} and two.num_random == 0
    assert two.official["mAP"] == 0.25 and two.text_to_image["rank1"] == 0.125
    assert ten.random["mAP"] == pytest.approx((0.7, 0.02**0.5)) and ten.num_random == 2
    assert ten.official == {}


def test_re_ranked_rows_are_not_mixed_with_the_official_ones(tmp_path):
    path = tmp_path / "summary.csv"
    reranked = make_row(protocol="official_reranked", mAP=0.75, rank1=1.0)
    append_rows(path, [make_row(stage=1), make_row(mAP=0.25), *random_rows([0.1, 0.2]), reranked])
    one, two = stage_results(read_summary(path))
    assert one.reranked == {} and one.official["mAP"] == 0.5
    assert (two.reranked["mAP"], two.reranked["rank1"], two.official["mAP"]) == (0.75, 1.0, 0.25)
    assert two.random["mAP"].mean == pytest.approx(0.15) and two.num_random == 2
    append_rows(path, [make_row(mAP=0.3, time="2026-03-02T00:00:00Z")])  # evaluated again, not re-ranked
    assert stage_results(read_summary(path))[1].reranked == {}


def test_stage_names():
    assert stage_number("stage3_joint_img_text_finetune") == 3
    assert stage_number("mine") == -1
    assert (stage_label("1"), stage_label("stage2"), stage_label("mine")) == ("1 zero-shot", "2 image encoder", "mine")
