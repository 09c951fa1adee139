"""The command line: a fine-tuned checkpoint's photos found by a photo and by words, and messages for wrong input."""

import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("faiss", reason="the extra `scale` is not installed")

from clipfh.index import packages
from clipfh.index.__main__ import main
from clipfh.models.checkpoint import write_checkpoint
from clipfh.models.clip import load_clip


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line; what it printed, and its exit code where it ended the process."""

    def run(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["index", *map(str, arguments)])
        if code:
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == code
        else:
            main()
        captured = capsys.readouterr()
        return captured.err.strip() if code else captured.out

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of photos and a checkpoint of random weights."""
    folder, generator = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    for number in range(6):
        path = folder / "photos" / f"item{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    clip = load_clip("tiny-vit", "random")
    write_checkpoint(folder / "clip.pth", {**clip.architecture(), "state_dict": clip.model.state_dict()})
    return folder


def test_from_photos_to_an_answer(run, made, tmp_path):
    model = ("--ckpt", made / "clip.pth", "--device", "cpu")
    run("extract", "--images", made / "photos", "--out", tmp_path / "features", *model)
    index = ("--index", tmp_path / "index")
    assert "count 6" in run("build", "--features", tmp_path / "features", *index)
    answer = run("search", "--image", made / "photos" / "item1" / "3.png", "--k", 3, *model, *index).splitlines()
    assert answer[0] == "rank\tid\titem_id\tsimilarity" and len(answer) == 4
    assert answer[1] == "1\titem1/3.png\titem1\t1.0000"
    by_words = run("search", "--text", "a mug", *model, *index).splitlines()
    assert len(by_words) == 7
    both = run("search", "--text", "a mug", "--image", made / "photos" / "item1" / "3.png", *model, *index)
    assert float(both.splitlines()[1].split("\t")[3]) < 1
    assert "deleted 1 photos; 1 of the ids" in run("delete", "--ids", ids_file(tmp_path, "item1/3.png\ngone\n"), *index)
    assert "item1/3.png" not in run("search", "--text", "a mug", *model, *index)
    assert "added 1 photos, replaced 5" in run("add", "--features", tmp_path / "features", *index)
    assert "count 6, dimension 256, kind flat, model tiny-vit" in run("info", *index)
    other = run("search", "--text", "a mug", "--model", "tiny-vit", "--pretrained", "random", *index, code=2)
    assert "the query was made by weights" in other and "build another index" in other


def test_features_are_extracted_into_their_own_folder_again(run, made, tmp_path):
    arguments = ("--images", made / "photos", "--out", tmp_path, "--ckpt", made / "clip.pth", "--device", "cpu")
    (tmp_path / ".DS_Store").write_text("")
    run("extract", *arguments)
    assert "shards: 1 of 1 are there already" in run("extract", *arguments)


def ids_file(folder, text):
    (folder / "ids.txt").write_text(text)
    return folder / "ids.txt"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "no command: give one of extract, search"),
        (("find",), "find: give one of extract, search"),
        (("extract",), "which photos? Give --images"),
        (("extract", "--images", "{photos}"), "which model? Give --ckpt FILE, or --model"),
        (("extract", "--images", "{photos}", "--ckpt", "{tmp}/gone.pth"), "gone.pth does not exist"),
        (
            ("extract", "--images", "{photos}", "--out", "{photos}"),
            "holds no features and is not empty (there is item0)",
        ),
        (("build", "--index", "{tmp}/index", "--features", "{tmp}/gone"), "Make it with: python -m clipfh.index ex"),
        (("build", "--index", "ftp://host", "--features", "{tmp}/gone"), "'ftp://host' is no index"),
        (("build", "--kind", "tree"), "invalid choice: 'tree'"),
        (("info",), "which index? Give --index"),
        (("info", "--index", "{tmp}/gone"), "there is no index in"),
        (("info", "--index", "{photos}"), "there is no index in"),
        (("delete", "--index", "{tmp}/gone"), "what is to be deleted? Give --id"),
        (("search", "--index", "{tmp}/gone"), "what is searched for? Give --image FILE, --text WORDS, or both"),
        (("search", "--index", "{tmp}/gone", "--text", " "), "what is searched for? Give --image FILE, --text WORDS"),
        (("search", "--index", "{tmp}/gone", "--image", "{tmp}/gone.jpg"), "--image"),
        (("search", "--index", "{tmp}/gone", "--text", "a mug"), "there is no index in"),
        (("search", "--index", "{tmp}/gone", "--text", "a mug", "--k", "0"), "it must be at least 1"),
    ],
)
def test_wrong_input_is_one_line_that_says_the_way_out(run, made, tmp_path, arguments, says):
    filled = [argument.format(photos=made / "photos", tmp=tmp_path) for argument in arguments]
    message = run(*filled, code=2)
    assert message.startswith("error: ") and "\n" not in message
    assert says in message, message


def test_without_the_packages_the_set_up_is_named(run, tmp_path, monkeypatch):
    def lacks(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(packages.importlib, "import_module", lacks)
    assert "faiss-cpu; install it with: bash set_up.sh scale" in run("info", "--index", tmp_path, code=2)
    assert "pymilvus; install it with: bash set_up.sh scale" in run("info", "--index", "http://localhost", code=2)


@pytest.mark.parametrize("command", ["extract", "build", "add", "delete", "search", "info"])
def test_every_command_has_its_help(run, monkeypatch, capsys, command):
    monkeypatch.setattr(sys, "argv", ["index", command, "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert f"clipfh.index {command}" in capsys.readouterr().out
