"""Which parts of a query photo make it similar to its match: squares of it are covered, one after the other.

Occlusion (Zeiler and Fergus 2014, "Visualizing and understanding convolutional networks", section 4.2) looks at a model
from outside: it is the same for every image encoder. It tells what a covered part adds to this one similarity, given
all others; what two parts show alike, neither alone is needed for.

Shapes: N images, S image size, D embedding dimension.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from clipfh.features.extraction import extract_features
from clipfh.metrics.retrieval import RetrievalFigures
from clipfh.models.clip import LoadedClip

GRID = 7  # squares a side: 49 more photos to encode for each pair
MAX_PAIRS = 3


@dataclass(frozen=True)
class SalientPair:
    """A query, the match that is ranked first of its matches, and what of the query their similarity hangs on.

    Attributes:
        query, match: places among the N images.
        rank: of the match, from 1.
        similarity: of both, uncovered.
        drop: (GRID, GRID) by how much it falls where a square is covered; negative where it rises.
    """

    query: int
    match: int
    rank: int
    similarity: float
    drop: np.ndarray


def salient_pairs(
    clip: LoadedClip,
    pixels: np.ndarray,
    features: torch.Tensor,
    images: list[str],
    queries: list[str],
    official: RetrievalFigures,
    rankings: pd.DataFrame,
    device: torch.device,
) -> list[SalientPair]:
    """The saliency of `MAX_PAIRS` queries, evenly spaced from the best to the worst that has a match in `rankings`.

    Args:
        clip, device: the model, and where it is.
        pixels: (N, S, S, 3) uint8.
        features: (N, D) unit rows of them.
        images: (N,) their paths.
        queries: those of the official split.
        official: its figures.
        rankings: the beginnings of the queries' rankings, see `clipfh.evaluation.rankings.ranking_table`.
    """
    place = {image: number for number, image in enumerate(images)}
    found = rankings[rankings["is_match"]].drop_duplicates("query").set_index("query")
    precision = pd.Series(official.average_precision, index=queries)[found.index]
    order = precision.sort_values(ascending=False, kind="stable").index
    chosen = order[np.unique(np.linspace(0, len(order) - 1, MAX_PAIRS).round().astype(int))] if len(order) else []
    pairs = []
    for query in chosen:
        match = found.loc[query]
        q, m = place[query], place[match["image"]]
        drop = occlusion_drop(clip, pixels[q], features[m], device)
        pairs.append(SalientPair(q, m, int(match["rank"]), float(features[q] @ features[m]), drop))
    return pairs


def occlusion_drop(
    clip: LoadedClip, photo: np.ndarray, other: torch.Tensor, device: torch.device, grid: int = GRID
) -> np.ndarray:
    """(grid, grid): by how much the similarity of a photo to `other` falls where a square of it is covered.

    Squares have the grey that is zero to the model, so that they show nothing, and cover the photo without overlap.

    Args:
        photo: (S, S, 3) uint8.
        other: (D,) a unit feature on `device`.
    """
    H, W = photo.shape[:2]
    grey = np.round(255 * np.asarray(clip.mean)).astype(np.uint8)
    views = np.repeat(photo[None], grid * grid + 1, axis=0)  # the last one stays whole
    for row in range(grid):
        for column in range(grid):
            top, left = H * row // grid, W * column // grid
            views[row * grid + column, top : H * (row + 1) // grid, left : W * (column + 1) // grid] = grey
    similarity = (extract_features(clip, views, device, quiet=True) @ other).cpu().numpy()  # (grid * grid + 1,)
    return (similarity[-1] - similarity[:-1]).reshape(grid, grid)
