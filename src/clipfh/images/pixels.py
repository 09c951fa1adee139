"""Photos to pixels: decoded once into a memory-mapped uint8 cache.

Shapes: N images, S image size in pixels.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import UnidentifiedImageError
from tqdm import tqdm

from clipfh.core.errors import InputError
from clipfh.core.files import replace_atomically, reserve, write_json, write_text
from clipfh.core.freed_memory import keep_freed_memory
from clipfh.core.paths import display
from clipfh.images.photo_files import file_problem
from clipfh.images.transforms import (
    MAX_MEGAPIXELS,
    TRANSFORM_VERSION,
    ImageSize,
    decode,
    height_and_width,
    large_photos_allowed,
)

BLOCK = 64  # images of a checksum: about 10 MB at 224 px
SAMPLED = 32  # checksums that a start compares of a file that nobody has touched


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


def load_pixels(
    image_dir: Path,
    images: Sequence[str],
    image_size: ImageSize,
    cache_dir: Path,
    *,
    resize_mode: str = "shortest",
    fast_decode: bool = False,
    max_megapixels: float = MAX_MEGAPIXELS,
    verify: bool = False,
    workers: int = min(8, os.cpu_count() or 1),
) -> Pixels:
    """Decode `images` of `image_dir`, or take them from the cache in `cache_dir` where that is still true.

    The cache is keyed by every source's path, size and modification time, by the geometry, the way of decoding and the
    version of the transform, and carries checksums of all pixels: a stale or damaged one is made again. Where its own
    size and time are those of its making, `SAMPLED` checksums are compared, spread over the file, and all with `verify`
    or where they differ: a second reading of 150 GB at every start would take longer than many an epoch. It is written
    to a temporary file and renamed, so several processes may make it at once. Other arguments as of
    `transforms.decode`. Decoding makes glibc keep freed memory in this process from then on (`keep_freed_memory`).

    Raises:
        InputError: the image root is missing, or the cache folder cannot be written.
    """
    image_dir = Path(image_dir)
    if not image_dir.is_dir():
        raise InputError(f"the image folder {image_dir} does not exist; give it with --image_dir")

    def read(image: str) -> np.ndarray:
        return decode(
            image_dir / image, image_size, resize_mode, fast_decode=fast_decode, max_megapixels=max_megapixels
        )

    height, width = height_and_width(image_size)
    kind = f"{height if height == width else f'{height}x{width}'}px_{resize_mode}{'_fast' if fast_decode else ''}"
    digest = _digest(image_dir, images, f"{kind}:{max_megapixels:g}")
    cache = cache_dir / f"pixels_{kind}.npy"
    shape = (len(images), height, width, 3)
    pixels = _read_cache(cache, digest, images, shape, workers, verify=verify)
    return pixels or _build_cache(cache, digest, images, shape, workers, read, str(image_dir))


def _digest(image_dir: Path, images: Sequence[str], kind: str) -> str:
    digest = hashlib.sha256(f"{TRANSFORM_VERSION}:{kind}\n".encode())
    for image in images:
        try:
            status = os.stat(image_dir / image)
            line = f"{image}:{status.st_size}:{status.st_mtime_ns}\n"
        except OSError:
            line = f"{image}:missing\n"
        digest.update(line.encode())
    return digest.hexdigest()


def _read_cache(
    cache: Path, digest: str, images: Sequence[str], shape: tuple[int, ...], workers: int, *, verify: bool
) -> Pixels | None:
    """The cached pixels, or None where the cache is absent, stale or damaged."""
    try:
        recorded = json.loads(cache.with_suffix(".json").read_text(encoding="utf-8"))
        if recorded["digest"] != digest:
            return None
        array = np.load(cache, mmap_mode="r")
        # the checksums cover the pixels alone: a header that reads them in another order is caught here
        if array.shape != shape or array.dtype != np.uint8 or not array.flags.c_contiguous:
            return None
        starts = range(0, len(array), BLOCK)
        if not verify and recorded.get("file") == _size_and_time(cache):
            starts = starts[:: max(len(starts) // SAMPLED, 1)]
        expected = recorded["crc32"]
        if len(expected) != -(-len(array) // BLOCK) or _checksums(array, starts, workers) != [
            expected[start // BLOCK] for start in starts
        ]:
            return None
        unreadable = tuple((image, reason) for image, reason in recorded["unreadable"])
    except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError):
        return None
    failed = {image for image, _ in unreadable}
    readable = tuple(image for image in images if image not in failed)
    if len(readable) != recorded.get("readable"):
        return None
    return Pixels(array[: len(readable)], readable, unreadable)


def _checksums(array: np.ndarray, starts: range, workers: int) -> list[int]:
    """The CRC-32 of the blocks of images from `starts` on, in parallel: zlib computes without holding Python's lock."""
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda start: zlib.crc32(array[start : start + BLOCK]), starts))


def _size_and_time(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _build_cache(
    cache: Path,
    digest: str,
    images: Sequence[str],
    shape: tuple[int, ...],
    workers: int,
    read: Callable[[str], np.ndarray],
    image_dir: str,
) -> Pixels:
    def attempt(image: str) -> np.ndarray | str:
        try:
            return read(image)
        except Exception as error:  # a damaged file makes a decoder raise anything: SyntaxError, struct.error, ...
            return why_unreadable(error, Path(image_dir) / image, image_dir)

    keep_freed_memory()
    unreadable: list[tuple[str, str]] = []
    readable: list[str] = []
    with replace_atomically(cache) as temporary, large_photos_allowed(), single_threaded_pool(workers) as pool:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        reserve(temporary)
        bar = tqdm(total=len(images), desc="decode images", unit="img", disable=None, leave=False)
        for image, result in _in_blocks(pool, attempt, images):
            bar.update()
            if isinstance(result, str):
                unreadable.append((image, result))
            else:
                array[len(readable)] = result  # rows of unreadable images stay empty, at the end
                readable.append(image)
        bar.close()
        array.flush()
        array = np.load(temporary, mmap_mode="r")  # stays this file, even if another process replaces it next
        crc32 = _checksums(array, range(0, len(array), BLOCK), workers)
        record = {"digest": digest, "readable": len(readable), "unreadable": unreadable, "crc32": crc32}
        record["file"] = _size_and_time(temporary)  # which renaming leaves as they are
    write_json(cache.with_suffix(".json"), record)
    return Pixels(array[: len(readable)], tuple(readable), tuple(unreadable))


def why_unreadable(error: Exception, path: Path, image_dir: str) -> str:
    """Why decoding the photo `path` of `image_dir` failed with `error`, for the list of unreadable images."""
    if problem := file_problem(path):
        return problem
    if isinstance(error, UnidentifiedImageError):
        return "no image that can be read"
    return f"{type(error).__name__}: {str(error).replace(f'{image_dir}/', '')}"


@contextmanager
def single_threaded_pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose workers run torch on one thread each: a photo's products are too small to share.

    The setting is a thread's own, but also what later threads begin with, and in some libraries everyone's.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


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
