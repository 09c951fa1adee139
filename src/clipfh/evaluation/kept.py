"""What fine-tuning has kept of what the pretrained weights knew, and how far it has moved.

- A probe that has nothing to do with the train identities: zero-shot classification, the names of classes being the
  classifier (Radford et al. 2021). Of small-clip, ImageNet's 1,000 classes, whose rows of the classifier that its image
  encoder was trained with stand for images: it sees the projection and the text encoder, not the layers before them. Of
  any CLIP, a folder of the user's own photos, one folder a class, which sees all of it.
- How alike the features of the same photos are before and after: linear CKA (Kornblith et al. 2019, section 3.3) with
  the unbiased estimator of its terms (Song et al. 2012), as few photos would feign likeness.
- How far the image encoder's weights are from the pretrained ones, relative to these.

Shapes: N images, C classes, D embedding.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from clipfh.core.errors import InputError, shortened
from clipfh.core.paths import ROOT, SMALL_MODEL, display, processed_dir
from clipfh.evaluation.measure import summary_row
from clipfh.features.extraction import extract_features
from clipfh.features.store import saved_features
from clipfh.images.photo_files import find_photos, meant_as_photos
from clipfh.images.pixels import Pixels, load_pixels
from clipfh.metrics.retrieval import RetrievalFigures, evaluate_retrieval
from clipfh.models.clip import LoadedClip, encode_texts, is_image_parameter, load_clip
from clipfh.models.parts import FEATURE_LENGTH, class_names, class_rows

TEMPLATES = ("a photo of a {}", "{}")
FEWEST_COMPARED = 4  # that the estimator of CKA is defined of
MAX_COMPARED = 500  # photos whose features are compared


@dataclass(frozen=True)
class ProbeFolder:
    """The user's own probe: `images` below `root` with the `labels` of their classes."""

    root: Path
    images: list[str]
    labels: list[str]
    num_left_out: int

    def __str__(self) -> str:
        left_out = f", {self.num_left_out:,} files left out" if self.num_left_out else ""
        return f"{len(self.images):,} photos of {len(set(self.labels)):,} classes, {display(self.root)}{left_out}"


def find_probe(folder: Path | None) -> ProbeFolder | None:
    """The photos of a probe: one folder of them a class, called as the class is; at least two classes.

    Raises:
        InputError: `folder` is missing, or has fewer than two classes.
    """
    if folder is None:
        return None
    if not folder.is_dir():
        raise InputError(f"--probe {display(folder)} is no folder; it needs one folder of photos a class")
    images, left_out = find_photos(folder)
    labelled = [image for image in images if "/" in image]
    labels = [image.partition("/")[0] for image in labelled]
    if len(set(labels)) < 2:
        raise InputError(f"--probe {display(folder)} needs photos of two classes or more, in a folder each")
    return ProbeFolder(folder, labelled, labels, len(images) - len(labelled) + len(meant_as_photos(left_out)))


@dataclass(frozen=True)
class Probe:
    """Zero-shot classification: `figures` with images as queries and the C class names as the gallery."""

    name: str
    figures: RetrievalFigures


@dataclass(frozen=True)
class Moved:
    """How far a fine-tuned CLIP is from the pretrained weights that all fine-tuning began with.

    Attributes:
        start: those weights, as `--pretrained` names them.
        cka: linear CKA of the photos' features before and after, about 0 (unlike) to 1 (alike up to a rotation and a
            scale); None of fewer than 4 photos.
        num_photos: that it is of.
        weights: |after - before| / |before| over the image encoder's parameters.
        probe: the probe before, where there is one.
    """

    start: str
    cka: float | None
    num_photos: int
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
        return [summary_row(self.probe.figures, "probe", "", self.seconds, self.probe.name)] if self.probe else []

    def as_dict(self) -> dict[str, Any] | None:
        """For `metrics.json`."""
        figures: dict[str, Any] = {}
        if self.probe:
            figures |= {"probe": self.probe.name, "top1": self.probe.figures.rank1, "top5": self.probe.figures.rank5}
        if self.moved:
            figures |= {"start": self.moved.start, "weight_distance": self.moved.weights}
            figures |= {"cka": self.moved.cka, "cka_photos": self.moved.num_photos}
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
            alike = "" if self.moved.cka is None else f"CKA {self.moved.cka:.2f} ({self.moved.num_photos:,} photos), "
            parts.append(f"{alike}weights moved by {100 * self.moved.weights:.1f}% since {self.moved.start}")
        return f"kept: {'; '.join(parts)}" if parts else ""


