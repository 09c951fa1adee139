"""The log of a run."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clipfh.core.cli import jsonable
from clipfh.core.errors import InputError
from clipfh.core.run import environment
from clipfh.core.run_log import STEPS_AT_ONCE, RunLog


@dataclass(frozen=True)
class Config:
    lr: float = 0.1
    folder: Path | None = Path("a/b")
    ckpt: Path | None = None


def test_images_are_shown_in_tensorboard(tmp_path):
    log = RunLog(tmp_path, Config())
    log.image("samples", np.zeros((4, 6, 3), np.uint8), 2)
    log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    (image,) = events.Images("samples")
    assert (image.step, image.width, image.height) == (2, 6, 4)


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
        "from clipfh.core.run_log import RunLog; from dataclasses import dataclass; from pathlib import Path\n"
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


def test_ctrl_c_waits_until_tensorboard_has_its_values(tmp_path, monkeypatch):
    log = RunLog(tmp_path, Config())
    add, added = log._tensorboard.add_scalar, []

    def interrupted(name, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        added.append(name)
        add(name, *args, **kwargs)

    monkeypatch.setattr(log._tensorboard, "add_scalar", interrupted)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            log.epoch({"epoch": 1, "loss": 1.0, "val": 0.5})
        assert added == ["epoch/loss", "epoch/val"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, previous)
    monkeypatch.undo()
    log.close()
    assert EventAccumulator(str(tmp_path)).Reload().Scalars("epoch/val")[0].value == 0.5
