"""An index of FAISS or Milvus Lite beside the exact ranking: how much it finds, how fast, in how much memory.

    python benchmarks/bench_index.py --features DIR [--num 1000000] [--milvus_num 50000] [--threads 1] [--quick]

The photos of DIR (`python -m clipfh.index extract`) are not so many: their features are tiled to `--num` rows, each
copy with noise of its own, as long as a feature before it is normalised again. Queries are further copies. A
match is a row of the query's item id. That is what the speed and the recall of an index depend on, but no measurement
of how well photos are found. Without --features, features of 2,000 drawn identities are tiled.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import Case, run_benchmark, run_in_turn, save_results

DIM = 512  # of drawn features
QUERIES, ONE_BY_ONE, TOP = 500, 100, 10
SHARD = 10_000
NOISE = 1.0
EXACT = "exact, numpy"


# ---- inputs


def copies(features: Any, count: int, seed: int) -> Any:
    """`count` rows (count, D): the given ones again and again, each with noise."""
    import numpy as np

    generator = np.random.default_rng(seed)
    rows = features[np.arange(count) % len(features)]
    noise = generator.standard_normal(rows.shape, dtype=np.float32)
    rows = rows + noise * (NOISE / rows.shape[1] ** 0.5)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def given_features(folder: str | None) -> tuple[Any, list[str]]:
    """Features (N, D) and item ids, of photos or drawn."""
    import numpy as np

    from clipfh.index.shards import SavedFeatures, features_of

    if folder is None:
        generator = np.random.default_rng(0)
        centers = generator.standard_normal((2000, DIM), dtype=np.float32)
        rows = np.repeat(centers, 5, axis=0) + generator.standard_normal((10_000, DIM), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows, [str(number // 5) for number in range(len(rows))]
    tables = list(SavedFeatures(Path(folder)))
    return np.concatenate([features_of(table) for table in tables]), [
        item for table in tables for item in table["item_id"].to_pylist()
    ]


def save_copies(folder: Path, given: Any, item_ids: list[str], count: int) -> None:
    """Shards of `count` rows, as `extract` writes them; one at a time is in memory."""
    import numpy as np
    import pyarrow as pa

    from clipfh.index.shards import Shard, shard_path, write_manifest, write_shard

    model = {"weights": "made by bench_index.py", "model": "none", "dimension": given.shape[1]}
    shards = []
    for number, start in enumerate(range(0, count, SHARD)):
        size = min(SHARD, count - start)
        items = [item_ids[place % len(item_ids)] for place in range(start, start + size)]
        nothing = pa.array([""] * size)
        ids = pa.array([str(place) for place in range(start, start + size)])
        rows = pa.table({"id": ids, "item_id": pa.array(items), "category": nothing, "camera": nothing})
        shards.append(Shard("", size, []))
        features = copies(np.roll(given, -start, axis=0), size, seed=number)
        write_shard(shard_path(folder, number), rows, features, shards[-1], model)
    write_manifest(folder, model, shards, "copies with noise")


def queries(folder: str | None) -> tuple[Any, list[str]]:
    """Further copies, (Q, D), and whose they are."""
    import numpy as np

    given, item_ids = given_features(folder)
    chosen = np.random.default_rng(1).integers(0, len(given), QUERIES)
    return copies(given[chosen], QUERIES, seed=10**6), [item_ids[place] for place in chosen]


# ---- contestants


def exact(saved: str, given: str | None) -> Callable[[], dict[str, Any]]:
    """The matrix product with every shard."""
    import numpy as np

    from clipfh.index.shards import SavedFeatures, features_of

    vectors, wanted = queries(given)

    def run() -> dict[str, Any]:
        best, ids, items = np.empty((QUERIES, 0), np.float32), np.empty((QUERIES, 0), int), []
        start = 0
        for table in SavedFeatures(Path(saved)):
            similarities = np.concatenate([best, vectors @ features_of(table).T], axis=1)
            here = np.broadcast_to(np.arange(start, start + len(table)), (QUERIES, len(table)))
            both = np.concatenate([ids, here], axis=1)
            order = np.argsort(-similarities, axis=1)[:, :TOP]
            best, ids = np.take_along_axis(similarities, order, 1), np.take_along_axis(both, order, 1)
            items += table["item_id"].to_pylist()
            start += len(table)
        rank1 = np.mean([items[row[0]] == item for row, item in zip(ids, wanted, strict=True)])
        return {"ids": ids.tolist(), "rank1": float(rank1)}

    return run


def built(saved: str, uri: str, kind: str) -> Callable[[], None]:
    """A build from the shards."""
    from clipfh.index.engine import open_engine
    from clipfh.index.shards import SavedFeatures

    return lambda: open_engine(uri).create(SavedFeatures(Path(saved)), kind)


def searched(saved: str, uri: str, given: str | None) -> Callable[[], dict[str, Any]]:
    """An index is opened and searched, all queries at once and then some of them one by one."""
    import time

    import numpy as np

    from clipfh.index.engine import open_engine
    from clipfh.index.shards import SavedFeatures

    vectors, wanted = queries(given)
    model = SavedFeatures(Path(saved)).model

    def run() -> dict[str, Any]:
        engine = open_engine(uri)
        engine.search(model, vectors[:1], TOP)  # reads the index
        started = time.perf_counter()
        found = engine.search(model, vectors, TOP)
        at_once = time.perf_counter() - started
        each = []
        for vector in vectors[:ONE_BY_ONE]:
            started = time.perf_counter()
            engine.search(model, vector[None], TOP)
            each.append(time.perf_counter() - started)
        return {
            "ids": [[int(match.id) for match in matches] for matches in found],
            "rank1": float(np.mean([row[0].item_id == item for row, item in zip(found, wanted, strict=True)])),
            "at_once": QUERIES / at_once,
            "one_by_one": 1 / float(np.median(each)),
            "disk_mib": engine.info()["bytes"] / 2**20,
        }

    return run


# ---- the benchmark


def measured(
    saved: Path, given: str | None, contestants: dict[str, tuple[str, str]], size: str, threads: int
) -> Iterator[dict[str, Any]]:
    """A row for the exact ranking and each contestant, {name: (URI, kind)}."""
    common = {"saved": str(saved), "given": given}
    (sample,) = run_in_turn([Case(EXACT, "exact", common, warmup=0)], rounds=1, threads=threads)[EXACT]
    truth, rank1 = sample.value["ids"], sample.value["rank1"]
    yield entry(
        f"{size}: {EXACT}",
        {"recall": 1.0, "rank1": rank1, "search_mib": sample.peak_mib, "at_once": QUERIES / sample.seconds},
    )
    for name, (uri, kind) in contestants.items():
        build = Case(f"{size}: {name}, build", "built", {"saved": str(saved), "uri": uri, "kind": kind}, warmup=0)
        search = Case(f"{size}: {name}, search", "searched", {**common, "uri": uri}, warmup=0)
        times = run_in_turn([build, search], rounds=1, threads=threads)
        (made,), (found,) = times[build.name], times[search.name]
        ids = found.value.pop("ids")
        hits = [len(set(row) & set(right)) / TOP for row, right in zip(ids, truth, strict=True)]
        figures = {"recall": sum(hits) / len(hits), **found.value, "search_mib": found.peak_mib}
        yield entry(f"{size}: {name}", {**figures, "build_seconds": made.seconds, "build_mib": made.peak_mib})


def entry(name: str, figures: dict[str, float]) -> dict[str, Any]:
    """A row of the results: the figures, and how they are shown."""

    def shown(figure: str) -> str:
        value = figures.get(figure)
        return "-" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"

    cells = {
        f"recall@{TOP}": f"{figures['recall']:.4f}",
        "Rank-1": f"{figures['rank1']:.4f}",
        "build, s": shown("build_seconds"),
        "build, MiB": shown("build_mib"),
        "search, MiB": shown("search_mib"),
        "queries/s, one by one": shown("one_by_one"),
        f"queries/s, {QUERIES} at once": shown("at_once"),
        "on disk, MiB": shown("disk_mib"),
    }
    return {"name": name, **figures, "cells": cells}


def main(arguments: argparse.Namespace) -> None:
    """Make the rows, measure, save."""
    given, item_ids = given_features(arguments.features)
    sizes = {"faiss": arguments.num, "milvus": arguments.milvus_num}
    if arguments.quick:
        sizes = {"faiss": 5000, "milvus": 2000}
    rows: list[dict[str, Any]] = []
    for engine, count in sizes.items():
        with tempfile.TemporaryDirectory(prefix="bench_index.") as name:
            folder = Path(name)
            save_copies(folder / "features", given, item_ids, count)
            if engine == "faiss":
                contestants = {f"FAISS {kind}": (str(folder / kind), kind) for kind in ("flat", "ivf", "hnsw")}
            else:
                contestants = {
                    f"Milvus Lite {kind}": (str(folder / f"{kind}.db"), kind) for kind in ("flat", "ivf", "hnsw")
                }
            size = f"{count:,} x {given.shape[1]}"
            for row in measured(folder / "features", arguments.features, contestants, size, arguments.threads):
                rows.append(row)
                save_results("index", rows, [], quick=arguments.quick)  # as they come: a million rows take an hour


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this benchmark."""
    parser.add_argument("--features", help="folder of saved features to tile (default: drawn ones)")
    parser.add_argument("--num", type=int, default=1_000_000, help="rows for FAISS")
    parser.add_argument("--milvus_num", type=int, default=50_000, help="rows for Milvus Lite")
    parser.add_argument(
        "--threads", type=int, default=1, help="of each process; more than there are idle cores wait for each other (1)"
    )


if __name__ == "__main__":
    run_benchmark(main, __doc__, add_flags)
