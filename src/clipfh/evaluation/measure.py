"""All figures of one evaluation: image to image on every split, text to image, clusters, and what --rerank adds."""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from clipfh.core.errors import InputError
from clipfh.evaluation.data import EvaluationData
from clipfh.evaluation.rankings import TextQueries, text_to_image
from clipfh.evaluation.settings import EvaluationConfig
from clipfh.features.extraction import image_to_image
from clipfh.metrics.clustering import ClusteringFigures, evaluate_clustering
from clipfh.metrics.reranking import Reranking
from clipfh.metrics.retrieval import RetrievalFigures
from clipfh.metrics.statistics import bootstrap_interval
from clipfh.metrics.text_fusion import TextFusion
from clipfh.models.clip import LoadedClip
from clipfh.reports.gains import FEWEST_IDENTITIES
from clipfh.reports.per_query import per_query_rows


class Reranked(NamedTuple):
    """The figures of the official split after re-ranking, or with descriptions beside photos, and by which method."""

    method: Reranking | TextFusion
    figures: RetrievalFigures


@dataclass(frozen=True)
class Measured:
    """The figures of one evaluation, and the rows of the summary that hold them."""

    official: RetrievalFigures
    random: list[RetrievalFigures]
    text: TextQueries | None
    clusters: ClusteringFigures | None
    reranked: Reranked | None
    rows: list[dict[str, Any]]

    def as_dict(self, test: EvaluationData, seed: int) -> dict[str, Any]:
        """For `metrics.json`; `seed` draws the bootstrap's identities."""
        return {
            "official": _with_interval(self.official, test, seed),
            "random": [figures.as_dict() for figures in self.random],
            "text_to_image": self.text.figures.as_dict() if self.text else None,
            "clustering": self.clusters.as_dict() if self.clusters else None,
            "official_reranked": self.reranked
            and {**self.reranked.method.as_dict(), **_with_interval(self.reranked.figures, test, seed)},
        }

    def per_query(self, test: EvaluationData) -> list[pd.DataFrame]:
        """For `per_query.csv`: the queries of the official split, and the prompts."""
        tables = [per_query_rows("official", test.official["query"], query_ids(test), self.official)]
        if self.text:
            tables.append(per_query_rows("text_to_image", self.text.prompts, self.text.item_ids, self.text.figures))
        return tables


def query_ids(test: EvaluationData) -> list[str]:
    """The identity of each query of the official split."""
    return test.table.set_index("image").loc[test.official["query"], "item_id"].tolist()


def prompts_tell(test: EvaluationData) -> bool:
    """Whether the prompts of the query identities tell any of them apart, so that they can be queries."""
    ids = set(query_ids(test))
    return len(ids) == 1 or len({tuple(test.prompts[item_id]) for item_id in ids}) > 1


def require_descriptions(method: Reranking | TextFusion | None, test: EvaluationData, name: str) -> None:
    """Check that what the dataset `name` says of its identities can be of use to `method`.

    Raises:
        InputError: `method` needs descriptions, and all are the same.
    """
    if isinstance(method, TextFusion) and not prompts_tell(test):
        raise InputError(
            f"--rerank {method.method} puts an identity's description beside each photo, and all query identities of "
            f"{name} have the same prompt"
        )


def measure(
    clip: LoadedClip,
    test: EvaluationData,
    features: torch.Tensor,
    device: torch.device,
    config: EvaluationConfig,
    *,
    exclude_same_camera: bool,
    detail: str = "",
) -> Measured:
    """Measure the features (N, D) of the test images: the official split, the random ones, text queries, clusters.

    There are no text queries where all identities have the same prompts: they would tell nothing apart. If `config`
    says so, the official split is measured re-ranked or with text beside photos, too, in a row of its own protocol.
    `detail` goes into every row, see `summary_row`.
    """
    rows, figures = [], []
    splits = [("official", "", test.official)]
    splits += [("random", str(number), split) for number, split in enumerate(test.random)]
    for protocol, number, split in splits:
        start = time.perf_counter()
        measured = image_to_image(features, test.table, **split, exclude_same_camera=exclude_same_camera)
        figures.append(measured)
        rows.append(summary_row(measured, protocol, number, time.perf_counter() - start, detail))
    start, text = time.perf_counter(), None
    ids = set(query_ids(test))
    if not prompts_tell(test):
        print(f"no text-to-image figures: all {len(ids):,} query identities have the same prompt")
    else:
        text = text_to_image(clip, features, test.table, test.official["gallery"], ids, test.prompts, device)
        rows.append(summary_row(text.figures, "text_to_image", "", time.perf_counter() - start, detail))
    clusters = None
    if config.clustering and len(ids) > 1:
        of_queries = test.table["item_id"].isin(ids).to_numpy()  # distractors are no clusters
        item_ids = test.table["item_id"].to_numpy()[of_queries]
        clusters = evaluate_clustering(features[of_queries], item_ids, seed=config.seed)
    reranked = None
    if method := config.reranking:
        start = time.perf_counter()
        same_camera, ranks = exclude_same_camera, method.match_ranks
        if isinstance(method, TextFusion):
            ranks = partial(ranks, text_features=text.of_identities(query_ids(test)))
        measured = image_to_image(features, test.table, **test.official, exclude_same_camera=same_camera, ranks=ranks)
        reranked = Reranked(method, measured)
        told = ", ".join(filter(None, (str(method), detail)))
        rows.append(summary_row(measured, "official_reranked", "", time.perf_counter() - start, told))
    return Measured(figures[0], figures[1:], text, clusters, reranked, rows)


def summary_row(
    figures: RetrievalFigures, protocol: str, number: str, seconds: float, detail: str = ""
) -> dict[str, Any]:
    """The figures as a row of the summary, without what says of which model they are.

    Rows of one protocol are compared only where their `detail` is the same: the way of re-ranking, the probe, and what
    was measured otherwise than the prepared dataset says.
    """
    row = figures.as_dict()
    del row["num_without_match"]
    return {"protocol": protocol, "split": number, "detail": detail, **row, "seconds": round(seconds, 3)}


def _with_interval(figures: RetrievalFigures, test: EvaluationData, seed: int) -> dict[str, Any]:
    """The figures of the official split, with the 95% bootstrap interval over identities of mAP and Rank-1.

    Of fewer than `FEWEST_IDENTITIES` it is None.
    """
    counted = figures.first_match_rank > 0
    item_ids = np.asarray(query_ids(test), dtype=object)[counted]
    if len(set(item_ids)) < FEWEST_IDENTITIES:
        return {**figures.as_dict(), "mAP_interval95": None, "rank1_interval95": None}
    precision = bootstrap_interval(figures.average_precision[counted], item_ids, seed=seed)
    rank1 = bootstrap_interval((figures.first_match_rank[counted] == 1).astype(float), item_ids, seed=seed)
    return {
        **figures.as_dict(),
        "mAP_interval95": [precision.low, precision.high],
        "rank1_interval95": [rank1.low, rank1.high],
    }
