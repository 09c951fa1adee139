"""The packages of the extra `scale`: imported where they are used, as most of the project does without them."""

import importlib
from types import ModuleType

from clipfh.core.errors import InputError

HOW_TO_GET = "install it with: bash set_up.sh scale, or pip install -e '.[scale]'"
_PACKAGE_OF = {"faiss": "faiss-cpu", "milvus_lite": "milvus-lite", "ray.data": "ray[data]"}


def scale_package(name: str) -> ModuleType:
    """The module `name` of the extra `scale`, such as `pyarrow.parquet`.

    Raises:
        InputError: it is not installed; the message says how it is.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        package = _PACKAGE_OF.get(name, name.partition(".")[0])
        raise InputError(f"this needs the package {package}; {HOW_TO_GET}") from None
