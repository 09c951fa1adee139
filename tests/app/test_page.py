"""The page in a real browser, as a visitor uses it."""

import re
import shutil
from collections import Counter
from contextlib import contextmanager

import pytest
from app.gallery_of_shapes import ENGINES, IMAGES, ITEM_IDS, make_gallery
from PIL import Image

from clipfh.core.errors import InputError

pytest.importorskip("gradio", reason="the page needs gradio: bash set_up.sh app")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs a browser's driver: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH"),
    pytest.mark.filterwarnings("ignore"),  # of gradio's own threads
]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
WAIT = 60_000  # milliseconds: a busy machine is slow, not broken


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    return make_gallery(tmp_path_factory.mktemp("shapes"))


@contextmanager
def served(gallery, uploads):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(uploads))
        from clipfh.app.page import serve

        page = serve(gallery, "127.0.0.1", 0, blocking=False)
        yield page.local_url
        page.close()


@pytest.fixture(scope="module")
def url(gallery, tmp_path_factory):
    with served(gallery, tmp_path_factory.mktemp("uploads")) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, url):
    """Open the page as a new visitor; at the end, nothing may have been asked of another machine."""
    contexts, elsewhere = [], []

    def is_elsewhere(address):
        return not address.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:"))

    def open_page(size=DESKTOP, url=url):
        context = browser.new_context(viewport=size)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("request", lambda request: elsewhere.append(request.url) if is_elsewhere(request.url) else None)
        page.goto(url)
        page.wait_for_selector("#search")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not elsewhere


def captions(page, stage=0):
    return page.locator(f"#found{stage} .caption-label").all_inner_texts()


def first_is(page, item_id, stage=0):
    sync_api.expect(page.locator(f"#found{stage} .caption-label").first).to_contain_text(item_id, timeout=WAIT)


def give(page, photo):
    page.set_input_files("#photo input[type=file]", str(photo))


def file_of(gallery, place):
    return gallery.source.root / IMAGES[place]


def test_a_photo_is_searched_with_as_soon_as_it_is_there(gallery, visit):
    page = visit()
    give(page, file_of(gallery, 6))
    for stage in (0, 1):
        first_is(page, ITEM_IDS[6], stage)
        assert len(captions(page, stage)) == 12
        assert captions(page, stage)[0] == "1.00\u2002orange_square\na orange square"
    assert captions(page, 0) != captions(page, 1)
    first = page.locator("#found0 button.thumbnail-item").first
    sync_api.expect(first).to_have_accessible_name(re.compile(r"^More like 1\.00\sorange_square"))

    page.click("#more")
    sync_api.expect(page.locator("#found0 .caption-label")).to_have_count(24, timeout=WAIT)
    page.click("#more")
    sync_api.expect(page.locator("#found1 .caption-label")).to_have_count(28, timeout=WAIT)
    sync_api.expect(page.locator("#more")).to_be_hidden(timeout=WAIT)
    similarities = [float(caption.split("\u2002")[0]) for caption in captions(page)]
    assert similarities == sorted(similarities, reverse=True)


def test_text_with_the_keyboard_alone_then_a_category_and_a_hit_as_the_next_query(gallery, visit):
    page = visit()
    page.focus("#description textarea, #description input")
    page.keyboard.type("a teal circle")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#found0 .caption-label")).to_have_count(12, timeout=WAIT)

    page.focus("#category input")
    sync_api.expect(page.get_by_role("option", name="circle")).to_be_visible(timeout=WAIT)
    page.keyboard.press("Tab")
    sync_api.expect(page.get_by_role("option")).to_have_count(0, timeout=WAIT)  # it covers what is below it
    page.click("#category input")
    page.get_by_role("option", name="circle").click()
    sync_api.expect(page.locator("#found0")).not_to_contain_text("square", timeout=WAIT)
    chosen = page.locator("#found1 button.thumbnail-item").nth(4)
    item_id = captions(page, 1)[4].split("\n")[0].split("\u2002")[1]
    chosen.focus()
    page.keyboard.press("Enter")
    first_is(page, f"1.00\u2002{item_id}", 0)
    first_is(page, f"1.00\u2002{item_id}", 1)
    assert page.locator("#description textarea, #description input").input_value() == ""
    assert page.locator("#photo .image-frame img").count() == 1


def test_what_is_wrong_is_said_on_the_page(gallery, visit, tmp_path):
    (tmp_path / "photo.jpg").write_text("no photo")
    Image.new("1", (1100, 1000)).save(tmp_path / "large.png")
    page = visit()
    page.click("#search")
    alert = page.get_by_role("alert").filter(has_text="Give a photo, or type")
    sync_api.expect(alert).to_be_visible(timeout=WAIT)
    assert page.locator("#found0").is_hidden()
    for name, says in (("photo.jpg", "cannot be read as a photo"), ("large.png", "more than 1 megapixels")):
        page = visit()
        give(page, file_of(gallery, 4))
        first_is(page, ITEM_IDS[4])
        page.hover("#photo")
        page.get_by_label("Remove Image").click()
        sync_api.expect(page.locator("#found0")).to_be_hidden(timeout=WAIT)
        give(page, tmp_path / name)
        sync_api.expect(page.locator("#message")).to_contain_text(says, timeout=WAIT)
        assert "Traceback" not in page.content() and captions(page) == []  # nor are hits of before left
        sync_api.expect(page.locator("#photo .image-frame img")).to_have_count(0, timeout=WAIT)  # put away
        give(page, file_of(gallery, 0))
        first_is(page, ITEM_IDS[0])
    page.click("#clear")
    sync_api.expect(page.locator("#message")).to_contain_text("Drop, paste or take a photo", timeout=WAIT)


