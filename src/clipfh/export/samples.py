"""The photos and texts on which an export is compared with the checkpoint, and those that int8 is measured on.

Shapes: N photos, H x W pixels.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from clipfh.core.errors import InputError
from clipfh.datasets import inshop, synthetic
from clipfh.drawn.garments.catalogue import make_catalogue
from clipfh.drawn.garments.rendering import VIEWS, render_photo
from clipfh.images.transforms import decode
from clipfh.models.clip import LoadedClip
from clipfh.tables.prepared import TOKEN_SAFE_PROMPTS, PreparedDataset, load_prompts

NUM_SAMPLES = 8
NUM_GARMENTS = 60
SEED = 1_000_003  # of garments that no default training draws
TEXTS = (
    "a photo of a red dress",
    "Blue Denim Jacket, with 2 chest pockets & a button-down collar!",
    "  a  cat's   toy -- naïve, 100% cotton  ",
    "x",
)
LONG_TEXT = "a long description of a dress with sleeves, buttons and a collar; " * 20  # every tokenizer cuts it


@dataclass(frozen=True)
class Samples:
    """What is encoded by the checkpoint and by the export.

    Attributes:
        files: N photos as they are.
        framed: the same as PNG, in the model's own frame: no library resizes these.
        pixels: (N, H, W, 3) uint8 of them.
        texts: some texts, one of which is longer than the model takes.
        told: where they come from, for people.
    """

    files: list[Path]
    framed: list[Path]
    pixels: np.ndarray
    texts: list[str]
    told: str


def drawn_samples(clip: LoadedClip, folder: Path) -> Samples:
    """Photos of drawn garments, written into `folder`, and fixed texts."""
    files = []
    for number, item in enumerate(make_catalogue(NUM_SAMPLES, seed=SEED)):
        rng = random.Random(f"export {number}")
        photo = render_photo(item.garment, VIEWS[number % len(VIEWS)], rng, image_px=192)
        files.append(folder / f"drawn_{number}.png")
        photo.crop((0, 0, 192 - 12 * number, 192)).save(files[-1])  # of several aspects
    return _framed(clip, files, folder, [*TEXTS, LONG_TEXT], f"{len(files)} drawn photos")


def dataset_samples(clip: LoadedClip, data: PreparedDataset, folder: Path) -> Samples:
    """Test photos of a dataset, spread over its table, and prompts of their identities.

    Raises:
        InputError: a photo cannot be read, or there are no test photos.
    """
    rows = data.rows("query", "gallery")
    if rows.empty:
        raise InputError(f"{data.name} has no test photos; leave --dataset out, and drawn ones are taken")
    rows = rows.iloc[np.linspace(0, len(rows) - 1, min(NUM_SAMPLES, len(rows))).round().astype(int)]
    prompts = load_prompts(data, None, TOKEN_SAFE_PROMPTS, "query", "gallery")
    texts = [prompts[item_id][0] for item_id in dict.fromkeys(rows["item_id"])]
    files = [data.image_dir / image for image in rows["image"]]
    return _framed(clip, files, folder, [*texts, LONG_TEXT], f"{len(files)} test photos of {data.name}")


def _framed(clip: LoadedClip, files: list[Path], folder: Path, texts: list[str], told: str) -> Samples:
    framed, pixels = [], []
    for number, file in enumerate(files):
        try:
            pixels.append(decode(file, clip.image_size, clip.resize_mode))
        except Exception as error:  # a damaged photo makes a decoder raise anything
            raise InputError(f"{file} cannot be read ({error}); mend it, or leave --dataset out") from error
        framed.append(folder / f"framed_{number}.png")
        Image.fromarray(pixels[-1]).save(framed[-1])
    return Samples(files, framed, np.stack(pixels), texts, told)


def drawn_garments(clip: LoadedClip, folder: Path) -> tuple[np.ndarray, list[str], dict[str, list[str]]]:
    """Some drawn garments, made in `folder`.

    Returns:
        pixels (N, H, W, 3) of all their photos; the identity of each; the description of each identity that has one.
    """
    synthetic.generate(folder, num_identities=NUM_GARMENTS, seed=SEED)
    data = inshop.read(folder)
    pixels = [decode(data.image_dir / image, clip.image_size, clip.resize_mode) for image in data.table["image"]]
    descriptions = {item_id: [" ".join(found.lines)] for item_id, found in data.descriptions.items()}
    return np.stack(pixels), data.table["item_id"].tolist(), descriptions
