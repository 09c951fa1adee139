"""The list of photos of an extraction: a row a photo, from a folder, a table or a bucket.

Columns, all text: `id` (its path below the image root), `item_id`, `category`, `camera`, each empty where unknown.
The list is an Arrow table: a million rows take some 60 MB.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from clipfh.core.errors import InputError, printable, shortened, shown
from clipfh.core.files import read_json
from clipfh.core.values import leaves_root, normal_id, normal_path, text_of
from clipfh.images.photo_files import LeftOut, account, find_photos, name_problem, require_photos
from clipfh.index.packages import scale_package
from clipfh.index.photos import BucketPhotos, FolderPhotos, PhotoSource, is_uri, open_bucket, photos_at
from clipfh.index.shards import COLUMNS

TABLES = (".csv", ".parquet", ".json")


@dataclass(frozen=True)
class Listing:
    """What is to be extracted.

    Attributes:
        source: where the photos lie.
        rows: Arrow table of `COLUMNS`.
        left_out: (file, reason) of what lies beside the photos of a folder or bucket.
    """

    source: PhotoSource
    rows: Any
    left_out: list[LeftOut] = field(default_factory=list)


def list_photos(images: str, image_dir: str | None = None) -> Listing:
    """List the photos of `--images`; of a folder and a bucket, what is left out is said.

    Args:
        images: a folder, a table (CSV, Parquet, or the project's JSON `{image: {"item_id", "camera"}}`), or a URI.
        image_dir: of a table: the folder or URI that its paths are relative to; None: the table's folder.

    Raises:
        InputError: it does not exist, holds no photo, or is a malformed table.
    """
    if is_uri(images):
        return _of_bucket(images)
    path = Path(images)
    if path.is_dir():
        if image_dir:
            raise InputError(f"--image_dir is for a table, and --images {path} is a folder: leave it out")
        return _of_folder(path)
    if not path.exists():
        raise InputError(f"--images {path} does not exist; give a folder, a table, or a URI such as s3://BUCKET/PHOTOS")
    if path.suffix.lower() not in TABLES:
        raise InputError(f"--images {path} is neither a folder nor a table; a table ends with {', '.join(TABLES)}")
    source = photos_at(image_dir or str(path.parent))
    return Listing(source, _of_table(path))


def _of_folder(root: Path) -> Listing:
    photos, left_out = find_photos(root)
    require_photos(root, photos, left_out)
    print(account(len(photos), left_out))
    return Listing(FolderPhotos(root.absolute()), _rows_of(photos), left_out)


def _of_bucket(uri: str) -> Listing:
    fs = scale_package("pyarrow.fs")
    filesystem, root = open_bucket(uri)
    try:
        found = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    except OSError as error:
        raise InputError(f"cannot list {uri} ({shortened(error)}); check its name, and the credentials") from error
    photos, left_out = [], []
    for entry in found:
        if entry.type == fs.FileType.File:
            name = entry.path.removeprefix(root).lstrip("/")
            problem = name_problem(PurePosixPath(name).name) or ("empty file" if entry.size == 0 else None)
            if problem is None:
                photos.append(name)
            else:
                left_out.append((name, problem))
    require_photos(Path(uri), photos, left_out)
    print(account(len(photos), left_out))
    return Listing(BucketPhotos(uri), _rows_of(sorted(photos)), left_out)


def _rows_of(photos: list[str]) -> Any:
    """Rows of photos without a table: the folder that a photo lies in is its identity, as in `--dataset folder`."""
    item_ids = [normal_id(photo.rpartition("/")[0]) for photo in photos]
    nothing = [""] * len(photos)
    return _arrow(photos, item_ids, nothing, nothing)


def _of_table(path: Path) -> Any:
    columns = {".csv": _csv_columns, ".parquet": _parquet_columns, ".json": _json_columns}[path.suffix.lower()](path)
    if "image" not in columns:
        raise InputError(f"{path} has no column image; it needs one, with paths relative to --image_dir")
    ids = [normal_path(image) for image in _texts(columns["image"], path, "image")]
    if not ids:
        raise InputError(f"{path} lists no image")
    _check_ids(ids, path)
    others = [
        _texts(columns[name], path, name) if name in columns else [""] * len(ids) for name in COLUMNS if name != "id"
    ]
    return _arrow(ids, [normal_id(item_id) for item_id in others[0]], *others[1:])


def _check_ids(ids: list[str], path: Path) -> None:
    seen: set[str] = set()
    for number, image in enumerate(ids, start=1):
        if leaves_root(image):
            raise InputError(f"{path}, row {number}: {shown(image)} is no path below --image_dir; write one, with /")
        if printable(image) != image:
            raise InputError(f"{path}, row {number}: {shown(image)} holds control characters; rename the file")
        if image in seen:
            raise InputError(f"{path}, row {number}: {shown(image)} is listed twice; leave one out")
        seen.add(image)


def _texts(values: Iterable[Any], path: Path, column: str) -> list[str]:
    return [text_of(value, f"{path}, row {number}: {column}") for number, value in enumerate(values, start=1)]


def _csv_columns(path: Path) -> dict[str, list[Any]]:
    csv, pa = scale_package("pyarrow.csv"), scale_package("pyarrow")
    # as text: "007" is an id, and not 7
    options = csv.ConvertOptions(
        column_types=dict.fromkeys(("image", *COLUMNS), pa.string()), strings_can_be_null=False
    )
    try:
        table = csv.read_csv(path, convert_options=options)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} cannot be read as CSV ({shortened(error)})") from error
    return _columns(table)


def _parquet_columns(path: Path) -> dict[str, list[Any]]:
    parquet, pa = scale_package("pyarrow.parquet"), scale_package("pyarrow")
    try:
        names = set(parquet.read_schema(path).names)
        wanted = [name for name in ("image", *COLUMNS[1:]) if name in names]
        return _columns(parquet.read_table(path, columns=wanted))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} cannot be read as Parquet ({shortened(error)})") from error


def _columns(table: Any) -> dict[str, list[Any]]:
    return {name: table[name].to_pylist() for name in ("image", *COLUMNS[1:]) if name in table.column_names}


def _json_columns(path: Path) -> dict[str, list[Any]]:
    entries = read_json(path, made_by="python preprocessing/00_prepare_dataset.py --dataset NAME --data_root DIR")
    for image, entry in entries.items():
        if not isinstance(entry, dict):
            raise InputError(f'{path}: {shown(image)} has {shown(entry)}; write {{"item_id": ..., "camera": ...}}')
    others = {name: [entry.get(name) for entry in entries.values()] for name in COLUMNS[1:]}
    return {"image": list(entries), **others}


def _arrow(*columns: list[str]) -> Any:
    pa = scale_package("pyarrow")
    return pa.table({name: pa.array(values, pa.string()) for name, values in zip(COLUMNS, columns, strict=True)})
