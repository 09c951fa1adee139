import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from clipfh.core.errors import InputError
from clipfh.core.files import (
    UNFINISHED,
    read_json,
    replace_atomically,
    text_lines,
    unfinished_folder,
    writable_folder,
    write_json,
    write_text,
)


def test_a_file_is_replaced_when_the_block_succeeds(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with replace_atomically(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".txt"
        temporary.write_text("first")
        assert not path.exists()
    with replace_atomically(path) as temporary:
        temporary.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert os.listdir(path.parent) == ["a.txt"]


def test_what_a_killed_process_left_is_deleted_and_what_is_written_is_not(tmp_path):
    writer = f"""
import os, sys
from clipfh.core.files import replace_atomically
with replace_atomically({str(tmp_path / "run_LAST.pth")!r}) as temporary:
    temporary.write_text("half")
    os.utime(temporary, (0, 1))  # an hour-long write
    print(temporary, flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", writer], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    unfinished = Path(process.stdout.readline().strip())
    folder = tmp_path / f".photos{UNFINISHED}x"
    folder.mkdir()
    (folder / "a.jpg").write_text("")
    os.utime(folder, (0, 1))
    (tmp_path / ".hidden").write_text("of someone else")
    write_text(tmp_path / "other.txt", "whole")
    assert unfinished.exists() and not folder.exists()
    process.kill()
    process.communicate()
    new = tmp_path / f".just_made{UNFINISHED}y"
    new.write_text("")
    write_text(tmp_path / "other.txt", "whole")
    assert sorted(os.listdir(tmp_path)) == [".hidden", new.name, "other.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("existing", [True, False])
def test_a_failing_block_leaves_nothing_behind(tmp_path, error, existing):
    path = tmp_path / "a.json"
    if existing:
        path.write_text("before")
    with pytest.raises(error), replace_atomically(path) as temporary:
        temporary.write_text("half")
        raise error
    assert os.listdir(tmp_path) == (["a.json"] if existing else [])
    assert not existing or path.read_text() == "before"


def test_a_value_that_is_no_json_leaves_the_file_alone(tmp_path):
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"key": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == [1]
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_result_is_as_readable_as_any_file(tmp_path):
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "written", "")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "written")]
    assert modes[0] == modes[1]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*a.txt.*Choose another"):
        write_text(tmp_path / "file" / "a.txt", "")
    with pytest.raises(InputError, match=r"cannot write to the folder .*Choose another --results_dir"):
        writable_folder(tmp_path / "file", "--results_dir")
    assert writable_folder(tmp_path / "new" / "folder", "--x") == tmp_path / "new" / "folder"
    assert os.listdir(tmp_path / "new" / "folder") == []


def test_json_survives_the_file(tmp_path):
    value = {"b": [1, 2.5, None], "a": "Größe 衬衫"}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "衬衫" in text and text.index('"b"') < text.index('"a"') and text.endswith("}\n")
    assert read_json(tmp_path / "a.json", made_by="x") == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b": }', r"a.json, line 2, column 7: not valid JSON .*Make it again with: python make.py"),
        (b"", r"a.json, line 1, column 1: not valid JSON"),
        (b'{"a": 1', r"a.json, line 1, column 8: not valid JSON"),
        (b"[1]", r"a.json holds JSON of an unexpected shape. Make it again with: python make.py"),
        (b'{"a": "\xff"}', r"cannot read .*a.json.*utf-8"),
    ],
)
def test_json_errors_name_the_file_and_the_place(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_json(tmp_path / "a.json", made_by="python make.py")


def test_json_that_is_missing_or_a_folder(tmp_path):
    with pytest.raises(InputError, match=r"a.json does not exist. Make it with: python make.py"):
        read_json(tmp_path / "a.json", made_by="python make.py")
    with pytest.raises(InputError, match=r"cannot read"):
        read_json(tmp_path, made_by="x")


def test_the_expected_shape_may_be_given(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    assert read_json(tmp_path / "a.json", made_by="x", check=lambda value: value == [1]) == [1]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("a", ["a"]),
        ("a\n", ["a"]),
        ("a\r\nb\n\nc", ["a", "b", "", "c"]),
        ("a\u2028b\x0bc\x0cd\x85e\x1cf\u2029g\n", ["a\u2028b\x0bc\x0cd\x85e\x1cf\u2029g"]),
    ],
)
def test_text_has_two_line_ends_and_no_more(text, lines):
    assert text_lines(text) == lines


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a": ' * 50_000, '{"a": ' + "9" * 5000 + "}", "\0", '{"a": 1', ""]
)
def test_hostile_json_ends_with_one_line(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=r"a\.json.*not valid JSON .*Make it again with: make") as refused:
        read_json(tmp_path / "a.json", made_by="make")
    assert str(refused.value).isprintable() and len(str(refused.value)) - len(str(tmp_path)) < 200


def test_a_byte_order_mark_is_no_json_error(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 0}', encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json", made_by="make") == {"a": 0}


WRITERS = {
    "text": "write_text(path, 'x' * 2_000_000)",
    "checkpoint": "write_checkpoint(path, {'weights': torch.zeros(500_000)})",
    "features": "load_text_features(['x'] * 2000, lambda texts: torch.ones(len(texts), 300), '', path)",
    "pixels": "load_pixels(path.parent / 'photos', ['a.png'] * 20, 224, path)",
    "table": """
with replace_atomically(path) as temporary:
    pd.DataFrame({'a': range(500_000)}).to_csv(temporary)
""",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(server, tmp_path, writer):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (224, 224)).save(tmp_path / "photos" / "a.png")
    path = tmp_path / "file"
    if writer not in ("features", "pixels"):
        path.write_text("before")
    program = f"""
import resource
from pathlib import Path
import pandas as pd
import torch
from clipfh.models.checkpoint import write_checkpoint
from clipfh.core.errors import InputError
from clipfh.core.files import replace_atomically, write_text
from clipfh.images.pixels import load_pixels
from clipfh.features.texts import load_text_features
path = Path({str(path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # as good as a full disk
try:
    exec({WRITERS[writer]!r})
except InputError as error:
    print(error)
"""
    (result,) = server.run_code(program, {})
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(rf"cannot write {path}.* \(File too large\); is the disk full\?\n", result.stdout)
    if path.is_file():
        assert path.read_text() == "before"
    assert not [name for name in os.listdir(path if path.is_dir() else tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("made", [replace_atomically, unfinished_folder])
def test_an_interrupt_right_behind_its_making_leaves_nothing(tmp_path, monkeypatch, made):
    opened = os.open

    def interrupted(path, *arguments, **keywords):
        handle = opened(path, *arguments, **keywords)
        if UNFINISHED not in str(path):
            return handle
        monkeypatch.undo()  # what tidies up opens it, too
        os.close(handle)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "open", interrupted)
    with pytest.raises(KeyboardInterrupt), made(tmp_path / "result.pth"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("made", [replace_atomically, unfinished_folder])
def test_a_folder_that_is_a_file_is_said(tmp_path, made):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .* Choose another"), made(tmp_path / "file" / "x"):
        pass
