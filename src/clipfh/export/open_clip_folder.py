"""A folder that open_clip loads: `local-dir:FOLDER`."""

from pathlib import Path

from safetensors.torch import save_file

import clipfh.models.torchvision_guard  # noqa: F401  (before open_clip)
from clipfh.core.files import write_json
from clipfh.export.source import Source
from clipfh.models.clip import LoadedClip
from clipfh.models.names import CONFIG, WEIGHTS, model_config

from open_clip.hf_model import HFTextEncoder  # isort: skip
from open_clip.tokenizer import HFTokenizer  # isort: skip

_LOADING = '''\
import open_clip
import torch
from PIL import Image, ImageOps

FOLDER = {folder!r}  # where this folder lies
{create}
tokenizer = open_clip.get_tokenizer(f"local-dir:{{FOLDER}}")
model.eval()


def encode_photos(paths):
    """Unit-length features of photo files: (N, D)."""
    photos = [ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in paths]
    with torch.inference_mode():
        return model.encode_image(torch.stack([preprocess(photo) for photo in photos]), normalize=True).numpy()


def encode_texts(texts):
    """Unit-length features of texts: (N, D)."""
    with torch.inference_mode():
        return model.encode_text(tokenizer(texts), normalize=True).numpy()
'''
_PLAIN = 'model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{FOLDER}")'
# open_clip looks for the configuration of such a tower in the hub, or where it is told
_WITH_TOWER = """\
with open(f"{FOLDER}/open_clip_config.json", encoding="utf-8") as file:
    text_tower = json.load(file)["model_cfg"]["text_cfg"] | {"hf_model_name": FOLDER, "hf_model_pretrained": False}
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{FOLDER}", text_cfg=text_tower)"""


def loading_code(source: Source, folder: str) -> str:
    """Python that loads the folder with open_clip and PIL alone, wherever it lies; for the card, and for the check."""
    if has_tower(source.clip):
        return "import json\n\n" + _LOADING.format(folder=folder, create=_WITH_TOWER)
    return _LOADING.format(folder=folder, create=_PLAIN)


def has_tower(clip: LoadedClip) -> bool:
    """Whether the text encoder is one of transformers."""
    return isinstance(getattr(clip.model, "text", None), HFTextEncoder)


def write_open_clip(source: Source, folder: Path, final: Path) -> list[str]:
    """Write configuration, weights and, where they are of transformers, tokenizer and text tower's configuration.

    Args:
        source: what to write.
        folder: an empty folder to write into.
        final: where it will lie: open_clip finds a text tower of transformers by a path, not beside its own files.

    Returns:
        the names of the files with weights.
    """
    clip = source.clip
    config = model_config(clip.name)
    vision, text = config["vision_cfg"], config["text_cfg"]
    vision["image_size"] = clip.image_size
    if clip.quick_gelu and "timm_model_name" not in vision:  # towers of timm have activations of their own
        config["quick_gelu"] = True
    if isinstance(clip.tokenizer, HFTokenizer):
        clip.tokenizer.save_pretrained(folder)
        text["hf_tokenizer_name"] = str(final)
    if has_tower(clip):
        clip.model.text.config.save_pretrained(folder)
        text |= {"hf_model_name": str(final), "hf_model_pretrained": False}
    preprocess = {"mean": clip.mean, "std": clip.std, "interpolation": "bicubic", "resize_mode": clip.resize_mode}
    if clip.resize_mode == "pad":  # whole, on white
        preprocess |= {"resize_mode": "longest", "fill_color": 255}
    write_json(folder / CONFIG, {"model_cfg": config, "preprocess_cfg": preprocess})
    weights = {name: value.contiguous() for name, value in clip.model.state_dict().items()}
    save_file(weights, folder / WEIGHTS[0], metadata={"format": "pt"})
    return [WEIGHTS[0]]
