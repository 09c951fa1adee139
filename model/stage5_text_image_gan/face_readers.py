"""Image to text: the emotions that the first GAN reads in real faces, and those that its baselines read.

Shapes: N faces, E embedding.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from checkpoints import TrainedGenerator
from dataset import for_clip, signed_batches
from linear_probe import LinearProbe, fit_linear_probe
from sklearn.metrics import accuracy_score, classification_report

from clipfh.datasets.fer2013 import EMOTIONS, Faces
from clipfh.models.clip import LoadedClip, encode_texts


@dataclass(frozen=True)
class Readings:
    """What every reader finds in the same faces.

    Attributes:
        labels: (N,) the true emotions.
        found: (N,) those that the readers `generator`, `classifier`, `linear_probe` and `zero_shot_clip` find.
        probe: the one of `linear_probe`.
    """

    labels: np.ndarray
    found: dict[str, np.ndarray]
    probe: LinearProbe


def read_emotions(
    generator: TrainedGenerator,
    clip: LoadedClip,
    splits: dict[str, Faces],
    split: str,
    judged: np.ndarray,
    device: torch.device,
) -> Readings:
    """Read the faces of a split.

    Args:
        generator: of the first GAN.
        clip: that it was trained around.
        splits: the faces; the linear probe learns from `train`, `val` chooses how.
        split: which of them to read.
        judged: (N,) the emotions that the classifier of real faces finds in them.
        device: of the networks.
    """
    channels, faces = generator.recorded["settings"]["channels"], splits[split]
    features = {
        name: clip_features(clip, signed_batches(splits[name], channels, device)) for name in {"train", "val", split}
    }
    train, val = features["train"].numpy(), features["val"].numpy()
    probe = fit_linear_probe(train, splits["train"].labels, val, splits["val"].labels)
    found = {
        "generator": read_by_generator(generator, faces, device),
        "classifier": judged,
        "linear_probe": probe.model.predict(features[split].numpy()),
        "zero_shot_clip": read_zero_shot(features[split], generator, clip, device),
    }
    return Readings(faces.labels, found, probe)


@torch.inference_mode()
def clip_features(clip: LoadedClip, batches: Iterable[torch.Tensor]) -> torch.Tensor:
    """The unit image features (N, E) of batches of images in -1..1, on the CPU."""
    return torch.cat([clip.model.encode_image(for_clip(images, clip), normalize=True).cpu() for images in batches])


@torch.inference_mode()
def read_by_generator(generator: TrainedGenerator, faces: Faces, device: torch.device) -> np.ndarray:
    """The emotions (N,) whose captions are nearest to the embeddings that the first GAN makes of the faces."""
    batches = signed_batches(faces, generator.recorded["settings"]["channels"], device)
    return torch.cat([generator.space.nearest(generator.network(images))[0].cpu() for images in batches]).numpy()


def read_zero_shot(
    features: torch.Tensor, generator: TrainedGenerator, clip: LoadedClip, device: torch.device
) -> np.ndarray:
    """The emotions (N,) whose captions, on average, are nearest to CLIP's image features (N, E): no training at all."""
    space = generator.space
    captions = encode_texts(clip, [text for texts in space.captions for text in texts], device)
    prototypes = F.normalize(captions.view(len(EMOTIONS), -1, space.dim).mean(dim=1), dim=1)
    return (features @ prototypes.T).argmax(dim=1).numpy()


def reading_figures(readings: Readings) -> dict[str, Any]:
    """The accuracies of all readers, those of the generator by emotion too (its recalls)."""
    labels, found, probe = readings.labels, readings.found, readings.probe
    accuracies = {name: accuracy_score(labels, emotions) for name, emotions in found.items()}
    of_all = {"labels": range(len(EMOTIONS)), "target_names": EMOTIONS, "output_dict": True, "zero_division": 0}
    by_emotion = classification_report(labels, found["generator"], **of_all)
    return {
        "accuracy": accuracies["generator"],
        "chance": 1 / len(EMOTIONS),
        "zero_shot_clip": accuracies["zero_shot_clip"],
        **{f"accuracy_{emotion}": by_emotion[emotion]["recall"] for emotion in EMOTIONS},
        "classifier": accuracies["classifier"],
        "linear_probe": accuracies["linear_probe"],
        "linear_probe_C": probe.C,
        "linear_probe_standardised": probe.standardised,
        "linear_probe_val_accuracy": probe.val_accuracy,
    }
