"""What trains on identities has in common: the prepared dataset, the CLIP that starts on it, its photos and prompts."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from clipfh.core.errors import InputError
from clipfh.core.processes import first_alone
from clipfh.images.augment import Augmentation
from clipfh.models.checkpoint import weights_digest
from clipfh.models.clip import LoadedClip, first_weights_of, load_clip, require_any_size, shown_size
from clipfh.models.settings import Start
from clipfh.tables.digest import digest_of, require_unseen, seen_with
from clipfh.tables.prepared import (
    PreparedDataset,
    all_prompts,
    load_or_prepare,
    load_prompts,
    prepare_weights,
    say_cut_prompts,
)
from clipfh.tables.splits import fold_val
from clipfh.training.data import TrainingData, TrainPhotos, load_training_data, validate
from clipfh.training.runs import Place
from clipfh.training.settings import Source, Views
from clipfh.training.state import Validation


def load_source(source: Source) -> PreparedDataset:
    """The prepared dataset that the flags name; the embedded default is made if it is missing.

    With `--val_fold` it has other val identities and a digest of its own, and checkpoints record the fold: what looks
    for the dataset's newest checkpoint passes a fold's over.

    Raises:
        InputError: as `load_prepared` and `fold_val`.
    """
    with first_alone():
        data = load_or_prepare(
            source.dataset,
            folder=source.metadata_dir,
            image_dir=source.image_dir,
            image_meta=source.image_meta,
            exclude_same_camera=source.exclude_same_camera,
            default_meta="image_paths_clean.json",
        )
    if source.val_fold is None:
        return data
    table = fold_val(data.table, *source.val_fold, exclude_same_camera=data.exclude_same_camera)
    return replace(data, table=table, digest=digest_of([(data.digest, *source.val_fold)]))


@dataclass(frozen=True)
class Identities:
    """A dataset, loaded for a CLIP that learns it.

    Attributes:
        data: the prepared dataset.
        clip: with its first weights.
        photos: of the C train identities.
        prompts: {item_id: one or more} of the same.
        val_prompts: of the val identities that have some.
        pictures: all decoded photos, those of val too.
        place: of the run.
        val_fold: the number of the fold that `data` has val identities of, and of how many; None: the dataset's own.
    """

    data: PreparedDataset
    clip: LoadedClip
    photos: TrainPhotos
    prompts: dict[str, list[str]]
    val_prompts: dict[str, list[str]]
    pictures: TrainingData
    place: Place
    val_fold: tuple[int, int] | None = None

    def validate(self, model: nn.Module) -> Validation:
        """How well `model`, the CLIP's with other weights, finds the val identities again: by photos.

        Beside it stands how well their prompts find them; not where they have none, or all have the same.
        """
        clip = replace(self.clip, model=model)
        found, text = validate(clip, self.pictures, self.val_prompts, self.place.device)
        figures = {"val_mAP": found.mAP, "val_rank1": found.rank1}
        told = f"val mAP {100 * found.mAP:.1f} Rank-1 {100 * found.rank1:.1f}"
        if text:
            figures["val_text_mAP"] = text.mAP
            told += f" text mAP {100 * text.mAP:.1f}"
        return Validation(figures, told)

    def validate_both(self, model: nn.Module) -> Validation:
        """`validate`, and `val_mean_mAP`: the mean of mAP by photos and by prompts; without the latter, the former."""
        found = self.validate(model)
        both = [found.figures[name] for name in ("val_mAP", "val_text_mAP") if name in found.figures]
        mean = sum(both) / len(both)
        told = f"{found.text} mean {100 * mean:.1f}" if len(both) > 1 else found.text
        return Validation({**found.figures, "val_mean_mAP": mean}, told)

    def record(self, variant: str) -> dict[str, Any]:
        """What every checkpoint says: what it is of, how it was trained, and what it has seen."""
        record = {**self.clip.architecture(), "stage": self.place.stage, "variant": variant}
        record |= {"dataset": self.data.name, "data_digest": self.data.digest}
        record |= {"first_weights": first_weights_of(self.clip)}
        if self.clip.recipe or not self.clip.seen_identities:  # else a training of an older version, which has none
            record |= {"start_recipe": self.clip.recipe}
        record |= {"val_fold": list(self.val_fold)} if self.val_fold else {}
        seen = seen_with(self.clip.seen_identities, self.data.digest, self.data.table)
        return {**record, "seen_identities": seen}

    def origin(self) -> list[str]:
        """Data, prompts and first weights, as `recipe_digest` takes them; call it before the first step."""
        prompts = digest_of((item_id, *texts) for item_id, texts in self.prompts.items())
        if self.clip.pretrained == "random":  # drawn by the seed: others of the same kind
            return [self.data.digest, prompts, self.clip.pretrained]
        return [self.data.digest, prompts, self.clip.recipe or weights_digest(self.clip.model.state_dict())]

    def __str__(self) -> str:
        clip, photos = self.clip, self.photos
        views = f", views of {' x '.join(map(str, photos.view_size))} px" if photos.view_size else ""
        return (
            f"{clip.name} ({clip.pretrained}, {shown_size(clip)}{views}) on {self.data.name}, "
            f"{len(photos.labels):,} photos of {len(photos.item_ids):,} identities, {self.place.device}"
        )


def load_identities(
    data: PreparedDataset,
    source: Source,
    start: Start,
    views: Views,
    place: Place,
    *,
    weights: str | None,
    prompts: str,
) -> Identities:
    """Load the CLIP with its first weights, then photos and prompts for it.

    Args:
        data: from `load_source`.
        source, start, views: the flags.
        place: of the run.
        weights: to start from; None: the model's own.
        prompts: their file in the metadata folder, unless `--prompt_json` names another.

    Raises:
        InputError: something of it is missing, malformed or unreadable; the weights have seen test identities; or
            there are fewer than two to train on.
    """
    splits = ("train", "val") if source.final_fit else ("train",)
    texts = load_prompts(data, source.prompt_json, prompts, *splits)
    with first_alone():  # made here, or downloaded
        prepare_weights(start.model, weights)
        clip = load_clip(
            start.model,
            weights,
            image_size=views.eval_image_size or start.image_size,
            resize_mode=start.resize_mode,
            data_resize_mode=data.resize_mode,
            device=str(place.device),
        )
    view_size = None if start.image_size in (None, clip.image_size) else start.image_size
    if view_size:
        require_any_size(clip.model.visual, view_size, clip.name)
    say_cut_prompts(texts, clip.tokenizer, clip.name)
    require_unseen(
        clip.seen_identities,
        data.digest,
        data.table,
        weights=clip.pretrained,
        name=data.name,
        unrelated_ids=source.unrelated_ids,
    )
    with first_alone():
        pictures = load_training_data(
            data,
            clip,
            stage=place.stage,
            seed=place.seed,
            skip_unreadable=source.skip_unreadable,
            fast_decode=source.fast_decode,
            verify=source.verify,
            final_fit=source.final_fit,
        )
    if (count := pictures.train_table["item_id"].nunique()) < 2:
        raise InputError(
            f"{data.name} has {count} identity to train on: training tells identities apart, which takes two or more. "
            "Add identities; of four folders, two are for training. Without training: run_all.sh --stages 1"
        )
    photos = TrainPhotos(pictures.train_table, pictures.pixels, augmentation(views), clip, place.device, view_size)
    val_ids = set(pictures.val_table["item_id"])
    val_texts = {
        item_id: its for item_id, its in all_prompts(data, source.prompt_json, prompts).items() if item_id in val_ids
    }
    return Identities(data, clip, photos, texts, val_texts, pictures, place, source.val_fold)


def augmentation(views: Views) -> Augmentation:
    """The flags of the random views, as `clipfh.images` takes them."""
    return Augmentation(
        min_area=views.min_crop,
        aspect=0.0 if views.min_crop == 1 else Augmentation.aspect,  # which changes by a crop
        rotation=views.rotation,
        color=views.color_jitter,
        flip=views.flip,
        erase=views.erase,
    )
