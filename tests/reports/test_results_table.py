import subprocess
import sys

import pytest
from summary_rows import make_row, random_rows

from clipfh.core.errors import InputError
from clipfh.reports.results_table import (
    README_BEGIN,
    README_END,
    Config,
    git_commit,
    main,
    note_of,
    result_tables,
)
from clipfh.reports.run_page import write_run_report
from clipfh.reports.stage_results import stage_results
from clipfh.reports.summary import append_rows, read_summary
from clipfh.reports.text_table import Table, render_table


@pytest.fixture
def results_dir(tmp_path):
    path = tmp_path / "results" / "summary.csv"
    append_rows(path, [*random_rows([0.30, 0.32], stage=1), make_row(stage=1, mAP=0.25)])
    append_rows(
        path, [*random_rows([0.44, 0.48], stage=2, variant="triplet"), make_row(stage=2, variant="triplet", mAP=0.4)]
    )
    append_rows(
        path, [make_row(stage=3, variant="v4", mAP=0.55), make_row(stage=3, variant="v4", protocol="text_to_image")]
    )
    append_rows(path, [make_row(stage=1, dataset="hands", model="RN50|x", mAP=0.125, time="2026-04-01T00:00:00Z")])
    return path.parent


def test_table_holds_the_figures_by_hand(results_dir):
    hands, synthetic = result_tables(stage_results(read_summary(results_dir / "summary.csv")))
    assert (hands.title, hands.date) == ("hands · RN50|x", "2026-04-01")
    assert synthetic.columns == [
        *[("", "stage"), ("", "variant")],
        *[("official", name) for name in ("Rank-1", "Rank-5", "Rank-10", "mAP", "gain", "mINP")],
        *[("random", "Rank-1"), ("random", "mAP"), ("text", "Rank-1"), ("text", "mAP")],
    ]
    fives = ["50.0"] * 3
    assert synthetic.rows == [
        ["1 zero-shot", "", *fives, "25.0", "", "50.0", "50.0 ± 0.0", "31.0 ± 1.4", "", ""],
        ["2 image encoder", "triplet", *fives, "40.0", "+15.0", "50.0", "50.0 ± 0.0", "46.0 ± 2.8", "", ""],
        ["3 joint", "v4", *fives, "55.0", "+15.0", "50.0", "", "", "50.0", "50.0"],
    ]
    assert "seeds" not in note_of([hands, synthetic])
    assert all(f"{name}:" in note_of([synthetic]) for name in ("Gain", "Random", "Text"))
    zero_shot = Table("mugs", "2026-03-01", [("", "stage"), ("official", "mAP")], [["1 zero-shot", "50.0"]])
    assert note_of([zero_shot]) == "Percent."


def test_re_ranked_figures_are_columns_of_their_own_where_there_are_some(results_dir, capsys):
    main(Config(results_dir=results_dir))
    assert "e-ranked" not in capsys.readouterr().out + (results_dir / "summary.md").read_text()
    hands = {"stage": 1, "dataset": "hands", "model": "RN50|x", "time": "2026-05-01T00:00:00Z"}
    rows = [make_row(**hands, mAP=0.125), make_row(**hands, mAP=0.25, protocol="official_reranked")]
    append_rows(results_dir / "summary.csv", rows)
    hands, synthetic = result_tables(stage_results(read_summary(results_dir / "summary.csv")))
    assert hands.columns[-2:] == [("re-ranked", "Rank-1"), ("re-ranked", "mAP")]
    assert hands.rows[0][-2:] == ["50.0", "25.0"]
    assert hands.rows[0][hands.columns.index(("official", "mAP"))] == "12.5"
    assert "re-ranked" not in {group for group, _ in synthetic.columns}
    group, header, rule, *_ = render_table(hands, markdown=False).splitlines()
    assert len(group) == len(header) == len(rule) and " re-ranked " in group
    main(Config(results_dir=results_dir))  # the chart, too
    assert "Re-ranked: the official split" in capsys.readouterr().out
    written = (results_dir / "summary.md").read_text()
    assert "| re-ranked Rank-1 | re-ranked mAP |" in written and "Re-ranked: the official split" in written


