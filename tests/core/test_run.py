import json
import random
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clipfh.core import run
from clipfh.core.errors import InputError
from clipfh.core.run import (
    STEPS_AT_ONCE,
    RunLog,
    autocast,
    environment,
    git_commit,
    jsonable,
    new_run_folder,
    pick_device,
    random_state,
    rank_and_world_size,
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


def test_rank_and_world_size(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert rank_and_world_size() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(InputError, match="WORLD_SIZE is 4"):
        rank_and_world_size()


@pytest.mark.parametrize(
    ("rank", "world_size"), [("abc", "1"), ("0", ""), ("1.5", "2"), ("-1", "1"), ("1", "1"), ("9" * 5000, "1")]
)
def test_environment_variables_that_are_no_ranks(monkeypatch, rank, world_size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(InputError, match="RANK") as refused:
        rank_and_world_size()
    assert len(str(refused.value)) < 300 or rank.isdigit()


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


@dataclass(frozen=True)
class Config:
    lr: float = 0.1
    folder: Path | None = Path("a/b")
    ckpt: Path | None = None


def test_config_as_json():
    assert json.loads(json.dumps(jsonable(Config()))) == {"lr": 0.1, "folder": "a/b", "ckpt": None}


@dataclass(frozen=True)
class Nested:
    inner: Config = Config()
    seed: int = 3


def test_sections_of_a_config_are_named_as_their_flags():
    assert jsonable(Nested()) == {"inner.lr": 0.1, "inner.folder": "a/b", "inner.ckpt": None, "seed": 3}


def test_images_are_shown_in_tensorboard(tmp_path):
    log = RunLog(tmp_path, Config())
    log.image("samples", np.zeros((4, 6, 3), np.uint8), 2)
    log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    (image,) = events.Images("samples")
    assert (image.step, image.width, image.height) == (2, 6, 4)


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
    assert values.keys() == {"python", "packages", "platform", "threads", "cuda", "git_commit", "command"}
    assert values["packages"]["torch"] and values["packages"]["open_clip_torch"]
    assert not Path(values["command"][0]).is_absolute()
    json.dumps(values)


def test_run_log_leaves_its_files(tmp_path, capsys):
    folder = tmp_path / "logs" / "run"
    log = RunLog(folder, Config(), extra={"num_images": 7})
    log.say("training starts")
    log.step(1, {"loss": 2.0})
    log.epoch({"epoch": 1, "loss": 2.0, "note": "text"})
    assert (folder / "metrics.jsonl").read_text().count("\n") == 1  # at once: a run may be killed
    log.epoch({"epoch": 2, "loss": 1.0, "note": "text"})
    log.close()
    assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == [
        {"epoch": 1, "loss": 2.0, "note": "text"},
        {"epoch": 2, "loss": 1.0, "note": "text"},
    ]
    assert (folder / "train.log").read_text().endswith(" training starts\n")
    assert capsys.readouterr().out == "training starts\n"
    recorded = json.loads((folder / "config.json").read_text())
    assert recorded.keys() == {"config", "num_images", *environment()}
    assert recorded["config"] == jsonable(Config()) and recorded["num_images"] == 7
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1


def scalars(folder, name):
    events = EventAccumulator(str(folder)).Reload().Scalars(name)
    return [(event.step, event.value) for event in events]


@pytest.mark.parametrize("steps", [3, STEPS_AT_ONCE, STEPS_AT_ONCE + 3])
def test_steps_are_written_some_at_once(tmp_path, steps):
    log = RunLog(tmp_path, Config())
    for step in range(steps):
        loss = torch.tensor(float(step), requires_grad=True)
        log.step(step, {"loss": loss * 2, "lr": 0.5, "norm": torch.tensor(step, dtype=torch.bfloat16)})
    log.close()
    assert scalars(tmp_path, "step/loss") == [(step, 2.0 * step) for step in range(steps)]
    assert scalars(tmp_path, "step/lr") == [(step, 0.5) for step in range(steps)]
    assert len(scalars(tmp_path, "step/norm")) == steps


def test_a_log_is_closed_where_a_run_is_stopped(tmp_path):
    script = (
        "from clipfh.core.run import RunLog; from dataclasses import dataclass; from pathlib import Path\n"
        "@dataclass\nclass Config: lr: float = 1.0\n"
        f"log = RunLog(Path({str(tmp_path)!r}), Config()); log.step(7, {{'loss': 3.0}}); raise SystemExit(130)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 130
    assert scalars(tmp_path, "step/loss") == [(7, 3.0)]


def test_a_resumed_run_appends_and_two_logs_stay_apart(tmp_path):
    logs = [RunLog(tmp_path / name, Config()) for name in ("a", "b")]
    for number, log in enumerate(logs):
        log.say(f"run {number}")
        log.epoch({"epoch": 1})
        log.close()
    again = RunLog(tmp_path / "a", Config())
    again.say("resumed")
    again.epoch({"epoch": 2})
    again.close()
    lines = [line.split(" ", 2)[2] for line in (tmp_path / "a" / "train.log").read_text().splitlines()]
    assert lines == ["run 0", "resumed"]
    assert (tmp_path / "a" / "metrics.jsonl").read_text().count("epoch") == 2
    assert "run 0" not in (tmp_path / "b" / "train.log").read_text()


EPOCHS = [{"epoch": number, "loss": number / 10} for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("written", "end", "last_row", "expected"),
    [
        (EPOCHS[:2], "", EPOCHS[1], EPOCHS[:2]),  # killed within epoch 3
        (EPOCHS[:1], "", EPOCHS[1], EPOCHS[:2]),  # killed between the checkpoint of epoch 2 and its line
        (EPOCHS[:1], '{"epoch": 2, "lo', EPOCHS[1], EPOCHS[:2]),  # ... and within its line
        (EPOCHS, "", EPOCHS[1], EPOCHS[:2]),  # of a version that wrote the line first
        (EPOCHS[:1], "", {}, []),  # killed before the first checkpoint
        (EPOCHS[:1], "", None, EPOCHS[:1]),
    ],
)
def test_the_log_of_a_continued_run_ends_with_the_row_of_its_checkpoint(tmp_path, written, end, last_row, expected):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in written) + end)
    log = RunLog(tmp_path, Config(), last_row=last_row)
    log.epoch({"epoch": 9})
    log.close()
    assert [json.loads(line) for line in path.read_text().split("\n")[:-1]] == [*expected, {"epoch": 9}]


def test_the_rows_of_two_gans_are_kept_apart(tmp_path):
    rows = [{"gan": name, "epoch": epoch} for name in ("img2text", "text2img") for epoch in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = RunLog(tmp_path, Config(), last_row=rows[2])
    log.close()
    assert log.epochs() == rows[:3]
    log = RunLog(tmp_path, Config(), last_row={"gan": "text2img", "epoch": 0})
    log.close()
    assert log.epochs() == rows[:2]


@pytest.mark.parametrize("line", ["[]", "{}", "nonsense", '{"epoch": "1"}', "[" * 100_000, '{"epoch": NaN}', "\0"])
def test_a_log_that_is_none(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n")
    with pytest.raises(InputError, match=r"metrics.jsonl is not the log of a run"):
        RunLog(tmp_path, Config(), last_row=EPOCHS[0])


def test_a_line_of_the_log_ends_with_a_line_feed_alone(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "note": "a\u2028b\x85c"}\n', encoding="utf-8")
    log = RunLog(tmp_path, Config())
    log.close()
    assert log.epochs() == [{"epoch": 1, "note": "a\u2028b\x85c"}]


def test_other_ranks_write_nothing(tmp_path, capsys):
    log = RunLog(tmp_path / "run", Config(), rank=1)
    log.say("hello")
    log.step(1, {"loss": 1.0})
    log.epoch({"epoch": 1})
    log.close()
    assert not (tmp_path / "run").exists() and capsys.readouterr().out == ""


def test_a_log_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write the log folder .*Choose another --log_dir"):
        RunLog(tmp_path / "file" / "run", Config())
