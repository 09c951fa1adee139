"""Scripts 00 and 05 as a user starts them; one run of each is in a fresh Python, which has imported nothing before."""

import json
import os
import subprocess
import sys

import pytest

from clipfh.tables.records import read_image_meta
from clipfh.tables.splits import read_splits

PREPARE = "preprocessing/00_prepare_dataset.py"
MAKE_SPLITS = "preprocessing/05_make_retrieval_splits.py"


@pytest.fixture
def start(server):
    return server.run


@pytest.fixture
def start_afresh(server):
    def start(script, *arguments, cwd):
        command = [sys.executable, str(server.root / script), *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, env=server.environment, capture_output=True, text=True, timeout=120)

    return start


def assert_user_error(result, *texts):
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    for text in texts:
        assert text in result.stderr


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def photos(tmp_path, touch):
    root = tmp_path / "photos"
    touch(root, ["item 3/phone.heic"])
    (root / "item 4").mkdir()
    (root / "item 4" / "empty.jpg").touch()
    touch(root, [f"item {n}/{photo}.jpg" for n in range(12) for photo in range(4)])
    (root / "prompts.json").write_text('{"item 3": "a red mug"}')
    return root


def test_prepare_then_split(start, start_afresh, photos, tmp_path):
    meta = tmp_path / "meta"
    prepare = [PREPARE, "--dataset", "folder", "--data_root", "photos", "--metadata_dir", "meta", "--seed", 3]
    result = start_afresh(*prepare, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert sorted(contents(meta)) == ["dataset.json", "descriptions.json", "image_paths.json", "left_out.csv"]
    dataset = json.loads((meta / "dataset.json").read_text())
    assert dataset == {
        "name": "folder",
        "image_dir": str(photos),
        "exclude_same_camera": False,
        "random_protocol": "half",
        "resize_mode": None,
        "max_megapixels": 178,
        "seed": 3,
        "data_root": str(photos),
        "options": {"test_fraction": 0.5, "val_fraction": None},
        "left_out": {"cannot be opened here (.heic): convert them to JPEG": 1, "empty file": 1},
        "missing": {},
    }
    assert json.loads((meta / "descriptions.json").read_text()) == {
        "item 3": {"category": "", "color": "", "lines": ["a red mug"], "attributes": []}
    }
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()[1:7]}
    assert rows["val"] == ["2", "8"]
    assert rows["query"] == ["6", "12"]
    assert rows["all"] == ["12", "48"]

    assert "found 50 files: 48 used, 2 left out\n" in result.stdout
    assert "left out: 1 (empty file), the first: item 4/empty.jpg\n" in result.stdout
    assert (meta / "left_out.csv").read_text().splitlines()[1:] == [
        "item 3/phone.heic,cannot be opened here (.heic): convert them to JPEG",
        "item 4/empty.jpg,empty file",
    ]

    split = [MAKE_SPLITS, "--dataset", "folder", "--meta_dir", "meta"]
    result = start_afresh(*split, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    table = read_image_meta(meta / "image_paths.json")
    splits = read_splits(meta / "image_splits.json", table)
    assert len(splits["random"]) == 10
    assert set(splits["official"]["query"]) == set(table.loc[table["split"] == "query", "image"])

    before = contents(meta)
    for name in ("notes.txt", "item 1/.DS_Store"):  # come and go, and must not make a stage train again
        (photos / name).touch()
    assert start(*prepare, cwd=tmp_path).returncode == 0
    assert contents(meta)["dataset.json"] == before["dataset.json"]
    assert "notes.txt,not a photo (.txt)" in (meta / "left_out.csv").read_text()
    before = contents(meta)
    assert start(*prepare, cwd=tmp_path).returncode == 0
    assert start(*split, cwd=tmp_path).returncode == 0
    assert contents(meta) == before  # again means the same, byte for byte
    assert start(*split, "--seed", 4, cwd=tmp_path).returncode == 0
    assert contents(meta)["image_splits.json"] != before["image_splits.json"]


def test_prepare_bad_input(start, photos, tmp_path):
    to_meta = ["--metadata_dir", tmp_path / "meta"]
    here = [*to_meta, "--data_root", photos]
    assert_user_error(start(PREPARE, "--dataset", "cifar", cwd=tmp_path), "synthetic", "inshop")
    nowhere = start(PREPARE, "--dataset", "inshop", "--data_root", "nowhere", *to_meta, cwd=tmp_path)
    assert_user_error(nowhere, "nowhere does not exist", "Eval/list_eval_partition.txt")
    assert_user_error(start(PREPARE, "--dataset", "hd", *here, cwd=tmp_path), "1-501 does not exist")
    option = start(PREPARE, "--dataset", "folder", "--aspect", "dorsal_left", *here, cwd=tmp_path)
    assert_user_error(option, "no option 'aspect'", "test_fraction")
    assert_user_error(start(PREPARE, "--dataset", "folder", "--seed", -1, *here, cwd=tmp_path), "--seed")
    (photos / "prompts.json").write_text('{"item 3": "a red mug",\n}')
    assert_user_error(start(PREPARE, "--dataset", "folder", *here, cwd=tmp_path), "prompts.json, line 2")
    assert not (tmp_path / "meta").exists()  # nothing half-written


def test_prepare_cannot_write(start, photos, tmp_path):
    (tmp_path / "file").touch()
    to_file = ["--data_root", photos, "--metadata_dir", tmp_path / "file"]
    assert_user_error(start(PREPARE, "--dataset", "folder", *to_file, cwd=tmp_path), "cannot write", "dataset.json")


def test_make_splits_bad_input(start, tmp_path):
    meta = tmp_path / "meta"
    split = [MAKE_SPLITS, "--dataset", "folder", "--metadata_dir", meta]
    assert_user_error(
        start(*split, cwd=tmp_path), "dataset.json does not exist", "00_prepare_dataset.py --dataset folder"
    )
    meta.mkdir()
    (meta / "dataset.json").write_text('{"random_protocol": "thirds", "seed": 0}')
    assert_user_error(start(*split, cwd=tmp_path), "random_protocol is 'thirds'; valid: half")
    (meta / "dataset.json").write_text('{"random_protocol": "half", "seed": "0"}')
    assert_user_error(start(*split, cwd=tmp_path), "seed is '0', not a whole number")
    (meta / "dataset.json").write_text('{"random_protocol": "half", "seed": 0}')
    (meta / "image_paths.json").write_text('{"a.jpg": {"item_id": "a", "split": "train"}}')
    assert_user_error(start(*split, cwd=tmp_path), "no random split can be drawn")
    (meta / "image_paths.json").write_text('{"../a.jpg": {"item_id": "a", "split": "query"}}')
    assert_user_error(start(*split, cwd=tmp_path), "leaves the image root")
    assert_user_error(start(*split, "--num_splits", 0, cwd=tmp_path), "--num_splits must be at least 1")
    assert not (meta / "image_splits.json").exists()


@pytest.mark.parametrize("script", [PREPARE, MAKE_SPLITS])
def test_help(start, script, tmp_path):
    result = start(script, "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "--metadata_dir" in result.stdout
    assert "--seed" in result.stdout
    assert os.listdir(tmp_path) == []