def test_what_is_kept_is_relative_to_stage_1_on_the_same_probe(tmp_path):
    def probe(stage, rank1, **changes):
        return make_row(stage=stage, protocol="probe", **{"rank1": rank1, "detail": "my photos", **changes})

    others = [make_row(stage=stage) for stage in (1, 2, 3)]
    append_rows(tmp_path / "s.csv", [*others, probe(1, 0.8), probe(2, 0.6), probe(3, 0.6, detail="others")])
    (table,) = result_tables(stage_results(read_summary(tmp_path / "s.csv")))
    place = table.columns.index(("kept", "of probe"))
    assert [row[place] for row in table.rows] == ["", "75.0", ""]  # stage 3 was asked about others
    assert "Kept: top-1" in note_of([table])
    group, header, *_ = render_table(table, markdown=False).splitlines()
    assert len(group) == len(header)


def test_several_models_are_told_apart(tmp_path):
    append_rows(tmp_path / "s.csv", [make_row(model="a", stage=1), make_row(model="b", stage=2)])
    (table,) = result_tables(stage_results(read_summary(tmp_path / "s.csv")))
    assert table.title == "synthetic" and ("", "model") in table.columns
    assert ("official", "gain") not in table.columns  # another model's stage is no stage before


def test_seeds_are_one_row_with_their_number_and_deviation(tmp_path):
    rows = [
        make_row(seed=seed, recipe="a", run=f"r{seed}", mAP=mAP, rank1=mAP, rank5=mAP)
        for seed, mAP in ((0, 0.5), (1, 0.54))
    ]
    append_rows(tmp_path / "summary.csv", [make_row(stage=1, mAP=0.4), *rows])
    (table,) = result_tables(stage_results(read_summary(tmp_path / "summary.csv")), tmp_path)
    places = [table.columns.index(column) for column in (("", "n"), ("official", "Rank-1"), ("official", "Rank-5"))]
    assert [[row[place] for place in places] for row in table.rows] == [
        ["1", "50.0", "50.0"],
        ["2", "52.0 ± 2.8", "52.0"],
    ]
    assert table.rows[1][table.columns.index(("official", "gain"))] == "+12.0" and "n: training seeds" in note_of(
        [table]
    )


def test_both_renderings_are_aligned(results_dir):
    for table in result_tables(stage_results(read_summary(results_dir / "summary.csv"))):
        markdown = render_table(table, markdown=True).splitlines()
        assert len({len(line) for line in markdown}) == 1 and len(markdown) == 2 + len(table.rows)
        assert len({line.replace("\\|", "").count("|") for line in markdown}) == 1
        for width in (200, 80, 10):
            for part in render_table(table, markdown=False, width=width).split("\n\n"):
                group, header, rule, *rows, last_rule = part.splitlines()
                assert len(group) == len(header) == len(rule) == len(last_rule) and len(rows) == len(table.rows)
                assert max(map(len, rows)) <= len(rule) <= max(width, 80)
                assert header.index("Rank-1") >= group.index("─") > len("stage")


def test_a_terminal_gets_all_columns_however_narrow_it_is(results_dir):
    (_, table) = result_tables(stage_results(read_summary(results_dir / "summary.csv")))
    parts = {width: render_table(table, markdown=False, width=width).split("\n\n") for width in (200, 90, 10)}
    assert [len(found) for found in parts.values()] == [1, 2, 3]
    for found in parts.values():
        heads = [part.splitlines()[0] for part in found]
        assert [name for head in heads for name in head.replace("─", " ").split()] == ["official", "random", "text"]
        assert all("stage" in part and "3 joint" in part for part in found)


