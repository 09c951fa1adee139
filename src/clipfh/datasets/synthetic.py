"""Generated garments: an In-Shop look-alike that needs no download.

Source: rendered here with Pillow, the same for the same parameters. Raw layout: In-Shop's (see `LAYOUT`), read by
`clipfh.datasets.inshop`; `generated.json` holds the parameters. In a file name the first number counts the photo
sessions of an item, the second one stands for the view.

Protocol: In-Shop's. About half of the identities are for training; families of garments that differ in one attribute
only are never divided between train and test. Of a test identity, half of the photos (rounded down) are queries.
"""

import dataclasses
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from tqdm import tqdm

from clipfh.core.errors import InputError
from clipfh.datasets import inshop
from clipfh.drawn.garments.catalogue import Garment, Pool, make_catalogue
from clipfh.drawn.garments.descriptions import color_name, describe
from clipfh.drawn.garments.rendering import VIEWS, render_photo
from clipfh.drawn.generated_folder import generated_folder, in_processes, is_generated
from clipfh.tables.dataset import Dataset

LAYOUT = f"{inshop.LAYOUT}\n    DATA_ROOT/generated.json"
NUM_IDENTITIES = 900
PRETRAINING_FIRST_ITEM = 50_000_001
MIN_IMAGE_PX = 96
_RENDERING_VERSION = 1  # to be raised when the same parameters give other files, so that old folders are made anew
_LAST_ITEM = 99_999_999
_VIEW_NUMBERS = {"front": 1, "side": 2, "back": 3, "full": 4, "flat": 6, "additional": 7}
_PHOTOS_WEIGHTS = (4, 8, 16, 20, 20, 16, 10, 6)  # of 1 to 8 photos; 4.6 on average
_UNDESCRIBED = 0.05


@dataclass(frozen=True)
class Item:
    """An identity to be written: its garment, and its photos as (image name, view, evaluation status)."""

    item_id: str
    garment: Garment
    photos: tuple[tuple[str, str, str], ...]
    seed: str


def read(data_root: Path, *, seed: int = 0, num_identities: int = NUM_IDENTITIES) -> Dataset:
    """Generate the dataset below `data_root` unless it is there, then read it; `seed` draws all.

    Raises:
        InputError: an impossible parameter, or `data_root` holds something that was not generated here.
    """
    generate(data_root, num_identities=num_identities, seed=seed, progress=True)
    return dataclasses.replace(inshop.read(data_root, seed=seed), name="synthetic", resize_mode=None)


def generate(
    data_root: Path,
    *,
    num_identities: int = NUM_IDENTITIES,
    seed: int = 0,
    image_px: int = 128,
    progress: bool = False,
    first_item: int | None = None,
    pool: Pool = "dataset",
    num_processes: int | None = None,
) -> None:
    """Write garments in In-Shop's raw layout; whole or not at all.

    A finished folder is kept if it was made with the same parameters, and replaced if it was made with others.

    Args:
        data_root: the folder to make.
        num_identities: how many garments, with 1 to 8 photos each.
        seed: draws everything.
        image_px: side of the square photos, at least 96.
        progress: show a progress bar.
        first_item: number in the first item id; by default 1, and 50,000,001 for pretraining.
        pool: which half of all attribute combinations to draw from. Garments of "pretraining" are never among those
            of "dataset", whatever the seeds.
        num_processes: by default 2, or 1 on a single core or for few garments. The files do not depend on it.

    Raises:
        InputError: an impossible parameter, a folder that cannot be written, or one that holds other files.
    """
    if first_item is None:
        first_item = PRETRAINING_FIRST_ITEM if pool == "pretraining" else 1
    _check_parameters(num_identities, seed, image_px, first_item, pool, num_processes)
    parameters = {
        "rendering_version": _RENDERING_VERSION, "num_identities": num_identities, "seed": seed, "image_px": image_px,
        "first_item": first_item, "pool": pool,
    }  # fmt: skip
    if is_generated(data_root, parameters):
        return
    items = plan_items(num_identities, seed=seed, first_item=first_item, pool=pool)
    with generated_folder(data_root, parameters) as folder:
        rendered = in_processes(_render_item, [(folder, item, image_px) for item in items], num_processes)
        quiet = None if progress else True  # None: a bar on terminals only
        for _ in tqdm(rendered, total=len(items), desc="generate garments", unit="item", disable=quiet):
            pass
        _write_lists(folder, items)
    if progress:
        num_images = sum(len(item.photos) for item in items)
        print(f"generated {num_images:,} photos of {len(items):,} garments in {data_root}")


