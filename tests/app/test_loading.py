import importlib.util
import os
import time

import pytest
import torch
from app.gallery_of_shapes import draw_photos

from clipfh.app import __main__ as app
from clipfh.app import loading
from clipfh.app.loading import Weights, chosen_weights, default_dataset, load_gallery
from clipfh.app.search import Query
from clipfh.core.cli import parse_config
from clipfh.core.errors import InputError
from clipfh.core.files import write_json
from clipfh.datasets import folder as folder_dataset
from clipfh.models import checkpoint
from clipfh.models.checkpoint import write_checkpoint
from clipfh.models.clip import load_clip
from clipfh.prompts.files import write_prompts
from clipfh.tables import prepared
from clipfh.tables.prepared import SPLITS, TOKEN_SAFE_PROMPTS, load_prepared
from clipfh.tables.records import write_image_meta

CPU = torch.device("cpu")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A prepared dataset `shapes` of 7 identities, and no checkpoint or evaluation."""
    photos = tmp_path / "photos"
    draw_photos(photos)
    metadata = tmp_path / "metadata" / "shapes"
    data = folder_dataset.read(photos / "square")
    write_image_meta(metadata / "image_paths.json", data.table)
    write_json(metadata / "dataset.json", {"image_dir": str(photos / "square"), "name": "shapes"})
    write_prompts(metadata / TOKEN_SAFE_PROMPTS, {name: f"a {name}" for name in set(data.table["item_id"])})
    write_json(metadata / SPLITS, {})
    monkeypatch.setattr(loading, "ROOT", tmp_path)
    monkeypatch.setattr(loading, "RESULTS_DIR", tmp_path / "results")
    monkeypatch.setattr(loading, "DEFAULT_MODEL", "tiny-rn")
    monkeypatch.setattr(loading, "processed_dir", lambda name: tmp_path / "processed" / name)
    monkeypatch.setattr(prepared, "metadata_dir", lambda name: tmp_path / "metadata" / name)
    monkeypatch.setattr(checkpoint, "stage_dir", lambda stage: tmp_path / "model" / str(stage))
    return tmp_path


def save(path, data, stage, seed, **recorded):
    torch.manual_seed(seed)
    clip = load_clip("tiny-rn", "random", image_size=32)
    content = {"stage": stage, "dataset": data.name, "data_digest": data.digest, "variant": "", "epoch": 1}
    content |= {**clip.architecture(), "seen_identities": {}, "state_dict": clip.model.state_dict(), **recorded}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(path, content)
    return path


def test_the_newest_best_of_each_stage_stands_beside_the_weights_they_began_with(checkout, capsys):
    data = load_prepared("shapes")
    folder = checkout / "model" / "2" / "checkpoints"
    save(folder / "old_BEST.pth", data, 2, 0)
    time.sleep(0.02)
    newest = save(folder / "new_BEST.pth", data, 2, 1, first_weights="openai")
    assert chosen_weights(data, ()) == [
        Weights("Stage 1: zero-shot", "tiny-rn", "openai"),
        Weights("Stage 2: image encoder", "tiny-rn", str(newest)),
    ]
    told = capsys.readouterr().out
    assert "note: stage 3 is left out: no checkpoint" in told and "bash run_all.sh --dataset " in told


def test_without_a_checkpoint_the_default_model_alone(checkout):
    assert chosen_weights(load_prepared("shapes"), ()) == [Weights("Stage 1: zero-shot", "tiny-rn", None)]


def test_checkpoints_to_compare_make_a_gallery_of_test_photos_or_of_all(checkout, capsys):
    data = load_prepared("shapes")
    paths = [save(checkout / f"{n}.pth", data, 2 + n, n) for n in (0, 1)]
    gallery = load_gallery("shapes", paths, CPU)
    test = data.rows("query", "gallery")["image"].tolist()
    assert sorted(hit.photo for hit in gallery.search(Query(text="anything"), 0, 99)) == sorted(test)
    assert gallery.size == f"{len(test)} photos of {data.rows('query')['item_id'].nunique()} items"
    assert [stage.title for stage in gallery.stages] == ["Stage 2: image encoder", "Stage 3: joint"]
    everything = load_gallery("shapes", paths[:1], CPU, with_training_photos=True)
    assert len(everything.search(Query(text="anything"), 0, 99)) == len(data.table) == 14 > len(test)
    for stage in (0, 1):
        (hit,) = gallery.search(Query((test[2],)), stage, 1)
        assert hit.photo == test[2] and hit.prompt == f"a {hit.item_id}"
    load_gallery("shapes", paths, CPU)
    assert capsys.readouterr().out.count("features: reused") == 2


def test_a_photo_that_cannot_be_read_is_left_out_and_told(checkout, capsys):
    data = load_prepared("shapes")
    broken = data.rows("query", "gallery")["image"].iloc[1]
    (data.image_dir / broken).write_text("no photo")
    path = save(checkout / "0.pth", load_prepared("shapes"), 2, 0)
    gallery = load_gallery("shapes", [path], CPU)
    assert broken not in [hit.photo for hit in gallery.search(Query(text="anything"), 0, 99)]
    assert f"1 photos cannot be read and are left out, the first: {broken}" in capsys.readouterr().out
    last = data.rows("query", "gallery")["image"].iloc[-1]
    (hit,) = gallery.search(Query((last,)), 0, 1)
    assert hit.photo == last  # rows and features still belong together


def test_weights_of_other_data_are_told_and_other_checkpoints_refused(checkout, capsys):
    data = load_prepared("shapes")
    chosen_weights(data, [save(checkout / "other.pth", data, 2, 0, data_digest="0" * 64)])
    assert "was trained on other photos or splits" in capsys.readouterr().out
    with pytest.raises(InputError, match="is none of stage 2 or 3"):
        chosen_weights(data, [save(checkout / "four.pth", data, 4, 0)])
    with pytest.raises(InputError, match="does not exist"):
        chosen_weights(data, [checkout / "missing.pth"])


def test_the_default_dataset_is_synthetic_else_the_newest(checkout):
    for number, name in enumerate(("a", "b")):
        write_json(checkout / "metadata" / name / "dataset.json", {})
        write_json(checkout / "metadata" / name / SPLITS, {})
        os.utime(checkout / "metadata" / name / SPLITS, (number, number))
    assert default_dataset() == "shapes"
    os.utime(checkout / "metadata" / "b" / SPLITS)
    assert default_dataset() == "b"
    write_json(checkout / "metadata" / "synthetic" / "dataset.json", {})
    assert default_dataset() == "b"  # its preparation is not finished
    write_json(checkout / "metadata" / "synthetic" / SPLITS, {})
    assert default_dataset() == "synthetic"


def test_without_a_dataset_the_commands_that_make_one_are_named(checkout, monkeypatch):
    monkeypatch.setattr(loading, "ROOT", checkout / "empty")
    with pytest.raises(InputError, match=r"no dataset is prepared.*run_all.sh --dataset folder --data_root FOLDER"):
        default_dataset()


def test_several_checkpoints_on_the_command_line(tmp_path):
    config = parse_config(app.Config, None, ["--ckpt", "a.pth", "b.pth", "--port", "0"])
    assert [path.name for path in config.ckpt] == ["a.pth", "b.pth"]
    assert parse_config(app.Config, None, []).ckpt == ()
    with pytest.raises(SystemExit):
        parse_config(app.Config, None, ["--ckpt"])


def test_without_gradio_the_way_out_is_named(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else found(name))
    with pytest.raises(InputError, match=r"bash set_up\.sh app"):
        app.main(app.Config())
