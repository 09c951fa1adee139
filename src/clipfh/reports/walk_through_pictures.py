"""The pictures of `clipfh.reports.walk_through`, small enough to be committed."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from clipfh.core.errors import InputError
from clipfh.core.files import replace_atomically
from clipfh.metrics.query_changes import QueryChanges, query_changes
from clipfh.reports.compare import EvaluatedRun
from clipfh.reports.figures import RankedImage, RankedQuery, ranked_results_figure, read_photo
from clipfh.reports.image_grid import image_grid_figure
from clipfh.reports.picture import evenly_spaced
from clipfh.reports.small_webp import small_webp
from clipfh.tables.prepared import PreparedDataset

MOST_BYTES = 100_000  # of a picture
SHOWN = 5  # identities, and queries
TOP = 6  # gallery photos of a query
_CELL_PX, _CELL_INCHES = 120, 0.8
_SIZES = tuple((width, quality) for width in (1000, 800, 640) for quality in (85, 70, 55))


def draw(
    folder: Path, data: PreparedDataset, runs: Sequence[EvaluatedRun], logs: Sequence[Path], results_dir: Path
) -> dict[str, Path]:
    """Draw all pictures into `folder`: name to file.

    Args:
        folder: of the pictures.
        data: the dataset.
        runs: the evaluations, the zero-shot one first.
        logs: the folders of the trainings' logs, of stages 2 and 3.
        results_dir: where the evaluations' folders lie.

    Raises:
        InputError: a file of the run is missing or damaged.
    """
    drawn = {}
    with tempfile.TemporaryDirectory() as temporary:
        large = {name: Path(temporary, f"{name}.png") for name in ("photos", "ranked", "changed")}
        _draw_photos(large["photos"], data)
        _draw_ranked(large["ranked"], runs[-1])
        _draw_changed(large["changed"], runs[0], runs[-1])
        large |= {f"curves{stage}": log / "training_curves.png" for stage, log in enumerate(logs, start=2)}
        large["map"] = results_dir / runs[-1].name / "map.png"
        for name, picture in large.items():
            drawn[name] = write_small(picture, folder / f"{name}.webp")
    return drawn


def write_small(picture: Path, path: Path) -> Path:
    """Write `picture` as WebP of at most `MOST_BYTES`, as large and as well as that allows; its path.

    Raises:
        InputError: it is missing, or larger than that at the smallest size.
    """
    if not picture.is_file():
        raise InputError(f"{picture} does not exist; evaluate again")
    with Image.open(picture) as image:
        encoded = small_webp(image, _SIZES, MOST_BYTES)
    if encoded is None:
        raise InputError(f"{picture} takes more than {MOST_BYTES:,} bytes at {_SIZES[-1][0]} pixels")
    with replace_atomically(path) as temporary:
        temporary.write_bytes(encoded)
    return path


def changes_of(before: EvaluatedRun, after: EvaluatedRun) -> QueryChanges:
    """What became of the queries, in the order of `_both`."""
    both = _both(before, after)
    return query_changes(both["before"].to_numpy(), both["after"].to_numpy())


def _both(before: EvaluatedRun, after: EvaluatedRun) -> pd.DataFrame:
    """The average precision of each query that either has, in both."""
    return pd.concat([before.average_precision, after.average_precision], axis=1, keys=["before", "after"])


def _draw_photos(path: Path, data: PreparedDataset) -> None:
    """Some identities, evenly spaced among those with most photos."""
    images = data.table.groupby("item_id")["image"].apply(list)
    many = images[images.map(len) >= images.map(len).quantile(0.75)]
    chosen = many.iloc[np.unique(np.linspace(0, len(many) - 1, SHOWN).round().astype(int))]
    rows = [
        (item_id, np.stack([_square(data.image_dir / name) for name in names[:TOP]]))
        for item_id, names in chosen.items()
    ]
    image_grid_figure(path, rows, title="Photos of some identities")


def _square(path: Path) -> np.ndarray:
    """A whole photo in a grey square: (S, S, 3) uint8."""
    photo = Image.fromarray(read_photo(path, _CELL_INCHES))
    return np.asarray(ImageOps.pad(photo, (_CELL_PX, _CELL_PX), Image.Resampling.LANCZOS, color="#f1f3f5"))


def _draw_ranked(path: Path, run: EvaluatedRun) -> None:
    """Queries evenly spaced from the best to the worst."""
    rows = [_ranked(run, query) for query in evenly_spaced(run.rankings, SHOWN)]
    if not rows:
        raise InputError(f"{run.name} has no query with a match among its first images")
    title = f"{run.label}: queries from the best to the worst"
    ranked_results_figure(path, run.image_dir, rows, title=title, top=TOP)


def _draw_changed(path: Path, before: EvaluatedRun, after: EvaluatedRun) -> None:
    """The two queries that gained most and the one that lost most, as either ranks them; the best, where none did."""
    both, changes = _both(before, after), changes_of(before, after)
    places = [*changes.most(2, gained=True), *changes.most(1, gained=False)]
    queries = [both.index[place][0] for place in places] or evenly_spaced(after.rankings, 1)
    rows = [_ranked(run, query, run.label) for query in queries for run in (before, after)]
    title = f"{before.label}, then {after.label}: gained and lost most"
    ranked_results_figure(path, after.image_dir, rows, title=title, top=TOP)


def _ranked(run: EvaluatedRun, query: str, label: str = "") -> RankedQuery:
    ranking = run.rankings[run.rankings["query"] == query]
    gallery = [RankedImage(hit.image, hit.item_id, hit.similarity, bool(hit.is_match)) for hit in ranking.itertuples()]
    precision = float(run.average_precision.xs(query, level="query").iloc[0])
    return RankedQuery(label or ranking["query_item_id"].iloc[0], gallery, image=query, average_precision=precision)
