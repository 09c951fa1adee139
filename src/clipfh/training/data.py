"""The photos of a training run: those to learn from, to validate on, and in the way.

Shapes: N images, B batch, S size, C train identities.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from clipfh.core.errors import InputError
from clipfh.core.paths import RESULTS_DIR, processed_dir
from clipfh.core.processes import by_first, gather_rows, own_rows, rank
from clipfh.features.extraction import draw_distractors, extract_features, val_figures
from clipfh.images.augment import Augmentation, augment
from clipfh.images.pixels import Pixels, drop_unreadable, load_pixels
from clipfh.images.prefetch import prefetch
from clipfh.images.transforms import ImageSize, to_float
from clipfh.metrics.retrieval import RetrievalFigures, evaluate_retrieval
from clipfh.models.clip import LoadedClip, encode_texts
from clipfh.tables.prepared import PreparedDataset
from clipfh.tables.splits import measurable_identities

T = TypeVar("T")
PHOTOS_AT_ONCE = 1024  # of the memory map, copied to be encoded: 150 MB at 224 px


@dataclass(frozen=True)
class TrainingData:
    """Decoded train and val photos.

    Attributes:
        pixels: of all of them; the tables' images are found in it by name.
        train_table, val_table: rows of the table of `clipfh.tables.records`.
        val_rows, distractor_rows: places in `pixels` of the val photos and of the train photos in their gallery.
        exclude_same_camera: the dataset's protocol, which val follows.
    """

    pixels: Pixels
    train_table: pd.DataFrame
    val_table: pd.DataFrame
    val_rows: np.ndarray
    distractor_rows: np.ndarray
    exclude_same_camera: bool


class TrainPhotos:
    """Decoded train photos with their labels, and random views of them.

    Args:
        table: N rows of the table of `clipfh.tables.records`.
        pixels: holds the photos of `table`, among others.
        augmentation: of the views.
        clip: whose normalisation the views have.
        device: of the views.
        size: S of the views, or (H, W); None: that of the photos, at which the model is measured.

    Attributes:
        item_ids: the C identities, sorted; a label is a place in this list.
        labels: (N,) int64, of every photo.
        images: the N paths, to name a photo in a message.
        view_size: (H, W) where the views have another size than the photos, else None.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        pixels: Pixels,
        augmentation: Augmentation,
        clip: LoadedClip,
        device: torch.device,
        size: ImageSize | None = None,
    ) -> None:
        self.item_ids: list[str] = sorted(set(table["item_id"]))
        index = {item_id: label for label, item_id in enumerate(self.item_ids)}
        self.labels = np.array([index[item_id] for item_id in table["item_id"]])
        self.images: list[str] = table["image"].tolist()
        place = {image: row for row, image in enumerate(pixels.images)}
        self._rows = np.array([place[image] for image in self.images])
        self._pixels, self._augmentation = pixels.array, augmentation
        self._mean, self._std, self.device = clip.mean, clip.std, device
        self.view_size = (size, size) if isinstance(size, int) else size

    def views(self, indices: list[int], generator: torch.Generator, rows: slice = slice(None)) -> torch.Tensor:
        """Random, normalised views of `rows` of the photos `indices` of a batch: (n, 3, S, S) float32, channels last.

        They are drawn for the whole batch: whoever makes a row, and with which others, makes the same view of it.
        """
        images = to_float(self._pixels[self._rows[indices[rows]]], self.device)
        settings = {"mean": self._mean, "std": self._std, "size": self.view_size, "part_of": (len(indices), rows)}
        return augment(images, self._augmentation, generator, **settings)

    def features(self, clip: LoadedClip) -> torch.Tensor:
        """Unit features of all N photos, whole and as they are to be found again: (N, D) float32, without gradients."""
        return features_of(clip, self._pixels, self._rows, self.device)


def features_of(clip: LoadedClip, pixels: np.ndarray, rows: np.ndarray, device: torch.device) -> torch.Tensor:
    """Unit features of `rows` of `pixels`, a memory map that is read as they are encoded: (N, D) float32, on `device`.

    The processes of a run share the rows, and all get the features.
    """
    own = rows[own_rows(len(rows))]
    starts = range(0, len(own), PHOTOS_AT_ONCE)
    hidden = None if len(starts) > 1 and rank() == 0 else True  # None: where nobody watches
    parts = [
        extract_features(clip, pixels[own[start : start + PHOTOS_AT_ONCE]], device, quiet=True)
        for start in tqdm(starts, "features", disable=hidden, leave=False)
    ]
    return gather_rows(torch.cat(parts), len(rows))


