"""Extraction in this process and on Ray: the same features as an evaluation's, resumed by shard."""

import csv
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from places import ROOT

pytest.importorskip("pyarrow", reason="the extra `scale` is not installed")

from clipfh.core.errors import InputError
from clipfh.features.extraction import extract_features
from clipfh.images.pixels import load_pixels
from clipfh.index import extract as extraction
from clipfh.index.extract import extract
from clipfh.index.listing import list_photos
from clipfh.index.shards import SavedFeatures, features_of
from clipfh.models.checkpoint import write_checkpoint
from clipfh.models.clip import load_clip


@pytest.fixture(scope="module")
def clip():
    return load_clip("tiny-vit", "random")


@pytest.fixture
def photos(tmp_path):
    """Seven photos of two identities, a damaged one among them, and a file that is none."""
    folder, generator = tmp_path / "photos", np.random.default_rng(0)
    for number in range(7):
        path = folder / ("mug" if number < 4 else "cup") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (70, 50, 3), dtype=np.uint8)).save(path)
    (folder / "mug" / "2.png").write_bytes(b"not a photo")
    (folder / "notes.txt").write_text("not a photo either")
    return folder


def run(clip, photos, out, **options):
    listing = list_photos(str(photos), options.pop("image_dir", None))
    extract(clip, listing, out, images=str(photos), shard_size=3, batch_size=2, **options)
    return SavedFeatures(out)


def saved_rows(saved):
    return {
        photo: (facts, row)
        for table in saved
        for photo, facts, row in zip(
            table["id"].to_pylist(), table.drop_columns("features").to_pylist(), features_of(table), strict=True
        )
    }


def expected_features(clip, photos, images, cache):
    pixels = load_pixels(photos, images, clip.image_size, cache, resize_mode=clip.resize_mode)
    return extract_features(clip, pixels.array, "cpu", quiet=True).numpy()


def unreadable_of(out):
    return list(csv.DictReader((out / "unreadable_images.csv").read_text(encoding="utf-8").splitlines()))


