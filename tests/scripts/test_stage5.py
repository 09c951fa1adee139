"""The scripts of stage 5 as processes, on a few generated faces."""

import json
import os
import re
import shutil

import pytest
import torch
from PIL import Image
from stage_project import STAGE0, load, read_json
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clipfh.drawn.faces import generate
from clipfh.models.checkpoint import weights_digest
from clipfh.models.clip import is_text_parameter, load_clip

FOLDER = "model/stage5_text_image_gan"
TRAIN, EVALUATE, INFERENCE = (f"{FOLDER}/{name}.py" for name in ("train", "evaluate", "inference"))
NETWORKS = [f"{gan}_{part}" for gan in ("img2text", "text2img") for part in ("generator", "discriminator")]


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces") / "few"
    generate(folder, num_train=20, num_test=4, seed=3)  # of each emotion; a tenth becomes val
    return folder


def run(project, script, *arguments):
    result = project.server.run(script, *arguments)
    assert result.returncode == 0, f"{result.args}\n{result.stdout}\n{result.stderr}"
    assert "Warning" not in result.stderr, result.stderr
    return result


def train(project, folder, *arguments):
    return run(project, TRAIN, "--smoke", "--checkpoint_dir", folder / "checkpoints", "--log_dir", folder, *arguments)


@pytest.fixture(scope="module")
def trained(project, faces, tmp_path_factory):
    """Checkpoints of a smoke run."""
    folder = tmp_path_factory.mktemp("trained")
    project.runs["stage5"] = train(project, folder, "--dataset", faces)
    return folder / "checkpoints"


