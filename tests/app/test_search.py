import dataclasses
import threading

import pytest
import torch
from app.gallery_of_shapes import ENGINES, IMAGES, ITEM_IDS, PROMPTS, make_gallery
from PIL import Image

from clipfh.app.query_photo import SHOWN_PX, placeholder, small_copy
from clipfh.app.search import Query, exact, folder_categories
from clipfh.core.errors import InputError
from clipfh.features.queries import query_direction
from clipfh.index.engine import Match
from clipfh.models.clip import encode_texts


@pytest.fixture(scope="module", params=ENGINES)
def gallery(request, tmp_path_factory):
    return make_gallery(tmp_path_factory.mktemp("shapes"), request.param)


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory):
    return make_gallery(tmp_path_factory.mktemp("shapes"))


def found(hits):
    return [hit.photo for hit in hits]


def file_of(gallery, place):
    return gallery.source.root / IMAGES[place]


def test_a_photo_finds_itself_first(gallery):
    for place in (0, 9, 27):
        first, second = gallery.search(Query((file_of(gallery, place),)), 0, 2)
        assert (first.photo, first.item_id) == (IMAGES[place], ITEM_IDS[place])
        assert first.similarity == pytest.approx(1, abs=1e-5) and second.similarity < first.similarity
        assert first.prompt == PROMPTS[first.item_id]


def test_a_photo_of_the_gallery_is_asked_for_by_its_id(gallery):
    by_id, by_file = (gallery.encode(Query((photo,)), 0) for photo in (IMAGES[5], file_of(gallery, 5)))
    assert torch.equal(by_id, by_file)


def test_a_text_is_compared_with_every_photo(gallery):
    clip = gallery.stages[0].clip
    hits = gallery.search(Query(text="  a red square "), 0, 100)
    vector = encode_texts(clip, ["a red square"], "cpu")[0]
    photos = [gallery.encode(Query((hit.photo,)), 0) for hit in hits]
    assert sorted(found(hits)) == sorted(IMAGES)
    assert [hit.similarity for hit in hits] == pytest.approx([float(photo @ vector) for photo in photos], abs=1e-5)
    assert [hit.similarity for hit in hits] == sorted((hit.similarity for hit in hits), reverse=True)


def test_a_mixed_query_is_of_its_parts_unit_directions(gallery):
    photos, text = tuple(IMAGES[:2]), "a blue circle"
    of_photos = torch.stack([gallery.encode(Query((photo,)), 0) for photo in photos])
    of_text = gallery.encode(Query(text=text), 0)
    mixed = gallery.encode(Query(photos, text), 0)
    assert torch.allclose(mixed, query_direction(of_photos, of_text), atol=1e-6)
    assert not torch.allclose(mixed, of_photos[0], atol=1e-3) and not torch.allclose(mixed, of_text, atol=1e-3)


def test_pages_are_disjoint_and_complete_even_of_equal_photos(gallery):
    vector = gallery.encode(Query((IMAGES[10],)), 0)  # the black square: its second photo is a copy
    pages, seen = [], []
    for _ in range(7):
        pages.append(gallery.nearest(vector, 0, 5, seen=seen))
        seen += found(pages[-1])
    assert [len(page) for page in pages] == [5, 5, 5, 5, 5, 3, 0]
    assert sorted(seen) == sorted(IMAGES) and set(seen[:2]) == set(IMAGES[10:12])
    similarities = [hit.similarity for page in pages for hit in page]
    assert similarities == sorted(similarities, reverse=True)
    assert similarities[0] == pytest.approx(similarities[1], abs=1e-6)


def test_of_many_equal_photos_none_is_left_out(gallery):
    calls = []

    def restless(vector, k, category):  # as FAISS: what comes first of equal rows depends on how many are asked for
        calls.append(k)
        places = [(place + 7 * len(calls)) % 28 for place in range(28)]
        return [Match(IMAGES[place], ITEM_IDS[place], 0.5) for place in places[:k]]

    other = dataclasses.replace(gallery, stages=[dataclasses.replace(gallery.stages[0], rank=restless)])
    seen = []
    while new := other.nearest(torch.zeros(256), 0, 5, seen=seen):
        seen += found(new)
    assert sorted(seen) == sorted(IMAGES) and calls == [5, 10, 15, 20, 25, 30, 33]


