"""Folders of saved features without a model, for the tests of indexes."""

from pathlib import Path

import numpy as np
import pytest

from clipfh.index.shards import SavedFeatures, Shard, shard_path, write_manifest, write_shard

DIMENSION = 16


def model(weights: str = "a" * 64) -> dict:
    return {"weights": weights, "dimension": DIMENSION, "model": "tiny-vit", "image_size": 64, "transform_version": 4}


def unit_rows(count: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def save(
    folder: Path, ids: list[str], features: np.ndarray, *, shards: int = 1, categories: list[str] | None = None, **facts
) -> SavedFeatures:
    """Photos of cameras 0 to 2 and of `categories`, or of two in turn, in `shards` files."""
    pa = pytest.importorskip("pyarrow", reason="the extra `scale` is not installed")
    made = model(**facts)
    table = pa.table(
        {
            "id": ids,
            "item_id": [f"item {photo}" for photo in ids],
            "category": categories or [("it's", 'a "mug"')[place % 2] for place in range(len(ids))],
            "camera": [str(place % 3) for place in range(len(ids))],
        },
        schema=pa.schema([(name, pa.string()) for name in ("id", "item_id", "category", "camera")]),
    )
    parts = np.array_split(np.arange(len(ids)), shards)
    written = []
    for number, part in enumerate(parts):
        shard = Shard(f"identity {number}", len(part), [])
        write_shard(shard_path(folder, number), table.take(part), features[part], shard, made)
        written.append(shard)
    write_manifest(folder, made, written, "photos", "/photos")
    return SavedFeatures(folder)
