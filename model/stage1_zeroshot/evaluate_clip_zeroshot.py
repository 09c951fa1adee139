"""Stage 1: what a pretrained CLIP gives without any training: image-to-image and text-to-image retrieval.

    python model/stage1_zeroshot/evaluate_clip_zeroshot.py
    python model/stage1_zeroshot/evaluate_clip_zeroshot.py --dataset inshop --model ViT-B/16 --pretrained openai

`--model` takes any architecture of open_clip, in OpenAI's spelling (ViT-B/16) or open_clip's (ViT-B-16); `--pretrained`
any of its tags (OpenAI's weights get QuickGELU) or a local weights file.

Reads:   metadata/<dataset>/ (scripts 00 to 05)
Writes:  results/<run>/ (metrics, the first 50 images of every query, figures) and rows in results/summary.csv
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)

# isort: split
from clipfh.core.cli import option, run_script, section
from clipfh.core.config_file import parse_with_files
from clipfh.evaluation.settings import EvaluationConfig, EvaluationLabels
from clipfh.models.settings import Start
from clipfh.tables.prepared import prepare_weights


@dataclass(frozen=True, kw_only=True)
class Config(EvaluationConfig):
    """The command line: what every evaluation takes, and the model."""

    start: Start = section()
    seed: int = option(0, "of `--pretrained random`, of bootstrap intervals and k-means", at_least=0)


def main(config: Config) -> None:
    """Load the model, measure it."""
    from clipfh.core.run import pick_device, seed_everything  # these take seconds: --help does without
    from clipfh.evaluation.evaluate import evaluate_clip, load_dataset
    from clipfh.models.clip import load_clip, shown_size

    seed_everything(config.seed)
    device = pick_device(config.device)
    data = load_dataset(config)
    start = config.start
    prepare_weights(start.model, start.pretrained)
    clip = load_clip(
        start.model,
        start.pretrained,
        image_size=start.image_size,
        resize_mode=start.resize_mode,
        data_resize_mode=data.resize_mode,
        device=str(device),
    )
    print(f"{clip.name} ({clip.pretrained}), {shown_size(clip)}, on {data.name}")
    evaluate_clip(clip, data, EvaluationLabels(1, "", clip.pretrained), device, config)


if __name__ == "__main__":
    run_script(main, Config, __doc__, partial(parse_with_files, files=()))
