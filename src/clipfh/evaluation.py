"""The one evaluation that every stage goes through, so that its figures can stand in one table.

Features of the test images are computed once, in float32; then the official split, the random splits and
text-to-image retrieval are measured on them. No checkpoint is chosen on the test identities.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipfh.checkpoint import newest_checkpoint, read_checkpoint
from clipfh.cli import option
from clipfh.clip_model import LoadedClip, canonical_model_name, load_clip
from clipfh.errors import InputError
from clipfh.files import replace_atomically, writable_folder, write_json
from clipfh.images import drop_unreadable, load_pixels
from clipfh.metrics import RetrievalFigures
from clipfh.paths import RESULTS_DIR, display, processed_dir
from clipfh.prepared import (
    DEFAULT_DATASET,
    TOKEN_SAFE_PROMPTS,
    PreparedDataset,
    load_prepared,
    load_prompts,
    prepare_default,
)
from clipfh.rankings import draw_rankings, ranking_table, text_to_image
from clipfh.retrieval import extract_features, image_to_image
from clipfh.run import environment, jsonable, new_run_name, pick_device
from clipfh.run_report import write_run_report
from clipfh.splits import read_splits
from clipfh.statistics import bootstrap_interval
from clipfh.summary import append_rows, utc_now


@dataclass(frozen=True)
class EvaluationConfig:
    """The flags that every evaluation takes."""

    dataset: str | None = option(
        None, "name of the prepared dataset, a folder under metadata/ (default: as --metadata_dir says, else synthetic)"
    )
    metadata_dir: Path | None = option(
        None,
        "metadata folder, or the table's JSON file in it (default: metadata/<dataset>)",
        aliases=("--metadata", "--meta_dir"),
    )
    image_dir: Path | None = option(None, "image root (default: the one that dataset.json records)")
    image_meta: Path | None = option(None, "table of images (default: image_paths.json of the metadata folder)")
    prompt_json: Path | None = option(
        None, f"prompts that are the text queries (default: {TOKEN_SAFE_PROMPTS} of the metadata folder)"
    )
    exclude_same_camera: bool | None = option(
        None, "leave the query's own camera out of its gallery (default: as the dataset's protocol says)"
    )
    results_dir: Path = option(RESULTS_DIR, "where metrics, rankings, figures and summary.csv go")
    batch_size: int = option(128, "images at a time", at_least=1)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    seed: int = option(0, "of the bootstrap intervals", at_least=0)
    skip_unreadable: bool = option(False, "go on without images that cannot be read")


@dataclass(frozen=True)
class CheckpointConfig(EvaluationConfig):
    """The flags of an evaluation of a checkpoint."""

    ckpt: Path | None = option(None, "the checkpoint (default: the newest BEST of this stage on this dataset)")
    model: str | None = option(
        None, "architecture that the checkpoint must be of (default: whatever it is)", aliases=("--model_arch",)
    )


def evaluate_checkpoint(config: CheckpointConfig, *, stage: int, variant: str | None, made_by: str) -> dict[str, Any]:
    """Evaluate `config.ckpt`, or the newest BEST of `stage` (and `variant`) on the dataset, and say which.

    Raises:
        InputError: there is none (the command `made_by` makes one), it is of another stage or architecture, or what
            `evaluate_clip` raises.
    """
    # the checkpoint first: without one, there is no reason to prepare the embedded default
    path = config.ckpt
    if path is None and config.dataset in (None, DEFAULT_DATASET) and config.metadata_dir is None:
        path = _newest_best(stage, DEFAULT_DATASET, variant, made_by)
    data = load_dataset(config)
    if path is None:
        path = _newest_best(stage, data.name, variant, made_by)
    content = read_checkpoint(path)
    if content.get("stage") != stage:
        raise InputError(f"{path} is of stage {content.get('stage')}, not of stage {stage}")
    model = canonical_model_name(config.model) if config.model else content["model"]
    device = pick_device(config.device)
    print(
        f"checkpoint: {display(path)} ({content['model']}, {content['variant']}, trained on {content['dataset']}, "
        f"epoch {content['epoch']}, val mAP {100 * content['val_mAP']:.1f})"
    )
    clip = load_clip(model, str(path), device=str(device))
    return evaluate_clip(clip, data, EvaluationLabels(stage, content["variant"], clip.pretrained), device, config)


def _newest_best(stage: int, dataset: str, variant: str | None, made_by: str) -> Path:
    wanted = {"stage": stage, "dataset": dataset} | ({"variant": variant} if variant else {})
    return newest_checkpoint(stage, "*_BEST.pth", made_by=made_by, **wanted)


def load_dataset(config: EvaluationConfig, *, model: str = "", pretrained: str | None = None) -> PreparedDataset:
    """The prepared dataset that the flags describe; the embedded default (and its `model`) is made if it is missing."""
    if config.dataset in (None, DEFAULT_DATASET) and config.metadata_dir is None:
        prepare_default(model, pretrained)
    return load_prepared(
        config.dataset,
        folder=config.metadata_dir,
        image_dir=config.image_dir,
        image_meta=config.image_meta,
        exclude_same_camera=config.exclude_same_camera,
    )


@dataclass(frozen=True)
class EvaluationLabels:
    """What the rows in `results/summary.csv` say of an evaluation, besides its figures."""

    stage: int
    variant: str
    checkpoint: str


def evaluate_clip(
    clip: LoadedClip,
    data: PreparedDataset,
    labels: EvaluationLabels,
    device: torch.device,
    config: EvaluationConfig,
) -> dict[str, Any]:
    """Measure `clip` on the test identities of `data`; write, print and return the figures.

    Writes `results/<run>/`: `metrics.json`, `rankings.csv` (the first 50 images of every query of the official split),
    figures of the best and worst queries and of text queries; appends rows to `results/summary.csv`.

    Raises:
        InputError: unreadable images (unless skipped), missing splits or prompts, an output folder that cannot be
            written.
    """
    started = time.perf_counter()
    stage_name = f"stage{labels.stage}" + (f"_{labels.variant}" if labels.variant else "")
    run_dir = writable_folder(config.results_dir, "--results_dir").resolve() / new_run_name(f"{data.name}_{stage_name}")
    table = data.rows("query", "gallery")
    splits = read_splits(data.folder / "image_splits.json", table)
    prompts = load_prompts(data, config.prompt_json, TOKEN_SAFE_PROMPTS, "query", "gallery")
    pixels = load_pixels(
        data.image_dir,
        table["image"].tolist(),
        clip.image_size,
        processed_dir(data.name) / "test",
        resize_mode=clip.resize_mode,
    )
    table = drop_unreadable(table, pixels, run_dir / "unreadable_images.csv", skip_unreadable=config.skip_unreadable)
    readable = set(pixels.images)
    named_splits = [("official", "", splits["official"])]
    named_splits += [("random", str(number), split) for number, split in enumerate(splits["random"])]
    features = extract_features(clip, pixels.array, device, batch_size=config.batch_size)

    rows, figures = [], {}
    for protocol, number, split in named_splits:
        start = time.perf_counter()
        kept = {side: [image for image in split[side] if image in readable] for side in ("query", "gallery")}
        measured = image_to_image(features, table, **kept, exclude_same_camera=data.exclude_same_camera)
        figures[protocol, number] = measured
        rows.append(_summary_row(measured, protocol, number, time.perf_counter() - start))
    official = {
        side: [image for image in splits["official"][side] if image in readable] for side in ("query", "gallery")
    }
    start = time.perf_counter()
    query_ids = set(table.loc[table["image"].isin(official["query"]), "item_id"])
    text = text_to_image(clip, features, table, official["gallery"], query_ids, prompts, device)
    rows.append(_summary_row(text.figures, "text_to_image", "", time.perf_counter() - start))

    rankings = ranking_table(features, table, official, exclude_same_camera=data.exclude_same_camera)
    with replace_atomically(run_dir / "rankings.csv") as temporary:
        rankings.to_csv(temporary, index=False, float_format="%.6f")
    drawn = draw_rankings(
        run_dir, data.image_dir, rankings, official["query"], figures["official", ""], text, stage_name
    )
    result = {
        "dataset": data.name,
        "model": clip.name,
        "stage": labels.stage,
        "variant": labels.variant,
        "checkpoint": labels.checkpoint,
        "exclude_same_camera": data.exclude_same_camera,
        "images_left_out": len(pixels.unreadable),
        "official": _with_interval(figures["official", ""], config.seed),
        "random": [figures["random", number].as_dict() for protocol, number, _ in named_splits if protocol == "random"],
        "text_to_image": text.figures.as_dict(),
        "seconds": round(time.perf_counter() - started, 2),
        **environment(),
    }
    write_json(run_dir / "metrics.json", result)
    now = utc_now()
    shared = {"time": now, "dataset": data.name, "model": clip.name, "stage": labels.stage, "variant": labels.variant}
    rows = [{**shared, "checkpoint": labels.checkpoint, **row} for row in rows]
    write_run_report(
        run_dir,
        title=f"Stage {labels.stage} {labels.variant} on {data.name}: {labels.checkpoint}",
        rows=rows,
        counts={
            "unreadable images": len(pixels.unreadable),
            "queries of the official split without a match": figures["official", ""].num_without_match,
        },
        configuration={**jsonable(config), **environment()},
        figures=drawn,
    )
    append_rows(config.results_dir / "summary.csv", rows)
    _print(figures, text.figures, run_dir, len(pixels.unreadable))
    return result


def _summary_row(figures: RetrievalFigures, protocol: str, number: str, seconds: float) -> dict[str, Any]:
    row = figures.as_dict()
    del row["num_without_match"]
    return {"protocol": protocol, "split": number, **row, "seconds": round(seconds, 3)}


def _with_interval(figures: RetrievalFigures, seed: int) -> dict[str, Any]:
    """The figures, with the 95% bootstrap interval over queries of mAP and Rank-1."""
    counted = figures.first_match_rank > 0
    precision = bootstrap_interval(figures.average_precision[counted], seed=seed)
    rank1 = bootstrap_interval((figures.first_match_rank[counted] == 1).astype(float), seed=seed)
    return {
        **figures.as_dict(),
        "mAP_interval95": [precision.low, precision.high],
        "rank1_interval95": [rank1.low, rank1.high],
    }


def _print(
    figures: dict[tuple[str, str], RetrievalFigures], text: RetrievalFigures, run_dir: Path, images_left_out: int
) -> None:
    print(
        f"\n{'percent':<22}{'Rank-1':>8}{'Rank-5':>8}{'Rank-10':>9}{'mAP':>8}{'mINP':>8}{'queries':>10}{'gallery':>9}"
    )
    random = [value for (protocol, _), value in figures.items() if protocol == "random"]
    lines = [
        ("official split", [figures["official", ""]]),
        (f"{len(random)} random splits", random),
        ("text to image", [text]),
    ]
    for name, values in lines:
        if values:
            cells = [
                100 * np.mean([getattr(v, key) for v in values]) for key in ("rank1", "rank5", "rank10", "mAP", "mINP")
            ]
            counts = values[0]
            print(
                f"{name:<22}{cells[0]:>8.1f}{cells[1]:>8.1f}{cells[2]:>9.1f}{cells[3]:>8.1f}{cells[4]:>8.1f}"
                f"{counts.num_query:>10,}{counts.num_gallery:>9,}"
            )
    for name, values in lines:
        without = max((v.num_without_match for v in values), default=0)
        if without:
            print(f"left out of every figure: up to {without:,} queries without a match in the gallery ({name})")
    if images_left_out:
        print(f"left out: {images_left_out:,} unreadable images")
    print(f"details: {display(run_dir)}\n")
