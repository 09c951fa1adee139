"""The scripts of model/ as processes, on 16 drawn identities in a checkout of their own."""

import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stage_project import (
    EVAL2,
    EVAL3,
    FEWER_PICTURES,
    NAME,
    PHOTOS,
    ROOT,
    STAGE0,
    STAGE1,
    STAGE2,
    STAGE3,
    load,
    read_json,
    write_json,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clipfh.models.clip import is_image_parameter, is_text_parameter, load_clip

SOUP = "src/clipfh/training/soup.py"
VARIANTS = ("v1", "v2", "v3", "v4")
ENTRIES = {variant: STAGE3.replace(".py", f"_{variant}.py") for variant in VARIANTS}
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("model/*/*.py", "preprocessing/*.py")
    for path in ROOT.glob(pattern)
    if "run_script(" in path.read_text(encoding="utf-8")  # the others are modules beside a script
)
needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs the extra lora")
SMALL = ("--p", 4, "--k", 2, "--precision", "float32")


@pytest.fixture(scope="module")
def stage2(project):
    """One run of stage 2 with default folders; returns its BEST."""
    project.runs["stage2"] = project.run(STAGE2, "--smoke")
    return project.best(STAGE2, "triplet+center+id+i2t")


@pytest.fixture(scope="module")
def stage3(project, stage2):
    """One run of each variant through its own script, in the order in which they build on each other."""
    for variant, entry in ENTRIES.items():
        start = ("--init_ckpt", "stage2") if variant == "v4" else ()
        project.runs[variant] = project.run(entry, "--smoke", *start)
    return {variant: project.best(STAGE3, variant) for variant in VARIANTS}


def test_every_script_documents_itself(project):
    assert len(SCRIPTS) == 23
    for script in SCRIPTS:
        result = project.server.run(script, "--help")
        assert result.returncode == 0, result.stderr
        takes_no_dataset = "/stage0_" in script or script.endswith("inference.py")
        assert "usage:" in result.stdout and (takes_no_dataset or "--dataset" in result.stdout)


