"""Files that are either whole or absent, and JSON with errors that name the file and line."""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipfh.core.errors import InputError, printable, shortened, shown
from clipfh.core.paths import ROOT, display

UNFINISHED = ".unfinished-"  # in the names of temporary files and folders
MIN_SECONDS = 60  # younger ones may have been made but not locked yet


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds, remove it if not.

    What killed processes left in the folder is deleted, see `remove_abandoned`.

    Raises:
        InputError: the folder of `path` cannot be made or written, or the disk is full; what `path` held before is
            still there.
    """
    path, handle = Path(path), None
    temporary = _unfinished(path, path.suffix)
    try:  # from before it is made: wherever Ctrl-C comes, nothing is left
        with _to_be_written(path):
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        lock(handle)
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # numpy's and torch's own writers do not say that the disk is full
        reason = os.strerror(error.errno) if _is_full(error) else _why_nothing_more_fits(handle)
        if reason is None:
            raise
        raise InputError(f"cannot write {path} ({reason}); is the disk full?") from error
    finally:
        if handle is not None:
            os.close(handle)
        with contextlib.suppress(OSError):  # it was renamed, or never made
            temporary.unlink()


@contextmanager
def unfinished_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, for the block to fill and to rename; what is left of it then is removed.

    What killed processes left beside it is deleted, see `remove_abandoned`.

    Raises:
        InputError: the folder of `path` cannot be made or written.
    """
    path, handle = Path(path), None
    folder = _unfinished(path)
    try:  # as in `replace_atomically`
        with _to_be_written(path):
            folder.mkdir()
            handle = os.open(folder, os.O_RDONLY)
        lock(handle)
        yield folder
    finally:
        if handle is not None:
            os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)


def _unfinished(path: Path, suffix: str = "") -> Path:
    return path.parent / f".{path.name}{UNFINISHED}{secrets.token_hex(4)}{suffix}"


@contextmanager
def _to_be_written(path: Path) -> Iterator[None]:
    """Make the folder of `path`, tidied up; say where that, or what the block does there, cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent)
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}. Choose another output folder.") from error


def _is_full(error: Exception) -> bool:
    """Whether a disk or a quota is exhausted."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _why_nothing_more_fits(handle: int) -> str | None:
    """What writing a little more into an open file fails with, or None."""
    try:
        os.lseek(handle, 0, os.SEEK_END)
        os.write(handle, bytes(1 << 16))
        os.fsync(handle)
    except OSError as error:
        return error.strerror
    return None


def reserve(path: Path) -> None:
    """Take the disk space of a file that is all holes: to fill one through a memory map kills on a full disk.

    Raises:
        OSError: there is not enough.
    """
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def lock(handle: int) -> None:
    """Mark an open temporary file or folder as one that is worked on: the mark goes when this process does."""
    with contextlib.suppress(OSError):  # not every file system has locks; on those nothing counts as abandoned
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_abandoned(folder: Path) -> None:
    """Delete the temporary files and folders that killed processes left in `folder`: those that nobody has locked."""
    for left in folder.glob(f".*{UNFINISHED}*"):
        with contextlib.suppress(OSError):  # locked, or without locks here; or another process was faster
            if time.time() - left.stat().st_mtime < MIN_SECONDS:
                continue
            handle = os.open(left, os.O_RDONLY if left.is_dir() else os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(handle)


def writable_folder(folder: Path, flag: str) -> Path:
    """Make `folder`, and be sure that files can be written in it: before a long run, not at its end.

    Raises:
        InputError: it cannot be made or written; the message names the `flag` that chooses another.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".write-test."):
            pass
    except OSError as error:
        raise InputError(f"cannot write to the folder {folder}: {error.strerror}. Choose another {flag}") from error
    return folder


def require_no_others(folder: Path, flag: str, what: str, own: tuple[str, ...] = ()) -> None:
    """Check that nothing of others lies in a folder: it is absent, or has only hidden files and `own`.

    Args:
        folder: to write into.
        flag: that names it.
        what: says that it is not the writer's, and ends before "not empty".
        own: beginnings of names that a stopped writer leaves.

    Raises:
        InputError: other files are there.
    """
    present = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    others = [name for name in present if not name.startswith((".", *own))]
    if others:
        raise InputError(
            f"{flag} {folder} {what} not empty (there is {printable(min(others))}); nothing is written into it. "
            "Choose another folder"
        )


def require_file(path: Path, flag: str) -> Path:
    """`path`, a file that `flag` named.

    Raises:
        InputError: there is none.
    """
    if path.is_dir():
        raise InputError(f"{flag} {path} is a folder; give one of its files")
    if not path.is_file():
        raise InputError(f"{flag} {path} does not exist, or is no regular file")
    return path


def umask() -> int:
    """The permissions that new files of this process lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write readable UTF-8 JSON atomically; keys keep their order."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def text_lines(text: str) -> list[str]:
    """The lines of a text, split at `\\n` and `\\r\\n` and nowhere else; a last line may lack its end.

    `str.splitlines` splits at eight characters more, such as U+2028 and the vertical tab, which captions contain.
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]


def json_problem(error: Exception) -> str:
    """What `json.loads` found wrong, with its place, to go behind the file's name in a message."""
    if isinstance(error, json.JSONDecodeError):
        return f", line {error.lineno}, column {error.colno}: not valid JSON ({error.msg})"
    if isinstance(error, RecursionError):
        return ": not valid JSON (nested too deep)"
    return f": not valid JSON ({shortened(error, 80)})"  # an integer of thousands of digits


def distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, for `json.loads`, which would let the last of equal keys win in silence.

    Raises:
        ValueError: two keys are the same.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{shown(next(key for key in keys if keys.count(key) > 1))} stands there twice")
    return made


def _of_prepared_datasets(name: str) -> str:
    """Where a file of this name lies, for who names the folder of another layout; empty where it does not."""
    found = [display(path) for path in sorted(ROOT.glob("metadata/*/*.json")) if path.name == name]
    return f". There is {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}" if found else ""


def read_json(path: Path, *, made_by: str, check: Callable[[Any], bool] = lambda value: isinstance(value, dict)) -> Any:
    """Read JSON.

    Args:
        path: the file.
        made_by: the command that makes it, for the message when it is missing.
        check: whether the value has the expected shape (by default: is an object).

    Raises:
        InputError: missing, unreadable, malformed (with line and column), or of another shape.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors may put a byte order mark
        value = json.loads(text, object_pairs_hook=distinct_keys)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. Make it with: {made_by}{_of_prepared_datasets(path.name)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}{json_problem(error)}. Make it again with: {made_by}") from None
    if not check(value):
        raise InputError(f"{path} holds JSON of an unexpected shape. Make it again with: {made_by}")
    return value
