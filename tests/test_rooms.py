"""The rooms of `clipfh`: imports run downwards only, and every room says what it is for."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

SOURCE = ROOT / "src" / "clipfh"
FLOORS = (  # from the ground up; rooms of one floor do not know each other
    ("core",),
    ("losses", "metrics"),
    ("images",),
    ("models",),
    ("prompts", "features"),
    ("tables",),
    ("index",),
    ("drawn",),
    ("datasets",),
    ("captions",),
    ("reports",),
    ("training",),
    ("evaluation",),
    ("pipeline", "export", "app"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imported_rooms(path: Path) -> Iterator[str]:
    """The rooms that a file imports from, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        if isinstance(node, ast.ImportFrom) and node.module == "clipfh":
            modules = [f"clipfh.{name.name}" for name in node.names]
        if isinstance(node, ast.Import):
            modules = [name.name for name in node.names]
        yield from (module.split(".")[1] for module in modules if module.startswith("clipfh."))


def test_the_library_consists_of_rooms():
    assert {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"} == FLOOR_OF.keys()
    assert [path.name for path in SOURCE.glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("room", FLOOR_OF)
def test_imports_run_downwards(room):
    assert ast.get_docstring(ast.parse((SOURCE / room / "__init__.py").read_text(encoding="utf-8")))
    files = list((SOURCE / room).rglob("*.py"))
    upward = [
        f"{path.relative_to(SOURCE)} imports {other}"
        for path in files
        for other in imported_rooms(path)
        if other != room and FLOOR_OF[other] >= FLOOR_OF[room]
    ]
    assert len(files) > 1 and not upward
