"""Find photos of one dataset by photo, by description, or by both; with several models side by side.

Shapes: Q queries, N photos of the gallery, D embedding, K hits.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Lock

import numpy as np
import torch

from clipfh.app.query_photo import read_query_photo
from clipfh.core.errors import InputError
from clipfh.features.extraction import extract_features
from clipfh.models.clip import LoadedClip, encode_texts
from clipfh.prompts.tokens import token_counter

# What ranks a gallery: unit vectors (Q, D), K and an offset to the rows (Q, K) and similarities (Q, K) of the places
# offset to offset + K, best first; fewer at the end. `exact` is one, an index of many photos can be another.
Rank = Callable[[torch.Tensor, int, int], tuple[np.ndarray, np.ndarray]]

RANKED_AT_ONCE = 256  # rows that are looked through for those of a category


@dataclass(frozen=True)
class Query:
    """What is looked for: photos of one thing, a description of it, or both."""

    photos: tuple[Path, ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Stage:
    """A model with its ranking of the gallery.

    Attributes:
        title: what a reader calls it, such as `Stage 2`.
        clip: the model.
        rank: the gallery's photos by their features of this model.
    """

    title: str
    clip: LoadedClip
    rank: Rank


@dataclass(frozen=True)
class Hit:
    """A photo that was found."""

    photo: Path
    item_id: str
    similarity: float
    prompt: str


@dataclass(frozen=True)
class Gallery:
    """The photos of a dataset that are searched.

    Attributes:
        name: of the dataset.
        photos: N files.
        item_ids: of each of them.
        categories: of each of them, from the widest to the narrowest; empty where nothing tells them.
        prompts: of an identity; empty where there are none.
        stages: what they are searched with.
        device: where the models are.
        max_megapixels: larger query photos are refused.
    """

    name: str
    photos: Sequence[Path]
    item_ids: Sequence[str]
    categories: Sequence[tuple[str, ...]]
    prompts: dict[str, str]
    stages: Sequence[Stage]
    device: torch.device
    max_megapixels: float
    # one query at a time: memory stays that of one, and encoding switches the model's mode
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def encode(self, query: Query, stage: int) -> torch.Tensor:
        """The query's direction in the space of a stage's model, (D,): the mean of its parts' unit directions.

        Raises:
            InputError: an empty query, or a photo that cannot be read; the message is for who asks.
        """
        if not query.photos and not query.text.strip():
            raise InputError("Give a photo, or type a description of what to find.")
        clip = self.stages[stage].clip
        with self._lock:
            parts = []
            if query.photos:
                pixels = [
                    read_query_photo(photo, clip.image_size, clip.resize_mode, self.max_megapixels)
                    for photo in query.photos
                ]
                parts.append(extract_features(clip, np.stack(pixels), self.device, quiet=True).cpu())
            if query.text.strip():
                parts.append(encode_texts(clip, [query.text.strip()], self.device))
        return torch.nn.functional.normalize(torch.cat(parts).mean(dim=0), dim=0)

    def nearest(
        self, vector: torch.Tensor, stage: int, k: int, offset: int = 0, category: tuple[str, ...] = ()
    ) -> list[Hit]:
        """The photos at the places `offset` to `offset + k` of a stage's ranking, best first; fewer at its end.

        Args:
            vector: (D,), of `encode` with the same stage.
            stage: which.
            k, offset: how many hits, and how many before them are left out.
            category: only photos of it, whatever narrower ones it has; empty: all.
        """
        rank = self.stages[stage].rank
        if category:
            ranked = islice(self._ranked_within(vector, rank, category), offset, offset + k)
        else:
            rows, similarities = rank(vector[None], k, offset)
            ranked = zip(rows[0].tolist(), similarities[0].tolist(), strict=True)
        return [self._hit(row, similarity) for row, similarity in ranked]

    def search(self, query: Query, stage: int, k: int, offset: int = 0, category: tuple[str, ...] = ()) -> list[Hit]:
        """`encode` and `nearest` in one."""
        return self.nearest(self.encode(query, stage), stage, k, offset, category)

    def known_categories(self) -> list[tuple[str, ...]]:
        """All categories that photos have, wide ones before the narrower ones within them."""
        return sorted({names[:depth] for names in self.categories for depth in range(1, len(names) + 1)})

    def is_cut(self, text: str, stage: int) -> bool:
        """Whether a stage's model reads only the beginning of a description."""
        return bool(token_counter(self.stages[stage].clip.tokenizer).num_cut({"": [text.strip()]}))

    def _ranked_within(
        self, vector: torch.Tensor, rank: Rank, category: tuple[str, ...]
    ) -> Iterator[tuple[int, float]]:
        for offset in range(0, len(self.photos), RANKED_AT_ONCE):
            rows, similarities = rank(vector[None], RANKED_AT_ONCE, offset)
            for row, similarity in zip(rows[0].tolist(), similarities[0].tolist(), strict=True):
                if self.categories[row][: len(category)] == category:
                    yield row, similarity

    def _hit(self, row: int, similarity: float) -> Hit:
        item_id = self.item_ids[row]
        return Hit(self.photos[row], item_id, similarity, self.prompts.get(item_id, ""))


def exact(features: torch.Tensor) -> Rank:
    """Rank by the cosine to every one of the features (N, D), unit rows; equal ones in the gallery's order."""

    def rank(vectors: torch.Tensor, k: int, offset: int) -> tuple[np.ndarray, np.ndarray]:
        similarities = (vectors.to(features.device) @ features.T).cpu()  # (Q, N)
        # the whole order, and a stable one: pages of equal photos neither overlap nor leave one out
        found = similarities.sort(dim=1, descending=True, stable=True)
        page = slice(offset, offset + k)
        return found.indices[:, page].numpy(), found.values[:, page].numpy()

    return rank


def folder_categories(images: Sequence[str], item_ids: Sequence[str]) -> list[tuple[str, ...]]:
    """The categories of each image, from the folders of its path: those that group identities.

    A level of folders is one where each identity lies in a single folder of it, there are several, and fewer than
    identities: `WOMEN` and `Dresses` of In-Shop; neither `train`, nor a folder an identity.
    """
    folders = [image.split("/")[:-1] for image in images]
    levels = []
    for level in range(min(map(len, folders), default=0)):
        pairs = {(item_id, names[level]) for item_id, names in zip(item_ids, folders, strict=True)}
        num_folders, num_identities = len({folder for _, folder in pairs}), len(set(item_ids))
        if len(pairs) == num_identities and 1 < num_folders < num_identities:
            levels.append(level)
    return [tuple(names[level] for level in levels) for names in folders]
