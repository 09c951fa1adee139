"""The train photos and prompts of stage 3, as batches.

Shapes: B photos, T prompts of a batch, U distinct ones of them, b and u rows of this process, S image size, L context
length, C train identities.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from clipfh.core.processes import own_rows
from clipfh.images.augment import view_generator
from clipfh.models.clip import LoadedClip
from clipfh.training.data import TrainPhotos


class Batch(NamedTuple):
    """What one step needs."""

    indices: list[int]  # B, of the photos
    place: tuple[int, ...]  # of the batch in the run, which decides what is drawn for it
    images: torch.Tensor | None  # (b, 3, S, S); None where they come by the chunk
    tokens: torch.Tensor  # (u, L)
    num_texts: int  # U
    token_row: torch.Tensor  # (T,) the row of each prompt among the U: two identities may have the same one
    prompt_rows: torch.Tensor  # (T,) the place of each prompt in `TrainPairs.prompts`
    image_labels: torch.Tensor  # (B,)
    text_labels: torch.Tensor  # (T,)
    prompt_of_image: torch.Tensor  # (B,) one of the T prompts, of the same identity
    image_groups: torch.Tensor  # (B,) equal for photos whose identities are the same, or share a prompt in this batch
    own_prompts: torch.Tensor  # places of the T prompts whose words stand for one identity of this batch alone


class TrainPairs:
    """Train photos, and the tokenised prompts of their identities.

    A prompt is in a batch once, however many of its photos are; an identity with several prompts contributes up to as
    many different ones as it has photos there.

    Args:
        photos: of C identities.
        prompts: {item_id: one or more prompts}.
        clip: whose tokenizer reads them.

    Attributes:
        prompts: the distinct ones of all identities.
    """

    def __init__(self, photos: TrainPhotos, prompts: dict[str, list[str]], clip: LoadedClip) -> None:
        self.photos = photos
        self.prompts = list(dict.fromkeys(prompt for item_id in photos.item_ids for prompt in prompts[item_id]))
        row = {prompt: number for number, prompt in enumerate(self.prompts)}
        self._tokens = clip.tokenizer(self.prompts)  # (distinct prompts, L)
        self._rows = [[row[prompt] for prompt in prompts[item_id]] for item_id in photos.item_ids]  # of each identity

    def say_what_prompts_tell_apart(self) -> str | None:
        """A line for the log where prompts of different identities are the same words; None where none are."""
        owners = Counter(row for rows in self._rows for row in set(rows))
        without = sum(all(owners[row] > 1 for row in rows) for rows in self._rows)
        if len(self._rows) > 1 and len(owners) == 1:
            return f"all {len(self._rows):,} identities have the same prompt: text cannot teach what tells them apart"
        if without:
            return (
                f"{without:,} of {len(self._rows):,} identities have no prompt of their own: equal words are no "
                "negatives, and leave supcon in batches where they stand for several"
            )
        return None

    def batches(self, sampler: Iterable[list[int]], *place: int, with_images: bool = True) -> Iterator[Batch]:
        """The batches of an epoch; `place` = (seed, epoch) decides what is drawn for them."""
        for number, indices in enumerate(sampler):
            yield self.batch(indices, *place, number, with_images=with_images)

    def batch(self, indices: list[int], *place: int, with_images: bool = True) -> Batch:
        """The photos `indices`, with prompts of their identities; `place` decides which views and prompts."""
        generator, device = view_generator(*place), self.photos.device
        images = self.photos.views(indices, generator, own_rows(len(indices))) if with_images else None
        labels = self.photos.labels[indices]
        rows, text_labels, prompt_of_image = [], [], np.empty(len(labels), dtype=np.int64)
        for label in dict.fromkeys(labels.tolist()):  # in order of appearance
            places = np.flatnonzero(labels == label)
            available = self._rows[label]
            if len(available) > 1:
                order = torch.randperm(len(available), generator=generator)[: len(places)].tolist()
                available = [available[number] for number in order]
            prompt_of_image[places] = len(rows) + np.arange(len(places)) % len(available)
            rows += available
            text_labels += [label] * len(available)
        distinct, token_row = np.unique(rows, return_inverse=True)
        group_of, owners = _groups(text_labels, rows)
        own = [place for place, row in enumerate(rows) if len(owners[row]) == 1]
        return Batch(
            indices,
            place,
            images,
            self._tokens[torch.from_numpy(distinct[own_rows(len(distinct))])].to(device),
            len(distinct),
            torch.from_numpy(token_row).to(device),
            torch.tensor(rows, device=device),
            torch.from_numpy(labels).to(device),
            torch.tensor(text_labels, device=device),
            torch.from_numpy(prompt_of_image).to(device),
            torch.tensor([group_of[label] for label in labels.tolist()], device=device),
            torch.tensor(own, dtype=torch.int64, device=device),
        )

    def image_chunks(self, batch: Batch, size: int) -> Iterator[torch.Tensor]:
        """Views of this process's photos of `batch`, `size` at a time, (size, 3, S, S): whenever, the same."""
        own = range(len(batch.indices))[own_rows(len(batch.indices))]
        for start in own[::size]:
            rows = slice(start, min(start + size, own.stop))
            yield self.photos.views(batch.indices, view_generator(*batch.place), rows)


def _groups(labels: Sequence[int], rows: Sequence[int]) -> tuple[dict[int, int], dict[int, set[int]]]:
    """Identities that share prompts, in one hop or several: label to the smallest label of its group.

    Args:
        labels: identity of each of the T prompts.
        rows: number of each prompt's words.

    Returns:
        That, and the labels of each row.
    """
    owners: dict[int, set[int]] = {}
    for label, row in zip(labels, rows, strict=True):
        owners.setdefault(row, set()).add(label)
    group_of = {label: label for label in labels}
    for several in owners.values():
        groups = {group_of[label] for label in several}
        if len(groups) > 1:
            group_of = {label: min(groups) if group in groups else group for label, group in group_of.items()}
    return group_of, owners
