"""What fine-tuning has kept of what the pretrained weights knew, and how far it has moved.

- The probe before and after, see `clipfh.evaluation.probe`.
- How alike the features of the same photos are before and after, see `clipfh.metrics.feature_similarity`.
- How far the image encoder's weights are from the pretrained ones, relative to these.

Shapes: N images, D embedding.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipfh.core.errors import InputError, shortened
from clipfh.core.paths import source_of
from clipfh.evaluation.measure import summary_row
from clipfh.evaluation.probe import Probe, ProbeFolder, zero_shot_probe
from clipfh.features.extraction import extract_features
from clipfh.features.store import saved_features
from clipfh.images.pixels import Pixels
from clipfh.metrics.feature_similarity import linear_cka
from clipfh.models.clip import LoadedClip, is_image_parameter, load_clip
from clipfh.models.pretrained import at_hand

MAX_COMPARED = 500  # photos whose features are compared
# Of fewer, CKA is noise: where it is 0.85 of 500 photos, draws of 20 of them give 0.79 to 0.90, draws of 8 give 0.68 to
# 0.94, and draws of 4 give -0.72 to 1.00.
FEWEST_COMPARED = 20


@dataclass(frozen=True)
class Moved:
    """How far a fine-tuned CLIP is from the pretrained weights that all fine-tuning began with.

    Attributes:
        start: those weights, as `--pretrained` names them.
        cka: linear CKA of the photos' features before and after, about 0 (unlike) to 1 (alike up to a rotation and a
            scale); None of fewer than `FEWEST_COMPARED` photos.
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


def first_clip(clip: LoadedClip, device: torch.device) -> LoadedClip | None:
    """`clip` as it was before any fine-tuning; None of one that was not, or whose first weights are not here.

    Nothing is downloaded: gigabytes would be too much for a figure that nobody asked for.
    """
    if clip.first_weights in ("", "random"):
        return None
    note = "note: what was kept of the pretrained weights is not measured: they"
    source = at_hand(clip.name, source_of(clip.first_weights))
    if source is None:
        print(
            f"{note} are {clip.first_weights}, which this machine does not have; evaluating stage 1 with --pretrained "
            f"{clip.first_weights} once fetches them"
        )
        return None
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
        print(f"{note} cannot be loaded from {clip.first_weights} ({shortened(error)})")
        return None
    return replace(start, mean=clip.mean, std=clip.std)  # as the photos are looked at, whatever the file's name tells


def weight_distance(start: LoadedClip, clip: LoadedClip) -> float:
    """|after - before| / |before| over all parameters of the image encoder."""
    before, after = (dict(model.model.named_parameters()) for model in (start, clip))
    names = [name for name in before if is_image_parameter(name)]
    change = sum(_squared(after[name] - before[name]) for name in names)
    return (change / sum(_squared(before[name]) for name in names)) ** 0.5


def _squared(values: torch.Tensor) -> float:
    """The sum of the squares, added up in float64, which MPS does not have."""
    return values.detach().cpu().double().square().sum().item()