def test_a_photo_that_is_too_large_is_told_by_its_name(visit, tmp_path):
    (tmp_path / "many_bytes.jpg").write_bytes(bytes(27_000_000))
    page = visit()
    give(page, tmp_path / "many_bytes.jpg")
    sync_api.expect(page.get_by_text(re.compile("exceed.*many_bytes.jpg"))).to_be_visible(timeout=WAIT)


def test_a_forged_request_cannot_name_a_file_of_the_machine(gallery, tmp_path):
    from gradio.exceptions import Error

    from clipfh.app.page import _uploaded

    with pytest.raises(Error, match="Only a photo that was uploaded here"):
        _uploaded(tmp_path, {"path": str(tmp_path / ".." / "passwd")})
    assert _uploaded(tmp_path, {"path": str(tmp_path / "a" / "photo.jpg")}) == tmp_path / "a" / "photo.jpg"
    assert _uploaded(tmp_path, None) is None and _uploaded(tmp_path, {"url": "data:,"}) is None


def test_a_port_that_is_taken_is_told(gallery, url):
    from clipfh.app.page import serve

    with pytest.raises(InputError, match=r"cannot listen on .*--port 0 takes a free port"):
        serve(gallery, "127.0.0.1", int(url.rstrip("/").rsplit(":", 1)[1]), blocking=False)


def test_nothing_sticks_out_of_a_phone(gallery, visit):
    page = visit(PHONE)
    give(page, file_of(gallery, 3))
    first_is(page, ITEM_IDS[3], 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    boxes = [page.locator(selector).bounding_box() for selector in ("#photo", "#search", "#found0", "#found1", "#more")]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"] for box in boxes)
    assert boxes[3]["y"] > boxes[2]["y"] + boxes[2]["height"] - 1  # stages below each other


def test_two_visitors_do_not_mix(gallery, visit):
    first, second = visit(), visit()
    give(first, file_of(gallery, 0))
    give(second, file_of(gallery, 27))
    first_is(first, "red_square")
    first_is(second, "teal_circle")
    for page in (first, second, first, second):
        before = len(captions(page))
        if before < len(IMAGES):
            page.click("#more")
            sync_api.expect(page.locator("#found0 .caption-label")).not_to_have_count(before, timeout=WAIT)
    first_is(first, "red_square")
    first_is(second, "teal_circle")
    second.click("#clear")
    sync_api.expect(second.locator("#found0 .caption-label")).to_have_count(0, timeout=WAIT)
    assert len(captions(first)) == len(IMAGES)


@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "memory"])
def test_an_index_is_searched_on_the_same_page(visit, tmp_path, engine):
    gallery = make_gallery(tmp_path / "shapes", engine)
    (gallery.source.root / IMAGES[5]).unlink()
    with served(gallery, tmp_path / "uploads") as url:
        page = visit(url=url)
        sync_api.expect(page.get_by_text("28 photos")).to_be_visible(timeout=WAIT)
        give(page, file_of(gallery, 4))
        first_is(page, "1.00\u2002blue_square\na blue square")
        assert len(captions(page)) == 12
        page.click("#more")
        sync_api.expect(page.locator("#found0 .caption-label")).to_have_count(24, timeout=WAIT)
        photos_of = Counter(caption.split("\u2002")[1] for caption in captions(page))
        assert max(photos_of.values()) == 2  # as many as an item has: no photo twice

        page.click("#category input")
        page.get_by_role("option", name="circle").click()
        sync_api.expect(page.locator("#found0")).not_to_contain_text("square", timeout=WAIT)
        assert len(captions(page)) == 12
        page.click("#more")
        sync_api.expect(page.locator("#found0 .caption-label")).to_have_count(14, timeout=WAIT)
        sync_api.expect(page.locator("#more")).to_be_hidden(timeout=WAIT)

        page.click("#clear")
        sync_api.expect(page.locator("#found0 .caption-label")).to_have_count(0, timeout=WAIT)  # or it clears the words
        page.fill("#description textarea, #description input", "a blue square")
        page.click("#search")
        sync_api.expect(page.locator("#found0 .caption-label")).to_have_count(12, timeout=WAIT)


def test_a_click_on_a_photo_that_is_gone_leaves_what_was_found(visit, tmp_path):
    gallery = make_gallery(tmp_path / "shapes", models=("tiny-rn",))
    file_of(gallery, 5).unlink()
    with served(gallery, tmp_path / "uploads") as url:
        page = visit(url=url)
        give(page, file_of(gallery, 4))
        first_is(page, "1.00\u2002blue_square")
        gone = page.locator("#found0 button.thumbnail-item").nth(1)  # the other photo of the blue square
        sync_api.expect(gone).to_have_accessible_name(re.compile("blue_square"))
        gone.click()
        sync_api.expect(page.get_by_role("alert")).to_contain_text("not there any more", timeout=WAIT)
        assert len(captions(page)) == 12
        page.locator("#found0 button.thumbnail-item").nth(2).click()
        sync_api.expect(page.get_by_role("alert")).to_have_count(0, timeout=WAIT)
