"""Whether clusters of the embedding are the identities: NMI and ARI of k-means, as metric-learning papers report them.

Shapes: N images, D embedding dimension, K identities.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score


class ClusteringFigures(NamedTuple):
    """How far clusters and identities agree.

    Attributes:
        nmi: mutual information over the mean of both entropies, 0 to 1. With many small identities a clustering by
            chance scores high already, so compare it between models on one dataset only.
        ari: Rand index corrected for chance: 0 by chance, 1 where clusters are the identities.
        num_clusters: K, the number of identities.
        num_images: N.
    """

    nmi: float
    ari: float
    num_clusters: int
    num_images: int

    def as_dict(self) -> dict[str, Any]:
        """For `metrics.json`; fractions."""
        return {"NMI": self.nmi, "ARI": self.ari, "num_clusters": self.num_clusters, "num_images": self.num_images}


def evaluate_clustering(
    features: torch.Tensor | np.ndarray, item_ids: Sequence[str] | np.ndarray, *, seed: int = 0
) -> ClusteringFigures:
    """Cluster the features by k-means with as many clusters as there are identities, and compare the two partitions.

    One start by k-means++ (Arthur and Vassilvitskii 2007) from `seed`; NMI and ARI (Hubert and Arabie 1985) by
    scikit-learn. Other processors may end in slightly other clusters.

    Args:
        features: (N, D), unit rows for cosine similarity.
        item_ids: (N,).
        seed: of the first centers.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    features = torch.as_tensor(features).float().cpu().numpy()  # scikit-learn computes on the CPU
    ids = np.unique(np.asarray(item_ids), return_inverse=True)[1]
    if features.ndim != 2 or len(features) != len(ids):
        raise ValueError(f"features of shape {features.shape} do not belong to {len(ids)} item ids")
    if not np.isfinite(features).all():
        raise ValueError("features hold NaN or infinity")
    num_clusters = int(ids.max()) + 1 if len(ids) else 0
    if len(np.unique(features, axis=0)) < num_clusters:  # k-means would warn: collapsed features have fewer clusters
        found = np.unique(features, axis=0, return_inverse=True)[1].ravel()
    else:
        found = KMeans(num_clusters, n_init=1, random_state=seed).fit_predict(features)
    nmi, ari = normalized_mutual_info_score(ids, found), adjusted_rand_score(ids, found)
    return ClusteringFigures(float(nmi), float(ari), num_clusters, len(ids))
