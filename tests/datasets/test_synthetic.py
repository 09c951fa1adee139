"""The generated garments: the same files for the same parameters, in In-Shop's layout, with twins and shop texts."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipfh.core.errors import InputError
from clipfh.datasets import synthetic
from clipfh.drawn.garments.catalogue import is_twin, make_catalogue, pool_of, rgb
from clipfh.drawn.garments.choices import CHOICES
from clipfh.drawn.garments.descriptions import color_name, describe
from clipfh.drawn.garments.rendering import VIEWS, render_photo
from clipfh.prompts.tokens import counter_of

NUM_IDENTITIES = 20


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "raw"
    synthetic.generate(folder, num_identities=NUM_IDENTITIES, seed=3, image_px=96, num_processes=1)
    return folder


@pytest.fixture(scope="module")
def garments():
    return [item.garment for item in make_catalogue(synthetic.NUM_IDENTITIES, seed=0)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def plan(num_identities: int = synthetic.NUM_IDENTITIES, seed: int = 0) -> list[synthetic.Item]:
    return synthetic.plan_items(num_identities, seed=seed, first_item=1, pool="dataset")


def test_same_files_again_and_with_two_processes(data_root: Path, tmp_path: Path) -> None:
    for num_processes in (1, 2):
        again = tmp_path / str(num_processes)
        synthetic.generate(again, num_identities=NUM_IDENTITIES, seed=3, image_px=96, num_processes=num_processes)
        assert contents(again) == contents(data_root)
    other = tmp_path / "other_seed"
    synthetic.generate(other, num_identities=4, seed=4, image_px=96)
    assert not set(contents(other).values()) & set(contents(data_root).values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "other_seed"]  # nothing temporary is left


def test_layout_and_counts(data_root: Path) -> None:
    lines = (data_root / "Eval" / "list_eval_partition.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split() for line in lines[2:]]
    assert int(lines[0]) == len(rows)
    assert lines[1] == "image_name item_id evaluation_status"
    assert {name for name, _, _ in rows} == {
        str(path.relative_to(data_root / "Img")) for path in (data_root / "Img").rglob("*.jpg")
    }
    for name, item_id, _ in rows:
        image, gender, category, folder, file_name = name.split("/")
        assert (image, folder) == ("img", item_id)
        assert (gender, category) in CHOICES
        session, _, view = file_name.removesuffix(".jpg").split("_")
        assert session in ("01", "02")
        assert view in VIEWS
        with Image.open(data_root / "Img" / name) as photo:
            assert photo.size == (96, 96)
            assert photo.mode == "RGB"
    assert len({item_id for _, item_id, _ in rows}) == NUM_IDENTITIES


def test_default_plan_is_in_shop_like() -> None:
    items = plan()
    assert len(items) == synthetic.NUM_IDENTITIES  # the file has a smaller one of its own
    photos = [len(item.photos) for item in items]
    assert set(photos) == set(range(1, 9))
    assert 4.0 < np.mean(photos) < 5.2
    statuses = [Counter(status for _, _, status in item.photos) for item in items]
    train = [count for count in statuses if count["train"]]
    assert all(set(count) == {"train"} for count in train)
    assert abs(len(train) - len(items) / 2) <= 3
    for item, count in zip(items, statuses, strict=True):
        if not count["train"]:
            assert count["gallery"] >= 1
            assert (count["query"] >= 1) == (len(item.photos) >= 2)
    assert Counter(view for item in items for _, view, _ in item.photos).keys() == set(VIEWS)
    several = [item for item in items if len(item.photos) >= 4]
    assert all(len({view for _, view, _ in item.photos}) >= 2 for item in several)


def test_a_family_of_twins_is_never_divided() -> None:
    entries = make_catalogue(synthetic.NUM_IDENTITIES, seed=0)
    roles: dict[int, set[bool]] = {}
    for entry, item in zip(entries, plan(), strict=True):
        roles.setdefault(entry.family, set()).add(item.photos[0][2] == "train")
    assert all(len(role) == 1 for role in roles.values())


def test_garments_are_different_and_many_have_a_twin(garments) -> None:
    assert len(set(garments)) == len(garments)
    assert len({garment.category for garment in garments}) >= 12
    assert {garment.gender for garment in garments} == {"WOMEN", "MEN"}
    with_twin = np.mean([any(is_twin(one, other) for other in garments) for one in garments[::4]])
    assert 0.4 <= with_twin <= 0.9
    assert make_catalogue(50, seed=0) == make_catalogue(420, seed=0)[:50]


@pytest.mark.parametrize("seed", [0, 1, 17])
def test_pretraining_shares_nothing_with_the_dataset(garments, seed: int, tmp_path: Path) -> None:
    pretraining = {item.garment for item in make_catalogue(1500, seed=seed, pool="pretraining")}
    assert not pretraining & set(garments)
    assert {pool_of(garment) for garment in pretraining} == {"pretraining"}
    synthetic.generate(tmp_path / "raw", num_identities=4, seed=seed, image_px=96, pool="pretraining")
    names = (tmp_path / "raw" / "Eval" / "list_eval_partition.txt").read_text(encoding="utf-8").splitlines()[2:]
    assert not {name.split()[1] for name in names} & {item.item_id for item in plan()}


def test_every_value_of_every_attribute_can_be_drawn_and_described() -> None:
    drawn = {entry.garment for entry in make_catalogue(4000, seed=2)}
    for (gender, category), choices in CHOICES.items():
        here = [garment for garment in drawn if (garment.gender, garment.category) == (gender, category)]
        assert {garment.detail for garment in here} == set(choices.details)
        assert {garment.pattern for garment in here} == set(choices.patterns)
        for detail in choices.details:
            garment = next(garment for garment in here if garment.detail == detail)
            render_photo(garment, random.Random(0).choice(VIEWS), random.Random(0), image_px=96)
    for garment in drawn:
        if garment.accent:
            contrast = np.abs(np.subtract(rgb(garment.accent, ""), rgb(garment.color, garment.category))).sum()
            assert contrast > 100, garment


def test_descriptions_are_what_shops_write(garments) -> None:
    texts = []
    for index, garment in enumerate(garments):
        lines = describe(garment, random.Random(index))
        text = " ".join(lines)
        assert 30 <= len(text.split()) <= 150, text
        assert garment.color in text
        assert garment.accent in text
        assert lines.index("Content + Care") < lines.index("Size + Fit")
        assert all(line.startswith("- ") for line in lines[lines.index("Size + Fit") + 1 :])
        for word in (garment.fit, garment.length, garment.neckline.split("-")[0].rstrip("s"), garment.detail):
            assert word.lower() in text.lower(), (word, text)
        if garment.sleeves:
            assert garment.sleeves in text.lower()
        assert "{" not in text
        texts.append(text)
    tokens = [counter_of(None).count(text) for text in texts[:80]]
    assert 0.3 < np.mean([count > 77 for count in tokens]) < 0.9
    assert 0.2 < np.mean([not text.isascii() for text in texts]) < 0.9
    assert len(set(texts)) == len(texts)


def test_some_items_have_no_description(tmp_path: Path) -> None:
    items = plan(300)
    (tmp_path / "x").mkdir()
    synthetic._write_lists(tmp_path / "x", items)
    entries = json.loads((tmp_path / "x" / "Anno" / "list_description_inshop.json").read_text(encoding="utf-8"))
    assert 0.85 < len(entries) / len(items) < 1.0
    by_item = {item.item_id: item.garment for item in items}
    assert all(entry["color"] == color_name(by_item[entry["item"]]) for entry in entries)


def test_photos_of_one_item_differ_and_views_show_what_they_say(garments) -> None:
    tee = next(garment for garment in garments if garment.category == "Graphic_Tees" and garment.pattern == "solid")
    photos = {view: np.asarray(render_photo(tee, view, random.Random(1)), dtype=float) for view in VIEWS}
    for one in VIEWS:
        for other in VIEWS:
            if one < other:
                assert np.abs(photos[one] - photos[other]).mean() > 8, (one, other)
    again = np.asarray(render_photo(tee, "front", random.Random(2)), dtype=float)
    assert np.abs(photos["front"] - again).mean() > 8
    assert photos["front"].std() > 15


def test_read_gives_the_in_shop_table(data_root: Path) -> None:
    dataset = synthetic.read(data_root.parent / "read", seed=3, num_identities=8)
    assert dataset.name == "synthetic"
    assert dataset.table["item_id"].nunique() == 8
    assert all((dataset.image_dir / image).is_file() for image in dataset.table["image"])
    assert set(dataset.table["split"]) <= {"train", "val", "query", "gallery"}


def test_a_finished_folder_is_kept_and_others_are_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    synthetic.generate(folder, num_identities=4, image_px=96)
    stamp = (folder / "generated.json").stat().st_mtime_ns
    synthetic.generate(folder, num_identities=4, image_px=96)
    assert (folder / "generated.json").stat().st_mtime_ns == stamp
    before = contents(folder)
    next((folder / "Img").rglob("*.jpg")).unlink()
    synthetic.generate(folder, num_identities=4, image_px=96)
    assert contents(folder) == before
    synthetic.generate(folder, num_identities=4, image_px=96, seed=1)
    assert contents(folder) != before


def test_foreign_files_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match="not generated here"):
        synthetic.generate(tmp_path / "mine", num_identities=4)
    with pytest.raises(InputError, match=r"notes\.txt"):
        synthetic.generate(tmp_path / "mine" / "notes.txt", num_identities=4)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_identities": 3},
        {"num_identities": 200_000},
        {"seed": -1},
        {"image_px": 64},
        {"first_item": 0},
        {"first_item": 99_999_999},
        {"pool": "test"},
        {"num_processes": 0},
    ],
)
def test_impossible_parameters(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        synthetic.generate(tmp_path / "raw", **{"num_identities": 4, **wrong})
    assert not list(tmp_path.iterdir())
