from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from script_server import ScriptServer
from stage_project import Project, make_checkout, make_project

from clipfh.core.run import seed_everything


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Every test draws the same, whatever ran before it in the same process."""
    seed_everything(0)


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[ScriptServer]:
    """Runs the scripts of a checkout of its own, and code that stands on the library, sooner than a new Python."""
    server = make_checkout(tmp_path_factory.mktemp("stages"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def project(server) -> Project:
    """The checkout of `server` with a tiny prepared dataset and a small CLIP."""
    return make_project(server)


@pytest.fixture
def touch() -> Callable[[Path, Iterable[str]], None]:
    """Make files of one byte: readers list images, they do not open them."""

    def make(root: Path, names: Iterable[str]) -> None:
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")

    return make


@pytest.fixture
def items_by_split() -> Callable[..., dict[str, set[str]]]:
    def collect(table) -> dict[str, set[str]]:
        return {split: set(group) for split, group in table.groupby("split")["item_id"]}

    return collect
