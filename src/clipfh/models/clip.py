"""Build, load and freeze CLIP models; everything that is particular to open_clip's interface is here.

Shapes: B batch, D embedding, L context length.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import clipfh.models.torchvision_guard  # noqa: F401  (before open_clip)
from clipfh.core.errors import InputError
from clipfh.core.paths import display
from clipfh.images.transforms import ImageSize
from clipfh.models.names import (
    canonical_model_name,
    is_of_parts,
    load_tokenizer,
    model_config,
    require_transformers,
)
from clipfh.models.pretrained import download, find_weights, load_weights_file, silenced

import open_clip  # isort: skip
from open_clip.hf_model import HFTextEncoder  # isort: skip

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
        first_weights: those that all fine-tuning began with, as `--pretrained` takes them; empty for pretrained ones.
        train_seed, recipe: of that fine-tuning, see `clipfh.training.recipe`; None and empty for pretrained ones.
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
    first_weights: str = ""
    train_seed: int | None = None
    recipe: str = ""

    def architecture(self) -> dict[str, Any]:
        """What a checkpoint records beside the weights, so that they are never loaded into anything else."""
        names = ("image_size", "resize_mode", "mean", "std", "quick_gelu")
        return {"model": self.name, **{name: getattr(self, name) for name in names}}


def shown_size(clip: LoadedClip) -> str:
    """How photos become its input, for a line of a log: `224 px, shortest` or `256 x 128 px, squash`."""
    size = clip.image_size if isinstance(clip.image_size, int) else " x ".join(map(str, clip.image_size))
    return f"{size} px, {clip.resize_mode}"


def first_weights_of(clip: LoadedClip) -> str:
    """What a fine-tuning of `clip` records as its first weights; empty where fine-tuned ones do not say."""
    return clip.first_weights or ("" if clip.seen_identities else clip.pretrained)


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
            so, `random`, or None: `stage4`, or None: `openai`, and for the models of stage 0 its newest.
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
    weights = find_weights(name, pretrained)
    recorded, trained = weights.recorded, weights.trained
    if quick_gelu is None:
        in_name = model_config(name).get("quick_gelu", False)  # the architectures named ...-quickgelu
        quick_gelu = recorded.get("quick_gelu", in_name or trained.get("quick_gelu", False))
    model = _build(name, image_size=image_size or recorded.get("image_size"), quick_gelu=quick_gelu)
    if weights.source != "random":
        load_weights_file(model, weights.file or download(name, weights.source), name)
    preprocess = {**open_clip.get_model_preprocess_cfg(model), **{k: v for k, v in trained.items() if v}}
    size = model.visual.image_size
    size = tuple(size) if isinstance(size, (tuple, list)) and size[0] != size[1] else size
    own_mode = "squash" if preprocess["resize_mode"] == "squash" else "shortest"
    tuned_mode = recorded.get("resize_mode") if recorded.get("stage", 0) > 1 else None
    model.visual.to(memory_format=torch.channels_last)  # convolutions run up to 1.5 times faster; others don't mind
    if isinstance(getattr(model, "text", None), HFTextEncoder):
        model.text.register_forward_pre_hook(without_padding)
    return LoadedClip(
        name=name,
        pretrained=display(weights.file) if weights.file else weights.source,
        model=model.to(device),
        tokenizer=load_tokenizer(name),
        image_size=size if isinstance(size, int) or size[0] != size[1] else size[0],
        resize_mode=resize_mode or tuned_mode or data_resize_mode or own_mode,
        mean=tuple(recorded.get("mean") or preprocess["mean"]),
        std=tuple(recorded.get("std") or preprocess["std"]),
        quick_gelu=quick_gelu,
        seen_identities=recorded.get("seen_identities", {}),
        first_weights=recorded.get("first_weights", ""),
        train_seed=recorded.get("train_seed"),
        recipe=recorded.get("recipe", ""),
    )


def _build(name: str, *, image_size: ImageSize | None, quick_gelu: bool) -> nn.Module:
    if isinstance(image_size, (tuple, list)):
        image_size = image_size[0] if image_size[0] == image_size[1] else tuple(image_size)
    config = model_config(name)
    vision, text = config["vision_cfg"], config["text_cfg"]
    if isinstance(image_size, tuple) and isinstance(vision.get("layers"), list):
        raise InputError(f"{name} pools with square position embeddings: give one number as --image_size")
    local = {"text_cfg": {**text, "hf_model_pretrained": False}} if is_of_parts(name) else {}  # no hub
    try:
        with silenced():  # open_clip warns that no weights were loaded; they are, later
            return open_clip.create_model(
                name,
                load_weights=False,
                pretrained_text=False,
                force_quick_gelu=quick_gelu and "timm_model_name" not in vision,
                force_image_size=image_size,
                **local,
            )
    except OSError as error:  # transformers looks the architecture of a text tower up in the hub
        tower = text.get("hf_model_name", name)
        raise InputError(
            f"{name} cannot be built ({type(error).__name__}): the configuration of its text tower is that of {tower} "
            "on the Hugging Face hub. Fetch it once on a machine with a network, and bring its cache (HF_HOME)"
        ) from error


def without_padding(tower: HFTextEncoder, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """Token ids (B, L) without the columns at the end that hold padding alone, for a tower that masks padding anyway.

    Tokenizers pad every text to the context length, and a short text then costs as much as the longest possible one.
    """
    (token_ids,) = inputs
    is_text = (token_ids != tower.config.pad_token_id).any(dim=0)  # (L,)
    length = int((is_text * torch.arange(1, len(is_text) + 1, device=is_text.device)).max())
    return (token_ids[:, : max(1, length)],)


def require_any_size(image_encoder: nn.Module, size: ImageSize, name: str) -> None:
    """Check that an image encoder, called `name`, also takes photos of another size than it was built for.

    Raises:
        InputError: it has position embeddings, or parts of a fixed size.
    """
    height, width = (size, size) if isinstance(size, int) else size
    parameter = next(image_encoder.parameters())
    was_training = image_encoder.training
    image_encoder.eval()
    try:
        with torch.inference_mode():
            image_encoder(parameter.new_zeros(1, 3, height, width))
    except (AssertionError, RuntimeError, ValueError) as error:  # timm asserts, torch's products do not fit
        raise InputError(
            f"{name} takes photos of one size, that of its position embeddings: leave --eval_image_size out"
        ) from error
    finally:
        image_encoder.train(was_training)


def is_image_parameter(name: str) -> bool:
    """Whether a parameter's name belongs to the image encoder."""
    return name.startswith("visual.")


def is_text_parameter(name: str) -> bool:
    """Whether a parameter's name belongs to the text encoder: neither the image encoder nor the temperature."""
    return not is_image_parameter(name) and name not in ("logit_scale", "logit_bias")


def token_embedding(model: nn.Module) -> nn.Embedding:
    """The table from which a CLIP's text encoder, open_clip's own or one of transformers, takes its tokens' vectors."""
    tower = getattr(model, "text", model)
    return tower.transformer.get_input_embeddings() if isinstance(tower, HFTextEncoder) else tower.token_embedding


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
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # short ones together: little padding
    with torch.inference_mode():
        parts = []
        for start in range(0, len(texts), batch_size):
            tokens = clip.tokenizer([texts[place] for place in order[start : start + batch_size]]).to(device)
            parts.append(clip.model.encode_text(tokens, normalize=True).float().cpu())
    clip.model.train(was_training)
    features = torch.empty(len(texts), parts[0].shape[1])
    features[order] = torch.cat(parts)
    return features
