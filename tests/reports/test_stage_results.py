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
    assert [(r.dataset, r.stage, r.data_digest, r.official["mAP"].mean) for r in results] == [
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
    assert two.official["mAP"].mean == 0.25 and two.text_to_image["rank1"].mean == 0.125
    assert ten.random["mAP"] == pytest.approx((0.7, 0.02**0.5)) and ten.num_random == 2
    assert ten.official == {}


def of_seed(seed, mAP, **changes):
    return make_row(seed=seed, mAP=mAP, **{"recipe": "a", "run": f"run{seed}_{mAP}", **changes})


def results_of(tmp_path, *rows):
    append_rows(tmp_path / "summary.csv", list(rows))
    return stage_results(read_summary(tmp_path / "summary.csv"))


def test_training_seeds_of_one_recipe_are_one_row(tmp_path):
    rows = [of_seed(10, 0.3), of_seed(2, 0.5, time="2026-03-02T00:00:00Z"), of_seed(0, 0.7)]
    text = [of_seed(seed, mAP, protocol="text_to_image") for seed, mAP in ((10, 0.1), (0, 0.2))]
    text.append(of_seed(2, 0.6, protocol="text_to_image", time="2026-03-02T00:00:00Z"))
    (result,) = results_of(tmp_path, *rows, *text, make_row(stage=1))[1:]
    assert result.official["mAP"] == pytest.approx((0.5, 0.2))
    assert result.text_to_image["mAP"] == pytest.approx((0.3, 0.07**0.5))
    assert len(result.runs) == 3 and [run.split("_")[0] for run in result.runs] == ["run0", "run2", "run10"]
    assert result.time == "2026-03-02T00:00:00Z"


def test_random_splits_are_averaged_over_the_seeds_first(tmp_path):
    rows = [*random_rows([0.1, 0.3], seed=0, recipe="a"), *random_rows([0.3, 0.7], seed=1, recipe="a")]
    (result,) = results_of(tmp_path, *rows)
    assert result.num_random == 2
    assert result.random["mAP"] == pytest.approx((0.35, 0.3 / 2**0.5))  # of 0.2 and 0.5, not of four values


def test_a_seed_that_was_evaluated_again_counts_once(tmp_path):
    again = of_seed(0, 0.9, time="2026-03-02T00:00:00Z", run="later")
    (result,) = results_of(tmp_path, of_seed(0, 0.1), of_seed(1, 0.5), again)
    assert result.official["mAP"].mean == pytest.approx(0.7) and result.runs == ("later", "run1_0.5")


def test_older_seeds_of_another_recipe_are_not_averaged_with_the_newest(tmp_path):
    old = [of_seed(seed, 0.2) for seed in (0, 1, 2)]
    changed = of_seed(0, 0.6, recipe="b", time="2026-03-02T00:00:00Z")
    (result,) = results_of(tmp_path, changed, *old)  # whatever their order in the file
    assert result.official["mAP"].mean == 0.6 and len(result.runs) == 1
    (result,) = results_of(tmp_path, of_seed(1, 0.2, time="2026-03-03T00:00:00Z"))  # the old recipe again
    assert len(result.runs) == 3


def test_checkpoints_of_unknown_recipe_are_not_averaged(tmp_path):
    rows = [make_row(seed=seed, mAP=mAP, time=f"2026-03-0{1 + seed}T00:00:00Z") for seed, mAP in ((0, 0.1), (1, 0.2))]
    (result,) = results_of(tmp_path, *rows)
    assert result.official["mAP"].mean == 0.2 and len(result.runs) == 1


def test_what_was_measured_otherwise_is_a_result_of_its_own(tmp_path):
    later, counted = "2026-03-02T00:00:00Z", "same camera counted"
    plain = [of_seed(seed, 0.2, run=f"a{seed}") for seed in (0, 1)]
    other = [of_seed(0, 0.9, run="b", time=later, detail=counted), *random_rows([0.8], run="b", time=later)]
    other[1] |= {"seed": 0, "recipe": "a", "detail": counted}
    beside = {"run": "b", "time": later}
    other.append(of_seed(0, 0.7, protocol="official_reranked", detail=f"aqe 5/3, {counted}", **beside))
    other.append(of_seed(0, 0.6, protocol="probe", detail="ImageNet", **beside))
    own, otherwise = results_of(tmp_path, *plain, *other)
    assert (own.detail, own.official["mAP"].mean, own.runs, own.random) == ("", 0.2, ("a0", "a1"), {})
    assert (otherwise.detail, otherwise.official["mAP"].mean, otherwise.runs) == (counted, 0.9, ("b",))
    assert [getattr(otherwise, name)["mAP"].mean for name in ("random", "reranked", "probe")] == [0.8, 0.7, 0.6]


def test_re_ranked_rows_are_not_mixed_with_the_official_ones(tmp_path):
    path = tmp_path / "summary.csv"
    reranked = make_row(protocol="official_reranked", mAP=0.75, rank1=1.0)
    append_rows(path, [make_row(stage=1), make_row(mAP=0.25), *random_rows([0.1, 0.2]), reranked])
    one, two = stage_results(read_summary(path))
    assert one.reranked == {} and one.official["mAP"].mean == 0.5
    assert (two.reranked["mAP"].mean, two.reranked["rank1"].mean, two.official["mAP"].mean) == (0.75, 1.0, 0.25)
    assert two.random["mAP"].mean == pytest.approx(0.15) and two.num_random == 2
    append_rows(path, [make_row(mAP=0.3, time="2026-03-02T00:00:00Z")])  # evaluated again, not re-ranked
    assert stage_results(read_summary(path))[1].reranked == {}


@pytest.mark.parametrize(("protocol", "figures"), [("probe", "probe"), ("official_reranked", "reranked")])
def test_seeds_are_averaged_only_where_all_were_measured_alike(tmp_path, protocol, figures):
    def seeds(stage, *details):
        official = [of_seed(seed, 0.5, stage=stage) for seed in range(3)]
        return official + [
            of_seed(seed, 0.2 + seed / 10, stage=stage, protocol=protocol, detail=detail)
            for seed, detail in enumerate(details)
        ]

    rows = [*seeds(1, "a", "a", "a"), *seeds(2, "a", "b", "a"), *seeds(3, "a", "a")]
    alike, unlike, too_few = results_of(tmp_path, *rows)
    assert getattr(alike, figures)["mAP"].mean == pytest.approx(0.3)
    assert getattr(unlike, figures) == getattr(too_few, figures) == {}
    assert (alike.probe_name or alike.reranked_by) == "a"


def test_stage_names():
    assert stage_number("stage3_joint_img_text_finetune") == 3
    assert stage_number("mine") == -1
    assert (stage_label("1"), stage_label("stage2"), stage_label("mine")) == ("1 zero-shot", "2 image encoder", "mine")
