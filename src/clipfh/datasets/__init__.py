"""One reader a dataset; all of them return the same thing, a `Dataset`.

A reader is a module with `read(data_root, *, seed=0, ...) -> Dataset`. Its docstring states the raw layout that it
expects, the source and the protocol. Images stay where they are.
"""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class Description:
    """What the raw dataset says of one identity; any part may be empty."""

    category: str = ""
    color: str = ""
    lines: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """What a reader returns.

    Attributes:
        name: the dataset's name, also its folder under `metadata/`.
        image_dir: the image root; `table.image` is relative to it.
        table: the table of `clipfh.records`.
        descriptions: item id to description; identities without one may be absent.
        exclude_same_camera: whether the protocol leaves the query's own camera (or occasion) out of its gallery.
        random_protocol: how script 05 draws the random splits (see `clipfh.splits`): "half" of an identity's test
            photos are queries, or one photo of each identity is the gallery ("one_gallery").
        left_out: how many raw images were left out, by reason; printed by script 00.
    """

    name: str
    image_dir: Path
    table: pd.DataFrame
    descriptions: dict[str, Description] = field(default_factory=dict)
    exclude_same_camera: bool = False
    random_protocol: str = "half"
    left_out: dict[str, int] = field(default_factory=dict)
