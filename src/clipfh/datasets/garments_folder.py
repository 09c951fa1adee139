"""Generated garments as anybody's own photos lie: a folder a garment, and prompts.json. For trying things out.

python -m clipfh.datasets.garments_folder --out data/raw/wardrobe
bash run_all.sh --dataset folder --data_root data/raw/wardrobe
"""

import os
import random
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from clipfh.core.cli import option, run_script
from clipfh.core.errors import InputError
from clipfh.core.files import unfinished_folder, write_json
from clipfh.datasets.folder import PROMPTS
from clipfh.datasets.synthetic import Item, plan_items
from clipfh.drawn.garments.captions import garment_captions
from clipfh.drawn.garments.descriptions import noun
from clipfh.drawn.garments.rendering import render_photo
from clipfh.drawn.generated_folder import in_processes


@dataclass(frozen=True)
class Config:
    """The command line."""

    out: Path = option(Path("data/raw/wardrobe"), "the folder to make")
    num_identities: int = option(240, "garments, with 1 to 8 photos each", at_least=4, at_most=10_000)
    seed: int = option(0, "draws all", at_least=0)
    image_px: int = option(160, "side of the square photos", at_least=96, at_most=1024)


def main(config: Config) -> None:
    """Draw the garments; a folder that is there is left alone.

    Raises:
        InputError: the folder is there, or cannot be written.
    """
    out = config.out.absolute()
    if out.exists():
        raise InputError(f"--out {config.out} is there already, and nothing is written over. Choose another folder")
    items = {
        name_of(item): item
        for item in plan_items(config.num_identities, seed=config.seed, first_item=1, pool="dataset")
    }
    with unfinished_folder(out) as folder:
        drawn = in_processes(draw, [(folder / name, item, config.image_px) for name, item in items.items()])
        num_photos = sum(tqdm(drawn, total=len(items), desc="draw garments", unit="item", disable=None))
        # the second of the five: all that tells the garment from its neighbours, as somebody would type it
        write_json(
            folder / PROMPTS,
            {name: garment_captions(item.garment, random.Random(name))[1] for name, item in items.items()},
        )
        os.replace(folder, out)
    print(f"drew {num_photos:,} photos of {len(items):,} garments, and wrote their prompts, in {config.out}")


def name_of(item: Item) -> str:
    """What a folder is called, such as `0007_navy_dress`."""
    words = f"{item.item_id[-4:]} {item.garment.color} {noun(item.garment)}"
    return "_".join(words.lower().replace("-", " ").split())


def draw(folder: Path, item: Item, image_px: int) -> int:
    """Write an item's photos, and return how many."""
    folder.mkdir(parents=True)
    for number, (name, view, _) in enumerate(item.photos, start=1):
        rng = random.Random(f"photo {item.seed} {name}")
        session = f"{item.seed} {name.rsplit('/', 1)[1][:2]}"  # what was photographed together has one light
        photo = render_photo(item.garment, view, rng, image_px=image_px, cloth_seed=item.seed, session=session)
        photo.save(folder / f"IMG_{number:04d}.jpg", quality=rng.randint(70, 92))
    return len(item.photos)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
