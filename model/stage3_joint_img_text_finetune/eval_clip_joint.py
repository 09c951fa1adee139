"""Evaluate a checkpoint of stage 3 on the test identities: image-to-image and text-to-image.

    python model/stage3_joint_img_text_finetune/eval_clip_joint.py
    python model/stage3_joint_img_text_finetune/eval_clip_joint.py --ckpt PATH --image_dir DIR --meta_dir DIR \\
        --model_arch ViT-B/16

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

    variant: str | None = option(
        None, "which the checkpoint must be of (default: whatever it is)", choices=("v1", "v2", "v3", "v4")
    )


def main(config: Config) -> None:
    """Find the checkpoint, measure it."""
    from clipfh.evaluation.evaluate import evaluate_checkpoint  # takes seconds: --help does without

    command = f"bash run_all.sh --dataset {config.dataset or DEFAULT_DATASET} --variant {config.variant or 'v4'}"
    evaluate_checkpoint(config, stage=3, variant=config.variant, made_by=command)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
