"""Evaluate a checkpoint of stage 4 on the held-out images, beside its two baselines.

    python model/stage4_frozen_text_alignment/eval_frozen_text_alignment.py
    python model/stage4_frozen_text_alignment/eval_frozen_text_alignment.py --dataset coco --ckpt PATH

Recall@1/5/10 and median rank from images to captions (any caption of the image counts) and from captions to images,
and zero-shot classification where the images have labels. Without --ckpt it takes the newest BEST of this stage on the
dataset and says which. The baselines are the network before any training, and the linear head on its frozen backbone.

Reads:   metadata/<name>/, checkpoints/<run>_BEST.pth and <run>_LINEAR.pth
Writes:  results/<name>_stage4_<time>/: metrics.json, results.md, images_for_captions.png, captions_for_images.png
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)

# isort: split
import numpy as np
import torch
from dataset import CaptionedPixels, encode_pixels
from own_encoder import own_start
from torch import nn

from clipfh.captions.preparation import DATASETS
from clipfh.captions.retrieval import CaptionRecall, caption_recall
from clipfh.captions.table import CaptionDataset, captions_digest, read_caption_dataset
from clipfh.captions.zeroshot import class_features, top_k_accuracy
from clipfh.core.cli import jsonable, option, run_script
from clipfh.core.errors import InputError
from clipfh.core.files import write_json, write_text
from clipfh.core.paths import RESULTS_DIR, display, metadata_dir
from clipfh.core.run import environment, new_run_folder, pick_device
from clipfh.models.checkpoint import newest_checkpoint, read_stage_checkpoint
from clipfh.models.frozen_text_clip import CLIP, OWN, create_clip_model
from clipfh.reports.caption_figures import RetrievedCaptions, retrieved_captions_figure
from clipfh.reports.figures import RankedImage, RankedQuery, ranked_results_figure

STAGE = 4
TRAIN = "python model/stage4_frozen_text_alignment/train_frozen_text_alignment.py"
SHOWN = 5  # rows of a figure


@dataclass(frozen=True)
class Config:
    """The command line."""

    dataset: str = option("synthetic", "which dataset's newest checkpoint, without --ckpt", choices=DATASETS)
    name: str | None = option(None, "folder under metadata/ of the captions (default: those it was trained on)")
    split: str = option("test", "which images", choices=("test", "val"))
    ckpt: Path | None = option(None, "the checkpoint (default: the newest BEST of this stage on this dataset)")
    image_size: int | None = option(None, "pixels that the checkpoint must be of (default: whatever it is)", at_least=1)
    results_dir: Path = option(RESULTS_DIR, "where the folder with metrics and figures goes")
    batch_size: int | None = option(None, "images at a time (default: 128, on a CPU 32)", at_least=1)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    seed: int = option(0, "of the untrained head", at_least=0)


def load_model(path: Path, content: dict[str, Any], device: torch.device) -> CLIP:
    """The model of a checkpoint of this stage, with its weights."""
    model = create_clip_model(
        device,
        image_encoder=content["image_encoder"],
        image_weights="random",
        text_model=content["text_model"],
        text_weights="random",
        quick_gelu=content["quick_gelu"],
        image_size=content["image_size"],
        head_layers=content["head_layers"],
        head_norm=content["head_norm"],
        head_dropout=content["head_dropout"],
    )
    if content["image_encoder"] == OWN and content["variant"] == "linear":
        out, features = content["state_dict"]["image_encoder.head.0.weight"].shape
        model.image_encoder.head = nn.Sequential(nn.Linear(features, out)).to(device)
    image = model.image_encoder
    image.mean, image.std, image.resize_mode = content["mean"], content["std"], content.get("resize_mode", "shortest")
    try:
        model.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise InputError(f"{path} does not hold the model that it names ({str(error).splitlines()[-1]})") from error
    if model.text_encoder.digest() != content["text_digest"]:
        raise InputError(f"{path}: its text encoder is not the one that the run was trained beside")
    return model.eval()


def find_checkpoint(config: Config) -> tuple[Path, dict[str, Any]]:
    """`config.ckpt`, or the newest BEST of the dataset; and its content."""
    path = config.ckpt
    if path is None:
        if config.dataset == "identities" and config.name is None:
            raise InputError("--dataset identities needs --name, such as folder_identities, or --ckpt")
        name = config.name or f"{config.dataset}_captions"
        path = newest_checkpoint(
            STAGE, "*_BEST.pth", made_by=f"{TRAIN} --dataset {config.dataset}", stage=STAGE, dataset=name
        )
    content = read_stage_checkpoint(path, STAGE)
    if config.image_size and content.get("image_size") != config.image_size:
        raise InputError(f"{path} is of images of {content.get('image_size')} px, not of {config.image_size}")
    return path, content


def untrained_head(linear: CLIP, seed: int) -> nn.Module:
    """The image encoder of the linear baseline with a head of random weights: nothing was trained here."""
    torch.manual_seed(seed)
    for layer in linear.image_encoder.head:
        layer.reset_parameters()
    return linear.image_encoder


def measure(
    features: torch.Tensor, data: CaptionedPixels, classifiers: torch.Tensor | None, labels: list[int]
) -> dict[str, Any]:
    """All figures of one model's image features (N, D)."""
    texts = torch.from_numpy(np.array(data.text_features))
    to_text, to_image = caption_recall(features, texts, data.captions_of_image)
    figures: dict[str, Any] = {"image_to_text": to_text, "text_to_image": to_image}
    if classifiers is not None:
        figures["zero_shot"] = {f"top{k}": value for k, value in top_k_accuracy(features, classifiers, labels).items()}
    return figures


