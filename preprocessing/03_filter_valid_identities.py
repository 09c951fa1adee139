"""Keep the train identities that metric learning can use: those with at least two images in the train split.

    python preprocessing/03_filter_valid_identities.py
    python preprocessing/03_filter_valid_identities.py --dataset inshop --min_images 4

Val, query and gallery rows are all kept: leaving some out would change the protocol.

Reads metadata/<dataset>/image_paths.json (script 00) and image_prompts_per_identity.json (script 01). Writes, beside
them,
    image_paths_clean.json     the rows that are kept
    image_prompts_clean.json   the prompts of their identities
"""

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)

# isort: split
from clipfh.core import paths
from clipfh.core.cli import option, run_script
from clipfh.core.errors import InputError
from clipfh.datasets import DATASET_NAMES
from clipfh.prompts.files import prompts_for, read_prompts, write_prompts
from clipfh.tables.records import read_image_meta, write_image_meta

MAX_NAMED = 20


@dataclass(frozen=True)
class Config:
    """The command line."""

    dataset: str = option("synthetic", "which dataset", choices=DATASET_NAMES)
    metadata_dir: Path | None = option(
        None, "folder of the metadata (default: metadata/<dataset>)", aliases=("--metadata", "--meta_dir")
    )
    prompt_json: Path | None = option(None, "the prompts (default: image_prompts_per_identity.json of that folder)")
    min_images: int = option(2, "a train identity with fewer train images is dropped")


def main(config: Config) -> None:
    """Check everything, then write both files."""
    if config.min_images < 1:
        raise InputError(f"--min_images must be at least 1, not {config.min_images}")
    metadata_dir = config.metadata_dir or paths.metadata_dir(config.dataset)
    prompt_path = config.prompt_json or metadata_dir / "image_prompts_per_identity.json"
    table = read_image_meta(metadata_dir / "image_paths.json")
    prompts = read_prompts(prompt_path, allow_empty=True)

    num_images = table.loc[table["split"] == "train", "item_id"].value_counts()
    dropped = sorted(num_images[num_images < config.min_images].index)
    if len(dropped) == len(num_images) > 0:
        raise InputError(
            f"{metadata_dir / 'image_paths.json'}: none of the {len(num_images)} train identities has "
            f"{config.min_images} train images (the most is {num_images.max()}). Lower --min_images."
        )
    kept = table[~table["item_id"].isin(dropped)]
    clean_prompts = prompts_for(sorted(set(kept["item_id"])), prompts, prompt_path)

    write_image_meta(metadata_dir / "image_paths_clean.json", kept)
    write_prompts(metadata_dir / "image_prompts_clean.json", clean_prompts)
    print(f"train: kept {len(num_images) - len(dropped):,} of {len(num_images):,} identities", end="")
    print(f" and {(kept['split'] == 'train').sum():,} of {num_images.sum():,} images")
    if dropped:
        names = ", ".join(dropped[:MAX_NAMED]) + (", ..." if len(dropped) > MAX_NAMED else "")
        print(f"dropped {len(dropped):,} with fewer than {config.min_images} train images: {names}")
    print(f"val, query and gallery: kept all {(table['split'] != 'train').sum():,} images")
    print(f"wrote image_paths_clean.json and image_prompts_clean.json to {metadata_dir}")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
