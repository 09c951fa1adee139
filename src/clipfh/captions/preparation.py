"""From a raw caption dataset to the prepared table: clean captions, draw the splits, check every image."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from clipfh.captions.readers import RawCaptions, caption_files, read_captions
from clipfh.captions.table import (
    CaptionDataset,
    CaptionedImage,
    assign_splits,
    read_caption_dataset,
    write_caption_dataset,
)
from clipfh.core.errors import InputError
from clipfh.core.files import read_json
from clipfh.core.names import require_name
from clipfh.core.paths import ROOT, display, metadata_dir
from clipfh.drawn.scenes import captioned
from clipfh.images.photo_files import LeftOut, compare_with_list, file_problem, meant_as_photos, write_left_out
from clipfh.prompts.clauses import clean_text
from clipfh.prompts.plain import says_something

DATASETS = ("synthetic", "coco", "flickr8k", "flickr30k", "jsonl", "grocery", "identities")
# Images of each split, None for all there are. COCO: the subset of 16,000 train and 4,000 held-out images; those that
# choose BEST are further ones of train2014.
SIZES: dict[str, dict[str, int | None]] = {
    "synthetic": dict(captioned.SPLIT_SIZES),
    "coco": {"train": 16_000, "val": 1_000, "test": 4_000},
    "flickr8k": {"train": None, "val": 1_000, "test": 1_000},
    "flickr30k": {"train": None, "val": 1_000, "test": 1_000},
    "jsonl": {"train": None, "val": None, "test": None},
    "grocery": {"train": None, "val": None, "test": None},
    "identities": {"train": None, "val": None, "test": None},
}
_VERSION = 1  # to be raised when the same raw data give another table


def prepare_captions(
    dataset: str,
    data_root: Path | None = None,
    *,
    name: str | None = None,
    sizes: dict[str, int | None] | None = None,
    seed: int = 0,
    force: bool = False,
) -> CaptionDataset:
    """Make `metadata/<name>/captions.json`, or read it where the same captions were prepared the same way before.

    Args:
        dataset: one of `DATASETS`.
        data_root: the raw dataset; None for the generated pictures and for one that was prepared before.
        name: the folder under `metadata/`; by default `<dataset>_captions`, of identities `<their folder>_identities`.
        sizes: images of a split, where not those of `SIZES`.
        seed: draws the splits, and the generated pictures.
        force: prepare again.

    Raises:
        InputError: what the readers raise, no captions at all, or most images missing or unreadable.
    """
    of_identities = f"{Path(data_root).resolve().name}_identities" if dataset == "identities" and data_root else None
    name = require_name(name or of_identities or f"{dataset}_captions", "--name")
    folder = metadata_dir(name)
    usual = {split: size for split, size in SIZES[dataset].items() if not (sizes or {}).get(split)}
    sizes = {**SIZES[dataset], **{split: size for split, size in (sizes or {}).items() if size is not None}}
    made_by = f"python model/stage4_frozen_text_alignment/prepare_captions.py --dataset {dataset} --data_root DIR"
    source: dict[str, Any] = {"version": _VERSION, "dataset": dataset, "sizes": sizes, "seed": seed}
    if dataset == "synthetic":
        data_root = data_root or ROOT / "data" / "raw" / name
        captioned.generate(data_root, sizes=sizes, seed=seed, progress=True)
    elif data_root is None:
        data = read_caption_dataset(folder, made_by)
        known = read_json(folder / "dataset.json", made_by=made_by).get("source")
        known = known if isinstance(known, dict) else {}
        other = [f"{key} {known.get(key)}" for key, value in source.items() if known.get(key) != value]
        if other:
            raise InputError(
                f"{display(folder)} was prepared with other flags ({'; '.join(other)}). Give the same ones again, or "
                "--data_root DIR, which prepares it anew"
            )
        return data
    raw_name = "jsonl" if dataset == "synthetic" else dataset
    source["files"] = [_fingerprint(path) for path in caption_files(raw_name, Path(data_root))]
    known = read_json(folder / "dataset.json", made_by=made_by) if (folder / "dataset.json").is_file() else {}
    if not force and known.get("source") == source:
        return read_caption_dataset(folder, made_by)
    raw = read_captions(raw_name, Path(data_root))
    cleaned, left_out = clean_captions(raw.images)
    images = tuple(assign_splits(cleaned, sizes, seed, usual=usual))
    drawn = {image.image for image in images}
    left_out += [(image.image, "not drawn: more than were asked for") for image in cleaned if image.image not in drawn]
    left_out = [*raw.left_out, *left_out]
    data = CaptionDataset(name, raw.image_dir, images, tuple(left_out), raw.seen_identities, raw.resize_mode)
    data = check_images(data)
    data = replace(data, left_out=(*data.left_out, *files_without_captions(raw)))
    write_left_out(folder / "left_out.csv", data.left_out)
    write_caption_dataset(folder, data, source)
    say_what_there_is(data, folder)
    return data


def _fingerprint(path: Path) -> list[Any]:
    status = os.stat(path)
    return [display(path), status.st_size, status.st_mtime_ns]


def files_without_captions(raw: RawCaptions) -> list[LeftOut]:
    """(file, reason) of the photos beside the captioned images, in the same folders, that the captions do not name.

    Files directly in the image root count where an image lies there; folders of it that no caption names may be
    anything, such as another dataset, and are not looked into.
    """
    named = [os.path.normpath(image.image) for image in raw.images]
    folders = {image.split("/", 1)[0] if "/" in image else "" for image in named}
    left_out, _ = compare_with_list(raw.image_dir, named, "the captions", folders=folders)
    return meant_as_photos(left_out)


def clean_captions(images: Sequence[CaptionedImage]) -> tuple[list[CaptionedImage], list[tuple[str, str]]]:
    """Repair encodings, undo HTML, single the spaces; empty captions, and one image's repeated ones, are left out.

    Returns:
        The images that have a caption, and (what, reason) of all that is left out.

    Raises:
        InputError: no image has a caption.
    """
    kept, left_out = [], []
    for image in images:
        texts: dict[str, None] = {}
        for caption in image.captions:
            text = clean_text(caption)
            if not says_something(text):
                left_out.append((image.image, f"empty caption: {caption!r}"))
            elif text in texts:
                left_out.append((image.image, f"caption twice: {text!r}"))
            texts.update({text: None} if says_something(text) else {})
        if texts:
            kept.append(CaptionedImage(image.image, tuple(texts), image.split, image.label))
        else:
            left_out.append((image.image, "image without a caption"))
    if not kept:
        raise InputError(f"none of the {len(images):,} images has a caption")
    return kept, left_out


def check_images(data: CaptionDataset) -> CaptionDataset:
    """Decode every image once; missing and unreadable ones are left out.

    Raises:
        InputError: more than half of the images, or all of a split, are missing or unreadable.
    """

    def problem(image: CaptionedImage) -> str | None:
        path = data.image_dir / image.image
        if missing := file_problem(path):
            return missing
        try:
            with Image.open(path) as photo:
                photo.draft("RGB", (32, 32))  # a JPEG is read to its end, but not computed in full
                photo.load()
            return None
        except Exception as error:  # a damaged file makes a decoder raise anything
            return f"{type(error).__name__}: {str(error).replace(str(data.image_dir), '')}"

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        quiet = {"total": len(data.images), "desc": "check images", "unit": "img", "disable": None, "leave": False}
        reasons = list(tqdm(pool.map(problem, data.images), **quiet))
    good = tuple(image for image, reason in zip(data.images, reasons, strict=True) if reason is None)
    bad = [(image.image, reason) for image, reason in zip(data.images, reasons, strict=True) if reason is not None]
    lost = [split for split in {image.split for image in data.images} if not any(i.split == split for i in good)]
    if len(bad) > len(good) or lost:
        raise InputError(
            f"{len(bad):,} of {len(data.images):,} images below {data.image_dir} cannot be read, the first: "
            f"{bad[0][0]} ({bad[0][1]}). Is --data_root right?"
        )
    return replace(data, images=good, left_out=(*data.left_out, *bad))


def say_what_there_is(data: CaptionDataset, folder: Path) -> None:
    """Print the counts of what was prepared and of what was left out."""
    counts = Counter(image.split for image in data.images)
    captions = [text for image in data.images for text in image.captions]
    print(f"{data.name}: " + ", ".join(f"{counts[split]:,} {split} images" for split in counts))
    print(
        f"  {len(captions):,} captions, {len(set(captions)):,} different ones, "
        f"{len(captions) / len(data.images):.1f} an image"
    )
    if data.left_out:
        what, reason = data.left_out[0]
        listing = display(folder / "left_out.csv")
        print(f"  left out: {len(data.left_out):,} images or captions, the first: {what} ({reason}); all in {listing}")
        kinds = Counter(reason.partition(":")[0] for _, reason in data.left_out)  # details follow the colon
        for kind, count in kinds.most_common():
            print(f"    {count:,} {kind}")
