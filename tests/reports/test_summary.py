from pathlib import Path

import pandas as pd
import pytest
from summary_rows import make_row

from clipfh.core.errors import InputError
from clipfh.reports.stage_results import stage_results
from clipfh.reports.summary import COLUMNS, append_rows, read_summary, require_summary, utc_now


def test_rows_come_back_as_written(tmp_path):
    path = tmp_path / "new" / "summary.csv"
    append_rows(path, [make_row(checkpoint='a, "quoted" Straße/run.pth', mAP=2 / 3)])
    append_rows(path, [make_row(protocol="random", split=9), make_row(protocol="official_reranked")])
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert lines[0] == (
        "time,dataset,data_digest,model,stage,variant,seed,recipe,checkpoint,run,protocol,split,detail,num_query,num_gallery,"
        "rank1,rank5,rank10,mAP,mINP,seconds"
    )
    assert "0.666667" in lines[1] and len(lines) == 4
    summary = read_summary(path)
    assert list(summary.columns) == list(COLUMNS)
    first, second, third = summary.to_dict("records")
    assert first["checkpoint"] == 'a, "quoted" Straße/run.pth'
    assert (first["stage"], first["mAP"], first["num_query"], first["seconds"]) == ("2", 0.666667, 9, 1.25)
    assert pd.isna(first["split"]) and second["split"] == 9
    assert third["protocol"] == "official_reranked" and pd.isna(third["split"])


def test_time_of_now_is_accepted(tmp_path):
    append_rows(tmp_path / "summary.csv", [make_row(time=utc_now())])
    assert len(read_summary(tmp_path / "summary.csv")) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mAP": 1.2}, "mAP is 1.2"),
        ({"rank1": float("nan")}, "rank1 is nan"),
        ({"protocol": "text"}, "official, random, text_to_image"),
        ({"protocol": "random"}, "split"),
        ({"split": 3}, "only random splits"),
        ({"protocol": "official_reranked", "split": 3}, "only random splits"),
        ({"num_query": -1}, "num_query"),
        ({"dataset": " "}, "dataset is empty"),
        ({"time": "yesterday"}, "yesterday"),
        ({"variant": "a\nb"}, "control character"),
        ({"colour": "red"}, "colour"),
        ({"seed": "one"}, "seed is 'one'"),
        ({"seed": -1}, "seed is -1"),
        ({"run": "../elsewhere"}, "names no folder"),
        ({"run": ".."}, "names no folder"),
    ],
)
def test_impossible_rows_are_refused_and_nothing_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        append_rows(tmp_path / "summary.csv", [make_row(), make_row(**changes)])
    assert not (tmp_path / "summary.csv").exists()


def test_missing_column_is_named(tmp_path):
    row = make_row()
    del row["mINP"]
    with pytest.raises(ValueError, match="unknown: mINP"):
        append_rows(tmp_path / "summary.csv", [row])


def test_another_header_is_refused_unchanged(tmp_path):
    path = tmp_path / "summary.csv"
    path.write_text("time,rank1\n")
    for action in (lambda: append_rows(path, [make_row()]), lambda: read_summary(path)):
        with pytest.raises(InputError, match=r"summary\.csv.*Move it away"):
            action()
    assert path.read_text() == "time,rank1\n"


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(InputError, match="Choose another results folder"):
        append_rows(tmp_path / "results" / "summary.csv", [make_row()])


def test_missing_file_names_the_command(tmp_path):
    with pytest.raises(InputError, match=r"bash run_all\.sh"):
        read_summary(tmp_path / "summary.csv")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("official", "unofficial", "unknown protocol 'unofficial'"),
        ("0.500000", "half", "rank1 is 'half'"),
        ("0.500000", "50.0", "rank1 is 50.0"),
        (",tiny-vit", "", "20 cells instead of 21"),
        ("2026-03-01T09:30:00Z", "1 March", "1 March"),
    ],
)
def test_malformed_lines_are_named_by_number(tmp_path, old, new, message):
    path = tmp_path / "summary.csv"
    append_rows(path, [make_row(variant="a"), make_row(variant="b"), make_row(variant="c")])
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace(old, new, 1)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=f"line 3: .*{message}"):
        read_summary(path)


def test_a_last_line_left_open_is_closed_first(tmp_path):
    path = tmp_path / "summary.csv"
    append_rows(path, [make_row()])
    path.write_text(path.read_text().rstrip("\n"))
    append_rows(path, [make_row()])
    assert len(read_summary(path)) == 2


def test_a_summary_with_a_header_alone_is_empty(tmp_path):
    append_rows(tmp_path / "summary.csv", [])
    summary = read_summary(tmp_path / "summary.csv")
    assert summary.empty and stage_results(summary) == []


def test_several_processes_append_whole_rows(server, tmp_path):
    path = tmp_path / "summary.csv"
    program = (
        "import os, sys\n"
        f"sys.path.append({str(Path(__file__).parents[1])!r})\n"
        "from clipfh.reports.summary import append_rows\n"
        "from summary_rows import random_rows\n"
        f"for _ in range(40): append_rows({str(path)!r}, random_rows([0.1] * 10, variant=os.environ['VARIANT']))"
    )
    workers = server.run_code(program, *({"VARIANT": str(i)} for i in range(3)))
    assert [worker.returncode for worker in workers] == [0, 0, 0], workers
    summary = read_summary(path)
    assert summary.groupby("variant").size().to_dict() == {"0": 400, "1": 400, "2": 400}
    assert path.read_text().count("time,") == 1
    blocks = summary["split"].to_numpy(dtype=int).reshape(-1, 10)
    assert (blocks == range(10)).all()  # one evaluation stays together


def test_a_summary_of_another_version_is_found_before_the_work(tmp_path):
    path = tmp_path / "summary.csv"
    require_summary(path)
    path.write_text("")
    require_summary(path)
    append_rows(path, [make_row()])
    require_summary(path)
    whole = path.read_text()
    for column in ("data_digest,", "seed,recipe,", "run,"):
        path.write_text(whole.replace(column, ""))
        with pytest.raises(InputError, match=r"is not a summary of this version: .*Move it away"):
            require_summary(path)
