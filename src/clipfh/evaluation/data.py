"""What an evaluation measures on: the readable test images, their splits and the text queries."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from clipfh.core.errors import InputError
from clipfh.images.pixels import Pixels, drop_unreadable, load_pixels
from clipfh.models.clip import LoadedClip
from clipfh.prompts.files import read_prompts
from clipfh.tables.digest import SHORT, digest_of
from clipfh.tables.prepared import SPLITS, TOKEN_SAFE_PROMPTS, PreparedDataset, load_prompts, say_cut_prompts
from clipfh.tables.splits import read_splits

Split = dict[str, list[str]]  # "query" and "gallery": images


@dataclass(frozen=True)
class EvaluationData:
    """The test images of a dataset.

    Attributes:
        pixels: of the N readable images.
        table: their N rows, in the same order.
        official: the official split, without unreadable images.
        random: the random splits, likewise.
        prompts: of every test identity.
    """

    pixels: Pixels
    table: pd.DataFrame
    official: Split
    random: list[Split]
    prompts: dict[str, list[str]]


def load_evaluation_data(
    data: PreparedDataset,
    clip: LoadedClip,
    cache_dir: Path,
    *,
    listing: Path,
    prompt_json: Path | None,
    skip_unreadable: bool,
    fast_decode: bool,
    verify: bool = False,
) -> EvaluationData:
    """Decode the test photos of `data` for `clip`, or take them from `cache_dir`; read splits and prompts.

    Raises:
        InputError: unreadable photos (listed in the CSV `listing`, unless skipped), missing splits or prompts.
    """
    table = data.rows("query", "gallery")
    splits = read_splits(data.folder / SPLITS, table)
    prompts = load_prompts(data, prompt_json, TOKEN_SAFE_PROMPTS, "query", "gallery")
    say_cut_prompts(prompts, clip.tokenizer, clip.name)
    images = table["image"].tolist()
    pixels = load_pixels(
        data.image_dir,
        images,
        clip.image_size,
        cache_dir,
        resize_mode=clip.resize_mode,
        fast_decode=fast_decode,
        max_megapixels=data.max_megapixels,
        verify=verify,
    )
    table = drop_unreadable(table, pixels, listing, skip_unreadable=skip_unreadable)
    readable = set(pixels.images)

    def kept(split: Split) -> Split:
        return {side: [image for image in split[side] if image in readable] for side in ("query", "gallery")}

    official = kept(splits["official"])
    require_matches(data, table, official)
    return EvaluationData(pixels, table, official, [kept(split) for split in splits["random"]], prompts)


def what_differs(data: PreparedDataset, test: EvaluationData, prompt_json: Path | None) -> str:
    """What an evaluation measures otherwise than the prepared dataset says, for its rows; empty: nothing.

    Such as `same camera counted, prompts 1a2b3c4d5e6f`, by a digest of the test identities' prompts.
    """
    parts = []
    if not data.own_protocol:
        parts.append("same camera left out" if data.exclude_same_camera else "same camera counted")
    if prompt_json:
        own = data.folder / TOKEN_SAFE_PROMPTS
        prompts = read_prompts(own) if own.is_file() else {}
        if any(prompts.get(item_id) != texts for item_id, texts in test.prompts.items()):
            digest = digest_of((item_id, *texts) for item_id, texts in test.prompts.items())
            parts.append(f"prompts {digest[:SHORT]}")
    return ", ".join(parts)


def require_matches(data: PreparedDataset, table: pd.DataFrame, split: Split) -> None:
    """Check that some query of `split` can be found in its gallery.

    Raises:
        InputError: none can; the message says whether photos or cameras lack, and what helps.
    """
    rows = table.set_index("image")[["item_id", "camera"]]
    queries, gallery = rows.loc[split["query"]], rows.loc[split["gallery"]]
    if queries.empty or gallery.empty:
        raise InputError(
            f"retrieval needs queries and a gallery; {data.name} has got {len(queries)} queries and {len(gallery)} "
            "gallery images that can be read"
        )
    pairs = queries.merge(gallery, on="item_id", suffixes=("", "_of_match"))
    if pairs.empty:
        raise InputError(
            f"none of the {queries['item_id'].nunique():,} query identities of {data.name} has a photo in the "
            "gallery, so nothing can be measured: an identity needs two photos that can be read"
        )
    other_camera = (pairs["camera"] != pairs["camera_of_match"]) | (pairs["camera"] == "")
    if data.exclude_same_camera and not other_camera.any():
        raise InputError(
            f"each of the {pairs['item_id'].nunique():,} query identities of {data.name} has photos of one camera "
            "alone, and a query's own camera is left out of its gallery: --no-exclude_same_camera keeps it in"
        )
