import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from clipfh.core.errors import InputError
from clipfh.core.files import write_json
from clipfh.core.paths import ROOT
from clipfh.prompts.files import write_prompts
from clipfh.prompts.tokens import clip_tokenizer
from clipfh.tables import prepared
from clipfh.tables.prepared import (
    PREPROCESSING,
    PreparedDataset,
    load_prepared,
    load_prompts,
    prepare_default,
    prepare_weights,
    say_cut_prompts,
)
from clipfh.tables.records import make_table, write_image_meta

TABLE = make_table(
    [("a/1", "a", "query", "x"), ("a/2", "a", "gallery", "y"), ("b/1", "b", "train", ""), ("c/1", "c", "val", "")]
)


@pytest.fixture
def folder(tmp_path):
    write_json(tmp_path / "dataset.json", {"name": "mugs", "image_dir": "data/raw/mugs", "exclude_same_camera": True})
    write_image_meta(tmp_path / "image_paths.json", TABLE)
    write_prompts(tmp_path / "prompts.json", {"a": ["one", "two"], "b": "three"})
    return tmp_path


def test_a_prepared_dataset(folder):
    data = load_prepared("mugs", folder=folder)
    assert (data.name, data.folder, data.image_dir) == ("mugs", folder, ROOT / "data" / "raw" / "mugs")
    assert data.exclude_same_camera is True and data.table.equals(TABLE)
    rows = data.rows("query", "val")
    assert rows["image"].tolist() == ["a/1", "c/1"] and rows.index.tolist() == [0, 1]


def test_flags_come_first(folder, tmp_path):
    other = tmp_path / "other.json"
    write_image_meta(other, TABLE.iloc[:2])
    data = load_prepared("x", folder=folder, image_dir=Path("here"), image_meta=other, exclude_same_camera=False)
    assert (data.name, data.image_dir, len(data.table), data.exclude_same_camera) == ("x", Path("here"), 2, False)
    assert not data.own_protocol
    assert load_prepared("x", folder=folder, image_meta=other, exclude_same_camera=True).own_protocol
    # the table's own file may be given as the folder
    data = load_prepared("x", folder=other)
    assert data.folder == folder and len(data.table) == 2 and data.exclude_same_camera is True


def test_an_absolute_image_folder_stays_absolute(folder):
    write_json(folder / "dataset.json", {"image_dir": "/photos"})
    data = load_prepared("mugs", folder=folder)
    assert data.image_dir == Path("/photos") and data.exclude_same_camera is False


def test_without_dataset_json_the_image_folder_has_to_be_given(folder):
    (folder / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"dataset.json does not exist. Make it with: the scripts of"):
        load_prepared("mugs", folder=folder)
    assert load_prepared("mugs", folder=folder, image_dir=folder).exclude_same_camera is False


@pytest.mark.parametrize("content", [{}, {"image_dir": None}, {"image_dir": 3}])
def test_dataset_json_without_an_image_folder(folder, content):
    write_json(folder / "dataset.json", content)
    with pytest.raises(InputError, match=r"dataset.json names no image_dir \(.*\); give --image_dir"):
        load_prepared("mugs", folder=folder)


def test_missing_and_malformed_files(folder, tmp_path):
    (folder / "image_paths.json").unlink()
    with pytest.raises(InputError, match=r"image_paths.json does not exist. .*00_prepare_dataset.py"):
        load_prepared("mugs", folder=folder)
    with pytest.raises(InputError, match=r"gone.json does not exist"):
        load_prepared("mugs", folder=folder, image_meta=tmp_path / "gone.json")
    (folder / "dataset.json").write_text("{")
    with pytest.raises(InputError, match=r"dataset.json, line 1"):
        load_prepared("mugs", folder=folder)


