"""The scripts of stage 4 as processes: on generated pictures, and on captioned photos of its own."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from stage_project import STAGE0, STAGE1, STAGE2, STAGE3, load, read_json
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STAGE4 = "model/stage4_frozen_text_alignment/train_frozen_text_alignment.py"
EVAL4 = STAGE4.replace("train_", "eval_")
PREPARE4 = "model/stage4_frozen_text_alignment/prepare_captions.py"
NAME = "synthetic_captions_smoke"


@pytest.fixture(scope="module")
def stage4(project):
    """One smoke run without further flags; returns its BEST."""
    project.runs["stage4"] = project.run(STAGE4, "--smoke", name="synthetic")
    (best,) = project.checkpoints(STAGE4).glob("clip_frozen_text_*_BEST.pth")
    return best


@pytest.fixture(scope="module")
def photos(project, tmp_path_factory):
    """The photos of the project as JSON lines, two captions each, with labels."""
    folder = tmp_path_factory.mktemp("captioned")
    (folder / "photos").symlink_to(project.photos)
    lines = []
    for path in sorted(project.photos.glob("*/*.jpg")):
        color, shape = path.parent.name.split("_")
        captions = [f"a {shape} that is {color}, number {path.stem}", f"a {color} {shape}"]
        lines.append({"image": f"photos/{path.parent.name}/{path.name}", "captions": captions, "label": shape})
    write(folder, lines)
    return folder


def write(folder: Path, lines: list) -> None:
    (folder / "captions.jsonl").write_text("\n".join(json.dumps(line) for line in lines))


def text_tower(path: Path) -> dict[str, torch.Tensor]:
    return {name: value for name, value in load(path)["state_dict"].items() if name.startswith("text_encoder.tower.")}


def test_a_run_leaves_its_files(project, stage4):
    run = stage4.stem.removesuffix("_BEST")
    logs = (project.root / STAGE4).parent / "logs" / run
    recorded = read_json(logs / "config.json")
    assert recorded["config"]["model"] == "tiny-rn" and recorded["config"]["image_encoder"] == "resnet18"
    rows = [json.loads(line) for line in (logs / "metrics.jsonl").read_text().splitlines()]
    expected = {"loss_infonce", "lr_backbone", "lr_head", "val_recall", "val_image_to_text_recall1", "seconds"}
    assert [row["epoch"] for row in rows] == [0, 1] and expected <= rows[1].keys()
    assert (logs / "training_curves.png").is_file()
    tags = EventAccumulator(str(logs)).Reload().Tags()["scalars"]
    assert {"epoch/val_recall", "step/loss", "step/logit_scale", "step/grad_norm"} <= set(tags)
    assert "projection head" in project.runs["stage4"].stdout and "baseline" in (logs / "train.log").read_text()
    last, linear = (stage4.with_name(f"{run}_{kind}.pth") for kind in ("LAST", "LINEAR"))
    assert load(stage4).keys() < load(last).keys() and load(linear)["head_layers"] == 1


def test_the_text_encoder_is_bit_identical_before_and_after(project, stage4):
    (start,) = project.checkpoints(STAGE0).glob("tiny-rn_*.pth")
    before, after = load(start)["state_dict"], text_tower(stage4)
    assert len(after) > 10
    for name, value in after.items():
        assert torch.equal(before[name.removeprefix("text_encoder.tower.")], value), name
    assert "text encoder unchanged, bit for bit" in project.runs["stage4"].stdout
    linear = load(stage4.with_name(stage4.name.replace("BEST", "LINEAR")))["state_dict"]
    conv = "image_encoder.backbone.conv1.weight"
    assert not torch.equal(load(stage4)["state_dict"][conv], linear[conv])


def test_evaluation_beside_both_baselines(project, stage4, tmp_path):
    result = project.server.run(EVAL4, "--name", NAME, "--results_dir", tmp_path)
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert stage4.name in result.stdout
    (run,) = tmp_path.glob(f"{NAME}_stage4_*")
    metrics = read_json(run / "metrics.json")
    assert list(metrics["figures"]) == ["random features", "linear head, frozen backbone", "this checkpoint"]
    assert metrics["num_images"] == 24
    for figures in metrics["figures"].values():
        to_text, to_image = figures["image_to_text"], figures["text_to_image"]
        assert (to_text["num_query"], to_text["num_gallery"]) == (24, metrics["num_captions"])
        assert (to_image["num_query"], to_image["num_gallery"]) == (metrics["num_captions"], 24)
        assert 0 <= to_text["recall1"] <= to_text["recall5"] <= to_text["recall10"] <= 1
        assert 0 <= figures["zero_shot"]["top1"] <= figures["zero_shot"]["top5"] <= 1
    assert "random features" in (run / "results.md").read_text() and "random features" in result.stdout
    for name in ("captions_for_images.png", "images_for_captions.png"):
        assert (run / name).stat().st_size > 20_000
    again = project.server.run(EVAL4, "--ckpt", stage4, "--results_dir", tmp_path / "again")
    (other,) = (tmp_path / "again").glob("*/metrics.json")
    assert again.returncode == 0 and read_json(other)["figures"] == metrics["figures"]


def test_photos_of_ones_own_from_json_lines(project, photos, tmp_path):
    flags = ("--data_root", photos, "--model", "tiny-rn", "--epochs", 6, "--batch_size", 16)
    out = ("--save_path", tmp_path, "--log_dir", tmp_path)
    result = project.run(STAGE4, *flags, *out, "--flip", 0.5, name="jsonl")
    assert "52 train images" in result.stdout and "6 test images" in result.stdout
    rows = metrics_of(tmp_path)
    assert rows[-1]["loss_infonce"] < rows[1]["loss_infonce"]
    (best,) = tmp_path.glob("*_BEST.pth")
    evaluated = project.server.run(EVAL4, "--ckpt", best, "--results_dir", tmp_path / "results")
    assert evaluated.returncode == 0 and "over 2 classes, chance 50.0" in evaluated.stdout, evaluated.stderr
    prepared = project.server.run(PREPARE4, "--dataset", "jsonl", "--data_root", photos, "--data_seed", 1)
    assert prepared.returncode == 0, prepared.stderr
    project.refused(
        EVAL4, "--ckpt", best, "--results_dir", tmp_path / "results", says=["other splits of jsonl_captions"]
    )


@pytest.mark.parametrize("flags", [("--freeze_backbone",), ("--head_warmup_epochs", 1)], ids=str)
def test_ablations_that_train_the_head_alone(project, stage4, tmp_path, flags):
    head = ("--head_layers", 3, "--head_norm", "batchnorm", "--head_dropout", 0.2)
    project.run(STAGE4, "--smoke", *flags, *head, "--save_path", tmp_path, "--log_dir", tmp_path, name="synthetic")
    (best,), (linear,) = tmp_path.glob("*_BEST.pth"), tmp_path.glob("*_LINEAR.pth")
    state, start = load(best)["state_dict"], load(linear)["state_dict"]
    backbone = [name for name in start if name.startswith("image_encoder.backbone.")]
    assert len(backbone) > 50 and all(torch.equal(state[name], start[name]) for name in backbone)
    assert "image_encoder.head.8.weight" in state  # three linear layers, two norms, two GELUs, two dropouts
    result = project.server.run(EVAL4, "--ckpt", best, "--results_dir", tmp_path / "results")
    assert result.returncode == 0, result.stderr


def test_a_clip_aligned_on_the_train_identities_is_a_start_of_the_other_stages(project, tmp_path):
    flags = ("--data_root", project.metadata, "--model", "tiny-rn", "--image_encoder", "clip", "--eval_image_size", 80)
    flags += ("--image_size", 64, "--freeze_until", 1, "--epochs", 2)
    folders = ("--save_path", tmp_path, "--log_dir", tmp_path)
    project.run(STAGE4, *flags, *folders, "--batch_size", 16, name="identities")
    (best,), (clip,) = tmp_path.glob("*_BEST.pth"), tmp_path.glob("*_tiny-rn_CLIP.pth")
    (start,) = project.checkpoints(STAGE0).glob("tiny-rn_*.pth")
    before, state, content = load(start)["state_dict"], load(best)["state_dict"], load(clip)
    assert (content["model"], content["stage"], content["image_size"]) == ("tiny-rn", 4, 80)
    after = content["state_dict"]
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"visual.trunk.layer3.0.conv1.weight", "visual.trunk.fc.weight", "logit_scale"} <= changed
    held = ("visual.trunk.conv1.", "visual.trunk.layer1.", "visual.trunk.layer2.", "transformer.", "token_embedding.")
    assert not [name for name in changed if name.startswith(held)]
    conv = "trunk.layer4.0.conv1.weight".removeprefix("trunk.")
    assert torch.equal(state[f"image_encoder.backbone.{conv}"], after[f"visual.trunk.{conv}"])

    table = read_json(project.metadata / "image_paths.json").values()
    (seen,) = content["seen_identities"].values()
    assert seen == sorted({row["item_id"] for row in table if row["split"] in ("train", "val")})
    # the same figures here and as a CLIP: text to image is measured on the same photos
    results = tmp_path / "results"
    evaluated = project.server.run(EVAL4, "--ckpt", best, "--results_dir", results)
    assert evaluated.returncode == 0 and "before training" in evaluated.stdout, evaluated.stderr
    told = project.run(STAGE1, "--pretrained", clip, "--results_dir", results, "--no-clustering").stdout
    assert f"{clip.name}), 80 px" in told
    project.refused(STAGE1, "--dataset", "shapes", "--pretrained", "stage4", says=["--image_encoder clip"])
    project.checkpoints(STAGE4).mkdir(exist_ok=True)
    shutil.copy(clip, project.checkpoints(STAGE4))
    told = project.run(STAGE2, "--smoke", "--pretrained", "stage4", *folders).stdout
    assert clip.name in told
    result = project.run(STAGE3, "--smoke", "--init_ckpt", "stage4", *folders)
    assert clip.name in result.stdout
    (project.checkpoints(STAGE4) / clip.name).unlink()
    prepared = project.server.run(
        "preprocessing/00_prepare_dataset.py",
        "--dataset",
        "folder",
        "--data_root",
        project.photos,
        "--seed",
        1,
        "--metadata_dir",
        tmp_path / "other",
        "--name",
        "other",
    )
    assert prepared.returncode == 0, prepared.stderr
    splits = project.server.run(
        "preprocessing/05_make_retrieval_splits.py", "--dataset", "folder", "--metadata_dir", tmp_path / "other"
    )
    assert splits.returncode == 0, splits.stderr
    project.refused(
        STAGE1, "--metadata_dir", tmp_path / "other", "--pretrained", clip, says=["were trained or validated on"]
    )
    resumed = project.run(
        STAGE4, *flags, "--batch_size", 16, "--save_path", tmp_path / "on", "--log_dir", tmp_path / "on",
        "--resume_ckpt", next(tmp_path.glob("clip_frozen_text_*_LAST.pth")), name="identities",
    )  # fmt: skip
    (again,) = (tmp_path / "on").glob("*_CLIP.pth")
    assert all(torch.equal(value, after[name]) for name, value in load(again)["state_dict"].items())
    assert again.name in resumed.stdout


def test_a_clip_without_a_head_of_its_own_is_aligned_as_well(project, tmp_path):
    flags = (
        "--data_root",
        project.metadata,
        "--model",
        "tiny-vit",
        "--pretrained",
        "random",
        "--image_encoder",
        "clip",
    )
    folders = ("--save_path", tmp_path, "--log_dir", tmp_path)
    told = project.run(STAGE4, *flags, *folders, "--epochs", 1, "--batch_size", 16, name="identities").stdout
    (clip,) = tmp_path.glob("*_tiny-vit_CLIP.pth")
    assert load(clip)["image_size"] == 64 and "clip (random, 64 px)" in told  # the CLIP's own size
    told = project.run(
        STAGE1, "--model", "tiny-vit", "--pretrained", clip, "--results_dir", tmp_path / "results"
    ).stdout
    assert clip.name in told
    alone = ("--dataset", "identities", *flags, *folders)
    project.refused(STAGE4, *alone, "--freeze_backbone", says=["no projection apart from its blocks"])
    sizes = ("--image_size", 32, "--eval_image_size", 64)
    project.refused(STAGE4, *alone, *sizes, says=["takes photos of one size"])


def metrics_of(folder: Path) -> list[dict]:
    (path,) = folder.glob("*/metrics.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def assert_same(first, second):
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first.keys() - {"seconds"}:  # how long an epoch took is another every time
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


def test_a_stopped_run_continues_as_if_it_had_not_been(project, photos, tmp_path):
    flags = ["--data_root", photos, "--model", "tiny-rn", "--epochs", 4, "--batch_size", 16]
    flags += ["--head_warmup_epochs", 1, "--head_dropout", 0.1, "--no-baseline", "--precision", "float32"]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    project.run(STAGE4, *flags, "--save_path", straight, "--log_dir", straight, name="jsonl")
    out = ("--dataset", "jsonl", "--save_path", stopped, "--log_dir", stopped)
    ended = project.server.run_until(lambda: list(stopped.glob("*_LAST.pth")), STAGE4, *flags, *out)
    assert ended.returncode == 130 and "Traceback" not in ended.stderr, ended.stderr
    (last,) = stopped.glob("*_LAST.pth")
    assert load(last)["epoch"] < 4
    resume = ("--save_path", stopped, "--log_dir", stopped, "--resume_ckpt", last)
    project.run(STAGE4, *flags, *resume, name="jsonl")
    (reference,) = straight.glob("*_LAST.pth")
    assert_same(load(reference), load(last))
    assert metrics_of(straight) == metrics_of(stopped)
    assert [row["epoch"] for row in metrics_of(stopped)] == [0, 1, 2, 3, 4]
    changed = ("--image_size", 32)
    project.refused(STAGE4, "--dataset", "jsonl", *flags, *resume, *changed, says=["--image_size 64 (now 32)"])


def test_preparing_on_its_own(project, photos):
    result = project.run(PREPARE4, "--data_root", photos, "--name", "shapes_captioned", name="jsonl")
    assert "52 train images" in result.stdout and "2.0 an image" in result.stdout
    table = read_json(project.root / "metadata/shapes_captioned/captions.json")
    assert len(table) == 64 and table["photos/red_circle/0.jpg"]["label"] == "circle"
    project.refused(PREPARE4, "--dataset", "coco", says=["--data_root DIR", "captions_train2014.json"])


# ---- bad input


def test_bad_captions_are_refused_with_their_place(project, photos, tmp_path):
    root = tmp_path / "raw"
    root.mkdir()
    (root / "photos").symlink_to(project.photos)
    flags = ("--dataset", "jsonl", "--data_root", root, "--name", "broken", "--model", "tiny-rn")
    out = ("--save_path", tmp_path / "out", "--log_dir", tmp_path / "out")
    (root / "captions.jsonl").write_text('{"image": "photos/red_circle/0.jpg", "captions": ["x"}')
    project.refused(STAGE4, *flags, *out, says=["captions.jsonl, line 1, column", "not valid JSON"])
    write(root, [{"image": "photos/red_circle/0.jpg", "captions": []}])
    project.refused(STAGE4, *flags, *out, says=["none of the 1 images has a caption"])
    write(root, [{"image": f"photos/gone/{n}.jpg", "captions": ["x"]} for n in range(9)])
    project.refused(STAGE4, *flags, *out, says=["9 of 9 images", "photos/gone/0.jpg", "--data_root"])
    lines = [json.loads(line) for line in (photos / "captions.jsonl").read_text().splitlines()]
    write(root, lines[:3])
    project.refused(STAGE4, *flags, *out, says=["broken has 1 train image"])
    renamed = lines[6]["image"]
    lines[5]["captions"], lines[6]["image"] = [], "photos/gone.jpg"
    write(root, lines)
    result = project.server.run(PREPARE4, *flags[:-2])
    assert result.returncode == 0 and "left out: 3 images or captions" in result.stdout, result.stderr
    listed = (project.root / "metadata/broken/left_out.csv").read_text()
    assert "image without a caption" in listed and "photos/gone.jpg,file not found" in listed
    assert f"{renamed},not in the captions" in listed


def test_weights_and_models_that_cannot_be_had_name_the_way_out(project, photos, stage4, tmp_path):
    out = ("--save_path", tmp_path, "--log_dir", tmp_path)
    flags = ("--dataset", "jsonl", "--data_root", photos, *out)
    project.refused(STAGE4, *flags, says=["ViT-B-32,openai cannot be downloaded", "--pretrained PATH"])
    smoke = ("--dataset", "synthetic", "--smoke", *out)
    for further, says in (
        (("--image_weights", "pretrained"), ["resnet18 cannot be downloaded", "--image_weights PATH"]),
        (("--image_weights", "gone.pth"), ["gone.pth does not exist", "--image_weights random"]),
        (("--image_encoder", "resnet81"), ["unknown image encoder 'resnet81'", "resnet18"]),
        (("--resume_ckpt", stage4), ["weights only", "_LAST"]),
    ):
        project.refused(STAGE4, *smoke, *further, says=says)
    assert not list(tmp_path.iterdir())


def test_checkpoints_that_do_not_fit_are_refused(project, stage4, tmp_path):
    (stage0,) = project.checkpoints(STAGE0).glob("tiny-rn_*.pth")
    changed = tmp_path / "changed_BEST.pth"
    content = load(stage4)
    content["state_dict"]["text_encoder.tower.ln_final.weight"][0] += 1
    torch.save(content, changed)
    for flags, says in (
        (("--ckpt", stage4, "--image_size", 224), [str(stage4), "images of 64 px, not of 224"]),
        (("--ckpt", stage0), ["of stage 0, not of stage 4"]),
        (("--ckpt", tmp_path / "gone.pth"), ["gone.pth does not exist"]),
        (("--ckpt", changed), ["its text encoder is not the one"]),
        (("--dataset", "coco"), ["no checkpoint", "train_frozen_text_alignment.py --dataset coco"]),
    ):
        project.refused(EVAL4, *flags, "--results_dir", tmp_path / "out", says=says)
