"""FER2013: faces of seven emotions, as folders of images or as the challenge's CSV. N: faces, S: image size in pixels.

    ROOT/train/<emotion>/<any name>.jpg       ROOT/test/<emotion>/<any name>.jpg       (or .png and others, or deeper)
    fer2013.csv with the columns emotion (0..6), pixels (48 x 48 grey values), Usage

Source: Goodfellow et al. 2013, "Challenges in Representation Learning".
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from clipfh.core.errors import InputError
from clipfh.images.photo_files import HIDDEN, account, find_photos, name_problem
from clipfh.images.pixels import drop_unreadable, load_pixels

EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
CSV_EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")  # by the number in the file
CSV_SPLITS = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
CSV_SIDE = 48


@dataclass(frozen=True)
class Faces:
    """Faces of one split; `faces[places]` are the pixels (n, S, S, 3) of some of them, `faces[i]` those of one.

    Attributes:
        pixels: (M, S, S, 3) uint8 of all splits, mapped from a file where they come from a folder; grey images have
            three equal channels.
        rows: (N,) which of them are of this split.
        labels: (N,) int64 places in `EMOTIONS`.
        names: N paths below the root, or `line 17` of a CSV.
    """

    pixels: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]

    @property
    def image_size(self) -> int:
        """S."""
        return self.pixels.shape[1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: int | slice | np.ndarray | list[int]) -> np.ndarray:
        return self.pixels[self.rows[places]]

    def take(self, places: np.ndarray) -> "Faces":
        """The faces at these places, in this order."""
        names = tuple(self.names[place] for place in places)
        return Faces(self.pixels, self.rows[places], self.labels[places], names)

    def first_of_each_emotion(self, count: int) -> "Faces":
        """The first `count` faces of each emotion, or as many as there are, emotion by emotion."""
        return self.take(np.concatenate([np.flatnonzero(self.labels == c)[:count] for c in range(len(EMOTIONS))]))


def read_faces(
    source: Path, image_size: int, cache_dir: Path, listing: Path, *, skip_unreadable: bool = False
) -> dict[str, Faces]:
    """The splits of a folder or a CSV: `train`, and `val` and `test` where it has them.

    Args:
        source: the root folder or the CSV file.
        image_size: S; images are resized to it, and cut to a square.
        cache_dir: where the decoded images of a folder are kept.
        listing: a CSV to write if images cannot be read.
        skip_unreadable: go on without them.

    Raises:
        InputError: neither of the two layouts, an unknown emotion, an emotion without faces, unreadable images, a
            malformed line (with its number).
    """
    source = Path(source)
    if source.is_file():
        splits = _read_csv(source, image_size)
    elif source.is_dir():
        table = _list_folder(source)
        pixels = load_pixels(source, table["image"].tolist(), image_size, cache_dir)
        table = drop_unreadable(table, pixels, listing, skip_unreadable=skip_unreadable)
        labels = np.array([EMOTIONS.index(emotion) for emotion in table["emotion"]])
        faces = Faces(pixels.array, np.arange(len(labels)), labels, pixels.images)
        splits = {name: faces.take(np.flatnonzero(table["split"] == name)) for name in dict.fromkeys(table["split"])}
    else:
        raise InputError(f"--dataset {source} does not exist; give a folder with train/<emotion>/, or fer2013.csv")
    for name, faces in splits.items():
        for label, emotion in enumerate(EMOTIONS):
            if not (faces.labels == label).any():
                raise InputError(f"{source}: the split {name} has no face of the emotion {emotion}")
    return splits


def _list_folder(root: Path) -> pd.DataFrame:
    """A row an image: image (path below the root), emotion, split. What is left out is counted and printed."""
    photos, left_out = find_photos(root)
    rows = []
    for split in ("train", "val", "test"):
        for folder in sorted(
            path for path in (root / split).glob("*") if path.is_dir() and name_problem(path.name) != HIDDEN
        ):
            if folder.name not in EMOTIONS:
                raise InputError(f"{folder}: unknown emotion {folder.name!r}; the folders are {', '.join(EMOTIONS)}")
            images = [photo for photo in photos if photo.startswith(f"{split}/{folder.name}/")]
            if not images:
                raise InputError(f"{folder} holds no image that can be used")
            rows += [(image, folder.name, split) for image in images]
    table = pd.DataFrame(rows, columns=["image", "emotion", "split"])
    if not (table["split"] == "train").any():
        raise InputError(f"{root} has no folder train/<emotion>/ with images; the emotions are {', '.join(EMOTIONS)}")
    used = set(table["image"])
    left_out += [(photo, "outside train/, val/ and test/<emotion>/") for photo in photos if photo not in used]
    if left_out:
        print(account(len(used), left_out))
    return table


def _read_csv(path: Path, image_size: int) -> dict[str, Faces]:
    images, labels, names, splits = [], [], [], []
    for line, label, pixels, split in _csv_rows(path):
        image = Image.fromarray(pixels.reshape(CSV_SIDE, CSV_SIDE))
        if image_size != CSV_SIDE:
            image = image.resize((image_size, image_size), Image.Resampling.BICUBIC)
        images.append(np.asarray(image))
        labels.append(label)
        names.append(f"line {line}")
        splits.append(split)
    if "train" not in splits:
        raise InputError(f"{path} has no line with the Usage Training")
    grey = np.stack(images)[..., None]
    pixels = np.broadcast_to(grey, (*grey.shape[:3], 3))  # three views of one channel
    faces = Faces(pixels, np.arange(len(names)), np.array(labels), tuple(names))
    return {name: faces.take(np.flatnonzero(np.array(splits) == name)) for name in dict.fromkeys(splits)}


def _csv_rows(path: Path) -> Iterator[tuple[int, int, np.ndarray, str]]:
    """The checked lines: number, label, grey values (2304,) uint8, split."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            # the copies of the challenge's file that Kaggle hands out head their columns " Usage" and " pixels"
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            missing = {"emotion", "pixels", "Usage"} - set(reader.fieldnames)
            if missing:
                raise InputError(
                    f"{path}, line 1: no column {', '.join(sorted(missing))}; it needs emotion,pixels,Usage"
                )
            for row in reader:
                yield _checked_row(f"{path}, line {reader.line_num}", reader.line_num, row)
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path}, line {reader.line_num + 1}: not a CSV text file ({error})") from None


