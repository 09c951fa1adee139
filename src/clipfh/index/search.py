"""Find the photos of an index that are nearest to a photo, to words, or to both.

    python -m clipfh.index search --image photo.jpg --ckpt CKPT --index shop_index
    python -m clipfh.index search --text "a red mug" --k 20 --category mugs --ckpt CKPT --index shop_index

It prints rank, id, item id and similarity, with tabs between them.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from clipfh.core.cli import option
from clipfh.core.errors import InputError
from clipfh.core.files import require_file
from clipfh.features.queries import query_direction
from clipfh.index.commands import IndexConfig
from clipfh.index.embedding import ModelConfig, decode_photos, embed_photos, load_model, model_of
from clipfh.index.photos import FolderPhotos
from clipfh.models.clip import LoadedClip, encode_texts


@dataclass(frozen=True)
class Config(ModelConfig, IndexConfig):
    """The command line."""

    image: Path | None = option(None, "the photo to search by")
    text: str | None = option(None, "the words to search by")
    k: int = option(10, "photos to find", at_least=1)
    category: str | None = option(None, "only photos of this category")
    camera: str | None = option(None, "only photos of this camera")


def main(config: Config) -> None:
    """Search an index."""
    if (config.image is None and config.text is None) or (config.text is not None and not config.text.strip()):
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
    """The direction of a photo, of words, or of both (see `query_direction`): (D,) float32 of unit length.

    Raises:
        InputError: the photo cannot be read.
    """
    device, photo = next(clip.model.parameters()).device, None
    if image is not None:
        decoded = decode_photos(FolderPhotos(image.parent), [image.name], clip.image_size, clip.resize_mode)
        if decoded.reasons[0]:
            raise InputError(f"--image {image} cannot be read ({decoded.reasons[0]}); give another")
        photo = torch.from_numpy(embed_photos(clip, decoded, device))
    return query_direction(photo, None if text is None else encode_texts(clip, [text], device)[0].cpu())
