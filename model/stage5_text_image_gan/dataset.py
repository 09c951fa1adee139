"""The faces of stage 5, and what becomes of them on the way into a network.

Shapes: B batch, N faces, C channels, S image size in pixels.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from clipfh.core.errors import InputError
from clipfh.core.names import as_name
from clipfh.core.paths import RESULTS_DIR, ROOT, display, processed_dir
from clipfh.datasets.fer2013 import EMOTIONS, Faces, read_faces
from clipfh.drawn import faces as drawn_faces
from clipfh.images.transforms import to_float
from clipfh.models.clip import LoadedClip
from clipfh.tables.digest import digest_of

DEFAULT_DATASET = Path("data/fer2013")  # of config/default.yaml; where it is absent, faces are generated
CSV_NAME = "fer2013.csv"  # the folder that holds it may be given as well
GENERATED = "generated_faces"
LUMA = (0.299, 0.587, 0.114)


def find_dataset(dataset: Path, smoke: bool) -> Path:
    """The folder or file of the faces; the embedded default is generated where the configured one is not there."""
    found = dataset if dataset.is_absolute() or dataset.exists() else ROOT / dataset
    if (found / CSV_NAME).is_file() and not (found / "train").is_dir():
        return found / CSV_NAME
    if found.exists() or dataset != DEFAULT_DATASET:
        return found
    num_train, num_test = (16, 8) if smoke else (200, 60)
    folder = ROOT / "data" / "raw" / (GENERATED + "_smoke" * smoke)
    print(f"there is no {dataset}: generated faces in {folder.relative_to(ROOT)}", flush=True)
    drawn_faces.generate(folder, num_train=num_train, num_test=num_test, seed=0)
    return folder


def load_faces(
    source: Path, image_size: int, *, data_seed: int, val_fraction: float, skip_unreadable: bool
) -> tuple[dict[str, Faces], int]:
    """The splits train and val, and test where there is one; val comes out of train where the data has none.

    Train faces that are pixel for pixel in another split are left out, which is why their number is returned too:
    FER2013 has some.

    Raises:
        InputError: as `read_faces`; an emotion with fewer than two train faces.
    """
    listing = RESULTS_DIR / f"{dataset_name(source)}_stage5_train" / "unreadable_images.csv"
    splits = read_faces(
        source, image_size, processed_dir(f"{dataset_name(source)}_faces"), listing, skip_unreadable=skip_unreadable
    )
    if "val" not in splits:
        rng, held_out = np.random.default_rng(data_seed), []
        for label, emotion in enumerate(EMOTIONS):
            rows = np.flatnonzero(splits["train"].labels == label)
            if len(rows) < 2:
                raise InputError(f"{source}: {len(rows)} train face of {emotion}; one to train and one to validate on")
            held_out.append(rng.permutation(rows)[: max(1, round(val_fraction * len(rows)))])
        val = np.sort(np.concatenate(held_out))
        splits["val"] = splits["train"].take(val)
        splits["train"] = splits["train"].take(np.setdiff1d(np.arange(len(splits["train"])), val))
    elsewhere = {code for name, faces in splits.items() if name != "train" for code in face_codes(faces)}
    kept = [place for place, code in enumerate(face_codes(splits["train"])) if code not in elsewhere]
    repeated = len(splits["train"]) - len(kept)
    if repeated:
        splits["train"] = splits["train"].take(np.array(kept))
    return splits, repeated


def face_codes(faces: Faces) -> list[int]:
    """64 bits of the SHA-256 of each face's pixels."""
    digests = (hashlib.sha256(np.ascontiguousarray(image)).digest() for image in faces)
    return [int.from_bytes(digest[:8], "little", signed=True) for digest in digests]


def describe_faces(splits: dict[str, Faces]) -> dict[str, Any]:
    """What a checkpoint records of the faces that it was trained beside, see `clipfh.tables.digest`.

    `data_digest` is of all faces, labels and splits; `seen_faces` (N,) int64 are the codes of the train faces.
    """
    rows = (
        (name, *face)
        for name, faces in splits.items()
        for face in zip(faces.names, faces.labels.tolist(), face_codes(faces), strict=True)
    )
    return {"data_digest": digest_of(rows), "seen_faces": torch.tensor(face_codes(splits["train"]))}


def recorded_faces(
    recorded: dict[str, Any], dataset: Path | None, image_size: int, *, split: str, skip_unreadable: bool
) -> dict[str, Faces]:
    """The splits of the faces that a run was trained beside, or of others.

    Args:
        recorded: what its checkpoints record, with the faces' source, data_seed and val_fraction.
        dataset: where they are now, if elsewhere.
        image_size: S.
        split: that something is to be measured on.
        skip_unreadable: go on without images that cannot be read.

    Raises:
        InputError: as `load_faces`; or the run was trained on faces of `split`, with their number.
    """
    faces = recorded["faces"]
    source = dataset or ROOT / faces["source"]
    splits, _ = load_faces(
        source,
        image_size,
        data_seed=faces["data_seed"],
        val_fraction=faces["val_fraction"],
        skip_unreadable=skip_unreadable,
    )
    if split in splits and split != "train" and describe_faces(splits)["data_digest"] != recorded["data_digest"]:
        shared = len(set(recorded["seen_faces"].tolist()) & set(face_codes(splits[split])))
        if shared:
            raise InputError(
                f"{shared:,} of the {len(splits[split]):,} {split} faces of {display(source)} were trained on: the "
                "run is of other faces or splits than these. Train again"
            )
        print(
            f"note: {display(source)} holds other faces than the run was trained on; none of its {split} faces is one"
        )
    return splits


def dataset_name(source: Path) -> str:
    """What a source of faces is called in checkpoints and folders."""
    return as_name(source.stem)


def to_signed(pixels: np.ndarray, channels: int, device: torch.device) -> torch.Tensor:
    """(B, S, S, 3) uint8 to (B, C, S, S) in -1..1; one channel is the luma."""
    images = to_float(np.ascontiguousarray(pixels), device)
    if channels == 1:
        images = (images * torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    return images.mul(2).sub(1)


def signed_batches(faces: Faces, channels: int, device: torch.device, size: int = 256) -> Iterator[torch.Tensor]:
    """All faces in order, (B, C, S, S) in -1..1 at a time."""
    for start in range(0, len(faces), size):
        yield to_signed(faces[start : start + size], channels, device)


def mirrored(images: torch.Tensor) -> torch.Tensor:
    """Each image as it is or mirrored, by chance: a face's mirror image shows the same emotion."""
    flip = (torch.rand(len(images), 1, 1, 1) < 0.5).to(images.device)
    return torch.where(flip, images.flip(3), images)


def for_clip(images: torch.Tensor, clip: LoadedClip) -> torch.Tensor:
    """(B, C, S, S) in -1..1 to CLIP's input (B, 3, clip.image_size, clip.image_size); gradients pass."""
    images = (images + 1) / 2
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    if images.shape[2] != clip.image_size:
        images = F.interpolate(images, (clip.image_size,) * 2, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (clip.mean, clip.std))
    return (images - mean) / std


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """(B, C, S, S) in -1..1 to (B, S, S, 3) uint8."""
    images = ((images.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).byte()
    return images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def tiled(pixels: np.ndarray, columns: int) -> np.ndarray:
    """Images (N, S, S, 3) row by row in one, (rows * S, columns * S, 3); N is a multiple of `columns`."""
    N, S = pixels.shape[:2]
    return pixels.reshape(N // columns, columns, S, S, 3).transpose(0, 2, 1, 3, 4).reshape(-1, columns * S, 3)
