import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from clipfh.core.cli import jsonable, option, parse_config, run_script, section
from clipfh.core.errors import InputError


@dataclass(frozen=True)
class Config:
    name: str = option("synthetic", "a name, 100% free")
    rate: float = option(1e-4, "a rate", above=0.0, at_most=1.0, aliases=("--lr",))
    epochs: int = option(12, "a count", at_least=1)
    loss: str = option("triplet", "what to minimise", choices=("triplet", "supcon"))
    skip: bool = option(False, "a switch")
    amp: bool = option(True, "another", aliases=("--mixed",))
    exclude: bool | None = option(None, "a switch or nobody's business")
    folder: Path | None = option(None, "a folder", aliases=("--metadata", "--meta_dir"))
    limit: int | None = option(None, "a count or none")
    margin: float | None = option(0.3, "a margin or none")
    files: tuple[Path, ...] = option((), "none, one or several files")


def parse(*arguments):
    return parse_config(Config, "What it does.", arguments)


def test_defaults_are_those_of_the_dataclass():
    assert parse() == Config()


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--name", "a b"], "name", "a b"),
        (["--rate", "0.5"], "rate", 0.5),
        (["--lr", "1e-3"], "rate", 1e-3),
        (["--epochs=3"], "epochs", 3),
        (["--loss", "supcon"], "loss", "supcon"),
        (["--skip"], "skip", True),
        (["--no-skip"], "skip", False),
        (["--no-amp"], "amp", False),
        (["--no-mixed"], "amp", False),
        (["--exclude"], "exclude", True),
        (["--no-exclude"], "exclude", False),
        (["--folder", "a/b"], "folder", Path("a/b")),
        (["--metadata", "a/b"], "folder", Path("a/b")),
        (["--meta_dir", "a/b"], "folder", Path("a/b")),
        (["--limit", "7"], "limit", 7),
        (["--margin", "0"], "margin", 0.0),
        (["--files", "a/b", "c"], "files", (Path("a/b"), Path("c"))),
    ],
)
def test_flags(arguments, field, value):
    assert parse(*arguments) == dataclasses.replace(Config(), **{field: value})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--unknown", "1"], "unrecognized arguments: --unknown 1"),
        (["--epoch", "1"], "unrecognized arguments: --epoch 1"),  # no abbreviations
        (["stray"], "unrecognized arguments: stray"),
        (["--loss", "center"], "invalid choice: 'center' (choose from"),
        (["--epochs", "many"], "invalid int value: 'many'"),
        (["--epochs", "1.5"], "invalid int value: '1.5'"),
        (["--epochs", "0"], "it must be at least 1, not 0"),
        (["--rate", "nan"], "nan is not a finite number"),
        (["--rate", "inf"], "inf is not a finite number"),
        (["--rate", "0"], "it must be more than 0 and at most 1, not 0"),
        (["--rate", "1.01"], "it must be more than 0 and at most 1, not 1.01"),
        (["--rate"], "expected one argument"),
        (["--skip", "yes"], "unrecognized arguments: yes"),
    ],
)
def test_wrong_flags_end_with_code_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        parse(*arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.endswith(". All flags: --help\n")
    assert error.count("\n") == 1 and len(error) < 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["--epochs", "9" * 5000],
        ["--epochs", str(2**63)],
        ["--rate", "1" * 101],
        ["--margin", "1e999"],
        ["--folder", ""],
        ["--folder", "a\0b"],
        ["--folder", "a\nb"],
        ["--folder", "a\x1b[31mb"],
        ["--name", "a\udcff"],
        ["--name", "a\u202eb"],
        ["--loss", "x" * 5000],
        ["--" + "x" * 5000],
        ["--epochs", "\x1b[31m"],
    ],
)
def test_hostile_values_end_with_one_line(capsys, arguments):
    with pytest.raises(SystemExit) as end:
        parse(*arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error[:-1].isprintable() and len(error) <= 300


@pytest.mark.parametrize(
    "error", [InputError("a\x1b[31m\u202e" + "b" * 5000 + "the way out"), OSError(2, "x" * 999, "\n")]
)
def test_what_a_script_prints_of_an_error_is_short_and_harmless(capsys, monkeypatch, error):
    def fail(config):
        raise error

    monkeypatch.setattr(sys, "argv", ["script"])
    monkeypatch.delenv("CLIPFH_DEBUG", raising=False)
    with pytest.raises(SystemExit) as end:
        run_script(fail, Config, None)
    printed = capsys.readouterr().err.strip("\n")
    assert end.value.code == 2 and printed.startswith("error: ") and printed.isprintable() and len(printed) <= 300
    assert isinstance(error, OSError) or printed.endswith("the way out")


def test_a_field_without_default_is_required(capsys):
    @dataclass(frozen=True)
    class Required:
        ckpt: Path

    assert parse_config(Required, None, ["--ckpt", "a"]) == Required(Path("a"))
    with pytest.raises(SystemExit):
        parse_config(Required, None, [])
    assert "the following arguments are required: --ckpt" in capsys.readouterr().err


def test_help_states_defaults_and_choices(capsys):
    with pytest.raises(SystemExit) as end:
        parse("--help")
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "What it does.",
        "a name, 100% free (default: synthetic)",
        "{triplet,supcon}",
        "a switch (default: off)",
        "another (default: on)",
        "--meta_dir PATH",
        "a count (default: 12)",
    ):
        assert part in text
    assert "default: None" not in text


