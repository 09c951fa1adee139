"""The embedding as a map of photographs: near on the map means similar to the model.

Shapes: N images, D embedding dimension, M images on the map.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from clipfh.reports.embedding_map import embedding_map_figure

MAX_PHOTOS = 400  # more would cover each other
MIN_PHOTOS = 8  # fewer show nothing that the rankings do not


def draw_map(
    run_dir: Path,
    image_dir: Path,
    features: torch.Tensor,
    table: pd.DataFrame,
    stage_name: str,
    *,
    exclude_same_camera: bool,
) -> list[tuple[Path, str]]:
    """Draw the map of some test photos: the picture with its caption, or nothing where there are too few photos.

    Args:
        run_dir: where the picture goes.
        image_dir: the image root.
        features: (N, D), unit rows.
        table: the N images; identities of one image are left out, as nothing could be near them.
        stage_name: for the title.
        exclude_same_camera: photos of one identity from one camera are not compared, as the protocol says.
    """
    several = np.flatnonzero(table["item_id"].duplicated(keep=False))
    chosen = several[choose_photos(table["item_id"].to_numpy()[several])]
    if len(chosen) < MIN_PHOTOS:
        return []
    part = features[torch.from_numpy(chosen).to(features.device)].float().cpu()
    ids, cameras, images = (table[name].to_numpy()[chosen] for name in ("item_id", "camera", "image"))
    similarity = (part @ part.T).numpy()
    np.fill_diagonal(similarity, -np.inf)
    if exclude_same_camera:
        same = (ids[:, None] == ids) & (cameras[:, None] == cameras) & (cameras != "")
        similarity[same] = -np.inf
    wrong = ids != ids[similarity.argmax(axis=1)]
    caption = f"map of {len(chosen)} test photos: near means similar"
    embedding_map_figure(
        run_dir / "map.png", image_dir, images.tolist(), project(part.numpy()), wrong, title=f"{stage_name}: {caption}"
    )
    return [(run_dir / "map.png", f"{caption}; red frames: the most similar of them is another item")]


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
