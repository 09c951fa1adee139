"""The figures of an evaluation as a table on the terminal."""

from collections.abc import Sequence

import numpy as np

from clipfh.metrics.clustering import ClusteringFigures
from clipfh.metrics.retrieval import RetrievalFigures


def print_figures(
    official: RetrievalFigures,
    random: Sequence[RetrievalFigures],
    text_to_image: RetrievalFigures | None,
    clusters: ClusteringFigures | None,
    reranked: tuple[str, RetrievalFigures] | None = None,
) -> None:
    """Print percentages: the official split, the mean of the random ones, text queries, clusters; what was left out.

    `reranked`, the method's name and the official split re-ranked by it, is a line of its own below the others.
    """
    columns = {"Rank-1": "rank1", "Rank-5": "rank5", "Rank-10": "rank10", "mAP": "mAP", "mINP": "mINP"}
    print(f"\n{'percent':<24}" + "".join(f"{name:>9}" for name in columns) + f"{'queries':>10}{'gallery':>9}")
    random_name = f"{len(random)} random splits"
    lines = [
        ("official split", [official]),
        (random_name, random),
        ("text to image", [text_to_image] if text_to_image else []),
        (f"re-ranked, {reranked[0]}", [reranked[1]]) if reranked else ("", []),
    ]
    for name, values in lines:
        if values:
            cells = [f"{100 * np.mean([getattr(value, key) for value in values]):>9.1f}" for key in columns.values()]
            print(f"{name:<24}{''.join(cells)}{values[0].num_query:>10,}{values[0].num_gallery:>9,}")
    for name, values in lines:
        without = max((value.num_without_match for value in values), default=0)
        if without:
            print(f"left out of every figure: up to {without:,} queries without a match in the gallery ({name})")
    if clusters:
        print(
            f"k-means, {clusters.num_clusters:,} clusters of {clusters.num_images:,} images: "
            f"NMI {100 * clusters.nmi:.1f}, ARI {100 * clusters.ari:.1f}"
        )
