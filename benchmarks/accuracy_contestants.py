"""How the peers of bench_accuracy.py train: batches, views, loss and optimiser as their own recipes have them.

A contestant takes the `Setting` and a learning rate, and returns the parts of its training. Samplers, miners and losses
are the libraries' own; CLIP-ReID is no package, so its loss is written here with ours. Where a value comes from:

| contestant | source |
|---|---|
| `oml_inshop` | OML-Team/open-metric-learning, pipelines/features_extraction/extractor_inshop/train_inshop.yaml |
| `oml_sop` | the same, extractor_sop/train_sop.yaml |
| `pml_example` | KevinMusgrave/pytorch-metric-learning, examples/notebooks/MetricLossOnly.ipynb |
| `pml_sop` | its author's KevinMusgrave/powerful-benchmarker: src/powerful_benchmarker/configs/, docs/papers/mlrc.md |
| `clip_reid` | Syliz517/CLIP-ReID, configs/person/cnn_clipreid.yml, loss/, datasets/make_dataloader_clipreid.py |

pytorch-metric-learning has no In-Shop recipe: these are its example of training with one loss, and the values that its
author found best on Stanford Online Products ("A Metric Learning Reality Check", Musgrave et al. 2020).

Changed, in all: the learning rate and whether batch norms keep their statistics (theirs are for other backbones, and
OML's have no batch norms; both are searched for), the size of the views (the same for all), mean and deviation of the
pixels (the backbone's), and single for half precision where the CPU has no fast one. Changed, in one: what its
docstring says.

Shapes: B batch, D features, F features before the projection, S size of a view, C train identities.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer, RMSprop

import clipfh.models.torchvision_guard  # noqa: F401  (before torchvision, which the peers import)
from clipfh.core.run import autocast
from clipfh.losses import BNNeckClassifier, batch_hard_triplet_loss, identity_loss, image_to_text_loss

from PIL import Image  # isort: skip
from torchvision import transforms as T  # isort: skip


@dataclass(frozen=True)
class Setting:
    """What is the same for all.

    Attributes:
        visual: the image tower, (B, 3, S, S) to (B, D), with its first weights.
        labels: of the train photos, integers 0..C-1.
        view_size: S.
        mean, std: of the backbone's normalisation.
        class_texts: (C, D) unit features of the identities' prompts.
        same_text: (C,) integers, equal for identities with the same prompts.
        logit_scale: of the CLIP, 1 / temperature.
    """

    visual: nn.Module
    labels: np.ndarray
    view_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    class_texts: Tensor
    same_text: Tensor
    logit_scale: float


@dataclass(frozen=True)
class Recipe:
    """The parts of a training.

    Attributes:
        batches: of an epoch, lists of B places among the train photos; iterated over again and again.
        view: a photo to a normalised view of it, (3, S, S).
        loss: (visual, views (B, 3, S, S), labels (B,)) to a scalar; the tower alone in mixed precision, where the CPU
            has a fast one, as in stage 2. Holds the parameters of its own that learn.
        optimizer: of the tower and of the loss's parameters.
        schedule: the factor on the learning rate after a share 0..1 of the training.
    """

    batches: Iterable[list[int]]
    view: Callable[[Image.Image], Tensor]
    loss: nn.Module
    optimizer: Optimizer
    schedule: Callable[[float], float] = lambda share: 1.0


# ---- open-metric-learning


def oml_inshop(setting: Setting, lr: float) -> Recipe:
    """Soft-margin triplets, the hardest of the batch, of features as they are; AdamW, no schedule.

    Changed: its sampler draws 30 identities of each of 5 categories on two GPUs; a prepared dataset has no categories,
    so it is OML's BalanceSampler with 16 x 4 photos, as many as ours. It is validated and tested by cosine, as all are;
    the original (`normalise_features: False`) by Euclidean distances of the features as they are.
    """
    from oml.losses.triplet import TripletLossWithMiner
    from oml.miners.inbatch_hard_tri import HardTripletsMiner

    loss = OnFeatures(TripletLossWithMiner(margin=None, miner=HardTripletsMiner(), reduction="mean"))
    return Recipe(
        batches=_oml_batches(setting),
        view=_oml_view(setting),
        loss=loss,
        optimizer=AdamW(setting.visual.parameters(), lr=lr, fused=True),  # its config gives the rate alone
    )


def oml_sop(setting: Setting, lr: float) -> Recipe:
    """Triplets with the margin 0.15, the hardest of the batch, of unit features; Adam, no schedule.

    Changed: the sampler, as in `oml_inshop` (there 32 x 6 photos of each of 3 categories).
    """
    from oml.losses.triplet import TripletLossWithMiner
    from oml.miners.inbatch_hard_tri import HardTripletsMiner

    triplets = TripletLossWithMiner(margin=0.15, miner=HardTripletsMiner(), reduction="mean")
    return Recipe(
        batches=_oml_batches(setting),
        view=_oml_view(setting),
        loss=OnFeatures(triplets, normalise=True),
        optimizer=Adam(setting.visual.parameters(), lr=lr, fused=True),
    )


def _oml_batches(setting: Setting) -> Iterable[list[int]]:
    from oml.samplers.balance import BalanceSampler

    return BalanceSampler(setting.labels, n_labels=min(16, len(setting.class_texts)), n_instances=4)


def _oml_view(setting: Setting) -> Callable[[Image.Image], Tensor]:
    from oml.transforms.images.torchvision import get_augs_hypvit

    return get_augs_hypvit(setting.view_size, mean=setting.mean, std=setting.std)


# ---- pytorch-metric-learning


def pml_example(setting: Setting, lr: float) -> Recipe:
    """Triplets with the margin 0.1 of what the multi-similarity miner picks; Adam with weight decay 1e-4, 8 x 4 photos.

    Changed: one learning rate. Its projection is new and learns ten times as fast as the trunk; here it is pretrained.
    """
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import MultiSimilarityMiner

    return Recipe(
        batches=_pml_batches(setting),
        view=_pml_view(setting),
        loss=OnMined(TripletMarginLoss(margin=0.1), MultiSimilarityMiner(epsilon=0.1)),
        optimizer=Adam(setting.visual.parameters(), lr=lr, weight_decay=1e-4, fused=True),
    )


def pml_sop(setting: Setting, lr: float) -> Recipe:
    """Multi-similarity loss and miner with the values best on SOP; RMSprop with momentum, 8 x 4 photos.

    Changed: the features have the tower's size, not 128.
    """
    from pytorch_metric_learning.losses import MultiSimilarityLoss
    from pytorch_metric_learning.miners import MultiSimilarityMiner

    loss = MultiSimilarityLoss(alpha=15.94, beta=156.61, base=0.72)
    return Recipe(
        batches=_pml_batches(setting),
        view=_pml_view(setting),
        loss=OnMined(loss, MultiSimilarityMiner(epsilon=0.34)),
        optimizer=RMSprop(setting.visual.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4),
    )


class _PmlBatches:
    """What a DataLoader with batches of 32 and PML's sampler of photos draws."""

    def __init__(self, labels: np.ndarray, batch_size: int) -> None:
        from pytorch_metric_learning.samplers import MPerClassSampler

        num_photos = max(len(labels), batch_size)
        self._sampler = MPerClassSampler(labels, m=4, batch_size=batch_size, length_before_new_iter=num_photos)
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[list[int]]:
        places = list(self._sampler)
        return (places[start : start + self._batch_size] for start in range(0, len(places), self._batch_size))


