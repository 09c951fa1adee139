import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from summary_rows import make_row

from clipfh.core.errors import InputError
from clipfh.core.files import write_json
from clipfh.metrics.statistics import paired_bootstrap_difference
from clipfh.reports.compare import Config, comparison_name, main, parse_runs, write_comparison
from clipfh.reports.per_query import write_per_query
from clipfh.reports.results_index import write_index
from clipfh.reports.summary import append_rows

IDS = [f"id<{i // 2}>" for i in range(24)]
QUERIES = [f"{i}.png" for i in range(24)]
BEFORE = np.random.default_rng(0).uniform(0.2, 0.6, 24)


@pytest.fixture
def photos(tmp_path):
    for number, name in enumerate(QUERIES[:-1]):  # the last one has gone since
        Image.new("RGB", (60, 90), (10 * number, 90, 30)).save(tmp_path / name)
    return tmp_path


def evaluated(results_dir, photos, run, values, queries=QUERIES, recorded=None, **row):
    """The folder of an evaluation, and its row of the summary: each query's nearest photos are the two after it.

    Args:
        recorded: what `metrics.json` says besides.
    """
    folder = results_dir / run
    row = {"stage": 1, "time": "2026-03-01T09:30:00Z", **row}
    values = np.asarray(values)
    ids = dict(zip(QUERIES, IDS, strict=True))
    labels = {name: make_row(**row)[name] for name in ("dataset", "data_digest", "model", "stage", "variant")}
    write_json(folder / "metrics.json", {**labels, "image_dir": str(photos), **(recorded or {})})
    (folder / "report.html").write_text("x")
    of_queries = {"protocol": "official", "query": queries, "item_id": [ids[query] for query in queries]}
    ranks = np.where(np.isnan(values), 0, 2)
    write_per_query(folder, [pd.DataFrame({**of_queries, "average_precision": values, "first_match_rank": ranks})])
    rankings = [
        (query, ids[query], rank, QUERIES[(place + rank) % 24], IDS[(place + rank) % 24], 0.9 - rank / 10)
        for place, query in enumerate(queries)
        for rank in (1, 2)
    ]
    table = pd.DataFrame(rankings, columns=["query", "query_item_id", "rank", "image", "item_id", "similarity"])
    table["is_match"] = table["query_item_id"] == table["item_id"]
    table.to_csv(folder / "rankings.csv", index=False)
    append_rows(results_dir / "summary.csv", [make_row(run=run, mAP=float(np.nanmean(values)), **row)])


def cells_of(page):
    return re.findall("<td>([^<]*)</td>", page)


def test_two_evaluations_query_by_query(tmp_path, photos):
    after = BEFORE.copy()
    after[3] += 0.31
    after[4:6] -= [0.107, 0.083]
    after[23] += 0.0517
    evaluated(tmp_path / "results", photos, "a", BEFORE)
    evaluated(tmp_path / "results", photos, "b", after[::-1], QUERIES[::-1], stage=2)  # whatever the order
    path = write_comparison(tmp_path / "results", tmp_path / "results/a", tmp_path / "results/b")
    page = path.read_text()
    paired = paired_bootstrap_difference(BEFORE, after, IDS)
    assert path.name == "compare_a_b.html" and "id&lt;1&gt;" in page and "id<1>" not in page and "<script" not in page
    assert cells_of(page)[4:] == [
        "24 shared queries",
        f"{100 * BEFORE.mean():.1f}",
        f"{100 * after.mean():.1f}",
        f"{100 * paired.difference:+.1f} [{100 * paired.low:.1f}, {100 * paired.high:.1f}]",
        f"{paired.p:.3f}",
        *("2", "2", "20"),
    ]
    gained, lost = page.split("Gained most")[1].split("Hard for both")[0].split("Lost most")
    assert gained.count('class="row"') == 2 and lost.count('class="row"') == 2
    assert gained.index(f"average precision {after[3]:.3f}") < gained.index(f"average precision {after[23]:.3f}")
    assert page.count("23.png is gone") >= 1 and 'src="data:image/jpeg;base64,' in page and "Not shared" not in page
    assert gained.count('class="match"') + gained.count('class="other"') == 2 * 2 * 2


def test_queries_of_one_evaluation_alone_are_named(tmp_path, photos):
    after = BEFORE[1:].copy()
    after[4] = np.nan
    evaluated(tmp_path, photos, "a", BEFORE)
    evaluated(tmp_path, photos, "b", after, QUERIES[1:])
    page = write_comparison(tmp_path, tmp_path / "a", tmp_path / "b").read_text()
    assert "22 shared queries" in page and "2 queries of a alone: 0.png, 5.png" in page


def test_few_identities_have_no_interval(tmp_path, photos):
    evaluated(tmp_path, photos, "a", BEFORE[:4], QUERIES[:4])
    evaluated(tmp_path, photos, "b", BEFORE[:4] + 0.1, QUERIES[:4])
    page = write_comparison(tmp_path, tmp_path / "a", tmp_path / "b").read_text()
    assert "<td>+10.0</td><td></td>" in page and "No interval: of 2 identities" in page


