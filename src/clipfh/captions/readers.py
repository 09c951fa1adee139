"""Readers of caption datasets: COCO, Flickr8k, Flickr30k, JSON lines, grocery photos, and prepared identities.

Each takes the data root and returns the image root, the images as they are in the raw files (captions not yet
cleaned), and what is left out. `LAYOUTS` shows what they expect.
"""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from clipfh.captions.table import SPLITS, CaptionedImage
from clipfh.core.errors import InputError, printable, shown
from clipfh.core.files import json_problem
from clipfh.core.values import leaves_root, normal_path, text_of
from clipfh.datasets import grocery
from clipfh.datasets.layout import read_raw_json, read_raw_lines, require_folder
from clipfh.prompts.plain import readable_name
from clipfh.tables.digest import Seen, seen_with
from clipfh.tables.prepared import TOKEN_SAFE_PROMPTS, WHOLE_TABLE, load_prepared, load_prompts

LAYOUTS = {
    "coco": """\
    DATA_ROOT/annotations/captions_train2014.json, captions_val2014.json
    DATA_ROOT/train2014/COCO_train2014_000000000009.jpg    (so too val2014/)""",
    "flickr8k": """\
    DATA_ROOT/Images/1000268201_693b08cb0e.jpg
    DATA_ROOT/captions.txt               image,caption with a header; or Flickr8k.token.txt: NAME.jpg#0 TAB caption""",
    "flickr30k": """\
    DATA_ROOT/flickr30k_images/1000092795.jpg
    DATA_ROOT/results.csv                image_name| comment_number| comment (with a header), or captions.txt""",
    "jsonl": """\
    DATA_ROOT/captions.jsonl             one image a line: {"image": "a/b.jpg", "captions": ["...", "..."]}, or
                                         "caption" with one text; "split" (train, val, test) and "label" as you like
    DATA_ROOT/a/b.jpg                    DATA_ROOT may be the .jsonl file itself: images are beside it then""",
    "grocery": grocery.LAYOUT,
    "identities": """\
    DATA_ROOT/dataset.json               a folder metadata/<dataset>/ that the scripts of preprocessing/ wrote
    DATA_ROOT/image_paths.json           with prompts; its splits stay as they are""",
}


class RawCaptions(NamedTuple):
    """What a reader returns."""

    image_dir: Path
    images: list[CaptionedImage]
    left_out: list[tuple[str, str]]
    seen_identities: Seen = MappingProxyType({})
    resize_mode: str | None = None


def read_captions(dataset: str, data_root: Path) -> RawCaptions:
    """Read a raw dataset.

    Raises:
        InputError: unknown name, missing files, or a malformed one (its line is named).
    """
    readers: dict[str, Callable[[Path], RawCaptions]] = {
        "coco": read_coco,
        "flickr8k": read_flickr,
        "flickr30k": read_flickr,
        "jsonl": read_jsonl,
        "grocery": read_grocery,
        "identities": read_identities,
    }
    if dataset not in readers:
        raise InputError(f"unknown caption dataset {dataset!r}; the datasets are {', '.join(readers)}")
    raw = readers[dataset](Path(data_root))
    for image in raw.images:
        _require_inside(image.image, str(data_root))
    return raw


def _require_inside(image: str, where: str) -> None:
    if leaves_root(image) or printable(image) != image:
        raise InputError(f"{where}: the image {shown(image)} leaves the data root, or holds control characters")


def caption_files(dataset: str, data_root: Path) -> list[Path]:
    """The files that hold the captions; when one of them changes, the prepared table is out of date."""
    names = {
        "coco": ("annotations/captions_train2014.json", "annotations/captions_val2014.json"),
        "flickr8k": ("captions.txt", "Flickr8k.token.txt"),
        "flickr30k": ("captions.txt", "results.csv", "results_20130124.token"),
        "jsonl": ("captions.jsonl",),
        "grocery": ("classes.csv", "train.txt", "val.txt", "test.txt"),
        "identities": ("dataset.json", WHOLE_TABLE, TOKEN_SAFE_PROMPTS),
    }
    if data_root.is_file():
        return [data_root]
    return [data_root / name for name in names[dataset] if (data_root / name).is_file()]


