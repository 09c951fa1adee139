import json
import re

import numpy as np
import pytest
from PIL import Image

from clipfh.reports.interactive_map import SHEET, interactive_map


def made(folder, size, places, item_ids=None):
    """A map of photos of one shade each, and the values that its script reads."""
    number = len(places)
    photos = np.broadcast_to(np.arange(0, 10 * number, 10)[:, None, None, None], (number, *size, 3)).astype(np.uint8)
    images = [f"{place}.jpg" for place in range(number)]
    item_ids = item_ids or ["x"] * number
    html = interactive_map(folder, photos, images, item_ids, np.array(places), np.arange(number) == 1)
    return html, json.loads(re.search(r'type="application/json">(.*?)</script>', html)[1])


def test_places_keep_their_shape_and_stay_inside(tmp_path):
    _, data = made(tmp_path, (20, 20), [(0.0, 5.0), (10.0, 5.0), (5.0, 7.0)])
    assert data["places"] == [[3.0, 40.6], [97.0, 40.6], [50.0, 59.4]]
    assert data["alone"] == [0, 1, 0] and data["images"] == ["0.jpg", "1.jpg", "2.jpg"]


@pytest.mark.parametrize(("size", "cell"), [((40, 40), [56, 56]), ((80, 40), [28, 56])])
def test_each_photo_has_its_cell_of_the_sheet(tmp_path, size, cell):
    _, data = made(tmp_path, size, np.random.default_rng(0).normal(size=(5, 2)))
    assert data["cell"] == cell and data["sheet"] == SHEET
    with Image.open(tmp_path / SHEET) as sheet:
        assert sheet.size == (3 * cell[0], 2 * cell[1])
        for number in range(5):
            place = (number % 3 * cell[0] + 5, number // 3 * cell[1] + 5)
            assert abs(sheet.getpixel(place)[0] - 10 * number) < 4


def test_an_id_cannot_end_the_script(tmp_path):
    html, data = made(tmp_path, (8, 8), [(0.0, 0.0)], item_ids=["</script><img>"])
    assert "<img>" not in html and data["items"] == ["</script><img>"] and data["places"] == [[50.0, 50.0]]
    assert "http" not in html


def test_two_thousand_photos_are_a_small_page(tmp_path):
    html, _ = made(tmp_path, (4, 4), np.random.default_rng(0).normal(size=(2000, 2)), ["id_00000001"] * 2000)
    assert len(html) < 300_000
