"""The checkpoint that is exported, loaded, with what it records of itself."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipfh.core.errors import InputError
from clipfh.core.files import require_file
from clipfh.core.paths import display
from clipfh.models.clip import LoadedClip, load_clip
from clipfh.models.pretrained import recorded_architecture


@dataclass(frozen=True)
class Source:
    """A checkpoint that is exported.

    Attributes:
        path: its file.
        recorded: its plain values.
        clip: the model, on the CPU, in evaluation mode.
    """

    path: Path
    recorded: dict[str, Any]
    clip: LoadedClip


def load_source(path: Path) -> Source:
    """Load a checkpoint of stages 0, 2, 3 or 4 (`_CLIP.pth`) on the CPU.

    Raises:
        InputError: it is missing or damaged, does not say of which architecture it is, or holds no whole CLIP.
    """
    recorded = recorded_architecture(require_file(path, "--ckpt"))
    if not recorded:
        raise InputError(
            f"--ckpt {display(path)} does not record its architecture: it is no checkpoint of a stage. Give a "
            "<run>_BEST.pth; weights from elsewhere become one by stage 2 or 3, which take them as --pretrained"
        )
    if "image_encoder" in recorded or "part" in recorded:
        raise InputError(
            f"--ckpt {display(path)} holds parts of stage {recorded.get('stage')}, no CLIP. Of stage 4, give the "
            "<run>_<model>_CLIP.pth, which --image_encoder clip writes"
        )
    clip = load_clip(recorded["model"], str(path))
    clip.model.eval()
    return Source(path, recorded, clip)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
