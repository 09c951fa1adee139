"""Does the written folder compute what the checkpoint does? It is loaded by a fresh process, as its reader will do.

Shapes: N photos, T texts, D embedding.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipfh.core.errors import InputError, shortened
from clipfh.core.paths import ROOT
from clipfh.export.samples import Samples
from clipfh.export.source import Source
from clipfh.features.extraction import extract_features
from clipfh.models.clip import encode_texts

TOLERANCE = 1e-4  # of a component of a unit-length feature: float32 sums of another order differ by about 1e-6

# Only the code of the card runs there, none of the project's: what it lacks is missing for the reader, too. It encodes
# one photo and text first, then the others: any batch size must do.
_DRIVER = """
import json, sys
import numpy as np
job = json.loads(sys.stdin.read())
scope = {}
exec(compile(job["code"], "the card's code", "exec"), scope)
def encoded(encode, values):
    parts = [part for part in (values[:1], values[1:]) if part]
    return np.concatenate([encode(part) for part in parts])
np.savez(
    job["out"],
    framed=encoded(scope["encode_photos"], job["framed"]),
    files=encoded(scope["encode_photos"], job["files"]),
    texts=encoded(scope["encode_texts"], job["texts"]),
)
"""
# where PyPI's torchvision lies beside a CPU torch, whoever imports it needs this; elsewhere it does nothing
_GUARD = "import clipfh.models.torchvision_guard\n"


@dataclass(frozen=True)
class Parity:
    """How far the export's features are from the checkpoint's.

    Attributes:
        photos, texts: the largest absolute difference of a component, of framed photos and of texts.
        least_cosine: of a photo file that the library brings into its frame itself and one that the project does.
        told: what was compared.
    """

    photos: float
    texts: float
    least_cosine: float
    told: str


def check_parity(source: Source, samples: Samples, code: str, folder: Path, library: str) -> Parity:
    """Run `code`, which defines `encode_photos` and `encode_texts`, in a fresh process and compare the features.

    Args:
        source: the checkpoint.
        samples: what is encoded.
        code: as it stands in the card, with the place of the written folder.
        folder: for temporary files.
        library: what loads it, for messages.

    Raises:
        InputError: the code fails, or a feature differs by more than `TOLERANCE`.
    """
    parity = compare(source, samples, code, folder, library)
    if not max(parity.photos, parity.texts) < TOLERANCE:  # nor NaN
        raise InputError(
            f"{library} computes other features from the export than the checkpoint gives: they differ by up to "
            f"{parity.photos:.2g} (photos) and {parity.texts:.2g} (texts), more than {TOLERANCE:g}. Nothing is left "
            "behind. Another --format may do; is the library's version the one of constraints.txt?"
        )
    return parity


def compare(source: Source, samples: Samples, code: str, folder: Path, library: str) -> Parity:
    """How far the features are apart, as of `check_parity`, whatever they are."""
    found = encode_elsewhere(samples, code, folder, library)
    photos = extract_features(source.clip, samples.pixels, "cpu", quiet=True).numpy()  # (N, D)
    texts = encode_texts(source.clip, samples.texts, "cpu").numpy()  # (T, D)
    same_shape = photos.shape == found["files"].shape
    return Parity(
        photos=largest_difference(photos, found["framed"]),
        texts=largest_difference(texts, found["texts"]),
        least_cosine=float((photos * found["files"]).sum(axis=1).min()) if same_shape else float("nan"),
        told=f"{samples.told} and {len(samples.texts)} texts",
    )


def largest_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest absolute difference; infinite where the shapes differ."""
    return float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else float("inf")


def encode_elsewhere(samples: Samples, code: str, folder: Path, library: str) -> dict[str, np.ndarray]:
    """The features `framed` and `files` (N, D) and `texts` (T, D) by `code` in a fresh process, without a network.

    Raises:
        InputError: it fails, with the last line of what it said.
    """
    out = folder / "features.npz"
    places = {name: [str(path.resolve()) for path in getattr(samples, name)] for name in ("framed", "files")}
    job = {"code": code, "out": str(out.resolve()), "texts": samples.texts, **places}
    driver = _DRIVER if library == "onnxruntime" else _GUARD + _DRIVER
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run(
        [sys.executable, "-c", driver],
        input=json.dumps(job),
        env=os.environ | offline,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["it said nothing"]
        raise InputError(f"{library} cannot load or run the export: {shortened(lines[-1], 200)}")
    with np.load(out) as features:
        return dict(features)
