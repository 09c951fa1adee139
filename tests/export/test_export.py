"""Checkpoints as folders of open_clip, transformers and onnxruntime, loaded back and compared."""

import importlib.util
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from summary_rows import make_row, random_rows

from clipfh.core.cli import parse_config
from clipfh.core.errors import InputError
from clipfh.core.paths import display
from clipfh.export import finished_folder, int8, onnx_folder, open_clip_folder, parity, samples
from clipfh.export.__main__ import Config, main
from clipfh.export.int8 import measure_int8
from clipfh.export.samples import LONG_TEXT, dataset_samples
from clipfh.export.source import load_source
from clipfh.export.transformers_folder import require_plain_clip
from clipfh.images.transforms import to_input
from clipfh.models import parts
from clipfh.models.checkpoint import write_checkpoint
from clipfh.models.clip import encode_texts, load_clip, open_clip
from clipfh.models.weights_file import _from_transformers, to_transformers
from clipfh.reports.summary import append_rows
from clipfh.tables.prepared import PreparedDataset

NEEDS = {"open_clip": (), "transformers": ("transformers",), "onnx": ("onnx", "onnxruntime", "onnxscript")}
CASES = (
    ("open_clip", "tiny-vit"),
    ("open_clip", "tiny-rn"),
    ("open_clip", "small-clip"),
    ("transformers", "tiny-vit"),
    ("onnx", "tiny-vit"),
    ("onnx", "tiny-rn"),
    ("onnx", "small-clip"),
)
TEXTS = ["A red dress, size 38!", "socks", LONG_TEXT]


def needs(format: str) -> None:
    for package in NEEDS[format]:
        pytest.importorskip(package, reason="needs the extra export")


def save_checkpoint(path: Path, model: str, **changes) -> Path:
    """Random weights as stage 2 saves its best."""
    torch.manual_seed(0)
    clip = load_clip(model, "random", quick_gelu=changes.get("quick_gelu"))
    recorded = {"stage": 2, "dataset": "mugs", "variant": "triplet", "epoch": 3, "val_mAP": 0.5, "data_digest": "5a"}
    recorded |= {"seen_identities": {"5a": ["p01"]}, **clip.architecture(), **changes}
    write_checkpoint(path, {**recorded, "state_dict": clip.model.state_dict()})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def checkpoint(folder):
    """Of a model; the ViT's with QuickGELU, as OpenAI's weights are."""

    def make(model: str) -> Path:
        path = folder / f"{model}_BEST.pth"
        return path if path.exists() else save_checkpoint(path, model, quick_gelu=model == "tiny-vit")

    return make


@pytest.fixture(scope="module")
def quick_reader(server):
    """Within it, a card's code runs in a child of the script server, which has imported open_clip before."""

    def run(command: list[str], *, input: str, env: dict[str, str], cwd: Path, **_) -> subprocess.CompletedProcess:
        (result,) = server.run_code(f"import io, sys\nsys.stdin = io.StringIO({input!r})\n{command[-1]}", env, cwd=cwd)
        return result

    @contextmanager
    def patched() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parity, "subprocess", SimpleNamespace(run=run))
            yield

    return patched


@pytest.fixture
def quickly(quick_reader) -> Iterator[None]:
    """A test that exports, but not to see whether the card's code stands alone: the ViT's exports of CASES show it."""
    with quick_reader():
        yield


@pytest.fixture(scope="module")
def exported(folder, checkpoint, quick_reader):
    """The finished folder of a format and model; the ViT's were loaded back by a Python that had imported nothing."""

    def make(format: str, model: str) -> Path:
        needs(format)
        if model == "small-clip" and not parts.has_parts():
            pytest.skip("needs the extra parts")
        out = folder / f"{format}_{model}"
        if not out.exists():
            with nullcontext() if model == "tiny-vit" else quick_reader():
                main(Config(checkpoint(model), format, out, results_dir=folder / "no_results"))
        return out

    return make