def _checked_row(place: str, line: int, row: dict[str, str]) -> tuple[int, int, np.ndarray, str]:
    emotion, usage, text = row["emotion"] or "", row["Usage"] or "", row["pixels"] or ""
    if not emotion.strip().isdecimal() or int(emotion) >= len(CSV_EMOTIONS):
        numbered = ", ".join(f"{number} {name}" for number, name in enumerate(CSV_EMOTIONS))
        raise InputError(f"{place}: unknown emotion {emotion!r}; valid: {numbered}")
    if usage.strip() not in CSV_SPLITS:
        raise InputError(f"{place}: unknown Usage {usage!r}; valid: {', '.join(CSV_SPLITS)}")
    words = text.split()
    if len(words) != CSV_SIDE**2:
        raise InputError(f"{place}: {len(words)} pixels, not {CSV_SIDE} x {CSV_SIDE} = {CSV_SIDE**2}")
    try:
        values = np.array(words, dtype=np.int64)
    except (ValueError, OverflowError):
        raise InputError(f"{place}: a pixel is not a whole number") from None
    if values.min() < 0 or values.max() > 255:
        raise InputError(f"{place}: pixels must lie in 0..255, not {values.min()}..{values.max()}")
    label = EMOTIONS.index(CSV_EMOTIONS[int(emotion)])
    return line, label, values.astype(np.uint8), CSV_SPLITS[usage.strip()]
