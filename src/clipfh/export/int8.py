"""What 8 bits cost: Rank-1 with the quantised encoders beside float32, both by onnxruntime.

Shapes: N photos, T texts, D embedding.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from clipfh.core.errors import InputError
from clipfh.core.paths import processed_dir
from clipfh.evaluation.data import load_evaluation_data
from clipfh.evaluation.measure import prompts_tell, query_ids
from clipfh.export.onnx_folder import IMAGE, IMAGE_INT8, TEXT, TEXT_INT8, photo_batches, run_onnx, text_batches
from clipfh.export.samples import drawn_garments
from clipfh.features.extraction import image_to_image
from clipfh.metrics.retrieval import evaluate_retrieval
from clipfh.models.clip import LoadedClip
from clipfh.tables.prepared import PreparedDataset

MAX_DROP = 0.01  # of Rank-1


@dataclass(frozen=True)
class Int8Cost:
    """Rank-1 as fractions, float32 then int8.

    Attributes:
        photos: of photo queries.
        num_photos: how many.
        texts: of descriptions as queries, both encoders being quantised; None: they tell nothing apart.
        num_texts: how many.
        told: on what.
    """

    photos: tuple[float, float]
    num_photos: int
    texts: tuple[float, float] | None
    num_texts: int
    told: str


def measure_int8(clip: LoadedClip, folder: Path, data: PreparedDataset | None, listing: Path, work: Path) -> Int8Cost:
    """Rank-1 of both pairs of encoders in `folder`, on the test photos of `data`, or on drawn garments.

    Args:
        clip: what they were made of.
        folder: of the encoders.
        data: its official split counts; None: every photo of some drawn garments is a query against all others.
        listing: where photos that cannot be read are listed.
        work: for temporary files.

    Raises:
        InputError: int8 costs more than `MAX_DROP` (of texts: or more than one query, where that is more), or the test
            photos cannot be read.
    """
    cost = _on_drawn(clip, folder, work) if data is None else _on_dataset(clip, folder, data, listing)
    _require_close("photo", *cost.photos, MAX_DROP)
    if cost.texts:
        _require_close("text", *cost.texts, max(MAX_DROP, 1 / cost.num_texts))
    return cost


def _require_close(kind: str, float32: float, int8: float, allowed: float) -> None:
    if float32 - int8 > allowed + 1e-9:
        raise InputError(
            f"8 bits cost too much: Rank-1 of {kind} queries is {100 * int8:.1f} with int8, {100 * float32:.1f} with "
            f"float32: over {100 * allowed:.1f} points less. Nothing is left behind; leave --int8 out"
        )


def _on_dataset(clip: LoadedClip, folder: Path, data: PreparedDataset, listing: Path) -> Int8Cost:
    test = load_evaluation_data(
        data,
        clip,
        processed_dir(data.name) / "test",
        listing=listing,
        prompt_json=None,
        skip_unreadable=False,
        fast_decode=False,
    )
    features = _image_features(clip, folder, test.pixels.array)
    camera = data.exclude_same_camera
    figures = [image_to_image(its, test.table, **test.official, exclude_same_camera=camera) for its in features]
    texts, num_texts = None, 0
    if prompts_tell(test):
        place = test.table.reset_index().set_index("image").loc[test.official["gallery"], "index"].to_numpy()
        gallery_ids = test.table["item_id"].to_numpy()[place].tolist()
        wanted = sorted(set(query_ids(test)) & set(gallery_ids))
        prompts = {item_id: test.prompts[item_id] for item_id in wanted}
        texts, num_texts = _text_rank1(clip, folder, prompts, [its[place] for its in features], gallery_ids)
    rank1 = (figures[0].rank1, figures[1].rank1)
    return Int8Cost(rank1, figures[0].num_query, texts, num_texts, f"official split of {data.name}")


def _on_drawn(clip: LoadedClip, folder: Path, work: Path) -> Int8Cost:
    pixels, item_ids, descriptions = drawn_garments(clip, work / "garments")
    features = _image_features(clip, folder, pixels)
    places = range(len(item_ids))
    figures = [evaluate_retrieval(its, its, item_ids, item_ids, query_positions=places) for its in features]
    texts, num_texts = _text_rank1(clip, folder, descriptions, features, item_ids)
    rank1 = (figures[0].rank1, figures[1].rank1)
    told = f"{len(item_ids)} photos of {len(set(item_ids))} drawn garments, each a query against all others"
    return Int8Cost(rank1, figures[0].num_query, texts, num_texts, told)


def _image_features(clip: LoadedClip, folder: Path, pixels: np.ndarray) -> list[torch.Tensor]:
    return [run_onnx(folder / name, photo_batches(clip, pixels)) for name in (IMAGE, IMAGE_INT8)]


def _text_rank1(
    clip: LoadedClip,
    folder: Path,
    prompts: dict[str, list[str]],
    gallery: list[torch.Tensor],
    gallery_ids: list[str],
) -> tuple[tuple[float, float], int]:
    """Rank-1 of all prompts by both pairs of encoders, and how many prompts there are."""
    pairs = [(item_id, text) for item_id, texts in prompts.items() for text in texts]
    rank1 = []
    for name, photos in zip((TEXT, TEXT_INT8), gallery, strict=True):
        features = run_onnx(folder / name, text_batches(clip, [text for _, text in pairs]))
        rank1.append(evaluate_retrieval(features, photos, [item_id for item_id, _ in pairs], gallery_ids).rank1)
    return (rank1[0], rank1[1]), len(pairs)