def code_of(out: Path) -> str:
    """The code block of a card."""
    return re.search(r"```python\n(.*?)```", (out / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]


@pytest.mark.parametrize(("format", "model"), CASES)
def test_the_code_of_the_card_computes_what_the_checkpoint_does(
    exported, checkpoint, tmp_path, monkeypatch, format, model
):
    out = exported(format, model)
    clip = load_source(checkpoint(model)).clip
    pixels = np.random.default_rng(0).integers(0, 256, (5, clip.image_size, clip.image_size, 3), dtype=np.uint8)
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, photo in zip(paths, pixels, strict=True):
        Image.fromarray(photo).save(path)
    Image.new("RGB", (90, 60), "red").save(tmp_path / "photo.jpg")
    (tmp_path / out.name).symlink_to(out)  # elsewhere than where it was written
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(code_of(out), scope)
    assert scope["photos"].shape == (1, clip.model.visual(torch.zeros(2, 3, *2 * [clip.image_size])).shape[1])
    with torch.inference_mode():
        expected = clip.model.encode_image(to_input(pixels, clip.mean, clip.std, "cpu"), normalize=True).numpy()
    for some in (slice(0, 1), slice(0, 5)):
        assert np.abs(scope["encode_photos"](paths[some]) - expected[some]).max() < 1e-5
    texts = scope["encode_texts"](TEXTS)
    assert np.abs(texts - encode_texts(clip, TEXTS, "cpu").numpy()).max() < 1e-5
    assert np.allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("model", ["tiny-vit", "small-clip"])
def test_open_clip_loads_the_folder_by_its_name_alone(exported, checkpoint, model):
    out = exported("open_clip", model)
    ours = load_source(checkpoint(model)).clip
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{out}")
    tokens = open_clip.get_tokenizer(f"local-dir:{out}")(TEXTS)
    assert torch.equal(tokens, ours.tokenizer(TEXTS))
    with torch.inference_mode():
        features = theirs.eval().encode_text(tokens, normalize=True)
    torch.testing.assert_close(features, encode_texts(ours, TEXTS, "cpu"), atol=1e-5, rtol=0)
    again = load_clip(f"local-dir:{out}")  # and so does the project
    assert again.architecture() == {**ours.architecture(), "model": f"local-dir:{out}"}


def test_transformers_loads_the_folder_by_its_classes(exported, checkpoint):
    out = exported("transformers", "tiny-vit")
    from transformers import CLIPModel, CLIPProcessor

    clip = load_source(checkpoint("tiny-vit")).clip
    model, processor = CLIPModel.from_pretrained(out).eval(), CLIPProcessor.from_pretrained(out)
    assert model.config.vision_config.hidden_act == model.config.text_config.hidden_act == "quick_gelu"
    photos = [Image.new("RGB", (64, 64), color) for color in ("red", "teal")]
    inputs = processor(text=TEXTS, images=photos, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits_per_image / clip.model.logit_scale.exp()
        images = to_input(np.stack([np.asarray(photo) for photo in photos]), clip.mean, clip.std, "cpu")
        expected = clip.model.encode_image(images, normalize=True) @ encode_texts(clip, TEXTS, "cpu").T
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_the_names_of_transformers_and_back(checkpoint):
    state = load_source(checkpoint("tiny-vit")).clip.model.state_dict()
    again = _from_transformers(to_transformers(state))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_the_folder_holds_what_its_card_says(exported, folder, checkpoint):
    out = exported("onnx", "tiny-vit")
    text = (out / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "unknown" and front["pipeline_tag"] == "zero-shot-image-classification"
    assert "- training data: mugs" in text and "No evaluation of this checkpoint was recorded" in text
    rows = dict(re.findall(r"\| `(\S+)` \| `([0-9a-f]{64})` \|", text))
    assert rows.keys() == {"image_encoder.onnx", "text_encoder.onnx"}
    described = json.loads((out / "preprocessing.json").read_text())
    assert described["image_encoder"]["height"] == 64 and described["text_encoder"]["context_length"] == 77
    names = {path.name for path in out.iterdir()}
    assert names == {*rows, "README.md", "preprocessing.json", "tokenizer.json"}
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in out.iterdir())
    assert not list(folder.glob(".*"))


def test_figures_of_the_summary_stand_in_the_card(quickly, checkpoint, tmp_path, capsys):
    path = checkpoint("tiny-vit")
    rows = [make_row(checkpoint=display(path), rank1=0.123), *random_rows([0.2, 0.4], checkpoint=display(path))]
    append_rows(tmp_path / "results" / "summary.csv", [*rows, make_row(checkpoint="other.pth", rank1=0.9)])
    main(Config(path, "open_clip", tmp_path / "out", license="mit", results_dir=tmp_path / "results"))
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "license: mit\n" in text
    assert "| synthetic | photo to photo, official split | 9 | 20 | 12.3 | 50.0 | 50.0 | 50.0 | 50.0 |" in text
    assert "mean over 2 random splits | 9 | 20 | 50.0 | 50.0 | 50.0 | 30.0 | 50.0 |" in text
    assert "90.0" not in text
    assert "loaded back by open_clip, on 8 drawn photos" in capsys.readouterr().out


def test_a_wrong_weight_is_seen_and_leaves_nothing(quickly, checkpoint, tmp_path, monkeypatch):
    save = open_clip_folder.save_file

    def damaged(weights, path, **keywords):
        bias = weights["visual.ln_post.bias"].clone()
        bias[0] += 0.5
        save({**weights, "visual.ln_post.bias": bias}, path, **keywords)

    monkeypatch.setattr(open_clip_folder, "save_file", damaged)
    with pytest.raises(InputError, match=r"open_clip computes other features .* more than 0.0001"):
        main(Config(checkpoint("tiny-vit"), "open_clip", tmp_path / "out", results_dir=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_loaded_leaves_nothing(quickly, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(open_clip_folder, "save_file", lambda weights, path, **_: path.write_bytes(b"half"))
    with pytest.raises(InputError, match=r"open_clip cannot load or run the export: "):
        main(Config(checkpoint("tiny-vit"), "open_clip", tmp_path / "out", results_dir=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def few_garments(monkeypatch):
    monkeypatch.setattr(samples, "NUM_GARMENTS", 12)


def test_int8_is_smaller_and_measured(exported, checkpoint, tmp_path, monkeypatch, few_garments):
    out = exported("onnx", "tiny-vit")
    for path in out.iterdir():
        (tmp_path / path.name).symlink_to(path)
    names = onnx_folder.write_int8(tmp_path)
    assert names == ["image_encoder_int8.onnx", "text_encoder_int8.onnx"]
    for name in names:
        assert (tmp_path / name).stat().st_size < 0.5 * (out / name.replace("_int8", "")).stat().st_size
    clip = load_source(checkpoint("tiny-vit")).clip
    monkeypatch.setattr(int8, "MAX_DROP", 1.0)
    cost = measure_int8(clip, tmp_path, None, tmp_path / "unreadable.csv", tmp_path)
    assert all(0 <= value <= 1 for value in (*cost.photos, *cost.texts)) and cost.num_texts == 12
    monkeypatch.setattr(int8, "MAX_DROP", -1.0)
    with pytest.raises(InputError, match=r"8 bits cost too much: Rank-1 of photo queries is .* leave --int8 out"):
        measure_int8(clip, tmp_path, None, tmp_path / "unreadable.csv", tmp_path / "again")


@pytest.fixture
def dataset(tmp_path, monkeypatch) -> PreparedDataset:
    """Six photos of three mugs, with prompts and splits."""
    rows, prompts = [], {}
    for number, color in enumerate(("red", "teal", "gold")):
        prompts[color] = [f"a {color} mug"]
        for split in ("query", "gallery"):
            rows.append({"image": f"{color}_{split}.png", "item_id": color, "split": split, "camera": ""})
            size = (70 + 10 * number, 80)
            Image.new("RGB", size, color).save(tmp_path / rows[-1]["image"])
    split = {side: [row["image"] for row in rows if row["split"] == side] for side in ("query", "gallery")}
    (tmp_path / "image_splits.json").write_text(json.dumps({"official": split, "random": [split] * 10}))
    (tmp_path / "image_prompts_cleaned_for_v4.json").write_text(json.dumps(prompts))
    monkeypatch.setattr(int8, "processed_dir", lambda name: tmp_path / "processed")
    return PreparedDataset("mugs", tmp_path, tmp_path, pd.DataFrame(rows), False, "6b")


def test_photos_and_prompts_of_a_dataset(checkpoint, dataset, tmp_path):
    clip = load_source(checkpoint("tiny-vit")).clip
    (tmp_path / "work").mkdir()
    found = dataset_samples(clip, dataset, tmp_path / "work")
    assert found.texts == ["a red mug", "a teal mug", "a gold mug", LONG_TEXT]
    assert found.pixels.shape == (6, 64, 64, 3) and found.told == "6 test photos of mugs"
    assert np.array_equal(np.asarray(Image.open(found.framed[4])), found.pixels[4])
    (tmp_path / "gold_query.png").write_bytes(b"half")
    with pytest.raises(InputError, match=r"gold_query.png cannot be read .* leave --dataset out"):
        dataset_samples(clip, dataset, tmp_path / "work")


def test_int8_is_measured_on_the_official_split_of_a_dataset(exported, checkpoint, dataset, tmp_path, monkeypatch):
    out = exported("onnx", "tiny-vit")
    (tmp_path / "work").mkdir()
    for name in ("image_encoder", "text_encoder"):  # float32 in place of int8: the same figures
        (tmp_path / "work" / f"{name}.onnx").symlink_to(out / f"{name}.onnx")
        (tmp_path / "work" / f"{name}_int8.onnx").symlink_to(out / f"{name}.onnx")
    clip = load_source(checkpoint("tiny-vit")).clip
    cost = measure_int8(clip, tmp_path / "work", dataset, tmp_path / "unreadable.csv", tmp_path)
    assert cost.photos == (1.0, 1.0) and cost.num_photos == 3  # one colour a mug
    assert cost.texts[0] == cost.texts[1] and cost.num_texts == 3
    assert cost.told == "official split of mugs"


def test_mistakes_are_said_before_the_work(checkpoint, tmp_path, monkeypatch):
    path = checkpoint("tiny-vit")

    def refused(says: str, *arguments, **flags):
        with pytest.raises(InputError, match=says):
            main(Config(*arguments, results_dir=tmp_path, **flags))

    refused(r"--ckpt .*absent.pth does not exist", tmp_path / "absent.pth", "open_clip", tmp_path / "out")
    refused(r"--ckpt .* is a folder", tmp_path, "open_clip", tmp_path / "out")
    refused("--int8 is for --format onnx, not open_clip", path, "open_clip", tmp_path / "out", int8=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    refused(r"--out .*full is not empty", path, "open_clip", tmp_path / "full")
    refused(r"--out .*notes.txt is a file", path, "open_clip", tmp_path / "full" / "notes.txt")
    torch.save({"w": torch.ones(2)}, tmp_path / "foreign.pth")
    refused("does not record its architecture", tmp_path / "foreign.pth", "open_clip", tmp_path / "out")
    part = save_checkpoint(tmp_path / "part.pth", "tiny-vit", stage=4, image_encoder="resnet50")
    refused(r"holds parts of stage 4, no CLIP. .*_CLIP.pth", part, "open_clip", tmp_path / "out")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "onnx" in name else find_spec(name))
    refused(r"--format onnx needs onnx, .*: bash set_up.sh export", path, "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_and_a_missing_flag_are_refused(capsys):
    for arguments in (["--ckpt", "a.pth", "--format", "tflite", "--out", "x"], ["--format", "onnx", "--out", "x"]):
        with pytest.raises(SystemExit) as ended:
            parse_config(Config, None, arguments)
        assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "tflite" in told and "--ckpt" in told


def test_transformers_gets_no_other_architecture(checkpoint, tmp_path):
    needs("transformers")
    with pytest.raises(InputError, match=r"tiny-rn's image encoder \(resnet10t, no ViT\). Use --format open_clip or"):
        main(Config(checkpoint("tiny-rn"), "transformers", tmp_path / "out", results_dir=tmp_path))
    assert list(tmp_path.iterdir()) == []
    clip = load_source(checkpoint("tiny-vit")).clip
    require_plain_clip(clip)
    for changes, says in (
        ({"image_size": (64, 32)}, "takes square photos"),
        ({"resize_mode": "pad"}, "CLIPProcessor cannot"),
        ({"name": "RN50"}, r"RN50's image encoder \(ResNet, no ViT\)"),
        ({"name": "ViT-B-16-SigLIP"}, "no ViT"),
        ({"name": "coca_ViT-B-32"}, "multimodal_cfg is"),
        ({"name": "xlm-roberta-base-ViT-B-32"}, "text encoder"),
    ):
        with pytest.raises(InputError, match=says):
            require_plain_clip(replace(clip, **changes))
    for name in ("ViT-B-32", "ViT-B-16-quickgelu", "ViT-L-14-336"):
        require_plain_clip(replace(clip, name=name))


@pytest.mark.parametrize("resize_mode", ["squash", "pad"])
def test_other_ways_into_the_frame(quickly, tmp_path, monkeypatch, resize_mode):
    """The library's own geometry is the checkpoint's: features of photo files are nearly the same."""
    path = save_checkpoint(tmp_path / "a.pth", "tiny-vit", resize_mode=resize_mode)
    main(Config(path, "open_clip", tmp_path / "out", results_dir=tmp_path))
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert float(re.search(r"\| float32 .* (\S+) \|", text)[1]) > 0.998


def test_a_folder_that_is_not_finished_is_not_there(tmp_path):
    with pytest.raises(ValueError), finished_folder.finished_folder(tmp_path / "new" / "out") as inside:
        (inside / "a").touch()
        raise ValueError
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "empty").mkdir()
    with finished_folder.finished_folder(tmp_path / "empty") as inside:
        (inside / "a").touch()
    assert [path.name for path in tmp_path.glob("*/*")] == ["a"]
