"""The embedding as a map of photographs: near on the map means similar to the model.

Shapes: N images, D embedding dimension, M images on the map.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

MAX_PHOTOS = 400  # more would cover each other
MIN_PHOTOS = 8  # fewer show nothing that the rankings do not


@dataclass(frozen=True)
class EmbeddingMap:
    """Some photos and where they lie.

    Attributes:
        chosen: (M,) places among the N images, ascending.
        images, item_ids: (M,) of them.
        places: (M, 2) on the map.
        wrong: (M,) booleans: the most similar photo of the map is of another item.
    """

    chosen: np.ndarray
    images: list[str]
    item_ids: list[str]
    places: np.ndarray
    wrong: np.ndarray


def make_map(features: torch.Tensor, table: pd.DataFrame, *, exclude_same_camera: bool) -> EmbeddingMap | None:
    """The map of some test photos, or None where there are too few.

    Args:
        features: (N, D), unit rows.
        table: the N images; identities of one image are left out, as nothing could be near them.
        exclude_same_camera: photos of one identity from one camera are not compared, as the protocol says.
    """
    several = np.flatnonzero(table["item_id"].duplicated(keep=False))
    chosen = several[choose_photos(table["item_id"].to_numpy()[several])]
    if len(chosen) < MIN_PHOTOS:
        return None
    part = features[torch.from_numpy(chosen).to(features.device)].float().cpu()
    ids, cameras, images = (table[name].to_numpy()[chosen] for name in ("item_id", "camera", "image"))
    similarity = (part @ part.T).numpy()
    np.fill_diagonal(similarity, -np.inf)
    if exclude_same_camera:
        same = (ids[:, None] == ids) & (cameras[:, None] == cameras) & (cameras != "")
        similarity[same] = -np.inf
    wrong = ids != ids[similarity.argmax(axis=1)]
    return EmbeddingMap(chosen, images.tolist(), ids.tolist(), project(part.numpy()), wrong)


def choose_photos(item_ids: np.ndarray, most: int = MAX_PHOTOS) -> np.ndarray:
    """Whole identities, drawn by a fixed seed, that have at most `most` photos together: places, ascending."""
    names, identities = np.unique(item_ids, return_inverse=True)
    counts = np.bincount(identities, minlength=len(names))
    chosen, free = [], most
    for identity in np.random.default_rng(0).permutation(len(names)):
        if counts[identity] <= free:  # one that is too large does not end the search
            chosen.append(identity)
            free -= counts[identity]
    return np.flatnonzero(np.isin(identities, chosen))


def project(features: np.ndarray) -> np.ndarray:
    """Places (M, 2) by t-SNE (van der Maaten and Hinton 2008) of the 50 leading principal components."""
    M, D = features.shape
    components = PCA(min(50, M - 1, D), random_state=0).fit_transform(features)
    if np.ptp(components, axis=0).max() < 1e-6:  # collapsed: every photo lies in one place
        return np.zeros((M, 2))
    return TSNE(init="pca", perplexity=min(30.0, (M - 1) / 3), random_state=0).fit_transform(components)
