"""A folder that is there only when all of it is written and checked."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipfh.core.errors import InputError
from clipfh.core.files import UNFINISHED, lock, remove_abandoned


def require_free(out: Path) -> None:
    """Check that `out` can become a new folder: it is absent, or an empty folder.

    Raises:
        InputError: it is a file, or holds files.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out {out} is not empty; nothing is written over. Choose another folder, or remove it")


@contextmanager
def finished_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out`, which becomes `out` if the block succeeds, and is removed if it does not.

    Raises:
        InputError: `out` is not free, or cannot be made.
    """
    require_free(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(out.parent)
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}{UNFINISHED}"))
    except OSError as error:
        raise InputError(f"cannot write --out {out}: {error.strerror}. Choose another folder") from error
    handle = os.open(folder, os.O_RDONLY)
    try:
        lock(handle)
        folder.chmod(0o755)  # mkdtemp makes private folders
        yield folder
        for file in folder.iterdir():
            file.chmod(0o644)  # safetensors makes private files
        require_free(out)  # another process may have been faster
        os.replace(folder, out)
    finally:
        os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)
