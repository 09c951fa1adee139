"""Settings from YAML files and flags."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from clipfh.core.cli import option
from clipfh.core.config_file import IN_FILE, parse_with_files
from clipfh.core.errors import InputError


@dataclass(frozen=True)
class Inner:
    size: int | None = option(IN_FILE, "of it", at_least=1)
    kind: str = option(IN_FILE, "of it", choices=("a", "b"))


@dataclass(frozen=True)
class Config:
    inner: Inner
    lr: float = option(IN_FILE, "rate", above=0)
    place: Path | None = option(IN_FILE, "where")
    fast: bool = option(IN_FILE, "or slow")
    note: str | None = option(None, "no key of the file")


BASE = "lr: 2e-4\nplace: null\nfast: false\ninner: {size: 8, kind: a}\n"


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


def test_files_then_config_then_flags(base, tmp_path):
    over, given = tmp_path / "over.yaml", tmp_path / "given.yaml"
    over.write_text("inner:\n  size: 16\nplace: somewhere\n")
    given.write_text("lr: 1\ninner:\n  kind: b\n")
    config = parse_with_files(Config, "text", files=[base], arguments=[])
    assert config == Config(Inner(8, "a"), 2e-4, None, False)
    config = parse_with_files(Config, "text", files=lambda given: [base, over], arguments=["--config", str(given)])
    assert config == Config(Inner(16, "b"), 1.0, Path("somewhere"), False)
    config = parse_with_files(Config, "text", files=[base], arguments=["--config", str(over), str(given)])
    assert config == Config(Inner(16, "b"), 1.0, Path("somewhere"), False)
    flags = ["--inner.size", "4", "--fast", "--config", str(given), "--note", "x", "--lr", "0.5"]
    config = parse_with_files(Config, "text", files=[base, over], arguments=flags)
    assert config == Config(Inner(4, "b"), 0.5, Path("somewhere"), True, "x")


def test_null_is_for_optional_keys(base):
    base.write_text(BASE.replace("size: 8", "size: null"))
    assert parse_with_files(Config, "text", files=[base], arguments=[]).inner.size is None
    base.write_text(BASE.replace("2e-4", "null"))
    with pytest.raises(InputError, match=r"base.yaml: lr must be a number, not None"):
        parse_with_files(Config, "text", files=[base], arguments=[])


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("lr:", "learn:", "unknown key learn"),
        ("size: 8", "sise: 8", "unknown key inner.sise. Closest: inner.size"),
        ("size: 8", "size: big", "inner.size must be a whole number, not 'big'"),
        ("size: 8", "size: 8.5", "inner.size must be a whole number, not 8.5"),
        ("size: 8", "size: true", "inner.size must be a whole number, not True"),
        ("size: 8", "size: 0", "inner.size: it must be at least 1, not 0"),
        ("kind: a", "kind: c", "inner.kind must be one of a, b, not 'c'"),
        ("2e-4", "fast", "lr must be a number, not 'fast'"),
        ("2e-4", ".nan", "lr: nan is not a finite number"),
        ("fast: false", "fast: 0", "fast must be true or false, not 0"),
        ("place: null", "place: 3", "place must be a path, not 3"),
        ("inner: {size: 8, kind: a}", "inner: 3", "inner is a section"),
        ("fast: false\n", "", "the key fast is missing"),
        ("fast: false", "fast: ]", "line 3: not valid YAML"),
    ],
)
def test_wrong_keys_and_values_name_file_and_key(base, before, after, says):
    base.write_text(BASE.replace(before, after))
    with pytest.raises(InputError) as error:
        parse_with_files(Config, "text", files=[base], arguments=[])
    assert str(base) in str(error.value) and says in str(error.value)


def test_files_that_are_no_settings_are_refused(base, tmp_path):
    with pytest.raises(InputError, match=r"--config .*gone.yaml does not exist"):
        parse_with_files(Config, "text", files=[base], arguments=["--config", str(tmp_path / "gone.yaml")])
    base.write_text("- a list\n")
    with pytest.raises(InputError, match="holds no keys"):
        parse_with_files(Config, "text", files=[base], arguments=[])


def test_wrong_flags_end_the_script(base, capsys):
    for flags, says in (
        (["--inner.size", "0"], "at least 1"),
        (["--inner.sise", "1"], "unrecognized"),
        (["--lr", "x"], "lr"),
    ):
        with pytest.raises(SystemExit) as end:
            parse_with_files(Config, "text", files=[base], arguments=flags)
        assert end.value.code == 2 and says in capsys.readouterr().err
