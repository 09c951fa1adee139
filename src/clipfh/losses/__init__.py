"""The losses of all stages: an idea a file, pure functions, and modules only where there are parameters.

They are plain mathematics on features and labels; a stage's own `loss.py` composes them into its objective.
"""

from clipfh.losses.center import CenterLoss
from clipfh.losses.classification import BNNeckClassifier, identity_loss
from clipfh.losses.distillation import distillation_loss
from clipfh.losses.image_to_text import image_to_text_loss
from clipfh.losses.infonce import info_nce_loss
from clipfh.losses.multi_similarity import multi_similarity_loss
from clipfh.losses.supcon import supcon_loss
from clipfh.losses.text_to_image import text_to_image_loss
from clipfh.losses.triplet import batch_hard_triplet_loss

__all__ = [
    "BNNeckClassifier",
    "CenterLoss",
    "batch_hard_triplet_loss",
    "distillation_loss",
    "identity_loss",
    "image_to_text_loss",
    "info_nce_loss",
    "multi_similarity_loss",
    "supcon_loss",
    "text_to_image_loss",
]
