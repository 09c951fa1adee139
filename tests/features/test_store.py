import dataclasses
import os
import re
import signal

import numpy as np
import pytest
import torch

from clipfh.features import store as feature_store
from clipfh.features.extraction import extract_features
from clipfh.features.store import MAX_KEPT, image_encoder_digest, load_features
from clipfh.images.pixels import Pixels
from clipfh.models.clip import load_clip

CPU = torch.device("cpu")
NUM_IMAGES, BATCH = 10, 2
NAMES = tuple(f"{name}.jpg" for name in "cabdefghij")


def small_clip(seed=0):
    torch.manual_seed(seed)
    return load_clip("tiny-rn", "random", image_size=32)


@pytest.fixture(scope="module")
def clip():
    return small_clip()


def some_pixels(names=NAMES):
    array = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 32, 32, 3), dtype=np.uint8)
    return Pixels(array[: len(names)], names, ())


@pytest.fixture
def encoded(monkeypatch):
    """The number of images of every batch that the model encodes."""
    sizes = []
    encode_batches = feature_store.encode_batches

    def counting(*arguments, **keywords):
        for features in encode_batches(*arguments, **keywords):
            sizes.append(len(features))
            yield features

    monkeypatch.setattr(feature_store, "encode_batches", counting)
    return sizes


def load(clip, folder, pixels=None, batch_size=BATCH):
    return load_features(clip, pixels or some_pixels(), CPU, folder, batch_size=batch_size)


def test_features_are_saved_with_names_and_reused(clip, tmp_path, encoded, capsys):
    expected = extract_features(clip, some_pixels().array, "cpu", batch_size=BATCH, quiet=True)
    first = load(clip, tmp_path)
    assert torch.equal(first, expected) and encoded == [BATCH] * 5
    assert "features:" not in capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    with np.load(path) as content:
        assert content["images"].tolist() == list(NAMES)
        assert np.array_equal(content["features"], expected.numpy())
    again = load(small_clip(), tmp_path, batch_size=5)  # equal weights in another model
    assert torch.equal(again, expected) and encoded == [BATCH] * 5
    assert re.fullmatch(r"features: reused .*features_[0-9a-f]{32}\.npz\n", capsys.readouterr().out)
    assert os.listdir(tmp_path) == [path.name]


def test_the_mode_is_kept_and_features_may_be_used_in_autograd(tmp_path):
    clip = small_clip()
    clip.model.train()
    for _ in range(2):
        features = load(clip, tmp_path)
        assert clip.model.training
        weight = torch.ones(features.shape[1], requires_grad=True)
        (features @ weight).sum().backward()
        assert weight.grad is not None


def changed_weight(clip):
    last = [parameter for name, parameter in clip.model.named_parameters() if name.startswith("visual.")][-1]
    with torch.no_grad():
        last.view(-1)[-1] += 1e-3
    return clip, some_pixels()


def changed_buffer(clip):
    next(value for name, value in clip.model.named_buffers() if name.startswith("visual.")).view(-1)[0] += 0.5
    return clip, some_pixels()


def changed_mean(clip):
    return dataclasses.replace(clip, mean=(0.5, *clip.mean[1:])), some_pixels()


def changed_activation(clip):
    return dataclasses.replace(clip, quick_gelu=not clip.quick_gelu), some_pixels()


def changed_pixel(clip):
    pixels = some_pixels()
    pixels.array[-1, -1, -1, -1] ^= 1
    return clip, pixels


def changed_name(clip):
    return clip, some_pixels((*NAMES[:-1], "other.jpg"))


def changed_order(clip):
    pixels = some_pixels()
    return clip, Pixels(pixels.array[::-1].copy(), pixels.images[::-1], ())


def fewer_images(clip):
    return clip, some_pixels(NAMES[:-1])


@pytest.mark.parametrize(
    "change",
    [
        *(changed_weight, changed_buffer, changed_mean, changed_activation),
        *(changed_pixel, changed_name, changed_order, fewer_images),
    ],
)
def test_other_weights_pixels_or_normalisation_are_extracted_anew(tmp_path, encoded, capsys, change):
    load(small_clip(), tmp_path)
    del encoded[:]
    clip, pixels = change(small_clip())
    features = load(clip, tmp_path, pixels)
    assert sum(encoded) == len(pixels.images) and "reused" not in capsys.readouterr().out
    assert torch.equal(features, extract_features(clip, pixels.array, "cpu", batch_size=BATCH, quiet=True))
    assert len(list(tmp_path.iterdir())) == 2


