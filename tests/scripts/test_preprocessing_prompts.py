"""Scripts 01 to 04 as a user runs them, on a folder of metadata written by hand.

One run of each is in a fresh Python, which has imported nothing before.
"""

import csv
import json
import subprocess
import sys

import pytest
from PIL import Image
from places import ROOT

from clipfh.prompts.files import read_prompts
from clipfh.prompts.tokens import CONTEXT_LENGTH, counter_of

count_tokens = counter_of(None).count

SCRIPTS = {path.name[:2]: f"preprocessing/{path.name}" for path in sorted((ROOT / "preprocessing").glob("0[1-4]_*.py"))}
LONG_TEXT = [
    "You'll love this dress, perfect for brunch or a night out!",
    "It has a floral print, long sleeves, a V-neckline, a ruffle hem, a button front, a lace trim at the cuffs.",
    "Fully lined in soft woven cotton, with two side pockets and a thin leather belt with a round silver buckle.",
    "Model is 5'10\" and wears a small. Machine wash cold, tumble dry low. Imported.",
]
SPLIT_OF_IMAGES = {  # identity: the split of each of its images
    "id_1": ["train"] * 3,
    "id_2": ["train"],
    "id_3": ["train"] * 2,
    "id_4": ["val"],
    "id_5": ["query", "gallery"],
    "id_6": ["gallery"],
    "Granny-Smith": ["query", "gallery", "gallery"],
}
DESCRIPTIONS = {
    "id_1": {"category": "women's dresses", "color": "red", "lines": LONG_TEXT, "attributes": []},
    "id_2": {"category": "Tees_Tanks", "color": "black", "lines": [], "attributes": []},
    "id_3": {"category": "Rompers_Jumpsuits", "color": "", "lines": ["Crew neck.", "Relaxed fit."], "attributes": []},
    "id_4": {"category": "hand", "color": "", "lines": [], "attributes": ["right hand", "fair skin"]},
    "id_5": {"category": "Tees_Tanks", "color": "Black", "lines": [" "], "attributes": []},
    "id_6": {"category": "dress", "color": "blå", "lines": ["字" * 200], "attributes": []},
}


@pytest.fixture
def metadata_dir(tmp_path):
    folder = tmp_path / "meta"
    folder.mkdir()
    images = {
        f"{item_id}/{number}.jpg": {"item_id": item_id, "split": split, "camera": ""}
        for item_id, splits in SPLIT_OF_IMAGES.items()
        for number, split in enumerate(splits)
    }
    write(folder / "image_paths.json", images)
    write(folder / "descriptions.json", DESCRIPTIONS)
    return folder


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def run(server):
    """Run script `number`; its standard output, or the error where it must fail."""

    def run(number, metadata_dir, *arguments, expect=0):
        flags = ("--metadata_dir", metadata_dir, *arguments)
        # not in the repository: the scripts must find their way from anywhere
        return output_of(server.run(SCRIPTS[number], *flags, cwd=metadata_dir, strict=True), expect)

    return run


def run_afresh(server, number, metadata_dir):
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", str(server.root / SCRIPTS[number])]
    done = subprocess.run(
        [*command, "--metadata_dir", str(metadata_dir)],
        capture_output=True,
        text=True,
        cwd=metadata_dir,
        env=server.environment,
        encoding="utf-8",
    )
    return output_of(done)


def output_of(done, expect=0):
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    if not expect:
        assert "Warning" not in done.stderr
    return done.stderr if expect else done.stdout


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_identity_gets_a_prompt(run, metadata_dir):
    output = run("01", metadata_dir)
    prompts = read(metadata_dir / "image_prompts_per_identity.json")
    assert prompts == {
        "Granny-Smith": "a photo of Granny Smith",
        "id_1": "a photo of a red women's dress. " + " ".join(LONG_TEXT),
        "id_2": "a photo of a black tee or tank top",
        "id_3": "a photo of a romper or jumpsuit. Crew neck. Relaxed fit.",
        "id_4": "a photo of a hand, right hand, fair skin",
        "id_5": "a photo of a Black tee or tank top",
        "id_6": "a photo of a blå dress. " + "字" * 200,
    }
    assert "7 prompts; 3 of them plain" in output


def test_the_analysis_finds_what_is_wrong(run, metadata_dir):
    prompts = {
        "id_1": " ".join(LONG_TEXT),
        "id_2": "a black tee",
        "id_4": " ",
        "id_5": ["a rare tee", "A &lt;  black  tee".replace(" &lt;", "")],  # the tokenizer reads "a black tee" in it
        "id_6": "word " * 75 + "one",
        "Granny-Smith": "word " * 75 + "another",  # the same to CLIP, which stops reading before the last word
        "id_99": "nobody",
    }
    write(metadata_dir / "image_prompts_per_identity.json", prompts)
    output = run("02", metadata_dir)
    with open(metadata_dir / "prompt_consistency.csv", newline="", encoding="utf-8") as file:
        rows = {row.pop("item_id"): tuple(row.values()) for row in csv.DictReader(file)}
    long = str(count_tokens(prompts["id_1"]))
    # split, num_images, num_tokens, over_limit, missing, duplicate_of, too_few_images
    assert rows == {
        "Granny-Smith": ("test", "3", "78", "True", "False", "", "False"),
        "id_1": ("train", "3", long, "True", "False", "", "False"),
        "id_2": ("train", "1", "5", "False", "False", "", "True"),
        "id_3": ("train", "2", "0", "False", "True", "", "False"),
        "id_4": ("val", "1", "0", "False", "True", "", "True"),
        "id_5": ("test", "2", "5", "False", "False", "id_2", "False"),
        "id_6": ("test", "1", "78", "True", "False", "Granny-Smith", "True"),
    }
    for line in (
        "fewer than 2 images: 3 (id_2, id_4, id_6)",
        "without prompt: 2 (id_3, id_4)",
        "prompts that several identities share: 2",
        "    2 (Granny-Smith, id_6)",
        "    2 (id_2, id_5)",
        "over 77 tokens, cut when the model reads them: 3 of 6 prompts",
        "prompts of unknown identities: 1 (id_99)",
    ):
        assert line in output.splitlines()
    lengths = (metadata_dir / "prompt_token_lengths.csv").read_text().splitlines()
    assert lengths == ["num_tokens,num_prompts", "5,3", "78,2", f"{long},1"]
    with Image.open(metadata_dir / "prompt_token_lengths.png") as figure:
        assert figure.size == (768, 432)


