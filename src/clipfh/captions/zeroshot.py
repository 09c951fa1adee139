"""Zero-shot classification: the name of each class in several templates is its classifier.

Shapes: N images, C classes, D embedding.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from clipfh.metrics.match_ranks import tie_tolerance

# Of the 80 templates of CLIP (Radford et al. 2021, section 3.1.4), those that fit photos and drawings of single things.
TEMPLATES = (
    "a photo of a {}",
    "a picture of a {}",
    "a photo of the {}",
    "a close-up photo of a {}",
    "a cropped photo of the {}",
    "a bright photo of a {}",
    "{}",
)
_TEXTS_AT_ONCE = 256  # of a text encoder: memory does not grow with the classes


def class_features(
    names: Sequence[str], encode: Callable[[Sequence[str]], torch.Tensor], templates: Sequence[str] = TEMPLATES
) -> torch.Tensor:
    """The mean direction of each class's prompts: (C, D) unit rows, on the CPU.

    Args:
        names: of the C classes, as words.
        encode: texts to unit-length features.
        templates: each with one `{}`.
    """
    at_once = max(1, _TEXTS_AT_ONCE // len(templates))  # names
    means = []
    for start in range(0, len(names), at_once):
        part = names[start : start + at_once]
        features = encode([template.format(name) for name in part for template in templates]).float().cpu()
        means.append(features.view(len(part), len(templates), -1).mean(dim=1))
    return F.normalize(torch.cat(means), dim=1)


def top_k_accuracy(
    image_features: torch.Tensor, classifiers: torch.Tensor, labels: Sequence[int], ks: Sequence[int] = (1, 5)
) -> dict[int, float]:
    """K to the share of images whose class is among the K most similar; a tied other class comes first.

    Ties are decided within the tolerance of `clipfh.metrics.match_ranks`.

    Args:
        image_features: (N, D) unit rows.
        classifiers: (C, D) unit rows, of `class_features`.
        labels: N classes as rows of `classifiers`.
        ks: how many classes may be named.
    """
    image_features = image_features.float()
    similarities = image_features @ classifiers.T  # (N, C)
    rows, columns = torch.arange(len(labels)), torch.tensor(labels)
    own = similarities[rows, columns].clone()
    similarities[rows, columns] = -torch.inf
    reached = own - tie_tolerance(image_features, classifiers)
    ranks = (similarities >= reached[:, None]).sum(dim=1) + 1
    return {k: float((ranks <= k).float().mean()) for k in ks}
