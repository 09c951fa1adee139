"""The one evaluation that every stage goes through, so that its figures can stand in one table.

Features of the test images are computed once, in float32; then the official split, the random splits, text-to-image
retrieval and clusters are measured on them, and, if asked for, the official split re-ranked. No checkpoint is chosen
on the test identities.
"""

import shlex
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from clipfh.core.cli import jsonable
from clipfh.core.errors import InputError
from clipfh.core.files import replace_atomically, write_json
from clipfh.core.paths import display, processed_dir
from clipfh.core.run import environment, new_run_folder, pick_device
from clipfh.evaluation.data import EvaluationData, load_evaluation_data, what_differs
from clipfh.evaluation.details import measure_details
from clipfh.evaluation.kept import measure_kept
from clipfh.evaluation.measure import Measured, measure, require_descriptions
from clipfh.evaluation.pictures import Pictures, draw_figures, draw_map, draw_saliency
from clipfh.evaluation.probe import find_probe
from clipfh.evaluation.projector import write_projector
from clipfh.evaluation.rankings import ranking_table
from clipfh.evaluation.settings import CheckpointConfig, EvaluationConfig, EvaluationLabels
from clipfh.features.store import load_features
from clipfh.models.checkpoint import newest_checkpoint, read_stage_checkpoint
from clipfh.models.clip import LoadedClip, canonical_model_name, first_weights_of, load_clip
from clipfh.reports.per_query import write_per_query
from clipfh.reports.printed_figures import print_figures
from clipfh.reports.results_index import INDEX, write_index
from clipfh.reports.run_page import write_run_report
from clipfh.reports.summary import append_rows, require_summary, utc_now
from clipfh.tables.digest import SHORT, require_unseen
from clipfh.tables.prepared import DEFAULT_DATASET, PreparedDataset, load_or_prepare

_INTERVALS = {"Rank-1": "rank1", "mAP": "mAP"}


def evaluate_checkpoint(config: CheckpointConfig, *, stage: int, variant: str | None, made_by: str) -> dict[str, Any]:
    """Evaluate `config.ckpt`, or the newest BEST of `stage` (and `variant`) on the dataset, and say which.

    Raises:
        InputError: there is none (the command `made_by` makes one), it is of another stage, variant or architecture,
            or what `evaluate_clip` raises.
    """
    # the checkpoint first: without one, there is no reason to prepare the embedded default
    if config.ckpt is None and config.dataset in (None, DEFAULT_DATASET) and config.metadata_dir is None:
        _newest_best(stage, DEFAULT_DATASET, None, variant, made_by)
    data = load_dataset(config)
    path = config.ckpt or _newest_best(stage, data.name, data.digest, variant, made_by)
    content = read_stage_checkpoint(path, stage)
    if variant and content["variant"] != variant:
        raise InputError(f"--ckpt {display(path)} is of variant {content['variant']}, not of --variant {variant}")
    model = canonical_model_name(config.model) if config.model else content["model"]
    device = pick_device(config.device)
    measured = [name for name in ("val_mAP", "val_mean_mAP") if name in content]
    val = ", ".join(f"{name.replace('_', ' ')} {100 * content[name]:.1f}" for name in measured) or "no val: a final fit"
    if content.get("alpha", 1) != 1:
        val += f", {content['alpha']:.3g} of the way from what it began with"
    print(
        f"checkpoint: {display(path)} ({content['model']}, {content['variant']}, trained on {content['dataset']}, "
        f"epoch {content['epoch']}, {val})"
    )
    clip = load_clip(model, str(path), resize_mode=config.resize_mode, device=str(device))
    labels = EvaluationLabels(
        stage,
        content["variant"],
        clip.pretrained,
        clip.train_seed,
        clip.recipe,
        content.get("start_recipe"),
        content.get("interpolation", {}),
    )
    return evaluate_clip(clip, data, labels, device, config)


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


