"""The generated pictures with captions: the same again, apart between splits, five different true captions."""

import random

import pytest
from PIL import Image

from clipfh.captions.readers import read_captions
from clipfh.core.errors import InputError
from clipfh.drawn.garments.captions import garment_captions
from clipfh.drawn.garments.catalogue import Garment, make_catalogue, pool_of
from clipfh.drawn.garments.descriptions import noun
from clipfh.drawn.scenes import captioned
from clipfh.drawn.scenes.captioned import generate, plan_pictures
from clipfh.drawn.scenes.captions import draw_scene, scene_captions
from clipfh.drawn.scenes.drawing import LIGHTS, OBJECT_COLORS, OBJECTS, PLACES, render_scene

SIZES = {"train": 8, "val": 2, "test": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("pictures") / "raw"
    generate(made, sizes=SIZES, seed=0)
    return made


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_files_again_and_others_with_another_seed(folder, tmp_path):
    generate(tmp_path / "again", sizes=SIZES, seed=0)
    assert contents(tmp_path / "again") == contents(folder)
    generate(tmp_path / "other", sizes=SIZES, seed=1)
    assert not set(contents(tmp_path / "other").values()) & set(contents(folder).values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "other"]  # nothing temporary is left


def test_the_reader_of_json_lines_reads_them(folder):
    raw = read_captions("jsonl", folder)
    assert [image.split for image in raw.images] == ["train"] * 8 + ["val"] * 2 + ["test"] * 4
    assert all(len(set(image.captions)) == 5 and image.label for image in raw.images)
    with Image.open(folder / raw.images[0].image) as picture:
        assert (picture.size, picture.mode) == ((96, 96), "RGB")


def test_a_finished_folder_is_kept_a_changed_one_made_anew_a_foreign_one_refused(folder, tmp_path):
    before = (folder / "captions.jsonl").stat().st_mtime_ns
    generate(folder, sizes=SIZES, seed=0)
    assert (folder / "captions.jsonl").stat().st_mtime_ns == before
    made = tmp_path / "raw"
    generate(made, sizes={"train": 2, "val": 2, "test": 2}, seed=0)
    (made / "images/00001.jpg").unlink()
    generate(made, sizes={"train": 2, "val": 2, "test": 2}, seed=0)
    assert len(list((made / "images").iterdir())) == 6
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "mine.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="not generated here"):
        generate(foreign, sizes=SIZES, seed=0)
    assert (foreign / "mine.jpg").is_file()


def test_nothing_is_shown_in_two_splits():
    plan = plan_pictures(captioned.SPLIT_SIZES, 0)
    shown = {split: {content for part, content in plan if part == split} for split in captioned.SPLIT_SIZES}
    assert {split: len(part) for split, part in shown.items()} == captioned.SPLIT_SIZES
    assert len(set().union(*shown.values())) == len(plan)
    assert 0.45 < sum(isinstance(content, Garment) for _, content in plan) / len(plan) < 0.55
    garments = {content for _, content in plan if isinstance(content, Garment)}
    assert all(pool_of(garment) == "dataset" for garment in garments)  # never one that stage 0 learns from
    family = {item.garment: item.family for item in make_catalogue(len(plan), seed=0)}
    families = [{family[c] for c in part if isinstance(c, Garment)} for part in shown.values()]
    assert not families[0] & families[1] and not families[0] & families[2] and not families[1] & families[2]


@pytest.mark.parametrize("seed", range(20))
def test_scene_captions_are_five_and_name_what_is_to_be_seen(seed):
    rng = random.Random(seed)
    scene = draw_scene(rng)
    captions = scene_captions(scene, rng)
    assert len(set(captions)) == 5
    for caption in captions:
        for kind, color, _, _ in scene.objects:
            assert f"{color} {kind}" in caption, caption
        assert "  " not in caption and " a orange" not in caption


@pytest.mark.parametrize("seed", range(20))
def test_garment_captions_are_five_and_name_kind_and_color(seed):
    garment = make_catalogue(20, seed=0)[seed].garment
    captions = garment_captions(garment, random.Random(seed))
    assert len(set(captions)) == 5
    assert all(noun(garment) in caption and garment.color in caption for caption in captions), captions


def test_every_object_shows_in_its_color_on_its_side():
    for kind in OBJECTS:
        empty = render_scene("snow field", "day", [], random.Random(1))
        scene = render_scene("snow field", "day", [(kind, "red", "large", "left")], random.Random(1))
        red = [
            x
            for y in range(96)
            for x in range(96)
            if scene.getpixel((x, y))[0] > scene.getpixel((x, y))[1] + 100 and empty.getpixel((x, y))[1] > 100
        ]
        assert len(red) > 60, kind
        assert sum(x < 48 for x in red) > 0.9 * len(red), kind


def test_places_and_lights_differ():
    kinds = [(place, light) for place in PLACES for light in LIGHTS]
    pictures = {render_scene(place, light, [], random.Random(2)).tobytes() for place, light in kinds}
    assert len(pictures) == len(kinds)


def test_scenes_are_drawn_from_all_that_there_is():
    rng = random.Random(0)
    scenes = [draw_scene(rng) for _ in range(600)]
    assert {scene.place for scene in scenes} == set(PLACES) and {scene.light for scene in scenes} == set(LIGHTS)
    parts = [part for scene in scenes for part in scene.objects]
    assert {kind for kind, *_ in parts} == set(OBJECTS) and {color for _, color, *_ in parts} == set(OBJECT_COLORS)
    assert all(len({kind for kind, *_ in scene.objects}) == len(scene.objects) for scene in scenes)
