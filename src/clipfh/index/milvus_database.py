"""An index in Milvus: a file `NAME.db` without a server, or a server, by one client.

A build fills a new collection, `clipfh_1`, `clipfh_2`, ..., and then switches the one row of `clipfh_current` to it:
until then the old one is searched. That row also holds the model, as Milvus Lite keeps no description of a collection.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clipfh.core.errors import InputError, shortened
from clipfh.index.engine import (
    BUILT_BY,
    EF_CONSTRUCTION,
    EF_SEARCH,
    NEIGHBOURS,
    Match,
    Origin,
    num_lists,
    num_probes,
    size_on_disk,
)
from clipfh.index.packages import scale_package
from clipfh.index.shards import COLUMNS, Model, SavedFeatures, features_of, require_same_model

PREFIX = "clipfh_"
POINTER = f"{PREFIX}current"
ROWS_AT_ONCE = 1000  # of an insert: 2 MB with 512 dimensions, where a server takes 64
QUERIES_AT_ONCE = 256
MAX_K = 16_384  # of Milvus
MAX_EF, MAX_PROBES = 32_768, 65_536  # of Milvus: as far as it looks in a graph, and in lists
MAX_LENGTH = 1024  # bytes of a text
INDEX_TYPES = {"flat": "FLAT", "ivf": "IVF_FLAT", "hnsw": "HNSW"}
TOKEN = "MILVUS_TOKEN"


class MilvusDatabase:
    """An `Engine`; see there.

    Args:
        uri: a path that ends with `.db`, or `http(s)://HOST:PORT`; a server's token is that of the environment
            variable `MILVUS_TOKEN`.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.milvus = scale_package("pymilvus")
        self.is_file = not uri.startswith("http")
        if self.is_file:
            scale_package("milvus_lite")
        for name in ("pymilvus", "milvus_lite"):  # they log a traceback of each error that they raise
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._client: Any = None

    # ---- the interface

    def create(self, features: SavedFeatures, kind: str) -> None:
        """See `Engine.create`."""
        place = Path(self.uri)  # Milvus Lite fills a folder of this name; its older versions, a file
        if self.is_file and place.is_dir() and any(place.iterdir()) and not (place / "LOCK").exists():
            raise InputError(
                f"--index {self.uri} is no index and not empty; nothing is written into it. Choose another name"
            )
        with self._said():
            client = self._connected(make=True)
            numbers = [int(name.removeprefix(PREFIX)) for name in self._collections()]
            name = f"{PREFIX}{1 + max(numbers, default=0)}"
            self._make_collection(name, features, kind)
            for table in features:
                self._upsert(name, table)
            facts = {"collection": name, "kind": kind, "probes": num_probes(num_lists(features.count))}
            self._point_to({**facts, "model": features.model, "image_dir": features.image_dir})
            for other in self._collections():
                if other != name:
                    client.drop_collection(other)

    def add(self, features: SavedFeatures) -> int:
        """See `Engine.add`."""
        with self._said():
            there = self._there()
            require_same_model(there["model"], features.model, self._name, f"the features in {features.folder} were")
            before = self._count(there)
            for table in features:
                self._upsert(there["collection"], table)
            return self._count(there) - before

    def delete(self, ids: Iterable[str]) -> int:
        """See `Engine.delete`."""
        with self._said():
            there = self._there()
            before, ids = self._count(there), list(ids)
            for start in range(0, len(ids), ROWS_AT_ONCE):
                self._client.delete(there["collection"], ids=ids[start : start + ROWS_AT_ONCE])
            return before - self._count(there)

    def search(
        self, model: Model, vectors: np.ndarray, k: int, *, category: str | None = None, camera: str | None = None
    ) -> list[list[Match]]:
        """See `Engine.search`. `k` is at most 16,384."""
        if k > MAX_K:
            raise InputError(f"--k {k}: Milvus finds at most {MAX_K} at once; take less, or an index in a folder")
        with self._said():
            there = self._there()
            require_same_model(there["model"], model, self._name, "the query was")
            # Milvus Lite has no parameters of a filter, and knows JSON's escapes but those of single letters
            wanted = [
                f"{name} == {json.dumps(value, ensure_ascii=False)}"
                for name, value in (("category", category), ("camera", camera))
                if value is not None
            ]
            # what is near the query in a graph or in few lists may hold none of the nearest that a filter leaves
            found = self._nearest(there, vectors, k, " and ".join(wanted), everywhere=bool(wanted))
            short = [place for place, matches in enumerate(found) if len(matches) < k]
            if short and not wanted:  # the lists that were looked at held too few
                again = self._nearest(there, vectors[short], k, "", everywhere=True)
                for place, matches in zip(short, again, strict=True):
                    found[place] = matches
            return found

    def categories(self, limit: int) -> list[str]:
        """See `Engine.categories`. Milvus lists no distinct values: it is asked for rows of yet other categories."""
        with self._said():
            there, known = self._there(), [""]
            while len(known) <= limit:
                rows = self._client.query(
                    there["collection"],
                    filter=f"category not in {json.dumps(known, ensure_ascii=False)}",
                    output_fields=["category"],
                    limit=ROWS_AT_ONCE,
                )
                new = {row["category"] for row in rows}
                if not new:
                    break
                known += sorted(new)
            return sorted(known[1 : limit + 1])

    def origin(self) -> Origin:
        """See `Engine.origin`."""
        with self._said():
            there = self._there()
            return Origin(there["model"], there.get("image_dir", ""))

    def info(self) -> dict[str, Any]:
        """See `Engine.info`."""
        with self._said():
            there = self._there()
            facts = {
                "count": self._count(there),
                "dimension": there["model"]["dimension"],
                "kind": there["kind"],
                "model": there["model"]["model"],
                "weights": there["model"]["weights"],
            }
            return {**facts, "bytes": size_on_disk(Path(self.uri))} if self.is_file else facts

    def close(self) -> None:
        """End the connection: a file can be opened by one process at a time."""
        if self._client is not None:
            self._client.close()
            self._client = None

    # ---- collections

    @property
    def _name(self) -> str:
        return f"the index {self.uri}"

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """Turn Milvus's errors into messages."""
        try:
            yield
        except self.milvus.MilvusException as error:
            hint = (
                "is it an index, and open in no other process?"
                if self.is_file
                else f"is it running, and {TOKEN} right?"
            )
            raise InputError(f"Milvus at {self.uri}: {shortened(error, 160)}; {hint}") from error

    def _connected(self, *, make: bool = False) -> Any:
        if self._client is None:
            if self.is_file and not make and not Path(self.uri).exists():
                raise InputError(f"there is no index {self.uri}. Make it with: {BUILT_BY}")
            if self.is_file:
                try:
                    Path(self.uri).absolute().parent.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise InputError(f"cannot write {self.uri}: {error.strerror}. Choose another --index") from error
            token = {} if self.is_file else {"token": os.environ.get(TOKEN, "")}
            self._client = self.milvus.MilvusClient(self.uri, **token)
        return self._client

    def _collections(self) -> list[str]:
        names = self._client.list_collections()
        return [name for name in names if name.startswith(PREFIX) and name.removeprefix(PREFIX).isdigit()]

    def _current(self) -> dict[str, Any] | None:
        """The collection that counts, its kind and model; None where there is none."""
        client = self._connected()
        if not client.has_collection(POINTER):
            return None
        client.load_collection(POINTER)
        rows = client.get(POINTER, ids=["current"], output_fields=["facts"])
        return json.loads(rows[0]["facts"]) if rows else None

    def _nearest(
        self, there: dict[str, Any], vectors: np.ndarray, k: int, wanted: str, *, everywhere: bool
    ) -> list[list[Match]]:
        """What is found of the rows that the filter `wanted` leaves; `everywhere`: as far as Milvus looks at all."""
        found: list[list[Match]] = []
        for start in range(0, len(vectors), QUERIES_AT_ONCE):
            answers = self._client.search(
                there["collection"],
                data=list(np.asarray(vectors[start : start + QUERIES_AT_ONCE], dtype=np.float32)),
                limit=k,
                filter=wanted,
                output_fields=["item_id"],
                search_params=_search_parameters(there, k, everywhere=everywhere),
            )
            found += [
                [Match(hit["id"], hit["entity"]["item_id"], hit["distance"]) for hit in answer] for answer in answers
            ]
        return found

    def _there(self) -> dict[str, Any]:
        there = self._current()
        if there is None:
            raise InputError(f"there is no index in {self.uri}. Make it with: {BUILT_BY}")
        self._client.load_collection(there["collection"])
        return there

    def _point_to(self, facts: dict[str, Any]) -> None:
        client, types = self._client, self.milvus.DataType
        if not client.has_collection(POINTER):
            schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", types.VARCHAR, is_primary=True, max_length=64)
            schema.add_field("facts", types.VARCHAR, max_length=65_535)
            schema.add_field("nothing", types.FLOAT_VECTOR, dim=2)  # Milvus has no collection without vectors
            index = client.prepare_index_params()
            index.add_index("nothing", index_type="FLAT", metric_type="IP")
            client.create_collection(POINTER, schema=schema, index_params=index, consistency_level="Strong")
        client.upsert(POINTER, [{"id": "current", "facts": json.dumps(facts), "nothing": [0.0, 0.0]}])

    def _make_collection(self, name: str, features: SavedFeatures, kind: str) -> None:
        client, types = self._client, self.milvus.DataType
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        for column in COLUMNS:
            schema.add_field(column, types.VARCHAR, is_primary=column == "id", max_length=MAX_LENGTH)
        schema.add_field("features", types.FLOAT_VECTOR, dim=features.model["dimension"])
        index = client.prepare_index_params()
        parameters = {
            "flat": {},
            "ivf": {"nlist": num_lists(features.count)},
            "hnsw": {"M": NEIGHBOURS, "efConstruction": EF_CONSTRUCTION},
        }[kind]
        index.add_index("features", index_type=INDEX_TYPES[kind], metric_type="IP", params=parameters)
        client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")

    def _upsert(self, name: str, table: Any) -> None:
        vectors = features_of(table)
        rows = table.select(list(COLUMNS)).to_pylist()
        for row, vector in zip(rows, vectors, strict=True):
            row["features"] = vector
        for start in range(0, len(rows), ROWS_AT_ONCE):
            self._client.upsert(name, rows[start : start + ROWS_AT_ONCE])

    def _count(self, there: dict[str, Any]) -> int:
        rows = self._client.query(there["collection"], filter="", output_fields=["count(*)"])
        return rows[0]["count(*)"]


def _search_parameters(there: dict[str, Any], k: int, *, everywhere: bool) -> dict[str, Any]:
    probes = MAX_PROBES if everywhere else there["probes"]
    ef = MAX_EF if everywhere else min(MAX_EF, max(EF_SEARCH, 2 * k))
    kinds = {"flat": {}, "ivf": {"nprobe": probes}, "hnsw": {"ef": ef}}
    return {"params": kinds[there["kind"]]}