def _pml_batches(setting: Setting) -> Iterable[list[int]]:
    return _PmlBatches(setting.labels, batch_size=4 * min(8, len(setting.class_texts)))


def _pml_view(setting: Setting) -> Callable[[Image.Image], Tensor]:
    return T.Compose(
        [
            T.RandomResizedCrop(setting.view_size, scale=(0.16, 1), ratio=(0.75, 1.33)),
            T.RandomHorizontalFlip(0.5),
            T.ToTensor(),
            T.Normalize(setting.mean, setting.std),
        ]
    )


# ---- CLIP-ReID


def clip_reid(setting: Setting, lr: float) -> Recipe:
    """Batch-hard triplets, BNNeck classifiers, image to text; Adam, 16 x 4 photos, warm-up, two falls of the rate.

    The config for a convolutional network: all weights 1, biases twice as fast, weight decay 5e-4, of 120 epochs 10 of
    warm-up from a hundredth, a tenth of the rate from the 40th and a hundredth from the 70th on.

    Changed: its first stage learns words for each identity, which have no description there; here they have, and their
    prompts stand in, at no cost. Its image-to-text logits are bare products of features; here those are unit features,
    and the CLIP's logit scale is on the products. Its sampler is OML's BalanceSampler with its numbers. Triplets and
    classifiers are on the features before and behind the projection, not on those of the last block but one. It is
    tested on what the tower gives, as all are; the original puts both features side by side.
    """
    from timm.data.random_erasing import RandomErasing

    size = setting.view_size
    view = T.Compose(
        [
            T.Resize((size, size), interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(0.5),
            T.Pad(10),
            T.RandomCrop((size, size)),
            T.ToTensor(),
            T.Normalize(setting.mean, setting.std),
            RandomErasing(probability=0.5, mode="pixel", max_count=1, device="cpu"),
        ]
    )
    loss = ClipReidLoss(setting)
    learning = [(n, p) for module in (setting.visual, loss) for n, p in module.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in learning if "bias" not in name], "lr": lr},
        {"params": [p for name, p in learning if "bias" in name], "lr": 2 * lr},
    ]

    def schedule(share: float) -> float:
        warm_up = min(1.0, 0.01 + 0.99 * share * 120 / 10)
        return warm_up * (1.0 if share < 40 / 120 else 0.1 if share < 70 / 120 else 0.01)

    return Recipe(
        batches=_oml_batches(setting),
        view=view,
        loss=loss,
        optimizer=Adam(groups, weight_decay=5e-4, fused=True),
        schedule=schedule,
    )


