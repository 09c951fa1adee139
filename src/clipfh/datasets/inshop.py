"""DeepFashion, In-shop Clothes Retrieval Benchmark.

Source: Liu, Luo, Qiu, Wang, Tang, "DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich
Annotations", CVPR 2016; https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html

Raw layout below the data root: see `LAYOUT`. `list_eval_partition.txt` has a line with the number of images, a header
line, then `image_name item_id evaluation_status` with the status `train`, `query` or `gallery`.
`list_description_inshop.json` is a list of `{"item", "color", "description": [lines]}`; an item in several colours has
several entries.

Protocol: the official split: 3,997 train identities with 25,882 images; 3,985 test identities with 14,218 query and
12,612 gallery images. 10% of the train identities are held out as val. There are no cameras.
"""

from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from clipfh.core.errors import InputError
from clipfh.datasets.layout import read_raw_json, read_raw_lines, require_folder
from clipfh.images.photo_files import compare_with_list
from clipfh.prompts.description import Description
from clipfh.tables.dataset import Dataset
from clipfh.tables.records import make_table
from clipfh.tables.splits import VAL_FRACTION, assign_val_identities, measurable_identities

LAYOUT = """\
    DATA_ROOT/Img/img/WOMEN/Dresses/id_00000002/02_1_front.jpg    (or img/..., or Img/img_highres/...)
    DATA_ROOT/Eval/list_eval_partition.txt
    DATA_ROOT/Anno/list_description_inshop.json"""

PARTITION = "list_eval_partition.txt"
STATUSES = ("train", "query", "gallery")
HEADER = ["image_name", "item_id", "evaluation_status"]

ImageVersion = Literal["img", "img_highres"]


def read(data_root: Path, *, seed: int = 0, image_version: ImageVersion | None = None) -> Dataset:
    """Read In-Shop.

    Args:
        data_root: the folder of `LAYOUT`.
        seed: chooses the val identities.
        image_version: the small images (`img`) or the large ones (`img_highres`); by default those that are there,
            the small ones where both are.

    Returns:
        `table.image` is the `image_name` of the partition file (`img/WOMEN/...`; `img_highres/WOMEN/...` for the large
        images), relative to the folder that holds `img`.

    Raises:
        InputError: a missing file or folder, or a malformed line.
    """
    data_root = require_folder(Path(data_root), LAYOUT)
    rows = _read_partition(data_root / "Eval" / PARTITION)
    descriptions = _read_descriptions(data_root / "Anno" / "list_description_inshop.json")
    image_folder = _find_image_folder(data_root, image_version)
    train = [(item_id, "") for _, item_id, status in rows if status == "train"]
    measurable = measurable_identities(train, exclude_same_camera=False)
    val_ids = assign_val_identities((item_id for item_id, _ in train), VAL_FRACTION, seed, measurable=measurable)

    category_per_item: dict[str, str] = {}
    table_rows = []
    for image, item_id, status in rows:
        category_per_item.setdefault(item_id, category_from_path(image))
        split = "val" if item_id in val_ids and status == "train" else status
        table_rows.append((image_folder.name + image.removeprefix("img"), item_id, split, ""))
    nothing: dict[str, Any] = {"color": "", "lines": ()}
    left_out, missing = compare_with_list(
        image_folder.parent, (row[0] for row in table_rows), PARTITION, folders=(image_folder.name,)
    )
    return Dataset(
        name="inshop",
        image_dir=image_folder.parent,
        resize_mode="pad",  # changes nothing in the square photos of img; a third of the high ones would be cut off
        table=make_table(table_rows),
        descriptions={
            item_id: Description(category=category_per_item[item_id], **descriptions.get(item_id, nothing))
            for item_id in sorted(category_per_item)
        },
        left_out=tuple(left_out),
        missing=tuple(missing),
    )


def category_from_path(image: str) -> str:
    """Wearer and category: `img/WOMEN/Graphic_Tees/id_00000004/01_1_front.jpg` gives "women's graphic tees"."""
    parts = PurePosixPath(image).parts
    if len(parts) < 5:
        return ""
    return f"{parts[1].lower()}'s {parts[2].replace('_', ' ').lower()}"


def _find_image_folder(data_root: Path, image_version: ImageVersion | None) -> Path:
    known = get_args(ImageVersion)
    if image_version is not None and image_version not in known:
        raise InputError(f"unknown image version {image_version!r}; the versions are {', '.join(known)}")
    versions = known if image_version is None else (image_version,)
    candidates = [data_root / parent / version for version in versions for parent in ("Img", "")]
    for folder in candidates:
        if folder.is_dir():
            return folder
    searched = ", ".join(str(folder) for folder in candidates)
    raise InputError(f"no image folder: none of {searched} exists. The expected layout is:\n{LAYOUT}")


def _read_partition(path: Path) -> list[tuple[str, str, str]]:
    """Rows of (image_name, item_id, evaluation_status)."""
    lines = read_raw_lines(path, LAYOUT)
    if not lines or not lines[0].strip().isdecimal():
        raise InputError(f"{path}, line 1: expected the number of images, found {(lines or [''])[0]!r}")
    if len(lines) < 2 or lines[1].split() != HEADER:
        raise InputError(f"{path}, line 2: expected the header '{' '.join(HEADER)}'")
    rows = []
    for number, line in enumerate(lines[2:], start=3):
        columns = line.split()
        if not columns:
            continue
        if len(columns) != 3:
            raise InputError(f"{path}, line {number}: expected '{' '.join(HEADER)}', found {len(columns)} columns")
        image, item_id, status = columns
        if status not in STATUSES:
            raise InputError(
                f"{path}, line {number}: unknown evaluation_status {status!r}; it is one of {', '.join(STATUSES)}"
            )
        if not image.startswith("img/") or ".." in PurePosixPath(image).parts:
            raise InputError(f"{path}, line {number}: the image name {image!r} does not lie in img/")
        rows.append((image, item_id, status))
    if len(rows) != int(lines[0]):
        raise InputError(f"{path}, line 1: it says {int(lines[0])} images, but lists {len(rows)}. Is it cut short?")
    return rows


def _read_descriptions(path: Path) -> dict[str, dict[str, Any]]:
    """Item id to its colours and description lines; the entries of one item (its colours) are joined."""
    entries = read_raw_json(path, LAYOUT)
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected a list of objects with item, color and description")
    colors: dict[str, dict[str, None]] = {}  # dicts keep the order and drop repetitions
    lines: dict[str, dict[str, None]] = {}
    for number, entry in enumerate(entries, start=1):
        item_id, color, description = _check_entry(entry, f"{path}, entry {number}")
        colors.setdefault(item_id, {}).update({color: None} if color else {})
        lines.setdefault(item_id, {}).update({line.strip(): None for line in description if line.strip()})
    return {item_id: {"color": ", ".join(colors[item_id]), "lines": tuple(lines[item_id])} for item_id in colors}


def _check_entry(entry: Any, where: str) -> tuple[str, str, list[str]]:
    if not isinstance(entry, dict) or not isinstance(entry.get("item"), str):
        raise InputError(f'{where}: expected an object with "item", "color" and "description"')
    color = "" if entry.get("color") is None else entry["color"]
    description = [] if entry.get("description") is None else entry["description"]
    if isinstance(description, str):
        description = [description]
    is_text = isinstance(description, list) and all(isinstance(line, str) for line in description)
    if not isinstance(color, str) or not is_text:
        raise InputError(f'{where} ({entry["item"]}): "color" must be a string and "description" a list of strings')
    return entry["item"], color.strip(), description
