"""What no one would write on purpose, given to the scripts: a row a case, each of which must end with one clear line.

Every row breaks something in a copy of a prepared dataset, runs a script on it, and states what the error must say.
Whatever the row: exit code 2, one line of at most 300 characters, no traceback, and no file outside the named folders.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from stage_project import EVAL2, NAME, STAGE0, STAGE1, STAGE2, STAGE3, Project, read_json

MAX_LINE = 300
DEEP = "[" * 100_000
DIGITS = "9" * 5000  # Python refuses to read such an integer
PREPARE = "preprocessing/00_prepare_dataset.py"
PROMPTS = "preprocessing/01_generate_prompts_from_descriptions.py"
SPLITS = "preprocessing/05_make_retrieval_splits.py"
STAGE4 = "model/stage4_frozen_text_alignment/train_frozen_text_alignment.py"
STAGE5 = "model/stage5_text_image_gan/train.py"
CAPTIONS = "captions_row"  # what a row prepares
PICTURE, REPORT = "src/clipfh/reports/picture.py", "src/clipfh/reports/results_table.py"


@dataclass
class Place:
    """Where a row may write: `metadata`, a copy; `folder`, empty; `out`, where the outputs go."""

    project: Project
    metadata: Path
    folder: Path
    out: Path

    def flags(self, script: str) -> list[object]:
        """The flags that let `script` use this place and keep its outputs in it."""
        data = ["--dataset", NAME, "--metadata_dir", self.metadata]
        training = [
            "--smoke",
            "--device",
            "cpu",
            "--save_path",
            self.out / "checkpoints",
            "--log_dir",
            self.out / "logs",
        ]
        if script in (STAGE2, STAGE3):
            return data + training
        if script in (STAGE1, EVAL2):
            return [*data, "--results_dir", self.out]
        if script in (STAGE0, STAGE4, STAGE5):
            return training
        return ["--dataset", "folder", "--metadata_dir", self.metadata] if "preprocessing" in script else []


@pytest.fixture
def place(project, tmp_path) -> Iterator[Place]:
    (tmp_path / "folder").mkdir()
    metadata = Path(shutil.copytree(project.metadata, tmp_path / "metadata"))
    yield Place(project, metadata, tmp_path / "folder", tmp_path / "out")
    shutil.rmtree(project.root / "metadata" / CAPTIONS, ignore_errors=True)


# ---- ways to break things


def text_of(name: str, text: str) -> Callable[[Place], None]:
    """Replace a file of the metadata."""
    return lambda place: (place.metadata / name).write_text(text, encoding="utf-8", errors="surrogatepass")


def with_value(name: str, *keys: str | int, json_text: str) -> Callable[[Place], None]:
    """Replace one value of a JSON file by what `json_text` says, which json.dumps might not write."""

    def change(place: Place) -> None:
        content = inner = read_json(place.metadata / name)
        for key in keys[:-1]:
            inner = inner[list(inner)[key] if isinstance(inner, dict) and isinstance(key, int) else key]
        key = keys[-1]
        inner[list(inner)[key] if isinstance(inner, dict) and isinstance(key, int) else key] = "HERE"
        text = json.dumps(content).replace('"HERE"', json_text)
        (place.metadata / name).write_text(text, encoding="utf-8")

    return change


def as_key(name: str, json_text: str, split: str | None = None) -> Callable[[Place], None]:
    """Call the first entry of a JSON file, or the first image of a split, otherwise."""

    def change(place: Place) -> None:
        content = read_json(place.metadata / name)
        first = next((key for key, value in content.items() if split in (None, value["split"])), None)
        content["HERE"] = content.pop(first)
        text = json.dumps(content).replace('"HERE"', json_text)
        (place.metadata / name).write_text(text, encoding="utf-8")

    return change


def same_prompts(place: Place) -> None:
    """Every identity has the same prompt."""
    path = place.metadata / "image_prompts_cleaned_for_v4.json"
    path.write_text(json.dumps(dict.fromkeys(read_json(path), "a photo of an item")), encoding="utf-8")


def nothing(place: Place) -> None:
    """The flags alone are wrong."""


def made(name: str, content: str | bytes) -> Callable[[Place], None]:
    """A file of the row's own folder."""

    def make(place: Place) -> None:
        (place.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (place.folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def captions(line: str) -> Callable[[Place], None]:
    """Raw captions, of which `line` is the second line."""
    return made("captions.jsonl", '{"image": "a.jpg", "captions": ["a cup"]}\n' + line + "\n")


def prepared_captions(**texts: str) -> Callable[[Place], None]:
    """Captions that were prepared before, of which some files (by their stems) were replaced."""

    def make(place: Place) -> None:
        folder = place.project.root / "metadata" / CAPTIONS
        folder.mkdir(parents=True)
        content = {
            "dataset": json.dumps({"kind": "captions", "name": CAPTIONS, "image_dir": str(place.project.photos)}),
            "captions": json.dumps({"a.jpg": {"captions": ["a cup"], "split": "train"}}),
        }
        for stem, text in (content | texts).items():
            (folder / f"{stem}.json").write_text(text, encoding="utf-8")

    return make


def pipe(name: str) -> Callable[[Place], None]:
    return lambda place: os.mkfifo(place.folder / name)


def checkpoint(**changes: object) -> Callable[[Place], None]:
    """`ours.pth`: a checkpoint of stage 2 with other values; a callable changes the value, None removes it."""

    def make(place: Place) -> None:
        (start,) = place.project.checkpoints(STAGE0).glob("*.pth")
        content = torch.load(start, weights_only=True)
        content |= {"stage": 2, "dataset": NAME, "variant": "id", "epoch": 1, "seen_identities": {}, "data_digest": "0"}
        for key, value in changes.items():
            content[key] = value(content.get(key)) if callable(value) else value
            if value is None:
                del content[key]
        torch.save(content, place.folder / "ours.pth")

    return make


def with_nan(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: torch.full_like(value, torch.nan) if value.is_floating_point() else value
        for name, value in state_dict.items()
    }


def of_another_shape(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value[:1] if value.ndim else value for name, value in state_dict.items()}


RANKINGS = "query,query_item_id,rank,image,item_id,similarity,is_match\n"
TABLE, CLEAN = "image_paths.json", "image_paths_clean.json"
TOKEN_SAFE = "image_prompts_cleaned_for_v4.json"
CKPT = ("--ckpt", "{folder}/ours.pth")
START = ("--pretrained", "{folder}/ours.pth")
RUN = ("--run_dir", "{folder}")
RAW = ("--dataset", "jsonl", "--data_root", "{folder}", "--name", CAPTIONS)
PREPARED = ("--dataset", "jsonl", "--name", CAPTIONS)

# name: (script, what is broken, further flags, what the error says)
ROWS: dict[str, tuple[str, Callable[[Place], object], tuple[object, ...], str]] = {
    # the table of images
    "table nested too deep": (STAGE1, text_of(TABLE, DEEP), (), "nested too deep"),
    "table is a list": (STAGE1, text_of(TABLE, "[]"), (), "unexpected shape"),
    "table is empty": (STAGE1, text_of(TABLE, "{}"), (), "lists no image"),
    "table is no text": (STAGE1, text_of(TABLE, "\udcff"), (), TABLE),
    "entry is a list": (STAGE1, with_value(TABLE, 0, json_text="[]"), (), "item_id"),
    **{
        f"item id {value[:20]}": (STAGE1, with_value(TABLE, 0, "item_id", json_text=value), (), says)
        for value, says in (
            ("null", "has no item id"),
            ("NaN", "has no item id"),
            ('""', "has no item id"),
            ('"  "', "has no item id"),
            ("{}", "item_id is {}"),
            ("[1]", "item_id is"),
            ("true", "item_id is True"),
            ("Infinity", "item_id is inf"),
            ("-1e999", "item_id is -inf"),
            (DIGITS, "not valid JSON"),
            ('"a\\u0000b"', "unprintable"),
            ('"\\ud800"', "unprintable"),
            ('"\\u001b[31m"', "unprintable"),
        )
    },
    "camera is an object": (STAGE1, with_value(TABLE, 0, "camera", json_text="{}"), (), "camera is {}"),
    "split is a number": (STAGE1, with_value(TABLE, 0, "split", json_text="3"), (), "unknown split 3"),
    "split is unknown": (STAGE1, with_value(TABLE, 0, "split", json_text='"dev"'), (), "unknown split 'dev'"),
    "image with NUL": (STAGE1, as_key(TABLE, '"a\\u0000.jpg"'), (), "control characters"),
    "image with a line break": (STAGE1, as_key(TABLE, '"a\\n.jpg"'), (), "control characters"),
    "image with half a pair": (STAGE1, as_key(TABLE, '"\\udcff.jpg"'), (), "UTF-8"),
    "image of a long name": (STAGE2, as_key(CLEAN, f'"{"a" * 5000}.jpg"', "train"), (), "1 of "),
    "image is empty": (STAGE1, as_key(TABLE, '""'), (), "leaves the image root"),
    "clean table nested too deep": (STAGE2, text_of(CLEAN, DEEP), (), "nested too deep"),
    # dataset.json
    "description nested too deep": (STAGE1, text_of("dataset.json", DEEP), (), "nested too deep"),
    "description is a list": (STAGE1, text_of("dataset.json", "[1]"), (), "unexpected shape"),
    **{
        f"{key} is {value[:20]}": (STAGE1, with_value("dataset.json", key, json_text=value), (), key)
        for key, values in (
            ("image_dir", ("3", "{}", "null", '"a\\u0000b"')),
            ("resize_mode", ("3", '"big"', "[]")),
            ("max_megapixels", ('"x"', "true", "-1", "NaN", "{}", "[]")),
            ("exclude_same_camera", ('"yes"', "3", "{}")),
            ("name", ('"../x"', '"a\\nb"', "3", "{}", '"\\u001b[31m"', f'"{"a" * 300}"')),
        )
        for value in values
    },
    "name of a folder above": (STAGE1, nothing, ("--dataset", "../x"), "--dataset '../x'"),
    "name that is empty": (STAGE1, nothing, ("--dataset", " "), "--dataset"),
    # folders of other layouts are answered with the place where such a file lies
    **{
        f"metadata of another layout for {script}": (
            script, nothing, ("--metadata_dir", "data/processed/metadata"), f". There is metadata/{NAME}/")
        for script in (STAGE1, STAGE2, STAGE3, SPLITS, PROMPTS)
    },
    **{
        f"prompts of another layout for {script}": (
            script, nothing, ("--prompt_json", f"metadata/{TOKEN_SAFE}"), f". There is metadata/{NAME}/{TOKEN_SAFE}")
        for script in (STAGE1, STAGE2, STAGE3)
    },
    # splits and prompts
    "splits nested too deep": (STAGE1, text_of("image_splits.json", DEEP), (), "nested too deep"),
    "official split is null": (STAGE1, with_value("image_splits.json", "official", json_text="null"), (), "shape"),
    "random splits are an object": (STAGE1, with_value("image_splits.json", "random", json_text="{}"), (), "shape"),
    "query is a number": (STAGE1, with_value("image_splits.json", "official", "query", 0, json_text="3"), (), "shape"),
    "query is unknown": (
        STAGE1, with_value("image_splits.json", "official", "query", 0, json_text='"x.jpg"'), (), "is no test image"),
    "prompts are a list": (STAGE1, text_of(TOKEN_SAFE, "[]"), (), "unexpected shape"),
    "prompt is a number": (STAGE1, with_value(TOKEN_SAFE, 0, json_text="3"), (), "must be a string"),
    "prompt is a list of lists": (STAGE2, with_value(TOKEN_SAFE, 0, json_text="[[]]"), (), "must be a string"),
    "prompt is empty": (STAGE2, with_value(TOKEN_SAFE, 0, json_text="[]"), (), "is empty"),
    "prompt is blank": (STAGE3, with_value(TOKEN_SAFE, 0, json_text='" "'), (), "is empty"),
    "descriptions nested too deep": (PROMPTS, text_of("descriptions.json", DEEP), (), "nested too deep"),
    "description is a text": (PROMPTS, with_value("descriptions.json", 0, json_text='"x"'), (), "must be an object"),
    "lines are a text": (
        PROMPTS, with_value("descriptions.json", 0, json_text='{"lines": "x"}'), (), "must be a list of strings"),
    "protocol is unknown": (
        SPLITS, with_value("dataset.json", "random_protocol", json_text='"x"'), (), "protocol"),
    "protocol is an object": (SPLITS, with_value("dataset.json", "random_protocol", json_text="{}"), (), "protocol"),
    # captions
    **{
        f"captions with the line {line[:20]}": (STAGE4, captions(line), RAW, says)
        for line, says in (
            (DEEP, "line 2: not valid JSON (nested too deep)"),
            (DIGITS, "line 2: not valid JSON"),
            ("[]", "line 2: expected"),
            ("{", "line 2, column"),
            ('{"image": 3, "captions": ["x"]}', "line 2: expected"),
            ('{"image": "/etc/a.jpg", "captions": ["x"]}', "leaves the data root"),
            ('{"image": "../a.jpg", "captions": ["x"]}', "leaves the data root"),
            ('{"image": "a\\u0000.jpg", "captions": ["x"]}', "holds control characters"),
            ('{"image": "b.jpg", "captions": {}}', "captions must be texts"),
            ('{"image": "b.jpg", "captions": [3]}', "captions must be texts"),
            ('{"image": "b.jpg", "captions": ["x"], "split": {}}', "unknown split {}"),
            ('{"image": "b.jpg", "captions": ["x"], "label": {}}', "label is {}"),
            ('{"image": "b.jpg", "captions": ["x"], "label": "a\\nb"}', "label is"),
        )
    },
    "captions of a name above": (STAGE4, nothing, ("--dataset", "jsonl", "--name", "../x"), "--name"),
    **{
        f"prepared captions with {stem} {text[:30]}": (STAGE4, prepared_captions(**{stem: text}), PREPARED, CAPTIONS)
        for stem, text in (
            ("dataset", DEEP),
            ("dataset", "[]"),
            ("dataset", '{"kind": "captions", "name": "captions_row", "image_dir": 3}'),
            ("dataset", '{"kind": "captions", "name": "captions_row", "image_dir": "a\\u0000"}'),
            ("dataset", '{"kind": "captions", "name": "../x", "image_dir": "."}'),
            ("dataset", '{"kind": "captions", "name": {}, "image_dir": "."}'),
            ("dataset", '{"kind": "captions", "name": "captions_row", "image_dir": ".", "source": [1]}'),
            ("captions", DEEP),
            ("captions", "[]"),
            ("captions", '{"a.jpg": []}'),
            ("captions", '{"a.jpg": {"captions": "x", "split": "train"}}'),
            ("captions", '{"a.jpg": {"captions": ["x"], "split": []}}'),
            ("captions", '{"a\\n.jpg": {"captions": ["x"], "split": "train"}}'),
            ("captions", '{"../a.jpg": {"captions": ["x"], "split": "train"}}'),
            ("captions", '{"": {"captions": ["x"], "split": "train"}}'),
        )
    },
    # checkpoints
    "checkpoint is empty": (EVAL2, made("ours.pth", b""), CKPT, "ours.pth"),
    "checkpoint is a text": (EVAL2, made("ours.pth", "weights"), CKPT, "ours.pth"),
    "checkpoint is a pipe": (EVAL2, pipe("ours.pth"), CKPT, "no regular file"),
    "weights are a pipe": (STAGE1, pipe("ours.pth"), START, "neither a file nor a tag"),
    "checkpoint to continue is missing": (STAGE2, nothing, ("--resume_ckpt", "{folder}/gone"), "--resume_ckpt"),
    **{
        f"checkpoint whose {key} is {str(value)[:20]}": (EVAL2, checkpoint(**{key: value}), CKPT, key)
        for key, values in (
            ("variant", ("../../x\n", "\x1b[31m", 3)),
            ("dataset", ("../x", 3, "")),
            ("stage", ("2", 2.0, -1)),
            ("epoch", ("x", -1, 2**70)),
            ("image_size", (-3, "x", [1, 2, 3], 10**9)),
            ("mean", ([1.0], "x", [float("nan")] * 3)),
            ("std", ([1.0, 1.0], [0.0, 1.0, 1.0])),
            ("quick_gelu", ("yes",)),
            ("model", (3, "\x1b[31m")),
            ("seen_identities", ([], {"x": 3})),
            ("val_mAP", ("x", float("nan"))),
        )
        for value in values
    },
    **{
        f"checkpoint whose weights are {value}": (EVAL2, checkpoint(state_dict=value), CKPT, "no tensors by name")
        for value in ([], {}, {"a": 3}, 3)
    },
    **{
        f"checkpoint without {key}": (EVAL2, checkpoint(**{key: None}), CKPT, key)
        for key in ("variant", "model", "state_dict", "mean", "data_digest", "image_size", "seen_identities")
    },
    "weights that are not finite": (EVAL2, checkpoint(state_dict=with_nan), CKPT, "holds NaN"),
    "weights to start from that are not finite": (STAGE2, checkpoint(state_dict=with_nan), START, "holds NaN"),
    "weights of another shape": (
        EVAL2,
        checkpoint(state_dict=of_another_shape), CKPT, "does not hold the weights of a tiny-rn (size mismatch"),
    # pictures and reports from files that someone edited
    "rankings are empty": (PICTURE, made("rankings.csv", ""), RUN, "rankings.csv"),
    "rankings without columns": (PICTURE, made("rankings.csv", "a,b\n1,2\n"), RUN, "rankings.csv"),
    "rankings are missing": (PICTURE, nothing, RUN, "rankings.csv"),
    "rankings are no text": (PICTURE, made("rankings.csv", b"\xff\xfe\0"), RUN, "rankings.csv"),
    **{
        f"rankings with the row {row[:20]}": (
            PICTURE, made("rankings.csv", RANKINGS + row + "\n"), RUN, "rankings.csv")
        for row in (
            "a.jpg,1,first,b.jpg,1,0.5,True",
            "a.jpg,1,1,b.jpg,1,close,True",
            "a.jpg,1,1,b.jpg,1,0.5,maybe",
            "a.jpg,1,,b.jpg,1,0.5,True",
            ",,1,,,0.5,True",
            "../../secret.jpg,1,1,b.jpg,1,0.5,True",
            "a.jpg,1,1,/etc/passwd,1,0.5,True",
        )
    },
    "picture into a file as a folder": (
        PICTURE, made("file", ""), ("--path", "{folder}/file/picture.jpg", "--run_dir", "{folder}"), "{folder}"),
    "summary of another program": (
        REPORT, made("summary.csv", "a,b\n1,2\n"), ("--results_dir", "{folder}"), "summary.csv"),
    "summary that is empty": (REPORT, made("summary.csv", ""), ("--results_dir", "{folder}"), "summary.csv"),
    # settings
    **{
        f"settings {text[:20]!r}": (STAGE5, made("own.yaml", text), ("--config", "{folder}/own.yaml"), "own.yaml")
        for text in (DEEP, "a: [", "epochs: {a: 1}", "epochs: " + DIGITS, "epochs: 2020-01-01", "1: 2", "a: 1\na: *b",
                     "epochs: !!python/object/apply:os.system ['true']", "? [a, b]\n: 1", "- 1", "\x07")
    },
    "settings are no text": (STAGE5, made("own.yaml", b"\xff\xfe\0"), ("--config", "{folder}/own.yaml"), "own.yaml"),
    "settings are a pipe": (STAGE5, pipe("own.yaml"), ("--config", "{folder}/own.yaml"), "own.yaml"),
    "settings are a folder": (STAGE5, nothing, ("--config", "{folder}"), "{folder}"),
    # flags
    **{
        f"{flag} {str(value)[:20]} of {Path(script).stem}": (script, nothing, (flag, value), flag)
        for script in (STAGE0, STAGE2, STAGE3, STAGE4, STAGE5)
        for flag, value in (("--seed", 2**63), ("--seed", DIGITS), ("--epochs", "1e3"), ("--device", "meta"),
                            ("--device", "cpu:5"), ("--device", "cuda:99"), ("--device", ""))
    },
    **{
        f"re-ranking with {' '.join(map(str, flags))}": (STAGE1, nothing, flags, says)
        for flags, says in (
            (("--text_weight", 0.5), "--text_weight is for --rerank text_fusion, and --rerank is none"),
            (("--rerank", "aqe", "--text_weight", 0.5), "--text_weight is for --rerank text_fusion"),
            (("--aqe_n", 5), "--aqe_n is for --rerank aqe"),
            (("--rerank", "aqe", "--rerank_k1", 30), "--rerank_k1 is for --rerank k_reciprocal"),
            (("--rerank", "text_fusion", "--text_weight", "nan"), "--text_weight: nan is not a finite number"),
            (("--rerank", "text_fusion", "--text_weight", 2), "--text_weight: it must be at least 0 and at most 1"),
            (("--rerank", "text_fusion", "--text_weight", ""), "--text_weight: invalid float value"),
        )
    },
    "descriptions that tell nothing": (STAGE1, same_prompts, ("--rerank", "text_fusion"), "have the same prompt"),
    "unknown flag": (STAGE2, nothing, ("--learning_rate", 1), "--learning_rate"),
    "photos in an empty folder": (PREPARE, nothing, ("--data_root", "{folder}", "--name", "x"), "{folder}"),
    "name with an escape": (PREPARE, nothing, ("--data_root", "{folder}", "--name", "\x1b[31m"), "--name"),
    "name of another folder": (PREPARE, nothing, ("--data_root", "{folder}", "--name", "../../x"), "--name"),
}  # fmt: skip


def files_below(*folders: Path) -> Iterator[tuple[str, int]]:
    """Every file, and when it was changed; not what was decoded, nor the list of images that cannot be read."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not {"__pycache__", "processed", "results"} & set(path.parts):
                yield str(path), path.stat().st_mtime_ns


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_hostile_input_ends_with_one_clear_line(place, row):
    script, change, further, says = ROWS[row]
    change(place)
    before = set(files_below(place.project.root, place.metadata, place.folder))
    further = [str(flag).replace("{folder}", str(place.folder)) for flag in further]
    result = place.project.server.run(script, *place.flags(script), *further)
    assert result.returncode == 2, f"{result.stdout}\n{result.stderr}"
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ") and len(line) <= MAX_LINE, line
    assert says.replace("{folder}", str(place.folder)) in line
    assert re.search(r"[\x00-\x1f\x7f-\x9f]", line) is None
    assert not list(files_below(place.out))
    assert set(files_below(place.project.root, place.metadata, place.folder)) == before


@pytest.mark.parametrize(("variable", "value"), [("RANK", "abc"), ("WORLD_SIZE", "x"), ("RANK", "-1")])
def test_hostile_variables_end_with_one_clear_line(place, variable, value):
    environment = {"WORLD_SIZE": "1", "RANK": "0", variable: value}
    result = place.project.server.run(STAGE2, *place.flags(STAGE2), environment=environment)
    assert result.returncode == 2 and variable in result.stderr and "Traceback" not in result.stderr