class ClipReidLoss(nn.Module):
    """The sum of the terms of CLIP-ReID's second stage (Li et al. 2023): label smoothing 0.1, margin 0.3."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        C, D = setting.class_texts.shape
        self.before = BNNeckClassifier(setting.visual.trunk.num_features, C)
        self.behind = BNNeckClassifier(D, C)
        self.register_buffer("class_texts", setting.class_texts)
        self.register_buffer("same_text", setting.same_text)
        self.logit_scale = setting.logit_scale

    def forward(self, visual: nn.Module, views: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, see `Recipe`."""
        with autocast(views.device, "auto"):
            trunk_features = visual.trunk(views)  # (B, F)
            features = visual.head(trunk_features)  # (B, D)
        trunk_features, features = trunk_features.float(), features.float()
        loss = image_to_text_loss(
            F.normalize(features, dim=1), self.class_texts, labels, self.logit_scale,
            label_smoothing=0.1, same_text=self.same_text,
        )  # fmt: skip
        for classifier, part in ((self.before, trunk_features), (self.behind, features)):
            loss = loss + identity_loss(classifier(part)[1], labels, label_smoothing=0.1)
            loss = loss + batch_hard_triplet_loss(part, labels, margin=0.3)
        return loss


# ---- losses on the tower's features


class OnFeatures(nn.Module):
    """A library's loss of features and labels, of unit features where it says so."""

    def __init__(self, loss: nn.Module, *, normalise: bool = False) -> None:
        super().__init__()
        self.loss, self.normalise = loss, normalise

    def forward(self, visual: nn.Module, views: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, see `Recipe`."""
        with autocast(views.device, "auto"):
            features = visual(views)  # (B, D)
        features = features.float()
        return self.loss(F.normalize(features, dim=1) if self.normalise else features, labels)


class OnMined(nn.Module):
    """PML's loss of what its miner picks; both take the features' directions themselves."""

    def __init__(self, loss: nn.Module, miner: nn.Module) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, visual: nn.Module, views: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, see `Recipe`."""
        with autocast(views.device, "auto"):
            features = visual(views)  # (B, D)
        features = features.float()
        return self.loss(features, labels, self.miner(features, labels))


CONTESTANTS: dict[str, Callable[[Setting, float], Recipe]] = {
    "oml_inshop": oml_inshop,
    "oml_sop": oml_sop,
    "pml_example": pml_example,
    "pml_sop": pml_sop,
    "clip_reid": clip_reid,
}
