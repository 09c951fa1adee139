"""Text-to-image cross entropy over the photos of a batch. B: photos, D: embedding, T: texts."""

import torch.nn.functional as F
from torch import Tensor

from clipfh.losses.inputs import check_labelled_features, to_full_precision, without_autocast


def text_to_image_loss(
    text_features: Tensor, image_features: Tensor, labels: Tensor, logit_scale: float | Tensor
) -> Tensor:
    """Find the photos of each text among those of the batch: all of its photos are positives.

    With s(t, i) = logit_scale * text_t . image_i and P(t) the photos with label t:

        loss = mean over t with P(t) not empty of
               -1 / |P(t)| * sum over p in P(t) of  [ s(t, p) - log sum over all i of exp s(t, i) ]

    It is the other direction of `image_to_text_loss`, whose classes are the same texts.

    Args:
        text_features: (T, D), rows of unit length, any floating dtype; half precision is computed in float32.
        image_features: (B, D), likewise.
        labels: (B,), int64, the row of the text of each photo, 0 <= label < T.
        logit_scale: 1 / temperature, a number or a 0-d tensor, which then gets a gradient.

    Returns:
        A scalar, float32 (float64 for float64 features).

    Raises:
        ValueError: shapes do not fit.
        RuntimeError: a label outside 0..T-1 (on a GPU, a device-side assertion).

    Source: Li, Sun, Li 2023, "CLIP-ReID: Exploiting Vision-Language Model for Image Re-Identification without Concrete
    Text Labels", eq. 3 (L_t2i), there with a text for each photo, however many photos share it.
    """
    check_labelled_features(image_features, labels)
    if text_features.ndim != 2 or text_features.shape[1] != image_features.shape[1]:
        raise ValueError(f"text features must be (T, {image_features.shape[1]}), not {tuple(text_features.shape)}")
    image_features = to_full_precision(image_features)
    text_features = text_features.to(image_features.dtype)
    with without_autocast(image_features):
        logits_per_text = (text_features * logit_scale) @ image_features.T  # (T, B)
        is_positive = F.one_hot(labels, len(text_features)).T.to(logits_per_text.dtype)  # (T, B)
        num_positives = is_positive.sum(dim=1)  # (T,)
        losses = -(logits_per_text.log_softmax(dim=1) * is_positive).sum(dim=1) / num_positives.clamp(min=1)
        return losses.sum() / (num_positives > 0).sum()