def made_ahead(batches: Iterator[T], device: torch.device) -> Iterator[T]:
    """`batches`, made in a thread beside a GPU that works; close it where a loop ends early.

    On the CPU they are made in turn: the encoders use every core there, and two pools of threads slow each other down.
    """
    return batches if device.type == "cpu" else prefetch(batches)


def load_training_data(
    data: PreparedDataset,
    clip: LoadedClip,
    *,
    stage: int,
    seed: int,
    skip_unreadable: bool,
    fast_decode: bool = False,
    verify: bool = False,
    final_fit: bool = False,
) -> TrainingData:
    """Decode the train and val photos of `data` for `clip`, as `load_pixels` does; `seed` draws the distractors.

    With `final_fit` the val photos are train photos, and there are none to validate on.

    Raises:
        InputError: unreadable photos (listed in `results/<dataset>_stage<N>_train/`, unless skipped), no train
            identity, val identities of which none can be found again.
    """
    table = data.rows("train", "val")
    if not final_fit:
        require_measurable(data)
    table = table.assign(split="train") if final_fit else table
    listing: Path = RESULTS_DIR / f"{data.name}_stage{stage}_train" / "unreadable_images.csv"
    pixels = load_pixels(
        data.image_dir,
        table["image"].tolist(),
        clip.image_size,
        processed_dir(data.name) / "train",
        resize_mode=clip.resize_mode,
        fast_decode=fast_decode,
        max_megapixels=data.max_megapixels,
        verify=verify,
    )
    table = drop_unreadable(table, pixels, listing, skip_unreadable=skip_unreadable)
    is_val = (table["split"] == "val").to_numpy()
    if is_val.all():
        raise InputError(f"{data.name} has no train identity")
    train_places = np.flatnonzero(~is_val)
    distractors = train_places[draw_distractors(len(train_places), seed)]
    return TrainingData(
        pixels=pixels,
        train_table=table[~is_val],
        val_table=table[is_val],
        val_rows=np.flatnonzero(is_val),
        distractor_rows=distractors,
        exclude_same_camera=data.exclude_same_camera,
    )


def require_measurable(data: PreparedDataset) -> None:
    """Check that some val identity can be found again in another photo.

    Raises:
        InputError: none can; the message says whether photos or cameras lack, and the flag that helps.
    """
    val = data.rows("val")
    pairs = list(zip(val["item_id"], val["camera"], strict=True))
    if measurable_identities(pairs, exclude_same_camera=data.exclude_same_camera):
        return
    count = val["item_id"].nunique()
    if measurable_identities(pairs, exclude_same_camera=False):
        raise InputError(
            f"each of the {count:,} val identities of {data.name} has photos of one camera alone, and a query's own "
            "camera is left out of its gallery: --no-exclude_same_camera keeps it in; --final_fit does without val"
        )
    raise InputError(
        f"none of the {count:,} val identities of {data.name} has two photos, so none can be found again. Prepare it "
        "with another --val_fraction or --seed, or train on all with --final_fit"
    )


def validate(
    clip: LoadedClip, data: TrainingData, prompts: dict[str, list[str]], device: torch.device
) -> tuple[RetrievalFigures, RetrievalFigures | None]:
    """The figures of the val identities, and those with their `prompts` as queries among the same photos.

    The latter are None where there are no prompts, or all identities have the same: they tell nothing apart. The
    processes of a run share the photos, and the first one measures.
    """
    val, distractors = (
        features_of(clip, data.pixels.array, rows, device) for rows in (data.val_rows, data.distractor_rows)
    )
    return by_first(_measure, clip, data, prompts, device, val, distractors)


def _measure(
    clip: LoadedClip,
    data: TrainingData,
    prompts: dict[str, list[str]],
    device: torch.device,
    val: torch.Tensor,
    distractors: torch.Tensor,
) -> tuple[RetrievalFigures, RetrievalFigures | None]:
    """`validate` of the features of val and of the photos in the way."""
    found = val_figures(val, data.val_table, distractors, exclude_same_camera=data.exclude_same_camera)
    if len({tuple(several) for several in prompts.values()}) < 2:
        return found, None
    pairs = [(item_id, prompt) for item_id in sorted(prompts) for prompt in prompts[item_id]]
    texts = encode_texts(clip, [prompt for _, prompt in pairs], device).to(val.device)
    gallery_ids = [*data.val_table["item_id"], *[""] * len(distractors)]
    text = evaluate_retrieval(texts, torch.cat([val, distractors]), [item_id for item_id, _ in pairs], gallery_ids)
    return found, text