def results_table(rows: dict[str, dict[str, Any]]) -> str:
    """Percentages, one line a model, as Markdown."""
    header = ["", *("image to text R@1", "R@5", "R@10", "median rank")]
    header += ["text to image R@1", "R@5", "R@10", "median rank", "zero-shot"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for name, figures in rows.items():
        cells = [name]
        for direction in ("image_to_text", "text_to_image"):
            one: CaptionRecall = figures[direction]
            cells += [*(f"{100 * value:.1f}" for value in one.recall.values()), f"{one.median_rank:.0f}"]
        lines.append([*cells, f"{100 * figures['zero_shot']['top1']:.1f}" if "zero_shot" in figures else "-"])
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def draw_figures(
    folder: Path, data: CaptionDataset, pixels: CaptionedPixels, features: torch.Tensor, figures: dict[str, Any]
) -> None:
    """Queries evenly spaced from the best to the worst, both ways: neither a showcase nor a pillory."""
    texts = torch.from_numpy(np.array(pixels.text_features))
    ranks = figures["image_to_text"].first_match_rank
    rows = []
    for image in _spread(ranks):
        similarities, best = (features[image] @ texts.T).topk(min(5, len(texts)))
        own = set(pixels.captions_of_image[image].tolist())
        found = [(pixels.texts[t], s, t in own) for t, s in zip(best.tolist(), similarities.tolist(), strict=True)]
        rows.append(RetrievedCaptions(pixels.images[image].image, int(ranks[image]), found))
    title = f"{data.name}: captions for images, best to worst"
    retrieved_captions_figure(folder / "captions_for_images.png", data.image_dir, rows, title=title)

    ranks = figures["text_to_image"].first_match_rank
    queries = []
    for text in _spread(ranks):
        similarities, best = (texts[text] @ features.T).topk(min(8, len(features)))
        gallery = []
        for place, (image, similarity) in enumerate(zip(best.tolist(), similarities.tolist(), strict=True), start=1):
            is_match = text in pixels.captions_of_image[image]
            label = pixels.images[image].label or f"{place}"
            gallery.append(RankedImage(pixels.images[image].image, label, similarity, is_match))
        label = f"caption {text}"
        queries.append(RankedQuery(label, gallery, prompt=pixels.texts[text], first_match_rank=int(ranks[text])))
    title = f"{data.name}: images for captions, best to worst"
    ranked_results_figure(folder / "images_for_captions.png", data.image_dir, queries, title=title, kind="caption")


def _spread(ranks: np.ndarray) -> list[int]:
    """`SHOWN` queries at equal steps of the ranking from the best to the worst."""
    order = np.argsort(ranks, kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, SHOWN).round().astype(int))].tolist()


