"""Pictures of the search page, a run's report and the list of all runs, for the README: taken in a real browser.

    python -m clipfh.app.screenshots

They show the newest run of the generated garments, whose pictures are nobody's. Run it after `bash run_all.sh`. It
needs the extras `docs` (playwright) and `app`, and chromium of the system: nothing is downloaded.

Reads:   results/, metadata/synthetic/, checkpoints
Writes:  docs/pages/*.webp
"""

import importlib.util
import io
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from clipfh.app.loading import load_gallery
from clipfh.app.search import Gallery, Query
from clipfh.core.cli import option, run_script
from clipfh.core.errors import InputError
from clipfh.core.files import replace_atomically, writable_folder
from clipfh.core.paths import RESULTS_DIR, ROOT, display
from clipfh.reports.results_index import INDEX
from clipfh.reports.small_webp import small_webp
from clipfh.tables.prepared import DEFAULT_DATASET

HOW_TO_GET = (
    "the pictures need playwright and gradio; install them with: bash set_up.sh docs app, or pip install -e "
    "'.[docs,app]'; and the system's chromium, on Debian: apt install chromium"
)
REPORT = "report.html"  # of a run
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDE, PHONE = {"width": 1280, "height": 960}, {"width": 390, "height": 1200}  # CSS pixels; as wide as a phone
MARGIN = 24  # CSS pixels below a page that is shorter
MAX_BYTES = 150_000  # of a picture
QUALITIES = (85, 75, 65, 50, 35)  # of WebP
WAIT_MS = 120_000
ALL_SHOWN = """() => [...document.querySelectorAll(".found img")].every(
  (image) => image.complete || image.getBoundingClientRect().top > window.innerHeight  // is loaded once it is in sight
)"""


@dataclass(frozen=True)
class Config:
    """The command line."""

    out: Path = option(ROOT / "docs" / "pages", "folder of the pictures")
    browser: str | None = option(None, "the browser's program (default: chromium or Chrome on the PATH)")
    device: str = option("cpu", "of the search: cpu, cuda")


def main(config: Config) -> None:
    """Take all pictures."""
    if not (importlib.util.find_spec("playwright") and importlib.util.find_spec("gradio")):
        raise InputError(HOW_TO_GET)
    program = browser_program(config.browser)
    run = newest_run(RESULTS_DIR)
    out = writable_folder(config.out, "--out")
    gallery = load_gallery(DEFAULT_DATASET, (), torch.device(config.device))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program)
        take_file(browser, run / REPORT, out / "report.webp")
        take_file(browser, RESULTS_DIR / INDEX, out / "results.webp")
        take_search_page(browser, gallery, out)
        browser.close()


def browser_program(name: str | None) -> str:
    """The browser's program, of that name or the first of `BROWSERS` that is there.

    Raises:
        InputError: none is.
    """
    found = next(filter(None, map(shutil.which, [name] if name else BROWSERS)), None)
    if found is None:
        raise InputError(f"there is no {name or 'chromium'} on the PATH; {HOW_TO_GET}")
    return found


def newest_run(results: Path) -> Path:
    """The folder of the newest evaluation of the generated garments.

    Raises:
        InputError: there is none.
    """
    pages = list(results.glob(f"{DEFAULT_DATASET}_stage*/{REPORT}"))
    if not pages:
        raise InputError(f"no evaluation of the generated garments in {display(results)}. Make one: bash run_all.sh")
    return max(pages, key=lambda page: page.stat().st_mtime_ns).parent


def take_file(browser: Any, page: Path, picture: Path) -> None:
    """The upper part of a page in a file, as a wide window shows it.

    Raises:
        InputError: there is no such page.
    """
    if not page.is_file():
        raise InputError(f"{display(page)} does not exist. Make it: bash run_all.sh")
    window = browser.new_page(viewport=WIDE)
    window.goto(page.resolve().as_uri())
    end = window.evaluate("Math.ceil(document.body.getBoundingClientRect().bottom)") + MARGIN
    window.set_viewport_size({**WIDE, "height": min(end, WIDE["height"])})
    save_small(window.screenshot(), picture)
    window.close()


def take_search_page(browser: Any, gallery: Gallery, out: Path) -> None:
    """The search page after a photo was given: in a wide window with all stages, and on a phone."""
    with tempfile.TemporaryDirectory(prefix="clipfh_app_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # before gradio is imported
        from clipfh.app.page import serve

        page = serve(gallery, "127.0.0.1", 0, blocking=False)
        (found,) = gallery.search(Query(text=next(iter(gallery.prompts.values()), "a garment")), 0, 1)
        with gallery.local(found.photo) as photo:
            for size, scale, name in ((WIDE, 1, "search.webp"), (PHONE, 2, "search_phone.webp")):
                window = browser.new_page(viewport=size, device_scale_factor=scale)
                window.goto(page.local_url)
                window.set_input_files("#photo input[type=file]", str(photo), timeout=WAIT_MS)
                last = f"#found{len(gallery.stages) - 1} .thumbnail-item img"
                window.locator(last).first.wait_for(timeout=WAIT_MS)
                window.wait_for_function(ALL_SHOWN, timeout=WAIT_MS)  # the network is never idle: gradio listens
                save_small(window.screenshot(), out / name)
                window.close()
        page.close()


def save_small(screenshot: bytes, picture: Path) -> None:
    """Save a screenshot as WebP, in the best of `QUALITIES` that has at most `MAX_BYTES`.

    Raises:
        InputError: even the last has more, or the file cannot be written.
    """
    image = Image.open(io.BytesIO(screenshot))
    encoded = small_webp(image, [(image.width, quality) for quality in QUALITIES], MAX_BYTES)
    if encoded is None:
        raise InputError(f"{display(picture)} has too many kB, more than {MAX_BYTES / 1000:.0f} in the lowest quality")
    with replace_atomically(picture) as temporary:
        temporary.write_bytes(encoded)
    print(f"{display(picture)}: {image.width} x {image.height}, {len(encoded) / 1000:.0f} kB")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