def test_command_prints_writes_and_repeats(server, results_dir):
    command = [
        sys.executable,
        "-m",
        "clipfh.reports.results_table",
        "--results_dir",
        str(results_dir),
        "--dataset",
        "synthetic",
    ]
    done = subprocess.run(command, env=server.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "synthetic · tiny-vit, percent" in done.stdout and "46.0 ± 2.8" in done.stdout and "hands" not in done.stdout
    written = (results_dir / "summary.md").read_text(encoding="utf-8")
    assert "| 2 image encoder | triplet |" in written and "evaluated 2026-03-01" in written
    assert server.run("src/clipfh/reports/results_table.py", *command[3:]).returncode == 0
    assert (results_dir / "summary.md").read_text(encoding="utf-8") == written


def test_command_without_a_summary_names_the_way_out(server, tmp_path):
    done = server.run("src/clipfh/reports/results_table.py", "--results_dir", tmp_path)
    assert done.returncode == 2 and "bash run_all.sh" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "summary.md").exists()


def test_empty_summary_and_unknown_dataset(tmp_path, results_dir):
    append_rows(tmp_path / "summary.csv", [])
    with pytest.raises(InputError, match="no evaluation yet"):
        main(Config(results_dir=tmp_path))
    with pytest.raises(InputError, match=r"'shoes'; it holds hands, synthetic"):
        main(Config(results_dir=results_dir, dataset="shoes"))


def test_readme_block_is_replaced_and_the_rest_kept(results_dir, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{README_BEGIN}\nold \\1 table\n{README_END}\n\nEnd.\n")
    main(Config(results_dir=results_dir, readme=readme))
    once = readme.read_text(encoding="utf-8")
    assert once.startswith(f"# Title\n\n{README_BEGIN}\n**hands · RN50|x**, evaluated 2026-04-01")
    assert once.endswith(f"{README_END}\n\nEnd.\n") and "old" not in once and "RN50" in once
    main(Config(results_dir=results_dir, readme=readme))
    assert readme.read_text(encoding="utf-8") == once


@pytest.mark.parametrize(
    "text", ["# Title\n", README_BEGIN, f"{README_END}\n{README_BEGIN}", f"{README_BEGIN}{README_END}" * 2]
)
def test_readme_without_markers_is_left_alone(results_dir, tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(InputError, match=r"README\.md needs the lines"):
        main(Config(results_dir=results_dir, readme=readme))
    assert readme.read_text() == text
    with pytest.raises(InputError, match="cannot read"):
        main(Config(results_dir=results_dir, readme=tmp_path / "absent.md"))


def test_commit_is_unknown_outside_of_git(tmp_path):
    assert git_commit(tmp_path) is None


def test_run_report_is_one_escaped_page(tmp_path):
    (tmp_path / "figures").mkdir()
    picture = tmp_path / "figures" / "best queries.png"
    picture.write_bytes(b"")
    page = write_run_report(
        tmp_path,
        title="Stage <3>",
        rows=[make_row(num_query=1200), *random_rows([0.30, 0.32])],
        counts={"queries without a match": 0},
        configuration={"prompt": "<script>", "lr": 1e-4},
        figures=[(picture, 'the "best"')],
    )
    text = page.read_text(encoding="utf-8")
    assert page == tmp_path / "report.html" and "<script>" not in text and "Stage <3>" not in text
    assert 'src="figures/best%20queries.png"' in text and "the &quot;best&quot;" in text
    assert "<td>31.0 ± 1.4</td>" in text and "<td>1,200</td>" in text and "<td>split 1</td>" in text
    assert "<td>queries without a match</td><td>0</td>" in text
    for wrong in (tmp_path / "absent.png", tmp_path.parent / "outside.png"):
        with pytest.raises(ValueError, match="not a file inside"):
            write_run_report(tmp_path, title="x", rows=[make_row()], figures=[(wrong, "x")])
