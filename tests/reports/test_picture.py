import os
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from clipfh.core.errors import InputError
from clipfh.reports import picture


def test_picture_shows_queries_of_the_newest_evaluation_of_the_highest_stage(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(picture, "RESULTS_DIR", tmp_path)
    for number, name in enumerate(("d_stage3_v4_1", "d_stage3_v4_2", "d_stage1_3")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rankings.csv").touch()
        os.utime(tmp_path / name / "rankings.csv", (number, number))
    assert picture.newest_run("d").name == "d_stage3_v4_2"
    with pytest.raises(InputError, match="--dataset other"):
        picture.newest_run("other")


def test_picture_is_drawn_from_rankings(tmp_path: Path, monkeypatch) -> None:
    names = [f"{n}.jpg" for n in range(4)]
    for number, name in enumerate(names):
        Image.new("RGB", (40, 50), (60 * number, 90, 90)).save(tmp_path / name)
    columns = ("query", "query_item_id", "rank", "image", "item_id", "similarity", "is_match")
    rows = [(query, "1", r, image, str(r), 0.5, r == 1) for query in names[:2] for r, image in enumerate(names[2:], 1)]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "rankings.csv", index=False)
    prepared = type("Prepared", (), {"image_dir": tmp_path})
    monkeypatch.setattr(picture, "load_prepared", lambda dataset: prepared)
    picture.main(picture.Config(run_dir=tmp_path, path=tmp_path / "docs" / "ranked.jpg"))
    with Image.open(tmp_path / "docs" / "ranked.jpg") as drawn:
        assert drawn.format == "JPEG" and drawn.width > 600
