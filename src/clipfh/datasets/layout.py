"""Look into a raw dataset folder; what is missing or malformed is said with the layout that was expected."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipfh.core.errors import InputError
from clipfh.core.files import distinct_keys, json_problem, text_lines


def require_folder(path: Path, layout: str) -> Path:
    """Return `path` if it is a folder; else raise InputError with the expected `layout`."""
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        raise InputError(f"the folder {path} {problem}. Give another --data_root, or make this layout:\n{layout}")
    return path


def require_file(path: Path, layout: str) -> Path:
    """Return `path` if it is a file; else raise InputError with the expected `layout`."""
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"the file {path} {problem}. Give another --data_root, or make this layout:\n{layout}")
    return path


def read_raw_text(path: Path, layout: str) -> str:
    """Read UTF-8 text, with or without a byte order mark.

    Raises:
        InputError: the file is missing or is not UTF-8 (the line is named).
    """
    raw = require_file(path, layout).read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8 text ({error.reason}). Save the file as UTF-8.") from None


def read_raw_lines(path: Path, layout: str) -> list[str]:
    """The lines of a text file, as `clipfh.core.files.text_lines` splits them; errors as `read_raw_text`."""
    return text_lines(read_raw_text(path, layout))


def read_raw_csv(path: Path, columns: tuple[str, ...], layout: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, {column: stripped value}) of a CSV file whose header has at least `columns`.

    Raises:
        InputError: missing file, missing columns, or a line with more or fewer values than the header.
    """
    reader = csv.reader([f"{line}\n" for line in read_raw_lines(path, layout)], skipinitialspace=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        absent = [column for column in columns if column not in header]
        if absent:
            raise InputError(f"{path}, line 1: no column {absent[0]!r}; the header must have {','.join(columns)}")
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise InputError(f"{path}, line {reader.line_num}: {len(values)} values, the header has {len(header)}")
            yield reader.line_num, {name: value.strip() for name, value in zip(header, values, strict=True)}
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from None


def read_raw_json(path: Path, layout: str) -> Any:
    """Read a JSON file that came with the dataset.

    Raises:
        InputError: missing, or malformed (with line and column).
    """
    try:
        return json.loads(read_raw_text(path, layout), object_pairs_hook=distinct_keys)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}{json_problem(error)}. Make it again.") from None
