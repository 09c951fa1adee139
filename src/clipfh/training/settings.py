"""The flags that trainings share, grouped as the code hands them on, and the YAML files that hold their values.

What is tuned stands in `config/*.yaml` beside a stage's script, each value with its reason; what says where things are
has no value there.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from clipfh.core.cli import image_size, option
from clipfh.core.config_file import IN_FILE, flag_value
from clipfh.core.errors import InputError, shortened
from clipfh.core.paths import DEFAULT_MODEL, SMALL_MODEL, TINY_MODELS
from clipfh.models.names import canonical_model_name

C = TypeVar("C")
MAX_FOLDS = 100


def fold(text: str) -> tuple[int, int]:
    """A flag's fold: `0/3`, the first of three, to (0, 3)."""
    match = re.fullmatch(r"(\d{1,3})/(\d{1,3})", text, re.ASCII)
    number, folds = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 <= number < folds or not 2 <= folds <= MAX_FOLDS:
        raise argparse.ArgumentTypeError(f"{shortened(text, 40)} is no fold; of three write 0/3, 1/3 or 2/3")
    return number, folds


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which photos and prompts of identities."""

    dataset: str | None = option(
        None, "name of the prepared dataset, a folder under metadata/ (default: as --metadata_dir says, else synthetic)"
    )
    metadata_dir: Path | None = option(
        None, "metadata folder (default: metadata/<dataset>)", aliases=("--metadata", "--meta_dir")
    )
    image_dir: Path | None = option(None, "image root (default: the one that dataset.json records)")
    image_meta: Path | None = option(None, "table of images (default: image_paths_clean.json of the metadata folder)")
    prompt_json: Path | None = option(None, "prompts (default: those that the stage's README names)")
    exclude_same_camera: bool | None = option(
        None, "leave a val query's own camera out of its gallery (default: as the dataset's protocol says)"
    )
    final_fit: bool = option(
        False, "train on train and val identities; nothing is validated, and the last epoch is BEST: for final figures"
    )
    val_fold: tuple[int, int] | None = option(
        None,
        "validate on another part of the train and val identities: 0/3, 1/3 and 2/3 are three folds, for choosing a "
        "recipe where there are few; see `python -m clipfh.pipeline.sweep`",
        parse=fold,
    )
    unrelated_ids: bool = option(
        False, "item ids equal to ones that the first weights were trained on in another dataset stand for other things"
    )
    skip_unreadable: bool = option(False, "go on without images that cannot be read")
    fast_decode: bool = option(False, "decode JPEGs at reduced size: faster, differs by under 1 grey level on average")
    verify: bool = option(False, "compare all checksums of the decoded photos at the start, not some of them")

    def __post_init__(self) -> None:
        if self.final_fit and self.val_fold:
            raise InputError("--final_fit has no val identities, --val_fold chooses them: give one of them")


@dataclass(frozen=True, kw_only=True)
class Views:
    """The random views of a photo."""

    min_crop: float = option(
        IN_FILE,
        "smallest share of a photo's area that a random crop is drawn to keep; below 1 its aspect is changed, too, by "
        "up to 1.28 times, which takes a little more off large crops; 1: no crop, and the aspect stays",
        above=0,
        at_most=1,
    )
    rotation: float = option(IN_FILE, "largest rotation, degrees", at_least=0, at_most=180)
    color_jitter: float = option(
        IN_FILE, "largest relative change of brightness, contrast and saturation", at_least=0, at_most=1
    )
    flip: float = option(
        IN_FILE, "probability of a mirror image; 0 where left and right tell identities apart", at_least=0, at_most=1
    )
    erase: float = option(IN_FILE, "probability of a blanked rectangle", at_least=0, at_most=1)
    eval_image_size: int | tuple[int, int] | None = option(
        None,
        "size at which photos are seen to be found again, in val, test and search; the views have --image_size "
        "(default: the same)",
        parse=image_size,
    )


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How long, how fast, and what is kept."""

    epochs: int = option(IN_FILE, "passes over the train photos", at_least=1)
    weight_decay: float = option(IN_FILE, "AdamW's, on matrices only", at_least=0)
    warmup_fraction: float = option(
        IN_FILE, "share of the steps in which the learning rate rises", at_least=0, at_most=0.9
    )
    clip_grad: float = option(IN_FILE, "largest gradient norm", above=0)
    accumulate: int = option(IN_FILE, "batches whose gradients are added up before a step", at_least=1)
    ema_decay: float = option(
        IN_FILE, "of the moving average of the weights that is validated and saved; 0: none", at_least=0, at_most=0.9999
    )
    keep_start: float = option(
        IN_FILE, "share of the first weights in what is validated and saved", at_least=0, at_most=1
    )
    patience: int = option(IN_FILE, "stop after so many epochs without a better val figure; 0: never", at_least=0)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a run computes and writes."""

    precision: str = option("auto", "auto: bfloat16 where it is fast", choices=("auto", "float32", "bfloat16"))
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    seed: int = option(0, "of everything that is drawn at random", at_least=0)
    save_path: Path | None = option(None, "folder of the checkpoints (default: checkpoints/ beside this script)")
    log_dir: Path | None = option(None, "folder of the logs (default: logs/ beside this script)")
    resume_ckpt: Path | None = option(None, "a _LAST checkpoint: continue that run")
    smoke: bool = option(False, "one epoch with small batches: does every step work?")


def shrunk(config: C, **smaller: Any) -> C:
    """A smoke run's flags: one epoch, and the values `smaller`."""
    return replace(config, optimisation=replace(config.optimisation, epochs=1), **smaller)


def recipe_files(folder: Path, arguments: Sequence[str], *, variant: str | None = None) -> list[Path]:
    """The files of `folder` that are read before those of --config, the later over the earlier.

    default.yaml; tiny.yaml or small_clip.yaml for the models that stage 0 makes; then of a `variant` `<variant>.yaml`,
    and `tiny_<variant>.yaml` or `small_clip_<variant>.yaml` where there is one.
    """
    model = canonical_model_name(flag_value(arguments, "--model", "--model_arch", default=DEFAULT_MODEL))
    kind = "tiny" if model in TINY_MODELS else "small_clip" if model == SMALL_MODEL else None
    files = [folder / "default.yaml"]
    if kind:
        files.append(folder / f"{kind}.yaml")
    if variant:
        files.append(folder / f"{variant}.yaml")
        if kind and (folder / f"{kind}_{variant}.yaml").is_file():
            files.append(folder / f"{kind}_{variant}.yaml")
    return files