def read_coco(data_root: Path) -> RawCaptions:
    """COCO 2014 captions (Chen et al. 2015): `train2014` is train; `val2014` is test, and never chooses BEST."""
    require_folder(data_root, LAYOUTS["coco"])
    images, left_out = [], []
    for folder, split in (("train2014", "train"), ("val2014", "test")):
        path = data_root / "annotations" / f"captions_{folder}.json"
        content = read_raw_json(path, LAYOUTS["coco"])
        try:
            names = {entry["id"]: normal_path(f"{folder}/{entry['file_name']}") for entry in content["images"]}
            texts: dict[Any, list[str]] = {image_id: [] for image_id in names}
            for number, entry in enumerate(content["annotations"]):
                if not isinstance(entry["caption"], str):
                    raise InputError(
                        f"{path}: annotation {number} has the caption {shown(entry['caption'])}, not a text"
                    )
                if entry["image_id"] in names:
                    texts[entry["image_id"]].append(entry["caption"])
                else:
                    left_out.append((f"{path.name}, annotation {number}", f"no image {shown(entry['image_id'])}"))
        except (KeyError, TypeError) as error:
            raise InputError(
                f'{path} is not COCO captions ({error}): it needs "images" with "id" and "file_name", and '
                f'"annotations" with "image_id" and "caption"'
            ) from None
        images += [CaptionedImage(names[image_id], tuple(texts[image_id]), split) for image_id in names]
    return RawCaptions(data_root, images, left_out)


def read_flickr(data_root: Path) -> RawCaptions:
    """Flickr8k (Hodosh et al. 2013) and Flickr30k (Young et al. 2014), in any layout that they are handed on in."""
    require_folder(data_root, LAYOUTS["flickr8k"])
    folders = [data_root / name for name in ("Images", "images", "flickr30k_images", "Flicker8k_Dataset")]
    folder = next((folder for folder in folders if folder.is_dir()), data_root)
    nested = folder / folder.name  # as some archives unpack
    folder = nested if nested.is_dir() else folder
    known = (
        ("captions.txt", _comma_lines),
        ("results.csv", _bar_lines),
        ("Flickr8k.token.txt", _token_lines),
        ("results_20130124.token", _token_lines),
    )
    for name, parse in known:
        for path in (data_root / name, folder / name, folder.parent / name):
            if path.is_file():
                texts: dict[str, list[str]] = {}
                for image, caption in parse(path):
                    texts.setdefault(image, []).append(caption)
                return RawCaptions(
                    folder, [CaptionedImage(image, tuple(several)) for image, several in texts.items()], []
                )
    raise InputError(
        f"{data_root} has none of {', '.join(name for name, _ in known)}. Expected:\n"
        f"{LAYOUTS['flickr8k']}\nor\n{LAYOUTS['flickr30k']}"
    )


def _comma_lines(path: Path) -> list[tuple[str, str]]:
    """`image,caption`; a caption with commas is in quotes, or simply has them."""
    rows = []
    for number, line in enumerate(read_raw_lines(path, ""), start=1):
        try:  # line by line: a quote that is never closed would swallow the rest of the file
            values = next(csv.reader([line], strict=True), [])
        except csv.Error as error:
            raise InputError(f"{path}, line {number}: {error}, found {shown(line, 80)}") from None
        if not values or (number == 1 and values[0].strip() in ("image", "image_name")):
            continue
        if len(values) < 2:
            raise InputError(f"{path}, line {number}: expected 'image,caption', found {shown(line, 80)}")
        if re.fullmatch(r"\d+", values[1].strip()) and len(values) > 2:  # image,comment number,caption
            values = [values[0], *values[2:]]
        rows.append((normal_path(values[0].strip()), ",".join(values[1:])))
    return rows


def _bar_lines(path: Path) -> list[tuple[str, str]]:
    """`image_name| comment_number| comment`."""
    rows = []
    for number, line in enumerate(read_raw_lines(path, ""), start=1):
        if not line.strip() or (number == 1 and line.startswith("image_name")):
            continue
        values = line.split("|", 2)
        if len(values) == 2 and (lost := re.match(r"\s*(\d+)\s+(\S.*)", values[1])):
            values = [values[0], *lost.groups()]  # the file as it is handed on has one line without its second bar
        if len(values) != 3 or not values[1].strip().isdecimal():
            raise InputError(f"{path}, line {number}: expected 'image_name| number| caption', found {shown(line, 80)}")
        rows.append((normal_path(values[0].strip()), values[2]))
    return rows


