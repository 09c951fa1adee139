"""Captioned images: the one table that every raw layout is read into, its splits, and its form on disk.

On disk `metadata/<name>/captions.json` is `{image: {"captions": [texts], "split", "label"}}`, and beside it
`dataset.json` says where the images are and what the table was made of.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from clipfh.core.errors import InputError, printable, shown
from clipfh.core.files import read_json, write_json
from clipfh.core.names import require_name
from clipfh.core.paths import ROOT, display
from clipfh.core.values import is_texts, leaves_root, text_of
from clipfh.images.transforms import RESIZE_MODES
from clipfh.tables.digest import Seen, digest_of, size_of

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class CaptionedImage:
    """One image with what is written below it.

    Attributes:
        image: path below the image root, `/` separators.
        captions: one or more different texts.
        split: `train`, `val` (chooses BEST), `test` (held out), or empty where the raw data do not say.
        label: what the image shows, for zero-shot classification; may be empty.
    """

    image: str
    captions: tuple[str, ...]
    split: str = ""
    label: str = ""


@dataclass(frozen=True)
class CaptionDataset:
    """What a reader of `clipfh.captions.readers` returns, and what the training reads back.

    Attributes:
        name: the folder under `metadata/`.
        image_dir: the image root.
        images: sorted by split and path.
        left_out: (what, reason) of every image, caption or line that is not in `images`.
        seen_identities: whom the images of train and val show, see `clipfh.tables.digest`; empty where nobody says.
        resize_mode: how photos become squares; None: as the image encoder was trained.
    """

    name: str
    image_dir: Path
    images: tuple[CaptionedImage, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    seen_identities: Seen = field(default_factory=dict)
    resize_mode: str | None = None

    def rows(self, split: str) -> list[CaptionedImage]:
        """The images of one split."""
        return [image for image in self.images if image.split == split]


@dataclass(frozen=True)
class CaptionIndex:
    """The captions of some images as numbers: each distinct text has one, whichever images it belongs to.

    Attributes:
        texts: the T distinct captions, in the order of their first appearance.
        of_image: for each image the numbers of its captions.
    """

    texts: list[str]
    of_image: list[np.ndarray]

    def padded(self) -> np.ndarray:
        """(N, M) the caption numbers of each image, -1 where it has fewer than M."""
        table = np.full((len(self.of_image), max(map(len, self.of_image))), -1, dtype=np.int64)
        for row, numbers in zip(table, self.of_image, strict=True):
            row[: len(numbers)] = numbers
        return table


def index_captions(images: Sequence[CaptionedImage]) -> CaptionIndex:
    """Number the captions; two images with the same text share its number, so that neither is the other's negative."""
    place: dict[str, int] = {}
    of_image = [np.array([place.setdefault(text, len(place)) for text in image.captions]) for image in images]
    return CaptionIndex(list(place), of_image)


