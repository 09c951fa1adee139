"""Read raw captions, clean them, draw the subset, check every image.

    python model/stage4_frozen_text_alignment/prepare_captions.py
    python model/stage4_frozen_text_alignment/prepare_captions.py --dataset coco --data_root DIR

The training does this by itself where it has not been done; on its own it says what the data are like before any run.

Reads:   the raw dataset (--data_root; the layouts are in clipfh.captions.readers)
Writes:  metadata/<name>/captions.json, dataset.json, and left_out.csv: images that are missing, unreadable or without a
         caption, and captions that are empty or twice below one image
"""

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)

# isort: split
from dataset import DataConfig, prepare, smaller

from clipfh.captions.readers import LAYOUTS
from clipfh.core.cli import option, run_script
from clipfh.core.errors import InputError
from clipfh.core.paths import display, metadata_dir


@dataclass(frozen=True)
class Config(DataConfig):
    """The command line."""

    force: bool = option(False, "prepare again, although files and flags are the same")
    smoke: bool = option(False, "few generated pictures: does the step work?")


def main(config: Config) -> None:
    """Prepare, and show the beginning of it."""
    if config.dataset != "synthetic" and config.data_root is None:
        layout = LAYOUTS[config.dataset]
        raise InputError(f"--dataset {config.dataset} needs --data_root DIR, a folder of this layout:\n{layout}")
    config = smaller(config) if config.smoke else config
    data = prepare(config, force=config.force)
    folder = metadata_dir(data.name)
    print(f"prepared: {display(folder)}; the first of each split:")
    for split in ("train", "val", "test"):
        image = data.rows(split)[0]
        print(f"  {split:<6}{image.image}: {image.captions[0]}")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
