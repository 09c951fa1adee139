"""The commands that make, change, search and describe an index; each has a `Config`, a `main` and its help."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from clipfh.core.cli import option
from clipfh.core.errors import InputError
from clipfh.core.files import require_file, text_lines
from clipfh.index.embedding import ModelConfig, decode_photos, embed_photos, load_model
from clipfh.index.engine import KINDS, Engine, open_engine
from clipfh.index.photos import FolderPhotos
from clipfh.index.shards import SHORT, SavedFeatures, model_of
from clipfh.models.clip import LoadedClip, encode_texts

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
SEARCH = """Find the photos of an index that are nearest to a photo, to words, or to the mean direction of both.

    python -m clipfh.index search --image photo.jpg --ckpt CKPT --index shop_index
    python -m clipfh.index search --text "a red mug" --k 20 --category mugs --ckpt CKPT --index shop_index

It prints rank, id, item id and similarity, with tabs between them.
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


@dataclass(frozen=True)
class SearchConfig(ModelConfig, IndexConfig):
    """The command line of `search`."""

    image: Path | None = option(None, "the photo to search by")
    text: str | None = option(None, "the words to search by")
    k: int = option(10, "photos to find", at_least=1)
    category: str | None = option(None, "only photos of this category")
    camera: str | None = option(None, "only photos of this camera")


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


def search(config: SearchConfig) -> None:
    """Search an index."""
    if config.image is None and config.text is None:
        raise InputError("what is searched for? Give --image FILE, --text WORDS, or both")
    if config.image is not None:
        require_file(config.image, "--image")
    engine = config.open()
    engine.info()  # an index that is not there is said before the model is loaded
    clip = load_model(config)
    query = query_vector(clip, config.image, config.text)
    (found,) = engine.search(
        model_of(clip), query[None].numpy(), config.k, category=config.category, camera=config.camera
    )
    print("rank\tid\titem_id\tsimilarity")
    for rank, match in enumerate(found, start=1):
        print(f"{rank}\t{match.id}\t{match.item_id}\t{match.similarity:.4f}")
    if not found:
        print("nothing: no photo has this category and camera")


def query_vector(clip: LoadedClip, image: Path | None, text: str | None) -> torch.Tensor:
    """The direction of a photo, of words, or the mean of both: (D,) float32 of unit length.

    Raises:
        InputError: the photo cannot be read.
    """
    device, directions = next(clip.model.parameters()).device, []
    if image is not None:
        decoded = decode_photos(FolderPhotos(image.parent), [image.name], clip.image_size, clip.resize_mode)
        if decoded.reasons[0]:
            raise InputError(f"--image {image} cannot be read ({decoded.reasons[0]}); give another")
        directions.append(torch.from_numpy(embed_photos(clip, decoded, device)[0]))
    if text is not None:
        directions.append(encode_texts(clip, [text], device)[0])
    return F.normalize(torch.stack(directions).mean(dim=0), dim=0)


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
    "search": (search, SearchConfig, SEARCH),
    "info": (info, IndexConfig, INFO),
}
