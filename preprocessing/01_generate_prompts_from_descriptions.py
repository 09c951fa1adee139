"""Write a prompt for every identity, from its raw description.

    python preprocessing/01_generate_prompts_from_descriptions.py
    python preprocessing/01_generate_prompts_from_descriptions.py --dataset inshop

The prompt is "a photo of a red women's dress." and the description after it, marketing sentence, sizes and care
included: many are longer than the 77 tokens that CLIP reads (script 02 counts them, script 04 writes others). Without a
description it is the first part alone, from category and colour, or from the item id where there is neither.

Reads metadata/<dataset>/image_paths.json and descriptions.json (script 00). Writes, beside them,
    image_prompts_per_identity.json   {item_id: prompt}
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
from clipfh.datasets import DATASET_NAMES
from clipfh.prompts.description import Description, read_descriptions
from clipfh.prompts.files import write_prompts
from clipfh.prompts.plain import prompt_from_description
from clipfh.tables.records import read_image_meta


@dataclass(frozen=True)
class Config:
    """The command line."""

    dataset: str = option("synthetic", "which dataset", choices=DATASET_NAMES)
    metadata_dir: Path | None = option(
        None, "folder of the metadata (default: metadata/<dataset>)", aliases=("--metadata", "--meta_dir")
    )


def main(config: Config) -> None:
    """Read, write, and say how many identities had no description."""
    metadata_dir = config.metadata_dir or paths.metadata_dir(config.dataset)
    table = read_image_meta(metadata_dir / "image_paths.json")
    descriptions = read_descriptions(metadata_dir / "descriptions.json")

    prompts, num_plain = {}, 0
    for item_id in sorted(set(table["item_id"])):
        description = descriptions.get(item_id, Description())
        prompts[item_id] = prompt_from_description(description, item_id)
        num_plain += not any(text.strip() for text in (*description.lines, *description.attributes))

    path = metadata_dir / "image_prompts_per_identity.json"
    write_prompts(path, prompts)
    print(f"{len(prompts):,} prompts; {num_plain:,} of them plain, as those identities have no description")
    print(f"wrote {path}")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
