import os
import shutil
import sys

import pytest
import torch
from app.gallery_of_shapes import IMAGES, draw_photos, make_index, random_clip

from clipfh.app import __main__ as app
from clipfh.app import indexed
from clipfh.app.indexed import MAX_CATEGORIES, IndexFlags, load_index
from clipfh.app.search import Query
from clipfh.core.cli import parse_config
from clipfh.core.errors import InputError
from clipfh.index.engine import Match, Origin
from clipfh.models.checkpoint import write_checkpoint
from clipfh.models.clip import load_clip


@pytest.fixture(scope="module", params=["faiss", "milvus"])
def made(request, tmp_path_factory):
    """The photos' folder, the index's URI, and the checkpoint that made it."""
    photos = tmp_path_factory.mktemp("indexed") / "photos"
    draw_photos(photos)
    return photos, *make_index(photos, request.param)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The folder of stage 2's checkpoints, of a project that has run nothing."""
    monkeypatch.setattr(indexed, "stage_dir", lambda stage: tmp_path / "model" / str(stage))
    folder = tmp_path / "model" / "2" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def save(path, seed):
    torch.manual_seed(seed)
    clip = load_clip("tiny-rn", "random", image_size=32)
    write_checkpoint(path, {**clip.architecture(), "state_dict": clip.model.state_dict()})


def test_the_fitting_checkpoint_is_found_among_the_runs_by_its_weights(made, runs, capsys):
    photos, uri, checkpoint = made
    shutil.copy(checkpoint, runs / "fits_BEST.pth")
    save(runs / "other_BEST.pth", seed=1)
    (runs / "damaged_BEST.pth").write_text("no checkpoint")
    for seconds, name in enumerate(("fits_BEST.pth", "other_BEST.pth", "damaged_BEST.pth")):
        os.utime(runs / name, (seconds, seconds))
    gallery = load_index(IndexFlags(index=uri), None, "cpu")
    said = capsys.readouterr().out
    assert "the weights of the index: " in said and "fits_BEST.pth" in said and "passed over" in said
    assert gallery.source.root == photos  # as it was when the features were made
    assert gallery.stages[0].title == "fits_BEST" and gallery.size == "28 photos" and gallery.prompts == {}
    assert gallery.search(Query((IMAGES[3],)), 0, 1)[0].photo == IMAGES[3]


def test_without_a_fitting_one_the_weights_are_named(made, runs):
    save(runs / "other_BEST.pth", seed=1)
    with pytest.raises(
        InputError, match=r"made by weights \w{12} \(tiny-rn\), and no checkpoint .* name it with --ckpt"
    ):
        load_index(IndexFlags(index=made[1]), None, "cpu")


def test_other_weights_are_refused_as_by_the_commands_of_the_index(made, runs):
    save(runs / "other.pth", seed=1)
    with pytest.raises(InputError, match=r"the query was made by weights \w{12} .* not by .* or build another index"):
        load_index(IndexFlags(index=made[1]), runs / "other.pth", "cpu")
    with pytest.raises(InputError, match="the query was made by weights"):
        load_index(IndexFlags(index=made[1], model="tiny-rn", pretrained="random"), None, "cpu")


def test_photos_that_were_moved_are_named_or_plain(made, tmp_path, capsys):
    photos, uri, checkpoint = made
    shutil.copytree(photos, tmp_path / "moved")
    gallery = load_index(IndexFlags(index=uri, image_dir=str(tmp_path / "moved")), checkpoint, "cpu")
    assert gallery.source.root == tmp_path / "moved"
    with pytest.raises(InputError, match="does not exist; give it with --image_dir"):
        load_index(IndexFlags(index=uri, image_dir=str(tmp_path / "gone")), checkpoint, "cpu")
    photos.rename(photos.with_name("away"))
    try:
        gallery = load_index(IndexFlags(index=uri), checkpoint, "cpu")
        assert "photos is not there); name their folder or URI with --image_dir" in capsys.readouterr().out
        assert gallery.source is None and gallery.search(Query(text="a red square"), 0, 1)
    finally:
        photos.with_name("away").rename(photos)


class Endless:
    """An index of a million photos that counts what it is asked for."""

    def __init__(self):
        self.model, self.asked = indexed.model_of(random_clip("tiny-rn")), []

    def info(self):
        return {"count": 1_000_000, "kind": "flat"}

    def origin(self):
        return Origin(self.model, "")

    def categories(self, limit):
        return [f"{number:06d}" for number in range(limit)]

    def search(self, model, vectors, k, *, category=None):
        assert model == self.model and vectors.shape == (1, 256)
        self.asked.append((k, category))
        return [[Match(f"{place}.jpg", "", 1 - place / 1e6) for place in range(k)]]


def test_of_a_million_photos_no_more_is_asked_for_than_is_shown(runs, monkeypatch, capsys):
    endless, checkpoint = Endless(), runs / "clip_BEST.pth"
    monkeypatch.setattr(indexed, "open_engine", lambda uri: endless)
    clip = random_clip("tiny-rn")
    write_checkpoint(checkpoint, {**clip.architecture(), "state_dict": clip.model.state_dict()})
    gallery = load_index(IndexFlags(index="http://127.0.0.1:1"), None, "cpu")
    assert gallery.size == "1,000,000 photos" and gallery.name == "http://127.0.0.1:1"
    assert len(gallery.categories) == MAX_CATEGORIES
    assert f"more than {MAX_CATEGORIES} categories" in capsys.readouterr().out
    vector = gallery.encode(Query(text="a mug"), 0)
    first = gallery.nearest(vector, 0, 12, ("000007",))
    second = gallery.nearest(vector, 0, 12, ("000007",), [hit.photo for hit in first])
    assert endless.asked == [(12, "000007"), (24, "000007")] and second[0].photo == "12.jpg"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--image_dir", "photos"], "are of an index: add --index"),
        (["--model", "tiny-rn"], "are of an index: add --index"),
        (["--index", "an_index", "--dataset", "shapes"], "leave --dataset and --photos out"),
        (["--index", "an_index", "--photos", "all"], "leave --dataset and --photos out"),
        (["--index", "an_index", "--ckpt", "a.pth", "b.pth"], "give one --ckpt, or none"),
        (["--index", "ftp://host"], "is no index"),
        (["--index", "an_index"], "there is no index in"),
        (["--index", "an_index.db"], "there is no index an_index.db"),
    ],
)
def test_flags_that_cannot_go_together_are_told(flags, says, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="needs the extra `app`")
    pytest.importorskip("faiss", reason="needs the extra `scale`")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=says):
        app.main(parse_config(app.Config, None, flags))


def test_without_the_packages_of_an_index_the_set_up_is_named(tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="needs the extra `app`")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"faiss-cpu; install it with: bash set_up\.sh scale"):
        app.main(parse_config(app.Config, None, ["--index", str(tmp_path)]))
