"""A table of text cells in groups of columns, drawn for a terminal or as Markdown."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

WIDTH = 112  # cells of a table where the terminal does not say how many it has: official figures of several seeds fit


@dataclass(frozen=True)
class Table:
    """The results on one dataset, every cell as text, ready for any rendering.

    Attributes:
        title: the dataset, and the model where there is only one.
        date: of the newest evaluation, `YYYY-MM-DD`.
        columns: (group, name) of each column; columns of one group stand together.
        rows: one row a stage, variant and model.
        notes: what is to be said below it.
    """

    title: str
    date: str
    columns: list[tuple[str, str]]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def render_table(table: Table, *, markdown: bool, width: int = WIDTH) -> str:
    """The table as text with aligned columns: Markdown, or two header lines and rules for a terminal.

    For a terminal, groups of columns that do not fit into `width` beside each other follow below, each time beside the
    columns that say what a row is.
    """
    if not markdown:
        return "\n\n".join(_render_terminal(part) for part in _parts(table, width))
    header = [f"{group} {name}".strip() for group, name in table.columns]
    lines, widths, is_text = _aligned(table, header, [[cell.replace("|", "\\|") for cell in row] for row in table.rows])
    rule = ["-" * width if left else "-" * (width - 1) + ":" for width, left in zip(widths, is_text, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def _parts(table: Table, width: int) -> list[Table]:
    """The table cut between groups of columns, so that each part is at most `width` wide where a single group is."""
    groups = list(dict.fromkeys(group for group, _ in table.columns if group))
    parts: list[Table] = []
    shown: list[str] = []
    for group in groups:
        wider = _with_groups(table, [*shown, group])
        if shown and _width(_render_terminal(wider).split("\n", 1)[0]) > width:
            parts.append(_with_groups(table, shown))
            shown = []
        shown.append(group)
    return [*parts, _with_groups(table, shown)]


def _with_groups(table: Table, groups: Sequence[str]) -> Table:
    """The columns that say what a row is, and those of some groups."""
    places = [place for place, (group, _) in enumerate(table.columns) if group in ("", *groups)]
    columns = [table.columns[place] for place in places]
    return replace(table, columns=columns, rows=[[row[place] for place in places] for row in table.rows])


def _render_terminal(table: Table) -> str:
    lines, widths, _ = _aligned(table, [name for _, name in table.columns], table.rows)
    texts = ["  ".join(line) for line in lines]
    rule = "─" * _width(texts[0])
    return "\n".join(text.rstrip() for text in (_group_line(table, widths), texts[0], rule, *texts[1:], rule))


def _aligned(table: Table, header: list[str], rows: list[list[str]]) -> tuple[list[list[str]], list[int], list[bool]]:
    """The padded cells of header and rows, the columns' widths, and which of them hold text."""
    widths = [max(3, *map(_width, column)) for column in zip(header, *rows, strict=True)]
    is_text = [group == "" for group, _ in table.columns]
    lines = [
        [_padded(cell, width, left) for cell, width, left in zip(row, widths, is_text, strict=True)]
        for row in (header, *rows)
    ]
    return lines, widths, is_text


def _group_line(table: Table, widths: Sequence[int]) -> str:
    """The names of the groups, each over its columns, between dashes."""
    parts = []
    for group in dict.fromkeys(group for group, _ in table.columns):
        own = [width for (name, _), width in zip(table.columns, widths, strict=True) if name == group]
        width = sum(own) + 2 * (len(own) - 1)
        parts.append(f" {group} ".center(width, "─") if group else " " * width)
    return "  ".join(parts)


def _width(text: str) -> int:
    """Terminal cells: East Asian wide characters take two, combining marks none."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def _padded(text: str, width: int, left: bool) -> str:
    space = " " * (width - _width(text))
    return text + space if left else space + text
