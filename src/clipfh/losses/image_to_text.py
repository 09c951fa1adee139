"""Image-to-text cross entropy with prompts as the classes. B: batch, D: embedding, C: identities, T: distinct texts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clipfh.losses.inputs import check_labelled_features, to_full_precision, without_autocast


def image_to_text_loss(
    image_features: Tensor,
    class_text_features: Tensor,
    labels: Tensor,
    logit_scale: float | Tensor,
    *,
    label_smoothing: float = 0.0,
    same_text: Tensor | None = None,
) -> Tensor:
    """Classify images by the prompts of all identities: cross entropy over logit_scale * image . text_c.

        loss = mean over i of  -sum over c of q(c) * log softmax_c( logit_scale * image_i . text_c )

    q is 1 - e + e / C on the image's own identity and e / C elsewhere. Text features that are frozen (computed without
    gradient) act as a fixed classifier; where they carry a gradient, it flows.

    Two identities with the same prompt cannot be told apart by it. `same_text` merges them into one class, so that an
    image is not pushed away from its own words.

    Args:
        image_features: (B, D), rows of unit length, any floating dtype; half precision is computed in float32.
        class_text_features: (C, D), rows of unit length, row c for identity c.
        labels: (B,), int64 identities, 0 <= label < C.
        logit_scale: 1 / temperature, a number or a 0-d tensor, which then gets a gradient.
        label_smoothing: e, 0 <= e <= 1.
        same_text: (C,), integers, equal for identities with the same prompt; the features of the first of them stand
            for all. None: every identity is a class.

    Returns:
        A scalar, float32 (float64 for float64 features).

    Raises:
        ValueError: shapes do not fit.
        IndexError: a label outside 0..C-1 (on a GPU, a device-side assertion).

    Source: Li, Sun, Li 2023, "CLIP-ReID: Exploiting Vision-Language Model for Image Re-Identification without Concrete
    Text Labels", eq. 7 (L_i2tce).
    """
    check_labelled_features(image_features, labels)
    if class_text_features.ndim != 2 or class_text_features.shape[1] != image_features.shape[1]:
        raise ValueError(
            f"class text features must be (C, {image_features.shape[1]}), not {tuple(class_text_features.shape)}"
        )
    if same_text is not None:
        class_text_features, labels = _merge_same_texts(class_text_features, labels, same_text)
    image_features = to_full_precision(image_features)
    class_text_features = class_text_features.to(image_features.dtype)
    with without_autocast(image_features):
        logits_per_image = (image_features * logit_scale) @ class_text_features.T  # (B, C) or (B, T)
        return F.cross_entropy(logits_per_image, labels, label_smoothing=label_smoothing)


def _merge_same_texts(class_text_features: Tensor, labels: Tensor, same_text: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the first class of each text: its features (T, D), and the labels (B,) among the T texts."""
    num_classes = len(class_text_features)
    if same_text.shape != (num_classes,):
        raise ValueError(f"same_text must be ({num_classes},), one for each class, not {tuple(same_text.shape)}")
    texts, text_of_class = torch.unique(same_text, return_inverse=True)  # (T,), (C,)
    first_class = torch.full_like(texts, num_classes, dtype=torch.int64)
    classes = torch.arange(num_classes, device=same_text.device)
    first_class.scatter_reduce_(0, text_of_class, classes, "amin")
    return class_text_features[first_class], text_of_class[labels]
