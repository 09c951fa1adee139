"""The model, the loss, the batches and the linear baseline of stage 4, loaded from its folder."""

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from places import ROOT

from clipfh.images.augment import Augmentation, view_generator
from clipfh.models import frozen_text_clip
from clipfh.models.clip import load_clip

FOLDER = ROOT / "model" / "stage4_frozen_text_alignment"


def load_modules() -> SimpleNamespace:
    """The stage's modules by their own names, which other stages use as well: they are forgotten afterwards."""
    names = ("loss", "dataset", "settings", "linear_baseline")
    sys.path.insert(0, str(FOLDER))
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    try:
        return SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


stage = load_modules()
TINY = {"image_encoder": "resnet18", "image_weights": "random", "text_model": "tiny-rn", "text_weights": "random"}


@pytest.fixture(scope="module")
def tiny():
    return frozen_text_clip.create_clip_model("cpu", **TINY, image_size=32)


# ---- the model


@pytest.fixture(scope="module")
def full():
    return frozen_text_clip.create_clip_model("cpu", image_weights="random", text_weights="random")


def test_both_encoders_give_unit_features_of_512(full):
    ids, mask = full.text_encoder.tokenize([f"a photo of {number} apples" for number in range(32)])
    assert ids.shape == mask.shape == (32, 77)
    with torch.inference_mode():
        image_features, text_features = full.eval()(torch.randn(32, 3, 224, 224), ids, mask)
    for features in (image_features, text_features):
        assert features.shape == (32, 512) and features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=1), torch.ones(32))
    assert torch.equal(full.encode_text(ids, mask), text_features)


def test_parameters_are_counted_and_only_the_image_side_is_trained(full, capsys):
    full.print_parameter_summary()
    printed = capsys.readouterr().out
    # ResNet50 without its classifier; (2048 + 1) 2048 + (2048 + 1) 512; ViT-B/32's 151,277,313 less its vision tower
    for line in (
        "image backbone     23,508,032   25.5%  trainable",
        "projection head     5,245,440    5.7%  trainable",
        "text encoder       63,428,096   68.8%  frozen",
        "total              92,181,569  100.0%  trainable 28,753,473, frozen 63,428,096",
    ):
        assert line in printed, printed
    trainable = full.get_trainable_parameters()
    assert sum(parameter.numel() for parameter in trainable) == 28_753_473
    ours = {id(parameter) for parameter in full.text_encoder.parameters()}
    assert not any(id(parameter) in ours for parameter in trainable)


def test_the_head_is_linear_gelu_linear(full):
    head = full.image_encoder.head
    assert [type(layer).__name__ for layer in head] == ["Linear", "GELU", "Linear"]
    assert [(layer.in_features, layer.out_features) for layer in (head[0], head[2])] == [(2048, 2048), (2048, 512)]


def test_the_text_tower_is_the_pretrained_one(tiny):
    torch.manual_seed(0)
    clip = load_clip("tiny-rn", "random")
    expected = F.normalize(clip.model.encode_text(clip.tokenizer(["a red dress", "shoes"])), dim=1).detach()
    encoder = frozen_text_clip.CLIPTextEncoder(clip)
    torch.testing.assert_close(encoder.encode(["a red dress", "shoes"]), expected)
    assert not [name for name in encoder.state_dict() if "visual" in name or "logit" in name]


def test_padding_does_not_change_a_text_feature(tiny):
    ids, mask = tiny.text_encoder.tokenize(["a red dress", "a much longer text about a red dress and blue shoes"])
    assert mask.sum(dim=1).tolist() == [5, 13]
    plain = tiny.encode_text(ids)
    padded = torch.where(mask == 1, ids, ids.max())  # as tokenizers do that pad with the end token
    assert torch.equal(tiny.encode_text(padded, mask), plain)
    with pytest.raises(ValueError, match="zeros before ones"):
        tiny.encode_text(ids, mask.flip(1))
    with pytest.raises(ValueError, match="mask of that shape"):
        tiny.encode_text(ids, mask[:1])


