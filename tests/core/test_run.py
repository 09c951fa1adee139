import json
import random
import subprocess
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from clipfh.core import run
from clipfh.core.errors import InputError
from clipfh.core.run import (
    autocast,
    environment,
    git_commit,
    new_run_folder,
    pick_device,
    random_state,
    restore_random_state,
    seed_everything,
)
from clipfh.models.checkpoint import read_checkpoint, write_checkpoint


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(2).tolist()


def test_a_seed_repeats_every_generator_and_ranks_differ():
    seed_everything(3)
    first = draw()
    seed_everything(3)
    assert draw() == first
    for seed, rank in ((4, 0), (3, 1)):
        seed_everything(seed, rank)
        assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_random_state_continues_from_a_checkpoint(tmp_path):
    seed_everything(0)
    draw()  # leaves half a Gaussian pair behind in two of the generators
    write_checkpoint(tmp_path / "a.pth", {"random": random_state()})
    expected = [draw() for _ in range(3)]
    seed_everything(99)
    restore_random_state(read_checkpoint(tmp_path / "a.pth")["random"])
    assert [draw() for _ in range(3)] == expected


@pytest.mark.parametrize("name", ["meta", "cpu:5", "cpu:-1", "privateuseone", "hpu", "", "x" * 1000])
def test_devices_that_compute_nothing(name):
    with pytest.raises(InputError, match=r"cannot be used here .*try auto or cpu") as refused:
        pick_device(name)
    assert len(str(refused.value)) < 300


def test_pick_device(monkeypatch):
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(InputError, match=r"--device graphics cannot be used here .*try auto or cpu"):
        pick_device("graphics")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("name", ["cuda", "cuda:9"])
def test_a_device_that_is_not_there(name):
    with pytest.raises(InputError, match=f"--device {name} cannot be used here"):
        pick_device(name)


@pytest.mark.parametrize(
    ("precision", "fast", "expected"),
    [
        ("float32", True, torch.float32),
        ("bfloat16", False, torch.bfloat16),
        ("auto", False, torch.float32),
    ],
)
def test_autocast(monkeypatch, precision, fast, expected):
    monkeypatch.setattr(run, "_cpu_has_bf16", lambda: fast)
    with autocast(torch.device("cpu"), precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected


def test_autocast_leaves_emulated_bfloat16_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    with autocast(torch.device("cuda"), "auto"):
        assert not torch.is_autocast_enabled("cuda")


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    class Clock(datetime):
        @classmethod
        def now(cls):
            return cls(2026, 3, 1, 9, 30)

    monkeypatch.setattr(run, "datetime", Clock)
    names = [new_run_folder(tmp_path / "logs", "clip_joint", "--log_dir").name for _ in range(3)]
    assert names == ["clip_joint_20260301_093000", "clip_joint_20260301_093000_2", "clip_joint_20260301_093000_3"]
    # logs apart, but checkpoints in one folder
    names = [
        new_run_folder(tmp_path / logs, "clip_joint", "--log_dir", checkpoints=tmp_path / "logs").name for logs in "ab"
    ]
    assert names == ["clip_joint_20260301_093000", "clip_joint_20260301_093000_2"]


def test_a_run_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"Choose another --log_dir"):
        new_run_folder(tmp_path / "file", "run", "--log_dir")


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_git_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None
    git(tmp_path, "init", "-q")
    assert git_commit() is None  # nothing committed yet
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "a")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_commit() == commit and len(commit) == 40
    (tmp_path / "a").write_text("2")
    assert git_commit() == f"{commit}+changes"
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None  # no git on this machine


def test_environment_names_what_it_takes_to_repeat_a_run():
    values = environment()
    assert values.keys() == {"python", "packages", "platform", "threads", "processes", "cuda", "git_commit", "command"}
    assert values["packages"]["torch"] and values["packages"]["open_clip_torch"]
    assert not Path(values["command"][0]).is_absolute()
    json.dumps(values)
