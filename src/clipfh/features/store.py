"""Saved image features: reused where model and pixels are the same, continued where a run was killed.

A finished file is `features_<digest>.npz`: `features` (N, D) float32, `images` (N,) their names, `identity`, the JSON
text that the digest is taken of. While it is made, its rows stand in blocks beside it,
`features_<digest>.from_<row>.npz`. Every file is written to a temporary name and renamed: it is whole or absent, and
processes that make the same features at once cannot mix them up. Shapes: N images, D embedding.
"""

import contextlib
import hashlib
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from clipfh.core.files import replace_atomically
from clipfh.core.paths import display
from clipfh.features.extraction import encode_batches
from clipfh.images.pixels import Pixels
from clipfh.models.checkpoint import weights_digest
from clipfh.models.clip import LoadedClip, is_image_parameter

FORMAT_VERSION = 1  # part of the digest: raise it whenever the same model and pixels give other features or files
BLOCK_SECONDS = 10.0  # about as much work as a killed run loses
MAX_KEPT = 8  # digests whose files stay in a folder, the last used: every run leaves another checkpoint to evaluate
HASHED_AT_ONCE = 64  # images; about 10 MB at 224 px


def load_features(
    clip: LoadedClip, pixels: Pixels, device: torch.device, folder: Path, *, batch_size: int | None = None
) -> torch.Tensor:
    """Unit-length features of `pixels`, float32, (N, D) on `device`: from `folder` where they fit, and saved there.

    What is in the folder is taken only if it is of the same weights, pixels, normalisation and versions, and undamaged.
    Several processes may make the same features at once: they write equal files, each as a whole.

    Args:
        clip, device: the model, and where it is.
        pixels: the N images.
        folder: for features and nothing else; files of older models are deleted there.
        batch_size: images at a time; None: `clipfh.features.extraction.usual_batch_size`.

    Raises:
        InputError: the folder cannot be written.
    """
    identity = features_identity(clip, pixels, device)
    path = _file_of(identity, folder)
    features = _read(path, identity)
    if features is not None and len(features) == len(pixels.images):
        with contextlib.suppress(OSError):  # another user's folder, or deleted by another process just now
            os.utime(path)  # used: among the newest
        print(f"features: reused {display(path)}")
        return torch.from_numpy(features).to(device)
    if path.exists():
        print(f"features: {display(path)} is damaged; made again")
    features = _complete(clip, pixels, device, path, identity, batch_size)
    _write(path, features, identity, pixels.images)
    for block in folder.glob(f"{path.stem}.from_*.npz"):
        block.unlink(missing_ok=True)
    _delete_old(folder)
    return torch.from_numpy(features).to(device)


def saved_features(clip: LoadedClip, pixels: Pixels, device: torch.device, folder: Path) -> torch.Tensor | None:
    """What `load_features` has saved of the same model and pixels, (N, D) on `device`; None where there is nothing."""
    identity = features_identity(clip, pixels, device)
    features = _read(_file_of(identity, folder), identity)
    return None if features is None or len(features) != len(pixels.images) else torch.from_numpy(features).to(device)


def _file_of(identity: str, folder: Path) -> Path:
    return folder / f"features_{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npz"


def features_identity(clip: LoadedClip, pixels: Pixels, device: torch.device) -> str:
    """All that features depend on, as JSON text: two that are equal have the same features, up to rounding."""
    facts = {
        "format": FORMAT_VERSION,
        "weights": image_encoder_digest(clip),
        "architecture": clip.architecture(),  # also mean and std, and the activation, which no weight tells
        "pixels": pixels_digest(pixels),
        "images": hashlib.sha256("\n".join(pixels.images).encode()).hexdigest(),
        "precision": ["float32", torch.get_float32_matmul_precision(), device.type],
        "versions": {name: version(name) for name in ("torch", "open_clip_torch", "timm")},
    }
    return json.dumps(facts, sort_keys=True)


def image_encoder_digest(clip: LoadedClip) -> str:
    """SHA-256 of the image encoder's weights and buffers."""
    return weights_digest({name: value for name, value in clip.model.state_dict().items() if is_image_parameter(name)})


def pixels_digest(pixels: Pixels) -> str:
    """SHA-256 of the pixels themselves, on all cores: what makes other pixels, from photo to decoder, changes it."""
    starts = range(0, len(pixels.array), HASHED_AT_ONCE)
    with ThreadPoolExecutor() as pool:  # hashing does not hold Python's lock
        parts = pool.map(lambda start: hashlib.sha256(pixels.array[start : start + HASHED_AT_ONCE]).hexdigest(), starts)
        return hashlib.sha256(f"{pixels.array.shape}:{':'.join(parts)}".encode()).hexdigest()


def _complete(
    clip: LoadedClip, pixels: Pixels, device: torch.device, path: Path, identity: str, batch_size: int | None
) -> np.ndarray:
    """The features (N, D): the blocks that a killed run left, then the rest, saved in blocks on the way."""
    blocks, done = [], 0
    while done < len(pixels.images):
        block = _read(_block_path(path, done), identity)
        if block is None:
            break
        blocks.append(block)
        done += len(block)
    if done:
        print(f"features: continued after {done:,} of {len(pixels.images):,} images")
    waiting: list[np.ndarray] = []
    saved = time.monotonic()
    for features in encode_batches(clip, pixels.array, device, batch_size=batch_size, start=done):
        waiting.append(features.numpy())
        if time.monotonic() - saved >= BLOCK_SECONDS:
            blocks.append(np.concatenate(waiting))
            _write(_block_path(path, done), blocks[-1], identity)
            done += len(blocks[-1])
            waiting, saved = [], time.monotonic()
    return np.concatenate(blocks + waiting)


def _block_path(path: Path, start: int) -> Path:
    return path.with_name(f"{path.stem}.from_{start}.npz")


def _write(path: Path, features: np.ndarray, identity: str, images: tuple[str, ...] = ()) -> None:
    with replace_atomically(path) as temporary:
        np.savez(temporary, features=features, images=np.array(images, dtype=np.str_), identity=np.array(identity))


def _read(path: Path, identity: str) -> np.ndarray | None:
    """The features of a file, or None where it is absent, damaged, or not of `identity`."""
    try:
        with path.open("rb") as file, np.load(file) as content:
            if content.zip.testzip() is not None or content["identity"].item() != identity:
                return None
            features = content["features"]
    except Exception:  # absent; or damage, which makes zipfile and its decoders raise anything
        return None
    return features if features.ndim == 2 and features.dtype == np.float32 else None


def _delete_old(folder: Path) -> None:
    """Keep the files of the `MAX_KEPT` digests that were used last; blocks of killed runs count as well."""
    by_digest: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        match = re.match(r"\.?features_([0-9a-f]{32})\.", path.name)  # with a dot: temporary, left by a killed process
        if match:
            by_digest.setdefault(match[1], []).append(path)
    newest_first = sorted(by_digest.values(), key=lambda paths: max(map(_modified, paths)), reverse=True)
    for paths in newest_first[MAX_KEPT:]:
        for path in paths:
            path.unlink(missing_ok=True)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process was faster
        return 0.0
