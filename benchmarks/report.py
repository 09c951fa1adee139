"""Write the tables of README.md, and that of docs/scale.md, from results/*.json.

python benchmarks/report.py
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def update_readme() -> None:
    """Replace what stands between the markers in README.md, and the indexes' table in docs/scale.md."""
    sections = {
        path.stem: _section(path.stem, json.loads(path.read_text("utf-8")))
        for path in sorted(FOLDER.glob("results/*.json"))
    }
    _replace_block(FOLDER / "README.md", "\n".join(sections.values()))
    if "index" in sections:
        _replace_block(FOLDER.parent / "docs" / "scale.md", sections["index"].removeprefix("### index\n\n"))


def _replace_block(page: Path, text: str) -> None:
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    page.write_text("".join([before, BEGIN, "\n\n", text, END, after]), encoding="utf-8")


def _section(name: str, content: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in content["versions"].items())
    lines = [f"### {name}", "", f"{content['machine']}; {content['date']}; {versions}", ""]
    if content["bars"]:
        lines += ["| bar | limit | measured | |", "|---|---|---|---|"]
        lines += [
            f"| {b['what']} | {b['bar']} | {b['measured']:g} | {'holds' if b['holds'] else '**missed**'} |"
            for b in content["bars"]
        ]
        lines += [""]
    if content["rows"] and "cells" in content["rows"][0]:
        header = ["case", *content["rows"][0]["cells"]]
        lines += [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        lines += [f"| {' | '.join([r['name'], *r['cells'].values()])} |" for r in content["rows"]]
        return "\n".join([*lines, "", ""])
    lines += ["| case | seconds | CPU seconds | extra memory, MiB | |", "|---|---|---|---|---|"]
    for r in content["rows"]:
        more = ", ".join(f"{k} {v}" for k, v in r.items() if k not in ("name", "seconds", "cpu_seconds", "peak_mib"))
        cells = [r["name"], f"{r['seconds']:.4g}", f"{r['cpu_seconds']:.4g}", f"{r['peak_mib']:.0f}", more]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", ""])


if __name__ == "__main__":
    update_readme()
