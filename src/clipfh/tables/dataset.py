"""What every reader of raw identities returns."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from clipfh.images.photo_files import LeftOut
from clipfh.prompts.description import Description


@dataclass(frozen=True)
class Dataset:
    """What a reader returns.

    Attributes:
        name: the dataset's name, also its folder under `metadata/`.
        image_dir: the image root; `table.image` is relative to it.
        table: the table of `clipfh.tables.records`.
        descriptions: item id to description; identities without one may be absent.
        exclude_same_camera: whether the protocol leaves the query's own camera (or occasion) out of its gallery.
        resize_mode: how the protocol's papers bring photos into a network's frame, see `clipfh.images`; None: as the
            weights were trained.
        random_protocol: how script 05 draws the random splits (see `splits`): "half" of an identity's test
            photos are queries, or one photo of each identity is the gallery ("one_gallery").
        left_out: (file, reason) of every file below the image root that is not in the table, so that what is used and
            what is left out add up to what is there; script 00 counts and lists them.
        missing: (image, reason) of images that the raw dataset's list names, but that are not there. They stay in the
            table, as leaving them out would change the protocol: whatever decodes them stops, unless told to go on.
        notes: what else a user may not expect.
    """

    name: str
    image_dir: Path
    table: pd.DataFrame
    descriptions: dict[str, Description] = field(default_factory=dict)
    exclude_same_camera: bool = False
    resize_mode: str | None = None
    random_protocol: str = "half"
    left_out: tuple[LeftOut, ...] = ()
    missing: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
