"""Generated pictures with five captions each: scenes and garments, half and half, in the layout of JSON lines.

Source: drawn here with Pillow, the same for the same parameters. Nothing is downloaded.

    DATA_ROOT/captions.jsonl       {"image", "captions": [five], "split": train | val | test, "label": what it shows}
    DATA_ROOT/images/00000.jpg
    DATA_ROOT/generated.json       the parameters

The garments come from the half of all attribute combinations that the small CLIP of stage 0 was never shown. Families
of garments that differ in one attribute only are never divided between the splits; no scene is in two splits.
"""

import json
import random
from pathlib import Path

from tqdm import tqdm

from clipfh.drawn.garments.captions import garment_captions
from clipfh.drawn.garments.catalogue import Garment, make_catalogue
from clipfh.drawn.garments.descriptions import noun
from clipfh.drawn.garments.rendering import render_photo
from clipfh.drawn.generated_folder import generated_folder, in_processes, is_generated
from clipfh.drawn.scenes.captions import Scene, draw_scene, scene_captions
from clipfh.drawn.scenes.drawing import render_scene

SPLIT_SIZES = {"train": 3000, "val": 250, "test": 500}
_VERSION = 1  # to be raised when the same parameters give other files, so that old folders are made anew
_VIEWS = ("front", "front", "full", "flat", "additional")  # what the captions name is to be seen


def generate(data_root: Path, *, sizes: dict[str, int], seed: int, image_px: int = 96, progress: bool = False) -> None:
    """Write the pictures and their captions; whole or not at all.

    A finished folder is kept if it was made with the same parameters, and replaced if it was made with others.

    Args:
        data_root: the folder to make.
        sizes: pictures of `train`, `val` and `test`.
        seed: draws everything.
        image_px: side of the square pictures, at least 96.
        progress: show a progress bar.

    Raises:
        InputError: a folder that cannot be written, or one that holds other files.
    """
    parameters = {"caption_scenes_version": _VERSION, "sizes": sizes, "seed": seed, "image_px": image_px}
    if is_generated(data_root, parameters):
        return
    pictures = plan_pictures(sizes, seed)
    with generated_folder(data_root, parameters) as folder:
        (folder / "images").mkdir()
        lines = _write_pictures(folder, pictures, seed, image_px, progress=progress)
        (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if progress:
        print(f"generated {len(lines):,} captioned pictures in {data_root}")


def plan_pictures(sizes: dict[str, int], seed: int) -> list[tuple[str, Garment | Scene]]:
    """(split, what is shown) of every picture: scenes and garments in turn, the same beginning for any sizes."""
    scenes: dict[Scene, None] = {}
    rng = random.Random(f"scenes {seed}")
    total = sum(sizes.values())
    while len(scenes) < total:
        scenes.setdefault(draw_scene(rng))
    garments = _garments_by_split({split: number // 2 for split, number in sizes.items()}, seed)
    pictures: list[tuple[str, Garment | Scene]] = []
    remaining = iter(scenes)
    for split, number in sizes.items():
        shown = [next(remaining) if index % 2 == 0 else garments[split][index // 2] for index in range(number)]
        pictures += [(split, content) for content in shown]
    return pictures


def _garments_by_split(sizes: dict[str, int], seed: int) -> dict[str, list[Garment]]:
    """Different garments for each split; a family that reaches over the end of a split is cut off there."""
    catalogue = iter(make_catalogue(sum(sizes.values()) + 16 * len(sizes), seed=seed))
    chosen: dict[str, list[Garment]] = {}
    closed: set[int] = set()  # families of the splits before
    for split, number in sizes.items():
        chosen[split], families = [], set()
        while len(chosen[split]) < number:
            item = next(catalogue)
            if item.family not in closed:
                chosen[split].append(item.garment)
                families.add(item.family)
        closed |= families
    return chosen


def _write_pictures(
    folder: Path, pictures: list[tuple[str, Garment | Scene]], seed: int, image_px: int, *, progress: bool
) -> list[str]:
    """Draw every picture; the lines of `captions.jsonl`."""
    calls = [(folder, index, split, content, seed, image_px) for index, (split, content) in enumerate(pictures)]
    quiet = None if progress else True  # None: a bar on terminals only
    return list(tqdm(in_processes(_write_picture, calls), "draw pictures", len(calls), unit="img", disable=quiet))


def _write_picture(folder: Path, index: int, split: str, content: Garment | Scene, seed: int, image_px: int) -> str:
    rng = random.Random(f"picture {seed} {index}")
    if isinstance(content, Scene):
        captions, label = scene_captions(content, rng), content.place
        picture = render_scene(content.place, content.light, list(content.objects), rng, image_px=image_px)
    else:
        captions, label = garment_captions(content, rng), noun(content)
        view = rng.choice(_VIEWS)
        picture = render_photo(content, view, rng, image_px=image_px, cloth_seed=f"{seed} {index}")
    name = f"images/{index:05d}.jpg"
    picture.save(folder / name, quality=90)
    return json.dumps({"image": name, "captions": captions, "split": split, "label": label})
