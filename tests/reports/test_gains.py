import numpy as np
import pandas as pd
import pytest
from summary_rows import make_row

from clipfh.core.errors import InputError
from clipfh.core.files import write_json
from clipfh.metrics.statistics import paired_bootstrap_difference
from clipfh.reports import gains
from clipfh.reports.gains import mean_ap_gain, previous_stage
from clipfh.reports.per_query import mean_average_precision_of, read_average_precision, write_per_query
from clipfh.reports.results_table import note_of, result_tables
from clipfh.reports.stage_results import stage_results
from clipfh.reports.summary import append_rows, read_summary

IDS = [f"id{i // 4}" for i in range(40)]
QUERIES = [f"{item_id}/{i}.jpg" for i, item_id in enumerate(IDS)]
BEFORE = np.random.default_rng(0).uniform(0.2, 0.6, 40)
AFTER = BEFORE + np.random.default_rng(1).uniform(0.0, 0.2, 40)


def rows_of(values, queries=QUERIES, item_ids=IDS, protocol="official"):
    return pd.DataFrame(
        {
            "protocol": protocol,
            "query": queries,
            "item_id": item_ids,
            "average_precision": values,
            "first_match_rank": np.where(np.isnan(values), 0, 2),
        }
    )


def evaluated(folder, run, *tables, **row):
    """An evaluation with its folder: a row of the summary for each protocol."""
    (folder / run).mkdir(parents=True)
    write_per_query(folder / run, tables)
    protocols = {table["protocol"].iloc[0]: float(table["average_precision"].mean()) for table in tables}
    append_rows(folder / "summary.csv", [make_row(run=run, protocol=p, mAP=m, **row) for p, m in protocols.items()])


def stages(folder):
    return stage_results(read_summary(folder / "summary.csv"))


def test_gain_is_the_paired_difference_of_the_two_files(tmp_path):
    evaluated(tmp_path, "a", rows_of(BEFORE), stage=1)
    evaluated(tmp_path, "b", rows_of(AFTER[::-1], QUERIES[::-1], IDS[::-1]), stage=2)  # whatever the order
    before, after = stages(tmp_path)
    gain = mean_ap_gain(after, before, "official", tmp_path)
    expected = paired_bootstrap_difference(BEFORE, AFTER, IDS)
    assert gain.paired == pytest.approx(expected, abs=2e-3)  # queries are added in another order
    assert gain.mAP == gain.paired.difference == pytest.approx(AFTER.mean() - BEFORE.mean(), abs=1e-6)
    (table,) = result_tables([before, after], tmp_path)
    cells = dict(zip(table.columns, table.rows[1], strict=True))
    low, high = 100 * gain.paired.low, 100 * gain.paired.high
    assert cells["official", "gain"] == f"{100 * gain.mAP:+.1f} [{low:.1f}, {high:.1f}]"
    assert cells["official", "p"] == "<0.001" and table.notes == []
    assert dict(zip(table.columns, table.rows[0], strict=True))["official", "gain"] == ""


def test_the_same_evaluation_twice_gains_nothing(tmp_path):
    for stage, run in ((1, "a"), (2, "b")):
        evaluated(tmp_path, run, rows_of(BEFORE), stage=stage)
    (table,) = result_tables(stages(tmp_path), tmp_path)
    cells = dict(zip(table.columns, table.rows[1], strict=True))
    assert (cells["official", "gain"], cells["official", "p"]) == ("+0.0 [0.0, 0.0]", "1.000")


@pytest.fixture
def of_any_number(monkeypatch):
    """Intervals of however few identities."""
    monkeypatch.setattr(gains, "FEWEST_IDENTITIES", 1)


def test_of_few_identities_the_number_stands_alone(tmp_path):
    few = [f"id{i % 9}" for i in range(40)]
    for stage, run, values in ((1, "a", BEFORE), (2, "b", AFTER)):
        evaluated(tmp_path, run, rows_of(values, item_ids=few), stage=stage)
    gain = mean_ap_gain(*reversed(stages(tmp_path)), "official", tmp_path)
    assert gain.paired is None and gain.mAP == pytest.approx(AFTER.mean() - BEFORE.mean(), abs=1e-5)


