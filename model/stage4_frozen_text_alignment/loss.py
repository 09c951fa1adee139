"""What stage 4 minimises: symmetric InfoNCE in which no true caption of an image is its negative.

Shapes: B images, T texts (B, or more), D embedding, M most captions of an image.
"""

import torch
import torch.nn.functional as F


def is_caption_of(captions_of_image: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """Which of the batch's captions are true of which of its images.

    Args:
        captions_of_image: (B, M) the caption numbers of each image, -1 where it has fewer than M.
        texts: (T,) caption numbers; the first B were drawn for the images.

    Returns:
        (B, T) bool: row i, column j is whether text j is one of the captions of image i.
    """
    return (captions_of_image[:, :, None] == texts[None, None, :]).any(dim=1)


def caption_info_nce_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    logit_scale: torch.Tensor | float,
    is_caption: torch.Tensor,
) -> torch.Tensor:
    """Cross entropy of each image over the texts, and of each image's own text over the images, averaged.

        loss = 1/2 * mean over i of [ log sum over j of exp s(i, j) - s(i, i) ]
             + 1/2 * mean over j of [ log sum over i of exp s(i, j) - s(j, j) ]
    with s(i, j) = logit_scale * image_i . text_j

    A pair (i, j), i != j, whose text is a caption of the image is left out of both sums: it is neither a negative nor a
    second target. That the pair is told by the caption and not by the image matters where several images share some of
    their captions, as photos of one product do: photo A with {x, y} and photo B with {y, z} keep (A, z) as a negative.
    A library loss with one label an image cannot say that. A batch of one pair has loss 0.

    Args:
        image_features: (B, D) unit rows, float32.
        text_features: (T, D) unit rows; row i < B was drawn for image i. Further rows are negatives of the images: of
            frozen texts whose features are at hand, each costs a row of one product.
        logit_scale: 1 / temperature.
        is_caption: (B, T) bool, of `is_caption_of`.

    Returns:
        A scalar.

    Source: Radford et al. 2021, figure 3; van den Oord et al. 2018 for the name.
    """
    B, T = is_caption.shape
    logits = logit_scale * image_features @ text_features.T  # (B, T)
    others = is_caption & ~torch.eye(B, T, dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(others, -torch.inf)
    target = torch.arange(B, device=logits.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, :B].T, target))
