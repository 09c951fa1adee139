"""What stage 2 minimises: a weighted sum of named terms on the features of a P x K batch.

Shapes: B batch, D embedding, C train identities, T distinct texts.

| term | on | from |
|---|---|---|
| triplet | unit features, batch-hard, margin 0.3 | Hermans et al. 2017 |
| center | unit features against one center an identity, which follows them | Wen et al. 2016 |
| id | BNNeck, then label-smoothed cross entropy over the identities | Luo et al. 2019 |
| i2t | unit features against the frozen prompt features of all identities | CLIP-ReID, Li et al. 2023 |
| supcon | unit features, every same-identity pair a positive | Khosla et al. 2020 |
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from clipfh.core.errors import InputError
from clipfh.losses import (
    BNNeckClassifier,
    CenterLoss,
    batch_hard_triplet_loss,
    identity_loss,
    image_to_text_loss,
    supcon_loss,
)

# The center term is small where features are unit vectors; 0.1 keeps it a regulariser beside the triplet term.
WEIGHTS = {"triplet": 1.0, "center": 0.1, "id": 1.0, "i2t": 1.0, "supcon": 1.0}
TRIPLET_MARGIN = 0.3
SUPCON_LOGIT_SCALE = 10.0  # temperature 0.1


def parse_terms(loss: str, p: int, k: int) -> tuple[str, ...]:
    """`"triplet+center"` to `("triplet", "center")`.

    Raises:
        InputError: an unknown or repeated term (the valid ones are listed), or one that is always zero on
            batches of P x K.
    """
    terms = tuple(loss.split("+"))
    for term in terms:
        if term not in WEIGHTS:
            raise InputError(f"--loss {loss!r}: unknown term {term!r}; a loss is a sum of {', '.join(WEIGHTS)}")
    if len(set(terms)) < len(terms):
        raise InputError(f"--loss {loss!r} names a term twice")
    if k < 2 and not {"triplet", "supcon"}.isdisjoint(terms):
        raise InputError(f"--loss {loss}: triplet and supcon compare photos of one identity; they need --k 2 or more")
    if p < 2 and not {"triplet", "id"}.isdisjoint(terms):
        raise InputError(f"--loss {loss}: triplet and id compare identities; they need --p 2 or more")
    return terms


class ImageEncoderLoss(nn.Module):
    """The sum of the chosen terms; holds the parameters that some of them learn (centers, classifier).

    Args:
        terms: from `parse_terms`.
        class_text_features: (C, D) unit prompt features of the train identities, from the frozen text encoder.
        same_text: (C,) integers, equal for identities whose prompts are the same text.
    """

    def __init__(self, terms: tuple[str, ...], class_text_features: torch.Tensor, same_text: torch.Tensor) -> None:
        super().__init__()
        C, D = class_text_features.shape
        self.terms = terms
        self.center = CenterLoss(C, D) if "center" in terms else None
        self.classifier = BNNeckClassifier(D, C) if "id" in terms else None
        # identities with the same text are one class of i2t, whichever of them the image shows
        _, first, text_of_class = np.unique(same_text.numpy(), return_index=True, return_inverse=True)
        self.register_buffer("text_features", class_text_features[first], persistent=False)  # (T, D)
        self.register_buffer("text_of_class", torch.from_numpy(text_of_class), persistent=False)  # (C,)

    def forward(
        self, features: torch.Tensor, labels: torch.Tensor, logit_scale: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Features as the encoder gives them (B, D), labels (B,) in 0..C-1: each term by name, weighted."""
        unit = F.normalize(features.float(), dim=1)
        values = {}
        for term in self.terms:
            if term == "triplet":
                value = batch_hard_triplet_loss(unit, labels, TRIPLET_MARGIN)
            elif term == "center":
                value = self.center(unit, labels)
            elif term == "id":
                value = identity_loss(self.classifier(features.float())[1], labels)
            elif term == "i2t":
                texts = self.text_of_class[labels]
                value = image_to_text_loss(unit, self.text_features, texts, logit_scale, label_smoothing=0.1)
            elif term == "supcon":
                value = supcon_loss(unit, labels, SUPCON_LOGIT_SCALE)
            else:
                raise ValueError(f"{term!r} has a weight, but nothing that computes it")
            values[term] = WEIGHTS[term] * value
        return values

    def update_centers(self, features: torch.Tensor, labels: torch.Tensor, alpha: float) -> None:
        """Let the centers, where there are any, follow the features (B, D) of a batch at the rate `alpha`."""
        if self.center is not None:
            self.center.update(F.normalize(features.detach().float(), dim=1), labels, alpha)
