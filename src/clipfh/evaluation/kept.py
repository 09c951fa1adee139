"""What fine-tuning has kept of what the first weights knew, and how far it has moved.

- A probe that has nothing to do with the train identities: zero-shot classification, the names of classes being the
  classifier (Radford et al. 2021). Of small-clip, ImageNet's 1,000 classes, whose rows of the classifier that its image
  encoder was trained with stand for images: it sees the projection and the text encoder, not the layers before them. Of
  any CLIP, a folder of the user's own photos, one folder a class, which sees all of it.
- How alike the features of the same photos are before and after (linear CKA, Kornblith et al. 2019, section 3.3).
- How far the image encoder's weights are from the first ones, relative to these.

Shapes: N images, C classes, D embedding.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from clipfh.core.errors import InputError
from clipfh.core.paths import ROOT, SMALL_MODEL, display, processed_dir
from clipfh.evaluation.measure import summary_row
from clipfh.features.extraction import extract_features
from clipfh.images.photo_files import find_photos, meant_as_photos
from clipfh.images.pixels import load_pixels
from clipfh.metrics.retrieval import RetrievalFigures, evaluate_retrieval
from clipfh.models.clip import LoadedClip, encode_texts, is_image_parameter, load_clip
from clipfh.models.parts import FEATURE_LENGTH, class_names, class_rows

TEMPLATES = ("a photo of a {}", "{}")
MAX_COMPARED = 500  # photos whose features are compared: 896 dimensions need no more to a hundredth


@dataclass(frozen=True)
class Probe:
    """Zero-shot classification: `figures` with images as queries and the C class names as the gallery."""

    name: str
    figures: RetrievalFigures


@dataclass(frozen=True)
class Moved:
    """How far a fine-tuned CLIP is from its first weights.

    Attributes:
        start: the first weights, as `--pretrained` names them.
        cka: linear CKA of the photos' features before and after, 0..1; 1: alike up to a rotation and a scale.
        weights: |after - before| / |before| over the image encoder's parameters.
        probe: the probe before, where there is one.
    """

    start: str
    cka: float
    weights: float
    probe: Probe | None


@dataclass(frozen=True)
class Kept:
    """The probe and what is compared with the first weights; None where there is no probe, or nothing to compare with.

    `str()` is a line for the terminal.
    """

    probe: Probe | None
    moved: Moved | None
    seconds: float

    def rows(self) -> list[dict[str, Any]]:
        """For the summary."""
        return [summary_row(self.probe.figures, "probe", "", self.seconds)] if self.probe else []

    def as_dict(self) -> dict[str, Any] | None:
        """For `metrics.json`."""
        figures: dict[str, Any] = {}
        if self.probe:
            figures |= {"probe": self.probe.name, "top1": self.probe.figures.rank1, "top5": self.probe.figures.rank5}
        if self.moved:
            figures |= {"start": self.moved.start, "cka": self.moved.cka, "weight_distance": self.moved.weights}
        if self.moved and self.moved.probe:
            before = self.moved.probe.figures
            figures |= {"start_top1": before.rank1, "start_top5": before.rank5}
        return figures or None

    def __str__(self) -> str:
        parts = []
        if self.probe:
            before = f"{100 * self.moved.probe.figures.rank1:.1f} -> " if self.moved and self.moved.probe else ""
            parts.append(f"{before}{100 * self.probe.figures.rank1:.1f} top-1 on {self.probe.name}")
        if self.moved:
            far = f"features' CKA {self.moved.cka:.2f}, weights moved by {100 * self.moved.weights:.1f}%"
            parts.append(f"{far} since {self.moved.start}")
        return f"kept: {'; '.join(parts)}" if parts else ""


def measure_kept(
    clip: LoadedClip, folder: Path | None, pixels: np.ndarray, features: torch.Tensor, device: torch.device
) -> Kept:
    """The probe of `clip`, and what is kept of its first weights.

    Args:
        clip: on `device`.
        folder: of the probe, see `zero_shot_probe`.
        pixels: (N, S, S, 3) uint8 photos; at most `MAX_COMPARED` of them, evenly spread, are looked at.
        features: (N, D) of `clip`.

    Raises:
        InputError: as `zero_shot_probe`.
    """
    started = time.perf_counter()
    probe = zero_shot_probe(clip, folder, device)
    seconds = time.perf_counter() - started
    start = first_clip(clip, device)
    if start is None:
        return Kept(probe, None, seconds)
    places = np.unique(np.linspace(0, len(pixels) - 1, min(len(pixels), MAX_COMPARED)).astype(int))
    before = extract_features(start, pixels[places], device, quiet=True)
    cka = linear_cka(before, features[places])
    before_probe = zero_shot_probe(start, folder, device) if probe else None
    return Kept(probe, Moved(clip.first_weights, cka, weight_distance(start, clip), before_probe), seconds)


def zero_shot_probe(clip: LoadedClip, folder: Path | None, device: torch.device) -> Probe | None:
    """Classify the probe's images by the names of its classes; None of a CLIP that has none, without `folder`.

    Args:
        clip: on `device`.
        folder: with one folder of photos a class, called as the class is (`-` and `_` are spaces); at least two.

    Raises:
        InputError: `folder` is missing, has fewer than two classes, or an image that cannot be read.
    """
    if folder is not None:
        images, labels, num_left_out = _labelled_photos(folder)
        names = sorted(set(labels))
        cache = processed_dir("probe") / folder.resolve().name
        pixels = load_pixels(folder, images, clip.image_size, cache, resize_mode=clip.resize_mode)
        if pixels.unreadable:
            image, reason = pixels.unreadable[0]
            raise InputError(f"--probe {display(folder)}: {image} cannot be read ({reason})")
        features = extract_features(clip, pixels.array, device, quiet=True)
        name = f"{len(images):,} photos of {len(names):,} classes, {display(folder)}"
        name += f", {num_left_out:,} files left out" if num_left_out else ""
    elif clip.name == SMALL_MODEL:
        names = labels = class_names()
        with torch.inference_mode():
            rows = FEATURE_LENGTH * F.normalize(class_rows(), dim=1)
            features = F.normalize(clip.model.visual.head(rows.to(device)), dim=1)
        name = f"rows of ImageNet's {len(names):,} classes"
    else:
        return None
    words = [name.split(",")[0].replace("_", " ").replace("-", " ") for name in names]
    texts = [template.format(word) for word in words for template in TEMPLATES]
    classifiers = encode_texts(clip, texts, device).view(len(names), len(TEMPLATES), -1).mean(dim=1)  # (C, D)
    classifiers = F.normalize(classifiers, dim=1)
    return Probe(name, evaluate_retrieval(features.cpu(), classifiers, labels, names))


def _labelled_photos(folder: Path) -> tuple[list[str], list[str], int]:
    """Paths relative to `folder`, their classes, and how many files are of no class or cannot be used."""
    if not folder.is_dir():
        raise InputError(f"--probe {display(folder)} is no folder; it needs one folder of photos a class")
    images, left_out = find_photos(folder)
    labelled = [image for image in images if "/" in image]
    labels = [image.partition("/")[0] for image in labelled]
    if len(set(labels)) < 2:
        raise InputError(f"--probe {display(folder)} needs photos of two classes or more, in a folder each")
    return labelled, labels, len(images) - len(labelled) + len(meant_as_photos(left_out))


def first_clip(clip: LoadedClip, device: torch.device) -> LoadedClip | None:
    """`clip` as it was before any fine-tuning; None of one that was not fine-tuned, or whose first weights are gone."""
    source = clip.first_weights
    if source in ("", "random"):
        return None
    source = str(ROOT / source) if (ROOT / source).is_file() else source
    try:
        return load_clip(
            clip.name,
            source,
            image_size=clip.image_size,
            resize_mode=clip.resize_mode,
            quick_gelu=clip.quick_gelu,
            device=str(device),
        )
    except InputError as error:
        print(f"note: the weights that fine-tuning began with are not here: what was kept is not measured ({error})")
        return None


def linear_cka(before: torch.Tensor, after: torch.Tensor) -> float:
    """Linear CKA of features (N, D) and (N, E) of the same N images: 1 where they differ by a rotation and a scale.

        |Y^T X|^2 / (|X^T X| |Y^T Y|),  columns of X and Y centred, |.| the Frobenius norm

    0 where one of them is constant: nothing is left in common.
    """
    X, Y = ((features - features.mean(dim=0)).double() for features in (before, after))
    norms = torch.linalg.matrix_norm(X.T @ X) * torch.linalg.matrix_norm(Y.T @ Y)
    return float(torch.linalg.matrix_norm(Y.T @ X) ** 2 / norms) if norms > 0 else 0.0


def weight_distance(start: LoadedClip, clip: LoadedClip) -> float:
    """|after - before| / |before| over all parameters of the image encoder."""
    before, after = (dict(model.model.named_parameters()) for model in (start, clip))
    names = [name for name in before if is_image_parameter(name)]
    change = sum((after[name] - before[name]).detach().double().square().sum().item() for name in names)
    return (change / sum(before[name].detach().double().square().sum().item() for name in names)) ** 0.5
