"""Symmetric image-text InfoNCE, CLIP's own loss. B: pairs, D: embedding."""

from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clipfh.losses.inputs import check_labelled_features, scale_like, to_full_precision, without_autocast
from clipfh.losses.tiles import LogitTiles, add_to_log_normaliser, blocks, softmax_both_ways


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

    The gradient is computed along with the loss, by tiles: the extra memory grows with B * D, never with B * B. It
    cannot be differentiated again (there is no second derivative).

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
    check_labelled_features(image_features, torch.arange(len(image_features)) if labels is None else labels)
    image_features, text_features = to_full_precision(image_features), to_full_precision(text_features)
    with without_autocast(image_features):
        return _InfoNCE.apply(image_features, text_features, scale_like(image_features, logit_scale), labels)


class _InfoNCE(torch.autograd.Function):
    """The loss with its gradient, that of two cross entropies over the same logits.

    With r_i = log sum over j of exp s(i, j) and c_j = log sum over i of exp s(i, j), over the pairs that count:

        loss             = 1/2B * sum over i of  [ r_i + c_i - 2 s(i, i) ]
        dloss/dimage_i   = logit_scale / 2B * [ sum over j of w(i, j) text_j   -  2 text_i ]
        dloss/dtext_j    = logit_scale / 2B * [ sum over i of w(i, j) image_i  -  2 image_j ]
        w(i, j)          = exp(s(i, j) - r_i) + exp(s(i, j) - c_j)

    The loss depends on logit_scale through the products s alone, as it does on the images, hence
    dloss/dlogit_scale = sum over i of image_i . dloss/dimage_i / logit_scale.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, texts: Tensor, scale: Tensor, labels: Tensor | None) -> Tensor:
        def leave_out_same_label(logits: Tensor, rows: slice, columns: slice) -> None:
            if labels is None:
                return
            same = labels[rows, None] == labels[columns]  # (R, C)
            if rows == columns:
                same.fill_diagonal_(False)  # the pair itself stays
            logits.masked_fill_(same, -torch.inf)

        tiles = LogitTiles(images, texts, scale, list(product(blocks(images), repeat=2)), leave_out_same_label)
        over_texts = images.new_full((len(images),), -torch.inf)  # r
        over_images, own = over_texts.clone(), over_texts.clone()  # c, s(i, i)
        for rows, columns, logits in tiles:
            add_to_log_normaliser(over_texts[rows], logits, dim=1)
            add_to_log_normaliser(over_images[columns], logits, dim=0)
            if rows == columns:
                own[rows] = logits.diagonal()
        loss = 0.5 * ((over_texts - own).mean() + (over_images - own).mean())
        if not any(ctx.needs_input_grad):
            return loss

        image_gradient, text_gradient = texts * -2.0, images * -2.0  # (B, D)
        for rows, columns, logits in tiles:
            weights = softmax_both_ways(logits, over_texts[rows], over_images[columns])
            image_gradient[rows].addmm_(weights, texts[columns])
            if ctx.needs_input_grad[1]:  # not for frozen texts
                text_gradient[columns].addmm_(weights.T, images[rows])
        scale_gradient = (images * image_gradient).sum() / (2 * len(images))
        to_mean = scale / (2 * len(images))
        ctx.save_for_backward(image_gradient.mul_(to_mean), text_gradient.mul_(to_mean), scale_gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        wanted = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)  # labels have none
        return *(grad_loss * gradient if needed else None for gradient, needed in wanted), None
