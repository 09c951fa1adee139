"""What stage 2 minimises: a weighted sum of named terms on the features of a P x K batch.

Shapes: B batch, D embedding, C train identities, T distinct texts, N train photos.

| term | on | from |
|---|---|---|
| triplet | unit features, batch-hard, margin 0.3 | Hermans et al. 2017 |
| center | unit features against one center an identity, which follows them | Wen et al. 2016 |
| id | BNNeck, then label-smoothed cross entropy over the identities | Luo et al. 2019 |
| i2t | unit features against the frozen text features of all identities | CLIP-ReID, Li et al. 2023 |
| supcon | unit features, every same-identity pair a positive | Khosla et al. 2020 |
| ms | unit features, the pairs that its miner picks | Wang et al. 2019 |
| distill | features against those that the first weights gave the same photos | Mukhoti et al. 2024 |
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from clipfh.core.errors import InputError
from clipfh.losses import (
    BNNeckClassifier,
    CenterLoss,
    batch_hard_triplet_loss,
    distillation_loss,
    identity_loss,
    image_to_text_loss,
    multi_similarity_loss,
    supcon_loss,
)

# The center term is small where features are unit vectors; 0.1 keeps it a regulariser beside the triplet term.
# ms has a slope of 1 where supcon has one of its logit scale. How much distill holds back, and how much words may ask
# of photos, are matters of the data: --distill_weight and --i2t_weight take their places.
WEIGHTS = {"triplet": 1.0, "center": 0.1, "id": 1.0, "i2t": 1.0, "supcon": 1.0, "ms": 10.0, "distill": 1.0}
TRIPLET_MARGIN = 0.3
SUPCON_LOGIT_SCALE = 10.0  # temperature 0.1
# best on Stanford Online Products in "A Metric Learning Reality Check" (Musgrave et al. 2020), values of its benchmark
MULTI_SIMILARITY = {"alpha": 15.94, "beta": 156.61, "base": 0.72, "epsilon": 0.34}


def parse_terms(loss: str, p: int, k: int) -> tuple[str, ...]:
    """`"triplet+center"` to `("triplet", "center")`.

    Raises:
        InputError: an unknown or repeated term (the valid ones are listed), one that is always zero on batches of
            P x K, or none that teaches anything.
    """
    terms = tuple(loss.split("+"))
    for term in terms:
        if term not in WEIGHTS:
            raise InputError(f"--loss {loss!r}: unknown term {term!r}; a loss is a sum of {', '.join(WEIGHTS)}")
    if len(set(terms)) < len(terms):
        raise InputError(f"--loss {loss!r} names a term twice")
    if k < 2 and not {"triplet", "supcon", "ms"}.isdisjoint(terms):
        raise InputError(
            f"--loss {loss}: triplet, supcon and ms compare photos of one identity; they need --k 2 or more"
        )
    if p < 2 and not {"triplet", "id", "ms"}.isdisjoint(terms):
        raise InputError(f"--loss {loss}: triplet, id and ms compare identities; they need --p 2 or more")
    if terms == ("distill",):
        raise InputError("--loss distill alone keeps the features as they are and teaches nothing; add other terms")
    return terms


class ImageEncoderLoss(nn.Module):
    """The sum of the chosen terms; holds the parameters that some of them learn (centers, classifier).

    Args:
        terms: from `parse_terms`.
        class_text_features: (C, D) unit text features of the train identities, from the frozen text encoder.
        same_text: (C,) integers, equal for identities whose prompts are the same text.
        keep_texts: the text features are part of the state, as what was learned may come out otherwise another time.
        num_photos: N, and
        distill_weight, i2t_weight: of these terms, where they are.

    Attributes:
        anchors: (N, D) of distill, to be filled with unit features by the first weights; None without the term. Part of
            the state: a run that is continued has other weights to begin with.
    """

    def __init__(
        self,
        terms: tuple[str, ...],
        class_text_features: torch.Tensor,
        same_text: torch.Tensor,
        *,
        keep_texts: bool = False,
        num_photos: int = 0,
        distill_weight: float = 1.0,
        i2t_weight: float = 1.0,
    ) -> None:
        super().__init__()
        C, D = class_text_features.shape
        self.terms = terms
        self.weights = {**WEIGHTS, "i2t": i2t_weight, "distill": distill_weight}
        self.register_buffer("anchors", torch.full((num_photos, D), torch.nan) if "distill" in terms else None)
        self.center = CenterLoss(C, D) if "center" in terms else None
        self.classifier = BNNeckClassifier(D, C) if "id" in terms else None
        # identities with the same text are one class of i2t, whichever of them the image shows
        _, first, text_of_class = np.unique(same_text.numpy(), return_index=True, return_inverse=True)
        self.register_buffer("text_features", class_text_features[first], persistent=keep_texts)  # (T, D)
        self.register_buffer("text_of_class", torch.from_numpy(text_of_class), persistent=False)  # (C,)

    def forward(
        self,
        features: torch.Tensor,
        labels: torch.Tensor,
        logit_scale: torch.Tensor,
        indices: Sequence[int] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Each term by name, weighted.

        Args:
            features: (B, D), as the encoder gives them.
            labels: (B,) in 0..C-1.
            logit_scale: 0-d, the inverse temperature.
            indices: B places of the photos among the N, which distill needs.
        """
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
            elif term == "ms":
                value = multi_similarity_loss(unit, labels, **MULTI_SIMILARITY)
            elif term == "distill":
                value = distillation_loss(unit, self.anchors[indices])
            else:
                raise ValueError(f"{term!r} has a weight, but nothing that computes it")
            values[term] = self.weights[term] * value
        return values

    def update_centers(self, features: torch.Tensor, labels: torch.Tensor, alpha: float) -> None:
        """Let the centers, where there are any, follow the features (B, D) of a batch at the rate `alpha`."""
        if self.center is not None:
            self.center.update(F.normalize(features.detach().float(), dim=1), labels, alpha)
