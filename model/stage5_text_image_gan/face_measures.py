"""Text to image: sets of faces, and what is measured of each against real ones. N, M: faces, F: features."""

from dataclasses import dataclass

import numpy as np
import torch
from captions import CaptionSpace
from checkpoints import TrainedGenerator
from dataset import signed_batches
from face_classifier import classified
from face_readers import clip_features
from generative_metrics import frechet_distance, kernel_distance
from networks import FaceClassifier

from clipfh.datasets.fer2013 import EMOTIONS, Faces
from clipfh.models.clip import LoadedClip, encode_texts

BATCH_SIZE = 256


@dataclass(frozen=True)
class FaceSet:
    """Images (N, C, S, S) in -1..1, on the CPU, and their emotions (N,): true ones, or those that were asked for."""

    images: torch.Tensor
    labels: np.ndarray


@dataclass(frozen=True)
class Judge:
    """The classifier, and what it sees in the real faces."""

    classifier: FaceClassifier
    features: np.ndarray  # (M, F)
    emotions: np.ndarray  # (M,) that it finds
    labels: np.ndarray  # (M,) the true ones


def face_set(faces: Faces, channels: int) -> FaceSet:
    """Real faces, all of a split."""
    return FaceSet(torch.cat(list(signed_batches(faces, channels, torch.device("cpu")))), faces.labels)


@torch.inference_mode()
def generate(generator: TrainedGenerator, labels: np.ndarray, seed: int, device: torch.device) -> FaceSet:
    """Faces of the emotions (N,), of captions and noise drawn anew."""
    torch.manual_seed(seed)
    parts = []
    for part in torch.from_numpy(labels).split(BATCH_SIZE):
        noise = torch.randn(len(part), generator.network.noise_dim).to(device)
        parts.append(generator.network(generator.space.draw(part.to(device), 0.0), noise).cpu())
    return FaceSet(torch.cat(parts), labels)


def measure_faces(faces: FaceSet, judge: Judge, device: torch.device) -> tuple[dict[str, float], np.ndarray]:
    """What is measured of a set of faces against the real ones, and the emotions (N,) that the judge finds in it."""
    batches = (part.to(device) for part in faces.images.split(BATCH_SIZE))
    features, emotions = classified(judge.classifier, batches)
    classes, labels = range(len(EMOTIONS)), faces.labels
    within = [kernel_distance(judge.features[judge.labels == c], features[labels == c]) for c in classes]
    pixels = faces.images.flatten(1).numpy() * 127.5  # grey levels
    means = np.stack([pixels[labels == c].mean(axis=0) for c in classes])
    apart = np.sqrt(np.square(means[:, None] - means[None]).mean(axis=2))  # (7, 7)
    figures = {
        "fid": frechet_distance(judge.features, features),
        "kid": kernel_distance(judge.features, features),
        "kid_within_emotion": float(np.mean(within)),
        "accuracy": float((emotions == labels).mean()),
        "diversity": float(np.mean([spread(features[labels == c]) for c in classes])),
        "diversity_pixels": float(np.mean([spread(pixels[labels == c]) for c in classes])),
        "mean_images_apart": float(apart[~np.eye(len(classes), dtype=bool)].min()),
    }
    return figures, emotions


def spread(vectors: np.ndarray) -> float:
    """The root mean square difference, a coordinate, of two different rows of (N, F): sqrt(2) standard deviations."""
    return float(np.sqrt(2 * vectors.var(axis=0, ddof=1).mean()))


def clip_similarity(faces: FaceSet, space: CaptionSpace, clip: LoadedClip, device: torch.device) -> float:
    """The mean cosine similarity of images to the first caption of their emotions, with plain CLIP."""
    captions = encode_texts(clip, [texts[0] for texts in space.captions], device)  # (7, E)
    features = clip_features(clip, (part.to(device) for part in faces.images.split(BATCH_SIZE)))
    return float((features * captions[torch.from_numpy(faces.labels)]).sum(dim=1).mean())