def test_another_number_of_seeds_is_said(tmp_path):
    for stage, seed, run in ((1, None, "a"), (2, 0, "b"), (2, 1, "c"), (3, 0, "d")):
        evaluated(tmp_path, run, rows_of(AFTER), stage=stage, seed=seed, recipe="" if seed is None else f"of{stage}")
    (table,) = result_tables(stages(tmp_path), tmp_path)
    assert table.notes == ["The gain of 3 joint compares 1 training seeds with 2."]


@pytest.mark.parametrize(
    ("seeds", "told"),
    [
        ((0, 1), []),
        ((2, 3), ["The gain of 3 joint v4 compares training seeds 2, 3 with 0, 1."]),
        ((10, 0), ["The gain of 3 joint v4 compares training seeds 0, 10 with 0, 1."]),
    ],
)
def test_other_seeds_are_said_however_many_they_are(tmp_path, seeds, told):
    evaluated(tmp_path, "a", rows_of(BEFORE), stage=1)
    for stage, seed in [(2, 0), (2, 1), *((3, seed) for seed in seeds)]:
        variant = "v4" if stage == 3 else "ms"
        evaluated(
            tmp_path, f"{stage}_{seed}", rows_of(AFTER), stage=stage, seed=seed, recipe=f"of{stage}", variant=variant
        )
    (table,) = result_tables(stages(tmp_path), tmp_path)
    assert table.notes == told


def test_seeds_that_are_not_known_are_not_told_apart(tmp_path):
    evaluated(tmp_path, "b", rows_of(BEFORE), stage=2, recipe="of2")
    evaluated(tmp_path, "c", rows_of(AFTER), stage=3, seed=1, recipe="of3")
    (table,) = result_tables(stages(tmp_path), tmp_path)
    assert table.notes == []


def trained(folder, stage, variant, mAP, *, start, day, seed=0, recipe=None, **row):
    """An evaluation of a training whose recipe is called as the variant, and what it says that it started from.

    Args:
        start: None: it does not say, as those of earlier versions.
        day: of the evaluation.
    """
    run, recipe = f"{stage}{variant}{seed}{recipe or ''}", variant if recipe is None else recipe
    row |= {"seed": seed, "recipe": recipe, "time": f"2026-03-{day:02}T00:00:00Z"}
    evaluated(folder, run, rows_of(np.full(40, mAP)), stage=stage, variant=variant, **row)
    write_json(folder / run / "metrics.json", {} if start is None else {"start_recipe": start})


def gains_and_notes(folder):
    """{(stage, variant): gain}, without the interval, and the notes under the table."""
    (table,) = result_tables(stages(folder), folder)
    cells = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return {row["", "variant"]: row["official", "gain"].split(" ")[0] for row in cells}, table.notes


def test_a_stage_gains_over_what_it_was_trained_from_whatever_is_evaluated_later(tmp_path):
    for seed in (0, 1):
        trained(tmp_path, 2, "ms", 0.5, start="", day=1, seed=seed)
        trained(tmp_path, 3, "v4", 0.49, start="ms", day=2, seed=seed)
    trained(tmp_path, 2, "triplet", 0.35, start="", day=3, seed=0)
    trained(tmp_path, 2, "triplet", 0.35, start="", day=3, seed=1)
    assert gains_and_notes(tmp_path) == ({"ms": "", "triplet": "", "v4": "-1.0"}, [])


@pytest.mark.parametrize("name", ["triplet", "ms"])  # of the same name, another recipe
def test_a_gain_over_another_training_than_it_started_from_is_said(tmp_path, name):
    trained(tmp_path, 2, "ms", 0.5, start="", day=1)
    trained(tmp_path, 3, "v4", 0.49, start="gone" if name == "triplet" else "ms", day=2)
    trained(tmp_path, 2, name, 0.35, start="", day=3, recipe="later")
    gains, notes = gains_and_notes(tmp_path)
    assert gains["v4"] == "+14.0"
    assert notes == [f"The gain of 3 joint v4 is over 2 image encoder {name}, from which it was not trained."]