def main(config: Config) -> None:
    """Find the checkpoint, measure it and the baselines, write and print."""
    started = time.perf_counter()
    device = pick_device(config.device)
    path, content = find_checkpoint(config)
    model = load_model(path, content, device)
    print(
        f"checkpoint: {display(path)} ({content['image_encoder']} from {content['image_weights']} weights, text tower "
        f"of {content['text_model']}, epoch {content['epoch']}, val recall {100 * content['val_recall']:.1f})"
    )
    data = read_caption_dataset(metadata_dir(config.name or content["dataset"]), made_by=TRAIN)
    if captions_digest(data) != content["data_digest"]:
        raise InputError(
            f"{path} was trained on other splits of {data.name} than those of now: its train images may be among the "
            f"test images. Prepare the captions with the flags of the run (its config.json), or train again"
        )
    pixels = CaptionedPixels(data, config.split, content["image_size"], model, content["text_digest"])
    names = sorted({image.label for image in pixels.images})
    labelled = len(names) > 1 and all(names)
    classifiers = class_features(names, model.text_encoder.encode) if labelled else None
    labels = [names.index(image.label) for image in pixels.images]

    # ---- the model and its baselines, all on the same images and captions
    def measured(encoder: nn.Module) -> tuple[torch.Tensor, dict[str, Any]]:
        features = encode_pixels(encoder, pixels, device, batch_size=config.batch_size)
        return features, measure(features, pixels, classifiers, labels)

    features, trained = measured(model.image_encoder)
    rows = {}
    linear_path = path.with_name(path.name.replace("_BEST", "_LINEAR").replace("_LAST", "_LINEAR"))
    if linear_path.is_file() and linear_path != path:
        linear = load_model(linear_path, read_stage_checkpoint(linear_path, STAGE), device)
        linear_figures = measured(linear.image_encoder)[1]
        rows["random features"] = measured(untrained_head(linear, config.seed))[1]
        rows["linear head, frozen backbone"] = linear_figures
    elif linear_path != path:
        print(f"note: {linear_path.name} is not beside the checkpoint: no baselines (the run had --no-baseline)")
    if (start := own_start(content, device)) is not None:
        rows["before training"] = measured(start.image_encoder)[1]
    rows["this checkpoint"] = trained

    # ---- files
    run_dir = new_run_folder(config.results_dir.resolve(), f"{data.name}_stage{STAGE}", "--results_dir")
    plain = {
        name: {key: one.as_dict() if isinstance(one, CaptionRecall) else one for key, one in figures.items()}
        for name, figures in rows.items()
    }
    result: dict[str, Any] = {"stage": STAGE, "dataset": data.name, "split": config.split, "checkpoint": display(path)}
    result |= {key: content[key] for key in ("image_encoder", "image_weights", "text_model", "image_size", "epoch")}
    result |= {"num_images": len(pixels.images), "num_captions": len(pixels.texts), "figures": plain}
    result |= {"num_classes": len(names) if labelled else 0, "seconds": round(time.perf_counter() - started, 2)}
    write_json(run_dir / "metrics.json", {**result, "configuration": jsonable(config), **environment()})
    table = results_table(rows)
    about = f"{data.name}, {len(pixels.images):,} {config.split} images, {len(pixels.texts):,} captions, percent"
    chance = f"; zero-shot over {len(names)} classes, chance {100 / len(names):.1f}" if labelled else ""
    write_text(run_dir / "results.md", f"{about}{chance}\n\n{table}\n")
    draw_figures(run_dir, data, pixels, features, trained)
    print(f"\n{about}{chance}\n\n{table}\n\ndetails: {display(run_dir)}")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
