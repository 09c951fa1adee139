"""What a step of a pipeline was made from and what it made: digests that are compared on the next start.

The stamp of a step is a JSON file beside its log: the command, fingerprints of its inputs and outputs, the lines that
it appended to shared files, and digests of the stamps of the steps before it. Standard library only.
"""

import glob
import hashlib
import json
import os
from pathlib import Path
from typing import Any


def expand(pattern: str) -> list[str]:
    """All files that a path, a folder or a glob pattern stands for, sorted; `/` separators."""
    roots = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
    files: set[Path] = set()
    for root in map(Path, roots):
        files.update(path for path in ([root] if root.is_file() else root.rglob("*")) if path.is_file())
    return sorted(path.as_posix() for path in files)


def fingerprint(path: str) -> str:
    """Size and SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return f"{os.path.getsize(path)} {digest.hexdigest()}"


def fingerprints(paths: list[str]) -> dict[str, str]:
    """Path to fingerprint."""
    return {path: fingerprint(path) for path in paths}


def stamp_path(log: Path) -> Path:
    """The stamp beside a log."""
    return log.with_suffix(".json")


def read_stamp(log: Path) -> dict[str, Any]:
    """The stamp of a finished step; empty where there is none or it is damaged."""
    try:
        stamp = json.loads(stamp_path(log).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    kinds = {"command": list, "inputs": dict, "after": dict, "outputs": dict, "appended": dict, "seconds": (int, float)}
    if not isinstance(stamp, dict) or not all(isinstance(stamp.get(key), kind) for key, kind in kinds.items()):
        return {}
    is_whole = all(isinstance(paths, dict) for paths in stamp["outputs"].values()) and all(
        isinstance(lines, list) and all(isinstance(line, str) for line in lines) for lines in stamp["appended"].values()
    )
    return stamp if is_whole else {}


def write_stamp(log: Path, stamp: dict[str, Any]) -> None:
    """Write the stamp of a finished step, whole or not at all."""
    temporary = stamp_path(log).with_suffix(".json.part")
    temporary.write_text(json.dumps(stamp, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, stamp_path(log))


def result_digest(log: Path) -> str:
    """What a later step depends on: how the outputs were made and what they are; empty for a step never finished."""
    stamp = read_stamp(log)
    parts = [stamp.get(key) for key in ("command", "inputs", "after", "outputs")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest() if stamp else ""


def plan(command: list[str], inputs: list[str], after: list[str], log: Path) -> dict[str, Any]:
    """The part of the stamp that is known before the step runs.

    Python files named in the command count as inputs: a changed script runs again. `--force` is left out of the
    command: it changes when the step runs, not what it makes. `after` names steps whose logs lie beside `log`.
    """
    scripts = [argument for argument in command if argument.endswith(".py") and os.path.isfile(argument)]
    input_files = {path for pattern in (*scripts, *inputs) for path in expand(pattern)}
    return {
        "command": [argument for argument in command if argument != "--force"],
        "inputs": fingerprints(sorted(input_files)),
        "after": {name: result_digest(log.with_name(f"{name}.log")) for name in after},
    }


def why_run(stamp: dict[str, Any], planned: dict[str, Any], patterns: list[str], appended_to: list[str]) -> str | None:
    """Why a step with this stamp must run (again), or None if it is finished; empty if it never finished."""
    if not stamp:
        return ""
    for part, reason in (
        ("command", "the command changed"),
        ("inputs", "an input changed"),
        ("after", "a step before it changed"),
    ):
        if stamp[part] != planned[part]:
            return reason
    if set(stamp["outputs"]) != set(patterns) or set(stamp["appended"]) != set(appended_to):
        return "its outputs are others now"
    for recorded in stamp["outputs"].values():
        for path, expected in recorded.items():
            if not os.path.isfile(path):
                return f"{path} is gone"
            if fingerprint(path) != expected:
                return f"{path} was changed"
    for path, lines in stamp["appended"].items():
        if not set(lines) <= set(lines_of(path)):
            return f"{path} has lost its rows"
    return None


def lines_of(path: str) -> list[str]:
    """The lines of a text file; none where it does not exist."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").split("\n")  # a name may hold other line breaks
    except FileNotFoundError:
        return []


def state_of(path: str) -> tuple[int, int, int]:
    """What tells without reading it that a file was written: size, time of change, inode."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ino


def made_or_changed(pattern: str, before: dict[str, tuple[int, int, int]], said: str) -> list[str]:
    """The files of a pattern that differ from `before`; of several those that the step's output `said` names.

    Another run may have written its own beside them. If none differs, the step found its work done: then those that
    its output names, or else all of them. What is no pattern stands for all its files.
    """
    paths = expand(pattern)
    if not glob.has_magic(pattern):
        return paths
    changed = [path for path in paths if before.get(path) != state_of(path)]
    named = [path for path in changed or paths if path in said or f"{Path(path).parent.as_posix()}\n" in said]
    return named or changed or paths