def assign_splits(
    images: Sequence[CaptionedImage],
    sizes: dict[str, int | None],
    seed: int,
    *,
    usual: Mapping[str, int | None] | None = None,
) -> list[CaptionedImage]:
    """Draw the splits' images: from those that the raw data name so, else from the ones without a split or of train.

    Args:
        images: with the split that the raw data give, or none.
        sizes: images of `test`, `val` and `train`; None takes all there are (for `test` and `val` that have to be
            drawn: a tenth each). Fewer than asked for are taken where there are no more, which is said.
        seed: of every draw.
        usual: sizes that nobody asked for, those of the whole dataset. Where `test` or `val` has to be drawn and that
            is more than an eighth of the images, as in a subset of them, an eighth is taken, which is said.

    Raises:
        InputError: a split would be empty.
    """
    usual = usual or {}
    rng = np.random.default_rng([seed, 4])
    pools: dict[str, list[CaptionedImage]] = {split: [] for split in (*SPLITS, "")}
    for image in sorted(images, key=lambda image: image.image):
        pools[image.split].append(image)
    free = pools["train"] + pools[""]
    free = [free[index] for index in rng.permutation(len(free))]
    tenth = max(1, len(free) // 10)
    chosen: list[CaptionedImage] = []
    for split in ("test", "val", "train"):
        wanted = sizes.get(split)
        if split == "train":
            pool, free = free, []
        elif pools[split]:
            pool = [pools[split][index] for index in rng.permutation(len(pools[split]))]
        else:
            count = tenth if wanted is None else wanted
            eighth = max(1, len(images) // 8)
            if wanted is not None and wanted == usual.get(split) and wanted > eighth:
                print(
                    f"note: {split} takes {eighth:,} of {len(images):,} images, not {wanted:,} as of the whole dataset"
                )
                wanted = count = eighth
            pool, free = free[:count], free[count:]
        if not pool or wanted == 0:
            raise InputError(f"no image is left for {split}: there are {len(images):,}; ask for fewer in other splits")
        if wanted is not None and len(pool) < wanted:
            print(f"note: {split} has {len(pool):,} images, not the {wanted:,} asked for")
        chosen += [replace(image, split=split) for image in pool[:wanted]]
    return sorted(chosen, key=lambda image: (SPLITS.index(image.split), image.image))


def write_caption_dataset(folder: Path, data: CaptionDataset, source: dict[str, Any]) -> None:
    """Write `captions.json` and, last, `dataset.json` with `source`: what the table was made of."""
    table = {
        image.image: {"captions": list(image.captions), "split": image.split, "label": image.label}
        for image in data.images
    }
    write_json(folder / "captions.json", table)
    counts = Counter(image.split for image in data.images)
    image_dir = data.image_dir.resolve()
    image_dir = image_dir.relative_to(ROOT) if image_dir.is_relative_to(ROOT) else image_dir
    description = {"name": data.name, "kind": "captions", "image_dir": str(image_dir), "num_images": dict(counts)}
    description |= {"seen_identities": dict(data.seen_identities), "resize_mode": data.resize_mode}
    write_json(folder / "dataset.json", {**description, "source": source})


def captions_digest(data: CaptionDataset) -> str:
    """The digest of the images, their sizes in bytes, splits, labels and captions, see `clipfh.tables.digest`."""
    return digest_of(
        (image.image, size_of(data.image_dir / image.image), image.split, image.label, *image.captions)
        for image in data.images
    )


def read_caption_dataset(folder: Path, made_by: str) -> CaptionDataset:
    """Read what `write_caption_dataset` wrote.

    Raises:
        InputError: missing, malformed, or of another kind; the message names the command `made_by`.
    """
    description = read_json(folder / "dataset.json", made_by=made_by)
    image_dir = description.get("image_dir")
    if description.get("kind") != "captions" or not isinstance(image_dir, str) or printable(image_dir) != image_dir:
        raise InputError(f"{display(folder)} holds no prepared captions. Make them with: {made_by}")
    images = []
    for image, entry in read_json(folder / "captions.json", made_by=made_by).items():
        if leaves_root(image) or printable(image) != image:
            raise InputError(f"{folder / 'captions.json'}: {shown(image)} is no image below the image root")
        texts = entry.get("captions") if isinstance(entry, dict) else None
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise InputError(f"{folder / 'captions.json'}: {image!r} needs a list of captions. Make it with: {made_by}")
        if entry.get("split") not in SPLITS:
            raise InputError(f"{folder / 'captions.json'}: {image!r} has the split {shown(entry.get('split'))}")
        images.append(
            CaptionedImage(image, tuple(texts), entry["split"], text_of(entry.get("label"), f"{image}: label"))
        )
    name = require_name(description.get("name"), f"{folder / 'dataset.json'}: name")
    seen = description.get("seen_identities", {})
    if not isinstance(seen, dict) or not all(map(is_texts, seen.values())):
        raise InputError(f"{folder / 'dataset.json'}: seen_identities is {shown(seen)}. Make it with: {made_by}")
    mode = description.get("resize_mode")
    if mode not in (None, *RESIZE_MODES):
        raise InputError(f"{folder / 'dataset.json'}: resize_mode is {shown(mode)}; valid: {', '.join(RESIZE_MODES)}")
    return CaptionDataset(name, ROOT / image_dir, tuple(images), seen_identities=seen, resize_mode=mode)
