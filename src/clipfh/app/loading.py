"""From a prepared dataset and checkpoints to a gallery that can be searched. Shapes: N photos, D embedding."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from clipfh.app.search import Gallery, Stage, exact, folder_categories, known_categories
from clipfh.core.errors import InputError
from clipfh.core.paths import DEFAULT_MODEL, RESULTS_DIR, ROOT, display, processed_dir, source_of
from clipfh.features.store import load_features
from clipfh.images.pixels import Pixels, load_pixels
from clipfh.index.photos import FolderPhotos
from clipfh.models.checkpoint import newest_checkpoint, read_checkpoint
from clipfh.models.clip import LoadedClip, load_clip, shown_size
from clipfh.reports.summary import read_summary
from clipfh.tables.prepared import (
    DEFAULT_DATASET,
    SPLITS,
    TOKEN_SAFE_PROMPTS,
    PreparedDataset,
    all_prompts,
    load_prepared,
)

NAMES = {1: "zero-shot", 2: "image encoder", 3: "joint"}
MADE_BY = "bash run_all.sh"


@dataclass(frozen=True)
class Weights:
    """Which weights a stage is searched with, as `load_clip` takes them.

    Attributes:
        title: for a reader, such as `Stage 2: image encoder`.
        model, pretrained: as of `load_clip`.
    """

    title: str
    model: str
    pretrained: str | None


def default_dataset() -> str:
    """The generated garments where they are prepared, else the dataset that was prepared last.

    Raises:
        InputError: none is.
    """
    # the splits are what the last script of the preparation writes
    prepared = sorted((ROOT / "metadata").glob(f"*/{SPLITS}"), key=lambda path: path.stat().st_mtime_ns)
    names = [path.parent.name for path in prepared if (path.parent / "dataset.json").is_file()]
    if not names:
        raise InputError(
            f"no dataset is prepared. The generated garments: {MADE_BY}; your own photos, a folder a thing: {MADE_BY} "
            "--dataset folder --data_root FOLDER"
        )
    return DEFAULT_DATASET if DEFAULT_DATASET in names else names[-1]


def chosen_weights(data: PreparedDataset, checkpoints: Sequence[Path]) -> list[Weights]:
    """The weights of `checkpoints`; without any, of stage 1 and the newest BEST of stages 2 and 3 on the dataset.

    Raises:
        InputError: a checkpoint that is none of stage 2 or 3, or the like.
    """
    if checkpoints:
        return [_of_checkpoint(path, read_checkpoint(path), data) for path in checkpoints]
    tuned, first = [], None
    for stage in (2, 3):
        try:
            of = f"--dataset {data.name}" + ("" if data.name == DEFAULT_DATASET else " --data_root FOLDER")
            made_by = f"{MADE_BY} {of} --stages {stage}"
            path = newest_checkpoint(
                stage, "*_BEST.pth", made_by=made_by, data_digest=data.digest, stage=stage, dataset=data.name
            )
        except InputError as error:  # a page with the stages that are there is what is asked for
            print(f"note: stage {stage} is left out: {error}")
            continue
        content = read_checkpoint(path)
        tuned.append(_of_checkpoint(path, content, data))
        first = first or (content["model"], content.get("first_weights"))
    model, pretrained = first if first and first[1] else _evaluated_zero_shot(data)
    return [Weights(f"Stage 1: {NAMES[1]}", model, source_of(pretrained) if pretrained else None), *tuned]


def _of_checkpoint(path: Path, content: dict, data: PreparedDataset) -> Weights:
    stage = content.get("stage")
    if stage not in (2, 3) or not isinstance(content.get("model"), str):
        raise InputError(f"--ckpt {display(path)} is none of stage 2 or 3; those are in model/stage*/checkpoints")
    if content.get("data_digest") != data.digest:
        print(
            f"note: {display(path)} was trained on other photos or splits than those of {data.name} now: it may have "
            "learned some that are searched here"
        )
    return Weights(f"Stage {stage}: {NAMES[stage]}", content["model"], str(path))


def _evaluated_zero_shot(data: PreparedDataset) -> tuple[str, str | None]:
    """The model and weights that stage 1 evaluated last on the dataset; where it has not, the default ones."""
    summary = RESULTS_DIR / "summary.csv"
    if summary.is_file():
        rows = read_summary(summary)
        rows = rows[(rows["stage"] == "1") & (rows["dataset"] == data.name)]
        if len(rows):
            return rows["model"].iloc[-1], rows["checkpoint"].iloc[-1]
    return DEFAULT_MODEL, None


def load_gallery(
    name: str | None, checkpoints: Sequence[Path], device: torch.device, *, with_training_photos: bool = False
) -> Gallery:
    """The photos of a dataset, with their features by every model; features that an evaluation left are reused.

    Args:
        name: of the prepared dataset; None: `default_dataset`.
        checkpoints: as of `chosen_weights`.
        device: where the models are put.
        with_training_photos: search the photos of train and val too, not the test photos alone.

    Raises:
        InputError: nothing is prepared, weights that cannot be had, or no photo that can be read.
    """
    data = load_prepared(name or default_dataset())
    table = data.table if with_training_photos else data.rows("query", "gallery")
    if len(table) < len(data.table):
        print(
            f"searched are the {len(table):,} photos of the test identities; with --photos all, all {len(data.table):,}"
        )
    folder = processed_dir(data.name) / ("all" if with_training_photos else "test")  # test: as an evaluation
    models = []
    for weights in chosen_weights(data, checkpoints):
        clip = load_clip(weights.model, weights.pretrained, data_resize_mode=data.resize_mode, device=str(device))
        print(f"{weights.title}: {clip.name} ({clip.pretrained}), {shown_size(clip)}")
        images = table["image"].tolist()
        pixels = load_pixels(
            data.image_dir,
            images,
            clip.image_size,
            folder,
            resize_mode=clip.resize_mode,
            max_megapixels=data.max_megapixels,
        )
        _require_readable(pixels, data)
        models.append((weights.title, clip, pixels, load_features(clip, pixels, device, folder / "features")))
    return _gallery(data, models, device)


def _require_readable(pixels: Pixels, data: PreparedDataset) -> None:
    if not pixels.unreadable:
        return
    (image, reason), count = pixels.unreadable[0], len(pixels.unreadable)
    if not pixels.images:
        raise InputError(f"none of the {count:,} photos of {data.name} can be read, the first: {image} ({reason})")
    print(f"note: {count:,} photos cannot be read and are left out, the first: {image} ({reason})")


def _gallery(
    data: PreparedDataset, models: Sequence[tuple[str, LoadedClip, Pixels, torch.Tensor]], device: torch.device
) -> Gallery:
    readable = set.intersection(*(set(pixels.images) for _, _, pixels, _ in models))
    table = data.table[data.table["image"].isin(readable)]
    images, item_ids = table["image"].tolist(), table["item_id"].tolist()
    categories = folder_categories(images, item_ids)
    stages = []
    for title, clip, pixels, features in models:
        place = {image: row for row, image in enumerate(pixels.images)}
        rows = features[[place[image] for image in images]]
        stages.append(Stage(title, clip, exact(rows, images, item_ids, categories)))
    has_prompts = (data.folder / TOKEN_SAFE_PROMPTS).is_file()
    prompts = all_prompts(data, None, TOKEN_SAFE_PROMPTS) if has_prompts else {}
    return Gallery(
        name=data.name,
        size=f"{len(images):,} photos of {len(set(item_ids)):,} items",
        source=FolderPhotos(data.image_dir),
        categories=known_categories(categories),
        prompts={item_id: texts[0] for item_id, texts in prompts.items()},
        stages=stages,
        device=device,
        max_megapixels=data.max_megapixels,
    )
