"""What stage 3 minimises: a sum of named terms on the image and text features of one batch.

Shapes: B photos, T prompts, D embedding, C train identities.

| term | on | from |
|---|---|---|
| supcon | images and texts as one set: all pairs of one identity are positives | Khosla et al. 2020 |
| infonce | each photo with its own prompt, other texts of other identities as negatives | Radford et al. 2021 |
| id | images: BNNeck, then label-smoothed cross entropy over the identities | Luo et al. 2019 |
"""

import torch
import torch.nn.functional as F
from torch import nn

from clipfh.core.errors import InputError
from clipfh.losses import BNNeckClassifier, identity_loss, info_nce_loss, supcon_loss

TERMS = ("supcon", "infonce", "id")


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
    if terms == ("id",):
        raise InputError("--loss id alone does not train the text encoder; add supcon or infonce")
    return terms


class JointLoss(nn.Module):
    """The sum of the chosen terms; holds the classifier that `id` learns.

    Args:
        terms: from `parse_terms`.
        dim: D.
        num_classes: C.
    """

    def __init__(self, terms: tuple[str, ...], dim: int, num_classes: int) -> None:
        super().__init__()
        self.terms = terms
        self.classifier = BNNeckClassifier(dim, num_classes) if "id" in terms else None

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
            else:
                raise ValueError(f"{term!r} is a term, but nothing computes it")
        return values
