"""run_all.sh: its options, and the steps that they come to; the scripts are stand-ins."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from places import ROOT

from clipfh.captions.preparation import DATASETS as CAPTION_DATASETS
from clipfh.core.cli import parse_config, run_script
from clipfh.datasets import DATASET_NAMES
from clipfh.pipeline import options
from clipfh.pipeline import run_all as pipeline
from clipfh.pipeline.options import Options
from clipfh.pipeline.steps import Step

OPTIONS = (
    "dataset",
    "data_root",
    "captions",
    "captions_root",
    "faces",
    "model",
    "pretrained",
    "stages",
    "variant",
    "epochs",
    "seed",
    "seeds",
    "soup",
    "device",
    "force",
    "smoke",
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """run_all.sh in a folder with a blank in its name, where set-up is a stand-in."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    shutil.copy(ROOT / "run_all.sh", folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    found = f'if [ "${{1:-}}" = --find ]; then echo "{sys.executable}"; exit; fi\n'
    (folder / "set_up.sh").write_text(f'{found}touch set_up_was_called\necho "{sys.executable}"\n')
    return folder


def run_all(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The shell script itself."""
    command = ["bash", str(folder / "run_all.sh"), *arguments]
    return subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)


@pytest.fixture
def steps_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """What a command line comes to: the name of each step, with "(forced)", and its command."""
    (tmp_path / "my raw data").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "recorded", lambda log, pattern: [f"made/by_{log.name}_BEST.pth"])
    monkeypatch.setattr(pipeline, "end_on_signals", lambda: None)
    monkeypatch.setattr(pipeline.os, "chdir", lambda folder: None)
    monkeypatch.setattr(options, "ROOT", tmp_path)

    def steps(*arguments: str, fail_at: str = "") -> dict[str, str]:
        taken: dict[str, str] = {}

        def run_step(step: Step, *, force: bool = False) -> int:
            taken[step.name + ("(forced)" if force and step.name != "90_report" else "")] = " ".join(step.command)
            return 3 if step.name == fail_at else 0

        monkeypatch.setattr(pipeline, "run_step", run_step)
        steps.taken = taken
        pipeline.main(parse_config(Options, None, arguments))
        return taken

    return steps


def test_help_documents_every_option_without_set_up(checkout: Path) -> None:
    result = run_all(checkout, "--help")
    assert result.returncode == 0
    assert all(re.search(rf"^  --{option}[ ,]", result.stdout, re.MULTILINE) for option in OPTIONS)
    assert "--setup-only" in result.stdout
    assert not (checkout / "set_up_was_called").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--datasets synthetic", "unrecognized arguments: --datasets synthetic"),
        ("synthetic", "unrecognized arguments: synthetic"),
        ("--dataset inshp", "synthetic inshop hands11k hd market1501 grocery folder"),
        ("--dataset inshop", "--data_root"),
        ("--dataset inshop --data_root nowhere", "nowhere"),
        ("--dataset", "--dataset: expected one argument"),
        ("--dataset --smoke", "--dataset: expected one argument"),
        ("--data_root . --stages 1", "Is it another --dataset? Say so: --dataset folder, for your own photos"),
        ("--captions_root . --stages 4", "Is it another --captions? Say so: --captions jsonl"),
        ("--variant v5", "v1 v2 v3 v4"),
        ("--model tiny-vti", "small-clip, tiny-rn, tiny-vit"),
        ("--model small-clib", "small-clip, tiny-rn, tiny-vit"),
        ("--pretrained stage4 --stages 1", "stage 4 has made no small-clip yet"),
        ("--stages 6", "0 to 5"),
        ("--stages 3-1", "0 to 5"),
        ("--stages one", "0 to 5"),
        ("--stages ,", "0 to 5"),
        ("--captions cocoa", "synthetic coco flickr8k flickr30k grocery jsonl identities"),
        ("--captions coco --stages 4", "coco needs --captions_root"),
        ("--captions identities --captions_root . --stages 4", "leave --captions_root out"),
        ("--captions coco --captions_root nowhere --stages 4", "--captions_root: there is no folder nowhere"),
        ("--faces nowhere --stages 5", "nowhere"),
        ("--faces . --stages 0-4", "--faces is for stage 5"),
        ("--captions coco --captions_root .", "--captions is for stage 4"),
        ("--captions_root . --stages 1-3", "--captions_root is for stage 4"),
        ("--captions_val 9", "--captions_val is for stage 4"),
        ("--captions_test 9 --stages 5", "--captions_test is for stage 4"),
        ("--dataset inshop --stages 5", "--dataset is for stages 1 to 3, which --stages leaves out"),
        ("--data_root . --stages 0,4", "--data_root is for stages 1 to 3"),
        ("--captions identities --dataset hd --stages 5", "--dataset is for stages 1 to 4"),
        ("--no-exclude_same_camera --stages 4", "--exclude_same_camera is for stages 1 to 3"),
        ("--final_fit --stages 1,4", "--final_fit is for stages 2 and 3"),
        ("--variant v3 --stages 1-2", "--variant is for stage 3"),
        ("--epochs 3 --stages 1", "--epochs is for stages 2 to 5, which --stages leaves out"),
        ("--seed 5 --stages 0-1", "--seed is for stages 2 to 5"),
        ("--seed 0 --stages 1", "--seed is for stages 2 to 5"),
        ("--seeds 5 --stages 1", "--seeds is for stages 2 to 5"),
        ("--seeds 5x --stages 1", "--seeds 5x is not understood"),
        ("--stages 0-2 --model RN50", "--stages 1-3"),
        ("--epochs 0", "at least 1"),
        ("--epochs=ten", "invalid int value: 'ten'"),
        ("--seed -1", "at least 0"),
        ("--seed 1.5", "invalid int value"),
        ("--seeds 2-0", "--seeds 2-0 is not understood; valid: as in 0-2, or 0,3"),
        ("--seeds a", "--seeds a is not understood"),
        ("--seeds 0,", "--seeds 0, is not understood"),
        ("--seeds -1", "--seeds -1 is not understood"),
        ("--seeds=-1", "--seeds -1 is not understood"),
        ("--seeds 0-2.5", "is not understood"),
        ("--seeds 0-100", "--seeds 0-100 are more than 100"),
        ("--seeds 0-99,200", "are more than 100"),
        ("--seeds 0-999999999", "are more than 100"),
        ("--seeds 0,1 --seed 1", "--seed 1 and --seeds 0,1: give one of them"),
        ("--seeds 0-1 --seed 0", "give one of them"),
        ("--seeds 0-2 --stages 0-1", "--seeds is for stages 2 to 5"),
        ("--soup", "give two or more, as in --seeds 0-2"),
        ("--soup --seeds 3", "give two or more"),
        ("--soup --seeds 0-1 --stages 4", "--soup is for stages 2 and 3"),
        ("--device gpu", "auto, cpu, cuda"),
        ("--smoke=yes", "ignored explicit argument"),
    ],
)
def test_a_wrong_option_ends_with_2_and_the_valid_values(arguments: str, expected: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run_all.sh", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        run_script(pipeline.main, Options, None)
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == "" and said.err.strip().count("\n") == 0
    values = said.err.replace("'", "").replace(", ", " ") if "invalid choice" in said.err else said.err
    assert expected in values


@pytest.mark.parametrize("flag", ["--stages", "--model", "--pretrained", "--seeds", "--device"])
def test_an_empty_value_is_not_taken_for_the_default(flag: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run_all.sh", flag, ""])
    with pytest.raises(SystemExit) as ended:
        run_script(options.checked, Options, None)
    assert ended.value.code == 2 and f"{flag} is empty; give it a value" in capsys.readouterr().err


def test_a_wrong_option_ends_before_set_up(checkout: Path) -> None:
    result = run_all(checkout, "--stages", "7")
    assert result.returncode == 2 and "0 to 5" in result.stderr and result.stdout == ""
    assert not (checkout / "set_up_was_called").exists()


def test_setup_only_runs_no_step(checkout: Path) -> None:
    result = run_all(checkout, "--setup-only")
    assert result.returncode == 0 and result.stdout.startswith("set-up is done: ")
    assert (checkout / "set_up_was_called").exists() and not (checkout / "results").exists()


def test_failing_set_up_ends_the_run(checkout: Path) -> None:
    (checkout / "set_up.sh").write_text("echo no Python >&2; exit 2\n")
    result = run_all(checkout)
    assert (result.returncode, result.stdout) == (2, "")


def test_default_run_takes_every_step_in_order(steps_of) -> None:
    steps = steps_of()
    assert list(steps) == sorted(steps)
    assert [name[3:] for name in steps] == [
        *("prepare", "prompts", "analysis", "filter", "structured_prompts", "splits", "stage0_weights"),
        *("stage1_zeroshot", "stage2_train", "stage2_evaluate", "stage3_v4_train", "stage3_v4_evaluate", "report"),
    ]
    assert "--pretrained made/by_10_stage0_weights.log_BEST.pth" in steps["20_stage1_zeroshot"]
    assert "--ckpt made/by_30_stage2_train.log_BEST.pth" in steps["31_stage2_evaluate"]
    assert "--init_ckpt made/by_30_stage2_train.log_BEST.pth" in steps["40_stage3_v4_train"]
    assert "--ckpt made/by_40_stage3_v4_train.log_BEST.pth" in steps["41_stage3_v4_evaluate"]


@pytest.mark.parametrize("stages", ["1,3", "3,1", "1,3-3"])
def test_chosen_stages(steps_of, stages: str) -> None:
    numbers = [name[:2] for name in steps_of("--stages", stages)]
    assert numbers == ["00", "01", "02", "03", "04", "05", "10", "20", "40", "41", "90"]


def test_stage_0_alone_needs_no_dataset(steps_of) -> None:
    (made,) = steps_of("--stages", "0").values()
    assert made == "python model/stage0_pretrain/make_small_clip.py"
    ((name, trained),) = steps_of("--stages", "0", "--model", "tiny-vit").items()
    assert name == "10_stage0_weights" and "pretrain_tiny_clip.py --model tiny-vit --seed 0" in trained


def test_options_reach_the_scripts(steps_of) -> None:
    options = "--dataset grocery --model ViT-B/16 --pretrained openai --epochs 3 --seed=7 --device cpu --variant v1"
    steps = steps_of(*options.split(), "--data_root", "my raw data")
    assert "10_stage0_weights" not in steps
    assert str(Path.cwd() / "my raw data") in steps["00_prepare(forced)"]  # sees new photos in a raw folder
    for name in ("30_stage2_train_seed7", "40_stage3_v1_train_seed7"):
        assert "--dataset grocery --device cpu --model ViT-B/16 --pretrained openai --seed 7 --epochs 3" in steps[name]
    assert "--variant v1" in steps["41_stage3_v1_evaluate_seed7"]


OF_SEEDS = ("30_stage2_train", "31_stage2_evaluate", "40_stage3_v4_train", "41_stage3_v4_evaluate")


def test_several_seeds_share_data_and_stage_1_and_have_steps_of_their_own(steps_of) -> None:
    one, several = steps_of(), steps_of("--seeds", "0,2-3")
    shared = [name for name in one if name not in OF_SEEDS]
    assert list(several) == [
        *shared[:-1],
        *(f"{name}{suffix}" for suffix in ("", "_seed2", "_seed3") for name in OF_SEEDS),
        "90_report",
    ]
    assert all(several[name] == command for name, command in one.items())  # those of seed 0 are not run again
    for suffix, seed in (("", 0), ("_seed2", 2), ("_seed3", 3)):
        for name in ("30_stage2_train", "40_stage3_v4_train"):
            assert f"--seed {seed}" in several[f"{name}{suffix}"]
        start = f"made/by_30_stage2_train{suffix}.log_BEST.pth"
        assert f"--ckpt {start}" in several[f"31_stage2_evaluate{suffix}"]
        assert f"--init_ckpt {start}" in several[f"40_stage3_v4_train{suffix}"]
        assert f"--ckpt made/by_40_stage3_v4_train{suffix}.log_BEST.pth" in several[f"41_stage3_v4_evaluate{suffix}"]
    assert all("--seed" not in several[name] for name in shared)


def test_a_soup_is_of_all_seeds_and_evaluated_after_them(steps_of) -> None:
    plain, steps = steps_of("--seeds", "0-1"), steps_of("--seeds", "0-1", "--soup", "--no-exclude_same_camera")
    more = ["32_stage2_soup", "33_stage2_soup_evaluate", "42_stage3_v4_soup", "43_stage3_v4_soup_evaluate"]
    assert list(steps) == [*list(plain)[:-1], *more, "90_report"]
    for trained, soup, evaluated in (("30_stage2_train", *more[:2]), ("40_stage3_v4_train", *more[2:])):
        both = f"made/by_{trained}.log_BEST.pth made/by_{trained}_seed1.log_BEST.pth"
        assert steps[soup] == f"python -m clipfh.training.soup --ckpts {both} --device auto --no-exclude_same_camera"
        assert f"--ckpt made/by_{soup}.log_BEST.pth" in steps[evaluated] and "--variant" not in steps[evaluated]
    assert more[2] not in steps_of("--seeds", "0-1", "--soup", "--stages", "2")


@pytest.mark.parametrize(("hangup", "handled"), [(signal.SIG_IGN, "SIGTERM,SIGINT,SIGQUIT"), (signal.SIG_DFL, None)])
def test_processes_that_nohup_started_outlive_their_terminal(steps_of, monkeypatch, hangup, handled) -> None:
    variables = {}
    previous = signal.signal(signal.SIGHUP, hangup)
    try:
        monkeypatch.setattr(pipeline, "run_step", lambda step, force=False: variables.update(step.variables) or 0)
        pipeline.main(parse_config(Options, None, ["--nproc", "2", "--stages", "2"]))
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert variables["OMP_NUM_THREADS"]
    assert variables.get("PET_SIGNALS_TO_HANDLE") == handled


def test_steps_of_a_seed_wait_for_those_of_the_same_seed(steps_of, monkeypatch) -> None:
    after = {}
    monkeypatch.setattr(pipeline, "Step", lambda *values, **fields: after.update({values[0]: fields}) or Step(*values))
    steps_of("--seeds", "1-2", "--variant", "v3")
    assert after["31_stage2_evaluate_seed2"]["after"] == ["30_stage2_train_seed2", "05_splits"]
    assert after["40_stage3_v2_train_seed2"]["after"][-1] == "30_stage2_train_seed2"
    assert after["40_stage3_v3_train_seed2"]["after"][-1] == "40_stage3_v2_train_seed2"
    assert after["41_stage3_v3_evaluate_seed1"]["after"] == ["40_stage3_v3_train_seed1", "05_splits"]


def test_one_seed_is_the_same_by_either_option(steps_of) -> None:
    assert steps_of("--seed", "2") == steps_of("--seeds", "2") == steps_of("--seeds", "2,2-2")
    assert steps_of("--seed", "0") == steps_of("--seeds", "0") == steps_of()
    assert (
        steps_of("--model", "tiny-rn", "--seed", "2")["10_stage0_weights"].count("--seed 0") == 1
    )  # one start for all


def test_seeds_of_a_smoke_run_keep_to_its_folders(steps_of) -> None:
    steps = steps_of("--smoke", "--seeds", "0-1")
    assert (
        "--seed 1 --smoke" in steps["30_stage2_train_seed1"] and "/checkpoints/smoke" in steps["30_stage2_train_seed1"]
    )
    assert "--results_dir results/smoke" in steps["41_stage3_v4_evaluate_seed1"]


def test_stages_4_and_5_are_trained_with_every_seed_on_the_same_captions(steps_of) -> None:
    options = "--stages 4-5 --seeds 0-1 --captions coco --captions_root"
    steps = steps_of(*options.split(), "my raw data")
    assert list(steps) == [
        *("10_stage0_weights", "50_stage4_captions(forced)", "51_stage4_train", "52_stage4_evaluate"),
        *("60_stage5_train", "61_stage5_baseline", "62_stage5_evaluate", "51_stage4_train_seed1"),
        *("52_stage4_evaluate_seed1", "60_stage5_train_seed1", "61_stage5_baseline_seed1", "62_stage5_evaluate_seed1"),
    ]
    assert "--seed 1" in steps["51_stage4_train_seed1"] and "--seed 1" in steps["61_stage5_baseline_seed1"]
    assert "--ckpt made/by_51_stage4_train_seed1.log_BEST.pth" in steps["52_stage4_evaluate_seed1"]


def test_relative_data_root_is_taken_from_where_the_user_is(steps_of) -> None:
    steps = steps_of("--dataset", "folder", "--data_root", ".")
    assert f"--data_root {Path.cwd()}" in steps["00_prepare(forced)"]


def test_photos_of_small_models_and_hands_have_files_of_their_own(steps_of) -> None:
    for dataset in ((), ("--dataset", "grocery", "--data_root", "my raw data")):
        for name, command in steps_of(*dataset).items():  # the scripts read what suits the model by themselves
            expected = ["words"] if name == "30_stage2_train" and not dataset else []
            assert re.findall(r"--config \S*?(\w+)\.yaml", command) == expected
    steps = steps_of("--dataset", "hd", "--data_root", "my raw data", "--model", "RN50")
    for name in ("30_stage2_train", "40_stage3_v4_train"):
        assert re.findall(r"(\w+)\.yaml", steps[name]) == ["hands"]
    assert "--config" not in steps["20_stage1_zeroshot"]
    steps = steps_of("--dataset", "hd", "--data_root", "my raw data", "--model", "tiny-rn")
    assert re.findall(r"(\w+)\.yaml", steps["20_stage1_zeroshot"]) == ["tiny_photos"]
    assert re.findall(r"(\w+)\.yaml", steps["30_stage2_train"]) == ["tiny_photos", "hands"]


def test_the_files_that_a_run_chooses_exist(steps_of) -> None:
    every = "--stages 0-5 --dataset hd --captions grocery --captions_root . --data_root ."
    of_small = re.findall(r"model/\S+\.yaml", " ".join(steps_of(*every.split()).values()))
    of_tiny = re.findall(r"model/\S+\.yaml", " ".join(steps_of(*every.split(), "--model", "tiny-rn").values()))
    chosen = of_small + of_tiny
    assert (len(of_small), len(of_tiny)) == (6, 9) and all((ROOT / path).is_file() for path in chosen)


def test_v3_trains_v2_first_and_goes_on_from_it(steps_of) -> None:
    steps = steps_of("--variant", "v3")
    assert "--init_ckpt made/by_30_stage2_train.log_BEST.pth" in steps["40_stage3_v2_train"]
    assert "--init_ckpt made/by_40_stage3_v2_train.log_BEST.pth" in steps["40_stage3_v3_train"]
    assert list(steps)[-2] == "41_stage3_v3_evaluate"


def test_stage_4_takes_captions_and_no_identities(steps_of) -> None:
    steps = steps_of("--stages", "4")
    assert [name[3:] for name in steps] == ["stage0_weights", "stage4_captions", "stage4_train", "stage4_evaluate"]
    assert "--model small-clip --pretrained made/by_10_stage0_weights.log_BEST.pth" in steps["51_stage4_train"]
    assert "--ckpt made/by_51_stage4_train.log_BEST.pth" in steps["52_stage4_evaluate"]


def test_stage_4_on_real_captions(steps_of) -> None:
    options = "--stages 1,4 --captions coco --model ViT-B/32 --pretrained openai --epochs 3 --dataset folder"
    steps = steps_of(*options.split(), "--captions_root", "my raw data", "--data_root", "my raw data")
    raw = f"--dataset coco --data_root {Path.cwd() / 'my raw data'}"
    assert steps["50_stage4_captions(forced)"].endswith(raw)  # sees new captions
    assert f"{raw} --device auto --model ViT-B/32 --pretrained openai --seed 0 --epochs 3" in steps["51_stage4_train"]
    assert "90_report" in steps  # of stage 1


def test_stage_4_on_the_photos_of_the_identities(steps_of) -> None:
    steps = steps_of("--stages", "4", "--captions", "identities", "--dataset", "folder", "--data_root", "my raw data")
    assert list(steps)[5:7] == ["05_splits", "10_stage0_weights"]
    captions = "--dataset identities --data_root metadata/folder --name folder_identities"
    assert steps["50_stage4_captions(forced)"].endswith(captions) and captions in steps["51_stage4_train"]
    assert re.findall(r"(\w+)\.yaml", steps["51_stage4_train"]) == ["own_products"]
    assert "--image_encoder clip" in steps["51_stage4_train"]
    steps = steps_of("--stages", "4", "--captions", "identities", "--dataset", "hd", "--data_root", "my raw data")
    assert re.findall(r"(\w+)\.yaml", steps["51_stage4_train"]) == ["own_products", "hands"]


def test_what_stage_4_has_aligned_is_a_start(steps_of, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pipeline, "stage_dir", lambda stage: tmp_path / f"stage{stage}")
    (tmp_path / "stage4" / "checkpoints").mkdir(parents=True)
    for second, name in enumerate(("new_small-clip_CLIP.pth", "old_small-clip_CLIP.pth", "newer_tiny-rn_CLIP.pth")):
        path = tmp_path / "stage4" / "checkpoints" / name
        path.touch()
        os.utime(path, (2000 if "tiny" in name else 1000 - second,) * 2)
    steps = steps_of("--pretrained", "stage4", "--stages", "1-2")
    assert "10_stage0_weights" not in steps
    for name in ("20_stage1_zeroshot", "30_stage2_train"):
        assert f"--model small-clip --pretrained {tmp_path}/stage4/checkpoints/new_small-clip_CLIP.pth" in steps[name]


def test_stage_4_keeps_a_smoke_run_apart(steps_of) -> None:
    steps = steps_of("--stages", "4", "--smoke")
    train = steps["51_stage4_train"]
    assert "--smoke" in train and "/checkpoints/smoke" in train and "/logs/smoke" in train
    assert steps["50_stage4_captions"].endswith("--smoke")
    assert "--results_dir results/smoke" in steps["52_stage4_evaluate"]


def test_stage_5_compares_with_a_baseline_on_the_same_faces(steps_of) -> None:
    options = "--stages 5 --epochs 3 --seed 7 --faces"
    steps = steps_of(*options.split(), "my raw data")
    assert [name[3:] for name in steps] == [
        *("stage0_weights", "stage5_train_seed7", "stage5_baseline_seed7", "stage5_evaluate_seed7"),
    ]
    for name in ("60_stage5_train_seed7", "61_stage5_baseline_seed7"):
        assert "--seed 7 --model small-clip --pretrained made/by_10_stage0_weights.log_BEST.pth" in steps[name]
        assert f"--dataset {Path.cwd() / 'my raw data'} --img2text.epochs 3 --text2img.epochs 3" in steps[name]
    small, plain = (f"model/stage5_text_image_gan/config/{name}.yaml" for name in ("small", "plain"))
    assert steps["60_stage5_train_seed7"].endswith(f"--config {small}")
    assert steps["61_stage5_baseline_seed7"].endswith(f"--gans text2img --config {small} {plain}")
    assert "--run_dir made --baseline_dir made" in steps["62_stage5_evaluate_seed7"]


def test_stage_5_of_a_large_model_takes_the_default_settings_and_the_faces_of_the_data_folder(steps_of) -> None:
    Path("data/fer2013").mkdir(parents=True)
    steps = steps_of("--stages", "5", "--model", "ViT-B/32")
    assert "--config" not in steps["60_stage5_train"] and "small.yaml" not in steps["61_stage5_baseline"]
    assert f"--dataset {Path.cwd() / 'data' / 'fer2013'}" in steps["60_stage5_train"]


def test_stage_5_keeps_a_smoke_run_apart(steps_of) -> None:
    steps = steps_of("--stages", "5", "--smoke")
    assert "--smoke" in steps["60_stage5_train"] and "--smoke" in steps["61_stage5_baseline"]
    assert "--results_dir results/smoke" in steps["62_stage5_evaluate"]
    assert "/checkpoints/smoke" in steps["62_stage5_evaluate"]


def test_smoke_run_keeps_to_folders_of_its_own(steps_of) -> None:
    for name, command in steps_of("--smoke").items():
        if "stage0" not in name and "report" not in name:
            assert "synthetic_smoke" in command, name
        if "train" in name:
            assert "--smoke" in command and "/checkpoints/smoke" in command and "/logs/smoke" in command, name
        if "evaluate" in name or "zeroshot" in name or "report" in name:
            assert "--results_dir results/smoke" in command, name


def test_force_reaches_every_step(steps_of) -> None:
    names = list(steps_of("--force"))
    assert all("(forced)" in name for name in names if name != "90_report")


def test_the_names_of_data_are_those_that_the_readers_know() -> None:
    assert options.DATASETS == DATASET_NAMES and set(options.CAPTIONS) == set(CAPTION_DATASETS)


def test_failing_step_ends_the_run_with_its_code(steps_of) -> None:
    with pytest.raises(SystemExit) as ended:
        steps_of(fail_at="03_filter")
    assert ended.value.code == 3 and list(steps_of.taken)[-1] == "03_filter"
