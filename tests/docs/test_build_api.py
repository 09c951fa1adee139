"""`make docs`: every module has its page, nothing is warned of, and the landing page has the rooms in order."""

import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from places import ROOT
from test_rooms import FLOORS

NEEDS = ("pdoc", "gradio", "onnxruntime", "transformers")
lacking = [name for name in NEEDS if find_spec(name) is None]


@pytest.mark.skipif(bool(lacking), reason=f"without {', '.join(lacking)}: bash set_up.sh parts app export docs")
def test_every_module_has_a_page_without_a_warning(tmp_path):
    command = [sys.executable, ROOT / "docs" / "build_api.py", "--out", tmp_path / "api"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    page = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'href="([^"]+)"', page)
    assert len(links) == len(set(links)) > 100
    assert all((tmp_path / "api" / link).is_file() for link in links)
    shown = [link.removeprefix("clipfh/").removesuffix(".html") for link in links]
    assert [room for room in shown if "/" not in room] == [room for floor in FLOORS for room in floor]
    losses = (tmp_path / "api/clipfh/losses.html").read_text(encoding="utf-8")
    assert re.search(r"Raises:?</h\d>", losses) and "(B, D)" in losses