def measure_kept(
    clip: LoadedClip,
    folder: ProbeFolder | None,
    pixels: Pixels,
    features: torch.Tensor,
    device: torch.device,
    features_dir: Path,
) -> Kept:
    """The probe of `clip`, and what is kept of the pretrained weights.

    Args:
        clip: on `device`.
        folder: of the probe, see `zero_shot_probe`.
        pixels: N photos; at most `MAX_COMPARED` of them, evenly spread, are compared.
        features: (N, D) of `clip`.
        features_dir: where features are saved: those of the pretrained weights are taken from there, if stage 1 left
            some.

    Raises:
        InputError: an image of the probe cannot be read.
    """
    started = time.perf_counter()
    probe = zero_shot_probe(clip, folder, device)
    seconds = time.perf_counter() - started
    start = first_clip(clip, device)
    if start is None:
        return Kept(probe, None, seconds)
    places = np.unique(np.linspace(0, len(features) - 1, min(len(features), MAX_COMPARED)).astype(int))
    saved = saved_features(start, pixels, device, features_dir)
    before = extract_features(start, pixels.array[places], device, quiet=True) if saved is None else saved[places]
    cka = linear_cka(before, features[places]) if len(places) >= FEWEST_COMPARED else None
    before_probe = zero_shot_probe(start, folder, device) if probe else None
    moved = Moved(clip.first_weights, cka, len(places), weight_distance(start, clip), before_probe)
    return Kept(probe, moved, seconds)


def zero_shot_probe(clip: LoadedClip, folder: ProbeFolder | None, device: torch.device) -> Probe | None:
    """Classify the probe's images by the names of its classes; None of a CLIP that has none, without `folder`.

    Args:
        clip: on `device`.
        folder: the user's own; `-` and `_` in a class's name are spaces.

    Raises:
        InputError: an image that cannot be read.
    """
    if folder is not None:
        words = [label.replace("_", " ").replace("-", " ") for label in folder.labels]
        cache = processed_dir("probe") / folder.root.resolve().name
        pixels = load_pixels(folder.root, folder.images, clip.image_size, cache, resize_mode=clip.resize_mode)
        if pixels.unreadable:
            image, reason = pixels.unreadable[0]
            raise InputError(
                f"--probe {display(folder.root)}: {image} cannot be read ({reason}); mend it or move it away"
            )
        features = extract_features(clip, pixels.array, device, quiet=True)
        name = str(folder)
    elif clip.name == SMALL_MODEL:
        words = [names.split(",")[0] for names in class_names()]  # two names stand for two classes: either is right
        with torch.inference_mode():
            rows = FEATURE_LENGTH * F.normalize(class_rows(), dim=1)
            features = F.normalize(clip.model.visual.head(rows.to(device)), dim=1)
        name = f"rows of ImageNet's {len(words):,} classes"
    else:
        return None
    classes = sorted(set(words))
    texts = [template.format(word) for word in classes for template in TEMPLATES]
    classifiers = encode_texts(clip, texts, device).view(len(classes), len(TEMPLATES), -1).mean(dim=1)  # (C, D)
    return Probe(name, evaluate_retrieval(features.cpu(), F.normalize(classifiers, dim=1), words, classes))


def first_clip(clip: LoadedClip, device: torch.device) -> LoadedClip | None:
    """`clip` as it was before any fine-tuning; None of one that was not fine-tuned, or whose first weights are gone."""
    source = clip.first_weights
    if source in ("", "random"):
        return None
    source = str(ROOT / source) if (ROOT / source).is_file() else source
    try:
        start = load_clip(
            clip.name,
            source,
            image_size=clip.image_size,
            resize_mode=clip.resize_mode,
            quick_gelu=clip.quick_gelu,
            device=str(device),
        )
    except InputError as error:
        print(
            f"note: what was kept of the pretrained weights is not measured: they cannot be loaded from "
            f"{clip.first_weights} ({shortened(error)})"
        )
        return None
    return replace(start, mean=clip.mean, std=clip.std)  # as the photos are looked at, whatever the file's name tells


def linear_cka(before: torch.Tensor, after: torch.Tensor) -> float:
    """Linear CKA of features (N, D) and (N, E) of the same N images: 1 where they differ by a rotation and a scale.

        HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),  K = X X^T, L = Y Y^T

    with the unbiased estimator of HSIC (Song et al. 2012, eq. 5), so that independent features give about 0 however few
    images there are. 0 where one of them is constant: nothing is left in common.

    Raises:
        ValueError: fewer than 4 images.
    """
    if len(before) < FEWEST_COMPARED:
        raise ValueError(f"{len(before)} images; the estimator needs {FEWEST_COMPARED}")
    K, L = (features.double() @ features.double().T for features in (before - before.mean(0), after - after.mean(0)))
    own = _hsic(K, K) * _hsic(L, L)
    return _hsic(K, L) / own**0.5 if own > 0 else 0.0


def _hsic(K: torch.Tensor, L: torch.Tensor) -> float:
    """The unbiased estimate from two kernels (N, N), up to a factor of N."""
    N = len(K)
    K, L = (kernel - kernel.diag().diag() for kernel in (K, L))
    trace, sums = (K * L).sum(), K.sum() * L.sum() / ((N - 1) * (N - 2))
    return float(trace + sums - 2 / (N - 2) * (K.sum(dim=0) @ L.sum(dim=0)))


def weight_distance(start: LoadedClip, clip: LoadedClip) -> float:
    """|after - before| / |before| over all parameters of the image encoder."""
    before, after = (dict(model.model.named_parameters()) for model in (start, clip))
    names = [name for name in before if is_image_parameter(name)]
    change = sum((after[name] - before[name]).detach().double().square().sum().item() for name in names)
    return (change / sum(before[name].detach().double().square().sum().item() for name in names)) ** 0.5
