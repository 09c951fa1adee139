"""A folder that is there only when all of it is written and checked."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipfh.core.errors import InputError
from clipfh.core.files import umask, unfinished_folder


def require_free(out: Path) -> None:
    """Check that `out` can become a new folder: it is absent, or an empty folder.

    Raises:
        InputError: it is a file, or holds files.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out {out} is not empty; nothing is written over. Choose another folder")


@contextmanager
def finished_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out`, which becomes `out` if the block succeeds, and is removed if it does not.

    Raises:
        InputError: `out` is not free, or cannot be made.
    """
    require_free(out)
    with unfinished_folder(out) as folder:
        yield folder
        for file in folder.iterdir():
            file.chmod(0o666 & ~umask())  # safetensors makes private files
        require_free(out)  # another process may have been faster
        os.replace(folder, out)
