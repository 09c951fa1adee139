import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from summary_rows import make_row

from clipfh.core.errors import InputError
from clipfh.core.files import write_json
from clipfh.reports import walk_through
from clipfh.reports.per_query import write_per_query
from clipfh.reports.summary import append_rows
from clipfh.reports.walk_through import Config, main
from clipfh.reports.walk_through_pictures import MOST_BYTES, write_small
from clipfh.tables.digest import SHORT
from clipfh.tables.prepared import TOKEN_SAFE_PROMPTS, load_prepared

ITEMS = [f"mug|{number}" for number in range(8)]
SPLITS = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
PRECISION = {1: [0.2, 0.6], 2: [0.5, 0.6], 3: [0.5, 0.4]}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A prepared dataset of 8 mugs with 4 photos each, and what a run of stages 1 to 3 leaves."""
    table = {}
    for item_id, split in zip(ITEMS, SPLITS, strict=True):
        for photo in range(4):
            image = f"{item_id}/{photo}.jpg"
            (tmp_path / "photos" / item_id).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40 + photo, 50), (30 * photo, 90, 90)).save(tmp_path / "photos" / image)
            is_query = split == "test" and photo == 0
            table[image] = {
                "item_id": item_id,
                "camera": "",
                "split": "query" if is_query else split.replace("test", "gallery"),
            }
    metadata = tmp_path / "metadata"
    write_json(metadata / "image_paths.json", table)
    write_json(
        metadata / "image_paths_clean.json", {image: of for image, of in table.items() if of["item_id"] != ITEMS[0]}
    )
    write_json(metadata / TOKEN_SAFE_PROMPTS, {item_id: f"a mug, {item_id}" for item_id in ITEMS})
    description = {"name": "mugs", "image_dir": str(tmp_path / "photos"), "data_root": "/some/where/my mugs"}
    write_json(metadata / "dataset.json", description)
    data = load_prepared("mugs", folder=metadata)
    monkeypatch.setattr(walk_through, "load_prepared", lambda name: data)
    monkeypatch.setattr(walk_through, "stage_dir", lambda stage: tmp_path / f"stage{stage}")
    for stage, values in PRECISION.items():
        evaluated(tmp_path, data, stage, values)
    return Config(dataset="mugs", out=tmp_path / "docs" / "walk.md", results_dir=tmp_path / "results")


def evaluated(tmp_path, data, stage, values):
    """An evaluation's folder with its row of the summary, and the log of its training."""
    name, folder = f"mugs_stage{stage}", tmp_path / "results" / f"mugs_stage{stage}"
    row = {"dataset": "mugs", "data_digest": data.digest[:SHORT], "stage": stage, "run": name, "mAP": np.mean(values)}
    labels = {key: make_row(**row)[key] for key in ("dataset", "data_digest", "model", "stage", "variant")}
    checkpoint = f"model/s{stage}/checkpoints/clip_run{stage}_BEST.pth"
    write_json(folder / "metrics.json", {**labels, "image_dir": str(data.image_dir), "checkpoint": checkpoint})
    queries, gallery = data.rows("query"), data.rows("gallery")
    of = {"protocol": "official", "query": queries["image"], "item_id": queries["item_id"], "average_precision": values}
    write_per_query(folder, [pd.DataFrame({**of, "first_match_rank": 1})])
    rankings = [
        (query.image, query.item_id, rank, hit.image, hit.item_id, 0.5, hit.item_id == query.item_id)
        for query in queries.itertuples()
        for rank, hit in enumerate(gallery.itertuples(), start=1)
    ]
    columns = ["query", "query_item_id", "rank", "image", "item_id", "similarity", "is_match"]
    pd.DataFrame(rankings, columns=columns).to_csv(folder / "rankings.csv", index=False)
    Image.new("RGB", (1500, 1590), "white").save(folder / "map.png")
    append_rows(tmp_path / "results" / "summary.csv", [make_row(**row)])
    log = tmp_path / f"stage{stage}" / "logs" / f"clip_run{stage}"
    log.mkdir(parents=True)
    (log / "train.log").write_text(f"2026-03-01 09:30:00 epoch 1/1 of stage {stage}\n")
    Image.new("RGB", (1000, 460), "white").save(log / "training_curves.png")


def test_the_page_says_what_the_files_of_the_run_say(run, capsys):
    main(run)
    page = run.out.read_text(encoding="utf-8")
    assert "--data_root 'my mugs'" in page and "/some/where" not in page
    for row in (
        "| train | 4 | 16 |",
        "| val | 2 | 8 |",
        "| query | 2 | 2 |",
        "| gallery | 2 | 6 |",
        "| all | 8 | 32 |",
    ):
        assert row in page
    assert "| mug\\|0 | a mug, mug\\|0 |" in page and "8 of the 8 prompts" in page
    assert "6 are to learn from. Of those, 1 with fewer than two photos are left out" in page
    assert "mAP 40.0" in page  # of stage 1
    assert "```text\nepoch 1/1 of stage 2\n```" in page
    assert "stage 2 over stage 1, by photos: mAP +15.0\n" in page
    assert "stage 3 over stage 2, by photos: mAP -10.0\n" in page
    assert "by average precision: 1 better, 1 worse, 0 alike" in page
    assert "CKPT=model/s3/checkpoints/clip_run3_BEST.pth" in page
    shown = re.findall(r"!\[[^]]+\]\(walk/(\w+\.webp)\)", page)
    assert sorted(shown) == ["changed.webp", "curves2.webp", "curves3.webp", "map.webp", "photos.webp", "ranked.webp"]
    assert all(0 < (run.out.parent / "walk" / name).stat().st_size <= MOST_BYTES for name in shown)
    assert "6 pictures" in capsys.readouterr().out


def test_a_run_that_lacks_a_stage_or_a_log_is_refused(run, tmp_path):
    log = tmp_path / "stage2" / "logs" / "clip_run2" / "train.log"
    log.unlink()
    with pytest.raises(InputError, match=r"train\.log does not exist"):
        main(run)
    summary = run.results_dir / "summary.csv"
    lines = summary.read_text().splitlines(keepends=True)
    summary.write_text("".join(line for line in lines if "mugs_stage2" not in line))
    with pytest.raises(InputError, match=r"no stage 2 on mugs .* bash run_all.sh --dataset mugs"):
        main(run)
    assert not run.out.exists()


def test_a_picture_is_made_as_small_as_it_has_to_be(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(noise).resize((60, 60)).resize((1500, 1500)))
    Image.fromarray(smooth).save(tmp_path / "smooth.png")
    with Image.open(write_small(tmp_path / "smooth.png", tmp_path / "smooth.webp")) as small:
        assert small.width <= 1000
    Image.fromarray(np.tile(noise, (4, 2, 1))).save(tmp_path / "noise.png")
    with pytest.raises(InputError, match=r"noise\.png takes more than 100,000 bytes"):
        write_small(tmp_path / "noise.png", tmp_path / "noise.webp")
    with pytest.raises(InputError, match="does not exist"):
        write_small(tmp_path / "none.png", tmp_path / "none.webp")
