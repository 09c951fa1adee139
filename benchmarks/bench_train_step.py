"""Training steps of stages 2 and 3 beside the bare forward, backward and AdamW step of the same towers and batch.

    python benchmarks/bench_train_step.py
    python benchmarks/bench_train_step.py --quick

Ours is the stages' own `train_one_epoch`: sampler, views of decoded photos, loss, gradient norm, moving average, logs.
The bare step encodes float images (and tokens) that lie in memory, takes the mean square of the features for a loss,
and steps torch's fused AdamW; precision and parameters are the same. Both take turns in one process, some steps at a
time, so that a drift of the machine's speed meets them alike; the share is the median over the turns.

Gradient caching is compared with plain steps: with one of the whole batch for its gradients, with an
epoch of steps of a chunk's size for its memory. There the views are the photos themselves, so that both see the same.
"""

import itertools
import statistics
import tempfile
import time
from pathlib import Path

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
    script = _import_stage(stage)
    training = _training(script, stage, model, image_size, p, k, steps)
    script.keep_freed_memory()  # as main does; the bare step gains as much from it
    ours, bare = _epoch(script, training), _bare_epoch(script, stage, training, steps)

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
    script = _import_stage(3)
    return _epoch(script, _training(script, 3, model, image_size, p, k, batches, grad_cache_chunk))


def _epoch(script, training):
    numbers = itertools.count()

    def run():
        epoch = next(numbers)
        training.sampler.set_epoch(epoch)
        script.train_one_epoch(training, epoch, 0)

    return run


def _bare_epoch(script, stage, training, steps):
    import torch

    model, config, size = training.clip.model, training.config, training.clip.image_size
    optimizer = _adamw(script, model)
    B = config.p * config.k
    images = torch.rand(B, 3, size, size).contiguous(memory_format=torch.channels_last)
    tokens = None if stage == 2 else training.pairs.batch(list(range(B)), 0).tokens

    def run():
        model.train()
        for _ in range(steps):
            with script.autocast(torch.device("cpu"), config.precision):
                loss = model.encode_image(images).float().square().mean()
                if tokens is not None:
                    loss = loss + model.encode_text(tokens).float().square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def prepare_gradients(model, image_size, p, k, chunk):
    """Gradient caching beside a plain step: the largest difference of a gradient, and the largest gradient."""
    from dataclasses import replace

    import torch

    script = _import_stage(3)
    training = _training(script, 3, model, image_size, p, k, 1)
    training = replace(training, config=replace(training.config, precision="float32", loss="supcon+id"))
    training.clip.model.train()
    batch = next(training.pairs.batches(training.sampler, 0, 0, 0))

    def gradients(grad_cache_chunk):
        own = replace(training, config=replace(training.config, grad_cache_chunk=grad_cache_chunk))
        script.add_gradients(own, batch)
        modules = (training.clip.model, training.objective)
        all_gradients = [parameter.grad for module in modules for parameter in module.parameters()]
        found = torch.cat([gradient.flatten() for gradient in all_gradients if gradient is not None])
        for module in modules:
            module.zero_grad()
        return found

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


def _training(script, stage, model, image_size, p, k, batches, grad_cache_chunk=0):
    """What `main` of the stage makes for an epoch, from random weights, photos and prompts."""
    import numpy as np
    import pandas as pd
    import torch
    import torch.nn.functional as F
    from torch.optim.lr_scheduler import LambdaLR

    from clipfh.images.augment import Augmentation
    from clipfh.images.pixels import Pixels
    from clipfh.models.clip import freeze_text_encoder, load_clip
    from clipfh.training.data import TrainPhotos

    torch.manual_seed(0)
    device, log_dir = torch.device("cpu"), Path(tempfile.mkdtemp())
    caching = {"grad_cache_chunk": grad_cache_chunk} if stage == 3 else {}
    config = script.complete(script.Config(model=model, p=p, k=k, **caching))
    clip = load_clip(model, "random", image_size=image_size)
    labels = np.repeat(np.arange(p * batches), k)  # so that an epoch has so many batches
    images = tuple(f"{number}.jpg" for number in range(len(labels)))
    table = pd.DataFrame({"image": images, "item_id": [f"{label:06}" for label in labels]})
    shape = (len(labels), image_size, image_size, 3)
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    same_views = Augmentation(min_area=1.0, aspect=0.0, rotation=0.0, flip=0.0, color=0.0)
    augmentation = Augmentation() if model != "tiny-vit" else same_views
    photos = TrainPhotos(table, Pixels(array, images, ()), augmentation, clip, device)
    sampler = script.PKSampler(photos.labels, p, k, seed=0)
    C, D = len(photos.item_ids), clip.model.encode_text(clip.tokenizer(["a shirt"])).shape[1]
    if stage == 2:
        freeze_text_encoder(clip.model)
        texts = F.normalize(torch.randn(C, D), dim=1)
        objective = script.ImageEncoderLoss(script.parse_terms(config.loss, p, k), texts, torch.arange(C))
        optimizer = _adamw(script, clip.model, objective.classifier)
        data = photos
    else:
        prompts = {item_id: [f"a knitted jumper in the colour {int(item_id)}"] for item_id in photos.item_ids}
        objective = script.JointLoss(("supcon", "id") if model == "tiny-vit" else ("supcon",), D, C)
        data = script.TrainPairs(photos, prompts, clip)
        optimizer = _adamw(script, clip.model, objective)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    ema, log = script.AveragedWeights(clip.model, config.ema_decay), script.RunLog(log_dir, config)
    return script.Training(config, clip, data, sampler, objective, optimizer, scheduler, ema, log)


def _adamw(script, *modules):
    from torch.optim import AdamW

    groups = [group for module in modules for group in script.decay_groups(module, 1e-6, 0.05)]
    return AdamW(groups, betas=(0.9, 0.98), eps=1e-6, fused=True)


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
