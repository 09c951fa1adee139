"""Re-ranking at In-Shop's size, by k-reciprocal neighbours and by query expansion, beside plain figures and matrices.

    python benchmarks/bench_reranking.py [--quick]

14,218 queries x 12,612 gallery images, 512-d, 3,985 identities in 40 kinds. The figures are first compared with those
of the algorithm's usual form, in matrices of all photos with all photos; at the full size each of those would take
2.7 GiB, so that form runs at a fifth.
"""

from collections.abc import Callable
from typing import Any

from harness import Case, bar, median, row, run_benchmark, run_in_turn, save_results
from retrieval_contestants import DIM, FIGURES, GALLERY, IDENTITIES, QUERIES, figures_of

KINDS = 40  # of identities, such as shirts: photos of one kind are in each other's way
K1, K2, WEIGHT = 20, 6, 0.3
SMALL = 0.2


# ---- inputs


def inputs(scale: float) -> tuple[Any, Any, Any, Any]:
    """Query and gallery features (float32, unit rows) and identities; every query has a match."""
    import numpy as np

    rng = np.random.default_rng(0)
    num_query, num_gallery, num_ids = (int(number * scale) for number in (QUERIES, GALLERY, IDENTITIES))
    gallery_ids = rng.integers(0, num_ids, num_gallery)
    query_ids = rng.choice(np.unique(gallery_ids), num_query)
    centers = rng.standard_normal((KINDS, DIM), dtype=np.float32)[rng.integers(0, KINDS, num_ids)]
    centers += rng.standard_normal((num_ids, DIM), dtype=np.float32)
    features = []
    for item_ids in (query_ids, gallery_ids):
        rows = centers[item_ids] + 2.5 * rng.standard_normal((len(item_ids), DIM), dtype=np.float32)
        features.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return *features, query_ids, gallery_ids


# ---- contestants


def ours(scale: float, method: str) -> Callable[[], dict[str, float]]:
    """clipfh.metrics.retrieval.evaluate_retrieval, plain or re-ranked."""
    import torch

    from clipfh.metrics.match_ranks import match_ranks
    from clipfh.metrics.reranking import KReciprocal, QueryExpansion
    from clipfh.metrics.retrieval import evaluate_retrieval

    ranks = {
        "plain": match_ranks,
        "k_reciprocal": KReciprocal(K1, K2, WEIGHT).match_ranks,
        "aqe": QueryExpansion().match_ranks,
    }[method]
    query, gallery, query_ids, gallery_ids = inputs(scale)
    arguments = (torch.from_numpy(query), torch.from_numpy(gallery), query_ids.astype(str), gallery_ids.astype(str))
    few = torch.eye(64)
    evaluate_retrieval(few, few, ["a"] * 64, ["a"] * 64, ranks=ranks)  # numba loads once in a process: not timed

    def run() -> dict[str, float]:
        figures = evaluate_retrieval(*arguments, ranks=ranks)
        return {name: getattr(figures, name) for name in FIGURES}

    return run


def whole_matrices(scale: float) -> Callable[[], dict[str, float]]:
    """k-reciprocal re-ranking as it is commonly written, in numpy: distances, ranks and vectors are N x N."""
    import numpy as np

    query, gallery, query_ids, gallery_ids = inputs(scale)

    def run() -> dict[str, float]:
        features = np.concatenate([query, gallery])
        N, Q = len(features), len(query)
        distances = np.maximum(2 - 2 * features @ features.T, 0)
        np.fill_diagonal(distances, 0)
        distances /= distances.max(axis=1, keepdims=True)
        nearest = np.argsort(distances, axis=1)

        def reciprocal(p: int, k: int) -> Any:
            forward = nearest[p, : k + 1]
            return forward[(nearest[forward, : k + 1] == p).any(axis=1)]

        vectors = np.zeros((N, N), dtype=np.float32)
        for p in range(N):
            found = expanded = reciprocal(p, K1)
            for q in found:
                candidate = reciprocal(q, round(K1 / 2))
                if len(np.intersect1d(candidate, found)) > 2 / 3 * len(candidate):
                    expanded = np.append(expanded, candidate)
            expanded = np.unique(expanded)
            weights = np.exp(-distances[p, expanded])
            vectors[p, expanded] = weights / weights.sum()
        vectors = np.stack([vectors[nearest[p, :K2]].mean(axis=0) for p in range(N)])
        holders = [np.flatnonzero(column) for column in vectors.T]
        all_ranks = []
        for q in range(Q):
            shared = np.zeros(N, dtype=np.float32)
            for i in np.flatnonzero(vectors[q]):
                shared[holders[i]] += np.minimum(vectors[q, i], vectors[holders[i], i])
            final = ((1 - WEIGHT) * (1 - shared / (2 - shared)) + WEIGHT * distances[q])[Q:]
            all_ranks.append(np.flatnonzero((gallery_ids == query_ids[q])[np.argsort(final)]) + 1)
        return figures_of(all_ranks)

    return run


# ---- the benchmark


def beside_whole_matrices(scale: float) -> tuple[list, list]:
    """Rows and bars of both forms on one thread; their figures must agree but for what rounding ties."""
    cases = [
        Case("whole matrices", "whole_matrices", {"scale": scale}, warmup=0),
        Case("k-reciprocal", "ours", {"scale": scale, "method": "k_reciprocal"}, warmup=0),
    ]
    times = run_in_turn(cases, rounds=1)
    dense, sparse = (samples[0].value for samples in times.values())
    worst = max(abs(dense[name] - sparse[name]) for name in FIGURES)
    print(f"largest difference to whole matrices {worst:.1e}")
    if worst > 1e-4:
        raise SystemExit(f"the figures differ: {dense}, {sparse}")
    ratio = median(times["whole matrices"]) / median(times["k-reciprocal"])
    bars = [bar(f"k-reciprocal, {scale:g} x: times as fast as whole matrices", ratio, at_least=5, unit="x")]
    return [row(f"{name}, {scale:g} x, 1 thread", samples) for name, samples in times.items()], bars


def full_size(scale: float, *, rounds: int) -> tuple[list, list]:
    """Rows and bars on two threads; memory is that of a first run, with nothing of an earlier one to be used."""
    cases = [
        Case(method, "ours", {"scale": scale, "method": method}, warmup=0)
        for method in ("plain", "k_reciprocal", "aqe")
    ]
    times = run_in_turn(cases, rounds=rounds, threads=2)
    bars = []
    for method, most_seconds, most_mib in (("k_reciprocal", 60, 300), ("aqe", 10, 150)):
        bars.append(bar(f"{method}: time", median(times[method]), at_most=most_seconds, unit="s"))
        bars.append(
            bar(f"{method}: memory over the features'", median(times[method], "peak_mib"), at_most=most_mib, unit="MiB")
        )
    rows = [
        row(f"{method}, 2 threads", samples, **{name: round(samples[0].value[name], 4) for name in ("rank1", "mAP")})
        for method, samples in times.items()
    ]
    return rows, bars


def main(quick: bool) -> None:
    """Compare, then time."""
    parts = [
        beside_whole_matrices(0.02 if quick else SMALL),
        full_size(0.1 if quick else 1.0, rounds=1 if quick else 3),
    ]
    rows, bars = ([entry for part in parts for entry in part[which]] for which in (0, 1))
    save_results("reranking", rows, bars, quick=quick)


if __name__ == "__main__":
    run_benchmark(main, __doc__)
