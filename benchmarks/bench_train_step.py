"""Training steps of stages 2 and 3 beside the bare forward, backward and AdamW step of the same towers and batch.

    python benchmarks/bench_train_step.py
    python benchmarks/bench_train_step.py --quick

Ours is the loop's `train_one_epoch` with the stages' own steps: sampler, views of decoded photos, loss, gradient norm,
moving average, logs. The bare step encodes float images (and tokens) that lie in memory, takes the mean square of the
features for a loss, and steps torch's fused AdamW; precision and parameters are the same. Both take turns in one
process, some steps at a time, so that a drift of the machine's speed meets them alike; the share is the median over the
turns.

Gradient caching is compared with plain steps: with one of the whole batch for its gradients, with an
epoch of steps of a chunk's size for its memory. There the views are the photos themselves, so that both see the same.
"""

import itertools
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from harness import ROOT, Case, bar, median, row, run_benchmark, run_in_turn, save_results

THREADS = 2
STAGES = {
    2: ("stage2_img_encoder_finetune", "train_clip_img_encoder_finetune"),
    3: ("stage3_joint_img_text_finetune", "train_clip_joint_encoders"),
}
TINY = {"model": "tiny-rn", "image_size": 64, "p": 16, "k": 2, "steps": 10, "turns": 7}
LARGE = {"model": "ViT-B-32", "image_size": 224, "p": 16, "k": 2, "steps": 1, "turns": 3}
MODELS = {"tiny-rn 64 px": TINY, "ViT-B/32 224 px": LARGE}


def prepare_in_turn(stage, model, image_size, p, k, steps, turns):
    """Seconds of a step, bare and ours, and the median of their ratios over the turns."""
    from clipfh.core.freed_memory import keep_freed_memory

    keep_freed_memory()  # as a training does; the bare step gains as much from it
    training = _training(stage, model, image_size, p, k, steps)
    ours, bare = _epoch(training), _bare_epoch(stage, training, p * k, steps)

    def run():
        seconds = {"bare": [], "ours": []}
        for _ in range(turns):
            for name, epoch in (("bare", bare), ("ours", ours)):
                start = time.perf_counter()
                epoch()
                seconds[name].append((time.perf_counter() - start) / steps)
        ratios = [one / other for one, other in zip(seconds["bare"], seconds["ours"], strict=True)]
        return {**{name: statistics.median(values) for name, values in seconds.items()}, "ratios": ratios}

    return run


def prepare_epoch(model, image_size, p, k, batches, grad_cache_chunk):
    """An epoch of stage 3, as it runs, from the first allocation on."""
    return _epoch(_training(3, model, image_size, p, k, batches, grad_cache_chunk))


def _epoch(training):
    numbers = itertools.count()

    def run():
        training.loop.train_one_epoch(training.run, next(numbers), training.batches, training.step)

    return run


def _bare_epoch(stage, training, batch_size, steps):
    import torch
    from torch.optim import AdamW

    from clipfh.core.run import autocast
    from clipfh.training.state import decay_groups

    model, size = training.clip.model, training.clip.image_size
    optimizer = AdamW(decay_groups(model, 1e-6, 0.05), betas=(0.9, 0.98), eps=1e-6, fused=True)
    images = torch.rand(batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    tokens = None if stage == 2 else next(iter(training.batches(0))).tokens

    def run():
        model.train()
        for _ in range(steps):
            with autocast(torch.device("cpu"), "auto"):
                loss = model.encode_image(images).float().square().mean()
                if tokens is not None:
                    loss = loss + model.encode_text(tokens).float().square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def prepare_gradients(model, image_size, p, k, chunk):
    """Gradient caching beside a plain step: the largest difference of a gradient, and the largest gradient."""
    import torch

    flags = ("--precision", "float32", "--loss", "supcon+id")

    def gradients(grad_cache_chunk):
        training = _training(3, model, image_size, p, k, 1, grad_cache_chunk, flags)
        training.clip.model.train()
        training.step(next(iter(training.batches(0))))
        parameters = [*training.clip.model.parameters(), *training.objective.parameters()]
        return torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])

    def run():
        plain, cached = gradients(0), gradients(chunk)
        return {"difference": (cached - plain).abs().max().item(), "largest": plain.abs().max().item()}

    return run


def _import_stage(stage):
    """A stage's training script as a module: stages are scripts, beside modules of their own."""
    import importlib
    import sys

    folder, script = STAGES[stage]
    sys.path.insert(0, str(ROOT / "model" / folder))
    return importlib.import_module(script)


