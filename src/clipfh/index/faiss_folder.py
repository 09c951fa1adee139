"""An index in a folder, by FAISS, held in memory while it is used.

    INDEX/CURRENT                   name of the generation that counts
    INDEX/generation_00002/         index.faiss, photos.parquet, manifest.json

A change writes a whole new generation and then switches CURRENT, so that a kill at any time leaves the old or the new
one. FAISS knows a row by a number, its label; labels only grow. HNSW cannot remove rows: there they stay in the graph,
are left out of every answer, and are rid of by a rebuild once they are more than `MAX_DEAD` of all.

Shapes: N rows, Q queries, D embedding, K length of a ranking.
"""

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipfh.core.errors import InputError, shortened
from clipfh.core.files import read_json, require_no_others, unfinished_folder, write_json, write_text
from clipfh.index.engine import (
    BUILT_BY,
    EF_CONSTRUCTION,
    EF_SEARCH,
    NEIGHBOURS,
    TRAINED_BY,
    Match,
    Origin,
    num_lists,
    num_probes,
    size_on_disk,
)
from clipfh.index.packages import scale_package
from clipfh.index.shards import COLUMNS, Model, SavedFeatures, features_of, require_same_model

POINTER, LOCK, GENERATION = "CURRENT", ".lock", "generation_"
FORMAT_VERSION = 1
MAX_DEAD = 0.2  # of the rows of an HNSW graph


@dataclass
class _Generation:
    """An index in memory; `photos` is an Arrow table of `COLUMNS` and `label`, in ascending order of the labels."""

    index: Any
    photos: Any
    model: Model
    kind: str
    next_label: int
    image_dir: str

    @property
    def dead(self) -> int:
        return self.index.ntotal - len(self.photos) if self.kind == "hnsw" else 0


