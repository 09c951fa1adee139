"""A model soup: the mean of the weights of several trainings, one model that is searched as fast as each of them.

    python -m clipfh.training.soup --ckpts model/stage2_img_encoder_finetune/checkpoints/*_BEST.pth

Trainings that began with the same weights and differ in their seed often end in one valley, and the middle of it finds
more than any of them (Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves
accuracy without increasing inference time"; this is their uniform soup). Val tells whether it does: mAP between the
val photos is printed of each and of the soup.

The soup is a checkpoint like the others: --ckpt of the stage's evaluation, of the index and of the export takes it. It
is no run's BEST, so that nothing takes it without being asked to. Its variant says how many are in it, as ms_soup3.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clipfh.core.cli import option, run_script
from clipfh.core.errors import InputError
from clipfh.core.paths import display
from clipfh.core.run import pick_device
from clipfh.models.checkpoint import read_checkpoint, read_stage_checkpoint, write_checkpoint
from clipfh.models.clip import load_clip
from clipfh.tables.digest import SHORT, digest_of
from clipfh.tables.prepared import PreparedDataset
from clipfh.training.data import load_training_data, validate
from clipfh.training.identities import load_source
from clipfh.training.settings import Source

STAGES = (2, 3)
# what weights have in common that have a mean: the network, what it looks at, where they began, what they learned
_ALIKE = ("stage", "model", "image_size", "resize_mode", "mean", "std", "quick_gelu")
_ALIKE += ("first_weights", "data_digest", "variant")
# what is said of one training alone
_OF_ONE = ("train_seed", "alpha", "interpolation", "val_mean_mAP", "training", "row", "flags")

Content = dict[str, Any]  # of a checkpoint


@dataclass(frozen=True)
class Config:
    """The command line."""

    ckpts: tuple[Path, ...] = option((), "checkpoints of trainings of one recipe with different seeds, two or more")
    out: Path | None = option(None, "the file to write (default: <first run>_soup<N>.pth beside the first)")
    metadata_dir: Path | None = option(None, "metadata folder (default: metadata/<dataset> of the checkpoints)")
    image_dir: Path | None = option(None, "image root (default: the one that dataset.json records)")
    exclude_same_camera: bool | None = option(
        None, "leave a val query's own camera out of its gallery (default: as the dataset's protocol says)"
    )
    skip_unreadable: bool = option(False, "go on without images that cannot be read")
    device: str = option("auto", "auto, cpu, cuda or mps")


def main(config: Config) -> None:
    """Mix, measure on val, write."""
    contents = read_alike(config.ckpts)
    soup = mixed(contents)
    if "val_mAP" in contents[0]:
        figures = list(val_figures(config, [*contents, soup]))
        soup["val_mAP"] = figures[-1]
        told = ", ".join(f"{100 * figure:.1f}" for figure in figures[:-1])
        print(f"val mAP of each {told}; of the soup {100 * figures[-1]:.1f}")
        if figures[-1] < max(figures[:-1]):
            print("note: val finds more with one of them than with the soup")
    else:
        print("no val: they were trained on its identities, too (--final_fit)")
    first, count = config.ckpts[0], len(contents)
    out = config.out or first.with_name(f"{first.stem.removesuffix('_BEST')}_soup{count}.pth")
    write_checkpoint(out, soup)
    print(f"wrote {display(out)}, the mean of {count} trainings")


def read_alike(paths: Sequence[Path]) -> list[Content]:
    """The checkpoints, which have to be of trainings that may be mixed.

    Raises:
        InputError: fewer than two; one is missing, damaged, or of another stage than 2 or 3; they are of different
            networks, data or first weights, or began at random; or two are the same training.
    """
    if len(paths) < 2:
        raise InputError(f"--ckpts: a soup is of two checkpoints or more, not of {len(paths)}")
    stage = read_checkpoint(paths[0]).get("stage")
    if stage not in STAGES:
        raise InputError(f"{paths[0]} is of stage {stage}; soups are of stages {' and '.join(map(str, STAGES))}")
    contents = [read_stage_checkpoint(path, stage) for path in paths]
    first = contents[0]
    for path, content in zip(paths, contents, strict=True):
        if other := [key for key in _ALIKE if content.get(key) != first.get(key)]:
            told = f"{other[0]} {content.get(other[0])} and {first.get(other[0])}"
            raise InputError(f"{path} and {paths[0]} are too different to have a mean: {told}")
        if content.get("first_weights") == "random":
            raise InputError(f"{path} began with random weights: others of the kind are nowhere near, and have no mean")
    of_training = {
        (content.get("recipe"), content.get("train_seed"), content["epoch"]): path
        for path, content in zip(paths, contents, strict=True)
    }
    if len(of_training) < len(paths):
        raise InputError("--ckpts: two are of one recipe, seed and epoch; give trainings with different seeds")
    return contents


def mixed(contents: Sequence[Content]) -> Content:
    """The checkpoint of the mean of all weights, without a val figure.

    What is recorded is what they have in common. Its recipe is of its own: a row of the table, no other seed of theirs.
    """
    first, seen = contents[0], {}
    for content in contents:
        for digest, item_ids in content["seen_identities"].items():
            seen[digest] = sorted({*seen.get(digest, ()), *item_ids})
    origin = sorted(f"{content.get('recipe', '')} {content.get('train_seed', '')}" for content in contents)
    kept = {key: value for key, value in first.items() if key not in (*_OF_ONE, "val_mAP", "state_dict")}
    if any(content.get("start_recipe") != first.get("start_recipe") for content in contents):
        kept.pop("start_recipe", None)
    return {
        **kept,
        "variant": f"{first['variant']}_soup{len(contents)}",
        "epoch": max(content["epoch"] for content in contents),
        "recipe": digest_of([("soup", *origin)])[:SHORT],
        "seen_identities": seen,
        "state_dict": mean_weights([content["state_dict"] for content in contents]),
    }


def mean_weights(states: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of each tensor, added up in float64; counters, which are integers, are the first's.

    Raises:
        InputError: they are of networks with other layers or shapes.
    """
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    if any(one != shapes[0] for one in shapes):
        raise InputError("--ckpts: the weights are of networks with different layers")
    return {
        name: sum(state[name].double() for state in states).div(len(states)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in states[0].items()
    }


def val_figures(config: Config, contents: Sequence[Content]) -> Iterator[float]:
    """mAP between the photos of the val identities, 0..1, of each checkpoint.

    Raises:
        InputError: the dataset is not there, or not as it was; photos are missing or unreadable.
    """
    device = pick_device(config.device)
    data = source_of(config, contents[0])
    clip = load_clip(contents[0]["model"], str(config.ckpts[0]), device=str(device))
    pictures = load_training_data(
        data, clip, stage=contents[0]["stage"], seed=0, skip_unreadable=config.skip_unreadable
    )
    for content in contents:
        clip.model.load_state_dict(content["state_dict"])
        found, _ = validate(clip, pictures, {}, device)
        yield found.mAP


def source_of(config: Config, content: Content) -> PreparedDataset:
    """The dataset of a checkpoint, with the val identities that it was chosen by.

    Raises:
        InputError: it is not there, or holds other photos or splits than then.
    """
    fold = content.get("val_fold")
    source = Source(
        dataset=content["dataset"],
        metadata_dir=config.metadata_dir,
        image_dir=config.image_dir,
        exclude_same_camera=config.exclude_same_camera,
        val_fold=tuple(fold) if fold else None,
    )
    data = load_source(source)
    if data.digest != content["data_digest"]:
        raise InputError(
            f"{config.ckpts[0]} was trained on other photos or splits of {data.name} than there are now: val would be "
            "of identities that it knows"
        )
    return data


if __name__ == "__main__":
    run_script(main, Config, __doc__)