def test_a_default_that_can_change_is_refused():
    with pytest.raises(TypeError, match="immutable"):
        option([1], "a list")
    with pytest.raises(TypeError, match="one type"):

        @dataclass(frozen=True)
        class Two:
            value: int | str = option(1, "two types")

        parse_config(Two, None, [])


SCRIPT = """
from dataclasses import dataclass
from clipfh.core.cli import option, run_script
from clipfh.core.errors import InputError

@dataclass(frozen=True)
class Config:
    kind: str = option("none", "which error")

def main(config):
    if config.kind == "input":
        raise InputError("a.json is broken; make it again")
    if config.kind == "file":
        open("does/not/exist")
    if config.kind == "stop":
        raise KeyboardInterrupt
    if config.kind == "bug":
        raise RuntimeError("a bug")
    print("done")

run_script(main, Config, "A script.")
"""


def run(kind, monkeypatch, debug=""):
    monkeypatch.setenv("CLIPFH_DEBUG", debug)
    command = [sys.executable, "-c", SCRIPT, "--kind", kind]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("none", 0, ""),
        ("input", 2, "\nerror: a.json is broken; make it again\n"),
        ("file", 2, "\nerror: [Errno 2] No such file or directory: 'does/not/exist'\n"),
        ("stop", 130, "\nstopped\n"),
    ],
)
def test_a_users_mistake_ends_without_a_traceback(monkeypatch, kind, code, message):
    process = run(kind, monkeypatch)
    assert (process.returncode, process.stderr) == (code, message)


def test_a_bug_and_a_debugged_mistake_show_their_traceback(monkeypatch):
    assert "Traceback" in run("bug", monkeypatch).stderr
    process = run("input", monkeypatch, debug="1")
    assert process.returncode == 1 and "Traceback" in process.stderr and "a.json is broken" in process.stderr


def test_run_script_reads_the_command_line(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "argv", ["script.py", "--epochs", "5"])
    run_script(seen.append, Config, None)
    assert seen == [Config(epochs=5)]

    def fail(config):
        raise InputError("no")

    monkeypatch.delenv("CLIPFH_DEBUG", raising=False)
    with pytest.raises(SystemExit) as end:
        run_script(fail, Config, None)
    assert end.value.code == 2


@dataclass(frozen=True)
class Places:
    lr: float = 0.1
    folder: Path | None = Path("a/b")
    ckpt: Path | None = None


def test_config_as_json():
    assert json.loads(json.dumps(jsonable(Places()))) == {"lr": 0.1, "folder": "a/b", "ckpt": None}


@dataclass(frozen=True)
class Nested:
    inner: Places = Places()
    seed: int = 3


def test_sections_of_a_config_are_named_as_their_flags():
    assert jsonable(Nested()) == {"inner.lr": 0.1, "inner.folder": "a/b", "inner.ckpt": None, "seed": 3}


@dataclass(frozen=True)
class Grouped:
    places: Places = section()
    nested: Nested = option(None, "a section under its own name")


def test_a_section_without_a_prefix_groups_flags_in_the_code_alone():
    config = parse_config(Grouped, None, ["--lr", "0.5", "--nested.inner.lr", "2", "--nested.seed", "4"])
    assert config == Grouped(Places(0.5), Nested(Places(2.0), 4))
    assert jsonable(config)["lr"] == 0.5 and jsonable(config)["nested.inner.lr"] == 2.0
