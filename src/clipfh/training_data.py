"""The photos of a training run: those to learn from, to validate on, and in the way. Shapes: N images, S size."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from clipfh.clip_model import LoadedClip
from clipfh.errors import InputError
from clipfh.images import Pixels, drop_unreadable, load_pixels
from clipfh.metrics import RetrievalFigures
from clipfh.paths import RESULTS_DIR, processed_dir
from clipfh.prepared import PreparedDataset
from clipfh.retrieval import draw_distractors, extract_features, val_figures


@dataclass(frozen=True)
class TrainingData:
    """Decoded train and val photos.

    Attributes:
        pixels: of all of them; the tables' images are found in it by name.
        train_table, val_table: rows of the table of `clipfh.records`.
        val_pixels, distractor_pixels: (N, S, S, 3) uint8, val photos and the train photos in their gallery.
        exclude_same_camera: the dataset's protocol, which val follows.
    """

    pixels: Pixels
    train_table: pd.DataFrame
    val_table: pd.DataFrame
    val_pixels: np.ndarray
    distractor_pixels: np.ndarray
    exclude_same_camera: bool


def load_training_data(
    data: PreparedDataset, clip: LoadedClip, *, stage: int, seed: int, skip_unreadable: bool
) -> TrainingData:
    """Decode the train and val photos of `data` for `clip`; `seed` draws the distractors.

    Raises:
        InputError: unreadable photos (listed in `results/<dataset>_stage<N>_train/`, unless skipped), no train or no
            val identity.
    """
    table = data.rows("train", "val")
    listing: Path = RESULTS_DIR / f"{data.name}_stage{stage}_train" / "unreadable_images.csv"
    pixels = load_pixels(
        data.image_dir,
        table["image"].tolist(),
        clip.image_size,
        processed_dir(data.name) / "train",
        resize_mode=clip.resize_mode,
    )
    table = drop_unreadable(table, pixels, listing, skip_unreadable=skip_unreadable)
    is_val = (table["split"] == "val").to_numpy()
    if is_val.all() or not is_val.any():
        raise InputError(
            f"{data.name} needs train and val identities; it has {is_val.sum()} val images of {len(table)}"
        )
    train_places = np.flatnonzero(~is_val)
    distractors = train_places[draw_distractors(len(train_places), seed)]
    return TrainingData(
        pixels=pixels,
        train_table=table[~is_val],
        val_table=table[is_val],
        val_pixels=pixels.array[is_val],
        distractor_pixels=pixels.array[distractors],
        exclude_same_camera=data.exclude_same_camera,
    )


def validate(clip: LoadedClip, data: TrainingData, device: torch.device) -> RetrievalFigures:
    """The figures of the val identities, by which BEST is chosen."""
    return val_figures(
        extract_features(clip, data.val_pixels, device, quiet=True),
        data.val_table,
        extract_features(clip, data.distractor_pixels, device, quiet=True),
        exclude_same_camera=data.exclude_same_camera,
    )
