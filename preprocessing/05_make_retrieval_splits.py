"""Draw the random query-gallery splits of the test photos, beside the official one.

    python preprocessing/05_make_retrieval_splits.py
    python preprocessing/05_make_retrieval_splits.py --dataset inshop

How the photos of an identity are dealt ("half" or "one_gallery") is the dataset's protocol, see `clipfh.tables.splits`.
Identities without an official query stay in the gallery of every split.

Reads metadata/<dataset>/dataset.json and image_paths.json (script 00). Writes metadata/<dataset>/image_splits.json:
    {"official": {"query": [...], "gallery": [...]}, "random": [10 x the same]}
"""

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)
from clipfh.core import paths
from clipfh.core.cli import option, run_script
from clipfh.core.errors import InputError, shown
from clipfh.core.files import read_json, write_json
from clipfh.datasets import DATASET_NAMES
from clipfh.tables.records import read_image_meta
from clipfh.tables.splits import PROTOCOLS, count_possible_splits, official_split, random_query_gallery_splits


@dataclass(frozen=True)
class Config:
    """The command line."""

    dataset: str = option("synthetic", "which dataset", choices=DATASET_NAMES)
    metadata_dir: Path | None = option(
        None,
        "folder of dataset.json and image_paths.json (default: metadata/<dataset>)",
        aliases=("--metadata", "--meta_dir"),
    )
    num_splits: int = option(10, "how many random splits")
    seed: int | None = option(None, "of the draw (default: the seed that script 00 was given)")


def main(config: Config) -> None:
    """Read the table, draw, write."""
    if config.num_splits < 1:
        raise InputError(f"--num_splits must be at least 1, not {config.num_splits}")
    if config.seed is not None and config.seed < 0:
        raise InputError(f"--seed must be 0 or more, not {config.seed}")
    metadata_dir = config.metadata_dir or paths.metadata_dir(config.dataset)
    dataset = read_json(
        metadata_dir / "dataset.json",
        made_by=f"python preprocessing/00_prepare_dataset.py --dataset {config.dataset}",
    )
    protocol, seed = dataset.get("random_protocol"), dataset.get("seed")
    if protocol not in PROTOCOLS:
        valid = ", ".join(PROTOCOLS)
        raise InputError(f"{metadata_dir / 'dataset.json'}: random_protocol is {shown(protocol)}; valid: {valid}")
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise InputError(f"{metadata_dir / 'dataset.json'}: seed is {shown(seed)}, not a whole number from 0")
    table = read_image_meta(metadata_dir / "image_paths.json")
    seed = seed if config.seed is None else config.seed
    official = official_split(table)
    random_splits = random_query_gallery_splits(table, num_splits=config.num_splits, seed=seed, protocol=protocol)

    path = metadata_dir / "image_splits.json"
    write_json(path, {"official": official, "random": random_splits})
    print(f"{'split':<24}{'query':>8}{'gallery':>9}")
    print(f"{'official':<24}{len(official['query']):>8,}{len(official['gallery']):>9,}")
    name = f"{len(random_splits)} random ({protocol})"
    print(f"{name:<24}{len(random_splits[0]['query']):>8,}{len(random_splits[0]['gallery']):>9,}")
    possible = count_possible_splits(table, protocol)
    if possible < len(random_splits):
        print(f"note: only {possible} different splits of so few photos exist; the others repeat them")
    print(f"wrote {path}")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
