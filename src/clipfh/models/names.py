"""Names of CLIP models: open_clip's own, `hf-hub:` and `local-dir:` ones, and those of transformers' CLIP."""

import difflib
import json
from pathlib import Path
from typing import Any

import clipfh.models.torchvision_guard  # noqa: F401  (before open_clip)
from clipfh.core.errors import InputError, printable, shortened
from clipfh.core.files import read_json
from clipfh.core.paths import SMALL_MODEL, STAGE0_SCRIPTS, TINY_MODELS
from clipfh.models.parts import HOW_TO_GET, TEXT_MODEL, has_parts, text_folder

import open_clip  # isort: skip
from open_clip.tokenizer import HFTokenizer  # isort: skip

HUB, FOLDER = "hf-hub:", "local-dir:"
CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
OF_TRANSFORMERS = {  # the same weights as open_clip's tag openai
    "openai/clip-vit-base-patch32": "ViT-B-32",
    "openai/clip-vit-base-patch16": "ViT-B-16",
    "openai/clip-vit-large-patch14": "ViT-L-14",
    "openai/clip-vit-large-patch14-336": "ViT-L-14-336",
}

open_clip.add_model_config(Path(__file__).parent / "configs")


def canonical_model_name(name: str) -> str:
    """open_clip's spelling of a model name: `ViT-B/16` and `ViT-B-16` are both `ViT-B-16`.

    `openai/clip-vit-base-patch16` is that, too; `hf-hub:ORG/NAME` and `local-dir:FOLDER` stay as they are.

    Raises:
        InputError: open_clip knows no such architecture; the message lists the common and the closest ones.
    """
    if name.startswith((HUB, FOLDER)):
        return name
    if name.lower() in OF_TRANSFORMERS:
        return OF_TRANSFORMERS[name.lower()]
    spelled = name.replace("/", "-")
    by_lower = {known.lower(): known for known in open_clip.list_models()}
    if spelled.lower() in by_lower:
        return by_lower[spelled.lower()]
    close = [by_lower[match] for match in difflib.get_close_matches(spelled.lower(), by_lower, n=3, cutoff=0.5)]
    common = [*STAGE0_SCRIPTS, "ViT-B/16", "ViT-B/32", "ViT-L/14", "RN50"]
    hint = f" Closest: {', '.join(close)}." if close else ""
    raise InputError(
        f"unknown model {shortened(name, 60)!r}. Valid: {', '.join(common)}, {HUB}ORG/NAME, {FOLDER}FOLDER, or any of "
        f"open_clip.list_models().{hint}"
    )


def model_config(name: str) -> dict[str, Any]:
    """open_clip's configuration of a canonical name: `embed_dim`, `vision_cfg`, `text_cfg`.

    Raises:
        InputError: the folder or the hub's repository has none.
    """
    if not name.startswith((HUB, FOLDER)):
        config = open_clip.get_model_config(name)
        if is_of_parts(name) and (folder := text_folder()):
            config["text_cfg"] |= {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder)}
        return config
    made_by = "open_clip.push_to_hf_hub, or save_for_hf"
    config = read_json(_file_of(name, (CONFIG,)), made_by=made_by, check=lambda value: _has_parts(value))
    return config["model_cfg"]


def own_weights(name: str) -> Path:
    """The weights file of an `hf-hub:` or `local-dir:` name.

    Raises:
        InputError: it has none, or the hub cannot be reached.
    """
    return _file_of(name, WEIGHTS)


def is_of_parts(name: str) -> bool:
    """Whether the text tower of a canonical name, and its tokenizer, are those of a package, see `models.parts`."""
    return not is_elsewhere(name) and open_clip.get_model_config(name)["text_cfg"].get("hf_model_name") == TEXT_MODEL


def is_elsewhere(name: str) -> bool:
    """Whether a canonical name brings its configuration and weights from a folder or the hub."""
    return name.startswith((HUB, FOLDER))


def require_transformers(name: str) -> None:
    """Check that a model whose text tower or tokenizer is of transformers can be built here.

    Raises:
        InputError: it needs transformers, which is not installed.
    """
    text = model_config(name).get("text_cfg", {})
    if name == SMALL_MODEL and not has_parts():
        raise InputError(f"{name} is made of parts that packages carry; {HOW_TO_GET}. Or take --model {TINY_MODELS[0]}")
    if not (text.get("hf_model_name") or text.get("hf_tokenizer_name") or "siglip" in name.lower()):
        return
    try:
        import transformers  # noqa: F401  (takes seconds: only where it is needed)
    except ImportError:
        raise InputError(
            f"{name} needs the package transformers for its text: install the extra `hf`, pip install -e '.[hf]'"
        ) from None


def load_tokenizer(name: str) -> Any:
    """open_clip's tokenizer of a canonical name: `tokenizer(list of texts) -> (B, L)` token ids.

    Raises:
        InputError: it needs transformers, or files of the hub that are not here.
    """
    require_transformers(name)
    text = model_config(name)["text_cfg"]
    try:
        if is_of_parts(name):
            return HFTokenizer(text["hf_tokenizer_name"], context_length=text["context_length"])
        return open_clip.get_tokenizer(name)
    except Exception as error:  # hub, network and parsers each raise their own kinds
        source = text.get("hf_tokenizer_name", name)
        raise InputError(
            f"the tokenizer of {name} cannot be loaded ({type(error).__name__}): it is {printable(source)} of the "
            "Hugging Face hub. Fetch it once on a machine with a network, and bring its cache (HF_HOME)"
        ) from error


def _has_parts(value: Any) -> bool:
    parts = value.get("model_cfg") if isinstance(value, dict) else None
    return isinstance(parts, dict) and all(isinstance(parts.get(key), dict) for key in ("vision_cfg", "text_cfg"))


def _file_of(name: str, candidates: tuple[str, ...]) -> Path:
    if name.startswith(FOLDER):
        folder = Path(name.removeprefix(FOLDER))
        found = [folder / candidate for candidate in candidates if (folder / candidate).is_file()]
        if not found:
            raise InputError(f"--model {name}: the folder has no {' or '.join(candidates)}")
        return found[0]
    from huggingface_hub import hf_hub_download

    repository, problem = name.removeprefix(HUB), None
    for candidate in candidates:
        try:
            return Path(hf_hub_download(repository, candidate))
        except Exception as error:  # a missing file, no network, no such name: each of its own kind
            problem = error
    raise InputError(
        f"--model {name}: {' or '.join(candidates)} cannot be had from the hub ({type(problem).__name__}). On a "
        f"machine with a network, download the repository, and give its folder: --model {FOLDER}FOLDER"
    )


def preprocessing_of(name: str) -> dict[str, Any]:
    """`mean`, `std`, `resize_mode` and so on of an `hf-hub:` or `local-dir:` name; empty where it says nothing."""
    content = json.loads(_file_of(name, (CONFIG,)).read_text(encoding="utf-8"))
    found = content.get("preprocess_cfg", {})
    return found if isinstance(found, dict) else {}
