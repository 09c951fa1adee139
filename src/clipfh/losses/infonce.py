"""Symmetric image-text InfoNCE, CLIP's own loss. B: pairs, D: embedding."""

import torch
from torch import Tensor

from clipfh.losses.inputs import check_labelled_features, to_full_precision, without_autocast


def info_nce_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: float | Tensor, labels: Tensor | None = None
) -> Tensor:
    """Cross entropy of each image over the batch's texts, and of each text over its images, averaged.

    With s(i, j) = logit_scale * image_i . text_j:

        loss = 1/2 * mean over i of [ log sum over j of exp s(i, j) - s(i, i) ]
             + 1/2 * mean over j of [ log sum over i of exp s(i, j) - s(j, j) ]

    With `labels`, the pairs of one identity are not each other's negatives: s(i, j) with i != j and equal labels is
    left out of both sums (masked, not counted as a positive: each image keeps its own text as the one target).
    A batch of one pair has loss 0.

    Args:
        image_features: (B, D), rows of unit length, any floating dtype; half precision is computed in float32.
        text_features: (B, D), likewise; row i belongs to image i.
        logit_scale: 1 / temperature, a number or a 0-d tensor, which then gets a gradient.
        labels: (B,), integer identities, or None where every other pair is a negative.

    Returns:
        A scalar, float32 (float64 for float64 features).

    Raises:
        ValueError: shapes do not fit.

    Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3;
    van den Oord et al. 2018 for the name.
    """
    if image_features.shape != text_features.shape:
        raise ValueError(
            f"image features {tuple(image_features.shape)} and text features {tuple(text_features.shape)} "
            "must have one shape: row i of both is one pair"
        )
    if labels is None:
        labels = torch.arange(len(image_features), device=image_features.device)
    check_labelled_features(image_features, labels)
    image_features, text_features = to_full_precision(image_features), to_full_precision(text_features)
    with without_autocast(image_features):
        logits_per_image = (image_features * logit_scale) @ text_features.T  # (B, B)
        same = labels[:, None] == labels  # (B, B)
        same.fill_diagonal_(False)  # the pair itself stays
        logits_per_image = logits_per_image.masked_fill_(same, -torch.inf)
        own = logits_per_image.diagonal()  # (B,)
        over_texts = torch.logsumexp(logits_per_image, dim=1) - own
        over_images = torch.logsumexp(logits_per_image, dim=0) - own
        return 0.5 * (over_texts.mean() + over_images.mean())