def test_a_folder_gives_the_features_of_an_evaluation(clip, photos, tmp_path, capsys):
    saved = run(clip, photos, tmp_path / "out")
    rows = saved_rows(saved)
    images = ["cup/4.png", "cup/5.png", "cup/6.png", "mug/0.png", "mug/1.png", "mug/3.png"]
    assert list(rows) == images and saved.count == 6
    assert rows["mug/3.png"][0] == {"id": "mug/3.png", "item_id": "mug", "category": "", "camera": ""}
    features = np.stack([row for _, row in rows.values()])
    np.testing.assert_allclose(features, expected_features(clip, photos, images, tmp_path / "cache"), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    (unreadable,) = unreadable_of(tmp_path / "out")
    assert unreadable["what"] == "mug/2.png" and unreadable["reason"] == "no image that can be read"
    said = capsys.readouterr().out
    assert "left out 1 unreadable photos" in said and "not a photo (.txt)" in said
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {name: manifest[name] for name in ("model", "count", "unreadable", "shards")} == {
        "model": "tiny-vit",
        "count": 6,
        "unreadable": 1,
        "shards": [3, 2, 1],
    }


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json"])
def test_a_table_brings_its_facts(clip, photos, tmp_path, suffix):
    import pandas as pd

    images = ["mug/0.png", "cup/5.png", "gone.png"]
    facts = {"item_id": ["007", "8", "9"], "category": ["mugs", None, None], "camera": ["1", "2", "1"]}
    table, path = pd.DataFrame({"image": images, **facts, "price": 1.5}), tmp_path / f"list{suffix}"
    if suffix == ".csv":
        table.to_csv(path, index=False)
    elif suffix == ".parquet":
        table.astype({"camera": int}).to_parquet(path)
    else:
        entries = table.drop(columns="image").to_dict("records")
        path.write_text(json.dumps(dict(zip(images, entries, strict=True))))
    rows = saved_rows(run(clip, path, tmp_path / "out", image_dir=str(photos)))
    assert rows["mug/0.png"][0] == {"id": "mug/0.png", "item_id": "007", "category": "mugs", "camera": "1"}
    assert rows["cup/5.png"][0] == {"id": "cup/5.png", "item_id": "8", "category": "", "camera": "2"}
    assert unreadable_of(tmp_path / "out") == [{"what": "gone.png", "reason": "file not found"}]


@pytest.mark.parametrize("uri", ["file://{}", "memory://{}"])
def test_a_bucket_gives_the_same(clip, photos, tmp_path, uri):
    uri = uri.format(photos)
    if uri.startswith("memory"):
        import fsspec

        fsspec.filesystem("memory").put(str(photos), str(photos), recursive=True)
    there, here = run(clip, uri, tmp_path / "there"), run(clip, photos, tmp_path / "here")
    for found, expected in zip(there, here, strict=True):
        assert found.equals(expected)
    assert unreadable_of(tmp_path / "there")[0]["what"] == "mug/2.png"


def test_what_was_stopped_goes_on_after_the_last_whole_shard(clip, photos, tmp_path, monkeypatch):
    embed, calls = extraction.embed_photos, []

    def killed_in_the_second_shard(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return embed(*arguments)

    monkeypatch.setattr(extraction, "embed_photos", killed_in_the_second_shard)
    with pytest.raises(KeyboardInterrupt):
        run(clip, photos, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*")) == ["features_00000.parquet"]
    with pytest.raises(InputError, match=r"clipfh\.index extract"):
        SavedFeatures(tmp_path / "out")
    first = (tmp_path / "out" / "features_00000.parquet").stat().st_mtime_ns
    calls.clear()
    resumed = run(clip, photos, tmp_path / "out")
    assert len(calls) == 3  # batches of the shards that were lacking
    monkeypatch.undo()
    assert (tmp_path / "out" / "features_00000.parquet").stat().st_mtime_ns == first
    for found, expected in zip(resumed, run(clip, photos, tmp_path / "at_once"), strict=True):
        assert found.equals(expected)


def test_only_shards_of_this_model_and_these_photos_are_kept(clip, photos, tmp_path, monkeypatch):
    embed, made = extraction.embed_photos, []
    monkeypatch.setattr(extraction, "embed_photos", lambda *args: made.append(len(args[1].reasons)) or embed(*args))
    run(clip, photos, tmp_path / "out")
    assert sum(made) == 7
    run(clip, photos, tmp_path / "out")
    assert sum(made) == 7
    Image.new("RGB", (60, 60), "red").save(photos / "mug" / "2.png")
    assert run(clip, photos, tmp_path / "out").count == 7
    assert sum(made) == 7 + 3 and not unreadable_of(tmp_path / "out")
    run(replace(clip, mean=(0.5, 0.5, 0.5)), photos, tmp_path / "out")
    assert sum(made) == 7 + 3 + 7
    for photo in ("mug/0.png", "mug/1.png", "mug/2.png"):
        (photos / photo).unlink()
    assert run(clip, photos, tmp_path / "out").count == 4
    assert not (tmp_path / "out" / "features_00002.parquet").exists()


def test_ray_gives_the_same(clip, photos, tmp_path):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray of the extra `scale` is not installed")
    write_checkpoint(tmp_path / "clip.pth", {**clip.architecture(), "state_dict": clip.model.state_dict()})
    command = [sys.executable, "-m", "clipfh.index", "extract", "--images", photos, "--out", tmp_path / "ray", "--ray"]
    command += ["--ckpt", tmp_path / "clip.pth", "--shard_size", 3, "--batch_size", 2, "--device", "cpu"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    for found, expected in zip(SavedFeatures(tmp_path / "ray"), run(clip, photos, tmp_path / "here"), strict=True):
        assert found.drop_columns("features").equals(expected.drop_columns("features"))
        np.testing.assert_allclose(features_of(found), features_of(expected), atol=1e-5)
    assert unreadable_of(tmp_path / "ray") == unreadable_of(tmp_path / "here")


def test_a_cluster_that_does_not_answer_is_said_at_once(clip, photos, tmp_path):
    with pytest.raises(InputError, match=r"no Ray at '127\.0\.0\.1:1' .*--ray alone starts one here"):
        run(clip, photos, tmp_path / "out", ray="127.0.0.1:1")


def test_nothing_readable_is_an_error_that_names_the_first(clip, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match=r"none of the 1 photos can be read, the first: a\.jpg"):
        run(clip, tmp_path / "photos", tmp_path / "out")


def table(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name\na.png\n", "has no column image"),
        ("image\n", "lists no image"),
        ("image\na.png\na.png\n", "row 2: 'a.png' is listed twice"),
        ("image\n../a.png\n", "no path below --image_dir"),
        ("image,item_id\na.png\n", "cannot be read as CSV"),
    ],
)
def test_malformed_tables_are_refused(tmp_path, text, says):
    with pytest.raises(InputError, match=says):
        list_photos(str(table(tmp_path / "list.csv", text)))


def test_what_is_no_list_of_photos_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for images, says in (
        (tmp_path / "gone", "does not exist; give a folder, a table, or a URI"),
        (tmp_path / "empty", "has no photo that can be used"),
        (table(tmp_path / "list.xls", ""), "neither a folder nor a table"),
        ("nowhere://bucket", "cannot open 'nowhere://bucket'"),
        (f"file://{tmp_path}/gone", "cannot list"),
    ):
        with pytest.raises(InputError, match=says):
            list_photos(str(images))
    with pytest.raises(InputError, match="leave it out"):
        list_photos(str(tmp_path / "empty"), str(tmp_path))
    with pytest.raises(InputError, match=r"image folder .* does not exist"):
        list_photos(str(table(tmp_path / "list.csv", "image\na.png\n")), str(tmp_path / "gone"))
