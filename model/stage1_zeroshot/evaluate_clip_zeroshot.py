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
from clipfh.core.cli import image_size, option, run_script
from clipfh.core.config_file import parse_with_files
from clipfh.core.run import pick_device, seed_everything
from clipfh.evaluation.evaluate import EvaluationConfig, EvaluationLabels, evaluate_clip, load_dataset
from clipfh.images.transforms import RESIZE_MODES
from clipfh.models.clip import load_clip, shown_size


@dataclass(frozen=True)
class Config(EvaluationConfig):
    """The command line: what every evaluation takes, and the model."""

    model: str = option("tiny-rn", "CLIP architecture, such as ViT-B/16, ViT-L/14, RN50", aliases=("--model_arch",))
    pretrained: str | None = option(
        None,
        "open_clip tag, weights file or `random` (default: openai; for the tiny models stage 0's newest checkpoint)",
    )
    image_size: int | tuple[int, int] | None = option(
        None,
        "input size in pixels, 224 or height x width as 256x128 (default: the architecture's own)",
        parse=image_size,
    )
    resize_mode: str | None = option(
        None,
        "how a photo fills it: shortest side and crop, squash, or pad (default: as the dataset's protocol, else the "
        "weights say)",
        choices=RESIZE_MODES,
    )
    seed: int = option(0, "of `--pretrained random` and of the bootstrap intervals", at_least=0)


def main(config: Config) -> None:
    """Load the model, measure it."""
    seed_everything(config.seed)
    device = pick_device(config.device)
    data = load_dataset(config, model=config.model, pretrained=config.pretrained)
    clip = load_clip(
        config.model,
        config.pretrained,
        image_size=config.image_size,
        resize_mode=config.resize_mode,
        data_resize_mode=data.resize_mode,
        device=str(device),
    )
    print(f"{clip.name} ({clip.pretrained}), {shown_size(clip)}, on {data.name}")
    evaluate_clip(clip, data, EvaluationLabels(1, "", clip.pretrained), device, config)


if __name__ == "__main__":
    run_script(main, Config, __doc__, partial(parse_with_files, files=()))
