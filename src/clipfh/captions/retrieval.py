"""Recall@K between images and captions, both ways, where an image has several captions and a caption several images.

Shapes: N images, T distinct captions, D embedding, P pairs of an image and a caption of it, c queries of a chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clipfh.core.errors import InputError
from clipfh.metrics.match_ranks import tie_tolerance

RECALLS = (1, 5, 10)
_CHUNK = 512  # queries at a time: with 20,000 captions, 40 MB of similarities


@dataclass(frozen=True)
class CaptionRecall:
    """The figures of one direction.

    Attributes:
        recall: K to the share of queries with a match among the first K.
        median_rank: of the first match, from 1.
        num_query, num_gallery: how many of each.
        first_match_rank: (Q,) int64, from 1.
    """

    recall: dict[int, float]
    median_rank: float
    num_query: int
    num_gallery: int
    first_match_rank: np.ndarray

    def as_dict(self) -> dict[str, float | int]:
        """For a JSON file: `recall1`, `recall5`, `recall10`, fractions 0..1, and the rest."""
        figures: dict[str, float | int] = {f"recall{k}": value for k, value in self.recall.items()}
        return {
            **figures,
            "median_rank": self.median_rank,
            "num_query": self.num_query,
            "num_gallery": self.num_gallery,
        }


def caption_recall(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    captions_of_image: Sequence[np.ndarray],
    *,
    other_texts: torch.Tensor | None = None,
) -> tuple[CaptionRecall, CaptionRecall]:
    """Image to text and text to image, by cosine similarity.

    Image to text: an image is the query, all distinct captions the gallery, and any caption of the image a match.
    Text to image: a caption is the query, all images the gallery, and every image that it belongs to a match. A tied
    non-match ranks before a match, so that constant features find nothing.

    Args:
        image_features: (N, D) unit rows.
        text_features: (T, D) unit rows, one a distinct caption.
        captions_of_image: for each image the rows of its captions in `text_features`, at least one.
        other_texts: (O, D) unit rows of captions of none of the images, which are in the way of image to text.

    Raises:
        ValueError: lengths that do not fit, an image without a caption, features that are not finite.
        InputError: no image.

    Source: Karpathy, Fei-Fei 2015, "Deep Visual-Semantic Alignments", section 4.2, whose gallery lists a caption of two
    images twice; here it is one text that matches both.
    """
    if len(image_features) != len(captions_of_image):
        raise ValueError(f"{len(image_features)} image features, but the captions of {len(captions_of_image)} images")
    if not len(captions_of_image):
        raise InputError("there is no image to retrieve")
    sizes = np.array([len(numbers) for numbers in captions_of_image])
    if not sizes.all():
        raise ValueError("an image has no caption")
    images = np.repeat(np.arange(len(sizes)), sizes)  # (P,)
    texts = np.concatenate([np.asarray(numbers, dtype=np.int64) for numbers in captions_of_image])  # (P,)
    if texts.min() < 0 or texts.max() >= len(text_features) or len(np.unique(texts)) < len(text_features):
        raise ValueError("every caption has a row in the text features, and every row is a caption of some image")
    image_features, text_features = image_features.detach().float(), text_features.detach().float()
    if not (torch.isfinite(image_features).all() and torch.isfinite(text_features).all()):
        raise ValueError("features are not finite")
    all_texts = text_features if other_texts is None else torch.cat([text_features, other_texts.to(text_features)])
    return (
        _recall(first_match_ranks(image_features, all_texts, images, texts), len(all_texts)),
        _recall(first_match_ranks(text_features, image_features, texts, images), len(image_features)),
    )


def first_match_ranks(
    query_features: torch.Tensor, gallery_features: torch.Tensor, query: np.ndarray, gallery: np.ndarray
) -> np.ndarray:
    """The rank of each query's best match: one more than the number of non-matches as similar as it or more.

    Ties are decided within the tolerance of `clipfh.metrics.match_ranks`.

    Args:
        query_features, gallery_features: (Q, D) and (G, D) on one device.
        query, gallery: (P,) the matching pairs; every query is in one at least.

    Returns:
        (Q,) int64, from 1.
    """
    order = np.argsort(query, kind="stable")
    query, gallery = query[order], gallery[order]
    ranks = np.empty(len(query_features), dtype=np.int64)
    tolerance = tie_tolerance(query_features, gallery_features)
    for start in range(0, len(query_features), _CHUNK):
        similarities = query_features[start : start + _CHUNK] @ gallery_features.T  # (c, G)
        first, last = np.searchsorted(query, [start, start + len(similarities)])
        rows = torch.from_numpy(query[first:last] - start).to(similarities.device)
        columns = torch.from_numpy(gallery[first:last]).to(similarities.device)
        matches = torch.full_like(similarities, -torch.inf)
        matches[rows, columns] = similarities[rows, columns]
        similarities[rows, columns] = -torch.inf
        reached = matches.amax(dim=1) - tolerance[start : start + _CHUNK]
        above = (similarities >= reached[:, None]).sum(dim=1)
        ranks[start : start + len(similarities)] = above.cpu().numpy() + 1
    return ranks


def _recall(ranks: np.ndarray, num_gallery: int) -> CaptionRecall:
    recall = {k: float((ranks <= k).mean()) for k in RECALLS}
    return CaptionRecall(recall, float(np.median(ranks)), len(ranks), num_gallery, ranks)
