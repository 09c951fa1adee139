"""The one evaluation that every stage goes through, so that its figures can stand in one table.

Features of the test images are computed once, in float32; then the official split, the random splits and
text-to-image retrieval are measured on them. No checkpoint is chosen on the test identities.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clipfh.core.cli import jsonable, option
from clipfh.core.files import replace_atomically, write_json
from clipfh.core.paths import RESULTS_DIR, display, processed_dir
from clipfh.core.run import environment, new_run_folder, pick_device
from clipfh.evaluation.data import EvaluationData, load_evaluation_data
from clipfh.evaluation.rankings import TextQueries, draw_rankings, ranking_table, text_to_image
from clipfh.features.extraction import image_to_image
from clipfh.features.store import load_features
from clipfh.images.transforms import RESIZE_MODES
from clipfh.metrics.retrieval import RetrievalFigures
from clipfh.metrics.statistics import bootstrap_interval
from clipfh.models.checkpoint import newest_checkpoint, read_stage_checkpoint
from clipfh.models.clip import LoadedClip, canonical_model_name, load_clip
from clipfh.reports.printed_figures import print_figures
from clipfh.reports.run_page import write_run_report
from clipfh.reports.summary import append_rows, require_summary, utc_now
from clipfh.tables.digest import SHORT, require_unseen
from clipfh.tables.prepared import DEFAULT_DATASET, TOKEN_SAFE_PROMPTS, PreparedDataset, load_or_prepare


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
    unrelated_ids: bool = option(
        False, "item ids equal to ones that the weights were trained on in another dataset stand for other things"
    )
    skip_unreadable: bool = option(False, "go on without images that cannot be read")
    fast_decode: bool = option(False, "decode JPEGs at reduced size: faster, differs by under 1 grey level on average")


@dataclass(frozen=True)
class CheckpointConfig(EvaluationConfig):
    """The flags of an evaluation of a checkpoint."""

    ckpt: Path | None = option(None, "the checkpoint (default: the newest BEST of this stage on this dataset)")
    resize_mode: str | None = option(None, "in place of the checkpoint's own", choices=RESIZE_MODES)
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
    if config.ckpt is None and config.dataset in (None, DEFAULT_DATASET) and config.metadata_dir is None:
        _newest_best(stage, DEFAULT_DATASET, None, variant, made_by)
    data = load_dataset(config)
    path = config.ckpt or _newest_best(stage, data.name, data.digest, variant, made_by)
    content = read_stage_checkpoint(path, stage)
    model = canonical_model_name(config.model) if config.model else content["model"]
    device = pick_device(config.device)
    val = f"val mAP {100 * content['val_mAP']:.1f}" if "val_mAP" in content else "no val: a final fit"
    print(
        f"checkpoint: {display(path)} ({content['model']}, {content['variant']}, trained on {content['dataset']}, "
        f"epoch {content['epoch']}, {val})"
    )
    clip = load_clip(model, str(path), resize_mode=config.resize_mode, device=str(device))
    return evaluate_clip(clip, data, EvaluationLabels(stage, content["variant"], clip.pretrained), device, config)


def _newest_best(stage: int, dataset: str, data_digest: str | None, variant: str | None, made_by: str) -> Path:
    wanted = {"stage": stage, "dataset": dataset} | ({"variant": variant} if variant else {})
    return newest_checkpoint(stage, "*_BEST.pth", made_by=made_by, data_digest=data_digest, **wanted)


def load_dataset(config: EvaluationConfig) -> PreparedDataset:
    """The prepared dataset that the flags describe; the embedded default is made if it is missing."""
    return load_or_prepare(
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
    torch.backends.cudnn.allow_tf32 = False  # cuDNN's default: convolutions with 10 bits of each factor, not float32's
    require_unseen(
        clip.seen_identities,
        data.digest,
        data.table,
        weights=labels.checkpoint,
        name=data.name,
        unrelated_ids=config.unrelated_ids,
    )
    require_summary(config.results_dir / "summary.csv")
    stage_name = f"stage{labels.stage}" + (f"_{labels.variant}" if labels.variant else "")
    run_dir = new_run_folder(config.results_dir.resolve(), f"{data.name}_{stage_name}", "--results_dir")
    cache_dir = processed_dir(data.name) / "test"
    test = load_evaluation_data(
        data,
        clip,
        cache_dir,
        listing=run_dir / "unreadable_images.csv",
        prompt_json=config.prompt_json,
        skip_unreadable=config.skip_unreadable,
        fast_decode=config.fast_decode,
    )
    features = load_features(clip, test.pixels, device, cache_dir / "features", batch_size=config.batch_size)
    figures, text, rows = _measure(clip, test, features, device, exclude_same_camera=data.exclude_same_camera)
    rankings = ranking_table(features, test.table, test.official, exclude_same_camera=data.exclude_same_camera)
    with replace_atomically(run_dir / "rankings.csv") as temporary:
        rankings.to_csv(temporary, index=False, float_format="%.6f")
    official, *random = figures
    drawn = draw_rankings(run_dir, data.image_dir, rankings, test.official["query"], official, text, stage_name)
    result = {
        "dataset": data.name,
        "data_digest": data.digest[:SHORT],
        "model": clip.name,
        "stage": labels.stage,
        "variant": labels.variant,
        "checkpoint": labels.checkpoint,
        "exclude_same_camera": data.exclude_same_camera,
        "images_left_out": len(test.pixels.unreadable),
        "official": _with_interval(official, test, config.seed),
        "random": [value.as_dict() for value in random],
        "text_to_image": text.figures.as_dict() if text else None,
        "seconds": round(time.perf_counter() - started, 2),
        "configuration": jsonable(config),
        **environment(),
    }
    _write(run_dir, config.results_dir, result, rows, drawn)
    print_figures(official, random, text.figures if text else None)
    if result["images_left_out"]:
        print(f"left out: {result['images_left_out']:,} unreadable images")
    print(f"details: {display(run_dir)}\n")
    return result


def _measure(
    clip: LoadedClip, test: EvaluationData, features: torch.Tensor, device: torch.device, *, exclude_same_camera: bool
) -> tuple[list[RetrievalFigures], TextQueries | None, list[dict[str, Any]]]:
    """The figures of the official split and the random ones, the text queries, and the summary's rows of them all.

    There are no text queries where all identities have the same prompts: they would tell nothing apart.
    """
    rows, figures = [], []
    splits = [("official", "", test.official)]
    splits += [("random", str(number), split) for number, split in enumerate(test.random)]
    for protocol, number, split in splits:
        start = time.perf_counter()
        measured = image_to_image(features, test.table, **split, exclude_same_camera=exclude_same_camera)
        figures.append(measured)
        rows.append(_summary_row(measured, protocol, number, time.perf_counter() - start))
    start = time.perf_counter()
    query_ids = set(test.table.loc[test.table["image"].isin(test.official["query"]), "item_id"])
    if len(query_ids) > 1 and len({tuple(test.prompts[item_id]) for item_id in query_ids}) == 1:
        print(f"no text-to-image figures: all {len(query_ids):,} query identities have the same prompt")
        return figures, None, rows
    text = text_to_image(clip, features, test.table, test.official["gallery"], query_ids, test.prompts, device)
    rows.append(_summary_row(text.figures, "text_to_image", "", time.perf_counter() - start))
    return figures, text, rows


def _write(
    run_dir: Path, results_dir: Path, result: dict[str, Any], rows: list[dict[str, Any]], drawn: list[tuple[Path, str]]
) -> None:
    """Write the run's metrics and report, and append its rows to the summary."""
    write_json(run_dir / "metrics.json", result)
    names = ("dataset", "data_digest", "model", "stage", "variant", "checkpoint")
    shared = {"time": utc_now(), **{name: result[name] for name in names}}
    rows = [{**shared, **row} for row in rows]
    write_run_report(
        run_dir,
        title=f"Stage {result['stage']} {result['variant']} on {result['dataset']}: {result['checkpoint']}",
        rows=rows,
        counts={
            "unreadable images": result["images_left_out"],
            "queries of the official split without a match": result["official"]["num_without_match"],
        },
        configuration={**result["configuration"], **environment()},
        figures=drawn,
    )
    append_rows(results_dir / "summary.csv", rows)


def _summary_row(figures: RetrievalFigures, protocol: str, number: str, seconds: float) -> dict[str, Any]:
    row = figures.as_dict()
    del row["num_without_match"]
    return {"protocol": protocol, "split": number, **row, "seconds": round(seconds, 3)}


def _with_interval(figures: RetrievalFigures, test: EvaluationData, seed: int) -> dict[str, Any]:
    """The figures of the official split, with the 95% bootstrap interval over identities of mAP and Rank-1."""
    counted = figures.first_match_rank > 0
    item_ids = test.table.set_index("image").loc[test.official["query"], "item_id"].to_numpy()[counted]
    precision = bootstrap_interval(figures.average_precision[counted], item_ids, seed=seed)
    rank1 = bootstrap_interval((figures.first_match_rank[counted] == 1).astype(float), item_ids, seed=seed)
    return {
        **figures.as_dict(),
        "mAP_interval95": [precision.low, precision.high],
        "rank1_interval95": [rank1.low, rank1.high],
    }