def test_a_stage_trained_from_pretrained_weights_beside_a_stage_2_is_said(tmp_path):
    evaluated(tmp_path, "1", rows_of(BEFORE), stage=1)
    trained(tmp_path, 2, "ms", 0.5, start="", day=1, recipe="")  # of no known recipe, and yet not its start
    trained(tmp_path, 3, "v2", 0.6, start="", day=2)
    trained(tmp_path, 3, "v3", 0.7, start="v2", day=2)  # which began as v2 did
    gains, notes = gains_and_notes(tmp_path)
    assert (gains["v2"], gains["v3"]) == ("+10.0", "+20.0")
    assert notes == [
        f"The gain of 3 joint {variant} is over 2 image encoder ms, from which it was not trained."
        for variant in ("v2", "v3")
    ]


def test_of_two_variants_the_second_goes_back_to_what_the_first_was_trained_from(tmp_path):
    trained(tmp_path, 2, "ms", 0.5, start="", day=1)
    trained(tmp_path, 2, "triplet", 0.35, start="", day=4)
    trained(tmp_path, 3, "v2", 0.6, start="ms", day=2)
    trained(tmp_path, 3, "v3", 0.7, start="v2", day=2)
    assert gains_and_notes(tmp_path) == ({"ms": "", "triplet": "", "v2": "+10.0", "v3": "+20.0"}, [])


@pytest.mark.parametrize(
    ("start", "recipe"), [(None, "triplet"), ("ms", ""), ("v2", "triplet")], ids=["old", "old before", "of an old one"]
)
def test_where_it_is_not_known_what_a_stage_started_from_nothing_is_said(tmp_path, start, recipe):
    trained(tmp_path, 2, "triplet", 0.5, start="", day=1, recipe=recipe)
    trained(tmp_path, 3, "v2", 0.6, start=None, day=2)
    trained(tmp_path, 3, "v4", 0.6, start=start, day=2)
    gains, notes = gains_and_notes(tmp_path)
    assert gains["v4"] == "+10.0" and notes == []


def test_stage_1_is_what_all_began_with(tmp_path):
    evaluated(tmp_path, "1", rows_of(np.full(40, 0.3)), stage=1)
    trained(tmp_path, 2, "again", 0.4, start="gone", day=1)
    assert gains_and_notes(tmp_path) == ({"": "", "again": "+10.0"}, [])


def test_evaluations_that_say_to_be_trained_from_each_other_come_to_an_end(tmp_path):
    trained(tmp_path, 2, "ms", 0.5, start="", day=1)
    trained(tmp_path, 3, "v2", 0.6, start="v3", day=2)
    trained(tmp_path, 3, "v3", 0.6, start="v2", day=2)
    assert len(gains_and_notes(tmp_path)[1]) == 2


def test_a_soup_is_compared_with_a_soup_and_a_training_with_what_it_was_trained_from(tmp_path):
    trained(tmp_path, 2, "ms", 0.5, start="", day=1)
    trained(tmp_path, 2, "ms_soup3", 0.55, start="", day=1, seed=None)
    trained(tmp_path, 2, "triplet", 0.3, start="", day=3)
    trained(tmp_path, 3, "v4", 0.6, start="ms", day=2)
    trained(tmp_path, 3, "v4_soup3", 0.62, start="ms", day=2, seed=None)
    trained(tmp_path, 3, "v5", 0.65, start="ms_soup3", day=2)
    gains, notes = gains_and_notes(tmp_path)
    assert (gains["v4"], gains["v4_soup3"], gains["v5"], notes) == ("+10.0", "+7.0", "+10.0", [])


def test_only_evaluations_by_one_protocol_are_compared(tmp_path):
    otherwise = {"detail": "same camera counted", "time": "2026-03-02T00:00:00Z"}
    evaluated(tmp_path, "a", rows_of(BEFORE), stage=1)
    evaluated(tmp_path, "b", rows_of(BEFORE + 0.1), stage=2, seed=0, recipe="x")
    evaluated(tmp_path, "c", rows_of(AFTER + 0.3), stage=2, seed=0, recipe="x", **otherwise)
    (table,) = result_tables(stages(tmp_path), tmp_path)
    cells = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["", "protocol"] for row in cells] == ["", "", "same camera counted"]
    assert [row["official", "gain"] for row in cells] == ["", "+10.0 [10.0, 10.0]", ""]
    assert "Protocol: " in note_of([table])
    evaluated(tmp_path, "d", rows_of(BEFORE + 0.3), stage=1, **otherwise)
    (table,) = result_tables(stages(tmp_path), tmp_path)
    gains = [row[table.columns.index(("official", "gain"))].split(" ")[0] for row in table.rows]
    assert gains == ["", "", "+10.0", f"{100 * (AFTER - BEFORE).mean():+.1f}"]


