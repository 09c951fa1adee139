"""Build, load and freeze CLIP models; everything that is particular to open_clip's interface is here.

Shapes: B batch, D embedding, L context length.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import clipfh.models.torchvision_guard  # noqa: F401  (before open_clip)
from clipfh.core.errors import InputError, shortened, shown
from clipfh.core.paths import TINY_MODELS, display
from clipfh.images.transforms import ImageSize
from clipfh.models.checkpoint import newest_checkpoint, read_checkpoint
from clipfh.models.names import (
    canonical_model_name,
    is_elsewhere,
    load_tokenizer,
    model_config,
    own_weights,
    preprocessing_of,
    require_transformers,
)
from clipfh.models.weights_file import is_torchscript, load_weights, members_of_zip, read_weights
from clipfh.models.weights_name import config_of, split_tag, weights_named_by

import open_clip  # isort: skip

# CLIP trains with a clamp on its temperature: above 100 the softmax saturates (Radford et al. 2021, section 2.5).
MAX_LOGIT_SCALE = 100.0
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD  # of images, in 0..1


@dataclass(frozen=True)
class LoadedClip:
    """A CLIP with what is needed to feed it.

    Attributes:
        name: open_clip's name of the architecture, such as `ViT-B-16`.
        pretrained: where the weights came from, for the reader of a table.
        model: `encode_image((B, 3, S, S)) -> (B, D)`, `encode_text((B, L)) -> (B, D)`, `logit_scale`.
        tokenizer: `tokenizer(list of texts) -> (B, L)` token ids.
        image_size: S, pixels, or (H, W).
        resize_mode: one of `clipfh.images.transforms.RESIZE_MODES`.
        mean, std: of the normalisation, on 0..1 RGB.
        quick_gelu: whether the towers use QuickGELU, as OpenAI's weights do.
        seen_identities: what the weights were fine-tuned on, see `clipfh.tables.digest`; empty for pretrained ones.
    """

    name: str
    pretrained: str
    model: nn.Module
    tokenizer: object
    image_size: ImageSize
    resize_mode: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    quick_gelu: bool
    seen_identities: dict[str, list[str]] = field(default_factory=dict)

    def architecture(self) -> dict[str, Any]:
        """What a checkpoint records beside the weights, so that they are never loaded into anything else."""
        names = ("image_size", "resize_mode", "mean", "std", "quick_gelu")
        return {"model": self.name, **{name: getattr(self, name) for name in names}}


def shown_size(clip: LoadedClip) -> str:
    """How photos become its input, for a line of a log: `224 px, shortest` or `256 x 128 px, squash`."""
    size = clip.image_size if isinstance(clip.image_size, int) else " x ".join(map(str, clip.image_size))
    return f"{size} px, {clip.resize_mode}"


def load_clip(
    model_name: str,
    pretrained: str | None = None,
    *,
    image_size: ImageSize | None = None,
    resize_mode: str | None = None,
    data_resize_mode: str | None = None,
    quick_gelu: bool | None = None,
    device: str = "cpu",
) -> LoadedClip:
    """Build `model_name` and load its weights.

    Args:
        model_name: any spelling that `canonical_model_name` takes.
        pretrained: an open_clip tag (`openai`, `laion2b_s34b_b88k`, ...), a weights file (ours, open_clip's `.pt` or
            `.safetensors`, OpenAI's TorchScript archive), `TAG=FILE` for a file of such a tag whose name does not say
            so, `random`, or None: `openai`, and for the tiny models the newest checkpoint of stage 0.
        image_size: input size in pixels, S or (H, W), if not the architecture's own; position embeddings are
            interpolated.
        resize_mode: one of `clipfh.images.transforms.RESIZE_MODES`; None: that of the fine-tuning that the weights went
            through, else `data_resize_mode`, else as the weights were trained.
        data_resize_mode: what the dataset's protocol does.
        quick_gelu: whether the towers use QuickGELU; None: as the weights were trained with.
        device: where the model is put.

    Raises:
        InputError: unknown model or tag, weights that cannot be had, a file of another architecture.
    """
    name = canonical_model_name(model_name)
    require_transformers(name)
    stated, pretrained = split_tag(pretrained) if pretrained else (None, None)
    source = _resolve_pretrained(name, pretrained)
    file = Path(source) if Path(source).is_file() else None
    recorded = recorded_architecture(file) if file else {}
    if recorded.get("model", name) != name:
        raise InputError(f"{display(file)} holds a {recorded['model']}, not a {name}. Pass --model {recorded['model']}")
    if stated and (recorded or not file):
        raise InputError(
            f"--pretrained {stated}=...: "
            + (
                f"{display(file)} records itself how it was trained; leave the tag out"
                if recorded
                else f"{shown(pretrained)} is no file"
            )
        )
    trained = {} if recorded else _training_of(name, source, file, stated)
    if quick_gelu is None:
        in_name = model_config(name).get("quick_gelu", False)  # the architectures named ...-quickgelu
        quick_gelu = recorded.get("quick_gelu", in_name or trained.get("quick_gelu", False))
    model = _build(name, image_size=image_size or recorded.get("image_size"), quick_gelu=quick_gelu)
    if source != "random":
        load_weights_file(model, file or _download(name, source), name)
    preprocess = {**open_clip.get_model_preprocess_cfg(model), **{k: v for k, v in trained.items() if v}}
    size = model.visual.image_size
    size = tuple(size) if isinstance(size, (tuple, list)) and size[0] != size[1] else size
    own_mode = "squash" if preprocess["resize_mode"] == "squash" else "shortest"
    tuned_mode = recorded.get("resize_mode") if recorded.get("stage", 0) > 1 else None
    model.visual.to(memory_format=torch.channels_last)  # convolutions run up to 1.5 times faster; others don't mind
    return LoadedClip(
        name=name,
        pretrained=display(file) if file else source,
        model=model.to(device),
        tokenizer=load_tokenizer(name),
        image_size=size if isinstance(size, int) or size[0] != size[1] else size[0],
        resize_mode=resize_mode or tuned_mode or data_resize_mode or own_mode,
        mean=tuple(recorded.get("mean") or preprocess["mean"]),
        std=tuple(recorded.get("std") or preprocess["std"]),
        quick_gelu=quick_gelu,
        seen_identities=recorded.get("seen_identities", {}),
    )


def _resolve_pretrained(name: str, pretrained: str | None) -> str:
    if is_elsewhere(name) and pretrained is None:
        return str(own_weights(name))
    if pretrained:
        tags = open_clip.list_pretrained_tags_by_model(name)
        if pretrained == "random" or Path(pretrained).is_file():
            return pretrained
        if pretrained.lower() in tags:
            return pretrained.lower()
        valid = ", ".join(tags) or "none"
        raise InputError(
            f"--pretrained {pretrained!r} is neither a file nor a tag of {name}. Tags: {valid}. "
            "A local weights file is given by its path; `random` starts from random weights."
        )
    if name in TINY_MODELS:
        command = f"python model/stage0_pretrain/pretrain_small_clip.py --model {name}"
        return str(newest_checkpoint(0, "*.pth", made_by=command, model=name))
    return "openai"


def _training_of(name: str, source: str, file: Path | None, stated: str | None = None) -> dict[str, Any]:
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


def _build(name: str, *, image_size: ImageSize | None, quick_gelu: bool) -> nn.Module:
    if isinstance(image_size, (tuple, list)):
        image_size = image_size[0] if image_size[0] == image_size[1] else tuple(image_size)
    vision = model_config(name)["vision_cfg"]
    if isinstance(image_size, tuple) and isinstance(vision.get("layers"), list):
        raise InputError(f"{name} pools with square position embeddings: give one number as --image_size")
    is_timm = "timm_model_name" in model_config(name)["vision_cfg"]
    try:
        with _silenced():  # open_clip warns that no weights were loaded; they are, later
            return open_clip.create_model(
                name,
                load_weights=False,
                pretrained_text=False,
                force_quick_gelu=quick_gelu and not is_timm,
                force_image_size=image_size,
            )
    except OSError as error:  # transformers looks the architecture of a text tower up in the hub
        tower = model_config(name)["text_cfg"].get("hf_model_name", name)
        raise InputError(
            f"{name} cannot be built ({type(error).__name__}): the configuration of its text tower is that of {tower} "
            "on the Hugging Face hub. Fetch it once on a machine with a network, and bring its cache (HF_HOME)"
        ) from error


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)


def _download(name: str, tag: str) -> Path:
    """The weights file of an open_clip tag, from open_clip's cache or the network."""
    config = open_clip.get_pretrained_cfg(name, tag)
    try:
        with _silenced():  # every retry of the download would be a line; the error below says what matters
            return Path(open_clip.download_pretrained(config))
    except Exception as error:  # urllib, huggingface_hub and httpx each raise their own kinds
        hub = config.get("hf_hub", "").rstrip("/")
        places = [f"open_clip_model.safetensors of https://huggingface.co/{hub}" if hub else "", config.get("url", "")]
        raise InputError(
            f"the weights {name},{tag} cannot be downloaded ({type(error).__name__}). On a machine with a network, "
            f"fetch {' or '.join(filter(None, places))}; put the file anywhere here, keep the tag in its name, and "
            "give its path: --pretrained PATH"
        ) from error


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


def is_image_parameter(name: str) -> bool:
    """Whether a parameter's name belongs to the image encoder."""
    return name.startswith("visual.")


def is_text_parameter(name: str) -> bool:
    """Whether a parameter's name belongs to the text encoder: neither the image encoder nor the temperature."""
    return not is_image_parameter(name) and name not in ("logit_scale", "logit_bias")


def freeze_text_encoder(model: nn.Module) -> None:
    """Stop gradients to the text encoder; the image encoder and the temperature stay as they are."""
    for name, parameter in model.named_parameters():
        if is_text_parameter(name):
            parameter.requires_grad_(False)


def clamp_logit_scale(model: nn.Module) -> None:
    """Keep the temperature's inverse in 1..100, in place (`logit_scale` is stored as a logarithm)."""
    with torch.no_grad():
        model.logit_scale.clamp_(0.0, torch.tensor(MAX_LOGIT_SCALE).log().item())


def encode_texts(clip: LoadedClip, texts: list[str], device: str | torch.device, batch_size: int = 256) -> torch.Tensor:
    """Unit-length features of `texts`, without gradients, float32 on the CPU: (len(texts), D)."""
    was_training = clip.model.training
    clip.model.eval()
    with torch.inference_mode():
        parts = [
            clip.model.encode_text(clip.tokenizer(texts[i : i + batch_size]).to(device), normalize=True)
            for i in range(0, len(texts), batch_size)
        ]
    clip.model.train(was_training)
    return torch.cat(parts).float().cpu().clone()
