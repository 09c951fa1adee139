"""One step of a stage in one process of several: `step_of_processes.py STAGE_FOLDER GRAD_CACHE_CHUNK OUT`.

The first process writes gradients, terms and what the step leaves in the objective to OUT.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from clipfh.core.processes import average_gradients, join, rank, same_everywhere
from clipfh.core.run import seed_everything
from clipfh.images.augment import Augmentation
from clipfh.images.pixels import Pixels
from clipfh.models.clip import load_clip
from clipfh.training.data import TrainPhotos

CPU = torch.device("cpu")
ITEMS, PHOTOS, P, K = 5, 3, 4, 2


def config(chunk: int) -> SimpleNamespace:
    """What the steps read of their stages' flags."""
    return SimpleNamespace(
        run=SimpleNamespace(precision="float32"),
        optimisation=SimpleNamespace(accumulate=1),
        center_lr=0.5,
        grad_cache_chunk=chunk,
    )


def train_photos(clip) -> TrainPhotos:
    images = [f"{item}/{photo}.jpg" for item in range(ITEMS) for photo in range(PHOTOS)]
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (len(images), clip.image_size, clip.image_size, 3), dtype=np.uint8)
    table = pd.DataFrame({"image": images, "item_id": [image[0] for image in images]})
    return TrainPhotos(table, Pixels(pixels, tuple(images), ()), Augmentation(erase=0.5), clip, CPU)


def step_of_stage2(clip, photos, chunk):
    from dataset import class_text_features, make_batches
    from loss import ImageEncoderLoss, parse_terms
    from train_clip_img_encoder_finetune import make_step

    terms = parse_terms("triplet+center+id+i2t+supcon+ms+distill", P, K)
    texts = class_text_features(clip, [[f"item {item}"] for item in photos.item_ids], CPU)
    objective = ImageEncoderLoss(terms, *texts, num_photos=len(photos.labels))
    objective.anchors.copy_(photos.features(clip))
    return objective, make_step(config(chunk), clip.model, objective), make_batches(photos, [indices(photos)], 0, 1)


def step_of_stage3(clip, photos, chunk):
    from dataset import TrainPairs
    from loss import JointLoss, parse_terms
    from train_clip_joint_encoders import make_step

    prompts = {
        item: [f"item {item}", f"number {item}"][: 1 + number % 2] for number, item in enumerate(photos.item_ids)
    }
    pairs = TrainPairs(photos, prompts, clip)
    dim = clip.model.text_projection.shape[1]
    objective = JointLoss(parse_terms("supcon+infonce+id"), dim, len(photos.item_ids))
    batches = [pairs.batch(indices(photos), 0, 1, 0, with_images=not chunk)]
    return objective, make_step(config(chunk), clip.model, pairs, objective), batches


def indices(photos) -> list[int]:
    """P x K photos."""
    return [int(place) for label in range(P) for place in np.flatnonzero(photos.labels == label)[:K]]


def main(folder: Path, chunk: int, out: Path) -> None:
    join(CPU)
    seed_everything(0, rank())  # other weights in each: those of the first one count
    clip = load_clip("tiny-vit", "random")
    same_everywhere([clip.model])
    photos = train_photos(clip)
    step_of = step_of_stage2 if "stage2" in folder.name else step_of_stage3
    objective, step, (batch,) = step_of(clip, photos, chunk)
    same_everywhere([objective])
    terms = step(batch)
    learning = {**dict(clip.model.named_parameters()), **dict(objective.named_parameters())}
    average_gradients(learning.values())
    if rank() == 0:
        gradients = {name: value.grad for name, value in learning.items() if value.grad is not None}
        torch.save({"terms": terms, "gradients": gradients, "buffers": dict(objective.named_buffers())}, out)


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])  # as for a script that lies there
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