def test_text_weights_do_not_matter(tmp_path, encoded):
    clip = small_clip()
    load(clip, tmp_path)
    digest = image_encoder_digest(clip)
    with torch.no_grad():
        clip.model.logit_scale += 1
        next(value for name, value in clip.model.named_parameters() if "token_embedding" in name).add_(1)
    assert image_encoder_digest(clip) == digest
    load(clip, tmp_path)
    assert len(encoded) == 5


def test_the_digest_tells_tensors_of_equal_bytes_apart():
    clip = small_clip()
    before = image_encoder_digest(clip)
    assert before == image_encoder_digest(small_clip()) != image_encoder_digest(small_clip(seed=1))
    clip.model.bfloat16()  # NumPy has no such type
    assert image_encoder_digest(clip) != before


def damage(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "empty":
        content = b""
    elif kind == "truncated":
        content = content[: len(content) // 2]
    elif kind == "no archive":
        content = b"features"
    else:
        content[kind] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["empty", "truncated", "no archive", 3000])
def test_a_damaged_file_is_made_again(clip, tmp_path, encoded, capsys, kind):
    expected = load(clip, tmp_path)
    (path,) = tmp_path.iterdir()
    damage(path, kind)
    capsys.readouterr()
    assert torch.equal(load(clip, tmp_path), expected)
    assert len(encoded) == 10 and "is damaged; made again" in capsys.readouterr().out
    load(clip, tmp_path)
    assert len(encoded) == 10 and "reused" in capsys.readouterr().out


def test_a_flipped_bit_anywhere_never_gives_other_features(clip, tmp_path):
    expected = load(clip, tmp_path).numpy()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    identity = feature_store.features_identity(clip, some_pixels(), CPU)
    header, features_end = range(400), NUM_IMAGES * expected.shape[1] * 4
    refused = 0
    for place in [*header, *range(400, features_end, 97), *range(features_end, len(whole), 3)]:
        damage(path, place)
        found = feature_store._read(path, identity)
        refused += found is None
        assert found is None or np.array_equal(found, expected)
        path.write_bytes(whole)
    assert refused > 500


def test_a_file_of_another_identity_under_this_name_is_not_trusted(clip, tmp_path, encoded):
    load(clip, tmp_path)
    (path,) = tmp_path.iterdir()
    load(small_clip(seed=1), tmp_path)
    (other,) = set(tmp_path.iterdir()) - {path}
    path.write_bytes(other.read_bytes())
    del encoded[:]
    assert torch.equal(
        load(clip, tmp_path), extract_features(clip, some_pixels().array, "cpu", quiet=True, batch_size=2)
    )
    assert len(encoded) == 5


def stop_after(monkeypatch, num_batches):
    """Every batch is a block; the one after `num_batches` fails."""
    monkeypatch.setattr(feature_store, "BLOCK_SECONDS", 0.0)
    encode_batches = feature_store.encode_batches

    def stopping(*arguments, **keywords):
        for number, features in enumerate(encode_batches(*arguments, **keywords)):
            if number == num_batches:
                raise InterruptedError
            yield features

    monkeypatch.setattr(feature_store, "encode_batches", stopping)
    return lambda: monkeypatch.setattr(feature_store, "encode_batches", encode_batches)


@pytest.mark.parametrize("batch_size", [2, 3])
def test_a_stopped_run_continues_whatever_its_batch_size(clip, tmp_path, encoded, monkeypatch, capsys, batch_size):
    go_on = stop_after(monkeypatch, 3)
    with pytest.raises(InterruptedError):
        load(clip, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    go_on()
    del encoded[:]
    features = load(clip, tmp_path, batch_size=batch_size)
    assert sum(encoded) == NUM_IMAGES - 3 * BATCH
    assert "continued after 6 of 10 images" in capsys.readouterr().out
    whole = extract_features(clip, some_pixels().array, "cpu", batch_size=BATCH, quiet=True)
    torch.testing.assert_close(features, whole, atol=1e-6, rtol=0)
    assert len(list(tmp_path.iterdir())) == 1  # the blocks are gone


def test_damaged_blocks_and_blocks_of_other_weights_are_not_used(clip, tmp_path, encoded, monkeypatch):
    go_on = stop_after(monkeypatch, 3)
    with pytest.raises(InterruptedError):
        load(clip, tmp_path)
    go_on()
    (second,) = tmp_path.glob("*.from_2.npz")
    damage(second, "truncated")
    del encoded[:]
    load(clip, tmp_path)
    assert sum(encoded) == NUM_IMAGES - BATCH  # the first block alone
    go_on = stop_after(monkeypatch, 3)
    with pytest.raises(InterruptedError):
        load(small_clip(seed=1), tmp_path)
    go_on()
    del encoded[:]
    load(small_clip(seed=2), tmp_path)
    assert sum(encoded) == NUM_IMAGES


def test_fast_runs_write_no_blocks(clip, tmp_path, monkeypatch):
    written = []
    write = feature_store._write
    monkeypatch.setattr(feature_store, "_write", lambda path, *rest: (written.append(path.name), write(path, *rest)))
    load(clip, tmp_path)
    assert len(written) == 1 and ".from_" not in written[0]


def test_only_the_newest_files_are_kept(clip, tmp_path, monkeypatch):
    go_on = stop_after(monkeypatch, 2)
    with pytest.raises(InterruptedError):
        load(small_clip(seed=99), tmp_path)  # blocks of a run that nobody continues
    go_on()
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))
    (tmp_path / "notes.txt").write_text("not ours")
    first = changed_name(clip)[1]
    load(clip, tmp_path, first)
    (oldest,) = set(tmp_path.glob("features_*.npz")) - set(tmp_path.glob("*.from_*"))
    for number in range(MAX_KEPT):
        for age, path in enumerate(sorted(tmp_path.glob("*"), key=lambda path: path.stat().st_mtime)):
            os.utime(path, (1000 + age, 1000 + age))
        if number == 3:
            load(clip, tmp_path, first)  # used again: now the newest
        load(clip, tmp_path, some_pixels((*NAMES[:-1], f"{number}.jpg")))
    names = [path.name for path in tmp_path.glob("features_*")]
    assert len(names) == MAX_KEPT and not any(".from_" in name for name in names)
    assert oldest.name in names and (tmp_path / "notes.txt").exists()