def test_long_texts_are_cut_at_77_tokens(tiny):
    ids, mask = tiny.text_encoder.tokenize(["red " * 200])
    assert ids.shape == (1, 77) and mask.sum() == 77


def test_the_text_encoder_never_moves():
    model = frozen_text_clip.create_clip_model("cpu", **TINY, image_size=32)
    before, digest = {k: v.clone() for k, v in model.text_encoder.state_dict().items()}, model.text_encoder.digest()
    head = model.image_encoder.head[0].weight.detach().clone()
    ids, mask = model.text_encoder.tokenize(["a cat", "a dog", "a hat"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)  # even where it is given everything
    model.train()
    assert not model.text_encoder.training
    image_features, text_features = model(torch.randn(3, 3, 32, 32), ids, mask)
    loss = stage.loss.caption_info_nce_loss(image_features, text_features, model.logit_scale.exp(), torch.eye(3) > 0)
    loss.backward()
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in model.text_encoder.state_dict().items())
    assert model.text_encoder.digest() == digest
    assert not torch.equal(model.image_encoder.head[0].weight, head)


def test_the_digest_sees_a_single_bit(tiny):
    weight = next(tiny.text_encoder.parameters())
    before = tiny.text_encoder.digest()
    bits = weight.data.view(torch.int32).view(-1)
    bits[7] ^= 1
    assert tiny.text_encoder.digest() != before
    bits[7] ^= 1
    assert tiny.text_encoder.digest() == before


def test_a_held_backbone_keeps_its_weights_and_statistics():
    encoder = frozen_text_clip.CLIPImageEncoder("resnet18", 8, image_size=32)
    before = {name: value.clone() for name, value in encoder.backbone.state_dict().items()}
    encoder.train()
    encoder.hold_backbone(True)
    encoder(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is None for parameter in encoder.backbone.parameters())
    assert all(torch.equal(before[name], value) for name, value in encoder.backbone.state_dict().items())
    assert encoder.head[0].weight.grad is not None
    encoder.hold_backbone(False)
    encoder(torch.randn(4, 3, 32, 32)).sum().backward()
    assert encoder.backbone.conv1.weight.grad is not None and encoder.backbone.training
    assert not torch.equal(before["bn1.running_mean"], encoder.backbone.bn1.running_mean)


@pytest.mark.parametrize(
    ("layers", "norm", "dropout", "names"),
    [
        (1, "batchnorm", 0.5, ["Linear"]),
        (2, "batchnorm", 0.5, ["Linear", "BatchNorm1d", "GELU", "Dropout", "Linear"]),
        (3, "none", 0.0, ["Linear", "GELU", "Linear", "GELU", "Linear"]),
    ],
)
def test_heads(layers, norm, dropout, names):
    head = frozen_text_clip.projection_head(6, 4, layers, norm, dropout)
    assert [type(layer).__name__ for layer in head] == names
    assert head(torch.randn(3, 6)).shape == (3, 4)


# ---- the loss


def naive_loss(images, texts, scale, is_caption):
    """Plain loops over the formula of the docstring."""
    total, B = 0.0, len(images)
    for i in range(B):
        own = scale * images[i] @ texts[i]
        keep = [j for j in range(len(texts)) if j == i or not is_caption[i, j]]
        total += torch.logsumexp(torch.stack([scale * images[i] @ texts[j] for j in keep]), 0) - own
        keep = [j for j in range(B) if j == i or not is_caption[j, i]]
        total += torch.logsumexp(torch.stack([scale * images[j] @ texts[i] for j in keep]), 0) - own
    return total / (2 * B)


@pytest.mark.parametrize("further", [0, 5])
def test_the_loss_is_that_of_plain_loops_with_its_gradients(further):
    torch.manual_seed(1)
    is_caption = torch.rand(6, 6 + further) < 0.3
    is_caption[:, :6].fill_diagonal_(True)
    values = []
    for function in (stage.loss.caption_info_nce_loss, naive_loss):
        torch.manual_seed(2)
        raw, scale = torch.randn(6, 5, requires_grad=True), torch.tensor(7.0, requires_grad=True)
        texts = F.normalize(torch.randn(6 + further, 5), dim=1)
        loss = function(F.normalize(raw, dim=1), texts, scale, is_caption)
        loss.backward()
        values.append((loss.detach(), raw.grad, scale.grad))
    for mine, naive in zip(*values, strict=True):
        torch.testing.assert_close(mine, naive)


