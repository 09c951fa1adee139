"""Find pretrained weights and read them: by an open_clip tag, in a file, or from stage 0; and how they were trained."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from torch import nn

import clipfh.models.torchvision_guard  # noqa: F401  (before open_clip)
from clipfh.core.errors import InputError, shortened, shown
from clipfh.core.paths import STAGE0_SCRIPTS, TINY_MODELS, display, stage_dir
from clipfh.models.checkpoint import newest_checkpoint, read_checkpoint
from clipfh.models.names import is_elsewhere, own_weights, preprocessing_of
from clipfh.models.weights_file import is_torchscript, load_weights, members_of_zip, read_weights
from clipfh.models.weights_name import config_of, split_tag, weights_named_by

import open_clip  # isort: skip

_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
STAGE4 = "stage4"  # as --pretrained: the newest CLIP that stage 4 has aligned on captions


@dataclass(frozen=True)
class FoundWeights:
    """Weights that are to be loaded.

    Attributes:
        source: a path, an open_clip tag, or `random`.
        file: the path, if it is one.
        recorded: the plain values of one of our own checkpoints; else empty.
        trained: of other weights, `quick_gelu`, `mean`, `std`, `resize_mode` if known.
    """

    source: str
    file: Path | None
    recorded: dict[str, Any]
    trained: dict[str, Any]


def find_weights(name: str, pretrained: str | None) -> FoundWeights:
    """Find the weights `pretrained` of the model `name`, as of `clipfh.models.clip.load_clip`; nothing is downloaded.

    Raises:
        InputError: an unknown tag, a file of another architecture, a tag stated of what needs none.
    """
    stated, pretrained = split_tag(pretrained) if pretrained else (None, None)
    source = _resolve_pretrained(name, pretrained)
    file = Path(source) if Path(source).is_file() else None
    recorded = recorded_architecture(file) if file else {}
    if recorded.get("model", name) != name:
        raise InputError(f"{display(file)} holds a {recorded['model']}, not a {name}. Pass --model {recorded['model']}")
    if stated and recorded:
        raise InputError(
            f"--pretrained {stated}=...: {display(file)} records itself how it was trained; leave the tag out"
        )
    if stated and not file:
        raise InputError(f"--pretrained {stated}=...: {shown(pretrained)} is no file")
    return FoundWeights(source, file, recorded, {} if recorded else training_of(name, source, file, stated))


def _resolve_pretrained(name: str, pretrained: str | None) -> str:
    if is_elsewhere(name) and pretrained is None:
        return str(own_weights(name))
    if pretrained == STAGE4:
        command = f"python {display(stage_dir(4))}/train_frozen_text_alignment.py --image_encoder clip --model {name}"
        return str(newest_checkpoint(4, "*_CLIP.pth", made_by=command, model=name))
    if pretrained:
        tags = open_clip.list_pretrained_tags_by_model(name)
        if pretrained == "random" or Path(pretrained).is_file():
            return pretrained
        if pretrained.lower() in tags:
            return pretrained.lower()
        valid = ", ".join(tags) or "none"
        raise InputError(
            f"--pretrained {pretrained!r} is neither a file nor a tag of {name}. Tags: {valid}. "
            "A local weights file is given by its path; `stage4` is what stage 4 has aligned last, `random` are random "
            "weights."
        )
    if name in STAGE0_SCRIPTS:
        command = f"python model/stage0_pretrain/{STAGE0_SCRIPTS[name]}"
        command += f" --model {name}" if name in TINY_MODELS else ""
        return str(newest_checkpoint(0, "*.pth", made_by=command, model=name))
    return "openai"


def training_of(name: str, source: str, file: Path | None, stated: str | None = None) -> dict[str, Any]:
    """How weights were trained, which no weights file records: `quick_gelu`, `mean`, `std`, `resize_mode` if known.

    open_clip's registry knows it of a tag; of a file, of the tag that was `stated`, or else of the one in its name.
    What a name told is said.
    """
    if stated:
        return config_of(stated, name)
    if is_elsewhere(name):
        return preprocessing_of(name)
    if file is None:
        return open_clip.get_pretrained_cfg(name, source)  # empty for `random`
    if named := weights_named_by(file, name):
        activation = "QuickGELU" if named.config.get("quick_gelu") else "GELU"
        mean, mode = named.config["mean"][0], named.config["resize_mode"]
        print(
            f"note: {display(file)} is taken as open_clip's {named.tag} ({named.part!r} says so): {activation}, "
            f"mean {mean:.3g}, resize mode {mode}; --pretrained TAG=FILE says otherwise"
        )
        return named.config
    return {"quick_gelu": is_torchscript(file)}  # only OpenAI publishes such archives


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """No warnings in the log from within: open_clip gives many that a better message here replaces."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)


