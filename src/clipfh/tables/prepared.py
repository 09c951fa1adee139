"""What the numbered preprocessing scripts wrote for one dataset, read back and checked."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from clipfh.core.errors import InputError, printable, shown
from clipfh.core.files import read_json
from clipfh.core.names import require_name
from clipfh.core.paths import DATASETS, ROOT, STAGE0_SCRIPTS, TINY_MODELS, display, metadata_dir, stage_dir
from clipfh.images.transforms import MAX_MEGAPIXELS, RESIZE_MODES
from clipfh.prompts.files import prompts_for, read_prompts
from clipfh.prompts.tokens import token_counter
from clipfh.tables.digest import table_digest
from clipfh.tables.records import read_image_meta

DEFAULT_DATASET = "synthetic"
TOKEN_SAFE_PROMPTS = "image_prompts_cleaned_for_v4.json"
RAW_PROMPTS = "image_prompts_per_identity.json"
CLEAN_PROMPTS = "image_prompts_clean.json"
SPLITS = "image_splits.json"
WHOLE_TABLE = "image_paths.json"
PREPROCESSING = (
    "00_prepare_dataset.py",
    "01_generate_prompts_from_descriptions.py",
    "02_analyze_prompt_consistency.py",
    "03_filter_valid_identities.py",
    "04_generate_structured_prompts_for_v4.py",
    "05_make_retrieval_splits.py",
)


@dataclass(frozen=True)
class PreparedDataset:
    """A dataset as the stages see it.

    Attributes:
        name: as it appears in the summary.
        folder: where its metadata lies.
        image_dir: the image root.
        table: the table of `clipfh.tables.records`.
        exclude_same_camera: the dataset's protocol, unless a flag said otherwise.
        max_megapixels: larger photos count as unreadable.
        resize_mode: how photos fill a frame; None: as the weights were trained.
        digest: of all its images, identities and splits, see `clipfh.tables.digest`.
        own_protocol: whether `exclude_same_camera` is what the dataset itself says.
    """

    name: str
    folder: Path
    image_dir: Path
    table: pd.DataFrame
    exclude_same_camera: bool
    digest: str
    max_megapixels: float = MAX_MEGAPIXELS
    resize_mode: str | None = None
    own_protocol: bool = True

    def rows(self, *splits: str) -> pd.DataFrame:
        """The rows of the given splits, in the table's order."""
        return self.table[self.table["split"].isin(splits)].reset_index(drop=True)


def prepare_default() -> None:
    """Make the generated garments' metadata, where they lack: a script without arguments works in a fresh checkout.

    Raises:
        InputError: a script that makes something failed; its own message is above.
    """
    if not _is_prepared(metadata_dir(DEFAULT_DATASET)):
        for name in PREPROCESSING:
            _run_script(ROOT / "preprocessing" / name)


def prepare_weights(model: str, pretrained: str | None = None) -> None:
    """Make the weights of a small model with stage 0, where there are none and no others are asked for.

    Raises:
        InputError: stage 0 failed; its own message is above.
    """
    script = STAGE0_SCRIPTS.get(model)
    if script and pretrained is None and not any((stage_dir(0) / "checkpoints").glob(f"{model}_*.pth")):
        _run_script(stage_dir(0) / script, *(["--model", model] if model in TINY_MODELS else []))


def _run_script(script: Path, *arguments: str) -> None:
    print(
        f"not there yet, preparing the embedded default: python {' '.join([display(script), *arguments])}", flush=True
    )
    if subprocess.run([sys.executable, str(script), *arguments]).returncode:
        raise InputError(f"{display(script)} failed; its message is above")


def _is_prepared(folder: Path) -> bool:
    """Whether every script has run; the last one writes the splits."""
    return all((folder / name).is_file() for name in ("dataset.json", CLEAN_PROMPTS, TOKEN_SAFE_PROMPTS, SPLITS))


