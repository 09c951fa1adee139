"""What stage 3 minimises: a sum of named terms on the image and text features of one batch.

Shapes: B photos, T prompts, D embedding, C train identities; N photos and M distinct prompts of all of them.

| term | on | from |
|---|---|---|
| supcon | images and texts as one set: all pairs of one identity are positives | Khosla et al. 2020 |
| infonce | each photo with its own prompt, other texts of other identities as negatives | Radford et al. 2021 |
| id | images: BNNeck, then label-smoothed cross entropy over the identities | Luo et al. 2019 |
| distill | images and texts, each against what the first weights made of the same | Mukhoti et al. 2024 |
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from clipfh.core.errors import InputError
from clipfh.losses import BNNeckClassifier, distillation_loss, identity_loss, info_nce_loss, supcon_loss

TERMS = ("supcon", "infonce", "id", "distill")


def parse_terms(loss: str) -> tuple[str, ...]:
    """`"supcon+id"` to `("supcon", "id")`.

    Raises:
        InputError: an unknown or repeated term, or none that trains the text encoder.
    """
    terms = tuple(loss.split("+"))
    unknown = [term for term in terms if term not in TERMS]
    if unknown:
        raise InputError(f"--loss {loss!r}: unknown term {unknown[0]!r}; a loss is a sum of {', '.join(TERMS)}")
    if len(set(terms)) < len(terms):
        raise InputError(f"--loss {loss!r} names a term twice")
    if {"supcon", "infonce"}.isdisjoint(terms):
        raise InputError(f"--loss {loss} alone does not train the text encoder; add supcon or infonce")
    return terms


class JointLoss(nn.Module):
    """The sum of the chosen terms; holds the classifier that `id` learns.

    Args:
        terms: from `parse_terms`.
        dim: D.
        num_classes: C.
        num_photos, num_prompts: N and M, and
        distill_weight: of the term distill, where there is one.

    Attributes:
        image_anchors, text_anchors: (N, D) and (M, D) of distill, to be filled with unit features by the first weights;
            None without the term. Part of the state: a run that is continued has other weights to begin with.
    """

    def __init__(
        self,
        terms: tuple[str, ...],
        dim: int,
        num_classes: int,
        *,
        num_photos: int = 0,
        num_prompts: int = 0,
        distill_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.terms = terms
        self.classifier = BNNeckClassifier(dim, num_classes) if "id" in terms else None
        self.distill_weight = distill_weight
        for name, rows in (("image_anchors", num_photos), ("text_anchors", num_prompts)):
            self.register_buffer(name, torch.full((rows, dim), torch.nan) if "distill" in terms else None)

    def forward(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        image_labels: torch.Tensor,
        text_labels: torch.Tensor,
        prompt_of_image: torch.Tensor,
        image_groups: torch.Tensor,
        own_prompts: torch.Tensor,
        logit_scale: torch.Tensor,
        indices: Sequence[int] | None = None,
        prompt_rows: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Each term by name.

        Args:
            image_features, text_features: (B, D) and (T, D), as the encoders give them.
            image_labels, text_labels: (B,) and (T,) in 0..C-1.
            prompt_of_image: (B,) for each photo the row of one prompt of its identity.
            image_groups: (B,) equal for photos of one identity, and of identities with the same prompt: equal text is
                no negative.
            own_prompts: rows of the texts that belong to one identity of the batch alone. The others would be positives
                and negatives of the same photos: they are left out of supcon.
            logit_scale: 0-d, the inverse temperature.
            indices: B places of the photos among the N, and
            prompt_rows: (T,) of the prompts among the M, which distill needs.
        """
        images = F.normalize(image_features.float(), dim=1)
        texts = F.normalize(text_features.float(), dim=1)
        values = {}
        for term in self.terms:
            if term == "supcon":
                both = torch.cat([images, texts[own_prompts]])  # (B + T', D)
                labels = torch.cat([image_labels, text_labels[own_prompts]])
                values[term] = supcon_loss(both, labels, logit_scale)
            elif term == "infonce":
                values[term] = info_nce_loss(images, texts[prompt_of_image], logit_scale, image_groups)
            elif term == "id":
                values[term] = identity_loss(self.classifier(image_features.float())[1], image_labels)
            elif term == "distill":
                turned = distillation_loss(images, self.image_anchors[indices])
                turned = turned + distillation_loss(texts, self.text_anchors[prompt_rows])
                values[term] = self.distill_weight * turned
            else:
                raise ValueError(f"{term!r} is a term, but nothing computes it")
        return values
