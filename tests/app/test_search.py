import dataclasses
import threading

import numpy as np
import pytest
import torch
from app.gallery_of_shapes import make_gallery
from PIL import Image

from clipfh.app.query_photo import SHOWN_PX, small_copy
from clipfh.app.search import Query, exact, folder_categories
from clipfh.core.errors import InputError
from clipfh.models.clip import encode_texts


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    return make_gallery(tmp_path_factory.mktemp("shapes"))


def found(hits):
    return [hit.photo for hit in hits]


@pytest.mark.parametrize("stage", [0, 1])
def test_a_photo_finds_itself_first(gallery, stage):
    for place in (0, 9, 27):
        first, second = gallery.search(Query((gallery.photos[place],)), stage, 2)
        assert first.photo == gallery.photos[place] and first.item_id == gallery.item_ids[place]
        assert first.similarity == pytest.approx(1, abs=1e-5) and second.similarity < first.similarity
        assert first.prompt == gallery.prompts[first.item_id]


def test_a_text_is_compared_with_every_photo(gallery):
    clip = gallery.stages[0].clip
    hits = gallery.search(Query(text="  a red square "), 0, 100)
    vector = encode_texts(clip, ["a red square"], "cpu")[0]
    photos = [gallery.encode(Query((hit.photo,)), 0) for hit in hits]
    assert len(hits) == 28 and len(set(found(hits))) == 28
    assert [hit.similarity for hit in hits] == pytest.approx([float(photo @ vector) for photo in photos], abs=1e-5)
    assert [hit.similarity for hit in hits] == sorted((hit.similarity for hit in hits), reverse=True)


def test_a_mixed_query_is_the_mean_of_its_unit_directions(gallery):
    photos, text = tuple(gallery.photos[:2]), "a blue circle"
    parts = [gallery.encode(Query((photo,)), 0) for photo in photos] + [gallery.encode(Query(text=text), 0)]
    mean = sum(parts) / 3
    mixed = gallery.encode(Query(photos, text), 0)
    assert torch.allclose(mixed, mean / mean.norm(), atol=1e-6) and mixed.norm() == pytest.approx(1, abs=1e-6)
    assert not torch.allclose(mixed, parts[0], atol=1e-3) and not torch.allclose(mixed, parts[2], atol=1e-3)


def test_pages_are_disjoint_and_in_order_even_of_equal_photos(gallery):
    query = Query((gallery.photos[10],))  # the black square: its second photo is a copy
    pages = [gallery.search(query, 0, 5, offset) for offset in range(0, 35, 5)]
    assert [len(page) for page in pages] == [5, 5, 5, 5, 5, 3, 0]
    assert [hit.photo for page in pages for hit in page] == found(gallery.search(query, 0, 28))
    assert found(pages[0])[:2] == gallery.photos[10:12]
    assert pages[0][0].similarity == pytest.approx(pages[0][1].similarity, abs=1e-6)


def test_a_category_leaves_the_order_of_the_rest(gallery):
    assert gallery.known_categories() == [("circle",), ("square",)]
    query = Query((gallery.photos[0],))
    everything = gallery.search(query, 0, 28)
    circles = [hit.photo for hit in everything if hit.item_id.endswith("circle")]
    assert len(circles) == 14
    assert found(gallery.search(query, 0, 5, category=("circle",))) == circles[:5]
    assert found(gallery.search(query, 0, 28, 5, category=("circle",))) == circles[5:]


def test_the_same_query_has_other_neighbours_in_another_stage(gallery):
    query = Query((gallery.photos[0],))
    first, second = (gallery.search(query, stage, 28) for stage in (0, 1))
    assert found(first) != found(second) and set(found(first)) == set(found(second))


def test_anything_may_rank(gallery):
    asked = []

    def backwards(vectors, k, offset):
        asked.append((tuple(vectors.shape), k, offset))
        rows = np.arange(27, -1, -1)[None, offset : offset + k]
        return rows, -rows / 100

    stage = dataclasses.replace(gallery.stages[0], rank=backwards)
    other = dataclasses.replace(gallery, stages=[stage])
    hits = other.search(Query(text="anything"), 0, 3, 2)
    assert asked == [((1, 256), 3, 2)]
    assert found(hits) == [gallery.photos[row] for row in (25, 24, 23)]
    assert hits[0].similarity == pytest.approx(-0.25)


