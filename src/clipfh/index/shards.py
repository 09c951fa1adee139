"""Saved features: Parquet shards, each whole or absent, and the manifest that says they are complete, and of what.

`features_00000.parquet` has `id`, `item_id`, `category`, `camera` and `features`, a list of D float32 of unit length.
Its metadata hold the shard's identity, by which a later run knows it again, and which photos it lacks, and why.
Shapes: N rows, D embedding.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipfh.core.errors import InputError, shortened, shown
from clipfh.core.files import read_json, replace_atomically, write_json
from clipfh.images.photo_files import LeftOut
from clipfh.index.packages import scale_package

COLUMNS = ("id", "item_id", "category", "camera")  # of a listing, all text
FORMAT_VERSION = 1  # part of a shard's identity: raise it whenever the same model and photos give other shards
MANIFEST = "manifest.json"
MADE_BY = "python -m clipfh.index extract --images PATH --ckpt FILE --out DIR"
_KEY = b"clipfh"  # of the metadata
SHORT = 12  # characters of a digest, for a message

Model = dict[str, Any]  # what made features: the weights' digest, the architecture, the transforms; plain JSON values


def require_same_model(there: Model, here: Model, where: str, what: str) -> None:
    """Refuse features of another model than an index holds.

    Args:
        there: of the index.
        here: of what comes to it.
        where, what: names of both, for the message.

    Raises:
        InputError: they differ; the message names the digests of both, or what else differs.
    """
    if there == here:
        return
    if there["weights"] != here["weights"]:
        difference = f"weights {here['weights'][:SHORT]} ({here['model']}), not by {there['weights'][:SHORT]}"
        difference += f" ({there['model']})"
    else:
        name = next(name for name in here if here[name] != there.get(name))
        difference = f"{name} {here[name]}, not by {there.get(name)}"
    raise InputError(
        f"{what} made by {difference} as those of {where}: they cannot be compared. Take the checkpoint of the index, "
        "or build another index"
    )


@dataclass(frozen=True)
class Shard:
    """What a shard's file says of itself: its identity, and (photo, reason) of those that it lacks."""

    identity: str
    count: int
    unreadable: list[LeftOut]


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard, by its number from 0."""
    return folder / f"features_{number:05d}.parquet"


def shard_identity(model: Model, rows: Any, stamps: list[str]) -> str:
    """SHA-256 of all that a shard depends on: the model, the rows, and the photos' sizes and times."""
    digest = hashlib.sha256(f"{FORMAT_VERSION}:{json.dumps(model, sort_keys=True)}\n".encode())
    for row, stamp in zip(rows.to_pylist(), stamps, strict=True):
        digest.update(json.dumps([*row.values(), stamp]).encode())
    return digest.hexdigest()


def write_shard(path: Path, rows: Any, features: np.ndarray, shard_facts: Shard, model: Model) -> None:
    """Write rows (N) of a listing with their features (N, D) float32, atomically."""
    pa, parquet = scale_package("pyarrow"), scale_package("pyarrow.parquet")
    dimension = model["dimension"]
    column = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), dimension)
    recorded = {"identity": shard_facts.identity, "weights": model["weights"], "unreadable": shard_facts.unreadable}
    table = rows.append_column("features", column).replace_schema_metadata({_KEY: json.dumps(recorded)})
    with replace_atomically(path) as temporary:
        parquet.write_table(table, temporary)


def read_shard(path: Path) -> Shard | None:
    """What a shard's file says of itself, or None where it is absent or damaged."""
    pa, parquet = scale_package("pyarrow"), scale_package("pyarrow.parquet")
    try:
        metadata = parquet.read_metadata(path)
        recorded = json.loads(metadata.metadata[_KEY])
        unreadable = [(photo, reason) for photo, reason in recorded["unreadable"]]
        return Shard(recorded["identity"], metadata.num_rows, unreadable)
    except (pa.ArrowInvalid, OSError, ValueError, KeyError, TypeError):
        return None


def write_manifest(folder: Path, model: Model, shards: list[Shard], images: str, image_dir: str = "") -> None:
    """Say that `shards` are complete, and delete what an earlier, longer list left beside them.

    Args:
        folder: of the shards.
        model: what made them.
        shards: in their order.
        images: what the user called the photos.
        image_dir: the folder or URI that their ids are relative to.
    """
    counts = [shard.count for shard in shards]
    unreadable = sum(len(shard.unreadable) for shard in shards)
    write_json(
        folder / MANIFEST,
        {
            "format": FORMAT_VERSION,
            **model,
            "count": sum(counts),
            "unreadable": unreadable,
            "images": images,
            "image_dir": image_dir,
            "shards": counts,
        },
    )
    for path in folder.glob("features_*.parquet"):
        match = re.fullmatch(r"features_(\d{5,})\.parquet", path.name)
        if match and int(match[1]) >= len(shards):
            path.unlink(missing_ok=True)


class SavedFeatures:
    """A folder of shards, read one at a time; iterated as often as one likes.

    Attributes:
        folder: of the shards.
        model: what made them.
        count: N, of all shards.
        image_dir: the folder or URI that the ids are relative to, as it was then; empty where nobody has noted it.

    Raises:
        InputError: the folder has no manifest, so that an extraction is not complete, or a damaged one.
    """

    def __init__(self, folder: Path) -> None:
        if not Path(folder).is_dir():
            raise InputError(f"--features {folder} does not exist. Make it with: {MADE_BY}")
        manifest = read_json(folder / MANIFEST, made_by=MADE_BY, check=_is_manifest)
        self.folder, self.count, self._counts = folder, manifest["count"], manifest["shards"]
        self.image_dir: str = manifest.get("image_dir", "")
        not_model = ("format", "count", "unreadable", "images", "image_dir", "shards")
        self.model: Model = {name: value for name, value in manifest.items() if name not in not_model}

    def __iter__(self) -> Iterator[Any]:
        """Arrow tables, a shard each.

        Raises:
            InputError: a shard is missing, damaged, or of other weights than the manifest says.
        """
        pa, parquet = scale_package("pyarrow"), scale_package("pyarrow.parquet")
        for number, count in enumerate(self._counts):
            path = shard_path(self.folder, number)
            try:
                table = parquet.read_table(path)
                weights = json.loads(table.schema.metadata[_KEY])["weights"]
            except (pa.ArrowInvalid, OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path} cannot be read ({shortened(error, 80)}). Make it again: {MADE_BY}") from error
            if weights != self.model["weights"] or len(table) != count:
                raise InputError(
                    f"{path} has {len(table)} rows by weights {shown(weights[:SHORT])}, the manifest says {count} by "
                    f"{self.model['weights'][:SHORT]}. Make both again: {MADE_BY}"
                )
            yield table


def _is_manifest(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("weights"), str)
        and isinstance(value.get("dimension"), int)
        and isinstance(value.get("count"), int)
        and isinstance(value.get("image_dir", ""), str)
        and isinstance(value.get("shards"), list)
        and all(isinstance(count, int) for count in value["shards"])
    )


def features_of(table: Any) -> np.ndarray:
    """The column `features` of a shard: (N, D) float32."""
    column = table["features"].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(values.reshape(len(table), -1), dtype=np.float32)
