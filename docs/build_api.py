"""Render the docstrings of `clipfh` as pages, with one that leads to them: docs/api/index.html.

    make docs
    python docs/build_api.py --out docs/api

Needs the extra `docs`, and those whose packages a module imports (app, export, parts). What pdoc warns of ends it.
"""

import ast
import importlib.util
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)

# isort: split
import clipfh
from clipfh.core.cli import option, run_script
from clipfh.core.errors import InputError
from clipfh.core.paths import display
from clipfh.reports.page import Markup, table, write_page

NEEDS = {"pdoc": "docs", "gradio": "app", "onnxruntime": "export", "transformers": "parts"}  # package to extra
SOURCE = Path(clipfh.__file__).parent
ROOM_LINE = re.compile(r"^ {4}(\w+(?:, \w+)*) {2,}(\S.*)$", re.MULTILINE)  # of the package's docstring


@dataclass(frozen=True)
class Config:
    """The command line."""

    out: Path = option(ROOT / "docs" / "api", "the folder to write; what is there is replaced")


def main(config: Config) -> None:
    """Render the modules, then the page that leads to them.

    Raises:
        InputError: a package is missing, or pdoc warns of something.
    """
    if lacking := {package: extra for package, extra in NEEDS.items() if importlib.util.find_spec(package) is None}:
        extras = " ".join(sorted(set(lacking.values())))
        raise InputError(f"this Python lacks {', '.join(lacking)}: bash set_up.sh {extras}, or make docs")
    import pdoc  # here: the message above comes first

    shutil.rmtree(config.out, ignore_errors=True)
    pdoc.render.configure(docformat="google", show_source=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pdoc.pdoc("clipfh", output_directory=config.out)
    if of_pages := [str(one.message) for one in told if not issubclass(one.category, DeprecationWarning)]:
        raise InputError("the pages are not as they should be:\n" + "\n".join(of_pages))
    index = write_landing_page(config.out)
    print(f"wrote {display(index)} and {len(list(config.out.rglob('*.html'))) - 1} pages")


def write_landing_page(folder: Path) -> Path:
    """Write `index.html`: the rooms from the ground up, each with its modules; its path."""
    parts = ["<h1>clipfh</h1>", f"<p>{with_code(first_line(SOURCE / '__init__.py'))}</p>"]
    for room, floor in rooms():
        parts.append(f'<h2><a href="clipfh/{room}.html">{room}</a> <span class="note">{escape(floor)}</span></h2>')
        parts.append(f"<p>{with_code(first_line(SOURCE / room / '__init__.py'))}</p>")
        rows = [
            [Markup(f'<a href="clipfh/{room}/{name}.html">{name.replace("/", ".")}</a>'), with_code(first_line(path))]
            for name, path in modules(room)
            if (folder / "clipfh" / room / f"{name}.html").is_file()
        ]  # none where a room names its functions itself (__all__): they stand on its own page
        parts += [table(("module", "what it is"), rows)] if rows else []
    return write_page(
        folder / "index.html",
        "clipfh",
        parts,
        style="td, th { text-align: left; } td:last-child { white-space: normal; }",
    )


def rooms() -> Iterator[tuple[str, str]]:
    """Each room with what its floor is, in the order of the package's docstring."""
    for names, floor in ROOM_LINE.findall(clipfh.__doc__ or ""):
        for name in names.split(", "):
            yield name, floor


def modules(room: str) -> Iterator[tuple[str, Path]]:
    """The modules of a room that have a page: name (`garments/body` in a package) and file."""
    for path in sorted((SOURCE / room).rglob("*.py")):
        if not path.stem.startswith("_"):
            yield path.relative_to(SOURCE / room).with_suffix("").as_posix(), path


def first_line(path: Path) -> str:
    """Of the docstring of a module's file, which is not imported for it."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def with_code(text: str) -> Markup:
    """A line of a docstring as HTML."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
