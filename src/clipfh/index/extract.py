"""Extract the features of a folder, a table or a bucket of photos into Parquet shards, with any checkpoint.

    python -m clipfh.index extract --images my_photos --ckpt CKPT --out features
    python -m clipfh.index extract --images shop.parquet --image_dir s3://shop/photos --ckpt CKPT --out features --ray

A run that was stopped goes on: shards that fit the model and the photos are not made again. A table has a column
`image`, and may have `item_id`, `category` and `camera`; in a folder, the folder of a photo is its item id.

Reads:   photos, one batch at a time
Writes:  OUT/features_00000.parquet, ..., OUT/manifest.json, OUT/unreadable_images.csv
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from clipfh.core.cli import option
from clipfh.core.errors import InputError
from clipfh.core.files import require_no_others, writable_folder
from clipfh.core.paths import display
from clipfh.features.extraction import usual_batch_size
from clipfh.images.photo_files import meant_as_photos, write_left_out
from clipfh.images.pixels import single_threaded_pool
from clipfh.images.prefetch import prefetch
from clipfh.index.embedding import Decoded, ModelConfig, decode_photos, embed_photos, load_model, model_of
from clipfh.index.listing import Listing, list_photos
from clipfh.index.shards import (
    MANIFEST,
    Model,
    Shard,
    read_shard,
    shard_identity,
    shard_path,
    write_manifest,
    write_shard,
)
from clipfh.models.clip import LoadedClip

UNREADABLE = "unreadable_images.csv"


@dataclass(frozen=True)
class Config(ModelConfig):
    """The command line."""

    images: str | None = option(None, "a folder, a table (.csv, .parquet, .json), or a URI such as s3://BUCKET/PHOTOS")
    out: Path = option(Path("features"), "folder of the shards")
    image_dir: str | None = option(None, "of a table: what its paths are relative to, or a URI (default: its folder)")
    batch_size: int | None = option(None, "photos at a time (default: 128, on a CPU 32)", at_least=1)
    shard_size: int = option(10_000, "photos of a shard: as much work as a killed run loses", at_least=1)
    workers: int = option(min(2, os.cpu_count() or 1), "photos decoded at once; with --ray, CPUs of it", at_least=1)
    ray: str | None = option(None, "run on Ray: alone a local one, or the ADDRESS of a cluster", bare="local")


@dataclass(frozen=True)
class Task:
    """A shard that is to be made: its number, its rows of the listing, and the identity that it will have."""

    number: int
    rows: Any
    identity: str


class ShardWriter:
    """Collects the features of one shard after the other, in the order of the rows, and writes each when it is whole.

    Args:
        folder: of the shards.
        model: what makes the features.
        tasks: the shards that are made, in this order.
    """

    def __init__(self, folder: Path, model: Model, tasks: list[Task]) -> None:
        self.folder, self.model = folder, model
        self._waiting = iter(tasks)
        self._next()

    def _next(self) -> None:
        self._task = next(self._waiting, None)
        self._features: list[np.ndarray] = []
        self._reasons: list[str] = []

    def add(self, ids: list[str], features: np.ndarray, reasons: list[str]) -> None:
        """Take what comes next, which may belong to several shards.

        Args:
            ids: of B photos.
            features: (B, D) float32.
            reasons: why a photo cannot be read, or "".

        Raises:
            RuntimeError: they are not the photos that come next.
        """
        while ids:
            done = len(self._reasons)
            room = len(self._task.rows) - done
            if ids[:room] != self._task.rows["id"].slice(done, min(room, len(ids))).to_pylist():
                raise RuntimeError(f"features came out of order, at {ids[0]}")
            self._features.append(features[:room])
            self._reasons += reasons[:room]
            if len(self._reasons) == len(self._task.rows):
                self._write()
            ids, features, reasons = ids[room:], features[room:], reasons[room:]

    def _write(self) -> None:
        failed = [bool(reason) for reason in self._reasons]
        readable = np.flatnonzero(np.logical_not(failed))
        ids = self._task.rows["id"].to_pylist()
        unreadable = [(photo, reason) for photo, reason in zip(ids, self._reasons, strict=True) if reason]
        shard = Shard(self._task.identity, len(readable), unreadable)
        features = np.concatenate(self._features)[readable]
        write_shard(
            shard_path(self.folder, self._task.number), self._task.rows.take(readable), features, shard, self.model
        )
        self._next()


def main(config: Config) -> None:
    """List, leave out the shards that are there, extract the others, say what could not be read."""
    if config.images is None:
        raise InputError("which photos? Give --images: a folder, a table, or a URI such as s3://BUCKET/PHOTOS")
    _require_own_folder(config.out)
    listing = list_photos(config.images, config.image_dir)
    clip = load_model(config)
    extract(
        clip,
        listing,
        writable_folder(config.out, "--out"),
        images=config.images,
        shard_size=config.shard_size,
        batch_size=config.batch_size,
        workers=config.workers,
        ray=config.ray,
    )


def _require_own_folder(out: Path) -> None:
    """Check that `out` is for features: absent, empty, or with what an earlier run has left there.

    Raises:
        InputError: it holds other files.
    """
    if not (out / UNREADABLE).is_file() and not any(out.glob("features_*.parquet")):
        require_no_others(out, "--out", "holds no features and is")  # what a kill leaves is hidden


def extract(
    clip: LoadedClip,
    listing: Listing,
    folder: Path,
    *,
    images: str,
    shard_size: int = 10_000,
    batch_size: int | None = None,
    workers: int = 2,
    ray: str | None = None,
) -> None:
    """Make the shards of a listing that are not there yet, and the manifest.

    Args:
        clip: on the device that it runs on.
        listing: the photos.
        folder: of the shards.
        images: what the user called them, for the manifest.
        shard_size, batch_size, workers, ray: see `Config`.

    Raises:
        InputError: no photo can be read, or the folder cannot be written.
    """
    model = model_of(clip)
    tasks, num_shards = _missing_shards(listing, folder, model, shard_size)
    if tasks:
        (folder / MANIFEST).unlink(missing_ok=True)  # until all shards fit it again
    if num_shards > len(tasks):
        print(f"shards: {num_shards - len(tasks):,} of {num_shards:,} are there already")
    device = next(clip.model.parameters()).device
    batch_size = batch_size or usual_batch_size(device)
    writer = ShardWriter(folder, model, tasks)
    total = sum(len(task.rows) for task in tasks)
    bar = tqdm(total=total, desc="extract features", unit="img", disable=None, leave=False)
    with bar:
        if ray and tasks:
            from clipfh.index.on_ray import extract_on_ray

            extract_on_ray(clip, listing.source, tasks, writer, batch_size, workers, ray, bar.update)
        elif tasks:
            _extract_here(clip, listing, tasks, writer, batch_size, workers, bar.update)
    _finish(folder, model, num_shards, listing, images)


def _missing_shards(listing: Listing, folder: Path, model: Model, shard_size: int) -> tuple[list[Task], int]:
    """The shards that are absent or of another model or photos, and how many there are in all."""
    starts = range(0, len(listing.rows), shard_size)
    tasks = []
    for number, start in enumerate(starts):
        rows = listing.rows.slice(start, shard_size)
        stamps = [listing.source.stamp(photo) for photo in rows["id"].to_pylist()]
        identity = shard_identity(model, rows, stamps)
        shard = read_shard(shard_path(folder, number))
        if shard is None or shard.identity != identity:
            tasks.append(Task(number, rows, identity))
    return tasks, len(starts)


def batches_of(tasks: list[Task], batch_size: int) -> Iterator[list[str]]:
    """The ids of every batch; none of them is of two shards."""
    for task in tasks:
        for start in range(0, len(task.rows), batch_size):
            yield task.rows["id"].slice(start, batch_size).to_pylist()


def _extract_here(
    clip: LoadedClip,
    listing: Listing,
    tasks: list[Task],
    writer: ShardWriter,
    batch_size: int,
    workers: int,
    advance: Any,
) -> None:
    device, threads = next(clip.model.parameters()).device, torch.get_num_threads()
    with single_threaded_pool(workers) as pool:

        def decoded() -> Iterator[tuple[list[str], Decoded]]:
            for photos in batches_of(tasks, batch_size):
                yield photos, decode_photos(listing.source, photos, clip.image_size, clip.resize_mode, pool.map)

        with contextlib.closing(prefetch(decoded())) as ready:  # at most four batches of pixels in memory
            for photos, batch in ready:
                torch.set_num_threads(threads)  # threads of the pool have set it to 1, in some libraries for everyone
                writer.add(photos, embed_photos(clip, batch, device), batch.reasons)
                advance(len(photos))


def _finish(folder: Path, model: Model, num_shards: int, listing: Listing, images: str) -> None:
    shards = [read_shard(shard_path(folder, number)) for number in range(num_shards)]
    if None in shards:
        raise InputError(f"{shard_path(folder, shards.index(None))} was deleted or damaged; run the same command again")
    missed = meant_as_photos(listing.left_out) + [failed for shard in shards for failed in shard.unreadable]
    write_left_out(folder / UNREADABLE, missed)
    count = sum(shard.count for shard in shards)
    if not count:
        photo, reason = missed[0]
        raise InputError(
            f"none of the {len(missed)} photos can be read, the first: {photo} ({reason}). Is --image_dir right? All "
            f"are listed in {display(folder / UNREADABLE)}"
        )
    if missed:
        print(f"left out {len(missed):,} unreadable photos; listed in {display(folder / UNREADABLE)}")
    write_manifest(folder, model, shards, images, listing.source.address)
    print(
        f"features of {count:,} photos, {model['dimension']}-d, by weights {model['weights'][:12]}: {display(folder)}"
    )
