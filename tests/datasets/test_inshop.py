import json

import pytest

from clipfh.core.errors import InputError
from clipfh.datasets import inshop
from clipfh.prompts.description import Description

HEADER = "image_name item_id evaluation_status"


def partition_lines(num_train=8):
    lines = []
    for item in range(1, num_train + 1):
        lines += [f"img/WOMEN/Graphic_Tees/id_{item:08}/0{view}_1_front.jpg   id_{item:08}   train" for view in (1, 2)]
    for item in (num_train + 1, num_train + 2):
        folder = f"img/MEN/Jackets_Vests/id_{item:08}"
        lines.append(f"{folder}/02_1_front.jpg                    id_{item:08} query")
        lines.append(f"{folder}/02_2_side.jpg                     id_{item:08} gallery")
    return lines


def write_partition(root, lines, count=None):
    path = root / "Eval" / "list_eval_partition.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([str(len(lines) if count is None else count), HEADER, *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path):
    (tmp_path / "Img" / "img").mkdir(parents=True)
    write_partition(tmp_path, partition_lines())
    descriptions = [
        {"item": "id_00000001", "color": "Black", "description": ["A soft tee.", "Crew neck", " "]},
        {"item": "id_00000001", "color": "Café au lait", "description": ["A soft tee.", "Machine wash"]},
        {"item": "id_00000009", "color": None, "description": []},
    ]
    (tmp_path / "Anno").mkdir()
    (tmp_path / "Anno" / "list_description_inshop.json").write_text(json.dumps(descriptions), encoding="utf-8")
    return tmp_path


def test_official_split_and_val_identities(root, items_by_split):
    dataset = inshop.read(root)
    items = items_by_split(dataset.table)
    assert len(dataset.table) == 20
    assert items["query"] == items["gallery"] == {"id_00000009", "id_00000010"}
    assert len(items["val"]) == 2  # 10% of 8 would be one: too few to retrieve among
    assert items["train"] | items["val"] == {f"id_{item:08}" for item in range(1, 9)}
    assert not items["train"] & items["val"]
    assert dataset.image_dir == root / "Img"
    assert "img/MEN/Jackets_Vests/id_00000009/02_1_front.jpg" in set(dataset.table["image"])
    assert (dataset.name, dataset.exclude_same_camera, dataset.random_protocol) == ("inshop", False, "half")
    assert set(dataset.table["camera"]) == {""}


def test_files_and_list_are_compared(root, touch):
    listed = [line.split()[0] for line in partition_lines()]
    touch(root / "Img", [*listed[1:], "img/MEN/extra.PNG", "img/readme.txt"])
    dataset = inshop.read(root)
    assert dataset.missing == ((listed[0], "file not found"),)
    assert listed[0] in set(dataset.table["image"])  # the protocol names it
    assert dict(dataset.left_out) == {
        "img/MEN/extra.PNG": "not in list_eval_partition.txt",
        "img/readme.txt": "not a photo (.txt)",
    }


def test_seed_chooses_val(root, items_by_split):
    val = [frozenset(items_by_split(inshop.read(root, seed=seed).table)["val"]) for seed in (0, 0, 1, 2, 3)]
    assert val[0] == val[1]
    assert len(set(val)) > 1


def test_colours_of_one_item_are_joined(root):
    descriptions = inshop.read(root).descriptions
    assert descriptions["id_00000001"] == Description(
        category="women's graphic tees",
        color="Black, Café au lait",
        lines=("A soft tee.", "Crew neck", "Machine wash"),
    )
    assert descriptions["id_00000009"] == Description(category="men's jackets vests")
    assert len(descriptions) == 10


@pytest.mark.parametrize(
    ("folders", "version", "expected"),
    [
        (["img"], None, "img"),
        (["Img/img_highres"], None, "Img/img_highres"),
        (["Img/img_highres", "Img/img"], None, "Img/img"),
        (["Img/img_highres", "Img/img"], "img_highres", "Img/img_highres"),
    ],
)
def test_finds_the_image_folder(root, folders, version, expected):
    (root / "Img" / "img").rmdir()
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    dataset = inshop.read(root, image_version=version)
    image = dataset.table["image"].iloc[0]
    assert (dataset.image_dir / image).is_relative_to(root / expected / "MEN")


def test_missing_parts_are_named_with_the_layout(root):
    with pytest.raises(InputError, match=r"(?s)nowhere does not exist.*list_eval_partition"):
        inshop.read(root / "nowhere")
    with pytest.raises(InputError, match="unknown image version 'big'"):
        inshop.read(root, image_version="big")
    with pytest.raises(InputError, match=r"none of .*Img/img_highres.* exists"):
        inshop.read(root, image_version="img_highres")
    (root / "Anno" / "list_description_inshop.json").unlink()
    with pytest.raises(InputError, match=r"list_description_inshop\.json does not exist"):
        inshop.read(root)
    (root / "Eval" / "list_eval_partition.txt").unlink()
    with pytest.raises(InputError, match=r"list_eval_partition\.txt does not exist"):
        inshop.read(root)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("img/WOMEN/Tees/id_1/01_1_front.jpg id_1", r"line 4: .* found 2 columns"),
        ("img/WOMEN/Tees/id_1/01 1 front.jpg id_1 train", r"line 4: .* found 5 columns"),
        ("img/WOMEN/Tees/id_1/01_1_front.jpg id_1 test", r"line 4: unknown evaluation_status 'test'"),
        ("WOMEN/Tees/id_1/01_1_front.jpg id_1 train", r"line 4: .* does not lie in img/"),
        ("img/../../secret.jpg id_1 train", r"line 4: .* does not lie in img/"),
    ],
)
def test_malformed_partition_line(root, line, message):
    good = partition_lines()
    write_partition(root, [good[0], line, *good[1:]])
    with pytest.raises(InputError, match=message):
        inshop.read(root)


def test_wrong_count_and_header(root):
    write_partition(root, partition_lines(), count=99)
    with pytest.raises(InputError, match="line 1: it says 99 images, but lists 20"):
        inshop.read(root)
    path = write_partition(root, partition_lines(), count="twenty")
    with pytest.raises(InputError, match="line 1: expected the number of images, found 'twenty'"):
        inshop.read(root)
    path.write_text("1\nimg/a.jpg id_1 train\n")
    with pytest.raises(InputError, match="line 2: expected the header"):
        inshop.read(root)
    path.write_bytes(b"1\nimage_name item_id evaluation_status\nimg/\xff.jpg id_1 train\n")
    with pytest.raises(InputError, match="line 3: not UTF-8"):
        inshop.read(root)
    path.write_text("")
    with pytest.raises(InputError, match="line 1"):
        inshop.read(root)


def test_image_listed_twice(root):
    lines = partition_lines()
    write_partition(root, [*lines, lines[0]])
    with pytest.raises(InputError, match="listed twice"):
        inshop.read(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"item": "id_1",}]', "line 1, column"),
        ('{"item": "id_1"}', "expected a list"),
        ('[{"item": "id_1"}, {"color": "Red"}]', "entry 2"),
        ('[{"item": "id_1", "color": "Red", "description": [3]}]', r"entry 1 \(id_1\)"),
        ('[{"item": "id_1", "color": "Red", "description": 3}]', r"entry 1 \(id_1\)"),
    ],
)
def test_malformed_descriptions(root, text, message):
    (root / "Anno" / "list_description_inshop.json").write_text(text)
    with pytest.raises(InputError, match=message):
        inshop.read(root)