def evaluate_clip(
    clip: LoadedClip,
    data: PreparedDataset,
    labels: EvaluationLabels,
    device: torch.device,
    config: EvaluationConfig,
) -> dict[str, Any]:
    """Measure `clip` on the test identities of `data`; write, print and return the figures.

    Writes `results/<run>/`: `metrics.json`, `per_query.csv` (average precision and rank of the first match of every
    query of the official split, and of every prompt), `rankings.csv` (the first 50 images of every query of the
    official split), `report.html` with pictures of queries, similarities, saliency and a map; appends rows to
    `results/summary.csv`, and writes `results/index.html` anew.

    Raises:
        InputError: unreadable images (unless skipped), missing splits or prompts, an output folder that cannot be
            written.
    """
    started = time.perf_counter()
    torch.backends.cudnn.allow_tf32 = False  # in the probe and the maps, too: see `encode_batches`
    require_unseen(
        clip.seen_identities,
        data.digest,
        data.table,
        weights=labels.checkpoint,
        name=data.name,
        unrelated_ids=config.unrelated_ids,
    )
    require_summary(config.results_dir / "summary.csv")
    probe = find_probe(config.probe)
    run_dir = new_run_folder(config.results_dir.resolve(), f"{data.name}_{labels.stage_name}", "--results_dir")
    cache_dir = processed_dir(data.name) / "test"
    test = load_evaluation_data(
        data,
        clip,
        cache_dir,
        listing=run_dir / "unreadable_images.csv",
        prompt_json=config.prompt_json,
        skip_unreadable=config.skip_unreadable,
        fast_decode=config.fast_decode,
        verify=config.verify,
    )
    require_descriptions(config.reranking, test, data.name)
    features = load_features(clip, test.pixels, device, cache_dir / "features", batch_size=config.batch_size)
    same_camera, detail = data.exclude_same_camera, what_differs(data, test, config.prompt_json)
    if detail:
        print(f"note: {data.name} itself is measured otherwise ({detail}): these figures are compared with their like")
    measured = measure(clip, test, features, device, config, exclude_same_camera=same_camera, detail=detail)
    rankings = ranking_table(features, test.table, test.official, exclude_same_camera=same_camera)
    details = measure_details(test, features, measured.official, rankings, exclude_same_camera=same_camera)
    kept = measure_kept(clip, probe, test.pixels, features, device, cache_dir / "features")
    result = {
        **_labels(clip, data, labels),
        "exclude_same_camera": data.exclude_same_camera,
        "detail": detail,
        "images_left_out": len(test.pixels.unreadable),
        **measured.as_dict(test, config.seed),
        "details": details,
        "kept": kept.as_dict(),
        "seconds": round(time.perf_counter() - started, 2),
        "configuration": jsonable(config),
        **environment(),
    }
    write_json(run_dir / "metrics.json", result)
    write_per_query(run_dir, measured.per_query(test))
    with replace_atomically(run_dir / "rankings.csv") as temporary:
        rankings.to_csv(temporary, index=False, float_format="%.6f")
    similarity = details["similarity"]
    drawn, sections = _draw(run_dir, clip, data, test, features, measured, rankings, similarity, labels, device, config)
    rows = [*measured.rows, *kept.rows()]
    _write(run_dir, config.results_dir, data.image_dir, result, rows, drawn, sections)
    text, reranked = measured.text and measured.text.figures, measured.reranked
    reranked = reranked and (reranked.method.method, reranked.figures)
    print_figures(measured.official, measured.random, text, measured.clusters, reranked)
    if told := str(kept):
        print(told)
    if result["images_left_out"]:
        print(f"left out: {result['images_left_out']:,} unreadable images")
    print(f"details: {display(run_dir)}\n")
    return result


def _labels(clip: LoadedClip, data: PreparedDataset, labels: EvaluationLabels) -> dict[str, Any]:
    return {
        "dataset": data.name,
        "data_digest": data.digest[:SHORT],
        "image_dir": display(data.image_dir),
        "model": clip.name,
        "stage": labels.stage,
        "variant": labels.variant,
        "seed": labels.seed,
        "recipe": labels.recipe,
        "start_recipe": labels.start_recipe,
        "checkpoint": labels.checkpoint,
        "first_weights": first_weights_of(clip),
        "interpolation": labels.interpolation,
    }


def _draw(
    run_dir: Path,
    clip: LoadedClip,
    data: PreparedDataset,
    test: EvaluationData,
    features: torch.Tensor,
    measured: Measured,
    rankings: pd.DataFrame,
    similarity: dict[str, Any] | None,
    labels: EvaluationLabels,
    device: torch.device,
    config: EvaluationConfig,
) -> tuple[Pictures, list[str]]:
    """Draw what was measured: pictures with their captions, and sections of the page."""
    name, sections = labels.stage_name, []
    drawn = draw_figures(run_dir, data, test, measured, rankings, similarity, labels.interpolation, name)
    if config.saliency:
        drawn += draw_saliency(run_dir, clip, test, features, measured, rankings, device, name)
    if config.clustering:
        pictures, sections = draw_map(run_dir, data, test, features, name)
        drawn += pictures
    if config.projector:
        folder = write_projector(run_dir, features, test.table, test.pixels.array)
        print(f"the embedding in three dimensions: tensorboard --logdir {shlex.quote(display(folder))}")
    return drawn, sections


def _write(
    run_dir: Path,
    results_dir: Path,
    image_dir: Path,
    result: dict[str, Any],
    rows: list[dict[str, Any]],
    drawn: Pictures,
    sections: list[str],
) -> None:
    """Write the run's report, append its rows to the summary, and link it from the page of all evaluations."""
    names = ("dataset", "data_digest", "model", "stage", "variant", "seed", "recipe", "checkpoint")
    labels = {"time": utc_now(), **{name: result[name] for name in names}, "run": run_dir.name}
    rows = [{**labels, **row} for row in rows]
    write_run_report(
        run_dir,
        title=f"Stage {result['stage']} {result['variant']} on {result['dataset']}: {Path(result['checkpoint']).name}",
        rows=rows,
        clustering=result["clustering"],
        intervals={label: result["official"][f"{name}_interval95"] for label, name in _INTERVALS.items()},
        details=result["details"],
        image_dir=image_dir,
        counts={
            "unreadable images": result["images_left_out"],
            "queries of the official split without a match": result["official"]["num_without_match"],
        },
        configuration={**result["configuration"], **environment()},
        figures=drawn,
        sections=sections,
    )
    append_rows(results_dir / "summary.csv", rows)
    try:
        write_index(results_dir)
    except InputError as error:  # the evaluation is complete without it: it says what is wrong with older ones
        print(f"note: {results_dir / INDEX} is not written: {error}")
