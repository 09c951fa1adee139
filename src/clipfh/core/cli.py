"""A frozen dataclass is a script's command line: one field is one flag.

    @dataclass(frozen=True)
    class Config:
        lr: float = option(1e-4, "peak learning rate of the image encoder")
        loss: str = option("triplet", "what to minimise", choices=("triplet", "supcon"))
        ckpt: Path | None = option(None, "weights to start from; default: the newest BEST")

    if __name__ == "__main__":
        run_script(main, Config, __doc__)

Booleans become `--flag/--no-flag`, `X | None` takes X, `tuple[X, ...]` one X or more, a field without a default is
required. Numbers are finite, and within the bounds that the option states. A field that is itself such a dataclass is a
section: its fields are the flags `--section.field`, or `--field` where it is declared with `section()`: flags that are
one value in the code.
"""

import argparse
import contextlib
import dataclasses
import io
import math
import operator
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from clipfh.core.errors import InputError, printable, shortened, with_short_words

C = TypeVar("C")
MAX_IMAGE_SIZE = 4096  # pixels: a batch of larger ones fills any memory
MAX_NUMBER_LENGTH = 100  # digits: Python refuses to read integers of thousands


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[Any] | None = None,
    aliases: Sequence[str] = (),
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    parse: Callable[[str], Any] | None = None,
    bare: str | None = None,
) -> Any:
    """Declare a dataclass field that is also a flag.

    Args:
        default: the field's and the flag's.
        help: what the flag is, for `--help`.
        choices: the only values that it takes.
        aliases: other spellings, such as `--metadata`.
        parse: turns the flag's text into its value, where its type alone does not; it raises ArgumentTypeError.
        above, at_least, at_most: bounds of a number; a value beyond them ends the script with a message.
        bare: the value of a text's flag that stands without one.
    """
    bounds = {"more than": above, "at least": at_least, "at most": at_most}
    metadata = {"help": help, "choices": choices, "aliases": tuple(aliases), "bounds": bounds, "parse": parse}
    metadata["bare"] = bare
    if isinstance(default, (list, dict, set)):
        raise TypeError("use a tuple: defaults of a frozen config are immutable")
    return dataclasses.field(default=default, metadata=metadata)


def section() -> Any:
    """Declare a field whose dataclass groups flags in the code alone: they keep their own names, without a prefix."""
    return dataclasses.field(metadata={"flat": True})


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line of the project's form, and whose flags are spelled out."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **keywords)

    def error(self, message: str) -> typing.NoReturn:
        """Print the message, and end with exit code 2."""
        line = f"error: {shortened(message, 250)}. All flags: --help\n"
        self.exit(2, line if _is_told_here(line) else None)


def parse_config(config_class: type[C], description: str | None, arguments: Sequence[str] | None = None) -> C:
    """Parse `arguments` (default: the command line) into `config_class`. Unknown flags end with exit code 2."""
    parser = Parser(description=description)
    for name, (field, hint) in config_fields(config_class).items():
        add_flag(parser, field, hint, name, field.default)
    return build(config_class, vars(parser.parse_args(arguments)))


def config_fields(config_class: type) -> dict[str, tuple[dataclasses.Field, Any]]:
    """The fields of a dataclass by the names of their flags, each with its type; sections are flattened."""
    known: dict[str, tuple[dataclasses.Field, Any]] = {}
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(hints[field.name]):
            inner = config_fields(hints[field.name])
            known.update({_prefix(field) + name: found for name, found in inner.items()})
        else:
            known[field.name] = (field, hints[field.name])
    return known


def build(config_class: type[C], values: dict[str, Any]) -> C:
    """The dataclass whose flags have `values`, by their names."""
    hints = typing.get_type_hints(config_class)
    made = {}
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(hints[field.name]):
            prefix = _prefix(field)
            inner = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
            made[field.name] = build(hints[field.name], inner)
        else:
            made[field.name] = values[field.name]
    return config_class(**made)


def jsonable(config: Any) -> dict[str, Any]:
    """A dataclass as JSON values, by the names of its flags: paths become strings."""
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            values.update({_prefix(field) + name: inner for name, inner in jsonable(value).items()})
        else:
            values[field.name] = str(value) if isinstance(value, Path) else value
    return values


def _prefix(field: dataclasses.Field) -> str:
    return "" if field.metadata.get("flat") else f"{field.name}."