@pytest.mark.parametrize(
    ("of_each_stage", "gains", "kept", "notes"),
    [
        ("AAA", ["", "+10.0", "+10.0"], ["", "50.0", "50.0"], []),
        ("A A", ["", "+10.0", "+10.0"], ["", "50.0", "50.0"], []),  # of one it is not known
        ("BAA", ["", "", "+10.0"], None, ["2 image encoder began with A, 1", "3 joint began with A, 1 zero-shot"]),
        ("AAB", ["", "+10.0", ""], ["", "50.0", ""], ["3 joint began with B, 2", "3 joint began with B, 1 zero-shot"]),
    ],
)
def test_only_stages_of_the_same_first_weights_are_compared(tmp_path, of_each_stage, gains, kept, notes):
    for stage, (run, weights) in enumerate(zip("abc", of_each_stage, strict=True), 1):
        evaluated(tmp_path, run, rows_of(BEFORE + 0.1 * stage), stage=stage)
        write_json(tmp_path / run / "metrics.json", {"first_weights": weights} if weights.strip() else {})
        probe = {"protocol": "probe", "detail": "ImageNet", "rank1": 0.8 if stage == 1 else 0.4}
        append_rows(tmp_path / "summary.csv", [make_row(run=run, stage=stage, **probe)])
    (table,) = result_tables(stages(tmp_path), tmp_path)
    cells = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["official", "gain"].split(" ")[0] for row in cells] == gains
    assert (("kept", "of probe") in cells[0]) == (kept is not None)
    assert kept is None or [row["kept", "of probe"] for row in cells] == kept
    assert len(table.notes) == len(notes)
    assert all(note.startswith(start) for note, start in zip(table.notes, notes, strict=True))


def test_prompts_are_compared_too_an_identity_may_have_one_twice(tmp_path, of_any_number):
    prompts, item_ids = ['a, "red" mug', "a mug", "a mug", "a mug"], ["red", "red", "red", "NA"]
    for stage, run, values in ((2, "a", [0.1, 0.2, 0.2, 0.4]), (3, "b", [0.2, 0.4, 0.4, 0.3])):
        text = rows_of(np.array(values), prompts, item_ids, "text_to_image")
        evaluated(tmp_path, run, rows_of(BEFORE), text, stage=stage)
    assert len(read_average_precision(tmp_path / "a", "text_to_image")) == 4
    before, after = stages(tmp_path)
    paired = mean_ap_gain(after, before, "text_to_image", tmp_path).paired
    assert paired.num_query == 4 and paired.difference == pytest.approx(0.1)
    (table,) = result_tables([before, after], tmp_path)
    assert table.rows[1][table.columns.index(("text", "gain"))].startswith("+10.0 [")


def test_seeds_are_averaged_by_query_before_identities_are_drawn(tmp_path):
    evaluated(tmp_path, "a", rows_of(BEFORE), stage=1)
    for seed, run in enumerate("bc"):
        evaluated(tmp_path, run, rows_of(AFTER + 0.1 * seed), seed=seed, recipe="x", stage=2)
    before, after = stages(tmp_path)
    gain = mean_ap_gain(after, before, "official", tmp_path)
    assert gain.mAP == pytest.approx((AFTER + 0.05 - BEFORE).mean())
    alone = paired_bootstrap_difference(BEFORE, AFTER, IDS)
    assert gain.paired.high - gain.paired.low == pytest.approx(alone.high - alone.low, abs=1e-6)  # no more queries


@pytest.mark.parametrize("lost", ["folder", "file", "run", "seed", "protocol"])
def test_without_the_files_a_gain_is_a_number(tmp_path, lost):
    evaluated(tmp_path, "a", rows_of(BEFORE), stage=1)
    evaluated(tmp_path, "b", rows_of(AFTER), stage=2, seed=0, recipe="x")
    if lost == "seed":  # of two seeds one has no file
        append_rows(tmp_path / "summary.csv", [make_row(stage=2, seed=1, recipe="x", run="gone", mAP=AFTER.mean())])
    if lost == "run":  # a row of nowhere
        later = "2026-03-02T00:00:00Z"
        append_rows(tmp_path / "summary.csv", [make_row(stage=1, mAP=BEFORE.mean(), time=later)])
    if lost == "protocol":
        write_per_query(tmp_path / "b", [rows_of(AFTER, protocol="text_to_image")])
    if lost in ("file", "folder"):
        (tmp_path / "b" / "per_query.csv").unlink()
    if lost == "folder":
        (tmp_path / "b").rmdir()
    (table,) = result_tables(stages(tmp_path), tmp_path)
    cells = dict(zip(table.columns, table.rows[1], strict=True))
    assert cells["official", "gain"] == f"{100 * (AFTER.mean() - BEFORE.mean()):+.1f}"
    assert ("official", "p") not in cells


