"""A probe that has nothing to do with the train identities: zero-shot classification, before and after fine-tuning.

The names of classes are the classifier (Radford et al. 2021). Of small-clip, ImageNet's 1,000 classes, whose rows of
the classifier that its image encoder was trained with stand for images: it sees the projection and the text encoder,
not the layers before them. Of any CLIP, a folder of the user's own photos, one folder a class, which sees all of it.

Shapes: C classes, D embedding.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from clipfh.captions.zeroshot import class_features
from clipfh.core.errors import InputError
from clipfh.core.paths import SMALL_MODEL, display, processed_dir
from clipfh.features.extraction import extract_features
from clipfh.images.photo_files import find_photos, meant_as_photos
from clipfh.images.pixels import load_pixels
from clipfh.metrics.retrieval import RetrievalFigures, evaluate_retrieval
from clipfh.models.clip import LoadedClip, encode_texts
from clipfh.models.parts import FEATURE_LENGTH, class_names, class_rows

TEMPLATES = ("a photo of a {}", "{}")


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
    classifiers = class_features(classes, lambda texts: encode_texts(clip, list(texts), device), TEMPLATES)  # (C, D)
    return Probe(name, evaluate_retrieval(features.cpu(), classifiers, words, classes))
