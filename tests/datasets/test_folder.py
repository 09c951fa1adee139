import json

import pytest

from clipfh.core.errors import InputError
from clipfh.datasets import folder, read_dataset
from clipfh.images.photo_files import HIDDEN, photo_suffixes
from clipfh.prompts.description import Description


@pytest.fixture
def root(tmp_path, touch):
    names = [f"item {n}/{photo}.jpg" for n in range(10) for photo in range(5)]
    touch(
        tmp_path, [*names, "mug/a.PNG", "mug/b.webp", "mug/notes.txt", "mug/.hidden.jpg", ".git/x.jpg", "empty/x.txt"]
    )
    return tmp_path


def test_reads_folders(root, items_by_split):
    dataset = folder.read(root)
    items = items_by_split(dataset.table)
    assert len(items["query"]) == 6  # round(0.5 * 11)
    assert items["query"] == items["gallery"]
    assert len(items["val"]) == 2
    assert len(items["train"]) == 3
    assert len(dataset.table) == 52
    assert {"mug/a.PNG", "mug/b.webp", "item 0/4.jpg"} <= set(dataset.table["image"])
    counts = dataset.table.groupby(["split", "item_id"]).size()
    item = next(item for item in items["query"] if item != "mug")
    assert (counts["query", item], counts["gallery", item]) == (2, 3)
    assert dict(dataset.left_out) == {
        ".git": HIDDEN,
        "mug/.hidden.jpg": HIDDEN,
        "mug/notes.txt": "not a photo (.txt)",
        "empty/x.txt": "not a photo (.txt)",
    }
    assert dataset.notes == ("1 folders have no photo that can be used, the first: empty",)
    assert dataset.descriptions == {}


def test_single_photos_go_to_the_gallery(tmp_path, touch):
    touch(tmp_path, ["a/1.jpg", "a/2.jpg", "b/1.jpg", "c/1.jpg", "c/2.jpg"])
    table = folder.read(tmp_path, test_fraction=0.99).table
    single = table[(table["item_id"] == "b") & table["split"].isin(["query", "gallery"])]
    assert set(single["split"]) <= {"gallery"}
    assert (table["split"] == "train").any()


def test_test_fraction_and_seed(root, items_by_split):
    assert len(items_by_split(folder.read(root, test_fraction=0.2).table)["query"]) == 2
    tables = [folder.read(root, seed=seed).table for seed in (1, 1, 2)]
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])


def test_prompts(root):
    (root / "prompts.json").write_text(
        json.dumps({"mug": "a réd mug", "item 1": ["one", " ", "two "]}), encoding="utf-8"
    )
    assert folder.read(root).descriptions == {
        "mug": Description(lines=("a réd mug",)),
        "item 1": Description(lines=("one", "two")),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1, column 2: not valid JSON"),
        ("[]", "expected an object"),
        ('{"mugg": "a mug"}', "no folder with images named 'mugg'"),
        ('{"mug": 3}', "prompt of 'mug' must be a string"),
        ('{"mug": "one", "mug": "two"}', "'mug' stands there twice"),
        ('{"mug": ""}', "the prompt of 'mug' is empty; fill it in, or remove the entry"),
        ('{"mug": []}', "the prompt of 'mug' is empty"),
    ],
)
def test_malformed_prompts(root, text, message):
    (root / "prompts.json").write_text(text)
    with pytest.raises(InputError, match=message):
        folder.read(root)


def test_bad_input(tmp_path, touch):
    with pytest.raises(InputError, match="does not exist"):
        folder.read(tmp_path / "nowhere")
    touch(tmp_path, ["a/1.jpg", "loose.jpg"])
    with pytest.raises(InputError, match=r"(?s)1 folders with images; at least 2 .*DATA_ROOT/<item_id>"):
        folder.read(tmp_path)
    touch(tmp_path, ["b/1.jpg"])
    with pytest.raises(InputError, match="none of the 1 test identities has two photos"):
        folder.read(tmp_path)
    with pytest.raises(InputError, match="test_fraction must lie between 0 and 1"):
        folder.read(tmp_path, test_fraction=1.0)
    with pytest.raises(InputError, match=r"loose\.jpg is not a folder"):
        folder.read(tmp_path / "loose.jpg")


def test_read_dataset_by_name(root):
    assert read_dataset("folder", root, seed=2, test_fraction=0.3).table.equals(
        folder.read(root, seed=2, test_fraction=0.3).table
    )
    with pytest.raises(InputError, match=r"unknown dataset 'cifar'; the datasets are synthetic, inshop, "):
        read_dataset("cifar", root)
    with pytest.raises(InputError, match=r"the dataset folder has no option 'aspect'; its options are test_fraction"):
        read_dataset("folder", root, aspect="dorsal_left")
    with pytest.raises(InputError, match="it has no options"):
        read_dataset("hd", root, aspect="dorsal_left")


def test_every_photo_below_an_identity_is_its_own_whatever_its_suffix(tmp_path, touch):
    suffixes = [suffix.upper() if number % 2 else suffix for number, suffix in enumerate(sorted(photo_suffixes()))]
    photos = [f"mug/day{number % 3}/{number}{suffix}" for number, suffix in enumerate(suffixes)]
    cups = ["cup/1.jpg", "cup/2.jpg"]
    touch(tmp_path, [*photos, *cups, "loose.jpg", "cup/a.heic", "cup/b.HEIC", "cup/.DS_Store", "__MACOSX/mug/1.jpg"])
    dataset = folder.read(tmp_path)
    item_of = dict(zip(dataset.table["image"], dataset.table["item_id"], strict=True))
    assert item_of == {**dict.fromkeys(photos, "mug"), **dict.fromkeys(cups, "cup")}
    assert set(dataset.left_out) == {
        ("loose.jpg", "beside the folders: of no identity"),
        ("cup/a.heic", "cannot be opened here (.heic): convert them to JPEG"),
        ("cup/b.HEIC", "cannot be opened here (.heic): convert them to JPEG"),
        ("cup/.DS_Store", HIDDEN),
        ("__MACOSX", HIDDEN),
    }
    (note,) = dataset.notes
    assert note.startswith(f"{len(photos)} photos lie in folders of an identity's folder, the first: mug/day0/")


def test_folders_of_splits_are_no_identities(tmp_path, touch):
    touch(tmp_path, [f"{split}/{item}/{n}.jpg" for split in ("train", "Test") for item in "ab" for n in (1, 2)])
    with pytest.raises(InputError, match="holds Test and train: splits, not identities"):
        folder.read(tmp_path)
