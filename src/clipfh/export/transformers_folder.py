"""A folder that transformers loads: `CLIPModel.from_pretrained` and `CLIPProcessor.from_pretrained`."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import clipfh.models.torchvision_guard  # noqa: F401  (before open_clip)
from clipfh.core.errors import InputError, shown
from clipfh.export.source import Source
from clipfh.export.token_files import transformers_tokenizer
from clipfh.models.clip import LoadedClip
from clipfh.models.names import model_config
from clipfh.models.pretrained import silenced
from clipfh.models.weights_file import to_transformers

import open_clip  # isort: skip

_LOADING = '''\
import torch
from PIL import Image, ImageOps
from transformers import CLIPModel, CLIPProcessor

FOLDER = {folder!r}  # where this folder lies
model = CLIPModel.from_pretrained(FOLDER).eval()
processor = CLIPProcessor.from_pretrained(FOLDER)


def encode_photos(paths):
    """Unit-length features of photo files: (N, D)."""
    photos = [ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in paths]
    with torch.inference_mode():
        found = model.vision_model(**processor(images=photos, return_tensors="pt"))
        return torch.nn.functional.normalize(model.visual_projection(found.pooler_output)).numpy()


def encode_texts(texts):
    """Unit-length features of texts: (N, D)."""
    tokens = processor(text=texts, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        found = model.text_model(**tokens)
        return torch.nn.functional.normalize(model.text_projection(found.pooler_output)).numpy()
'''
# what CLIPModel has, too; any other setting of open_clip that is not as usual makes another architecture
_WHOLE = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
_VISION = {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "patch_dropout"}
_TEXT = {"context_length", "vocab_size", "layers", "width", "heads", "mlp_ratio"}
_INSTEAD = "Use --format open_clip or --format onnx"


def loading_code(source: Source, folder: str) -> str:
    """Python that loads the folder with transformers and PIL alone; for the card, and for the check."""
    return _LOADING.format(folder=folder)


def write_transformers(source: Source, folder: Path) -> list[str]:
    """Write model, tokenizer and image processor.

    Args:
        source: what to write.
        folder: an empty folder to write into.

    Returns:
        the names of the files with weights.

    Raises:
        InputError: the architecture is not the one that transformers calls CLIP, or photos are brought into its frame
            as CLIPProcessor cannot.
    """
    clip = source.clip
    require_plain_clip(clip)
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor
    from transformers.utils.logging import disable_progress_bar

    tokenizer = transformers_tokenizer(clip)
    model = CLIPModel(CLIPConfig(**_configuration(clip, tokenizer)))
    model.load_state_dict(to_transformers(clip.model.state_dict()))
    size = {"height": clip.image_size, "width": clip.image_size}
    squash = clip.resize_mode == "squash"
    processor = CLIPImageProcessor(
        size=size if squash else {"shortest_edge": clip.image_size},
        crop_size=size,
        do_center_crop=not squash,
        image_mean=list(clip.mean),
        image_std=list(clip.std),
    )
    disable_progress_bar()
    with silenced():
        model.save_pretrained(folder)
        CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
    return ["model.safetensors"]


def require_plain_clip(clip: LoadedClip) -> None:
    """Check that a model is what transformers calls CLIP: a ViT and a causal text transformer, both as OpenAI's.

    Raises:
        InputError: it is not; the message says in what, and which format to use.
    """
    config = model_config(clip.name)
    vision, text = config["vision_cfg"], config["text_cfg"]
    tower = vision.get("timm_model_name") or ("ResNet" if isinstance(vision.get("layers"), list) else "")
    if tower:
        raise InputError(f"transformers has no CLIP with {clip.name}'s image encoder ({tower}, no ViT). {_INSTEAD}")
    if text.get("hf_model_name"):
        raise InputError(
            f"transformers has no CLIP with {clip.name}'s text encoder ({text['hf_model_name']}). {_INSTEAD}"
        )
    other = {name: value for name, value in config.items() if name not in _WHOLE and value}
    other |= _unusual(vision, open_clip.CLIPVisionCfg, _VISION) | _unusual(text, open_clip.CLIPTextCfg, _TEXT)
    if other:
        name, value = next(iter(other.items()))
        raise InputError(f"transformers has no CLIP with what {clip.name} sets: {name} is {shown(value)}. {_INSTEAD}")
    if not isinstance(clip.image_size, int):
        raise InputError(f"transformers' CLIP takes square photos, not {clip.image_size}. {_INSTEAD}")
    if clip.resize_mode == "pad":
        raise InputError(f"this model wants photos padded, which CLIPProcessor cannot do. {_INSTEAD}")


def _unusual(config: dict[str, Any], of: type, known: set[str]) -> dict[str, Any]:
    """The settings beyond `known` that are not what open_clip takes where nothing is said."""
    usual = {field.name: field.default for field in fields(of)}
    return {name: value for name, value in config.items() if name not in known and value != usual.get(name)}


def _configuration(clip: LoadedClip, tokenizer: Any) -> dict[str, Any]:
    config = model_config(clip.name)
    vision, text = (
        {field.name: field.default for field in fields(of)} | config[part]
        for of, part in ((open_clip.CLIPVisionCfg, "vision_cfg"), (open_clip.CLIPTextCfg, "text_cfg"))
    )
    activation = "quick_gelu" if clip.quick_gelu else "gelu"
    return {
        "projection_dim": config["embed_dim"],
        "logit_scale_init_value": clip.model.logit_scale.item(),
        "vision_config": {
            "hidden_size": vision["width"],
            "intermediate_size": int(vision["width"] * vision["mlp_ratio"]),
            "projection_dim": config["embed_dim"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision["head_width"],
            "image_size": clip.image_size,
            "patch_size": vision["patch_size"],
            "hidden_act": activation,
        },
        "text_config": {
            "vocab_size": text["vocab_size"],
            "hidden_size": text["width"],
            "intermediate_size": int(text["width"] * text["mlp_ratio"]),
            "projection_dim": config["embed_dim"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "hidden_act": activation,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
    }
