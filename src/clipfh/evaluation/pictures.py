"""All pictures of one evaluation, and the map that its page holds."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from clipfh.evaluation.data import EvaluationData
from clipfh.evaluation.embedding_map import make_map
from clipfh.evaluation.measure import Measured
from clipfh.evaluation.rankings import draw_rankings
from clipfh.evaluation.saliency import salient_pairs
from clipfh.models.clip import LoadedClip
from clipfh.reports.charts import interpolation_figure
from clipfh.reports.embedding_map import embedding_map_figure
from clipfh.reports.interactive_map import interactive_map
from clipfh.reports.saliency_figure import saliency_figure
from clipfh.reports.similarity_figure import similarity_figure
from clipfh.tables.prepared import PreparedDataset

Pictures = list[tuple[Path, str]]  # with their captions


def draw_figures(
    run_dir: Path,
    data: PreparedDataset,
    test: EvaluationData,
    measured: Measured,
    rankings: pd.DataFrame,
    similarity: dict[str, Any] | None,
    interpolation: dict[float, float],
    stage_name: str,
) -> Pictures:
    """Draw rankings, similarities, and the line of weights on which the measured ones lie.

    Args:
        run_dir: where the pictures go.
        data, test: what was measured on.
        measured, rankings, similarity: what was measured, see `measure`, `ranking_table` and `measure_details`.
        interpolation: of the checkpoint, see `EvaluationLabels`.
        stage_name: for the titles.
    """
    queries = test.official["query"]
    drawn = draw_rankings(run_dir, data.image_dir, rankings, queries, measured.official, measured.text, stage_name)
    if similarity:
        similarity_figure(run_dir / "similarity.png", similarity, title=f"{stage_name}: similarities")
        share = f"{100 * similarity['auc']:.1f}%"
        caption = f"similarity of matches and of non-matches: a random match is above a random non-match in {share}"
        drawn.append((run_dir / "similarity.png", caption))
    if interpolation:
        interpolation_figure(run_dir / "interpolation.png", interpolation)
        caption = "Val figure of weights between the first ones and the best epoch's: the best of them were measured"
        drawn.append((run_dir / "interpolation.png", caption))
    return drawn


def draw_map(
    run_dir: Path, data: PreparedDataset, test: EvaluationData, features: torch.Tensor, stage_name: str
) -> tuple[Pictures, list[str]]:
    """Draw the map of the features (N, D) as a picture, and as HTML for the page; nothing of too few photos."""
    embedding = make_map(features, test.table, exclude_same_camera=data.exclude_same_camera)
    if embedding is None:
        return [], []
    images, places, wrong = embedding.images, embedding.places, embedding.wrong
    caption = f"map of {len(images)} test photos: near means similar"
    title = f"{stage_name}: {caption}"
    embedding_map_figure(run_dir / "map.png", data.image_dir, images, places, wrong, title=title)
    photos = np.stack([test.pixels.array[place] for place in embedding.chosen])
    section = interactive_map(run_dir, photos, images, embedding.item_ids, places, wrong)
    return [(run_dir / "map.png", f"{caption}; red frames: the most similar of them is another item")], [section]


def draw_saliency(
    run_dir: Path,
    clip: LoadedClip,
    test: EvaluationData,
    features: torch.Tensor,
    measured: Measured,
    rankings: pd.DataFrame,
    device: torch.device,
    stage_name: str,
) -> Pictures:
    """Draw what of a few queries their similarity to a match hangs on; nothing where no query has a match."""
    queries, pixels = test.official["query"], test.pixels
    pairs = salient_pairs(
        clip, pixels.array, features, list(pixels.images), queries, measured.official, rankings, device
    )
    if not pairs:
        return []
    ids = test.table["item_id"].tolist()
    rows = [
        (f"{ids[p.query]}: match at {p.rank}, {p.similarity:.3f}", pixels.array[p.query], pixels.array[p.match], p.drop)
        for p in pairs
    ]
    note = "Bright: covering this square of the query takes most from its similarity to the match at the right."
    path = run_dir / "saliency.png"
    saliency_figure(path, rows, title=f"{stage_name}: what makes query and match similar", note=note)
    return [(path, "what of a query its similarity to the match hangs on, from the best to the worst query")]
