"""Features of any photos, and an index of them that is searched by photos and words.

    python -m clipfh.index extract     photos -> features
    python -m clipfh.index build       features -> an index: a folder, NAME.db, or a Milvus server
    python -m clipfh.index add         more features -> the index
    python -m clipfh.index delete      photos out of the index
    python -m clipfh.index search      a photo or words -> the nearest photos
    python -m clipfh.index info        what the index holds

Each has its own --help. They need the extra `scale`: bash set_up.sh scale
"""

import sys
from collections.abc import Callable

from clipfh.core.cli import run_script
from clipfh.core.errors import shortened
from clipfh.index.commands import COMMANDS

WITH_A_MODEL = ("extract", "search")


def main() -> None:
    """Run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("-h", "--help"):
        print(__doc__.strip())
    elif name not in COMMANDS and name not in WITH_A_MODEL:
        valid = ", ".join([*WITH_A_MODEL, *COMMANDS])
        print(f"error: {shortened(name, 40) or 'no command'}: give one of {valid}", file=sys.stderr)
        sys.exit(2)
    else:
        sys.argv = [f"clipfh.index {name}", *sys.argv[2:]]  # the rest is the command's own line
        run_script(*_command(name))


def _command(name: str) -> tuple[Callable, type, str | None]:
    """What runs a command, its `Config`, and its help."""
    if name == "extract":
        from clipfh.index import extract  # torch takes seconds to import

        return extract.main, extract.Config, extract.__doc__
    if name == "search":
        from clipfh.index import search

        return search.main, search.Config, search.__doc__
    return COMMANDS[name]


if __name__ == "__main__":
    main()
