"""Evaluate a checkpoint of stage 2 on the test identities: image-to-image and text-to-image.

    python model/stage2_img_encoder_finetune/eval_clip_img_encoder.py
    python model/stage2_img_encoder_finetune/eval_clip_img_encoder.py --dataset inshop --ckpt PATH

Without --ckpt it takes the newest BEST of this stage that was trained on the dataset, and says which.

Reads:   metadata/<dataset>/ (scripts 00 to 05), a checkpoint
Writes:  results/<run>/ (metrics, rankings, figures) and rows in results/summary.csv
"""

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)

# isort: split
from clipfh.core.cli import option, run_script
from clipfh.evaluation.settings import CheckpointConfig
from clipfh.tables.prepared import DEFAULT_DATASET


@dataclass(frozen=True)
class Config(CheckpointConfig):
    """The command line: what every evaluation of a checkpoint takes."""

    loss: str | None = option(None, "without --ckpt: only runs that were trained with this loss")


def main(config: Config) -> None:
    """Find the checkpoint, measure it."""
    from clipfh.evaluation.evaluate import evaluate_checkpoint  # takes seconds: --help does without

    script = "python model/stage2_img_encoder_finetune/train_clip_img_encoder_finetune.py"
    command = f"{script} --dataset {config.dataset or DEFAULT_DATASET}"
    evaluate_checkpoint(config, stage=2, variant=config.loss, made_by=command)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
