"""Who ranks in bench_retrieval_metrics.py, and on what: the bare product, ours, every row sorted, and the peers.

A contestant takes the kind of the inputs and their share of In-Shop's size, and returns what is timed.
"""

from collections.abc import Callable
from typing import Any

QUERIES, GALLERY, IDENTITIES, DIM = 14218, 12612, 3985, 512
FIGURES = ("rank1", "rank5", "rank10", "mAP", "mINP")


# ---- inputs


def inputs(kind: str, scale: float) -> tuple[Any, Any, Any, Any]:
    """Query and gallery features (float32, unit rows) and identities.

    Every query has a match. `even`: about 3.3. `skewed`: 1 to 500. `tied`: skewed, and entries are multiples of 1/8
    that come from so few that most images stand several times in the gallery; every sum is exact.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    num_query, num_gallery, num_ids = (int(number * scale) for number in (QUERIES, GALLERY, IDENTITIES))
    if kind == "even":
        gallery_ids = rng.integers(0, num_ids, num_gallery)
        query_ids = rng.choice(np.unique(gallery_ids), num_query)
    else:
        sizes = np.exp(rng.uniform(0, np.log(501), num_ids)).astype(int)  # as many of 1 to 10 as of 50 to 500
        gallery_ids = rng.permutation(np.repeat(np.arange(num_ids), sizes)[:num_gallery])
        query_ids = gallery_ids[rng.integers(0, len(gallery_ids), num_query)]
    centers = rng.standard_normal((num_ids, DIM), dtype=np.float32)
    features = []
    for item_ids in (query_ids, gallery_ids):
        rows = centers[item_ids] + 3 * rng.standard_normal((len(item_ids), DIM), dtype=np.float32)
        if kind == "tied":
            rows = np.zeros_like(rows)
            rows[np.arange(len(item_ids))[:, None], (item_ids[:, None] + np.arange(8)) % 40] = 0.125
            rows[np.arange(len(item_ids)), rng.integers(0, 4, len(item_ids))] += 0.125
        else:
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        features.append(rows)
    return *features, query_ids, gallery_ids


# ---- contestants


def product_numpy(kind: str, scale: float) -> Callable[[], None]:
    """`query @ gallery.T`, its result allocated anew."""
    query, gallery, _, _ = inputs(kind, scale)

    def run() -> None:
        query @ gallery.T

    return run


def product_torch(kind: str, scale: float) -> Callable[[], None]:
    """The same in torch."""
    import torch

    query, gallery = (torch.from_numpy(rows) for rows in inputs(kind, scale)[:2])

    def run() -> None:
        query @ gallery.T

    return run


def product_in_blocks(kind: str, scale: float) -> Callable[[], None]:
    """In numpy by blocks of queries into one buffer: no memory has to be fetched from the system for the result."""
    import numpy as np

    query, gallery, _, _ = inputs(kind, scale)
    block = np.empty((512, len(gallery)), dtype=np.float32)

    def run() -> None:
        for start in range(0, len(query), 512):
            part = query[start : start + 512]
            np.matmul(part, gallery.T, out=block[: len(part)])

    return run


def ours(kind: str, scale: float) -> Callable[[], dict[str, float]]:
    """clipfh.metrics.retrieval.evaluate_retrieval."""
    import torch

    from clipfh.metrics.retrieval import evaluate_retrieval

    query, gallery, query_ids, gallery_ids = inputs(kind, scale)
    arguments = (torch.from_numpy(query), torch.from_numpy(gallery), query_ids.astype(str), gallery_ids.astype(str))
    # what numba loads once in a process, about 70 MiB, is no part of ranking: a few queries, once with many matches
    few = torch.eye(64)
    for ids in (["a"] * 64, ["a", "b"] * 32):
        evaluate_retrieval(few, few, ids, ids)

    def run() -> dict[str, float]:
        figures = evaluate_retrieval(*arguments)
        return {name: getattr(figures, name) for name in FIGURES}

    return run


def every_row_sorted(kind: str, scale: float) -> Callable[[], dict[str, float]]:
    """The figures' definition, in a loop over the queries: what the others are compared with."""
    import numpy as np

    query, gallery, query_ids, gallery_ids = inputs(kind, scale)
    tolerance = np.sqrt(DIM) * np.finfo(np.float32).eps * np.linalg.norm(gallery, axis=1).max()  # of match_ranks

    def run() -> dict[str, float]:
        all_ranks = []
        for start in range(0, len(query), 512):
            for q, similarities in enumerate(query[start : start + 512] @ gallery.T, start=start):
                is_match = gallery_ids == query_ids[q]
                if not is_match.any():
                    continue
                below = tolerance * np.linalg.norm(query[q])
                order = np.lexsort((is_match, is_match * below - similarities))  # tied matches last
                all_ranks.append(np.flatnonzero(is_match[order]) + 1)
        return figures_of(all_ranks)

    return run