def load_prepared(
    name: str | None,
    *,
    folder: Path | None = None,
    image_dir: Path | None = None,
    image_meta: Path | None = None,
    exclude_same_camera: bool | None = None,
    default_meta: str = WHOLE_TABLE,
) -> PreparedDataset:
    """Read a prepared dataset.

    Args:
        name: of the dataset; its folder is `metadata/<name>` unless `folder` says otherwise. None: the name that the
            folder's `dataset.json` records, else the folder's own; without a folder `synthetic`.
        folder: the metadata folder; the table's JSON file in it may be given instead.
        image_dir: image root, where it is not the one that `dataset.json` records.
        image_meta: the table's JSON file, in place of `default_meta` in the folder.
        exclude_same_camera: overrides the dataset's protocol.
        default_meta: the table's file name in the folder.

    Raises:
        InputError: files are missing or malformed, with the command that makes them.
    """
    folder = Path(folder) if folder else metadata_dir(name or DEFAULT_DATASET)
    if folder.is_file():
        folder, image_meta = folder.parent, image_meta or folder
    description = {}
    if (folder / "dataset.json").is_file() or image_dir is None:
        made_by = "the scripts of preprocessing/ with this --metadata_dir"
        if name and folder == metadata_dir(name):
            made_by = f"bash run_all.sh --dataset {name}" + (" --data_root DIR" if name != DEFAULT_DATASET else "")
            if name not in DATASETS and not (folder / "dataset.json").is_file():
                raise InputError(_unknown(name, folder / "dataset.json"))
        description = read_json(folder / "dataset.json", made_by=made_by)
    if image_dir is None:
        recorded = description.get("image_dir")
        if not isinstance(recorded, str) or not recorded or printable(recorded) != recorded:
            raise InputError(f"{folder / 'dataset.json'} names no image_dir ({shown(recorded)}); give --image_dir")
        image_dir = ROOT / recorded
    table = read_image_meta(Path(image_meta) if image_meta else folder / default_meta)
    # training leaves out what has no prompt, evaluation does not: both speak of the same dataset
    is_whole = image_meta is not None or default_meta == WHOLE_TABLE or not (folder / WHOLE_TABLE).is_file()
    whole = table if is_whole else read_image_meta(folder / WHOLE_TABLE)
    own_exclusion = description.get("exclude_same_camera", False)
    if not isinstance(own_exclusion, bool):
        raise InputError(f"{folder / 'dataset.json'}: exclude_same_camera is {shown(own_exclusion)}, not true or false")
    if exclude_same_camera is None:
        exclude_same_camera = own_exclusion
    if "name" in description:
        recorded = require_name(description["name"], f"{folder / 'dataset.json'}: name")
        name = name or recorded
    name = require_name(name or folder.resolve().name, "--dataset" if name else "the folder, without --dataset,")
    digest = table_digest(whole, Path(image_dir))
    max_megapixels = description.get("max_megapixels", MAX_MEGAPIXELS)
    if isinstance(max_megapixels, bool) or not isinstance(max_megapixels, (int, float)) or not max_megapixels > 0:
        raise InputError(f"{folder / 'dataset.json'}: max_megapixels is {shown(max_megapixels)}, not a number above 0")
    mode = description.get("resize_mode")
    if mode not in (None, *RESIZE_MODES):
        raise InputError(f"{folder / 'dataset.json'}: resize_mode is {shown(mode)}; valid: {', '.join(RESIZE_MODES)}")
    own_protocol = exclude_same_camera == own_exclusion
    return PreparedDataset(
        name, folder, Path(image_dir), table, exclude_same_camera, digest, max_megapixels, mode, own_protocol
    )


def _unknown(name: str, missing: Path) -> str:
    """That a dataset is not prepared, where run_all.sh does not know its name either."""
    prepared = sorted(path.parent.name for path in ROOT.glob("metadata/*/dataset.json"))
    return (
        f"no dataset {shown(name)} is prepared ({missing} does not exist); there is "
        f"{', '.join(prepared) or 'none yet'}. bash run_all.sh --dataset prepares {', '.join(DATASETS)}"
    )


def load_or_prepare(name: str | None, *, folder: Path | None = None, **where: Any) -> PreparedDataset:
    """`load_prepared` with the same arguments; the embedded default is made if it is the one and missing."""
    if name in (None, DEFAULT_DATASET) and folder is None:
        prepare_default()
    return load_prepared(name, folder=folder, **where)


def load_prompts(data: PreparedDataset, prompt_json: Path | None, default: str, *splits: str) -> dict[str, list[str]]:
    """The prompts of the identities of the given splits, from `prompt_json` or the dataset's file `default`.

    Raises:
        InputError: the file is missing or malformed, or an identity has no prompt.
    """
    path = _prompt_file(data, prompt_json, default)
    return prompts_for(data.rows(*splits)["item_id"], read_prompts(path), path)


def all_prompts(data: PreparedDataset, prompt_json: Path | None, default: str) -> dict[str, list[str]]:
    """Every prompt of that file, whosever it is.

    Raises:
        InputError: the file is missing or malformed.
    """
    return read_prompts(_prompt_file(data, prompt_json, default))


def _prompt_file(data: PreparedDataset, prompt_json: Path | None, default: str) -> Path:
    return Path(prompt_json) if prompt_json else data.folder / default


def say_cut_prompts(prompts: dict[str, list[str]], tokenizer: Any, name: str) -> None:
    """Say how many prompts are longer than what the model `name`, with this tokenizer of open_clip, takes."""
    counter = token_counter(tokenizer)
    if cut := counter.num_cut(prompts):
        print(
            f"note: {cut:,} prompts are longer than the {counter.context_length} tokens of {name}: the tokenizer cuts "
            f"them. Script 04 with --model {name} makes prompts that fit"
        )