def test_a_category_leaves_the_order_of_the_rest(gallery):
    assert gallery.categories == [("circle",), ("square",)]
    query = Query((IMAGES[0],))
    circles = [photo for photo in found(gallery.search(query, 0, 28)) if photo.startswith("circle")]
    assert len(circles) == 14
    assert found(gallery.search(query, 0, 5, ("circle",))) == circles[:5]
    vector = gallery.encode(query, 0)
    assert found(gallery.nearest(vector, 0, 28, ("circle",), circles[:5])) == circles[5:]
    assert gallery.nearest(vector, 0, 5, ("triangle",)) == []


def test_the_same_query_has_other_neighbours_in_another_stage(tmp_path):
    gallery = make_gallery(tmp_path)
    first, second = (gallery.search(Query((IMAGES[0],)), stage, 28) for stage in (0, 1))
    assert found(first) != found(second) and set(found(first)) == set(found(second))


def test_exact_ranks_by_the_inner_product():
    features = torch.nn.functional.normalize(torch.randn(40, 8), dim=1)
    names = [str(row) for row in range(40)]
    rank = exact(features, names, names, [()] * 40)
    expected = sorted(range(40), key=lambda row: -float(features[row] @ features[3]))[:5]
    matches = rank(features[3], 5, ())
    assert [int(match.id) for match in matches] == expected
    assert [match.similarity for match in matches] == pytest.approx(
        [float(features[row] @ features[3]) for row in expected]
    )


def test_a_photo_that_is_gone_has_a_plain_tile_and_cannot_be_searched_with(tmp_path):
    gallery = make_gallery(tmp_path / "shapes", models=("tiny-rn",))
    file_of(gallery, 4).unlink()
    file_of(gallery, 5).write_text("no photo")
    (hit,) = gallery.search(Query(text="anything"), 0, 28, ())[:1]
    assert hit.photo in IMAGES  # all are found, whether they can be shown or not
    for photo in (IMAGES[4], IMAGES[5], "../secret.png", "/etc/secret.png"):
        assert gallery.small_copy(photo) is placeholder()
    assert gallery.small_copy(IMAGES[6]).size == (40, 48)
    with pytest.raises(InputError, match="not there any more"):
        gallery.encode(Query((IMAGES[4],)), 0)
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    with pytest.raises(InputError, match="Nobody has said where"):
        gallery.encode(Query(("../secret.png",)), 0)
    nowhere = dataclasses.replace(gallery, source=None)
    assert nowhere.small_copy(IMAGES[6]) is placeholder()


def test_queries_of_several_threads_do_not_mix(gallery):
    expected = [found(gallery.search(Query((photo,)), 0, 5)) for photo in IMAGES[:8]]
    got = {}
    threads = [
        threading.Thread(target=lambda n=n: got.__setitem__(n, found(gallery.search(Query((IMAGES[n],)), 0, 5))))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[n] for n in range(8)] == expected


@pytest.mark.parametrize("query", [Query(), Query(text=" \n")])
def test_an_empty_query_is_refused(in_memory, query):
    with pytest.raises(InputError, match="Give a photo, or type a description"):
        in_memory.search(query, 0, 5)


def test_bad_photos_are_refused_with_a_message_for_who_brought_them(in_memory, tmp_path):
    tmp_path = tmp_path / ("a_long_way_down_" * 12)  # which no message shows, be it as a whole or in part
    tmp_path.mkdir()
    text, cut, large, missing = (tmp_path / name for name in ("text.jpg", "cut.png", "large.png", "missing.png"))
    text.write_text("no photo")
    cut.write_bytes(file_of(in_memory, 0).read_bytes()[:90])
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
            in_memory.search(Query((path,)), 0, 5)
        assert str(tmp_path.parent) not in str(caught.value) and "\n" not in str(caught.value)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(in_memory, tmp_path):
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)  # 50 KB, 1.2 GB as RGB
    with pytest.raises(InputError, match="megapixels"):
        in_memory.search(Query((bomb,)), 0, 5)


def test_documents_that_pillow_would_render_are_no_photos(in_memory, tmp_path):
    document = tmp_path / "photo.jpg"
    document.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(InputError, match="none that is known here"):
        in_memory.search(Query((document,)), 0, 5)


def test_a_description_that_is_cut_is_told(in_memory):
    assert not in_memory.is_cut("a red square", 0) and in_memory.is_cut("a red square " * 40, 0)


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