def plan_items(num_identities: int, *, seed: int, first_item: int, pool: Pool) -> list[Item]:
    """Which photos there will be of which garments, and for what they are used."""
    items = []
    role_per_family: dict[int, str] = {}
    num_train = 0
    for index, entry in enumerate(make_catalogue(num_identities, seed=seed, pool=pool)):
        rng = random.Random(f"photos {pool} {seed} {index}")
        role = role_per_family.setdefault(entry.family, "train" if 2 * num_train <= index else "test")
        num_train += role == "train"
        item_id = f"id_{first_item + index:08d}"
        folder = f"img/{entry.garment.gender}/{entry.garment.category}/{item_id}"
        names = [(f"{folder}/{name}", view) for name, view in _draw_views(rng)]
        statuses = ["train"] * len(names)
        if role == "test":
            statuses = ["query"] * (len(names) // 2) + ["gallery"] * (len(names) - len(names) // 2)
            rng.shuffle(statuses)
        photos = tuple((name, view, status) for (name, view), status in zip(names, statuses, strict=True))
        items.append(Item(item_id, entry.garment, photos, f"{pool} {seed} {index}"))
    return items


def _draw_views(rng: random.Random) -> list[tuple[str, str]]:
    """(File name, view) of one to eight photos, taken in one or two sessions."""
    count = rng.choices(range(1, 9), weights=_PHOTOS_WEIGHTS)[0]
    first = rng.randint((count + 1) // 2, min(count, len(VIEWS)))
    names = []
    for session, share in ((1, first), (2, count - first)):
        for view in sorted(rng.sample(VIEWS, share), key=_VIEW_NUMBERS.__getitem__):
            names.append((f"{session:02d}_{_VIEW_NUMBERS[view]}_{view}.jpg", view))
    return names


def _render_item(folder: Path, item: Item, image_px: int) -> None:
    for name, view, _ in item.photos:
        file_name = name.rsplit("/", 1)[1]
        rng = random.Random(f"photo {item.seed} {file_name}")
        session = f"{item.seed} {file_name[:2]}"
        photo = render_photo(item.garment, view, rng, image_px=image_px, cloth_seed=item.seed, session=session)
        path = folder / "Img" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.save(path, quality=rng.randint(35, 92))


def _write_lists(folder: Path, items: list[Item]) -> None:
    """The partition and the descriptions; some items have none."""
    rows = [f"{name} {item.item_id} {status}" for item in items for name, _, status in item.photos]
    partition = folder / "Eval" / "list_eval_partition.txt"
    partition.parent.mkdir()
    partition.write_text("\n".join([str(len(rows)), " ".join(inshop.HEADER), *rows]) + "\n", encoding="utf-8")
    entries = []
    for item in items:
        rng = random.Random(f"description {item.seed}")
        if rng.random() >= _UNDESCRIBED:
            lines = describe(item.garment, rng)
            entries.append({"item": item.item_id, "color": color_name(item.garment), "description": lines})
    (folder / "Anno").mkdir()
    _write_json(folder / "Anno" / "list_description_inshop.json", entries)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _check_parameters(
    num_identities: int, seed: int, image_px: int, first_item: int, pool: str, num_processes: int | None
) -> None:
    if pool not in get_args(Pool):
        raise InputError(f"unknown pool {pool!r}; the pools are {', '.join(get_args(Pool))}")
    limits = (
        ("num_identities", num_identities, 4, 100_000), ("seed", seed, 0, 2**63),
        ("image_px", image_px, MIN_IMAGE_PX, 1024),
        ("first_item", first_item, 1, _LAST_ITEM + 1 - num_identities),
        ("num_processes", 1 if num_processes is None else num_processes, 1, 64),
    )  # fmt: skip
    for name, value, least, most in limits:
        if not least <= value <= most:
            raise InputError(f"{name} must be between {least:,} and {most:,}, not {value:,}")