PROCESS = """
import os, time
import numpy as np, torch
from pathlib import Path
from clipfh.features import store as feature_store
from clipfh.models.clip import load_clip
from clipfh.images.pixels import Pixels
folder, hang_at, seconds_each = Path({folder!r}), {hang_at}, float(os.environ.get("SECONDS_EACH", 0))
feature_store.BLOCK_SECONDS = 0.0
encode_batches = feature_store.encode_batches
def slow(*arguments, **keywords):
    for number, features in enumerate(encode_batches(*arguments, **keywords), 1):
        print("batch", flush=True)
        time.sleep(600 if number == hang_at else seconds_each)
        yield features
feature_store.encode_batches = slow
torch.manual_seed(0)
clip = load_clip("tiny-rn", "random", image_size=32)
array = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
pixels = Pixels(array, {names}, ())
feature_store.load_features(clip, pixels, torch.device("cpu"), folder, batch_size=2)
"""


def extraction(folder, hang_at=0):
    """Code that extracts the same features, sleeps SECONDS_EACH after each batch, and long after batch `hang_at`."""
    return PROCESS.format(folder=str(folder), hang_at=hang_at, names=NAMES)


def test_a_killed_process_is_continued(clip, server, tmp_path, encoded, capsys):
    killed = server.kill_code(extraction(tmp_path, hang_at=1), lambda: server.said("batch\n"))
    assert killed.returncode == -signal.SIGKILL and not list(tmp_path.iterdir())  # the first block was not complete
    killed = server.kill_code(extraction(tmp_path, hang_at=4), lambda: server.said("batch\n" * 4))
    assert killed.returncode == -signal.SIGKILL
    blocks = len(list(tmp_path.glob("features_*.from_*.npz")))
    assert blocks == 3
    features = load(clip, tmp_path)
    assert len(encoded) == 5 - blocks
    assert "features: continued after 6 of 10 images" in capsys.readouterr().out
    expected = extract_features(clip, some_pixels().array, "cpu", batch_size=BATCH, quiet=True)
    torch.testing.assert_close(features, expected, atol=1e-6, rtol=0)


def test_two_processes_at_once(clip, server, tmp_path, encoded):
    one, two = server.run_code(extraction(tmp_path), {"SECONDS_EACH": "0.05"}, {"SECONDS_EACH": "0.08"})
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    for done in (one, two):
        lines = [line for line in done.stdout.splitlines() if line != "batch"]
        assert "batch\n" in done.stdout and len(lines) <= 1
        # one that began later goes on where the other was by then
        assert all(re.fullmatch(r"features: continued after \d of 10 images", line) for line in lines)
    (path,) = tmp_path.iterdir()
    assert ".from_" not in path.name
    features = load(clip, tmp_path)
    assert not encoded
    expected = extract_features(clip, some_pixels().array, "cpu", batch_size=BATCH, quiet=True)
    torch.testing.assert_close(features, expected, atol=1e-6, rtol=0)