def test_exact_ranks_several_queries_as_one_by_one():
    features = torch.nn.functional.normalize(torch.randn(40, 8), dim=1)
    rank = exact(features)
    rows, similarities = rank(features[:3], 4, 1)
    for query in range(3):
        expected = sorted(range(40), key=lambda row: -float(features[row] @ features[query]))[1:5]
        assert rows[query].tolist() == expected
        assert similarities[query] == pytest.approx([float(features[row] @ features[query]) for row in expected])


def test_queries_of_several_threads_do_not_mix(gallery):
    photos = gallery.photos[:8]
    expected = [gallery.encode(Query((photo,)), 0) for photo in photos]
    got = {}
    threads = [
        threading.Thread(target=lambda n=n: got.__setitem__(n, gallery.encode(Query((photos[n],)), 0)))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.allclose(got[n], expected[n], atol=1e-6) for n in range(8))


@pytest.mark.parametrize("query", [Query(), Query(text=" \n")])
def test_an_empty_query_is_refused(gallery, query):
    with pytest.raises(InputError, match="Give a photo, or type a description"):
        gallery.search(query, 0, 5)


def test_bad_photos_are_refused_with_a_message_for_who_brought_them(gallery, tmp_path):
    tmp_path = tmp_path / ("a_long_way_down_" * 12)  # which no message shows, be it as a whole or in part
    tmp_path.mkdir()
    text, cut, large, missing = (tmp_path / name for name in ("text.jpg", "cut.png", "large.png", "missing.png"))
    text.write_text("no photo")
    cut.write_bytes(gallery.photos[0].read_bytes()[:90])
    Image.new("1", (1100, 1000)).save(large)
    messages = {
        text: r"^This file cannot be read as a photo \(it is none that is known here\)\. Take a JPEG",
        cut: "^This file cannot be read as a photo",
        large: "^This photo has more than 1 megapixels. Make it smaller",
        missing: "^This file cannot be read as a photo .*No such file",
        tmp_path: "^This file cannot be read as a photo .*not a regular file",
    }
    for path, message in messages.items():
        with pytest.raises(InputError, match=message) as caught:
            gallery.search(Query((path,)), 0, 5)
        assert str(tmp_path.parent) not in str(caught.value) and "\n" not in str(caught.value)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(gallery, tmp_path):
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)  # 50 KB, 1.2 GB as RGB
    with pytest.raises(InputError, match="megapixels"):
        gallery.search(Query((bomb,)), 0, 5)


def test_documents_that_pillow_would_render_are_no_photos(gallery, tmp_path):
    document = tmp_path / "photo.jpg"
    document.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(InputError, match="none that is known here"):
        gallery.search(Query((document,)), 0, 5)


def test_a_description_that_is_cut_is_told(gallery):
    assert not gallery.is_cut("a red square", 0) and gallery.is_cut("a red square " * 40, 0)


def test_categories_are_the_folders_that_group_identities():
    images = ["test/Fruit/Apple/Gala/1.jpg", "val/Fruit/Apple/Gala/2.jpg", "test/Fruit/Lime/1.jpg"]
    images += ["test/Fruit/Apple/Fuji/1.jpg", "val/Milk/Oat/1.jpg", "val/Milk/Oat/Whole/1.jpg"]
    ids = ["Gala", "Gala", "Lime", "Fuji", "Oat", "Whole"]
    assert folder_categories(images, ids) == [
        *[("Fruit", "Apple")] * 2,
        ("Fruit", "Lime"),
        ("Fruit", "Apple"),
        *[("Milk", "Oat")] * 2,
    ]
    assert folder_categories(["red/1.jpg", "blue/1.jpg"], ["red", "blue"]) == [(), ()]  # a folder an identity
    assert folder_categories(["1.jpg", "2.jpg"], ["a", "b"]) == [(), ()]
    assert folder_categories([], []) == []


def test_a_small_copy_is_upright_and_opaque(tmp_path):
    photo = Image.new("RGB", (900, 600), "red")
    exif = photo.getexif()
    exif[0x0112] = 6  # turned by a quarter
    photo.save(tmp_path / "turned.jpg", exif=exif)
    assert small_copy(tmp_path / "turned.jpg").size == (round(SHOWN_PX * 2 / 3), SHOWN_PX)
    Image.new("RGBA", (10, 10), (0, 0, 0, 0)).save(tmp_path / "empty.png")
    assert small_copy(tmp_path / "empty.png").getpixel((5, 5)) == (255, 255, 255)