class FaissFolder:
    """An `Engine`; see there. The generation is read once, with the first call that needs it.

    Args:
        folder: of the index.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faiss = scale_package("faiss")
        scale_package("pyarrow")
        self._loaded: _Generation | None = None

    # ---- the interface

    def create(self, features: SavedFeatures, kind: str) -> None:
        """See `Engine.create`."""
        self._require_own_folder()
        with self._writing():
            made = self._empty(features, kind)
            for table in features:
                self._append(made, table)
            self._commit(made)

    def add(self, features: SavedFeatures) -> int:
        """See `Engine.add`."""
        self._current_name()  # no lock is left in a folder that is no index
        with self._writing():
            there = self._generation()
            require_same_model(there.model, features.model, self._name, f"the features in {features.folder} were")
            before = len(there.photos)
            for table in features:
                self._append(there, table)
            self._commit(there)
            return len(there.photos) - before

    def delete(self, ids: Iterable[str]) -> int:
        """See `Engine.delete`."""
        self._current_name()  # no lock is left in a folder that is no index
        with self._writing():
            there = self._generation()
            removed = self._remove(there, list(ids))
            if removed:
                self._commit(there)
            return removed

    def search(
        self, model: Model, vectors: np.ndarray, k: int, *, category: str | None = None, camera: str | None = None
    ) -> list[list[Match]]:
        """See `Engine.search`."""
        there = self._generation()
        require_same_model(there.model, model, self._name, "the query was")
        labels = there.photos["label"].to_numpy()
        allowed = self._allowed(there, category, camera)
        k = min(k, int(allowed.sum()))
        if not k:
            return [[] for _ in vectors]
        is_whole = len(allowed) == allowed.sum() and not there.dead
        selector = None if is_whole else self._selector(labels[allowed], there.next_label)
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        # what is near the query in a graph or in few lists may hold k that a filter leaves, and yet not the nearest
        exact = allowed.sum() < len(labels) or k > len(labels) // 2
        similarities, found = self._nearest(there, vectors, k, selector, exact=exact)
        short = (found < 0).any(axis=1)  # few lists, or a graph with deleted rows, can hold too little
        if short.any():
            similarities[short], found[short] = self._nearest(there, vectors[short], k, selector, exact=True)
        rows = np.searchsorted(labels, found)
        wanted = there.photos.select(["id", "item_id"]).take(rows.reshape(-1)).to_pydict()
        matches = [
            Match(*facts)
            for facts in zip(wanted["id"], wanted["item_id"], similarities.reshape(-1).tolist(), strict=True)
        ]
        return [matches[start : start + k] for start in range(0, len(matches), k)]

    def categories(self, limit: int) -> list[str]:
        """See `Engine.categories`."""
        compute = scale_package("pyarrow.compute")
        found = compute.unique(self._generation().photos["category"])
        return found.filter(compute.not_equal(found, "")).sort()[:limit].to_pylist()

    def origin(self) -> Origin:
        """See `Engine.origin`."""
        there = self._generation()
        return Origin(there.model, there.image_dir)

    def info(self) -> dict[str, Any]:
        """See `Engine.info`."""
        there = self._generation()
        facts = {
            "count": len(there.photos),
            "dimension": there.model["dimension"],
            "kind": there.kind,
            "model": there.model["model"],
            "weights": there.model["weights"],
            "bytes": size_on_disk(self.folder),
        }
        if there.kind == "hnsw":
            facts["deleted, still in the graph"] = there.dead
        if there.kind == "ivf":
            facts["lists"], facts["lists looked at"] = there.index.nlist, there.index.nprobe
        return facts

    # ---- rows in memory

    def _empty(self, features: SavedFeatures, kind: str) -> _Generation:
        faiss, pa = self.faiss, scale_package("pyarrow")
        dimension = features.model["dimension"]
        if kind == "flat":
            index = faiss.IndexIDMap2(faiss.IndexFlatIP(dimension))
        elif kind == "hnsw":
            index = faiss.IndexHNSWFlat(dimension, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction, index.hnsw.efSearch = EF_CONSTRUCTION, EF_SEARCH
        else:  # keeps labels itself; an IDMap around it would lose track of them when rows are removed
            lists = num_lists(features.count)
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, lists, faiss.METRIC_INNER_PRODUCT)
            index.nprobe = num_probes(lists)
            index.train(_sample(features, TRAINED_BY * lists))
        columns = {**dict.fromkeys(COLUMNS, pa.array([], pa.string())), "label": pa.array([], pa.int64())}
        return _Generation(index, pa.table(columns), features.model, kind, 0, features.image_dir)

    def _append(self, there: _Generation, table: Any) -> None:
        """Add the rows of a shard, in place of those that have their ids."""
        pa = scale_package("pyarrow")
        self._remove(there, table["id"])
        vectors = features_of(table)
        labels = np.arange(there.next_label, there.next_label + len(table))
        if there.kind == "hnsw":
            there.index.add(vectors)  # a row's label is its place
        else:
            there.index.add_with_ids(vectors, labels)
        rows = table.select(list(COLUMNS)).replace_schema_metadata().append_column("label", pa.array(labels))
        there.photos = pa.concat_tables([there.photos, rows])
        there.next_label += len(table)

    def _remove(self, there: _Generation, ids: Any) -> int:
        pa, compute = scale_package("pyarrow"), scale_package("pyarrow.compute")
        found = compute.is_in(
            there.photos["id"], value_set=pa.array(ids, pa.string()) if isinstance(ids, list) else ids
        )
        removed = there.photos.filter(found)["label"].to_numpy()
        if not len(removed):
            return 0
        there.photos = there.photos.filter(compute.invert(found))
        if there.kind != "hnsw":
            there.index.remove_ids(self.faiss.IDSelectorBatch(removed))
        return len(removed)

    def _without_dead(self, there: _Generation) -> None:
        """Build the graph of an HNSW again of the rows that are left."""
        pa = scale_package("pyarrow")
        faiss, old = self.faiss, there.index
        index = faiss.IndexHNSWFlat(old.d, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = EF_CONSTRUCTION, EF_SEARCH
        labels = there.photos["label"].to_numpy()
        for start in range(0, len(labels), 10_000):
            index.add(np.stack([old.reconstruct(int(label)) for label in labels[start : start + 10_000]]))
        there.index, there.next_label = index, len(labels)
        there.photos = there.photos.set_column(len(COLUMNS), "label", pa.array(np.arange(len(labels))))

    # ---- searching

    def _allowed(self, there: _Generation, category: str | None, camera: str | None) -> np.ndarray:
        """Which rows the filters leave: (N,) bool."""
        compute = scale_package("pyarrow.compute")
        allowed = np.ones(len(there.photos), bool)
        for name, value in (("category", category), ("camera", camera)):
            if value is not None:
                allowed &= compute.equal(there.photos[name], value).to_numpy(zero_copy_only=False)
        return allowed

    def _selector(self, labels: np.ndarray, next_label: int) -> Any:
        """FAISS's selector of these labels, a bit a label: it costs as little for a million as for one."""
        bits = np.zeros(next_label, bool)
        bits[labels] = True
        return self.faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))

    def _nearest(
        self, there: _Generation, vectors: np.ndarray, k: int, selector: Any, *, exact: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Similarities and labels, both (Q, K); a label is -1 where too few were found."""
        faiss, index = self.faiss, there.index
        if there.kind == "ivf":
            nprobe = index.nlist if exact else index.nprobe
            return index.search(vectors, k, params=faiss.SearchParametersIVF(sel=selector, nprobe=nprobe))
        if there.kind == "hnsw" and not exact:
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=max(EF_SEARCH, 2 * k))
            return index.search(vectors, k, params=parameters)
        if there.kind == "hnsw":
            index = faiss.downcast_index(index.storage)  # all vectors, by the same labels
        return index.search(vectors, k, params=faiss.SearchParameters(sel=selector))

    # ---- files

    @property
    def _name(self) -> str:
        return f"the index {self.folder}"

    def _require_own_folder(self) -> None:
        """Check that the folder can become an index: it is one, is absent, or holds nothing else.

        Raises:
            InputError: other files are there.
        """
        if not (self.folder / POINTER).is_file():
            require_no_others(self.folder, "--index", "is no index and", own=(GENERATION,))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One process at a time changes the index; what it has in memory counts only once it is written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(f"cannot write to {self.folder}: {error.strerror}. Choose another --index") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._loaded = None  # another process may have changed it since
            yield
        except BlockingIOError:
            raise InputError(f"another process is changing {self.folder}; try again when it has ended") from None
        except BaseException:
            self._loaded = None
            raise
        finally:
            os.close(handle)

    def _generation(self) -> _Generation:
        """The generation that CURRENT names.

        Raises:
            InputError: there is none, or it is damaged.
        """
        while self._loaded is None:
            name = self._current_name()
            try:
                self._loaded = self._read(self.folder / name)
            except InputError:
                if name == self._current_name():
                    raise  # else a change deleted it while it was read, and another is there
        return self._loaded

    def _current_name(self) -> str:
        pointer = self.folder / POINTER
        if not pointer.is_file():
            raise InputError(f"there is no index in {self.folder}. Make it with: {BUILT_BY}")
        return pointer.read_text(encoding="utf-8").strip()

    def _read(self, folder: Path) -> _Generation:
        parquet, pa = scale_package("pyarrow.parquet"), scale_package("pyarrow")
        manifest = read_json(folder / "manifest.json", made_by=BUILT_BY)
        try:
            index = self.faiss.read_index(str(folder / "index.faiss"))
            photos = parquet.read_table(folder / "photos.parquet")
            if len(photos) != manifest["count"]:
                raise ValueError(f"{len(photos)} photos, not {manifest['count']}")
            facts = (manifest["model"], manifest["kind"], manifest["next_label"], manifest.get("image_dir", ""))
            return _Generation(index, photos, *facts)
        except (RuntimeError, pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
            raise InputError(f"{folder} is damaged ({shortened(error, 80)}). Build it again: {BUILT_BY}") from error

    def _commit(self, made: _Generation) -> None:
        """Write a new generation, switch CURRENT to it, delete the others."""
        if made.dead > MAX_DEAD * made.index.ntotal:
            self._without_dead(made)
        number = 1 + max((int(path.name.removeprefix(GENERATION)) for path in self._generations()), default=0)
        name = f"{GENERATION}{number:05d}"
        with unfinished_folder(self.folder / name) as folder:
            self._write(made, folder)
            folder.rename(self.folder / name)
        write_text(self.folder / POINTER, name + "\n")
        self._loaded = made
        for path in self._generations():
            if path.name != name:
                shutil.rmtree(path, ignore_errors=True)

    def _generations(self) -> list[Path]:
        return [path for path in self.folder.glob(f"{GENERATION}*") if path.name.removeprefix(GENERATION).isdigit()]

    def _write(self, made: _Generation, folder: Path) -> None:
        try:
            self.faiss.write_index(made.index, str(folder / "index.faiss"))
            scale_package("pyarrow.parquet").write_table(made.photos, folder / "photos.parquet")
        except (RuntimeError, OSError) as error:
            raise InputError(f"cannot write {folder} ({shortened(error)}); is the disk full?") from error
        facts = {"format": FORMAT_VERSION, "kind": made.kind, "count": len(made.photos)}
        write_json(
            folder / "manifest.json",
            {**facts, "next_label": made.next_label, "model": made.model, "image_dir": made.image_dir},
        )


def _sample(features: SavedFeatures, count: int) -> np.ndarray:
    """About `count` rows of all shards, (n, D): every row as likely as another, and the same ones each time."""
    generator = np.random.default_rng(0)
    share = min(1.0, count / max(1, features.count))
    parts = []
    for table in features:
        vectors = features_of(table)
        parts.append(vectors[generator.random(len(vectors)) < share])
    return np.concatenate(parts)
