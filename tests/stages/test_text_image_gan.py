"""The networks, losses, captions and faces of stage 5."""

import importlib
import shutil
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from places import ROOT

from clipfh.core.errors import InputError
from clipfh.drawn.faces import generate

FOLDER = ROOT / "model" / "stage5_text_image_gan"
NAMES = ("networks", "loss", "captions", "dataset")  # of modules; other stages have some of these names too


def load_modules():
    before = {name: sys.modules.pop(name) for name in NAMES if name in sys.modules}
    sys.path.insert(0, str(FOLDER))
    try:
        return [importlib.import_module(name) for name in NAMES]
    finally:
        sys.path.remove(str(FOLDER))
        for name in NAMES:
            sys.modules.pop(name, None)
        sys.modules.update(before)


networks, loss, captions, dataset = load_modules()


@pytest.mark.parametrize("image_size", [64, 128, 256])
@pytest.mark.parametrize("channels", [1, 3])
def test_networks_have_the_shapes_that_they_state(image_size, channels):
    images, embeddings = torch.randn(2, channels, image_size, image_size), F.normalize(torch.randn(2, 12), dim=1)
    made = networks.Img2TextGenerator(12, image_size, channels, 4)(images)
    assert made.shape == (2, 12) and torch.allclose(made.norm(dim=1), torch.ones(2), atol=1e-5)
    generator = networks.Text2ImageGenerator(12, 5, image_size, channels, 4)
    made = generator(embeddings, torch.randn(2, 5))
    assert made.shape == images.shape and made.abs().max() <= 1
    for network in (networks.Img2TextDiscriminator, networks.Text2ImageDiscriminator):
        for conditional in (False, True):
            judge = network(12, image_size, channels, 4, conditional=conditional, spectral=True)
            assert judge(images, embeddings).shape == (2,)


@pytest.mark.parametrize("spectral", [False, True])
def test_only_conditional_discriminators_see_the_condition(spectral):
    torch.manual_seed(0)
    images, embeddings = torch.randn(4, 1, 64, 64), F.normalize(torch.randn(4, 12), dim=1)
    for conditional in (False, True):
        settings = {"conditional": conditional, "spectral": spectral}
        judge = networks.Text2ImageDiscriminator(12, 64, 1, 4, **settings).eval()
        assert torch.equal(judge(images, embeddings), judge(images, embeddings.flip(0))) == (not conditional)
        judge = networks.Img2TextDiscriminator(12, 64, 1, 4, **settings).eval()
        assert torch.equal(judge(images, embeddings), judge(images.flip(0), embeddings)) == (not conditional)


def test_the_image_generator_uses_text_and_noise():
    torch.manual_seed(0)
    generator = networks.Text2ImageGenerator(12, 5, 64, 1, 4).eval()
    text, noise = F.normalize(torch.randn(1, 12), dim=1), torch.randn(1, 5)
    made = generator(text, noise)
    assert not torch.allclose(made, generator(-text, noise))
    assert not torch.allclose(made, generator(text, -noise))


def test_adversarial_losses_are_those_of_the_papers():
    real, fake, wrong = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0]), torch.tensor([1.0, 0.0])

    def cross_entropy(logits, target):
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

    expected = cross_entropy(real, 1.0) + cross_entropy(fake, 0.0)
    assert loss.discriminator_loss("bce", real, fake) == pytest.approx(expected.item())
    assert loss.generator_loss("bce", fake) == pytest.approx(cross_entropy(fake, 1.0).item())
    assert loss.discriminator_loss("hinge", real, fake).item() == (0 + 2) / 2 + (1.5 + 0) / 2
    assert loss.generator_loss("hinge", fake).item() == 1.25
    assert loss.discriminator_loss("hinge", real, fake, wrong).item() == 1 + (0.75 + 1.5) / 2


def test_r1_is_half_the_squared_gradient_norm():
    images = torch.randn(3, 1, 4, 4, requires_grad=True)
    weights = torch.randn(1, 4, 4)
    logits = (images * weights).sum(dim=(1, 2, 3))
    assert loss.r1_penalty(logits, images).item() == pytest.approx(weights.square().sum().item() / 2, rel=1e-5)


def test_matching_loss_is_that_of_plain_loops():
    torch.manual_seed(0)
    embeddings, texts = F.normalize(torch.randn(3, 6), dim=1), F.normalize(torch.randn(7, 2, 6), dim=2)
    labels = torch.tensor([4, 0, 6])
    total = 0.0
    for row, label in zip(embeddings, labels, strict=True):
        logits = torch.stack([10 * (row @ texts[c, 0] + row @ texts[c, 1]) / 2 for c in range(7)])
        total += (torch.logsumexp(logits, 0) - logits[label]).item()
    assert loss.matching_loss(embeddings, texts, labels).item() == pytest.approx(total / 3, rel=1e-5)