def test_what_cannot_be_compared(tmp_path, photos):
    evaluated(tmp_path, photos, "a", BEFORE)
    evaluated(tmp_path, photos, "b", BEFORE, data_digest="6b")
    with pytest.raises(InputError, match="only evaluations of the same photos"):
        write_comparison(tmp_path, tmp_path / "a", tmp_path / "b")
    with pytest.raises(InputError, match="'c' is no evaluation"):
        main(Config("a", "c", tmp_path))
    per_query = tmp_path / "b" / "per_query.csv"
    per_query.write_text(per_query.read_text().replace("official,0.png", "official,../0.png"))
    with pytest.raises(InputError, match=r"'../0.png' is no image below the image root"):
        write_comparison(tmp_path, tmp_path / "a", tmp_path / "b")
    per_query.unlink()
    with pytest.raises(InputError, match="has no per_query"):
        write_comparison(tmp_path, tmp_path / "a", tmp_path / "b")


def test_the_command_line(tmp_path, photos, capsys):
    config = parse_runs(Config, "", ["a", "b", "--results_dir", str(tmp_path)])
    assert config == Config("a", "b", tmp_path)
    evaluated(tmp_path, photos, "a", BEFORE)
    evaluated(tmp_path, photos, "b", BEFORE)
    main(config)
    assert "compare_a_b.html" in capsys.readouterr().out
    page = (tmp_path / "compare_a_b.html").read_text()
    assert page.count("<p>None.</p>") == 2  # nothing gained, nothing lost


def test_the_index_links_runs_and_comparisons(tmp_path, photos):
    evaluated(tmp_path, photos, "a", BEFORE)
    evaluated(tmp_path, photos, "b", BEFORE + 0.1, stage=2, variant="v<1>", time="2026-03-02T09:30:00Z")
    append_rows(tmp_path / "summary.csv", [make_row(run="gone", stage=0, time="2026-02-01T09:30:00Z", dataset="x")])
    append_rows(tmp_path / "summary.csv", [make_row(run="", stage=0, time="2026-01-01T09:30:00Z", dataset="x")])
    (tmp_path / "c_stage5").mkdir()
    write_json(tmp_path / "c_stage5" / "metrics.json", {})
    (tmp_path / "logs").mkdir()
    page = write_index(tmp_path).read_text()
    assert page.index('"b/report') < page.index('"a/report') < page.index("(its folder gone is gone)")
    assert page.index("gone is gone") < page.index("(its folder was not recorded)")
    assert 'href="b/report.html"' in page and "v&lt;1&gt;" in page and "v<1>" not in page
    assert f'href="{comparison_name("a", "b")}"' in page and (tmp_path / comparison_name("a", "b")).is_file()
    assert 'href="c_stage5/metrics.json"' in page and ">logs<" not in page
    assert f"{100 * (BEFORE + 0.1).mean():.1f}" in cells_of(page)


def test_a_comparison_that_fails_is_said_on_the_index(tmp_path, photos):
    evaluated(tmp_path, photos, "a", BEFORE)
    evaluated(tmp_path, photos, "b", BEFORE, stage=2)
    (tmp_path / "a" / "rankings.csv").write_text("query\n")
    assert "none with 1 zero-shot: " in write_index(tmp_path).read_text()


def test_what_the_table_does_not_compare_the_index_does_not_either(tmp_path, photos):
    evaluated(tmp_path, photos, "a", BEFORE, recorded={"first_weights": "openai"})
    evaluated(tmp_path, photos, "b", BEFORE, stage=2, recorded={"first_weights": "random"})
    page = write_index(tmp_path).read_text()
    assert not list(tmp_path.glob("compare_*")) and "compare_" not in page
    assert "none with 1 zero-shot: 2 image encoder began with random, 1 zero-shot began with openai" in page


def test_the_index_links_the_comparison_with_what_a_stage_was_trained_from(tmp_path, photos):
    evaluated(tmp_path, photos, "a", BEFORE, stage=2, variant="ms", recipe="ms")
    evaluated(tmp_path, photos, "b", BEFORE, stage=2, variant="triplet", recipe="t", time="2026-03-03T09:30:00Z")
    evaluated(tmp_path, photos, "c", BEFORE, stage=3, variant="v4", recipe="v4", recorded={"start_recipe": "ms"})
    assert f'href="{comparison_name("a", "c")}"' in write_index(tmp_path).read_text()


def test_an_evaluation_whose_file_is_damaged_is_said_on_the_index(tmp_path, photos):
    for stage, run in enumerate("abc", 1):
        evaluated(tmp_path, photos, run, BEFORE, stage=stage)
    (tmp_path / "c" / "metrics.json").write_text("{")
    page = write_index(tmp_path).read_text()
    assert f'href="{comparison_name("a", "b")}"' in page and "none: " in page and "metrics.json" in page