def test_queries_of_one_evaluation_alone_are_left_out_and_said(tmp_path, of_any_number):
    before, after = BEFORE.copy(), AFTER.copy()
    before[:3] = after[1:5] = np.nan  # two have neither: they are in nobody's mAP
    evaluated(tmp_path, "a", rows_of(before), stage=1)
    evaluated(tmp_path, "b", rows_of(after[:-1], QUERIES[:-1], IDS[:-1]), stage=2, variant="v")
    found = stages(tmp_path)
    paired = mean_ap_gain(found[1], found[0], "official", tmp_path).paired
    assert (paired.num_query, paired.num_left_out) == (34, 4)
    (table,) = result_tables(found, tmp_path)
    (note,) = table.notes
    assert note.startswith("The gain of 2 image encoder v (official) is over 34 queries; 4 that")


def test_evaluations_without_a_common_query_have_a_bare_gain(tmp_path):
    evaluated(tmp_path, "a", rows_of(BEFORE), stage=1)
    evaluated(tmp_path, "b", rows_of(AFTER, [f"other/{query}" for query in QUERIES]), stage=2)
    before, after = stages(tmp_path)
    assert mean_ap_gain(after, before, "official", tmp_path).paired is None


@pytest.mark.parametrize("content", [b"", b"query\nx\n", b"\xff\xfe\x00", b"half"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "per_query.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"per_query\.csv cannot be read .*; remove it"):
        mean_average_precision_of([tmp_path], "official")


def test_a_value_that_is_no_number_is_named(tmp_path):
    write_per_query(tmp_path, [rows_of(BEFORE)])
    path = tmp_path / "per_query.csv"
    path.write_text(path.read_text().replace(",0.", ",high.", 1))
    with pytest.raises(InputError, match=r"per_query\.csv cannot be read"):
        read_average_precision(tmp_path, "official")


def test_stage_before_is_the_same_variant_or_the_newest(tmp_path):
    rows = [
        make_row(stage=2, variant="a", mAP=0.2, time="2026-05-01T00:00:00Z"),
        make_row(stage=2, variant="b", mAP=0.3),
    ]
    append_rows(
        tmp_path / "summary.csv", [*rows, make_row(stage=3, variant="b"), make_row(stage=3, variant="c", mAP=0.1)]
    )
    results = stages(tmp_path)
    before = {result.variant: previous_stage(result, results) for result in results if result.stage == "3"}
    assert (before["b"].variant, before["c"].variant) == ("b", "a")
    assert mean_ap_gain(results[-1], before["c"], "official").mAP == pytest.approx(-0.1)
    assert mean_ap_gain(results[-1], before["c"], "text_to_image") is None
    assert previous_stage(results[0], results) is None
    assert mean_ap_gain(results[0], None, "official") is None


def test_a_soup_is_compared_with_a_soup_and_one_training_with_one(tmp_path):
    rows = [
        *(make_row(stage=2, variant="ms", mAP=0.2), make_row(stage=3, variant="v4", mAP=0.4)),
        make_row(stage=2, variant="ms_soup3", mAP=0.3, time="2027-05-01T00:00:00Z"),  # evaluated last
        make_row(stage=3, variant="v4_soup3", mAP=0.6, time="2027-05-01T00:00:00Z"),
    ]
    append_rows(tmp_path / "summary.csv", [make_row(stage=1, variant="", mAP=0.1), *rows])
    results = stages(tmp_path)
    before = {result.variant: previous_stage(result, results) for result in results}
    assert (before["v4"].variant, before["v4_soup3"].variant) == ("ms", "ms_soup3")
    assert before["ms_soup3"].stage == "1"
