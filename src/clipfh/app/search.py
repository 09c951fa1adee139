"""Find photos by a photo, by a description, or by both; with several models side by side.

What is searched may be a dataset in memory or an index of millions: it is known by its `Rank`, and nothing here holds
a value a photo. Shapes: N photos of the gallery, D embedding, K hits.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from PIL import Image

from clipfh.app.query_photo import placeholder, read_query_photo, small_copy
from clipfh.core.errors import InputError
from clipfh.core.values import leaves_root
from clipfh.features.extraction import extract_features
from clipfh.features.queries import query_direction
from clipfh.index.engine import Match
from clipfh.index.photos import PhotoSource
from clipfh.models.clip import LoadedClip, encode_texts
from clipfh.prompts.tokens import token_counter

Category = tuple[str, ...]  # from the widest to the narrowest; empty: all photos
# What ranks a gallery: a unit vector (D,), K and a category to the K nearest photos of the category, best first; fewer
# where there are no more. `exact` is one, an index is another.
Rank = Callable[[torch.Tensor, int, Category], list[Match]]


@dataclass(frozen=True)
class Query:
    """What is looked for: photos of one thing, a description of it, or both.

    Attributes:
        photos: files, or ids of the gallery's own photos.
        text: the description.
    """

    photos: tuple[Path | str, ...] = ()
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
    """A photo that was found, by its id: its path below the gallery's image root."""

    photo: str
    item_id: str
    similarity: float
    prompt: str


@dataclass(frozen=True)
class Gallery:
    """The photos that are searched.

    Attributes:
        name: of the dataset or the index.
        size: how many photos, for a reader.
        source: where the photos lie; None where nobody knows.
        categories: that can be chosen; not all of them where there are very many.
        prompts: of an identity; empty where there are none.
        stages: what they are searched with.
        device: where the models are.
        max_megapixels: larger query photos are refused.
    """

    name: str
    size: str
    source: PhotoSource | None
    categories: Sequence[Category]
    prompts: Mapping[str, str]
    stages: Sequence[Stage]
    device: torch.device
    max_megapixels: float
    # one query at a time: memory stays that of one, and encoding switches the model's mode
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def encode(self, query: Query, stage: int) -> torch.Tensor:
        """The query's direction in the space of a stage's model, (D,): see `query_direction`.

        Raises:
            InputError: an empty query, or a photo that cannot be read; the message is for who asks.
        """
        if not query.photos and not query.text.strip():
            raise InputError("Give a photo, or type a description of what to find.")
        clip = self.stages[stage].clip
        with self._lock:
            photos = text = None
            if query.photos:
                pixels = np.stack([self._pixels(photo, clip) for photo in query.photos])
                photos = extract_features(clip, pixels, self.device, quiet=True).cpu()
            if query.text.strip():
                text = encode_texts(clip, [query.text.strip()], self.device)[0].cpu()
        return query_direction(photos, text)

    def _pixels(self, photo: Path | str, clip: LoadedClip) -> np.ndarray:
        with self.local(photo) as path:
            return read_query_photo(path, clip.image_size, clip.resize_mode, self.max_megapixels)

    def nearest(
        self, vector: torch.Tensor, stage: int, k: int, category: Category = (), seen: Collection[str] = ()
    ) -> list[Hit]:
        """The K photos of a stage's ranking that come next after those that were seen, best first; fewer at its end.

        Args:
            vector: (D,), of `encode` with the same stage.
            stage: which.
            k: K.
            category: only photos of it, whatever narrower ones it has; empty: all.
            seen: ids of photos to leave out. They are asked for again, and not skipped by an offset: of equal photos
                an index may put another one first when it is asked for more.
        """
        with self._lock:  # a client of a database is not made for several threads
            found = self.stages[stage].rank(vector, k + len(seen), category)
        seen = set(seen)
        new = [match for match in found if match.id not in seen][:k]
        return [Hit(match.id, match.item_id, match.similarity, self.prompts.get(match.item_id, "")) for match in new]

    def search(self, query: Query, stage: int, k: int, category: Category = ()) -> list[Hit]:
        """`encode` and `nearest` in one."""
        return self.nearest(self.encode(query, stage), stage, k, category)

    def is_cut(self, text: str, stage: int) -> bool:
        """Whether a stage's model reads only the beginning of a description."""
        return bool(token_counter(self.stages[stage].clip.tokenizer).num_cut({"": [text.strip()]}))

    @contextmanager
    def local(self, photo: Path | str) -> Iterator[Path]:
        """A query's photo as a file: one that somebody has brought, or by its id one of the gallery.

        Raises:
            InputError: there is no such photo in the gallery, or it cannot be fetched.
        """
        if isinstance(photo, Path):
            yield photo
            return
        if self.source is None or leaves_root(photo):  # an id is what whoever made the index wrote
            raise InputError("Nobody has said where this photo lies.")
        try:
            with self.source.local(photo) as path:
                if not path.is_file():
                    raise FileNotFoundError(path)
                yield path
        except OSError as error:
            raise InputError("This photo is not there any more, and so cannot be searched with.") from error

    def small_copy(self, photo: str) -> Image.Image:
        """A photo of the gallery as a page shows it; a plain tile where it is gone or cannot be read."""
        try:
            with self.local(photo) as path:
                return small_copy(path)
        except Exception:  # a decoder raises anything; hits without their photos are of more use than none
            return placeholder()


def exact(
    features: torch.Tensor, images: Sequence[str], item_ids: Sequence[str], categories: Sequence[Category]
) -> Rank:
    """Rank by the cosine to every one of the features (N, D), unit rows; equal ones in the gallery's order.

    Args:
        features: (N, D).
        images, item_ids, categories: of each of them.
    """

    def rank(vector: torch.Tensor, k: int, category: Category) -> list[Match]:
        similarities = (features @ vector.to(features.device)).cpu()  # (N,)
        order = similarities.sort(descending=True, stable=True).indices.tolist()
        of_category = (row for row in order if categories[row][: len(category)] == category)
        return [Match(images[row], item_ids[row], float(similarities[row])) for row in islice(of_category, k)]

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


def known_categories(categories: Sequence[Category]) -> list[Category]:
    """All categories that photos have, wide ones before the narrower ones within them."""
    return sorted({names[:depth] for names in categories for depth in range(1, len(names) + 1)})
