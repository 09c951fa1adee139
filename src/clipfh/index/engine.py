"""What every index does, whatever keeps it: a folder with FAISS, a database file or a server with Milvus.

Shapes: N photos, Q queries, D embedding, K length of a ranking.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clipfh.core.errors import InputError, shown
from clipfh.index.shards import Model, SavedFeatures

KINDS = ("flat", "ivf", "hnsw")
TRAINED_BY = 40  # rows that a list of an IVF is trained by, at least: FAISS asks for 39
MAX_LISTS = 65_536
NEIGHBOURS, EF_CONSTRUCTION, EF_SEARCH = 32, 100, 128  # of HNSW
BUILT_BY = "python -m clipfh.index build --index URI --features DIR"


@dataclass(frozen=True)
class Origin:
    """What an index was built of.

    Attributes:
        model: what made its features, and has to make the queries.
        image_dir: the folder or URI that its ids are relative to, as it was then; empty where nobody has noted it.
    """

    model: Model
    image_dir: str


@dataclass(frozen=True)
class Match:
    """A photo that was found: its id, whose it is, and the inner product of the unit vectors."""

    id: str
    item_id: str
    similarity: float


class Engine(Protocol):
    """An index of unit vectors by ids; the nearest is the one of the largest inner product."""

    def create(self, features: SavedFeatures, kind: str) -> None:
        """Replace what the index holds. Until it is complete the old content is searched; a kill loses nothing.

        Args:
            features: are read shard by shard, once or twice.
            kind: one of `KINDS`: `flat` is exact, `ivf` and `hnsw` look at a part.

        Raises:
            InputError: what is there is no index.
        """

    def add(self, features: SavedFeatures) -> int:
        """Add rows, in place of those of the same ids; how many ids were new.

        Raises:
            InputError: of another model than the index's.
        """

    def delete(self, ids: Iterable[str]) -> int:
        """Delete the rows of `ids`; how many there were."""

    def search(
        self, model: Model, vectors: np.ndarray, k: int, *, category: str | None = None, camera: str | None = None
    ) -> list[list[Match]]:
        """The most similar photos of each query, best first; fewer than `k` where the index has no more.

        Args:
            model: what made the queries.
            vectors: (Q, D) float32 of unit length.
            k: K.
            category, camera: only photos of these.

        Raises:
            InputError: queries by another model than the index's.
        """

    def categories(self, limit: int) -> list[str]:
        """Categories that rows have, sorted; `limit` of them where there are more."""

    def origin(self) -> Origin:
        """What the index was built of; rows that were added later may have other photos' folders."""

    def info(self) -> dict[str, Any]:
        """Count, dimension, kind, weights, size on disk and what else there is to know, for a reader."""


def open_engine(uri: str) -> Engine:
    """The index at a URI: `*.db` and `http(s)://` are Milvus's, a folder is FAISS's. Nothing is read yet.

    Raises:
        InputError: another scheme, or a package is lacking.
    """
    if uri.startswith(("http://", "https://")) or (uri.endswith(".db") and "://" not in uri):
        from clipfh.index.milvus_database import MilvusDatabase

        return MilvusDatabase(uri)
    if "://" in uri or not uri:
        raise InputError(
            f"--index {shown(uri)} is no index: give a folder (FAISS), a file NAME.db (Milvus without a server), or "
            "http://HOST:19530 (a Milvus server)"
        )
    if Path(uri).is_file():
        raise InputError(f"--index {uri} is a file; give a folder (FAISS), or a file NAME.db (Milvus)")
    from clipfh.index.faiss_folder import FaissFolder

    return FaissFolder(Path(uri))


def num_lists(count: int) -> int:
    """Lists of an IVF of `count` rows: 4 sqrt(N), as FAISS advises, but no more than there are rows to train."""
    return max(1, min(round(4 * count**0.5), count // TRAINED_BY, MAX_LISTS))


def num_probes(lists: int) -> int:
    """How many lists of an IVF are looked at."""
    return min(lists, max(8, lists // 16))


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