def test_a_true_caption_of_an_image_is_never_its_negative():
    # A and B share caption 1; A drew its own 0, B drew 1: B's text is true of A, A's is not of B
    captions = torch.tensor([[0, 1, -1], [1, 2, 3], [4, -1, -1]])
    is_caption = stage.loss.is_caption_of(captions, torch.tensor([0, 1, 4]))
    assert is_caption.tolist() == [[True, True, False], [False, True, False], [False, False, True]]
    images, texts = F.normalize(torch.randn(3, 4), dim=1), F.normalize(torch.randn(3, 4), dim=1)
    loss = stage.loss.caption_info_nce_loss(images, texts, 10.0, is_caption)
    logits = 10.0 * images @ texts.T
    by_hand = [
        torch.logsumexp(logits[0, [0, 2]], 0), torch.logsumexp(logits[1], 0), torch.logsumexp(logits[2], 0),
        torch.logsumexp(logits[:, 0], 0), torch.logsumexp(logits[[1, 2], 1], 0), torch.logsumexp(logits[:, 2], 0),
    ]  # fmt: skip
    torch.testing.assert_close(loss, (torch.stack(by_hand).sum() - 2 * logits.trace()) / 6)


def test_the_loss_of_one_pair_or_of_one_product_is_zero():
    one = F.normalize(torch.randn(1, 4), dim=1)
    assert stage.loss.caption_info_nce_loss(one, one, 5.0, torch.ones(1, 1) > 0) == 0
    several = F.normalize(torch.randn(4, 4), dim=1).requires_grad_()
    loss = stage.loss.caption_info_nce_loss(several, several.detach(), 5.0, torch.ones(4, 4) > 0)
    loss.backward()
    assert loss == 0 and several.grad.abs().max() < 1e-6


# ---- batches and the baseline


