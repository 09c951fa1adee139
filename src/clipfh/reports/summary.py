"""`results/summary.csv`: one row a split of every evaluation, appended by all stages and read by the report.

One evaluation writes all its rows with the same `time`. Figures are fractions 0..1.
"""

import csv
import fcntl
import io
import math
import os
import unicodedata
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd

from clipfh.core.errors import InputError, shortened

FRACTIONS = ("rank1", "rank5", "rank10", "mAP", "mINP")
COLUMNS = (
    *("time", "dataset", "data_digest", "model", "stage", "variant", "seed", "recipe", "checkpoint", "run"),
    *("protocol", "split", "detail", "num_query", "num_gallery"),
    *FRACTIONS,
    "seconds",
)
PROTOCOLS = ("official", "random", "text_to_image", "official_reranked", "probe")

_HEADER = ",".join(COLUMNS) + "\n"
_COMMAND = "bash run_all.sh"


def utc_now() -> str:
    """The time of an evaluation: ISO 8601, UTC, whole seconds, such as `2026-03-01T09:30:00Z`."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def append_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows, in one write under a lock, so that several processes may do it at once.

    Args:
        path: the CSV file; made with its header when absent or empty.
        rows: dictionaries with exactly the keys `COLUMNS`. `stage` may be a number; `split` is 0..9 for `random` and
            may be None or "" elsewhere. `seed` and `recipe` are those of the training, None or "" where there was none;
            `run` is the folder of the evaluation, beside the file.

    Raises:
        InputError: the file has another header or cannot be written.
        ValueError: a row with other keys or an impossible value; nothing is written then.
    """
    path = Path(path)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    for row in rows:
        if set(row) != set(COLUMNS):
            wrong = ", ".join(sorted(set(row) ^ set(COLUMNS)))
            raise ValueError(f"a summary row has the keys {', '.join(COLUMNS)}; missing or unknown: {wrong}")
        cells = {name: _text_of(name, row[name]) for name in COLUMNS}
        _parse(cells)
        writer.writerow(cells)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:  # every write goes to the end, wherever the file is read
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
            _append_locked(file, path, buffer.getvalue())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}. Choose another results folder.") from error


def _append_locked(file: Any, path: Path, text: str) -> None:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        text = _HEADER + text
    else:
        file.seek(0)
        _check_header(path, file.readline().decode("utf-8", "replace"))
        file.seek(size - 1)
        if file.read(1) != b"\n":  # an interrupted write or an editor left the last line open
            text = "\n" + text
    file.write(text.encode("utf-8", "replace"))
    file.flush()


def require_summary(path: Path) -> None:
    """Check that rows can be appended to `path`, before the work and not after it.

    Raises:
        InputError: the file has another header, as one of an earlier version, or cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            header = file.readline().decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):  # whether it can be made is another question
        return
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}. Choose another results folder.") from error
    if header:
        _check_header(path, header)


def read_summary(path: Path) -> pd.DataFrame:
    """Read the table: `split` is a nullable integer, the counts integers, the figures floats, the rest text.

    Raises:
        InputError: the file is missing, has another header, or a line is malformed (its number is named).
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: nothing has been evaluated yet. Make it with: {_COMMAND}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    _check_header(path, text.partition("\n")[0])
    reader = csv.reader(io.StringIO(text), strict=True)
    records = []
    try:
        next(reader)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(COLUMNS):
                raise ValueError(f"{len(cells)} cells instead of {len(COLUMNS)}")
            records.append(_parse(dict(zip(COLUMNS, cells, strict=True))))
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}. Correct or remove that line.") from None
    summary = pd.DataFrame(records, columns=list(COLUMNS))
    types = {"split": "Int64", "num_query": "int64", "num_gallery": "int64", "seconds": "float64"}
    return summary.astype(types | dict.fromkeys(FRACTIONS, "float64"))


def _check_header(path: Path, line: str) -> None:
    if line.rstrip("\r\n").removeprefix("\ufeff") != _HEADER.rstrip():
        raise InputError(
            f"{path} is not a summary of this version: its columns are {shortened(line, 60)}. "
            "Move it away; the next evaluation makes a new one."
        )


def _text_of(name: str, value: Any) -> str:
    if name in FRACTIONS:
        return f"{value:.6f}"
    if name == "seconds":
        return f"{value:.2f}"
    return "" if value is None else str(value)


def _parse(cells: dict[str, str]) -> dict[str, Any]:
    """Turn the text cells of one row into values; raise ValueError naming what is wrong."""
    row: dict[str, Any] = dict(cells)
    datetime.strptime(cells["time"], "%Y-%m-%dT%H:%M:%SZ")
    for name in ("dataset", "data_digest", "model", "stage"):
        if not cells[name].strip():
            raise ValueError(f"{name} is empty")
    for name in ("dataset", "data_digest", "model", "stage", "variant", "recipe", "checkpoint", "run", "detail"):
        if any(
            unicodedata.category(character) == "Cc" for character in cells[name]
        ):  # a line break would make the line numbers of messages wrong
            raise ValueError(f"{name} holds a control character: {cells[name]!r}")
    if cells["seed"]:
        _parse_number(cells, "seed", int)
    if "/" in cells["run"] or cells["run"] in (".", ".."):
        raise ValueError(f"run {cells['run']!r} names no folder beside the summary")
    if cells["protocol"] not in PROTOCOLS:
        raise ValueError(f"unknown protocol {cells['protocol']!r}; the protocols are {', '.join(PROTOCOLS)}")
    row["split"] = _parse_number(cells, "split", int) if cells["split"] else None
    if (cells["protocol"] == "random") != bool(cells["split"]) and cells["protocol"] != "text_to_image":
        raise ValueError(f"protocol {cells['protocol']} with split {cells['split']!r}; only random splits are numbered")
    for name in ("num_query", "num_gallery"):
        row[name] = _parse_number(cells, name, int)
    for name in FRACTIONS:
        row[name] = _parse_number(cells, name, float, at_most=1.0)
    row["seconds"] = _parse_number(cells, "seconds", float)
    return row


def _parse_number(cells: dict[str, str], name: str, kind: type, at_most: float = math.inf) -> Any:
    try:
        value = kind(cells[name])
    except ValueError:
        raise ValueError(f"{name} is {cells[name]!r}, not a number") from None
    if not (math.isfinite(value) and 0 <= value <= at_most):
        raise ValueError(f"{name} is {value}, outside 0..{at_most}")
    return value
