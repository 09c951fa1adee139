"""Trainings in several processes: they are one training."""

import json
import time
from pathlib import Path

import pytest
import torch
from stage_project import EVAL2, NAME, STAGE2, STAGE3, load

HERE = Path(__file__).parent
STAGE4 = "model/stage4_frozen_text_alignment/train_frozen_text_alignment.py"
SMALL = ("--p", 4, "--k", 2, "--precision", "float32", "--hold_statistics")


def ended_well(results) -> None:
    for result in results:
        assert result.returncode == 0, f"{result.args}\n{result.stdout}\n{result.stderr}"


def together(project, count: int, script: str, folder: Path, *flags: object) -> Path:
    """Train in `count` processes; the folder of the one run's checkpoints and log."""
    where = ("--dataset", NAME, "--save_path", folder, "--log_dir", folder)
    results = project.server.run_together(count, script, *where, *flags)
    ended_well(results)
    assert "BEST" in results[0].stdout
    assert not any(result.stdout for result in results[1:])
    return folder


def rows(folder: Path) -> list[dict]:
    (log,) = folder.glob("*/metrics.jsonl")
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def require_same_run(folder: Path, expected: Path) -> None:
    """Of the same figures, epoch for epoch, and the same BEST epoch."""
    assert len(rows(folder)) == len(rows(expected)) > 1
    for found, wanted in zip(rows(folder), rows(expected), strict=True):
        assert found.keys() == wanted.keys()
        for name in wanted.keys() - {"seconds"}:
            assert found[name] == pytest.approx(wanted[name], abs=2e-3), name
    (best,), (wanted,) = (list(place.glob("*_BEST.pth")) for place in (folder, expected))
    assert load(best)["epoch"] == load(wanted)["epoch"]


@pytest.mark.parametrize(
    ("stage", "chunk"),
    [("stage2_img_encoder_finetune", 0), ("stage3_joint_img_text_finetune", 0), ("stage3_joint_img_text_finetune", 1)],
)
def test_gradients_are_those_of_one_process(project, tmp_path, stage, chunk):
    found = {}
    for count in (1, 2, 4):
        out = tmp_path / f"{count}.pth"
        script = HERE / "step_of_processes.py"
        ended_well(project.server.run_together(count, script, project.root / "model" / stage, chunk, out))
        found[count] = torch.load(out, weights_only=True)
    wanted = found.pop(1)
    assert all(gradient.abs().max() > 0 for gradient in wanted["gradients"].values())
    for several in found.values():
        for kind in ("terms", "gradients", "buffers"):
            assert several[kind].keys() == wanted[kind].keys() and (several[kind] or kind == "buffers")
            for name, value in wanted[kind].items():
                torch.testing.assert_close(several[kind][name], value, rtol=1e-5, atol=1e-5, msg=f"{kind} {name}")


@pytest.mark.parametrize("script", [STAGE2, STAGE3])
def test_a_run_of_two_processes_is_that_of_one(project, tmp_path, script):
    folders = [together(project, count, script, tmp_path / str(count), *SMALL, "--epochs", 3) for count in (1, 2)]
    require_same_run(folders[1], folders[0])


def test_stage4_in_two_processes_is_that_of_one(project, tmp_path):
    flags = ("--smoke", "--image_encoder", "clip", "--model", "tiny-vit", "--pretrained", "random", "--baseline")
    found = []
    for count in (1, 2):
        where = ("--save_path", tmp_path / str(count), "--log_dir", tmp_path / str(count))
        ended_well(project.server.run_together(count, STAGE4, *flags, *where, "--precision", "float32"))
        found.append(tmp_path / str(count))
    require_same_run(found[1], found[0])


def test_the_death_of_one_process_ends_all_and_the_run_goes_on_in_another_number(project, tmp_path):
    flags = (*SMALL, "--epochs", 3)
    whole = together(project, 1, STAGE2, tmp_path / "whole", *flags)
    stopped = tmp_path / "stopped"
    where = ("--dataset", NAME, "--save_path", stopped, "--log_dir", stopped)
    killed = []

    def after_an_epoch() -> bool:
        if list(stopped.glob("*_LAST.pth")):
            killed.append(time.monotonic())
        return bool(killed)

    survivor, dead = project.server.run_together(2, STAGE2, *where, *flags, kill_last_when=after_an_epoch)
    assert time.monotonic() - killed[0] < 30
    assert dead.returncode == -9 and survivor.returncode == 2
    said = survivor.stderr.strip().splitlines()
    assert len([line for line in said if line.strip()]) == 1, survivor.stderr
    assert "another process of this run has ended" in said[-1] and "--resume_ckpt" in said[-1]
    (last,) = stopped.glob("*_LAST.pth")
    together(project, 1, STAGE2, stopped, *flags, "--resume_ckpt", last)
    require_same_run(stopped, whole)


def test_batch_norms_that_learn_statistics_are_refused_on_cpus(project, tmp_path):
    flags = ("--dataset", NAME, "--smoke", "--no-hold_statistics", "--save_path", tmp_path, "--log_dir", tmp_path)
    results = project.server.run_together(2, STAGE2, *flags)
    assert [result.returncode for result in results] == [2, 2]
    said = "".join(result.stderr for result in results)
    assert said.count("error: ") == 1 and "--hold_statistics" in said  # what all meet is told once


def test_mistakes_of_the_command_line_are_told_once(project):
    results = project.server.run_together(2, STAGE2, "--dataset", NAME, "--p", "many")
    assert [result.returncode for result in results] == [2, 2]
    assert "".join(result.stderr for result in results).count("error: ") == 1


@pytest.mark.parametrize("script", ["model/stage5_text_image_gan/train.py", EVAL2])
def test_scripts_that_know_one_process_say_so(project, script):
    results = project.server.run_together(2, script)
    said = "".join(result.stderr for result in results)
    assert said.count("error: ") == 1 and "WORLD_SIZE is 2" in said