def split_of(N: int, seed: int, directions: torch.Tensor, marks: torch.Tensor) -> SimpleNamespace:
    """N flat pictures of a few colours; the captions of a colour have features around one direction."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, len(directions), N)
    pixels = (marks[kinds].numpy()[:, None, None] + rng.integers(-8, 9, (N, 8, 8, 3))).clip(0, 255).astype(np.uint8)
    noise = torch.from_numpy(rng.normal(0, 0.05, (2 * N, directions.shape[1]))).float()
    texts = F.normalize(directions[np.repeat(kinds, 2)] + noise, dim=1).numpy()
    captions = np.arange(2 * N).reshape(N, 2)
    told = {"captions_of_image": list(captions), "normalisation": (frozen_text_clip.MEAN, frozen_text_clip.STD)}
    told["texts"] = [f"caption {number} of {seed}" for number in range(2 * N)]
    return SimpleNamespace(pixels=pixels, text_features=texts, captions=captions, **told)


@pytest.fixture(scope="module")
def splits():
    generator = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(8, 6, generator=generator), dim=1)
    marks = torch.randint(20, 236, (8, 3), generator=generator)
    return split_of(96, 1, directions, marks), split_of(32, 2, directions, marks)


class Mean(torch.nn.Module):
    """A backbone of three features: the mean colours."""

    def forward(self, images):
        return images.mean(dim=(2, 3))


def test_captions_are_drawn_evenly_and_never_from_the_padding(splits):
    data = SimpleNamespace(
        captions=np.array([[0, 1, 2], [3, -1, -1], [4, 5, -1]]), text_features=np.eye(6, dtype=np.float32)
    )
    drawn = []
    for number in range(600):
        features, texts, captions = stage.dataset.draw_captions(
            data, [0, 1, 2], view_generator(number), torch.device("cpu")
        )
        assert torch.equal(features.argmax(dim=1), texts) and captions.tolist() == data.captions.tolist()
        drawn.append(texts.tolist())
    _, texts, _ = stage.dataset.draw_captions(data, [1], view_generator(0), torch.device("cpu"), further=6)
    assert texts[0] == 3 and sorted(texts[1:].tolist()) == [0, 1, 2, 3, 4, 5]  # then others, none of them twice
    counts = np.bincount(np.array(drawn).ravel(), minlength=6)
    assert counts[3] == 600 and (np.abs(counts[:3] - 200) < 50).all() and (np.abs(counts[4:] - 300) < 50).all()


def test_batches_depend_on_their_place_alone(splits):
    train, _ = splits

    def batch(*place):
        return next(stage.dataset.make_batches(train, [[3, 1, 2]], Augmentation(), torch.device("cpu"), *place))

    first, again, other = batch(0, 0, 1), batch(0, 0, 1), batch(0, 0, 2)
    assert first.indices == [3, 1, 2] and first.images.shape == (3, 3, 8, 8)
    assert torch.equal(first.images, again.images) and torch.equal(first.texts, again.texts)
    assert not torch.equal(first.images, other.images)
    assert (first.captions == first.texts[:, None]).any(dim=1).all()


def test_the_linear_head_learns_what_is_linear_and_leaves_the_backbone(splits):
    train, val = splits
    keywords = {"batch_size": 32, "temperature": 0.1, "further": 0, "seed": 0, "device": torch.device("cpu")}
    head, value, best_epoch = stage.linear_baseline.train_linear_head(Mean(), train, val, epochs=100, **keywords)
    _, start, _ = stage.linear_baseline.train_linear_head(Mean(), train, val, epochs=1, **keywords)
    assert value > start + 0.1 and 1 <= best_epoch <= 100
    torch.manual_seed(1)  # nor does the head depend on what was drawn before it
    again, *rest = stage.linear_baseline.train_linear_head(Mean(), train, val, epochs=100, **keywords)
    assert rest == [value, best_epoch] and torch.equal(again.weight, head.weight)

    class WithHead(torch.nn.Module):  # the head takes the backbone's features as they are
        def forward(self, images):
            return F.normalize(head(Mean()(images)), dim=1)

    features = stage.dataset.encode_pixels(WithHead(), val, torch.device("cpu"))
    recall = stage.linear_baseline.val_recall(features, val, train)
    assert stage.linear_baseline.mean_recall(recall) == pytest.approx(value, abs=0.02)


def test_train_captions_are_in_the_way_of_few_val_captions(splits, monkeypatch):
    train, val = splits
    features = F.normalize(torch.randn(len(val.pixels), val.text_features.shape[1]), dim=1)
    to_text, to_image = stage.linear_baseline.val_recall(features, val, train)
    assert to_text.num_gallery == len(val.texts) + len(train.texts) == 256 and to_image.num_gallery == 32
    shared = SimpleNamespace(texts=[*val.texts[:10], *train.texts[10:]], text_features=train.text_features)
    assert (
        stage.linear_baseline.val_recall(features, val, shared)[0].num_gallery == 246
    )  # val's own are in nobody's way
    for enough in (1, len(val.texts), len(val.texts) + 3):
        monkeypatch.setattr(stage.linear_baseline, "ENOUGH_CAPTIONS", enough)
        to_text, _ = stage.linear_baseline.val_recall(features, val, train)
        assert to_text.num_gallery == max(len(val.texts), enough)


def test_the_baselines_state_is_that_of_a_head_of_one_layer():
    encoder = frozen_text_clip.CLIPImageEncoder("resnet18", 8, image_size=32)
    linear = torch.nn.Linear(512, 8)
    plain = frozen_text_clip.CLIPImageEncoder("resnet18", 8, head_layers=1, image_size=32)
    plain.load_state_dict(stage.linear_baseline.with_linear_head(encoder, linear))
    images = torch.randn(2, 3, 32, 32)
    expected = F.normalize(linear(encoder.eval().backbone(images)), dim=1)
    torch.testing.assert_close(plain.eval()(images), expected)
