"""What the contestants of bench_accuracy.py have in common: data, start, the loop of the peers, and the test."""

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accuracy_contestants import Recipe, Setting
from PIL import Image
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipfh.core.paths import SMALL_MODEL, processed_dir
from clipfh.evaluation.data import load_evaluation_data
from clipfh.evaluation.measure import query_ids
from clipfh.features.extraction import extract_features, image_to_image
from clipfh.models.clip import LoadedClip, encode_texts, load_clip
from clipfh.tables.prepared import TOKEN_SAFE_PROMPTS, PreparedDataset, load_or_prepare, load_prompts
from clipfh.training.data import TrainingData, validate

CPU = torch.device("cpu")
# of views, and of photos that are measured; not what stage 2's files say, so that kept results stay comparable
VIEW_SIZE, MEASURED_AT = 128, 160


# ---- data and start


def load_dataset(dataset: str) -> PreparedDataset:
    """A prepared dataset by its name, or by the absolute path of its metadata folder, as stage 2 sees it."""
    folder = Path(dataset) if Path(dataset).is_absolute() else None
    return load_or_prepare(None if folder else dataset, folder=folder, default_meta="image_paths_clean.json")


def load_model(data: PreparedDataset, weights: str | None = None) -> LoadedClip:
    """small-clip with the weights of stage 0, or of a checkpoint, for photos of `MEASURED_AT` pixels."""
    return load_clip(SMALL_MODEL, weights, image_size=MEASURED_AT, data_resize_mode=data.resize_mode)


def setting_of(data: PreparedDataset, clip: LoadedClip, pictures: TrainingData) -> Setting:
    """What the peers' recipes are made for."""
    item_ids, labels = np.unique(pictures.train_table["item_id"].to_numpy(dtype=str), return_inverse=True)
    prompts = [tuple(load_prompts(data, None, TOKEN_SAFE_PROMPTS, "train")[item_id]) for item_id in item_ids]
    texts = torch.stack([encode_texts(clip, list(several), "cpu").mean(dim=0) for several in prompts])  # (C, D)
    return Setting(
        visual=clip.model.visual,
        labels=labels,
        view_size=VIEW_SIZE,
        mean=clip.mean,
        std=clip.std,
        class_texts=F.normalize(texts, dim=1),
        same_text=torch.tensor([prompts.index(several) for several in prompts]),
        logit_scale=clip.model.logit_scale.exp().item(),
    )


# ---- training


def train_by_script(command: Sequence[str]) -> float:
    """Run a training script to its end; the CPU seconds behind its line `before training`.

    Raises:
        RuntimeError: it failed; with what it printed.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    printed, before = [], 0.0
    for line in process.stdout:
        printed.append(line)
        if line.startswith("before training"):
            user, system = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            before = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError("".join(printed))
    return usage.ru_utime + usage.ru_stime - before


def train(
    recipe: Recipe,
    setting: Setting,
    clip: LoadedClip,
    pictures: TrainingData,
    steps: int,
    validations: int,
    *,
    keep_statistics: bool,
) -> dict[str, Any]:
    """Train the CLIP's image tower for `steps`, and leave the weights in it that are best on val.

    Val is measured after equal shares of the steps. Where a rate is so high that the weights are no longer finite,
    training ends. With `keep_statistics` batch norms use those of the first weights.

    Returns:
        `val_mAP` of the best, `best_at`, the measurement that it is of (0: the start), `val_curve` of all, and `steps`.
    """
    visual = clip.model.visual
    batches = _batches(recipe, setting, pictures)
    peaks = [group["lr"] for group in recipe.optimizer.param_groups]

    curve = [validate(clip, pictures, {}, CPU)[0].mAP]
    best_at, best_state = 0, _copy(visual)
    done = 0
    for number in range(1, validations + 1):
        set_to_train(visual, keep_statistics=keep_statistics)
        while done < steps * number // validations:
            for group, peak in zip(recipe.optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * recipe.schedule(done / steps)
            step(recipe, visual, *next(batches))
            done += 1
        if not all(value.isfinite().all() for value in visual.state_dict().values()):
            break
        curve.append(validate(clip, pictures, {}, CPU)[0].mAP)
        if curve[-1] > curve[best_at]:
            best_at, best_state = number, _copy(visual)
    visual.load_state_dict(best_state)
    return {"val_mAP": curve[best_at], "best_at": best_at, "val_curve": curve, "steps": done}


def costs(recipe: Recipe, setting: Setting, clip: LoadedClip, pictures: TrainingData) -> dict[str, float]:
    """CPU seconds of a `step` and of a measurement on `val`: medians of 16 and 3, the first of each left out."""
    batches = _batches(recipe, setting, pictures)
    set_to_train(clip.model.visual, keep_statistics=True)

    def median(act: Callable[[], object], times: int) -> float:
        spent = []
        for _ in range(1 + times):
            began = time.process_time()
            act()
            spent.append(time.process_time() - began)
        return statistics.median(spent[1:])

    return {
        "step": median(lambda: step(recipe, clip.model.visual, *next(batches)), 16),
        "val": median(lambda: validate(clip, pictures, {}, CPU), 3),
    }


def steps_within(budget: float, validations: int, costs: dict[str, float]) -> int:
    """The steps that CPU seconds pay beside the measurements on val; half of the seconds at least are for steps."""
    return max(1, round(max(budget - validations * costs["val"], budget / 2) / costs["step"]))


def _batches(recipe: Recipe, setting: Setting, pictures: TrainingData) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Photos (B, S, S, 3) uint8 and their (B,) labels, of one epoch after another."""
    place = {image: row for row, image in enumerate(pictures.pixels.images)}
    rows = np.array([place[image] for image in pictures.train_table["image"]])
    while True:
        for batch in recipe.batches:
            yield pictures.pixels.array[rows[batch]], setting.labels[batch]


def step(recipe: Recipe, visual: nn.Module, photos: np.ndarray, labels: np.ndarray) -> None:
    """One step on a batch: (B, S, S, 3) uint8 photos and their (B,) labels."""
    views = torch.stack([recipe.view(Image.fromarray(photo)) for photo in photos])
    loss = recipe.loss(visual, views.contiguous(memory_format=torch.channels_last), torch.from_numpy(labels))
    recipe.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    recipe.optimizer.step()


def set_to_train(visual: nn.Module, *, keep_statistics: bool) -> None:
    """Train mode; with `keep_statistics` without the batch norms, whose weights learn all the same, as PML freezes."""
    visual.train()
    for module in visual.modules():
        if keep_statistics and isinstance(module, _BatchNorm):
            module.eval()


def _copy(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


# ---- test


def test(clip: LoadedClip, data: PreparedDataset) -> dict[str, Any]:
    """The figures of the official split, and each query's average precision (NaN: without a match) and identity."""
    cache = processed_dir(data.name)
    listing = cache / "unreadable_images.csv"
    images = load_evaluation_data(
        data, clip, cache / "test", listing=listing, prompt_json=None, skip_unreadable=False, fast_decode=False
    )
    features = extract_features(clip, images.pixels.array, CPU, quiet=True)
    figures = image_to_image(features, images.table, **images.official, exclude_same_camera=data.exclude_same_camera)
    return {
        "rank1": figures.rank1,
        "mAP": figures.mAP,
        "average_precision": figures.average_precision.round(5).tolist(),
        "item_ids": query_ids(images),
    }
