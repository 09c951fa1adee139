"""Pictures of the pages, by a real browser where there is one."""

import importlib.util
import os
import shutil

import numpy as np
import pytest
from app.gallery_of_shapes import make_gallery
from PIL import Image

from clipfh.app import screenshots
from clipfh.app.screenshots import (
    BROWSERS,
    MAX_BYTES,
    PHONE,
    WIDE,
    browser_program,
    newest_run,
    save_small,
    take_file,
    take_search_page,
)
from clipfh.core.errors import InputError


@pytest.fixture
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `docs`")
    pytest.importorskip("gradio", reason="needs the extra `app`")
    if not any(map(shutil.which, BROWSERS)):
        pytest.skip("needs chromium on the PATH")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_program(None))
        yield browser
        browser.close()


@pytest.mark.filterwarnings("ignore")  # of gradio's own threads
def test_pages_become_small_pictures(browser, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # which it sets: restored at the end
    (tmp_path / "report.html").write_text(
        "<!doctype html><body style='margin: 0; background: #00f'><p style='height: 2000px'>"
    )
    (tmp_path / "short.html").write_text("<!doctype html><body style='margin: 0'><div style='height: 300px'></div>")
    take_file(browser, tmp_path / "short.html", tmp_path / "short.webp")
    assert Image.open(tmp_path / "short.webp").size == (WIDE["width"], 300 + screenshots.MARGIN)
    take_file(browser, tmp_path / "report.html", tmp_path / "report.webp")
    take_search_page(browser, make_gallery(tmp_path / "shapes"), tmp_path)
    wide, phone = (WIDE["width"], WIDE["height"]), (2 * PHONE["width"], 2 * PHONE["height"])
    for name, size in (("report", wide), ("search", wide), ("search_phone", phone)):
        path = tmp_path / f"{name}.webp"
        assert Image.open(path).size == size and path.stat().st_size <= MAX_BYTES
    red, _, blue = np.asarray(Image.open(tmp_path / "report.webp"))[500, 600]
    assert red < 10 and blue > 245
    with pytest.raises(InputError, match=r"gone.html does not exist. Make it: bash run_all.sh"):
        take_file(browser, tmp_path / "gone.html", tmp_path / "gone.webp")


def test_a_picture_takes_the_best_quality_that_is_small_enough(tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    save_small((tmp_path / "noise.png").read_bytes(), tmp_path / "noise.webp")
    best = tmp_path / "best.webp"
    Image.fromarray(noise).save(best, quality=screenshots.QUALITIES[0], method=6)
    assert (tmp_path / "noise.webp").stat().st_size <= MAX_BYTES < best.stat().st_size
    large = np.random.default_rng(1).integers(0, 256, (1600, 1600, 3), dtype=np.uint8)
    Image.fromarray(large).save(tmp_path / "large.png")
    with pytest.raises(InputError, match="kB, more than 150"):
        save_small((tmp_path / "large.png").read_bytes(), tmp_path / "large.webp")
    assert not (tmp_path / "large.webp").exists()


def test_the_newest_run_of_the_generated_garments_is_taken(tmp_path):
    with pytest.raises(InputError, match=r"no evaluation of the generated garments .* Make one: bash run_all.sh"):
        newest_run(tmp_path)
    for seconds, name in enumerate(("synthetic_stage2_b", "synthetic_stage1_c", "grocery_stage3_d")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.html").touch()
        os.utime(tmp_path / name / "report.html", (seconds, seconds))
    assert newest_run(tmp_path).name == "synthetic_stage1_c"


def test_what_is_lacking_is_named(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "playwright" else found(name))
    with pytest.raises(InputError, match=r"bash set_up\.sh docs app.*apt install chromium"):
        screenshots.main(screenshots.Config(out=tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"there is no chromium on the PATH; .*bash set_up\.sh docs app"):
        browser_program(None)
    with pytest.raises(InputError, match="there is no my-browser on the PATH"):
        browser_program("my-browser")
