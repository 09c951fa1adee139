"""Folders of generated data: made whole or not at all, and made anew only when their parameters change."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from clipfh.core.errors import InputError
from clipfh.core.files import unfinished_folder

PARAMETERS = "generated.json"
FEW_CALLS = 100  # starting a second process takes longer
T = TypeVar("T")


def is_generated(data_root: Path, parameters: dict[str, Any]) -> bool:
    """Whether `data_root` was generated with these parameters and has all of its files."""
    try:
        generated = json.loads((data_root / PARAMETERS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(generated, dict) or {key: generated.get(key) for key in parameters} != parameters:
        return False
    return _num_files(data_root) == generated.get("num_files")


def holds_others(data_root: Path) -> bool:
    """Whether a file, or a folder with files that were not generated here, is in the place of generated data."""
    if not data_root.is_dir():
        return data_root.exists()
    return any(data_root.iterdir()) and not (data_root / PARAMETERS).is_file()


@contextmanager
def generated_folder(data_root: Path, parameters: dict[str, Any]) -> Iterator[Path]:
    """Yield an empty folder to fill, which becomes `data_root` if the block succeeds and is removed if it does not.

    A folder that was generated before is replaced; what another process finished meanwhile, with the same parameters,
    is left alone.

    Args:
        data_root: the folder to make.
        parameters: all that its files depend on, as JSON values; they are kept in `PARAMETERS`.

    Raises:
        InputError: a folder that cannot be written, or one that holds other files.
    """
    data_root = Path(os.path.abspath(data_root))
    if holds_others(data_root):
        raise InputError(
            f"{data_root} holds files that were not generated here, which are left alone. Say with --dataset what they "
            "are, or choose another folder"
        )
    with unfinished_folder(data_root) as folder:
        yield folder
        text = json.dumps({**parameters, "num_files": _num_files(folder)}, indent=1)
        (folder / PARAMETERS).write_text(text + "\n", encoding="utf-8")
        if not is_generated(data_root, parameters):
            if data_root.exists():
                shutil.rmtree(data_root)
            os.replace(folder, data_root)


def in_processes(
    function: Callable[..., T], arguments: Sequence[tuple[Any, ...]], num_processes: int | None = None
) -> Iterator[T]:
    """`function(*some)` of each element of `arguments`, in their order.

    Args:
        function: of a module, not of the script that was started.
        arguments: of each call.
        num_processes: by default 2, or 1 on a single core or for few calls. The results must not depend on it.
    """
    if num_processes is None:
        num_processes = min(2, os.cpu_count() or 1) if len(arguments) >= FEW_CALLS else 1
    if num_processes == 1:
        yield from (function(*some) for some in arguments)
        return
    # joblib's workers import the function's module only, not the script that was started, as multiprocessing's would.
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    try:
        yield from Parallel(n_jobs=num_processes, return_as="generator", mmap_mode=None)(
            delayed(function)(*some) for some in arguments
        )
    finally:
        get_reusable_executor().shutdown(wait=True)  # idle workers would keep their memory


def _num_files(folder: Path) -> int:
    """The files below a folder, without `PARAMETERS` and what a file manager hides (.DS_Store)."""
    names = (name for _, _, names in os.walk(folder) for name in names)
    return sum(name != PARAMETERS and not name.startswith(".") for name in names)