def _training(stage, model, image_size, p, k, batches, grad_cache_chunk=0, flags=()):
    """What `main` of the stage makes for an epoch, from random weights, photos and prompts."""
    import torch
    import torch.nn.functional as F

    from clipfh.core.config_file import parse_with_files
    from clipfh.core.run_log import RunLog
    from clipfh.models.clip import freeze_text_encoder, load_clip
    from clipfh.training.loop import Loop
    from clipfh.training.runs import Place, TrainingRun
    from clipfh.training.sampler import PKSampler
    from clipfh.training.settings import recipe_files
    from clipfh.training.state import decay_groups

    script = _import_stage(stage)
    arguments = ["--model", model, "--p", str(p), "--k", str(k), "--lr", "1e-6", *flags]
    arguments += ["--grad_cache_chunk", str(grad_cache_chunk)] if stage == 3 else []
    files = recipe_files(ROOT / "model" / STAGES[stage][0] / "config", arguments, variant="v2" if stage == 3 else None)
    config = parse_with_files(script.Config, None, files=files, arguments=arguments)
    torch.manual_seed(0)
    clip = load_clip(model, "random", image_size=image_size)
    photos = _photos(clip, model, p * batches, k)
    sampler = PKSampler(photos.labels, p, k, seed=0)
    C, D = len(photos.item_ids), clip.model.encode_text(clip.tokenizer(["a shirt"])).shape[1]
    if stage == 2:
        freeze_text_encoder(clip.model)
        texts = F.normalize(torch.randn(C, D), dim=1)
        objective = script.ImageEncoderLoss(script.parse_terms(config.loss, p, k), texts, torch.arange(C))
        step = script.make_step(config, clip.model, objective)
        make = partial(script.make_batches, photos, sampler, 0, 0)
    else:
        prompts = {item_id: [f"a knitted jumper in the colour {int(item_id)}"] for item_id in photos.item_ids}
        pairs = script.TrainPairs(photos, prompts, clip)
        objective = script.JointLoss(script.parse_terms(config.loss), D, C)
        step = script.make_step(config, clip.model, pairs, objective)
        make = partial(pairs.batches, sampler, 0, 0, with_images=not grad_cache_chunk)
    groups = [group for module in (clip.model, objective) for group in decay_groups(module, config.lr, 0.05)]
    modules = {"clip": clip.model, "objective": objective}
    loop = Loop(clip.model, groups, modules, sampler, photos.images, config.optimisation)
    folder = Path(tempfile.mkdtemp())
    place = Place(stage, torch.device("cpu"), 0, folder, folder)
    run = TrainingRun("run", place, {}, {}, RunLog(folder / "run", config))
    return SimpleNamespace(loop=loop, run=run, batches=make, step=step, clip=clip, objective=objective)


def _photos(clip, model, num_identities, k):
    """Random photos: as many of each identity as a batch takes, so that the number of batches is known."""
    import numpy as np
    import pandas as pd
    import torch

    from clipfh.images.augment import Augmentation
    from clipfh.images.pixels import Pixels
    from clipfh.training.data import TrainPhotos

    labels, size = np.repeat(np.arange(num_identities), k), clip.image_size
    images = tuple(f"{number}.jpg" for number in range(len(labels)))
    table = pd.DataFrame({"image": images, "item_id": [f"{label:06}" for label in labels]})
    array = np.random.default_rng(0).integers(0, 256, (len(labels), size, size, 3), dtype=np.uint8)
    same_views = Augmentation(min_area=1.0, aspect=0.0, rotation=0.0, flip=0.0, color=0.0)
    augmentation = same_views if model == "tiny-vit" else Augmentation()
    return TrainPhotos(table, Pixels(array, images, ()), augmentation, clip, torch.device("cpu"))


def main(quick: bool) -> None:
    """Gradients first, then times, then memory."""
    gradients = Case("gradients", "prepare_gradients", {"model": "tiny-vit", "image_size": 64, "p": 16, "k": 4})
    gradients.arguments["chunk"] = 24  # 64 photos and 16 prompts; the last chunk is smaller
    agreement = run_in_turn([gradients], rounds=1, threads=THREADS)["gradients"][0].value
    difference = agreement["difference"] / agreement["largest"]
    if difference > 1e-3:
        raise RuntimeError(f"gradient caching gives other gradients: {agreement}")
    rows, bars = [], []
    for name, arguments in (
        {"tiny-rn 64 px": {**TINY, "p": 8, "turns": 1, "steps": 4}}.items() if quick else MODELS.items()
    ):
        batch = f"{arguments['p']} x {arguments['k']}"
        cases = [
            Case(f"stage {stage}, {name}, {batch}", "prepare_in_turn", {"stage": stage, **arguments})
            for stage in STAGES
        ]
        for case, samples in run_in_turn(cases, rounds=1 if quick else 3, threads=THREADS).items():
            values = [sample.value for sample in samples]
            bare, ours = (statistics.median(value[whose] for value in values) for whose in ("bare", "ours"))
            share = statistics.median(ratio for value in values for ratio in value["ratios"])
            rows.append(row(case, samples, bare_ms_a_step=round(1000 * bare, 1), ours_ms_a_step=round(1000 * ours, 1)))
            bars.append(bar(f"{case}: throughput of a step beside the bare step's", share, at_least=0.95, unit="x"))
    rows_of_memory, bars_of_memory = _memory(quick)
    bars.append(bar("gradient caching: largest difference to the largest gradient, float32", difference, at_most=1e-5))
    save_results("train_step", rows + rows_of_memory, bars + bars_of_memory, quick=quick)


def _memory(quick: bool):
    """The same photos in plain steps of a chunk's size, and in one step of chunks: the allocator is worked as long."""
    chunk, total, k = (16, 128, 2) if quick else (128, 4096, 2)
    setting = {"model": "tiny-vit", "image_size": 64, "k": k}
    plain = {**setting, "p": chunk // k, "batches": total // chunk, "grad_cache_chunk": 0}
    cached = {**setting, "p": total // k, "batches": 1, "grad_cache_chunk": chunk}
    cases = [
        Case(f"stage 3, tiny-vit 64 px, {total // chunk} plain steps of {chunk}", "prepare_epoch", plain, warmup=0),
        Case(f"stage 3, tiny-vit 64 px, step of {total} in chunks of {chunk}", "prepare_epoch", cached, warmup=0),
    ]
    samples = run_in_turn(cases, rounds=1 if quick else 3, threads=THREADS)
    rows = [row(case.name, samples[case.name]) for case in cases]
    for figures in rows:
        figures["ms_a_photo"] = round(1000 * figures["seconds"] / total, 2)
    share = median(samples[cases[1].name], "peak_mib") / median(samples[cases[0].name], "peak_mib")
    what = f"gradient caching: peak memory of a step of {total} in chunks of {chunk} beside plain steps of {chunk}"
    return rows, [bar(what, share, at_most=1.1, unit="x")]


if __name__ == "__main__":
    run_benchmark(main, __doc__)
