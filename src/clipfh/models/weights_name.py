"""What the name of a weights file tells: the open_clip tag that it was published under, hence how it was trained."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clipfh.models.torchvision_guard  # noqa: F401  (before open_clip)

import open_clip  # isort: skip

_SHORTEST_FOREIGN_TAG = 5  # "v1", "mrl" and "meta" are words of any file's name; they count for their own architecture


@dataclass(frozen=True)
class NamedWeights:
    """A tag found in a path: `config` is open_clip's record of it, `part` the part of the path that holds it."""

    tag: str
    part: str
    config: dict[str, Any]


def split_tag(pretrained: str) -> tuple[str | None, str]:
    """The tag and the file of `TAG=FILE`; no tag where none of open_clip's stands before the sign, as in a path."""
    tag, sign, file = pretrained.partition("=")
    is_tag = sign and tag.lower() in {known for _, known in open_clip.list_pretrained()}
    return (tag.lower(), file) if is_tag else (None, pretrained)


def weights_named_by(path: Path, model_name: str) -> NamedWeights | None:
    """The tag in a file's name, in the folder of a hub's cache, or that is the name of the file's folder.

    The longest tag wins; it must stand between characters that are neither letters nor digits, in any case and with
    `-` or `.` for `_`: `ViT-B-32.laion400m_e32.safetensors`, `models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K`.
    """
    path = path.absolute()
    folders = [part for part in path.parts[:-1] if part.startswith("models--")]
    for name, tag in open_clip.list_pretrained():  # some repositories carry no tag, such as timm/ViT-B-16-SigLIP
        config = open_clip.get_pretrained_cfg(name, tag)
        hub = "models--" + config.get("hf_hub", "").rstrip("/").replace("/", "--")
        if name == model_name and hub in folders:
            return NamedWeights(tag, hub, config)
    named = _longest_tag([path.name, *folders], model_name)
    return named or _longest_tag([path.parent.name], model_name, whole=True)


def _longest_tag(parts: list[str], model_name: str, *, whole: bool = False) -> NamedWeights | None:
    own = set(open_clip.list_pretrained_tags_by_model(model_name))
    tags = {tag for _, tag in open_clip.list_pretrained() if tag in own or len(tag) >= _SHORTEST_FOREIGN_TAG}
    for tag in sorted(tags, key=lambda tag: (-len(tag), tag)):
        words = re.escape(tag).replace("_", "[-_.]")
        pattern = rf"^{words}$" if whole else rf"(?<![a-z0-9]){words}(?![a-z0-9])"
        for part in parts:
            if re.search(pattern, part.lower()):
                return NamedWeights(tag, part, config_of(tag, model_name))
    return None


def config_of(tag: str, model_name: str) -> dict[str, Any]:
    """The tag's record for the architecture, else for the first that has the tag."""
    names = [name for name, other in open_clip.list_pretrained() if other == tag]
    return open_clip.get_pretrained_cfg(model_name if model_name in names else names[0], tag)