def test_every_script_says_what_to_do_with_a_python_that_lacks_the_packages(project):
    for script in SCRIPTS:
        bare = [sys.executable, "-S", str(project.root / script)]
        result = subprocess.run(bare, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
        assert result.returncode == 2, f"{script}: {result.stderr}"
        assert "--setup-only" in result.stderr and "Traceback" not in result.stderr


def test_stage0_writes_a_checkpoint_once(project):
    (checkpoint,) = project.checkpoints(STAGE0).glob("tiny-rn_*.pth")
    content = load(checkpoint)
    assert (content["stage"], content["model"], content["image_size"]) == (0, "tiny-rn", 64)
    logs = project.root / "model/stage0_pretrain/logs" / checkpoint.stem
    assert len((logs / "metrics.jsonl").read_text().splitlines()) == 1
    before = checkpoint.stat().st_mtime_ns
    assert "has this configuration already" in project.run(STAGE0, "--smoke").stdout
    assert checkpoint.stat().st_mtime_ns == before


def check_run_files(project, script, best, seed, terms):
    """The files of one training run."""
    run = best.stem.removesuffix("_BEST")
    logs = (project.root / script).parent / "logs" / run
    recorded = read_json(logs / "config.json")
    assert recorded["config"]["seed"] == seed and recorded["config"]["dataset"] == NAME
    assert {"torch", "open_clip_torch", "numpy"} <= recorded["packages"].keys()
    if project.commit:
        assert recorded["git_commit"] == project.commit + "+changes"
    rows = [json.loads(line) for line in (logs / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1]
    assert {f"loss_{term}" for term in terms} | {"lr", "val_mAP", "val_rank1", "val_text_mAP"} <= rows[1].keys()
    assert run in (logs / "train.log").read_text() and "epoch 1/1" in (logs / "train.log").read_text()
    events = EventAccumulator(str(logs)).Reload()
    assert {"epoch/val_mAP", "step/loss", "step/lr", "step/grad_norm"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("epoch/val_mAP")) == 2 and len(events.Scalars("step/loss")) == 3  # 24 photos in 4 x 2
    last = load(best.with_name(f"{run}_LAST.pth"))
    assert load(best).keys() < last.keys() and last["training"]["epoch"] == 1
    assert rows[1]["val_mAP"] == last["val_mAP"]
    if script == STAGE3:  # where text learns, it counts
        mean = (rows[1]["val_mAP"] + rows[1]["val_text_mAP"]) / 2
        assert last["val_mean_mAP"] == rows[1]["val_mean_mAP"] == pytest.approx(mean)
    assert last["train_seed"] == seed and len(last["recipe"]) == 12


def test_stage2_leaves_the_files_of_a_run(project, stage2):
    check_run_files(project, STAGE2, stage2, 0, ("triplet", "center", "id", "i2t"))


def test_stage2_changes_the_image_encoder_alone(project, stage2):
    (start,) = project.checkpoints(STAGE0).glob("*.pth")
    before, after = load(start)["state_dict"], load(stage2)["state_dict"]
    text = [name for name in before if is_text_parameter(name)]
    assert len(text) > 10 and all(torch.equal(before[name], after[name]) for name in text)
    assert not torch.equal(before["visual.trunk.conv1.0.weight"], after["visual.trunk.conv1.0.weight"])


@pytest.mark.parametrize("script", [STAGE2, STAGE3])
def test_best_lies_between_the_first_weights_and_the_best_epochs(project, tmp_path, script):
    told = project.run(script, "--epochs", 1, *SMALL, "--wise_ft", 2, "--save_path", tmp_path, "--log_dir", tmp_path)
    (best,), (last,) = tmp_path.glob("*_BEST.pth"), tmp_path.glob("*_LAST.pth")
    best, last = load(best), load(last)
    (start,) = project.checkpoints(STAGE0).glob("*.pth")
    assert list(best["interpolation"]) == [0, 0.5, 1] and "BEST is now" in told.stdout
    chosen_by = best["val_mean_mAP" if script == STAGE3 else "val_mAP"]
    assert chosen_by == best["interpolation"][best["alpha"]] == max(best["interpolation"].values())
    start, end = load(start)["state_dict"], last["state_dict"]
    for name in ("visual.trunk.conv1.0.weight", "text_projection"):
        between = torch.lerp(start[name], end[name], best["alpha"])
        torch.testing.assert_close(best["state_dict"][name], between, rtol=1e-5, atol=1e-6)
    assert len(list(tmp_path.glob("*/interpolation.png"))) == 1
    frozen = script == STAGE2 or best["alpha"] == 0
    assert torch.equal(best["state_dict"]["text_projection"], start["text_projection"]) == frozen


@pytest.mark.parametrize("variant", VARIANTS)
def test_stage3_leaves_the_files_of_a_run(project, stage3, variant):
    check_run_files(project, STAGE3, stage3[variant], 0, ("infonce" if variant == "v1" else "supcon",))


def test_stage3_changes_both_encoders(project, stage2, stage3):
    (start,) = project.checkpoints(STAGE0).glob("*.pth")
    for source, variant in ((start, "v1"), (start, "v2"), (stage3["v2"], "v3"), (stage2, "v4")):
        before, after = load(source)["state_dict"], load(stage3[variant])["state_dict"]
        for is_part in (is_image_parameter, is_text_parameter):
            weights = [name for name in before if is_part(name) and before[name].ndim >= 2]
            moved = sum(not torch.equal(before[name], after[name]) for name in weights)
            # a mask and the embeddings of positions that no prompt reaches may stay
            assert moved >= 0.8 * len(weights), (variant, is_part.__name__)


def test_variants_start_where_they_say(project, stage2, stage3):
    for variant, source in (("v3", stage3["v2"]), ("v4", stage2)):
        assert source.relative_to(project.root).as_posix() in project.runs[variant].stdout
    assert "(random)" in project.runs["v1"].stdout and "raw prompts" in project.runs["v1"].stdout
    assert "0.0015 constant" in project.runs["v3"].stdout  # three times v2's
    assert "token_safe prompts" in project.runs["v4"].stdout and "cosine" in project.runs["v4"].stdout


def test_trainings_of_other_seeds_have_the_same_recipe_and_of_other_flags_another(project, stage2, stage3, tmp_path):
    recipes = {"stage2": load(stage2)["recipe"], **{name: load(path)["recipe"] for name, path in stage3.items()}}
    assert len(set(recipes.values())) == 5
    starts = {name: load(path)["start_recipe"] for name, path in stage3.items()}
    assert starts == {"v1": "", "v2": "", "v3": recipes["v2"], "v4": recipes["stage2"]}
    assert load(stage2)["start_recipe"] == ""

    def recipe_and_seed(name, script, *flags):
        where = ("--save_path", tmp_path / name, "--log_dir", tmp_path / name)
        project.run(script, "--smoke", *where, *flags)
        (best,) = (tmp_path / name).glob("*_BEST.pth")
        content = load(best)
        return best, content["recipe"], content["train_seed"]

    second, *recorded = recipe_and_seed("second", STAGE2, "--seed", 1)
    assert recorded == [load(stage2)["recipe"], 1]
    *_, recipe, seed = recipe_and_seed("third", STAGE3, "--seed", 1, "--init_ckpt", second)
    assert (recipe, seed) == (load(stage3["v4"])["recipe"], 1)  # each from stage 2 of its own seed
    assert recipe_and_seed("faster", STAGE2, "--lr", 2e-3)[1] != load(stage2)["recipe"]

    soup, both = tmp_path / "soup.pth", ("--ckpts", stage2, second)
    mixed = project.server.run(SOUP, *both, "--out", soup)
    assert mixed.returncode == 0 and "of the soup" in mixed.stdout, mixed.stderr
    content, name = load(soup), "visual.trunk.conv1.0.weight"
    mean = (load(stage2)["state_dict"][name] + load(second)["state_dict"][name]) / 2
    torch.testing.assert_close(content["state_dict"][name], mean)
    told = [float(figure) for figure in re.findall(r"\d+\.\d", mixed.stdout.splitlines()[0])]
    assert told == pytest.approx([100 * load(path)["val_mAP"] for path in (*both[1:], soup)], abs=0.051)
    evaluated = project.run(EVAL2, *FEWER_PICTURES, "--ckpt", soup, "--results_dir", tmp_path / "results")
    assert "triplet+center+id+i2t_soup2" in evaluated.stdout
    (metrics,) = (tmp_path / "results").glob("*/metrics.json")
    assert read_json(metrics)["variant"] == "triplet+center+id+i2t_soup2" and read_json(metrics)["seed"] is None


PARTLY = ("--freeze_until", 0, "--head_epochs", 2, "--keep_start", 0.2, "--eval_image_size", 96)


LORA = ("--model", "tiny-vit", "--pretrained", "random", "--lora_rank", 4)


@pytest.mark.parametrize(
    ("script", "further"),
    [
        (STAGE2, (*PARTLY, "--loss", "supcon+i2t+distill", "--text", "learned", "--learned_epochs", 3)),
        (STAGE3, ("--min_batches", 7)),
        (STAGE3, ("--grad_cache_chunk", 3, "--loss", "supcon+distill", "--freeze_text_blocks")),
        pytest.param(STAGE2, (*LORA, "--keep_start", 0.2, "--head_epochs", 1), marks=needs_peft),
        pytest.param(STAGE3, (*LORA, "--ema_decay", 0.9, "--grad_cache_chunk", 3), marks=needs_peft),
    ],
    ids=str,
)
def test_a_stopped_run_continues_as_if_it_had_not_been(project, tmp_path, script, further):
    flags = ["--epochs", 4, *SMALL, "--seed", 3, *further]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    project.run(script, *flags, "--save_path", straight, "--log_dir", straight)

    # a real stop: Ctrl-C, as soon as the first epoch is in LAST
    out = ("--dataset", NAME, "--save_path", stopped, "--log_dir", stopped)
    ended = project.server.run_until(lambda: list(stopped.glob("*_LAST.pth")), script, *flags, *out)
    assert ended.returncode == 130 and "Traceback" not in ended.stderr, ended.stderr

    (last,) = stopped.glob("*_LAST.pth")
    assert load(last)["epoch"] < 4
    project.run(script, *flags, "--save_path", stopped, "--log_dir", stopped, "--resume_ckpt", last)
    (reference,) = straight.glob("*_LAST.pth")
    assert_same(load(reference), load(last))
    assert metrics_of(straight) == metrics_of(stopped)
    assert [row["epoch"] for row in metrics_of(stopped)] == [0, 1, 2, 3, 4]
    (best,), (reference,) = stopped.glob("*_BEST.pth"), straight.glob("*_BEST.pth")
    assert_same(load(reference), load(best))


@needs_peft
@pytest.mark.parametrize("script", [STAGE2, STAGE3])
def test_lora_saves_a_plain_clip_whose_blocks_moved_by_its_rank(project, tmp_path, script):
    """One without a moving average, as the mean of matrices of a rank has a higher one."""
    first = load_clip("tiny-vit", "random").model.state_dict()
    start = write_start(tmp_path / "start.pth", first)
    folders = ("--save_path", tmp_path, "--log_dir", tmp_path)
    flags = ("--model", "tiny-vit", "--pretrained", start, "--lora_rank", 4, "--freeze_until", 1, "--lr", 0.01)
    told = project.run(script, *flags, "--smoke", "--ema_decay", 0, *folders)
    assert "LoRA beside " in told.stdout
    (path,) = tmp_path.glob("*_BEST.pth")
    assert list(load(path)["state_dict"]) == list(first)
    found = load_clip("tiny-vit", str(path)).model.state_dict()
    moved = {name for name in first if not torch.equal(found[name], first[name])}
    joint = script == STAGE3
    texts = [f"transformer.resblocks.{block}." for block in range(2 * joint)]
    blocks = [*(f"visual.transformer.resblocks.{block}." for block in range(2, 6)), *texts]
    layers = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    matrices = {block + layer for block in blocks for layer in layers}
    behind = {"visual.ln_post.weight", "visual.ln_post.bias", "visual.proj", "logit_scale"}
    behind |= {"ln_final.weight", "ln_final.bias", "text_projection"} if joint else set()
    assert moved == matrices | behind
    for name in matrices:
        singular = torch.linalg.svdvals(found[name] - first[name])
        assert singular[3] > 10 * singular[4]  # beyond four is rounding
    trained = load(path.with_name(path.name.replace("BEST", "LAST")))["training"]["modules"]["clip"]
    assert sum(".lora_A." in name for name in trained) == len(matrices)


def test_held_text_blocks_stay_as_they_were(project, stage2, tmp_path):
    folders = ("--save_path", tmp_path, "--log_dir", tmp_path)
    project.run(STAGE3, "--smoke", "--init_ckpt", stage2, "--freeze_text_blocks", *folders)
    (path,) = tmp_path.glob("*_BEST.pth")
    before, after = load(stage2)["state_dict"], load(path)["state_dict"]
    moved = {name for name in before if is_text_parameter(name) and not torch.equal(before[name], after[name])}
    assert moved == {"ln_final.weight", "ln_final.bias", "text_projection"}
    assert not torch.equal(before["visual.trunk.conv1.0.weight"], after["visual.trunk.conv1.0.weight"])


def write_start(path: Path, weights: dict[str, torch.Tensor]) -> Path:
    torch.save(weights, path)
    return path


@pytest.mark.parametrize(("script", "loss"), [(STAGE2, "supcon+id+distill"), (STAGE3, "supcon+distill")])
def test_distillation_is_to_the_first_weights_and_holds_the_features_there(project, tmp_path, script, loss):
    turned = {}
    for weight in (0.01, 100):
        folder = tmp_path / str(weight)
        where = ("--save_path", folder, "--log_dir", folder)
        project.run(script, "--epochs", 2, *SMALL, *where, "--loss", loss, "--distill_weight", weight, "--ema_decay", 0)
        turned[weight] = [row["loss_distill"] / weight for row in metrics_of(folder)[1:]]
        (best,), (last,) = folder.glob("*_BEST.pth"), folder.glob("*_LAST.pth")
        objective = load(last)["training"]["modules"]["objective"]
        anchors = {name: value for name, value in objective.items() if "anchors" in name}
        assert len(anchors) == (1 if script == STAGE2 else 2)
        for value in anchors.values():
            torch.testing.assert_close(value.norm(dim=1), torch.ones(len(value)))
        assert not any("anchors" in name for name in load(best)["state_dict"])
    assert turned[100][-1] < turned[0.01][-1]


def test_learned_texts_are_the_classes_of_i2t_and_stay_with_the_run(project, stage2, tmp_path):
    folders = ("--save_path", tmp_path, "--log_dir", tmp_path)
    result = project.run(STAGE2, "--smoke", *folders, "--text", "learned")
    assert "learned prompts: loss " in result.stdout and "in 1 epochs; Rank-1 of 6 texts over" in result.stdout
    (best,), (last,) = tmp_path.glob("*_BEST.pth"), tmp_path.glob("*_LAST.pth")
    texts = load(last)["training"]["modules"]["objective"]["text_features"]
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(6))
    assert load(best)["state_dict"].keys() == load(stage2)["state_dict"].keys()  # the CLIP, and no more
    (start,) = project.checkpoints(STAGE0).glob("*.pth")
    before, after = load(start)["state_dict"], load(best)["state_dict"]
    assert all(torch.equal(before[name], after[name]) for name in before if is_text_parameter(name))
    written = stage2.with_name(stage2.name.replace("_BEST", "_LAST"))
    assert "text_features" not in load(written)["training"]["modules"]["objective"]
    flags = ("--dataset", NAME, "--smoke", *folders)
    project.refused(STAGE2, *flags, "--text", "learned", "--loss", "supcon", says=["--text learned", "has no i2t"])
    project.refused(
        STAGE2, *flags, "--text", "learned", "--resume_ckpt", written, says=["--text prompts (now learned)"]
    )


def test_a_run_is_not_continued_with_other_flags(project, stage2, tmp_path):
    last = stage2.with_name(stage2.name.replace("_BEST", "_LAST"))
    flags = ("--dataset", NAME, "--smoke", "--save_path", tmp_path, "--log_dir", tmp_path, "--resume_ckpt", last)
    project.refused(STAGE2, *flags, "--lr", 0.5, "--image_size", 96, says=["--image_size None", "--lr 0.001 (now 0.5)"])
    assert not list(tmp_path.iterdir())


def test_smoke_runs_are_kept_apart(project, tmp_path):
    result = project.server.run(STAGE2, "--dataset", NAME, "--smoke", "--pretrained", "random", "--log_dir", tmp_path)
    assert result.returncode == 0
    assert list((project.checkpoints(STAGE2) / "smoke").glob("*_BEST.pth"))


def metrics_of(folder: Path) -> list[dict]:
    """The lines of the only run's metrics.jsonl, without its times."""
    (path,) = folder.glob("*/metrics.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def assert_same(first, second, place="checkpoint"):
    if isinstance(first, dict):
        assert first.keys() == second.keys(), place
        for key in first.keys() - {"seconds"}:  # how long an epoch took is another every time
            assert_same(first[key], second[key], f"{place}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), place
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_same(one, other, f"{place}[{number}]")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), place
    else:
        assert first == second, place


def test_accumulation_early_stopping_and_another_architecture(project, tmp_path):
    flags = ("--model", "tiny-vit", "--pretrained", "random", "--loss", "supcon", "--accumulate", 2, "--lr", 1e-9)
    folders = ("--save_path", tmp_path, "--log_dir", tmp_path)
    result = project.run(STAGE2, *SMALL, *flags, *folders, "--epochs", 9, "--patience", 1)
    assert "stopped early" in result.stdout and len(metrics_of(tmp_path)) < 10  # such a rate improves nothing
    (last,) = tmp_path.glob("*_LAST.pth")
    assert load(last)["model"] == "tiny-vit"
    epochs = len(metrics_of(tmp_path)) - 1
    assert load(last)["training"]["step"] == 2 * epochs  # 3 batches an epoch: a step of 2, one of 1


def test_gradient_caching_trains_as_the_whole_batch_does(project, tmp_path):
    flags = ("--model", "tiny-vit", "--pretrained", "random", "--epochs", 1, "--seed", 1, "--loss", "supcon+id")
    still = ("--min_crop", 1, "--color_jitter", 0, "--flip", 0)  # views differ otherwise: they are drawn by the chunk
    losses = []
    for chunk in (0, 3):
        folder = tmp_path / str(chunk)
        out = ("--save_path", folder, "--log_dir", folder, "--accumulate", 2, "--grad_cache_chunk", chunk)
        assert "normalises" not in project.run(STAGE3, *SMALL, *flags, *still, *out).stdout
        losses.append(metrics_of(folder)[1]["loss_supcon"])
    assert abs(losses[0] - losses[1]) < 0.1  # but for the rotation


def test_gradient_caching_says_that_batch_norm_normalises_by_the_chunk(project, tmp_path):
    folders = ("--save_path", tmp_path, "--log_dir", tmp_path)
    result = project.run(STAGE3, *SMALL, *folders, "--epochs", 1, "--grad_cache_chunk", 4, "--precision", "bfloat16")
    assert "tiny-rn normalises by the batch: with --grad_cache_chunk, by 4 photos" in result.stdout
    held = ("--freeze_until", 3, "--grad_checkpointing")  # as small-clip's recipe does: its batch norms learn nothing
    result = project.run(STAGE3, *SMALL, *folders, "--epochs", 1, "--grad_cache_chunk", 4, *held)
    assert "normalises by the batch" not in result.stdout


@pytest.mark.parametrize("script", [STAGE2, STAGE3])
def test_fast_decoding_has_a_cache_of_its_own(project, tmp_path, script):
    folders = ("--save_path", tmp_path, "--log_dir", tmp_path)
    project.run(script, *SMALL, *folders, "--epochs", 1, "--fast_decode")
    assert list((project.root / "data/processed" / NAME / "train").glob("*_fast.npy"))


# ---- evaluation


def test_stage1_writes_metrics_rankings_figures_and_summary(project, tmp_path):
    result = project.run(STAGE1, "--results_dir", tmp_path)
    (run,) = tmp_path.glob(f"{NAME}_stage1_*")
    metrics = read_json(run / "metrics.json")
    assert (
        len(metrics["random"]) == 10
        and 0 < metrics["official"]["mAP"] <= 1
        and 0 < metrics["text_to_image"]["mAP"] <= 1
    )
    with (run / "rankings.csv").open(newline="") as file:
        rankings = list(csv.DictReader(file))
    assert len(rankings) == 16 * 16  # queries x gallery, under 50 of it
    assert list(run.glob("*.png"))
    with (tmp_path / "summary.csv").open(newline="") as file:
        protocols = [row["protocol"] for row in csv.DictReader(file)]
    assert sorted(protocols) == ["official", *["random"] * 10, "text_to_image"]
    assert "official split" in result.stdout
    again = project.run(STAGE1, *FEWER_PICTURES, "--results_dir", tmp_path / "again", "--rerank", "k_reciprocal")
    (figures,) = (tmp_path / "again").glob(f"{NAME}_stage1_*/metrics.json")
    assert read_json(figures)["official"] == metrics["official"]  # the same figures from the same weights
    assert read_json(figures)["official_reranked"]["rerank_k1"] == 20 and metrics["official_reranked"] is None
    assert "re-ranked, k_reciprocal" in again.stdout
    fusion = ("--rerank", "text_fusion", "--text_weight", 1)
    fused = project.run(STAGE1, *FEWER_PICTURES, "--results_dir", tmp_path / "fused", *fusion)
    (figures,) = (tmp_path / "fused").glob(f"{NAME}_stage1_*/metrics.json")
    of_text = read_json(figures)["official_reranked"]  # the text alone: of one prompt an identity, as text to image
    assert (of_text["method"], of_text["text_weight"], of_text["num_query"]) == ("text_fusion", 1.0, 16)
    assert of_text["mAP"] == pytest.approx(metrics["text_to_image"]["mAP"])
    with (tmp_path / "fused" / "summary.csv").open(newline="") as file:
        assert [row["detail"] for row in csv.DictReader(file)] == [*[""] * 12, "text_fusion 1"]
    assert "re-ranked, text_fusion" in fused.stdout


def test_evaluation_takes_the_newest_best_of_its_dataset_and_says_which(project, stage2, stage3, tmp_path):
    other = stage2.with_name("clip_img_encoder_of_others_BEST.pth")
    torch.save({**load(stage2), "dataset": "another"}, other)  # newer, and of another dataset
    try:
        result = project.run(EVAL2, "--results_dir", tmp_path)
        assert f"checkpoint: {stage2.relative_to(project.root).as_posix()} " in result.stdout
    finally:
        other.unlink()
    for flags, variant in (((), "v4"), (("--variant", "v2"), "v2")):
        result = project.run(EVAL3, *FEWER_PICTURES, "--results_dir", tmp_path, *flags)
        assert f"checkpoint: {stage3[variant].relative_to(project.root).as_posix()} " in result.stdout
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = [(row["stage"], row["variant"]) for row in rows if row["protocol"] == "official"]
    assert labels == [("2", "triplet+center+id+i2t"), ("3", "v4"), ("3", "v2")]
    of_another = ("--ckpt", stage3["v2"], "--variant", "v4")
    project.refused(EVAL3, *of_another, says=[stage3["v2"].name, "is of variant v2, not of --variant v4"])


def test_evaluation_of_a_given_checkpoint_with_given_folders(project, stage3, tmp_path):
    where = ("--image_dir", project.photos, "--meta_dir", project.metadata, "--model_arch", "tiny-rn")
    result = project.server.run(EVAL3, "--ckpt", stage3["v1"], *where, "--results_dir", tmp_path)
    assert result.returncode == 0 and stage3["v1"].name in result.stdout
    with (tmp_path / "summary.csv").open(newline="") as file:
        assert {row["dataset"] for row in csv.DictReader(file)} == {NAME}  # as dataset.json says


def test_evaluation_without_a_checkpoint_names_the_command(project, stage2, stage3):
    arguments = ("--dataset", "untrained", "--meta_dir", project.metadata)
    project.refused(EVAL2, *arguments, says=["no checkpoint", "train_clip_img_encoder_finetune.py --dataset untrained"])
    project.refused(EVAL3, *arguments, says=["no checkpoint", "bash run_all.sh --dataset untrained"])


# ---- what bad input gets


@pytest.fixture
def metadata(project, tmp_path):
    """A copy of the metadata, to break."""
    return Path(shutil.copytree(project.metadata, tmp_path / "metadata"))


@pytest.fixture
def train_flags(metadata, tmp_path):
    """Flags of a short training on `metadata`, whose output folders can be looked into."""
    out = ("--save_path", tmp_path / "out/checkpoints", "--log_dir", tmp_path / "out/logs")
    return ("--dataset", NAME, "--metadata_dir", metadata, "--smoke", *out)


def written(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_metadata_that_is_missing_is_refused_with_what_is_there_and_the_command_that_makes_it(project):
    """A command is named where `run_all.sh` knows the dataset; of a name that it does not know, what there is."""
    prepared = sorted(path.parent.name for path in project.root.glob("metadata/*/dataset.json"))  # by other tests, too
    assert NAME in prepared
    there_is = f"there is {', '.join(prepared)}."
    for script in (STAGE1, STAGE2, EVAL2, STAGE3, EVAL3):
        missing = str(project.root / "metadata/nowhere/dataset.json")
        project.refused(script, "--dataset", "nowhere", says=["no dataset 'nowhere'", missing, there_is])
    missing = str(project.root / "metadata/inshop/dataset.json")
    project.refused(STAGE2, "--dataset", "inshop", says=[missing, "bash run_all.sh --dataset inshop --data_root DIR"])


@pytest.mark.parametrize(
    ("script", "name"),
    [
        (STAGE2, "dataset.json"),
        (STAGE2, "image_paths_clean.json"),
        (STAGE2, "image_prompts_cleaned_for_v4.json"),
        (ENTRIES["v1"], "image_prompts_per_identity.json"),
        (ENTRIES["v2"], "image_prompts_clean.json"),
        (STAGE1, "image_paths.json"),
        (STAGE1, "image_splits.json"),
        (STAGE1, "image_prompts_cleaned_for_v4.json"),
        ("preprocessing/01_generate_prompts_from_descriptions.py", "descriptions.json"),
        ("preprocessing/05_make_retrieval_splits.py", "dataset.json"),
    ],
)
def test_malformed_json_is_named_with_its_line(project, metadata, tmp_path, script, name):
    text = (metadata / name).read_text(encoding="utf-8")
    (metadata / name).write_text(text.replace("\n", "\n]", 2).replace("\n]", "\n", 1), encoding="utf-8")  # in line 3
    out = {
        STAGE1: ("--results_dir", tmp_path / "out"),
        STAGE2: ("--save_path", tmp_path / "out", "--log_dir", tmp_path / "out"),
    }
    flags = out.get(script, out[STAGE2] if script in ENTRIES.values() else ())
    dataset = "folder" if script.startswith("preprocessing") else NAME
    arguments = ("--dataset", dataset, "--metadata_dir", metadata, *flags)
    project.refused(script, *arguments, says=[f"{metadata / name}, line 3, column 1: not valid JSON", "preprocessing/"])
    assert not written(tmp_path)


def test_images_that_cannot_be_read_are_listed_and_left_out_on_request(project, stage2, tmp_path):
    table = read_json(project.metadata / "image_paths_clean.json")
    photos = Path(shutil.copytree(project.photos, tmp_path / "photos"))
    of_split = {
        split: [image for image, entry in table.items() if entry["split"] == split] for split in ("train", "query")
    }
    for images in of_split.values():
        (photos / images[0]).unlink()
        (photos / images[1]).write_bytes((photos / images[1]).read_bytes()[:200])
    folders = ("--dataset", NAME, "--image_dir", photos)
    out = ("--smoke", "--save_path", tmp_path / "out", "--log_dir", tmp_path / "out")
    for script, flags, split, total in (
        (STAGE2, out, "train", 8 * PHOTOS),
        (STAGE3, out, "train", 8 * PHOTOS),
        (STAGE1, ("--results_dir", tmp_path / "results"), "query", 8 * PHOTOS),
        (EVAL2, (*FEWER_PICTURES, "--results_dir", tmp_path / "results", "--ckpt", stage2), "query", 8 * PHOTOS),
    ):
        says = [f"2 of {total} images", of_split[split][0], "unreadable_images.csv", "--skip_unreadable"]
        result = project.refused(script, *folders, *flags, says=says)
        assert not written(tmp_path)
        listing = Path(result.stderr.split("listed in ")[1].split(". Mend")[0])
        with (project.root / listing).open(newline="") as file:
            assert [row["image"] for row in csv.DictReader(file)] == of_split[split][:2]
        result = project.server.run(script, *folders, *flags, "--skip_unreadable")
        assert result.returncode == 0, result.stderr
        assert f"left out 2 unreadable images of {total}" in result.stdout
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    (tmp_path / "empty").mkdir()
    nothing = ("--dataset", NAME, "--image_dir", tmp_path / "empty", "--skip_unreadable")
    project.refused(STAGE1, *nothing, "--results_dir", tmp_path / "results", says=["none of the", "--image_dir"])
    project.refused(STAGE2, *nothing, *out, says=["none of the", "--image_dir"])


def test_evaluation_needs_a_readable_query_and_gallery(project, tmp_path):
    table = read_json(project.metadata / "image_paths.json")
    for split in ("query", "gallery"):
        photos = Path(shutil.copytree(project.photos, tmp_path / split))
        for image in (image for image, entry in table.items() if entry["split"] == split):
            (photos / image).unlink()
        flags = ("--dataset", NAME, "--image_dir", photos, "--skip_unreadable", "--results_dir", tmp_path / "results")
        project.refused(STAGE1, *flags, says=["got 0" if split == "query" else "0 gallery images"])
    assert not (tmp_path / "results/summary.csv").exists()


def test_an_image_folder_that_is_missing_is_refused(project, train_flags, tmp_path):
    project.refused(
        STAGE2, *train_flags, "--image_dir", tmp_path / "gone", says=[str(tmp_path / "gone"), "--image_dir"]
    )


def test_an_identity_without_prompt_is_named(project, metadata, train_flags, tmp_path):
    path = metadata / "image_prompts_cleaned_for_v4.json"
    table = read_json(metadata / "image_paths.json")
    for split, script, flags in (
        ("train", STAGE2, train_flags),
        ("train", STAGE3, train_flags),
        ("gallery", STAGE1, ("--dataset", NAME, "--metadata_dir", metadata, "--results_dir", tmp_path / "out")),
    ):
        item_id = next(entry["item_id"] for entry in table.values() if entry["split"] == split)
        prompts = read_json(project.metadata / path.name)
        del prompts[item_id]
        write_json(path, prompts)
        project.refused(script, *flags, says=[str(path), item_id, "04_generate_structured_prompts_for_v4.py"])
        assert not written(tmp_path)


@pytest.mark.parametrize("script", [STAGE2, STAGE3])
def test_few_identities_are_all_in_a_batch_and_without_val_the_last_epoch_counts(project, metadata, tmp_path, script):
    path = metadata / "image_paths_clean.json"
    table = {image: entry for image, entry in read_json(path).items() if entry["split"] != "val"}
    train_ids = sorted({entry["item_id"] for entry in table.values() if entry["split"] == "train"})
    assert len(train_ids) > 3
    three = {image: entry for image, entry in table.items() if entry["item_id"] not in train_ids[3:]}
    write_json(path, three)
    flags = ("--metadata_dir", metadata, "--k", 2, "--precision", "float32", "--epochs", 2)
    flags += ("--save_path", tmp_path, "--log_dir", tmp_path)
    result = project.run(script, *flags)
    assert "P is 3, not 16" in result.stdout and "batches of 3 x 2" in result.stdout
    assert "no identity is held out as val" in result.stdout and "BEST: the last epoch" in result.stdout
    (config,) = (read_json(path) for path in tmp_path.glob("clip_*/config.json"))
    assert (config["config"]["p"], config["config"]["final_fit"]) == (3, True)
    (last,) = tmp_path.glob("*_LAST.pth")
    again = project.run(script, *flags, "--resume_ckpt", last)  # the run's own flags, though another P came of them
    assert "BEST: the last epoch" in again.stdout
    write_json(path, {image: entry for image, entry in three.items() if entry["item_id"] not in train_ids[1:]})
    project.refused(script, "--dataset", NAME, *flags, says=["1 identity to train on", "two or more", "--stages 1"])


def test_batches_that_the_identities_do_not_allow_are_refused(project, metadata, train_flags, tmp_path):
    path = metadata / "image_paths_clean.json"
    table, seen = read_json(path), set()
    for image, entry in list(table.items()):
        if entry["split"] == "train" and entry["item_id"] in seen:
            del table[image]
        seen.add(entry["item_id"])
    write_json(path, table)
    for script in (STAGE2, STAGE3):
        project.refused(script, *train_flags, says=["K = 2", "one image", "--k 1"])
    assert not written(tmp_path)


@pytest.mark.parametrize("image", ["../secret.jpg", "/etc/photo.jpg", "a/../../b.jpg"])
def test_a_path_that_leaves_the_image_root_is_refused(project, metadata, train_flags, image):
    for name, script, flags in (
        ("image_paths_clean.json", STAGE2, train_flags),
        ("image_paths.json", STAGE1, ("--dataset", NAME, "--metadata_dir", metadata)),
    ):
        table = read_json(metadata / name)
        write_json(metadata / name, {**table, image: {"item_id": "red_square", "split": "train", "camera": ""}})
        project.refused(script, *flags, says=[str(metadata / name), repr(image), "leaves the image root"])


def test_unknown_names_are_refused_with_the_valid_ones(project, train_flags, tmp_path):
    for flags, says in (
        (("--model", "ViT-C/16"), ["unknown model 'ViT-C/16'", "ViT-B/16", "RN50", "tiny-rn"]),
        (("--pretrained", "nonsense"), ["'nonsense'", "neither a file nor a tag", "random"]),
        (("--loss", "supcon+magic"), ["unknown term 'magic'"]),
        (("--loss", "id+id"), ["twice"]),
        (("--device", "abacus"), ["--device abacus", "cpu"]),
    ):
        for script in (STAGE2, STAGE3):
            project.refused(script, *train_flags, *flags, says=says)
    stage1 = ("--dataset", NAME, "--results_dir", tmp_path / "out")
    project.refused(STAGE1, *stage1, "--model", "RN51", says=["unknown model", "RN50"])
    project.refused(STAGE1, *stage1, "--model", "RN50", "--pretrained", "nope", says=["Tags: openai"])
    project.refused(STAGE3, *train_flags, "--init_ckpt", "v9", says=["--init_ckpt v9", "stage2"])
    project.refused(STAGE3, *train_flags, "--variant", "v9", says=["v1", "v4"])
    assert not written(tmp_path)


def test_weights_that_cannot_be_downloaded_are_named(project, tmp_path):
    flags = ("--dataset", NAME, "--model", "RN50", "--pretrained", "openai", "--results_dir", tmp_path / "out")
    project.refused(STAGE1, *flags, says=["RN50,openai cannot be downloaded", "https://", "--pretrained PATH"])


def test_checkpoints_that_do_not_fit_are_refused(project, stage2, stage3, train_flags, tmp_path):
    (stage0,) = project.checkpoints(STAGE0).glob("*.pth")
    last = stage2.with_name(stage2.name.replace("BEST", "LAST"))
    damaged, no_weights = tmp_path / "damaged.pth", tmp_path / "text.pth"
    damaged.write_bytes(stage2.read_bytes()[:100_000])
    no_weights.write_text("not weights")
    evaluate = ("--dataset", NAME, "--results_dir", tmp_path / "out")
    resume = ("--resume_ckpt", last)
    for script, flags, says in (
        (EVAL3, (*evaluate, "--ckpt", stage2), [str(stage2), "of stage 2, not of stage 3"]),
        (EVAL2, (*evaluate, "--ckpt", stage3["v4"]), ["of stage 3, not of stage 2"]),
        (EVAL2, (*evaluate, "--ckpt", stage0), ["of stage 0, not of stage 2"]),
        (EVAL2, (*evaluate, "--ckpt", stage2, "--model", "tiny-vit"), ["holds a tiny-rn, not a tiny-vit"]),
        (EVAL2, (*evaluate, "--ckpt", tmp_path / "gone.pth"), [str(tmp_path / "gone.pth"), "does not exist"]),
        (EVAL2, (*evaluate, "--ckpt", damaged), [str(damaged)]),
        (EVAL2, (*evaluate, "--ckpt", no_weights), [str(no_weights)]),
        (STAGE2, (*train_flags, "--model", "tiny-vit", "--pretrained", stage0), ["holds a tiny-rn, not a tiny-vit"]),
        (STAGE3, (*train_flags, "--model", "tiny-vit", "--init_ckpt", stage2), ["holds a tiny-rn, not a tiny-vit"]),
        (STAGE3, (*train_flags, *resume), [str(last), "of stage 2", "stage 3"]),
        (STAGE2, (*train_flags, *resume, "--model", "tiny-vit", "--pretrained", "random"), ["tiny-rn", "tiny-vit"]),
        (STAGE2, (*train_flags, "--resume_ckpt", stage2), [str(stage2), "weights only", "_LAST"]),
        (STAGE2, (*train_flags, *resume, "--loss", "supcon"), ["other flags"]),
        (STAGE2, (*train_flags, *resume, "--seed", 5), ["seed"]),
    ):
        project.refused(script, *flags, says=says)
    assert not written(tmp_path)


def test_folders_that_cannot_be_written_are_refused_before_anything_is_done(project, stage2, train_flags, tmp_path):
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "folder"
    for script, flag in (
        (STAGE2, "--save_path"),
        (STAGE2, "--log_dir"),
        (STAGE3, "--save_path"),
        (STAGE3, "--log_dir"),
    ):
        project.refused(script, *train_flags, flag, below, says=[str(below), f"another {flag}"])
    for flag in ("--save_path", "--log_dir"):
        project.refused(STAGE0, "--smoke", "--seed", 9, flag, below, says=[str(below), f"another {flag}"])
    for script in (STAGE1, EVAL2):
        project.refused(script, "--dataset", NAME, "--results_dir", below, says=[str(below), "another --results_dir"])
    assert not written(tmp_path)


IMPOSSIBLE = (
    (("--p", 0), "at least 1"),
    (("--k", 0), "at least 1"),
    (("--epochs", 0), "at least 1"),
    (("--epochs", -3), "at least 1"),
    (("--lr", -1), "more than 0"),
    (("--lr", 0), "more than 0"),
    (("--lr", "nan"), "not a finite number"),
    (("--accumulate", 0), "at least 1"),
    (("--image_size", 7), "at least 32"),
    (("--clip_grad", 0), "more than 0"),
    (("--weight_decay", -1), "at least 0"),
    (("--warmup_fraction", 1.5), "at most 0.9"),
    (("--min_crop", 0), "more than 0"),
    (("--flip", 2), "at most 1"),
    (("--patience", -1), "at least 0"),
    (("--seed", -1), "at least 0"),
    (("--p", "many"), "invalid int value"),
)


@pytest.mark.parametrize("script", [STAGE2, STAGE3])
def test_impossible_values_are_refused(project, train_flags, tmp_path, script):
    further = ((("--center_lr", -1), "more than 0"),)
    if script == STAGE3:
        further = ((("--temperature", 0), "more than 0"), (("--grad_cache_chunk", -1), "at least 0"))
    for (flag, value), text in IMPOSSIBLE + further:
        project.refused(script, *train_flags, flag, value, says=[flag, text, str(value)])
    assert not written(tmp_path)


def test_impossible_values_of_evaluation_and_pretraining_are_refused(project):
    for flag, value in (("--batch_size", 0), ("--image_size", 7)):
        project.refused(STAGE1, "--dataset", NAME, flag, value, says=[flag, "at least"])
    for flag, value in (("--epochs", 0), ("--temperature", 0), ("--lr", -1), ("--batch_size", 0), ("--seed", -1)):
        project.refused(STAGE0, "--smoke", flag, value, says=[flag])


@pytest.mark.parametrize(("script", "evaluate"), [(STAGE2, EVAL2), (STAGE3, EVAL3)])
def test_a_final_fit_trains_on_val_too_and_keeps_the_last_epoch(project, tmp_path, script, evaluate):
    folders = ("--save_path", tmp_path, "--log_dir", tmp_path)
    result = project.run(script, *SMALL, *folders, "--epochs", 2, "--final_fit")
    assert "val mAP" not in result.stdout and "BEST: the last epoch" in result.stdout
    (best,) = tmp_path.glob("*_BEST.pth")
    content = load(best)
    assert content["epoch"] == 2 and "val_mAP" not in content
    assert [row.keys() & {"val_mAP"} for row in metrics_of(tmp_path)] == [set(), set()]
    figures = project.run(evaluate, *FEWER_PICTURES, "--ckpt", best, "--results_dir", tmp_path / "results")
    assert "no val: a final fit" in figures.stdout


def test_rectangular_input_from_training_to_evaluation(project, tmp_path):
    folders = ("--save_path", tmp_path, "--log_dir", tmp_path)
    flags = ("--image_size", "64x32", "--resize_mode", "squash", "--epochs", 1)
    model = ("--model", "tiny-vit", "--pretrained", "random")
    result = project.run(STAGE2, *SMALL, *folders, *model, *flags)
    assert "64 x 32 px, squash" in result.stdout
    (best,) = tmp_path.glob("*_BEST.pth")
    content = load(best)
    assert tuple(content["image_size"]) == (64, 32) and content["resize_mode"] == "squash"
    project.run(EVAL2, "--ckpt", best, "--results_dir", tmp_path / "results")
    result = project.run(STAGE3, *SMALL, *folders, "--model", "tiny-vit", "--init_ckpt", best, "--epochs", 1)
    assert "64 x 32 px, squash" in result.stdout  # as the checkpoint was trained
    for size, text in (("64x", "is no size"), ("16x64", "at least 32"), ("0x0", "at least 32"), ("a", "256x128")):
        project.refused(STAGE2, "--dataset", NAME, "--image_size", size, says=["--image_size", text])
    project.refused(
        STAGE1, "--dataset", NAME, "--model", "RN50", "--pretrained", "random", "--image_size", "64x32",
        says=["RN50 pools with square position embeddings"],
    )  # fmt: skip


def test_a_fold_has_val_identities_of_its_own_and_is_no_checkpoint_of_the_dataset(project, stage2, tmp_path):
    folders = ("--save_path", tmp_path, "--log_dir", tmp_path)
    result = project.run(STAGE2, *SMALL, *folders, "--epochs", 1, "--val_fold", "1/2", "--p", 3)
    (best,) = tmp_path.glob("*_BEST.pth")
    content = load(best)
    assert content["data_digest"] != load(stage2)["data_digest"]
    assert set(content["seen_identities"]) == {content["data_digest"]}
    assert content["val_fold"] == [1, 2] and "val_fold" not in load(stage2)
    assert "16 photos of 4 identities" in result.stdout  # of 8 to train and validate on
    figures = project.run(EVAL2, *FEWER_PICTURES, "--ckpt", best, "--results_dir", tmp_path / "results")
    assert "official" in figures.stdout
    for wrong in ("2/2", "0/1", "half", "1/200"):
        project.refused(STAGE2, "--dataset", NAME, "--val_fold", wrong, says=["is no fold"])
    project.refused(STAGE2, "--dataset", NAME, "--val_fold", "0/9", says=["9 folds of 8 train identities"])
    project.refused(STAGE2, "--dataset", NAME, "--val_fold", "0/2", "--final_fit", says=["give one of them"])