def add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field, hint: Any, name: str, default: Any) -> None:
    """Add the flag `--name` of a field of type `hint`; without a default (`dataclasses.MISSING`) it is required."""
    names = [f"--{name}", *field.metadata.get("aliases", ())]
    required = default is dataclasses.MISSING
    keywords: dict[str, Any] = {"dest": name, "required": required, "default": None if required else default}
    text = field.metadata.get("help", "")
    if not required and default not in (None, "", ()):
        text += f" (default: {default})"
    keywords["help"] = text.replace("%", "%%")
    parse = field.metadata.get("parse")
    if takes_several := typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
    wanted = value_type(hint) if parse is None else None
    if parse is not None:
        keywords |= {"type": parse, "metavar": "SIZE"}
    elif wanted is bool:
        keywords["action"] = argparse.BooleanOptionalAction
        keywords["help"] = (
            keywords["help"]
            .replace(" (default: True)", " (default: on)")
            .replace(" (default: False)", " (default: off)")
        )
    else:
        bounds = field.metadata.get("bounds", {})
        keywords["type"] = bounded(wanted, bounds) if wanted in (int, float) else _text_as(wanted)
        if field.metadata.get("choices"):
            keywords["choices"] = list(field.metadata["choices"])
        else:
            keywords["metavar"] = {Path: "PATH", int: "N", float: "X"}.get(wanted, "TEXT")
    if field.metadata.get("bare") is not None:
        keywords |= {"nargs": "?", "const": field.metadata["bare"]}
    if takes_several:
        keywords |= {"nargs": "+", "action": _StoreTuple}
    parser.add_argument(*names, **keywords)


class _StoreTuple(argparse.Action):
    """A flag's values as a tuple: a frozen config holds no list."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, tuple(values))


def bounded(wanted: type, bounds: dict[str, float | None]) -> Callable[[str], Any]:
    """The number type `wanted` as argparse wants it, refusing what is not finite or beyond the bounds."""
    keeps = {"more than": operator.gt, "at least": operator.ge, "at most": operator.le}

    def convert(text: str) -> Any:
        if len(text) > MAX_NUMBER_LENGTH:
            raise argparse.ArgumentTypeError(f"{shortened(text, 20)} has {len(text)} digits")
        value = wanted(text)
        if wanted is int and not -(2**63) <= value < 2**63:
            raise argparse.ArgumentTypeError(f"{text} does not fit into 64 bits")
        stated = [f"{name} {bound:g}" for name, bound in bounds.items() if bound is not None]
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} is not a finite number")
        if not all(keeps[name](value, bound) for name, bound in bounds.items() if bound is not None):
            raise argparse.ArgumentTypeError(f"it must be {' and '.join(stated)}, not {text}")
        return value

    convert.__name__ = wanted.__name__  # argparse: "invalid int value"
    return convert


def _text_as(wanted: type) -> Callable[[str], Any]:
    """A text or path as argparse wants it, refusing what no file or name can be."""

    def convert(text: str) -> Any:
        if wanted is Path and not text:
            raise argparse.ArgumentTypeError("it is empty")
        if printable(text) != text:
            raise argparse.ArgumentTypeError(f"{shortened(printable(text))} holds control or unprintable characters")
        return wanted(text)

    convert.__name__ = wanted.__name__
    return convert


def value_type(hint: Any) -> type:
    """The type a flag's text is turned into: `int` for `int | None`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [part for part in typing.get_args(hint) if part is not type(None)]
        if len(inner) != 1:
            raise TypeError(f"a flag has one type, not {hint}")
        return inner[0]
    return hint


def run_script(
    main: Callable[[C], None],
    config_class: type[C],
    description: str | None,
    parse: Callable[[type[C], str | None], C] = parse_config,
    *,
    in_processes: bool = False,
) -> None:
    """Parse the command line and call `main(config)`; a user's mistake ends with a message and exit code 2.

    `CLIPFH_DEBUG=1` shows the traceback of such an error as well. Of the processes that `torchrun` starts, the first
    alone prints, and an error that all of them meet is told once; `in_processes`: the script knows several.
    """
    is_first = os.environ.get("RANK", "0") == "0"
    world_size = os.environ.get("WORLD_SIZE", "1")
    try:
        with contextlib.nullcontext() if is_first else contextlib.redirect_stdout(io.StringIO()):
            config = parse(config_class, description)
            if world_size != "1" and not in_processes:
                raise InputError(
                    f"WORLD_SIZE is {shortened(world_size, 20)}: only the trainings of stages 2, 3 and 4 run in "
                    "several processes; run this without torchrun, and choose its GPU with --device cuda:N"
                )
            main(config)
        if world_size != "1":
            from clipfh.core.processes import leave

            leave()
    except (InputError, OSError) as error:
        if os.environ.get("CLIPFH_DEBUG"):
            raise
        lines = [with_short_words(printable(line)) for line in str(error).split("\n")]  # a layout has several
        if _is_told_here(lines[0]):
            print("\nerror: " + "\n".join(lines), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if _is_told_here("stopped"):
            print("\nstopped", file=sys.stderr)
        sys.exit(130)


def _is_told_here(message: str) -> bool:
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from clipfh.core.processes import says_it_first  # torch: help and wrong options need no set-up

    return says_it_first(message)


def image_size(text: str) -> int | tuple[int, int]:
    """A flag's image size: `224`, or height x width as in `256x128`."""
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{shortened(text, 40)} is no size; write 224, or height x width: 256x128")
    height, width = int(match[1]), int(match[2] or match[1])
    if not 32 <= min(height, width) <= max(height, width) <= MAX_IMAGE_SIZE:
        raise argparse.ArgumentTypeError(f"it must be at least 32 and at most {MAX_IMAGE_SIZE}, not {text}")
    return height if height == width else (height, width)
