"""Photos to pixels: decoded once into a memory-mapped uint8 cache, normalised by the batch.

The geometry is that of open_clip's evaluation transform: shorter side to S by bicubic resampling, centre crop S x S
(or squashed to S x S for models trained that way). Shapes: N images, B batch, S image size in pixels.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

from clipfh.errors import InputError
from clipfh.files import replace_atomically, write_json, write_text
from clipfh.paths import display

TRANSFORM_VERSION = 2  # part of the cache's key: raise it whenever `decode` changes a pixel


@dataclass(frozen=True)
class Pixels:
    """Decoded images, in the order in which they were asked for.

    Attributes:
        array: (N, S, S, 3) uint8 RGB; a memory map where it comes from a cache file.
        images: the N paths below the image root.
        unreadable: (path, reason) of images that could not be decoded; they are not among the N.
    """

    array: np.ndarray
    images: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]


def decode(path: Path, image_size: int, resize_mode: str = "shortest") -> np.ndarray:
    """Decode one photo: (S, S, 3) uint8 RGB.

    Raises:
        FileNotFoundError: the file is missing.
        Exception: it is not an image or a damaged one; Pillow's decoders raise OSError, SyntaxError and more.
    """
    with Image.open(path) as photo:
        photo.load()
    photo.info.pop("transparency", None)  # is dropped by the conversion to RGB anyway, but not without a warning
    width, height = photo.size
    if resize_mode == "squash":
        return np.asarray(photo.resize((image_size, image_size), Image.Resampling.BICUBIC).convert("RGB"))
    # the longer side is cut down to an integer and the crop's corner rounded as torchvision does: the very same pixels
    if width <= height:
        new_width, new_height = image_size, int(image_size * height / width)
    else:
        new_width, new_height = int(image_size * width / height), image_size
    if (new_width, new_height) != (width, height):
        photo = photo.resize((new_width, new_height), Image.Resampling.BICUBIC)
    left, top = round((new_width - image_size) / 2), round((new_height - image_size) / 2)
    photo = photo.crop((left, top, left + image_size, top + image_size))
    return np.asarray(photo.convert("RGB"))  # last, as open_clip does: transparent and palette images differ otherwise


def load_pixels(
    image_dir: Path,
    images: Sequence[str],
    image_size: int,
    cache_dir: Path,
    *,
    resize_mode: str = "shortest",
    workers: int = min(8, os.cpu_count() or 1),
) -> Pixels:
    """Decode `images` of `image_dir`, or take them from the cache in `cache_dir` where that is still true.

    The cache is keyed by every source's path, size and modification time, by the geometry and by the version of the
    transform, and carries a checksum: a stale or damaged one is made again. It is written to a temporary file and
    renamed, so several processes may make it at once.

    Raises:
        InputError: the image root is missing, or the cache folder cannot be written.
    """
    image_dir = Path(image_dir)
    if not image_dir.is_dir():
        raise InputError(f"the image folder {image_dir} does not exist; give it with --image_dir")
    digest = _digest(image_dir, images, image_size, resize_mode)
    cache = cache_dir / f"pixels_{image_size}px_{resize_mode}.npy"
    sidecar = cache.with_suffix(".json")
    return _read_cache(cache, sidecar, digest, images) or _build_cache(
        image_dir, images, image_size, resize_mode, cache, sidecar, digest, workers
    )


def _digest(image_dir: Path, images: Sequence[str], image_size: int, resize_mode: str) -> str:
    digest = hashlib.sha256(f"{TRANSFORM_VERSION}:{image_size}:{resize_mode}\n".encode())
    for image in images:
        try:
            status = os.stat(image_dir / image)
            line = f"{image}:{status.st_size}:{status.st_mtime_ns}\n"
        except OSError:
            line = f"{image}:missing\n"
        digest.update(line.encode())
    return digest.hexdigest()


def _read_cache(cache: Path, sidecar: Path, digest: str, images: Sequence[str]) -> Pixels | None:
    """The cached pixels, or None where the cache is absent, stale or damaged."""
    try:
        recorded = json.loads(sidecar.read_text(encoding="utf-8"))
        if recorded["digest"] != digest:
            return None
        array = np.load(cache, mmap_mode="r")
        unreadable = tuple((image, reason) for image, reason in recorded["unreadable"])
        failed = {image for image, _ in unreadable}
        readable = tuple(image for image in images if image not in failed)
        if len(array) != len(readable) or _checksum(array) != recorded["crc32"]:
            return None
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
    return Pixels(array, readable, unreadable)


def _checksum(array: np.ndarray) -> int:
    value = 0
    for start in range(0, len(array), 1024):
        value = zlib.crc32(np.ascontiguousarray(array[start : start + 1024]), value)
    return value


def _build_cache(
    image_dir: Path,
    images: Sequence[str],
    image_size: int,
    resize_mode: str,
    cache: Path,
    sidecar: Path,
    digest: str,
    workers: int,
) -> Pixels:
    def attempt(image: str) -> np.ndarray | str:
        try:
            return decode(image_dir / image, image_size, resize_mode)
        except FileNotFoundError:
            return "file not found"
        except Exception as error:  # a damaged file makes a decoder raise anything: SyntaxError, struct.error, ...
            return f"{type(error).__name__}: {str(error).replace(str(image_dir), '')}"

    unreadable: list[tuple[str, str]] = []
    readable: list[str] = []
    with replace_atomically(cache) as temporary, ThreadPoolExecutor(workers) as pool:
        shape = (len(images), image_size, image_size, 3)
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        bar = tqdm(total=len(images), desc="decode images", unit="img", disable=None, leave=False)
        for image, result in _in_blocks(pool, attempt, images):
            bar.update()
            if isinstance(result, str):
                unreadable.append((image, result))
            else:
                array[len(readable)] = result
                readable.append(image)
        bar.close()
        array.flush()
        if unreadable:  # the tail of the file stayed empty: write only what was decoded
            kept = np.array(array[: len(readable)])
            del array
            with temporary.open("wb") as file:
                np.save(file, kept)
        array = np.load(temporary, mmap_mode="r")  # stays this file, even if another process replaces it next
        record = {"digest": digest, "crc32": _checksum(array), "unreadable": unreadable}
    write_json(sidecar, record)
    return Pixels(array, tuple(readable), tuple(unreadable))


def _in_blocks(pool: ThreadPoolExecutor, function: Callable, items: Sequence[str], block: int = 512) -> Iterator[tuple]:
    """`pool.map` by blocks: it would otherwise decode far ahead of the writer and hold it all in memory."""
    for start in range(0, len(items), block):
        part = items[start : start + block]
        yield from zip(part, pool.map(function, part), strict=True)


def drop_unreadable(table: pd.DataFrame, pixels: Pixels, listing: Path, *, skip_unreadable: bool) -> pd.DataFrame:
    """`table` without the rows of unreadable images, in the order of `pixels`.

    Raises:
        InputError: there are unreadable images and `skip_unreadable` is off, or no image is readable. They are listed
            in the CSV `listing` either way.
    """
    if not pixels.unreadable:
        return table
    rows = pd.DataFrame(list(pixels.unreadable), columns=["image", "reason"])
    write_text(listing, rows.to_csv(index=False, lineterminator="\n"))
    first, reason = pixels.unreadable[0]
    count = len(pixels.unreadable)
    if not skip_unreadable:
        raise InputError(
            f"{count} of {len(table)} images cannot be read, the first: {first} ({reason}). All are listed in "
            f"{display(listing)}. Mend them, or go on without them with --skip_unreadable"
        )
    if count == len(table):
        raise InputError(
            f"none of the {count} images can be read, the first: {first} ({reason}). Is --image_dir right? "
            f"All are listed in {display(listing)}"
        )
    print(f"left out {count} unreadable images of {len(table)}; listed in {display(listing)}")
    return table[table["image"].isin(pixels.images)].reset_index(drop=True)


def to_float(pixels: np.ndarray, device: str | torch.device) -> torch.Tensor:
    """(B, S, S, 3) uint8 to (B, 3, S, S) float32 in 0..1, channels last in memory, on `device`."""
    batch = torch.from_numpy(np.array(pixels)).to(device, non_blocking=True)
    return batch.permute(0, 3, 1, 2).float().div_(255.0)


def normalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Subtract the channel means and divide by the deviations: (B, 3, S, S) to the same."""
    shape = (1, 3, 1, 1)
    mean_ = torch.tensor(mean, device=images.device, dtype=images.dtype).view(shape)
    std_ = torch.tensor(std, device=images.device, dtype=images.dtype).view(shape)
    return (images - mean_) / std_
