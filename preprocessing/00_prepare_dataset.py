"""Read a raw dataset and write who is who: the table of images and what the dataset says of each identity.

    python preprocessing/00_prepare_dataset.py
    python preprocessing/00_prepare_dataset.py --dataset inshop --data_root data/raw/inshop
    python preprocessing/00_prepare_dataset.py --dataset hands11k --data_root data/raw/11k --aspect palmar_left
    python preprocessing/00_prepare_dataset.py --dataset folder --data_root my_photos

The images stay where they are. The default dataset, `synthetic`, is generated if it is not there yet.

Writes to metadata/<dataset>/:
    dataset.json        name, image root, protocol, seed, how many photos were left out for which reason
    image_paths.json    {image: {"item_id", "split", "camera"}}
    descriptions.json   {item_id: {"category", "color", "lines", "attributes"}}
    left_out.csv        the files below the image root that are not used, and why
"""

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)
from clipfh.core import paths
from clipfh.core.cli import option, run_script
from clipfh.core.errors import InputError
from clipfh.core.files import write_json
from clipfh.core.names import require_name
from clipfh.datasets import DATASET_NAMES, expected_layout, read_dataset, reader_options
from clipfh.datasets.hands11k import LAST_TRAIN_ID
from clipfh.images.photo_files import account, count_reasons, meant_as_photos, write_left_out
from clipfh.images.transforms import MAX_MEGAPIXELS, RESIZE_MODES
from clipfh.tables.dataset import Dataset
from clipfh.tables.records import SPLITS, write_image_meta


@dataclass(frozen=True)
class Config:
    """The command line; flags without a default are left to the dataset's reader."""

    dataset: str = option("synthetic", "which dataset to read", choices=DATASET_NAMES)
    data_root: Path | None = option(None, "folder of the raw dataset (default: data/raw/<dataset>)")
    name: str | None = option(None, "what the dataset is called in metadata/ and in the results (default: <dataset>)")
    metadata_dir: Path | None = option(
        None, "where to write (default: metadata/<name>)", aliases=("--metadata", "--meta_dir")
    )
    seed: int = option(0, "chooses the identities of val, and of train and test where the dataset has no such split")
    val_fraction: float | None = option(
        None, "share of the train identities to validate on (default: a tenth); 0: none, as with --final_fit",
        at_least=0, at_most=0.5,
    )  # fmt: skip
    aspect: str | None = option(
        None, "hands11k: side of which hand (default: dorsal_right)", choices=list(LAST_TRAIN_ID)
    )
    image_version: str | None = option(
        None, "inshop: small or large images (default: those that are there)", choices=("img", "img_highres")
    )
    test_fraction: float | None = option(None, "folder: share of the identities to test on (default: 0.5)")
    resize_mode: str | None = option(
        None, "how photos fill a network's frame (default: as the dataset's protocol has it)", choices=RESIZE_MODES
    )
    max_megapixels: float = option(
        MAX_MEGAPIXELS, "larger photos count as unreadable: small files can hold pixels that fill any memory", above=0
    )
    num_identities: int | None = option(None, "synthetic: how many garments to generate (default: 900)")


READER_OPTIONS = ("aspect", "image_version", "test_fraction", "num_identities")


def main(config: Config) -> None:
    """Read, then write; nothing is written before all of it was read."""
    if config.seed < 0:
        raise InputError(f"--seed must be 0 or more, not {config.seed}")
    name = require_name(config.name or config.dataset, "--name")
    data_root = config.data_root or ROOT / "data" / "raw" / config.dataset
    metadata_dir = config.metadata_dir or paths.metadata_dir(name)
    if config.data_root is None and config.dataset != "synthetic" and not data_root.is_dir():
        raise InputError(
            f"--data_root is missing, and {data_root} does not exist. Say where the raw dataset is:\n"
            f"{expected_layout(config.dataset)}"
        )
    given = {name: getattr(config, name) for name in READER_OPTIONS if getattr(config, name) is not None}
    dataset = read_dataset(config.dataset, data_root, seed=config.seed, val_fraction=config.val_fraction, **given)

    write_json(
        metadata_dir / "dataset.json",
        {
            "name": name,
            "image_dir": portable_path(dataset.image_dir),
            "exclude_same_camera": dataset.exclude_same_camera,
            "random_protocol": dataset.random_protocol,
            "resize_mode": config.resize_mode or dataset.resize_mode,
            "max_megapixels": config.max_megapixels,
            "seed": config.seed,
            "data_root": portable_path(data_root),
            "options": {**reader_options(config.dataset), **given, "val_fraction": config.val_fraction},
            # without notes.txt and .DS_Store, which come and go: run_all.sh trains again where this file changes
            "left_out": count_reasons(meant_as_photos(dataset.left_out)),
            "missing": count_reasons(dataset.missing),
        },
    )
    write_image_meta(metadata_dir / "image_paths.json", dataset.table)
    write_json(metadata_dir / "descriptions.json", descriptions_as_json(dataset))
    write_left_out(metadata_dir / "left_out.csv", (*dataset.left_out, *dataset.missing))
    print_summary(dataset)
    print(f"wrote dataset.json, image_paths.json, descriptions.json and left_out.csv to {metadata_dir}")


def portable_path(path: Path) -> str:
    """The path relative to the repository where it lies inside (so that the repository can move), else absolute."""
    absolute = Path(os.path.abspath(path))  # not resolve(): data/raw/inshop may be a link to another disk
    return absolute.relative_to(ROOT).as_posix() if absolute.is_relative_to(ROOT) else str(absolute)


def descriptions_as_json(dataset: Dataset) -> dict[str, Any]:
    """Item id to description, for the identities of the table only, sorted."""
    item_ids = sorted(set(dataset.table["item_id"]) & dataset.descriptions.keys())
    return {item_id: asdict(dataset.descriptions[item_id]) for item_id in item_ids}


def print_summary(dataset: Dataset) -> None:
    """Identities and images by split, what was left out, and what a user may not expect."""
    print(f"{dataset.name}: images in {dataset.image_dir}")
    print(f"{'split':<10}{'identities':>12}{'images':>10}")
    for split in SPLITS:
        rows = dataset.table[dataset.table["split"] == split]
        print(f"{split:<10}{rows['item_id'].nunique():>12,}{len(rows):>10,}")
    print(f"{'all':<10}{dataset.table['item_id'].nunique():>12,}{len(dataset.table):>10,}")
    print(f"described: {len(descriptions_as_json(dataset)):,} identities")
    print(account(len(dataset.table) - len(dataset.missing), dataset.left_out))
    for note in dataset.notes:
        print(f"note: {note}")
    if dataset.missing:
        image, reason = dataset.missing[0]
        print(
            f"note: {len(dataset.missing):,} of {len(dataset.table):,} listed images cannot be read, the first: "
            f"{image} ({reason}). The stages stop at them, or go on without them with --skip_unreadable"
        )
    if not (dataset.table["split"] == "val").any():
        print("note: no identity is held out to validate on: trainings keep their last epoch, as with --final_fit")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
