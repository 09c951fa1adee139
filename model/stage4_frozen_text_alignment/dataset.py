"""The captioned images of stage 4: the flags that name them, their pixels, their frozen text features, and batches.

Shapes: N images, T distinct captions, B batch, b rows of it of this process, D embedding, S image size, M most captions
of an image.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from clipfh.captions.preparation import DATASETS, prepare_captions
from clipfh.captions.table import CaptionDataset, CaptionedImage, index_captions
from clipfh.core.cli import option
from clipfh.core.errors import InputError
from clipfh.core.paths import processed_dir
from clipfh.core.processes import gather_rows, own_rows
from clipfh.features.extraction import usual_batch_size
from clipfh.features.texts import load_text_features
from clipfh.images.augment import Augmentation, augment, view_generator
from clipfh.images.pixels import load_pixels
from clipfh.images.transforms import to_float, to_input
from clipfh.models.frozen_text_clip import CLIP

C = TypeVar("C", bound="DataConfig")


@dataclass(frozen=True)
class DataConfig:
    """The flags that say which captioned images."""

    dataset: str = option("synthetic", "layout of the captions; synthetic: generated here", choices=DATASETS)
    data_root: Path | None = option(None, "folder of the raw dataset (not needed again once it is prepared)")
    name: str | None = option(None, "folder under metadata/ of the prepared captions (default: DATASET_captions)")
    num_train: int | None = option(None, "train images (default: all; synthetic 3,000; coco 16,000)", at_least=2)
    num_val: int | None = option(
        None, "images that choose BEST (default: those that the layout names so, else a part of train)", at_least=1
    )
    num_test: int | None = option(
        None, "held-out images (default: all; synthetic 500; coco 4,000 of val2014; flickr 1,000)", at_least=1
    )
    data_seed: int = option(0, "draws the subsets and the generated pictures", at_least=0)


def smaller(config: C) -> C:
    """The data of a smoke run, few images in a folder of their own."""
    sizes = {"num_train": config.num_train or 64, "num_val": config.num_val or 16, "num_test": config.num_test or 24}
    return replace(config, name=config.name or f"{config.dataset}_captions_smoke", **sizes)


def prepare(config: DataConfig, *, force: bool = False) -> CaptionDataset:
    """The prepared captions that the flags name; made where they are missing or made of other files or flags."""
    sizes = {"train": config.num_train, "val": config.num_val, "test": config.num_test}
    return prepare_captions(
        config.dataset, config.data_root, name=config.name, sizes=sizes, seed=config.data_seed, force=force
    )


class CaptionedPixels:
    """Decoded images of one split with the features of their captions.

    Args:
        data: the prepared captions.
        split: `train`, `val` or `test`.
        image_size: S.
        model: its text encoder is asked once for each distinct caption, and never again; its image encoder says how
            images are normalised.
        text_digest: what `model.text_encoder.digest()` gives.

    Attributes:
        images: the N images with their captions.
        texts: the T distinct captions.
        pixels: (N, S, S, 3) uint8, a memory map.
        text_features: (T, D) float32, a memory map.
        captions: (N, M) rows of `text_features`, -1 where an image has fewer than M.
        captions_of_image: the same without the -1.
        normalisation: mean and standard deviation, on 0..1 RGB.
    """

    def __init__(self, data: CaptionDataset, split: str, image_size: int, model: CLIP, text_digest: str) -> None:
        self.normalisation = model.image_encoder.mean, model.image_encoder.std
        self.images: list[CaptionedImage] = data.rows(split)
        if not self.images:
            raise InputError(f"{data.name} has no {split} images; prepare it again")
        cache_dir = processed_dir(data.name) / split
        decoded = load_pixels(
            data.image_dir,
            [image.image for image in self.images],
            image_size,
            cache_dir,
            resize_mode=data.resize_mode or model.image_encoder.resize_mode,
        )
        if decoded.unreadable:
            image, reason = decoded.unreadable[0]
            raise InputError(
                f"{len(decoded.unreadable)} images cannot be read any more, the first: {image} ({reason}). "
                "Prepare the captions again: prepare_captions.py --force"
            )
        self.pixels = decoded.array
        index = index_captions(self.images)
        self.texts, self.captions_of_image, self.captions = index.texts, index.of_image, index.padded()
        self.text_features = load_text_features(self.texts, model.text_encoder.encode, text_digest, cache_dir)


class Batch(NamedTuple):
    """What one step needs; text i was drawn at random from the captions of image i."""

    indices: list[int]
    images: torch.Tensor  # (b, 3, S, S)
    text_features: torch.Tensor  # (B + further, D)
    texts: torch.Tensor  # (B + further,) numbers of the drawn captions
    captions: torch.Tensor  # (B, M) numbers of all captions of each image


def make_batches(
    data: CaptionedPixels,
    sampler: Iterable[list[int]],
    augmentation: Augmentation,
    device: torch.device,
    *place: int,
    further: int = 0,
    size: int | None = None,
) -> Iterator[Batch]:
    """The batches of an epoch; `place` = (seed, epoch) decides which views and captions they hold.

    The views have `size` pixels, by default as many as the images.
    """
    mean, std = data.normalisation
    shape = (size, size) if size else None
    for number, indices in enumerate(sampler):
        generator, rows = view_generator(*place, number), own_rows(len(indices))
        images, part = to_float(data.pixels[indices[rows]], device), (len(indices), rows)
        views = augment(images, augmentation, generator, mean=mean, std=std, size=shape, part_of=part)
        yield Batch(indices, views, *draw_captions(data, indices, generator, device, further))


def draw_captions(
    data: CaptionedPixels, indices: list[int], generator: torch.Generator, device: torch.device, further: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One caption of each image, every one equally likely, then `further` ones of all captions, whosever they are.

    Returns:
        Features (B + further, D) and numbers (B + further,) of what was drawn; all captions' numbers of each image
        (B, M), -1 where it has fewer.
    """
    captions = data.captions[indices]  # (B, M)
    counts = (captions >= 0).sum(axis=1)
    places = (torch.rand(len(indices), generator=generator).numpy() * counts).astype(np.int64)
    texts = captions[np.arange(len(indices)), places]
    if further:
        drawn = torch.randperm(len(data.text_features), generator=generator)[:further].numpy()
        texts = np.concatenate([texts, drawn])
    features = torch.from_numpy(np.array(data.text_features[texts])).to(device)
    return features, torch.from_numpy(texts).to(device), torch.from_numpy(captions).to(device)


def encode_pixels(
    encoder: torch.nn.Module, data: CaptionedPixels, device: torch.device, *, batch_size: int | None = None
) -> torch.Tensor:
    """What `encoder` (an image encoder or its backbone) makes of whole images, in float32: (N, D) on the CPU.

    The processes of a run share the images.
    """
    was_training = encoder.training
    encoder.eval()
    pixels = data.pixels[own_rows(len(data.pixels))]
    batch_size, parts = batch_size or usual_batch_size(device), []
    for start in range(0, len(pixels), batch_size):
        with torch.inference_mode():
            images = to_input(pixels[start : start + batch_size], *data.normalisation, device)
            parts.append(encoder(images).float())
    encoder.train(was_training)
    own = torch.cat(parts).clone()  # made outside inference mode: may be used in autograd
    return gather_rows(own, len(data.pixels)).cpu()