def test_the_analysis_of_nothing_but_missing_prompts_ends_well(run, metadata_dir):
    write(metadata_dir / "none.json", {})
    output = run("02", metadata_dir, "--prompt_json", str(metadata_dir / "none.json"))
    assert "without prompt: 7 (" in output


def test_the_filter_keeps_what_can_be_trained_on(run, metadata_dir):
    run("01", metadata_dir)
    output = run("03", metadata_dir)
    kept = read(metadata_dir / "image_paths_clean.json")
    everything = read(metadata_dir / "image_paths.json")
    assert kept == {image: entry for image, entry in everything.items() if entry["item_id"] != "id_2"}
    prompts = read(metadata_dir / "image_prompts_per_identity.json")
    assert prompts.pop("id_2")
    assert read(metadata_dir / "image_prompts_clean.json") == prompts
    assert "train: kept 2 of 3 identities and 5 of 6 images" in output
    assert "dropped 1 with fewer than 2 train images: id_2" in output
    assert "val, query and gallery: kept all 7 images" in output


def test_the_filter_takes_another_minimum_and_several_prompts(run, metadata_dir):
    prompts = {item_id: [f"one {item_id}", f"two {item_id}"] for item_id in SPLIT_OF_IMAGES if item_id != "id_2"}
    write(metadata_dir / "mine.json", prompts)
    output = run("03", metadata_dir, "--min_images", "3", "--prompt_json", str(metadata_dir / "mine.json"))
    assert "dropped 2 with fewer than 3 train images: id_2, id_3" in output
    del prompts["id_3"]
    assert read_prompts(metadata_dir / "image_prompts_clean.json") == prompts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--min_images", "4"],
            "none of the 3 train identities has 4 train images (the most is 3)",
        ),
        (["--min_images", "0"], "--min_images must be at least 1, not 0"),
    ],
)
def test_the_filter_refuses_to_leave_nothing(run, metadata_dir, arguments, message):
    run("01", metadata_dir)
    assert message in run("03", metadata_dir, *arguments, expect=2)
    assert not (metadata_dir / "image_paths_clean.json").exists()


def test_the_filter_names_an_identity_without_prompt(run, metadata_dir):
    run("01", metadata_dir)
    path = metadata_dir / "image_prompts_per_identity.json"
    prompts = read(path)
    del prompts["id_5"]
    write(path, prompts)
    error = run("03", metadata_dir, expect=2)
    assert f"{path}: 1 of 6 identities without prompt: id_5." in error
    assert "python preprocessing/01_generate_prompts_from_descriptions.py" in error
    assert not (metadata_dir / "image_paths_clean.json").exists()


def test_token_safe_prompts_fit_and_identify(run, metadata_dir):
    output = run("04", metadata_dir)
    prompts = read(metadata_dir / "image_prompts_cleaned_for_v4.json")
    assert prompts.keys() == SPLIT_OF_IMAGES.keys()
    assert max(map(count_tokens, prompts.values())) <= CONTEXT_LENGTH
    assert prompts["id_1"].startswith(
        "a photo of a red women's dress. It has a floral print, long sleeves, a V-neckline,"
    )
    assert not {"love", "brunch", "wash", "model", "imported"} & set(prompts["id_1"].lower().split())
    assert prompts["id_3"] == "a photo of a romper or jumpsuit. Crew neck. Relaxed fit"
    assert prompts["id_4"] == "a photo of a hand, right hand, fair skin"
    assert prompts["id_6"].startswith("a photo of a blå dress. 字字字")
    assert "over 77 tokens: 0; of the raw ones 2" in output
    assert "single clauses cut within a word: 1, of 1 identities: id_6" in output


def test_running_again_changes_no_byte(server, run, metadata_dir):
    for number in SCRIPTS:
        run_afresh(server, number, metadata_dir)
    first = contents(metadata_dir)
    assert len(first) == 9
    for number in SCRIPTS:
        run(number, metadata_dir)
    assert contents(metadata_dir) == first


@pytest.mark.parametrize("number", SCRIPTS)
def test_missing_and_malformed_files_are_named(run, metadata_dir, number):
    run("01", metadata_dir)
    name = "image_prompts_per_identity.json" if number in ("02", "03") else "descriptions.json"
    (metadata_dir / name).write_text('{"a": "b",\n"c"}')
    error = run(number, metadata_dir, expect=2)
    assert f"{metadata_dir / name}, line 2" in error
    (metadata_dir / "image_paths.json").unlink()
    error = run(number, metadata_dir, expect=2)
    assert "image_paths.json does not exist" in error
    assert "00_prepare_dataset.py" in error


@pytest.mark.parametrize("number", SCRIPTS)
def test_help_and_unknown_flags(run, metadata_dir, number):
    assert "--metadata_dir" in run(number, metadata_dir, "--help")
    assert "unrecognized arguments: --bogus" in run(number, metadata_dir, "--bogus", expect=2)