@pytest.fixture(scope="module")
def baseline(project, faces, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    train(project, folder, "--dataset", faces, "--config", project.root / FOLDER / "config" / "plain.yaml")
    return folder / "checkpoints"


def test_every_script_documents_itself(project):
    for script in (TRAIN, EVALUATE, INFERENCE):
        result = project.server.run(script, "--help")
        assert result.returncode == 0 and "usage:" in result.stdout and "Writes:" in result.stdout
        assert ("--text2img.image_size" in result.stdout) == (script == TRAIN)


def test_without_data_it_trains_on_generated_faces_and_writes_apart(project):
    result = run(project, TRAIN, "--smoke")
    assert "there is no data/fer2013: generated faces in data/raw/generated_faces_smoke" in result.stdout
    assert len(list((project.root / FOLDER / "checkpoints" / "smoke").glob("*/text2img_generator_epoch_1.pth"))) == 1
    assert not list((project.root / FOLDER / "checkpoints").glob("text*"))  # never taken for a real run
    result = project.server.run(EVALUATE)
    assert result.returncode == 2 and "there is no run of stage 5" in result.stderr


def test_a_run_leaves_its_files(project, trained):
    assert sorted(path.name for path in trained.iterdir()) == sorted(
        ["LAST.pth"] + [f"{n}_epoch_1.pth" for n in NETWORKS]
    )
    (logs,) = trained.parent.glob("text_image_gan_*")
    recorded = read_json(logs / "config.json")
    assert recorded["config"]["text2img.image_size"] == 64 and recorded["config"]["img2text.latent_dim"] is None
    rows = [json.loads(line) for line in (logs / "metrics.jsonl").read_text().splitlines()]
    assert [(row["gan"], row["epoch"]) for row in rows] == [("img2text", 1), ("text2img", 1)]
    assert 0 <= rows[0]["img2text_val_accuracy"] <= 1 and "text2img_loss_generator" in rows[1]
    for row, label in zip(rows, ("Img2Text", "Text2Img"), strict=True):
        d, g = (row[f"{row['gan']}_loss_{part}"] for part in ("discriminator", "generator"))
        says = f"[{label}] Epoch 1/1 done - Avg D_loss: {d:.4f}, Avg G_loss: {g:.4f}, Avg "
        assert says in project.runs["stage5"].stdout and says in (logs / "train.log").read_text()
    assert f", val accuracy: {rows[0]['img2text_val_accuracy']:.4f}, " in project.runs["stage5"].stdout
    events = EventAccumulator(str(logs)).Reload()
    assert {"step/img2text/loss_discriminator", "step/text2img/loss_generator"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["samples"]
    with Image.open(logs / "samples_epoch_1.png") as grid:
        assert grid.size == (8 * 64, 7 * 64)


def test_the_frozen_clip_is_bit_identical(project, trained):
    assert "CLIP is bit-identical" in project.runs["stage5"].stdout
    content = load(trained / "text2img_generator_epoch_1.pth")
    (weights,) = (project.root / "model" / "stage0_pretrain" / "checkpoints").glob("tiny-rn_*.pth")
    assert content["clip"]["digest"] == weights_digest(load_clip("tiny-rn", str(weights)).model.state_dict())
    assert content["clip"]["digest"][:12] in project.runs["stage5"].stdout
    assert content["captions"]["features"].shape == (7, 6, 256)


def test_the_second_gan_alone_with_a_line_every_few_batches(project, faces, trained, tmp_path):
    flags = ("--dataset", faces, "--log_interval", 3, "--gans", "text2img")
    result = train(project, tmp_path, *flags, "--img2text_ckpt", trained / "img2text_generator_epoch_1.pth")
    line = r"^Batch (\d)/7: D_loss \d+\.\d{4}, G_loss \d+\.\d{4}, cycle \d+\.\d{4}$"  # 126 train faces, 16 in a batch
    assert re.findall(line, result.stdout, re.MULTILINE) == ["3", "6"]
    assert not list(tmp_path.glob("checkpoints/img2text*"))
    result = train(project, tmp_path / "alone", *flags)
    assert "note: no first GAN reads" in result.stdout and "cycle" not in result.stdout


RESUMABLE = (
    *("--img2text.epochs", 3, "--text2img.epochs", 3, "--batch_size", 8, "--save_interval", 2, "--seed", 3),
    *("--text2img.ngf", 8, "--text2img.ndf", 8, "--img2text.width", 8),
)


@pytest.fixture(scope="module")
def straight(project, faces, tmp_path_factory):
    """Checkpoints of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("straight")
    run(project, TRAIN, "--dataset", faces, *RESUMABLE, "--checkpoint_dir", folder, "--log_dir", folder / "logs")
    names = {f"{name}_epoch_{epoch}.pth" for name in NETWORKS for epoch in (2, 3)}
    assert {path.name for path in folder.glob("*.pth")} == {"LAST.pth", *names}
    return folder


@pytest.mark.parametrize("stop_at", ["LAST.pth", "text2img_generator_epoch_2.pth"])
def test_a_stopped_run_continues_as_if_it_had_not_been(project, faces, straight, tmp_path, stop_at):
    stopped = tmp_path / "stopped"
    flags = ("--dataset", faces, *RESUMABLE, "--checkpoint_dir", stopped, "--log_dir", stopped / "logs")
    ended = project.server.run_until((stopped / stop_at).is_file, TRAIN, *flags)
    assert ended.returncode == 130 and "Traceback" not in ended.stderr, ended.stderr
    assert not (stopped / "text2img_generator_epoch_3.pth").is_file()
    run(project, TRAIN, *flags, "--resume_ckpt", stopped / "LAST.pth")
    names = sorted(path.name for path in straight.glob("*.pth"))
    assert sorted(path.name for path in stopped.glob("*.pth")) == names
    for name in names:
        if name != "LAST.pth":
            first, second = load(straight / name)["state_dict"], load(stopped / name)["state_dict"]
            assert all(torch.equal(first[key], second[key]) for key in first), name


def test_val_faces_that_are_too_few_have_no_row(project, trained, tmp_path):
    few = tmp_path / "few"
    generate(few, num_train=6, num_test=3, seed=5)  # one of each emotion becomes val
    flags = ("--dataset", few, "--results_dir", tmp_path, "--classifier_dir", tmp_path, "--classifier_epochs", 1)
    result = run(project, EVALUATE, "--run_dir", trained, *flags)
    assert "note: no row of the val faces" in result.stdout and "| real val faces" not in result.stdout
    assert "| real train faces" in result.stdout


def confusions(text):
    """The accuracy that each confusion matrix of classification_report.txt adds up to: 4 test faces of each emotion."""
    accuracies = []
    for part in text.split("found (columns) of each emotion (rows)")[1:]:
        rows = [[int(cell) for cell in line.split()[1:]] for line in part.splitlines()[3:10]]
        assert [sum(row) for row in rows] == [4] * 7
        accuracies.append(sum(row[place] for place, row in enumerate(rows)) / 28)
    return accuracies


def test_evaluation_measures_both_gans_beside_the_baseline(project, trained, baseline, tmp_path):
    flags = ("--run_dir", trained, "--results_dir", tmp_path, "--classifier_dir", tmp_path, "--classifier_epochs", 1)
    result = run(project, EVALUATE, *flags, "--baseline_dir", baseline)
    (folder,) = tmp_path.glob("few_stage5_*")
    metrics = read_json(folder / "metrics.json")
    read, drawn = metrics["image_to_text"], metrics["text_to_image"]
    assert read["chance"] == pytest.approx(1 / 7) and 0 <= read["accuracy"] <= 1 and "zero_shot_clip" in read
    assert read["accuracy"] == pytest.approx(sum(value for key, value in read.items() if key[:9] == "accuracy_") / 7)
    assert 0 <= read["linear_probe"] <= 1 and 0 <= read["linear_probe_val_accuracy"] <= 1
    assert f"| linear probe of CLIP's image features | {read['linear_probe']:.3f} |" in result.stdout
    accuracies = [read[name] for name in ("accuracy", "classifier", "linear_probe", "zero_shot_clip")]
    accuracies.append(drawn["generated"]["accuracy"])
    assert confusions((folder / "classification_report.txt").read_text()) == pytest.approx(accuracies)
    assert list(drawn) == [
        "real test faces",
        "real train faces",
        "real val faces",
        "generated",
        "unconditional baseline",
        "noise",
    ]
    assert drawn["noise"]["kid"] > drawn["real train faces"]["kid"]
    assert "| generated |" in result.stdout and (folder / "metrics.md").read_text() in result.stdout
    with Image.open(folder / "generated.png") as picture:
        assert min(picture.size) > 100  # of the project's checkout, which draws at a fifth of the resolution
    assert (folder / "mean_faces.png").is_file()
    classifiers = list(tmp_path.glob("face_classifier_*.pth"))
    again = run(project, EVALUATE, *flags, "--split", "val")
    assert "trained the classifier" not in again.stdout and list(tmp_path.glob("face_classifier_*.pth")) == classifiers
    assert "no unconditional baseline" in again.stdout


def test_inference_captions_draws_and_redraws(project, trained, faces, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(faces / "test" / "sad" / "0000.png", photos / "one.png")
    (photos / "two.jpg").write_text("no image")
    os.mkfifo(photos / "pipe.png")
    result = run(project, INFERENCE, "--run_dir", trained, "--image", photos, "--results_dir", tmp_path, "--num", 2)
    assert "found 3 files: 1 used, 2 left out" in result.stdout
    assert "left out: 1 (not a regular file), the first: pipe.png" in result.stdout
    (folder,) = tmp_path.glob("stage5_inference_*")
    assert list(read_json(folder / "captions.json")) == ["one.png"]
    assert {path.name for path in folder.iterdir()} == {"captions.json", "text_to_image.png", "image_to_image.png"}
    text = ("--task", "text_to_image", "--text", "a smiling man", "--num", 3)
    run(project, INFERENCE, "--run_dir", trained, *text, "--results_dir", tmp_path / "text")
    (grid,) = (tmp_path / "text").glob("*/*")
    assert grid.name == "text_to_image.png"
    run(project, INFERENCE, "--run_dir", trained, "--task", "image_to_text", "--results_dir", tmp_path / "val")


@pytest.mark.parametrize("mode", ["finetuned", "joint"])
def test_a_clip_that_is_trained_is_kept_beside_the_gans(project, faces, tmp_path, mode):
    result = train(project, tmp_path, "--dataset", faces, "--clip", mode, "--clip_lr", 1e-3)
    name = {"finetuned": "clip_finetuned.pth", "joint": "clip_joint_epoch_1.pth"}[mode]
    (start,) = project.checkpoints(STAGE0).glob("tiny-rn_*.pth")
    before, after = load(start)["state_dict"], load(tmp_path / "checkpoints" / name)["state_dict"]
    moved = [key for key in before if before[key].ndim >= 2 and not torch.equal(before[key], after[key])]
    assert any(is_text_parameter(key) for key in moved) and any(key.startswith("visual.") for key in moved)
    assert "CLIP is bit-identical" in result.stdout  # the one that the captions come from
    text = ("--task", "text_to_image", "--text", "a sad person", "--num", 1)
    run(project, INFERENCE, "--run_dir", tmp_path / "checkpoints", *text, "--results_dir", tmp_path / "out")


def test_other_wishes_run_too(project, faces, tmp_path):
    flags = ("--r1", 1, "--r1_interval", 1, "--loss", "hinge", "--spectral_norm", "--text2img.channels", 3)
    train(project, tmp_path, "--dataset", faces, *flags, "--augment", "color,translation,cutout", "--captions", 1)


def test_wrong_input_is_refused_with_the_way_out(project, trained, faces, tmp_path):
    csv, settings, strange = tmp_path / "fer2013.csv", tmp_path / "mine.yaml", tmp_path / "faces"
    csv.write_text("emotion,pixels,Usage\n0,1 2 3,Training\n")
    settings.write_text("text2img: {image_sise: 64}\n")
    shutil.copytree(faces, strange)
    (strange / "train" / "sad").rename(strange / "train" / "bored")
    last = trained / "LAST.pth"
    mixed = {}  # run folders in which one file says that it is of another size
    for changed in ("img2text", "text2img"):
        mixed[changed] = tmp_path / f"other_{changed}"
        shutil.copytree(trained, mixed[changed])
        path = mixed[changed] / f"{changed}_generator_epoch_1.pth"
        content = load(path)
        content["settings"]["image_size"] = 128
        torch.save(content, path)
    alone, other = ("--dataset", faces, "--gans", "text2img", "--img2text_ckpt"), tmp_path / "other.pth"
    content = load(trained / "img2text_generator_epoch_1.pth")
    torch.save({**content, "clip": {**content["clip"], "digest": "0" * 64}}, other)
    wrong_size = ("--dataset", faces, "--text2img.latent_dim", 512)
    new = ("--smoke", "--checkpoint_dir", tmp_path / "new", "--log_dir", tmp_path / "new")
    for script, flags, says in (
        (TRAIN, (*new, "--dataset", csv), [f"{csv}, line 2: 3 pixels, not 48 x 48"]),
        (TRAIN, (*new, "--dataset", strange), ["unknown emotion 'bored'", "surprise"]),
        (TRAIN, (*new, "--dataset", tmp_path / "gone"), [str(tmp_path / "gone"), "does not exist"]),
        (TRAIN, (*new, "--config", settings), [str(settings), "unknown key text2img.image_sise"]),
        (
            TRAIN,
            (*new, *wrong_size),
            ["text2img.latent_dim is 512", "tiny-rn", "256"],
        ),
        (TRAIN, (*new, *alone, other), [f"{other} was trained around other weights of CLIP"]),
        (TRAIN, (*new, "--augment", "blur"), ["--augment blur", "cutout"]),
        (TRAIN, (*new, *alone, other, "--gans", "img2text"), ["--img2text_ckpt is for", "--gans is img2text"]),
        (TRAIN, (*new, *alone, other, "--text2img.cycle", 0), ["--img2text_ckpt is for", "--text2img.cycle is 0"]),
        (TRAIN, ("--smoke", "--dataset", faces, "--checkpoint_dir", trained), ["another run", "--resume_ckpt"]),
        (TRAIN, (*new, "--dataset", faces, "--resume_ckpt", last, "--seed", 4), ["other flags", "seed"]),
        (TRAIN, (*new, "--resume_ckpt", trained / "text2img_generator_epoch_1.pth"), ["give its LAST.pth"]),
        (
            TRAIN,
            ("--dataset", faces, "--resume_ckpt", last, "--text2img.image_size", 128),
            ["a run at 64 px", "128 px"],
        ),
        (TRAIN, (*new, "--text2img.image_size", 63), ["--text2img.image_size", "64"]),
        (TRAIN, (*new, "--lr", 0), ["--lr", "more than 0"]),
        (EVALUATE, ("--run_dir", mixed["img2text"]), ["img2text_generator_epoch_1.pth is of 128 px, not of 64 px"]),
        (INFERENCE, ("--run_dir", mixed["text2img"]), ["text2img_generator_epoch_1.pth is of 128 px, not of 64 px"]),
        (INFERENCE, ("--run_dir", mixed["img2text"]), ["its weights are not those of its settings"]),
        (INFERENCE, ("--run_dir", tmp_path / "gone"), ["there is no folder", "gone"]),
        (TRAIN, ("--dataset", faces, "--resume_ckpt", trained), ["is a folder; give one of its files"]),
        (INFERENCE, ("--text", "a man", "--task", "image_to_text"), ["--text is for --task text_to_image"]),
        (INFERENCE, ("--image", csv, "--task", "text_to_image"), ["--image is for --task image_to_text"]),
        (INFERENCE, ("--run_dir", tmp_path), ["holds no img2text_generator_epoch_N.pth"]),
        (INFERENCE, ("--run_dir", trained, "--image", tmp_path / "gone.jpg"), ["gone.jpg does not exist"]),
        (INFERENCE, ("--run_dir", trained, "--image", csv), ["has no photo that can be used", "1 cannot be decoded"]),
    ):
        project.refused(script, *flags, says=says)