def download(name: str, tag: str) -> Path:
    """The weights file of an open_clip tag, from open_clip's cache or the network."""
    config = open_clip.get_pretrained_cfg(name, tag)
    try:
        with silenced():  # every retry of the download would be a line; the error below says what matters
            return Path(open_clip.download_pretrained(config))
    except Exception as error:  # urllib, huggingface_hub and httpx each raise their own kinds
        hub = config.get("hf_hub", "").rstrip("/")
        places = [f"open_clip_model.safetensors of https://huggingface.co/{hub}" if hub else "", config.get("url", "")]
        raise InputError(
            f"the weights {name},{tag} cannot be downloaded ({type(error).__name__}). On a machine with a network, "
            f"fetch {' or '.join(filter(None, places))}; put the file anywhere here, keep the tag in its name, and "
            "give its path: --pretrained PATH"
        ) from error


def at_hand(name: str, source: str) -> str | None:
    """`source`, as `find_weights` takes it, such that nothing is downloaded; None of a tag that was never fetched here.

    A tag whose file is in the hub's cache becomes `TAG=FILE`, which asks no network whether there is a newer one.
    """
    config = open_clip.get_pretrained_cfg(name, source)
    if Path(source).is_file() or not config:
        return source
    repository, _, file = config.get("hf_hub", "").rpartition("/")  # without a file: those that open_clip asks for
    files = (Path(file).with_suffix(".safetensors").name, file) if file else _HUB_FILES
    found = (try_to_load_from_cache(repository, name) for name in files if repository)
    cached = next((path for path in found if isinstance(path, str)), None)  # or None, or a word that the hub has none
    return cached and f"{source}={cached}"


def recorded_architecture(path: Path) -> dict[str, Any]:
    """The plain values of one of our own checkpoints, whatever its name; empty for other weights files.

    Raises:
        InputError: saved by torch, but not as tensors and plain values.
    """
    members = members_of_zip(path)
    if "data.pkl" not in members or "constants.pkl" in members:
        return {}
    content = read_checkpoint(path)
    if not {"model", "image_size", "state_dict"} <= content.keys():  # see LoadedClip.architecture
        return {}
    return {key: value for key, value in content.items() if key not in ("state_dict", "training")}


def load_weights_file(model: nn.Module, path: Path, name: str) -> None:
    """Load the weights of one file into `model`, in place, interpolating position embeddings where sizes differ.

    Raises:
        InputError: not a weights file, or the weights of another architecture.
    """
    try:
        if path.suffix in (".npz", ".npy"):  # big_vision's SigLIP
            open_clip.load_checkpoint(model, str(path))
        else:
            load_weights(model, read_weights(path))
    except InputError:
        raise
    except Exception as error:  # damaged files and foreign ones make torch, pickle and safetensors raise anything
        reasons = [line.strip() for line in str(error).strip().splitlines()]
        # torch's first line says no more than that something does not fit
        reason = shortened(reasons[1] if len(reasons) > 1 else " ".join(reasons), 110)
        raise InputError(
            f"{display(path)} does not hold the weights of a {name} ({reason}). Pass the --model that it was trained as"
        ) from error