def space(C=7, K=3, E=16):
    texts = tuple(tuple(f"{c} {k}" for k in range(K)) for c in range(C))
    return captions.CaptionSpace(texts, torch.zeros(E), F.normalize(torch.randn(C, K, E), dim=2))


def test_nearest_caption_is_found_by_its_own_embedding():
    torch.manual_seed(0)
    made = space()
    emotions, places = made.nearest(made.features.reshape(21, 16))
    assert emotions.tolist() == [c for c in range(7) for _ in range(3)] and places.tolist() == [0, 1, 2] * 7


def test_drawn_captions_are_of_their_emotion_and_as_noisy_as_asked():
    torch.manual_seed(0)
    made, labels = space(E=256), torch.arange(7).repeat(30)
    exact = made.draw(labels, 0.0)
    assert (made.nearest(exact)[0] == labels).all() and len({tuple(row.tolist()) for row in exact}) == 21
    noisy = made.draw(labels, 0.5)
    similarity = torch.einsum("ne,nke->nk", noisy, made.features[labels]).amax(dim=1)
    assert torch.allclose(noisy.norm(dim=1), torch.ones(210), atol=1e-5)
    assert similarity.mean().item() == pytest.approx(1 / 1.25**0.5, abs=0.02)  # 1 / sqrt(1 + noise^2)


def test_a_caption_space_survives_its_checkpoint():
    made = space()
    again = captions.CaptionSpace.from_state(made.state())
    assert again.captions == made.captions and torch.equal(again.features, made.features) and again.dim == 16


def test_captions_are_distinct():
    texts = [template.format(word) for template in captions.TEMPLATES for word in captions.WORDS.values()]
    assert len(set(texts)) == 7 * len(captions.TEMPLATES)


def test_another_embedding_size_than_the_clips_is_refused():
    clip = type("Clip", (), {"name": "tiny-rn"})()
    captions.require_latent_dim("img2text.latent_dim", None, clip, 256)
    captions.require_latent_dim("img2text.latent_dim", 256, clip, 256)
    with pytest.raises(InputError, match=r"img2text.latent_dim is 512, but tiny-rn .* 256 .*--img2text.latent_dim 256"):
        captions.require_latent_dim("img2text.latent_dim", 512, clip, 256)


@pytest.fixture
def faces(tmp_path):
    """Ten train faces and two test faces of each emotion, no val split."""
    generate(tmp_path / "faces", num_train=10, num_test=2, seed=0)
    return tmp_path / "faces"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """`load_faces` at 64 px, with its files below the test's folder."""
    monkeypatch.setattr(dataset, "RESULTS_DIR", tmp_path / "results")
    monkeypatch.setattr(dataset, "processed_dir", lambda name: tmp_path / "processed" / name)
    return partial(dataset.load_faces, image_size=64, skip_unreadable=False)


def test_val_faces_are_drawn_from_each_emotion_and_are_no_train_faces(faces, load):
    splits, repeated = load(faces, data_seed=0, val_fraction=0.3)
    assert {name: len(split) for name, split in splits.items()} == {"train": 49, "test": 14, "val": 21}
    assert np.bincount(splits["val"].labels).tolist() == [3] * 7 and repeated == 0
    assert not set(splits["val"].names) & set(splits["train"].names)
    again, other = (load(faces, data_seed=seed, val_fraction=0.3)[0] for seed in (0, 1))
    assert again["val"].names == splits["val"].names != other["val"].names


def test_train_faces_that_are_in_another_split_are_left_out_and_counted(faces, load):
    shutil.copy(faces / "test" / "sad" / "0000.png", faces / "train" / "sad" / "same.png")
    splits, repeated = load(faces, data_seed=0, val_fraction=0.1)
    assert repeated == 1 and "train/sad/same.png" not in splits["train"].names


def test_an_emotion_with_a_single_train_face_cannot_be_validated(faces, load):
    for path in sorted((faces / "train" / "fear").iterdir())[1:]:
        path.unlink()
    with pytest.raises(InputError, match="1 train face of fear"):
        load(faces, data_seed=0, val_fraction=0.1)


def test_a_folder_that_holds_the_csv_alone_is_taken_for_it(tmp_path):
    (tmp_path / "fer2013.csv").write_text("")
    assert dataset.find_dataset(tmp_path, smoke=False) == tmp_path / "fer2013.csv"
    (tmp_path / "train").mkdir()
    assert dataset.find_dataset(tmp_path, smoke=False) == tmp_path
