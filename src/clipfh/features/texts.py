"""Features of captions by a frozen text encoder: computed once, kept in a file, read through a memory map.

A frozen encoder gives the same caption the same feature in every epoch and every run. Shapes: T texts, D embedding.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from clipfh.core.files import replace_atomically

MAX_KEPT = 6  # files that stay in a folder: one for each set of captions and text encoder, the last used
_FORMAT = 1

Encode = Callable[[Sequence[str]], torch.Tensor]


def load_text_features(
    texts: Sequence[str], encode: Encode, encoder_digest: str, folder: Path, *, batch_size: int = 256
) -> np.ndarray:
    """Unit-length features of `texts`, (T, D) float32: from `folder` where they are there already.

    Args:
        texts: the captions.
        encode: some texts to their features (n, D), unit length.
        encoder_digest: of the weights and all else that `encode` depends on.
        folder: of the files; the oldest are deleted there.
        batch_size: texts at a time.

    Raises:
        InputError: the folder cannot be written.
    """
    key = json.dumps([_FORMAT, encoder_digest, list(texts)], ensure_ascii=False)
    path = folder / f"captions_{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
    try:
        features = np.load(path, mmap_mode="r")
        if len(features) == len(texts) and np.isfinite(features).all():
            path.touch()  # used: among the newest
            return features
    except (OSError, ValueError, EOFError):  # absent or damaged: made again
        pass
    starts = range(0, len(texts), batch_size)
    bar = tqdm(starts, "encode captions", unit="batch", disable=None, leave=False)
    features = torch.cat([encode(texts[start : start + batch_size]) for start in bar]).float().cpu().numpy()
    with replace_atomically(path) as temporary, temporary.open("wb") as file:
        np.save(file, features)
    for old in sorted(folder.glob("captions_*.npy"), key=lambda file: file.stat().st_mtime_ns)[:-MAX_KEPT]:
        old.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")
