"""A script's command line with its defaults in YAML files: files first, each over the one before, flags last.

The configuration is a frozen dataclass of `option`s; a key is a flag's name, and a section of the file the flags that
begin with its name:

    text2img:                    --text2img.image_size 64
      image_size: 256

A field whose default is `IN_FILE` has its value in one of the files. Unknown keys and wrong types are errors that name
the file and the key.
"""

import argparse
import contextlib
import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from clipfh.core.cli import Parser, add_flag, bounded, build, config_fields, value_type
from clipfh.core.errors import InputError, shortened, shown
from clipfh.core.files import require_file

C = TypeVar("C")
IN_FILE = dataclasses.MISSING  # the default of an option whose value stands in a file
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def parse_with_files(
    config_class: type[C],
    description: str | None,
    *,
    files: Sequence[Path] | Callable[[Sequence[str]], Sequence[Path]],
    arguments: Sequence[str] | None = None,
) -> C:
    """Read the files, those that `--config` names over them, and the flags of `arguments` over all.

    Args:
        config_class: the dataclass.
        description: of the script, for `--help`.
        files: YAML files that are always read, in this order, or a function that chooses them by the arguments.
        arguments: default: the command line.

    Raises:
        InputError: a file is missing or no YAML, a key is unknown or set nowhere, a value has another type or lies out
            of bounds. Wrong flags end with exit code 2.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    known = config_fields(config_class)
    given, _ = _config_flag(None).parse_known_args(arguments)
    layers = [*(files(arguments) if callable(files) else files), *given.config]
    values: dict[str, Any] = {}
    for path in layers:
        values.update(read_config_file(path, known))
    for name, (field, _) in known.items():
        if name not in values:
            if field.default is dataclasses.MISSING:
                raise InputError(f"{' and '.join(map(str, layers))}: the key {name} is missing")
            values[name] = field.default
    parser = _config_flag(description)
    for name, (field, hint) in known.items():
        add_flag(parser, field, hint, name, values[name])
    values = vars(parser.parse_args(arguments))
    return build(config_class, values)


def flag_value(arguments: Sequence[str], *flags: str, default: str) -> str:
    """What the last of `flags` (spellings of one) in `arguments` is set to, before they are parsed as a whole."""
    parser = Parser(add_help=False)
    parser.add_argument(*flags, dest="value", default=default)
    return parser.parse_known_args(arguments)[0].value


def _config_flag(description: str | None) -> Parser:
    parser = Parser(description=description, add_help=description is not None)
    parser.add_argument(
        "--config", type=Path, nargs="+", action="extend", default=[], metavar="PATH",
        help="YAML files whose keys replace the default ones, the last one's over the others'",
    )  # fmt: skip
    return parser


def read_config_file(path: Path, known: dict[str, tuple[dataclasses.Field, Any]]) -> dict[str, Any]:
    """The checked values of one YAML file, by the names of their flags.

    Raises:
        InputError: as `parse_with_files` says.
    """
    path = require_file(Path(path), "--config")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig")) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the configuration {path}: {shortened(error)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an impossible date; brackets without end
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        reason = "nested too deep" if isinstance(error, RecursionError) else getattr(error, "problem", error)
        raise InputError(f"{path}{place}: not valid YAML ({shortened(reason, 80)})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no keys; write `key: value` lines")
    sections = {name.partition(".")[0] for name in known if "." in name}
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if key in sections and isinstance(value, dict):
            flat.update({f"{key}.{inner}": inner_value for inner, inner_value in value.items()})
        elif key in sections:
            raise InputError(f"{path}: {key} is a section with keys of its own, not {shown(value)}")
        else:
            flat[str(key)] = value
    return {name: _checked(path, name, value, known) for name, value in flat.items()}


def _checked(path: Path, name: str, value: Any, known: dict[str, tuple[dataclasses.Field, Any]]) -> Any:
    """`value` as its field's type."""
    if name not in known:
        close = difflib.get_close_matches(name, known, n=2) or sorted(known)
        raise InputError(f"{path}: unknown key {name}. Closest: {', '.join(close)}")
    field, hint = known[name]
    if value is None and typing.get_origin(hint) in (typing.Union, types.UnionType):
        return None
    if parse := field.metadata.get("parse"):
        try:
            return parse(str(value))
        except argparse.ArgumentTypeError as error:
            raise InputError(f"{path}: {name}: {error}") from None
    wanted = value_type(hint)
    if wanted is float and isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            value = float(value)  # YAML 1.1 reads 2e-4, without a point, as text
    if not (isinstance(value, str) if wanted is Path else type(value) is wanted):
        raise InputError(f"{path}: {name} must be {_KINDS[wanted]}, not {shown(value)}")
    if wanted in (int, float):
        try:
            bounded(wanted, field.metadata.get("bounds", {}))(str(value))
        except argparse.ArgumentTypeError as error:
            raise InputError(f"{path}: {name}: {error}") from None
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        raise InputError(f"{path}: {name} must be one of {', '.join(map(str, choices))}, not {shown(value)}")
    return Path(value) if wanted is Path else value
