"""The commands that make, change and describe an index: they need no model, and so start without torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clipfh.core.cli import option
from clipfh.core.errors import InputError
from clipfh.core.files import require_file, text_lines
from clipfh.index.engine import KINDS, Engine, open_engine
from clipfh.index.shards import SHORT, SavedFeatures

BUILD = """Make an index of saved features, in place of what is there: the old one is searched until the new is whole.

    python -m clipfh.index build --features features --index shop_index
    python -m clipfh.index build --features features --index shop.db --kind hnsw

A folder is FAISS's, NAME.db and http://HOST:19530 are Milvus's (a server's token: the variable MILVUS_TOKEN).
"""
ADD = """Add saved features to an index, in place of photos of the same ids.

    python -m clipfh.index add --features new_features --index shop_index
"""
DELETE = """Delete photos from an index by their ids, which are their paths below the image root.

    python -m clipfh.index delete --id red_mug/1.jpg --index shop_index
    python -m clipfh.index delete --ids gone.txt --index shop_index
"""
INFO = """Say what an index holds: count, dimension, kind, weights, size on disk.

    python -m clipfh.index info --index shop_index
"""


@dataclass(frozen=True)
class IndexConfig:
    """The flag of every command here."""

    index: str = option("", "a folder (FAISS), NAME.db (Milvus without a server) or http://HOST:19530 (Milvus)")

    def open(self) -> Engine:
        """The index.

        Raises:
            InputError: none is named, or it is none.
        """
        if not self.index:
            raise InputError("which index? Give --index: a folder, NAME.db, or http://HOST:19530")
        return open_engine(self.index)


@dataclass(frozen=True)
class AddConfig(IndexConfig):
    """The command line of `add`."""

    features: Path = option(Path("features"), "folder that `extract` has written")


@dataclass(frozen=True)
class BuildConfig(AddConfig):
    """The command line of `build`."""

    kind: str = option("flat", "flat is exact; ivf and hnsw are faster and look at a part of the photos", choices=KINDS)


@dataclass(frozen=True)
class DeleteConfig(IndexConfig):
    """The command line of `delete`."""

    id: str | None = option(None, "one id")
    ids: Path | None = option(None, "a text file with an id a line")


def build(config: BuildConfig) -> None:
    """Make an index."""
    engine, features = config.open(), SavedFeatures(config.features)
    engine.create(features, config.kind)
    _say(engine, config.index)


def add(config: AddConfig) -> None:
    """Add to an index."""
    engine, features = config.open(), SavedFeatures(config.features)
    new = engine.add(features)
    print(f"added {new:,} photos, replaced {features.count - new:,}")
    _say(engine, config.index)


def delete(config: DeleteConfig) -> None:
    """Delete from an index."""
    if (config.id is None) == (config.ids is None):
        raise InputError("what is to be deleted? Give --id, or --ids with a file of an id a line")
    ids = [config.id] if config.ids is None else _lines(config.ids)
    engine = config.open()
    removed = engine.delete(ids)
    print(f"deleted {removed:,} photos; {len(set(ids)) - removed:,} of the ids were not there")
    _say(engine, config.index)


def _lines(path: Path) -> list[str]:
    try:
        lines = text_lines(require_file(path, "--ids").read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"--ids {path} is no text in UTF-8 ({error.reason})") from error
    return [line for line in lines if line.strip()]


def info(config: IndexConfig) -> None:
    """Describe an index."""
    _say(config.open(), config.index)


def _say(engine: Engine, uri: str) -> None:
    facts = engine.info()
    facts["weights"] = facts["weights"][:SHORT]
    if "bytes" in facts:
        facts["on disk"] = f"{facts.pop('bytes') / 2**20:,.1f} MiB"
    print(
        f"{uri}: "
        + ", ".join(
            f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in facts.items()
        )
    )


COMMANDS: dict[str, tuple[Callable, type, str]] = {
    "build": (build, BuildConfig, BUILD),
    "add": (add, AddConfig, ADD),
    "delete": (delete, DeleteConfig, DELETE),
    "info": (info, IndexConfig, INFO),
}