def test_a_dataset_that_is_not_prepared_is_said_with_a_command_that_makes_it(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "ROOT", tmp_path)
    monkeypatch.setattr(prepared, "metadata_dir", lambda name: tmp_path / "metadata" / name)
    for name in ("mugs", "cups"):
        (tmp_path / "metadata" / name).mkdir(parents=True)
        write_json(tmp_path / "metadata" / name / "dataset.json", {"image_dir": "photos"})
    says = r"no dataset 'nope' is prepared \(.*nope/dataset.json does not exist\); there is cups, mugs. .*inshop,"
    with pytest.raises(InputError, match=says):
        load_prepared("nope")
    with pytest.raises(InputError, match=r"Make it with: bash run_all.sh --dataset inshop --data_root DIR"):
        load_prepared("inshop")


def test_prompts(folder):
    data = load_prepared("mugs", folder=folder)
    assert load_prompts(data, None, "prompts.json", "query", "gallery") == {"a": ["one", "two"]}
    assert load_prompts(data, folder / "prompts.json", "gone.json", "train") == {"b": ["three"]}
    with pytest.raises(InputError, match=r"prompts.json: 1 of 2 identities without prompt: c"):
        load_prompts(data, None, "prompts.json", "train", "val")
    with pytest.raises(InputError, match=r"gone\.json"):
        load_prompts(data, None, "gone.json", "train")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty checkout, and the commands that would be run in it."""
    commands = []

    def run(command):
        commands.append(command)
        return SimpleNamespace(returncode=3 if "02_" in command[1] and run.fails else 0)

    run.fails = False
    monkeypatch.setattr(prepared, "metadata_dir", lambda name: tmp_path / "metadata" / name)
    monkeypatch.setattr(prepared, "stage_dir", lambda stage: tmp_path / f"stage{stage}")
    monkeypatch.setattr(prepared.subprocess, "run", run)
    return SimpleNamespace(root=tmp_path, commands=commands, run=run)


def test_what_the_default_lacks_is_made(checkout):
    prepare_default()
    prepare_weights("tiny-rn")
    assert all(command[0] == sys.executable for command in checkout.commands)
    assert [Path(command[1]).name for command in checkout.commands] == [*PREPROCESSING, "pretrain_tiny_clip.py"]
    assert all((ROOT / "preprocessing" / name).is_file() for name in PREPROCESSING)
    assert checkout.commands[-1][2:] == ["--model", "tiny-rn"]


def test_what_is_there_is_left_alone(checkout):
    for name in ("dataset.json", prepared.CLEAN_PROMPTS, prepared.TOKEN_SAFE_PROMPTS, prepared.SPLITS):
        write_json(checkout.root / "metadata" / "synthetic" / name, {})
    for model, pretrained in (("", None), ("ViT-B/32", None), ("tiny-rn", "random")):
        prepare_default()
        prepare_weights(model, pretrained)
    assert checkout.commands == []
    prepare_default()
    prepare_weights("tiny-rn")
    assert len(checkout.commands) == 1
    write_json(checkout.root / "stage0" / "checkpoints" / "tiny-rn_1.pth", {})
    prepare_default()
    prepare_weights("tiny-rn")
    assert len(checkout.commands) == 1


def test_a_script_that_fails_stops_the_preparation(checkout):
    checkout.run.fails = True
    with pytest.raises(InputError, match=r"preprocessing/02_analyze_prompt_consistency.py failed"):
        prepare_default()
    assert len(checkout.commands) == 3


def test_prompts_that_the_tokenizer_will_cut_are_counted(tmp_path, capsys):
    table = make_table([("a.jpg", "1", "train", ""), ("b.jpg", "2", "train", "")])
    data = PreparedDataset("d", tmp_path, tmp_path, table, False, "")
    write_prompts(tmp_path / "prompts.json", {"1": ["a red dress", "red " * 80], "2": "a blue dress"})
    prompts = load_prompts(data, tmp_path / "prompts.json", "unused", "train")
    say_cut_prompts(prompts, clip_tokenizer(), "ViT-B-16")
    assert "note: 1 prompts are longer than the 77 tokens of ViT-B-16" in capsys.readouterr().out
