from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from stage_project import Project, make_project

from clipfh.core.run import seed_everything


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Every test draws the same, whatever ran before it in the same process."""
    seed_everything(0)


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Project:
    """A checkout of its own with a tiny prepared dataset and a small CLIP."""
    made = make_project(tmp_path_factory.mktemp("stages"))
    yield made
    made.server.close()


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