def _token_lines(path: Path) -> list[tuple[str, str]]:
    """`NAME.jpg#0 <tab> caption`, the original form."""
    rows = []
    for number, line in enumerate(read_raw_lines(path, ""), start=1):
        image, tab, caption = line.partition("\t")
        if line.strip() and (not tab or "#" not in image):
            raise InputError(f"{path}, line {number}: expected 'NAME.jpg#0<tab>caption', found {shown(line, 80)}")
        if line.strip():
            rows.append((normal_path(image.rpartition("#")[0].strip()), caption))
    return rows


def read_jsonl(data_root: Path) -> RawCaptions:
    """JSON lines as in `LAYOUTS`; the captions of several lines with one image add up."""
    if not data_root.is_file():
        require_folder(data_root, LAYOUTS["jsonl"])
    path = data_root if data_root.is_file() else data_root / "captions.jsonl"
    found: dict[str, CaptionedImage] = {}
    for number, line in enumerate(read_raw_lines(path, LAYOUTS["jsonl"]), start=1):
        if line.strip():
            image = _read_json_line(line, f"{path}, line {number}")
            before = found.get(image.image)
            if before and (before.split, before.label) != (image.split, image.label):
                raise InputError(f"{path}, line {number}: {image.image} has another split or label than before")
            captions = (before.captions if before else ()) + image.captions
            found[image.image] = replace(image, captions=captions)
    return RawCaptions(path.parent, list(found.values()), [])


def _read_json_line(line: str, where: str) -> CaptionedImage:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}, column {error.colno}: not valid JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}{json_problem(error)}") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise InputError(f'{where}: expected {{"image": path, "captions": [texts]}}, found {shown(line.strip(), 80)}')
    image = normal_path(entry["image"])
    _require_inside(image, where)
    captions = [] if entry.get("captions") is None else entry["captions"]
    captions = [captions] if isinstance(captions, str) else captions
    if "caption" in entry and isinstance(captions, list):
        captions = [*captions, entry["caption"]]
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise InputError(f"{where}: captions must be texts, found {shown(captions)}")
    split = "" if entry.get("split") is None else entry["split"]
    if split not in ("", *SPLITS):
        raise InputError(f"{where}: unknown split {shown(split)}; the splits are {', '.join(SPLITS)}")
    return CaptionedImage(image, tuple(captions), split, text_of(entry.get("label"), f"{where}: label"))


def read_grocery(data_root: Path) -> RawCaptions:
    """Grocery Store photos: the sentences of a product's description are the captions of each of its photos.

    The photos of `test.txt` were taken on other occasions than those of `train.txt` and `val.txt`.
    """
    data = grocery.read(data_root)
    split_of_image = {}
    for split in SPLITS:
        for line in read_raw_lines(data_root / f"{split}.txt", LAYOUTS["grocery"]):
            split_of_image[line.partition(",")[0].strip().lstrip("/")] = split
    images = [
        CaptionedImage(
            row.image, data.descriptions[row.item_id].lines, split_of_image[row.image], readable_name(row.item_id)
        )
        for row in data.table.itertuples()
    ]
    return RawCaptions(data.image_dir, images, [])


def read_identities(folder: Path) -> RawCaptions:
    """Photos of a dataset that was prepared for stages 1 to 3; `folder` is its `metadata/<dataset>`.

    The prompts of an identity are the captions of each of its photos. Its splits stay: test are the photos of query and
    gallery, so that what is aligned here has seen no identity that stages 1 to 3 measure.
    """
    require_folder(folder, LAYOUTS["identities"])
    data = load_prepared(None, folder=folder)
    prompts = load_prompts(data, None, TOKEN_SAFE_PROMPTS, *data.table["split"].unique())
    images = [
        CaptionedImage(
            row.image,
            tuple(dict.fromkeys(prompts[row.item_id])),
            row.split if row.split in SPLITS else "test",
            readable_name(row.item_id),
        )
        for row in data.table.itertuples()
    ]
    return RawCaptions(data.image_dir, images, [], seen_with({}, data.digest, data.table), data.resize_mode)