def figures_of(all_ranks: list[Any]) -> dict[str, float]:
    """The figures, each as its definition says, of the ranks of each query's matches, from 1, in increasing order."""
    import numpy as np

    rank = {f"rank{k}": float(np.mean([ranks[0] <= k for ranks in all_ranks])) for k in (1, 5, 10)}
    precisions = [(np.arange(1, len(ranks) + 1) / ranks).mean() for ranks in all_ranks]
    penalties = [len(ranks) / ranks[-1] for ranks in all_ranks]
    return {**rank, "mAP": float(np.mean(precisions)), "mINP": float(np.mean(penalties))}


def pytorch_metric_learning(kind: str, scale: float) -> Callable[[], dict[str, float]]:
    """AccuracyCalculator with all of the gallery as neighbours."""
    import torch

    import clipfh.models.torchvision_guard  # noqa: F401  (a PyPI torchvision beside a CPU torch)

    from pytorch_metric_learning.distances import CosineSimilarity  # isort: skip
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator  # isort: skip
    from pytorch_metric_learning.utils.inference import CustomKNN  # isort: skip

    query, gallery, query_ids, gallery_ids = (torch.from_numpy(part) for part in inputs(kind, scale))
    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision"),
        k=len(gallery),
        device=torch.device("cpu"),
        knn_func=CustomKNN(CosineSimilarity(), batch_size=512),
    )

    def run() -> dict[str, float]:
        figures = calculator.get_accuracy(query, query_ids, gallery, gallery_ids)
        return {"rank1": figures["precision_at_1"], "mAP": figures["mean_average_precision"]}

    return run


def torchmetrics(kind: str, scale: float, shift: float = 0.0) -> Callable[[], dict[str, float]]:
    """RetrievalMAP and RetrievalHitRate; `shift` is added to the similarities."""
    import torch

    import clipfh.models.torchvision_guard  # noqa: F401  (as above)

    from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP  # isort: skip

    query, gallery, query_ids, gallery_ids = (torch.from_numpy(part) for part in inputs(kind, scale))

    def run() -> dict[str, float]:
        similarities = (query @ gallery.T).flatten() + shift
        target = (query_ids[:, None] == gallery_ids).flatten()
        indexes = torch.arange(len(query)).repeat_interleave(len(gallery))
        metrics = {"rank1": RetrievalHitRate("skip", top_k=1), "mAP": RetrievalMAP("skip")}
        return {name: metric(similarities, target, indexes=indexes).item() for name, metric in metrics.items()}

    return run


def open_metric_learning(kind: str, scale: float, retrieve: int) -> Callable[[], dict[str, float]]:
    """RetrievalResults of the `retrieve` nearest (0: all), and its metrics."""
    import torch

    import clipfh.models.torchvision_guard  # noqa: F401  (as above)

    from oml.interfaces.datasets import IQueryGalleryLabeledDataset  # isort: skip
    from oml.metrics import calc_retrieval_metrics_rr  # isort: skip
    from oml.retrieval import RetrievalResults  # isort: skip

    query, gallery, query_ids, gallery_ids = (torch.from_numpy(part) for part in inputs(kind, scale))

    class Images(IQueryGalleryLabeledDataset):
        extra_data: dict[str, Any] = {}  # noqa: RUF012  (the interface wants a plain attribute)
        input_tensors_key, index_key = "input_tensors", "idx"

        def __len__(self) -> int:
            return len(query) + len(gallery)

        def __getitem__(self, item: int) -> dict[str, Any]:
            raise NotImplementedError

        def visualize(self, item: int, color: Any = None) -> Any:
            raise NotImplementedError

        def get_labels(self) -> torch.Tensor:
            return torch.cat([query_ids, gallery_ids])

        def get_query_ids(self) -> torch.Tensor:
            return torch.arange(len(query))

        def get_gallery_ids(self) -> torch.Tensor:
            return len(query) + torch.arange(len(gallery))

    embeddings, images, n = torch.cat([query, gallery]), Images(), retrieve or len(gallery)

    def run() -> dict[str, float]:
        results = RetrievalResults.from_embeddings(embeddings, images, n_items=n)
        figures = calc_retrieval_metrics_rr(
            results, cmc_top_k=(1, 5, 10), precision_top_k=(), map_top_k=(n,), verbose=False
        )
        return {"rank1": float(figures["cmc"][1]), "mAP": float(figures["map"][n])}

    return run
