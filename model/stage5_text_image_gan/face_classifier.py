"""The judge of the evaluation: an emotion classifier trained on real train faces, whose features FID and KID compare.

Shapes: B batch, N faces, F features.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from dataset import mirrored, signed_batches, to_signed
from diff_augment import diff_augment
from networks import FaceClassifier
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from clipfh.core.paths import display
from clipfh.core.run import autocast
from clipfh.datasets.fer2013 import EMOTIONS, Faces
from clipfh.models.checkpoint import read_checkpoint, write_checkpoint
from clipfh.training.sampler import RandomBatchSampler

VERSION = 2  # raise it when a change here changes the weights
EPOCHS, BATCH_SIZE, LR = 20, 64, 2e-3


def trained_classifier(
    splits: dict[str, Faces], channels: int, folder: Path, device: torch.device, *, epochs: int = EPOCHS
) -> FaceClassifier:
    """The classifier of these faces: from `folder` where it was trained before, else trained now and kept there.

    The test faces have no part in it: the epoch with the highest accuracy on val is kept.
    """
    train, val = splits["train"], splits["val"]
    size = train.image_size
    path = folder / f"face_classifier_{_digest(splits, channels, epochs)}.pth"
    torch.manual_seed(0)  # the judge of runs of any seed is the same
    classifier = FaceClassifier(len(EMOTIONS), size, channels).to(device, memory_format=torch.channels_last)
    if path.is_file():
        classifier.load_state_dict(read_checkpoint(path)["state_dict"])
        return classifier.eval()
    best: dict[str, Any] = {"accuracy": -1.0}
    sampler = RandomBatchSampler(len(train), min(BATCH_SIZE, len(train)), 0)
    optimizer = AdamW(classifier.parameters(), lr=LR, weight_decay=0.05)
    scheduler = OneCycleLR(optimizer, LR, total_steps=epochs * len(sampler))
    for epoch in range(1, epochs + 1):
        classifier.train()
        sampler.set_epoch(epoch)
        for rows in sampler:
            images = diff_augment(mirrored(to_signed(train[rows], channels, device)), ("translation",))
            labels = torch.from_numpy(train.labels[rows]).to(device)
            with autocast(device, "auto"):
                loss = F.cross_entropy(classifier(images).float(), labels, label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            scheduler.step()
        accuracy = classifier_accuracy(classifier, signed_batches(val, channels, device), val.labels)
        if accuracy > best["accuracy"]:
            weights = {name: value.clone() for name, value in classifier.state_dict().items()}
            best = {"accuracy": accuracy, "epoch": epoch, "state_dict": weights}
    write_checkpoint(path, {"stage": 5, **best})
    print(f"trained the classifier: val accuracy {best['accuracy']:.3f} in epoch {best['epoch']}; {display(path)}")
    classifier.load_state_dict(best["state_dict"])
    return classifier.eval()


def _digest(splits: dict[str, Faces], channels: int, epochs: int) -> str:
    digest = hashlib.sha256(f"{VERSION} {torch.__version__} {channels} {epochs} {EPOCHS} {LR} {BATCH_SIZE}".encode())
    for name in ("train", "val"):
        for image in splits[name]:
            digest.update(np.ascontiguousarray(image[..., 0]))
        digest.update(splits[name].labels.tobytes())
    return digest.hexdigest()[:12]


@torch.inference_mode()
def classified(classifier: FaceClassifier, batches) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, F) and predicted emotions (N,) of batches of images in -1..1."""
    classifier.eval()
    features, emotions = [], []
    for images in batches:
        found = classifier.features(images)
        features.append(found.float().cpu())
        emotions.append(classifier.last(found).argmax(dim=1).cpu())
    return torch.cat(features).numpy(), torch.cat(emotions).numpy()


def classifier_accuracy(classifier: FaceClassifier, batches, labels: np.ndarray) -> float:
    """The share of images whose predicted emotion is that of `labels` (N,)."""
    return float((classified(classifier, batches)[1] == labels).mean())
