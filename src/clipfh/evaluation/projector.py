"""The test photos' features for TensorBoard's projector, which turns a cloud of them in three dimensions."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from clipfh.evaluation.embedding_map import choose_photos

FOLDER = "projector"
MAX_PHOTOS = 2000  # what a browser turns without a halt
_SIDE_PX = 48


def write_projector(run_dir: Path, features: torch.Tensor, table: pd.DataFrame, pixels: np.ndarray) -> Path:
    """Write at most `MAX_PHOTOS` features with their ids and small photos; whole identities, drawn by a fixed seed.

    Args:
        run_dir: the folder of the run; `tensorboard --logdir` takes the folder that is returned.
        features: (N, D).
        table: the N images, with `item_id` and `image`.
        pixels: (N, S, S, 3) uint8 of them.
    """
    chosen = choose_photos(table["item_id"].to_numpy(), MAX_PHOTOS)
    # stretched to squares: the projector lays its photos out in a square grid
    small = [Image.fromarray(pixels[place]).resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX) for place in chosen]
    photos = torch.from_numpy(np.stack([np.asarray(photo) for photo in small])).permute(0, 3, 1, 2).float().div_(255)
    with SummaryWriter(str(run_dir / FOLDER)) as writer:
        writer.add_embedding(
            features[torch.from_numpy(chosen).to(features.device)].cpu(),
            metadata=table[["item_id", "image"]].iloc[chosen].to_numpy().tolist(),
            metadata_header=["item_id", "image"],
            label_img=photos,
            tag="test photos",
        )
    return run_dir / FOLDER
