"""The losses and batches of stages 2 and 3, loaded by path: both stages have a loss.py and a dataset.py."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from places import stage_module

from clipfh.core.errors import InputError
from clipfh.images.augment import Augmentation
from clipfh.images.pixels import Pixels
from clipfh.losses import (
    batch_hard_triplet_loss,
    distillation_loss,
    identity_loss,
    image_to_text_loss,
    info_nce_loss,
    multi_similarity_loss,
    supcon_loss,
)
from clipfh.training.data import TrainPhotos

B, D, C = 8, 6, 4
LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
SCALE = torch.tensor(10.0)
PHOTOS = [3, 0, 11, 7, 8, 1, 9, 4, 2, 5, 6, 10]  # the batch has the first B of them


image_encoder = stage_module("stage2_img_encoder_finetune", "loss")
image_batches = stage_module("stage2_img_encoder_finetune", "dataset")
joint = stage_module("stage3_joint_img_text_finetune", "loss")
joint_batches = stage_module("stage3_joint_img_text_finetune", "dataset")


def random_features(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(seed))


# ---- parse_terms


def test_terms_keep_their_order():
    assert image_encoder.parse_terms("triplet", 4, 2) == ("triplet",)
    assert image_encoder.parse_terms("id+triplet+center", 4, 2) == ("id", "triplet", "center")
    assert joint.parse_terms("supcon+id") == ("supcon", "id")


@pytest.mark.parametrize("loss", ["", "triplet+", "magic", "Triplet", "triplet, center", "triplet+magic"])
def test_an_unknown_term_is_refused_with_the_valid_ones(loss):
    with pytest.raises(InputError, match="triplet, center, id, i2t, supcon, ms, distill"):
        image_encoder.parse_terms(loss, 4, 2)
    with pytest.raises(InputError, match="supcon, infonce, id, distill"):
        joint.parse_terms(loss)


@pytest.mark.parametrize(
    ("loss", "p", "k"), [("triplet", 4, 1), ("center+supcon", 4, 1), ("triplet", 1, 4), ("id", 1, 4)]
)
def test_a_term_that_stays_zero_is_refused(loss, p, k):
    with pytest.raises(InputError, match=f"--{'k' if k == 1 else 'p'} 2 or more"):
        image_encoder.parse_terms(loss, p, k)


@pytest.mark.parametrize("parse_terms", [lambda loss: image_encoder.parse_terms(loss, 4, 2), joint.parse_terms])
def test_a_repeated_term_is_refused(parse_terms):
    with pytest.raises(InputError, match="twice"):
        parse_terms("supcon+id+supcon")


@pytest.mark.parametrize("loss", ["id", "distill", "id+distill"])
def test_a_joint_loss_must_train_the_text_encoder(loss):
    with pytest.raises(InputError, match="add supcon or infonce"):
        joint.parse_terms(loss)


def test_a_loss_must_teach_something():
    with pytest.raises(InputError, match="--loss distill alone"):
        image_encoder.parse_terms("distill", 4, 2)
    assert image_encoder.parse_terms("distill+id", 4, 2) == ("distill", "id")


# ---- stage 2


@pytest.fixture
def all_terms():
    torch.manual_seed(0)
    texts = F.normalize(random_features(C, 1), dim=1)
    terms, same = tuple(image_encoder.WEIGHTS), torch.tensor([0, 1, 2, 2])
    loss = image_encoder.ImageEncoderLoss(
        terms, texts, same, num_photos=len(PHOTOS), distill_weight=0.3, i2t_weight=0.7
    )
    loss.anchors.copy_(F.normalize(random_features(len(PHOTOS), 2), dim=1))
    return loss


def test_stage2_terms_are_the_weighted_losses(all_terms):
    features, weights = random_features(B, 0), image_encoder.WEIGHTS
    unit = F.normalize(features, dim=1)
    all_terms.eval()  # the neck's batch norm, called twice below, keeps its statistics
    values = all_terms(features, LABELS, SCALE, PHOTOS[:B])
    expected = {
        "triplet": batch_hard_triplet_loss(unit, LABELS, image_encoder.TRIPLET_MARGIN),
        "center": all_terms.center(unit, LABELS),
        "id": identity_loss(all_terms.classifier(features)[1], LABELS),
        "i2t": 0.7
        * image_to_text_loss(
            unit,
            F.normalize(random_features(C, 1), dim=1),
            LABELS,
            SCALE,
            label_smoothing=0.1,
            same_text=torch.tensor([0, 1, 2, 2]),
        ),
        "supcon": supcon_loss(unit, LABELS, image_encoder.SUPCON_LOGIT_SCALE),
        "ms": multi_similarity_loss(unit, LABELS, **image_encoder.MULTI_SIMILARITY),
        "distill": 0.3 * distillation_loss(features, random_features(len(PHOTOS), 2)[PHOTOS[:B]]),
    }
    assert list(values) == list(weights)
    for name, value in expected.items():
        torch.testing.assert_close(values[name], weights[name] * value)


def test_stage2_holds_only_the_parameters_of_its_terms():
    texts, same = F.normalize(random_features(C, 1), dim=1), torch.arange(C)
    assert not list(image_encoder.ImageEncoderLoss(("triplet", "i2t"), texts, same).parameters())
    assert image_encoder.ImageEncoderLoss(("center",), texts, same).classifier is None
    assert image_encoder.ImageEncoderLoss(("id",), texts, same).center is None
    state = image_encoder.ImageEncoderLoss(("i2t",), texts, same).state_dict()
    assert not state  # the prompt features are made again from the prompts
    kept = image_encoder.ImageEncoderLoss(("i2t",), texts, same, keep_texts=True).state_dict()
    assert torch.equal(kept.pop("text_features"), texts) and not kept  # what was learned
    anchored = image_encoder.ImageEncoderLoss(("i2t", "distill"), texts, same, num_photos=12)
    assert not list(anchored.parameters())
    assert {name: value.shape for name, value in anchored.state_dict().items()} == {"anchors": (12, D)}
    assert anchored.anchors.isnan().all()  # forgotten ones would stop the run


def test_centers_follow_the_unit_features_whatever_the_weight_of_the_term(all_terms):
    features = random_features(B, 0)
    expected = image_encoder.CenterLoss(*all_terms.center.centers.shape)
    expected.update(F.normalize(features, dim=1), LABELS, 0.3)
    all_terms(features, LABELS, SCALE, PHOTOS[:B])
    assert not all_terms.center.centers.any()  # the loss alone moves nothing
    all_terms.update_centers(features, LABELS, 0.3)
    assert torch.equal(all_terms.center.centers, expected.centers) and expected.centers.any()


def test_identities_with_one_prompt_are_one_class_of_i2t(all_terms):
    def i2t(labels: torch.Tensor) -> torch.Tensor:
        return all_terms(random_features(B, 0), labels, SCALE, PHOTOS[:B])["i2t"]

    swapped = torch.where(LABELS == 2, 3, torch.where(LABELS == 3, 2, LABELS))  # 2 and 3 share their prompt
    torch.testing.assert_close(i2t(LABELS), i2t(swapped))
    assert not torch.isclose(i2t(LABELS), i2t(LABELS.roll(2)))


# ---- stage 3


def test_stage3_terms_are_the_losses_over_images_and_texts():
    torch.manual_seed(0)
    loss = joint.JointLoss(joint.TERMS, D, C, num_photos=len(PHOTOS), num_prompts=7, distill_weight=0.3).eval()
    loss.image_anchors.copy_(random_features(len(PHOTOS), 2))
    loss.text_anchors.copy_(random_features(7, 3))
    images, texts, rows = random_features(B, 0), random_features(C, 1), torch.tensor([5, 0, 6, 2])
    anchored = (PHOTOS[:B], rows)
    values = loss(images, texts, LABELS, torch.arange(C), LABELS, LABELS, torch.arange(C), SCALE, *anchored)
    unit_images, unit_texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    both = torch.cat([unit_images, unit_texts])
    torch.testing.assert_close(values["supcon"], supcon_loss(both, torch.cat([LABELS, torch.arange(C)]), SCALE))
    torch.testing.assert_close(values["infonce"], info_nce_loss(unit_images, unit_texts[LABELS], SCALE, LABELS))
    torch.testing.assert_close(values["id"], identity_loss(loss.classifier(images)[1], LABELS))
    turned = distillation_loss(images, random_features(len(PHOTOS), 2)[PHOTOS[:B]])
    turned += distillation_loss(texts, random_features(7, 3)[rows])
    torch.testing.assert_close(values["distill"], 0.3 * turned)
    assert list(values) == list(joint.TERMS)
    assert {"image_anchors", "text_anchors"} <= loss.state_dict().keys()
    assert not joint.JointLoss(("supcon", "infonce"), D, C, num_photos=12, num_prompts=7).state_dict()


def test_several_prompts_of_one_identity_are_positives():
    # one photo, its prompt along it, and a second prompt elsewhere: as a positive, the second is drawn to the photo
    images = torch.eye(D)[:2]
    texts = torch.eye(D)[[0, 2, 1]].requires_grad_()
    image_labels, text_labels = torch.tensor([0, 1]), torch.tensor([0, 0, 1])
    loss = joint.JointLoss(("supcon",), D, 2)
    groups, own = image_labels, torch.arange(3)
    loss(images, texts, image_labels, text_labels, torch.tensor([0, 2]), groups, own, SCALE)["supcon"].backward()
    step = -texts.grad[1]
    assert step @ images[0] > 0 > step @ images[1]  # to its own photo, away from the other identity's


@pytest.mark.parametrize("term", ["supcon", "infonce"])
def test_an_equal_prompt_of_another_identity_is_no_negative(term):
    # identities 0 and 1 have the same words, 2 has others
    images, texts = random_features(6, 0), random_features(3, 1)
    texts[1] = texts[0]
    texts.requires_grad_()
    image_labels = torch.tensor([0, 0, 1, 1, 2, 2])
    groups, own = torch.tensor([0, 0, 0, 0, 2, 2]), torch.tensor([2])
    loss = joint.JointLoss((term,), D, 3)
    loss(images, texts, image_labels, torch.arange(3), image_labels, groups, own, SCALE)[term].backward()
    gradient = texts.grad.clone()
    texts.grad = None
    loss(images, texts, image_labels, torch.arange(3), image_labels, image_labels, torch.arange(3), SCALE)[
        term
    ].backward()
    assert not torch.allclose(gradient, texts.grad)
    if term == "supcon":
        assert not gradient[:2].any() and gradient[2].any()
    # where all have the same words, nothing is learned of text, and nothing is wrong
    nothing = torch.tensor([], dtype=torch.int64)
    value = loss(images, texts, image_labels, torch.arange(3), image_labels, torch.zeros(6).long(), nothing, SCALE)[
        term
    ]
    texts.grad = None
    value.backward()
    assert torch.isfinite(value) and texts.grad.abs().max() < 1e-6


# ---- batches


def make_table(photos_of: dict[str, int]) -> tuple[pd.DataFrame, Pixels]:
    rows = [(f"{item_id}/{n}.jpg", item_id, "train", "") for item_id, count in photos_of.items() for n in range(count)]
    table = pd.DataFrame(rows, columns=["image", "item_id", "split", "camera"])
    # the pixels also hold a val photo before them, and say by their value which photo they are
    images = ("val.jpg", *table["image"])
    array = np.stack([np.full((4, 4, 3), number, dtype=np.uint8) for number in range(len(images))])
    return table, Pixels(array, images, ())


def tokenize(texts):
    return torch.tensor([[int(text)] for text in texts])  # a prompt is its number


CLIP = SimpleNamespace(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255), tokenizer=tokenize)
NONE = Augmentation(min_area=1.0, aspect=0.0, rotation=0.0, flip=0.0, color=0.0)
CPU = torch.device("cpu")


def photos_of(counts: dict[str, int], augmentation: Augmentation = NONE) -> TrainPhotos:
    return TrainPhotos(*make_table(counts), augmentation, CLIP, CPU)


def values_of(images: torch.Tensor) -> list[int]:
    """Which photos they are."""
    return images.mean(dim=(1, 2, 3)).round().int().tolist()


def test_stage2_batches_hold_the_photos_asked_for():
    photos = photos_of({"b": 2, "a": 3})
    assert photos.item_ids == ["a", "b"] and photos.labels.tolist() == [1, 1, 0, 0, 0]
    first, second = image_batches.make_batches(photos, [[4, 0], [1, 2, 3]], 0, 0, 1)
    assert values_of(first.images) == [5, 1] and values_of(second.images) == [2, 3, 4]
    assert first.images.shape == (2, 3, 4, 4) and first.labels.tolist() == [0, 1] and first.indices == [4, 0]


def test_views_depend_on_their_place_alone():
    photos = photos_of({"a": 4}, Augmentation())
    sampler = [[0, 1], [0, 1], [2, 3]]
    runs = [[batch.images for batch in image_batches.make_batches(photos, sampler, 3, 0, 1)] for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    assert not torch.equal(runs[0][0], runs[0][1])  # another batch of the epoch
    for place in ((4, 0, 1), (3, 1, 1), (3, 0, 2)):
        assert not torch.equal(next(image_batches.make_batches(photos, sampler, *place)).images, runs[0][0])


def test_stage2_classes_encode_each_prompt_once(monkeypatch):
    encoded = []

    def encode_texts(clip, texts, device):
        encoded.extend(texts)
        return F.one_hot(tokenize(texts)[:, 0], 5).float()

    monkeypatch.setattr(image_batches, "encode_texts", encode_texts)
    prompts = [["1", "2"], ["3"], ["1"], ["3"], ["1", "2"]]
    features, same = image_batches.class_text_features(CLIP, prompts, CPU)
    assert encoded == ["1", "2", "3"] and same.tolist() == [0, 1, 2, 1, 0]
    half = 0.5**0.5
    expected = torch.tensor([[0, half, half, 0, 0], [0, 0, 0, 1, 0], [0, 1, 0, 0, 0]])
    torch.testing.assert_close(features, expected[[0, 1, 2, 1, 0]])
    encoded.clear()
    features, same = image_batches.class_text_features(CLIP, prompts, CPU, are_read=False)
    assert len(encoded) == 1 and features.shape == (5, 5) and same.tolist() == [0, 1, 2, 3, 4]


def test_stage3_batches_hold_each_prompt_once_and_point_at_it():
    photos = photos_of({"a": 3, "b": 2, "c": 1, "d": 1})
    prompts = {"a": ["10", "11"], "b": ["20"], "c": ["30", "31"], "d": ["20"]}  # b and d have the same words
    pairs = joint_batches.TrainPairs(photos, prompts, CLIP)
    seen = set()
    for batch in pairs.batches([[0, 3, 1, 4, 5, 2, 6]] * 20, 0, 0, 1):
        assert values_of(batch.images) == [1, 4, 2, 5, 6, 3, 7]
        assert batch.image_labels.tolist() == [0, 1, 0, 1, 2, 0, 3]
        distinct = batch.tokens.flatten().tolist()
        assert len(set(distinct)) == len(distinct) == 4  # both of a, the one of b and d, one of c: it has one photo
        texts = batch.tokens[batch.token_row].flatten()
        assert [int(pairs.prompts[row]) for row in batch.prompt_rows] == texts.tolist()
        assert len(texts) == 5 and batch.text_labels.tolist() == [0, 0, 1, 2, 3]
        assert texts[2] == texts[4] == 20 and set(texts[:2].tolist()) == {10, 11} and texts[3] // 10 == 3
        assert torch.equal(batch.text_labels[batch.prompt_of_image], batch.image_labels)
        assert set(batch.prompt_of_image[[0, 2, 5]].tolist()) == {0, 1}  # the photos of a share out its prompts
        assert batch.image_groups.tolist() == [0, 1, 0, 1, 2, 0, 1]  # d goes with b
        assert batch.own_prompts.tolist() == [0, 1, 3]
        seen.update(texts.tolist())
    assert "1 of 4" not in pairs.say_what_prompts_tell_apart() and "2 of 4" in pairs.say_what_prompts_tell_apart()
    assert seen == {10, 11, 20, 30, 31}  # drawn anew in every batch


def test_groups_of_identities_that_share_prompts_are_found_over_several_hops():
    group_of, owners = joint_batches._groups([0, 1, 1, 2, 3, 4], [10, 10, 11, 11, 12, 13])
    assert group_of == {0: 0, 1: 0, 2: 0, 3: 3, 4: 4}
    assert owners == {10: {0, 1}, 11: {1, 2}, 12: {3}, 13: {4}}


def test_what_the_log_says_of_equal_prompts():
    photos = photos_of({"a": 1, "b": 1, "c": 1})
    told = {
        ("1", "2", "3"): None,
        ("1", "1", "3"): "2 of 3 identities have no prompt of their own",
        ("1", "1", "1"): "all 3 identities have the same prompt",
    }
    for prompts, expected in told.items():
        pairs = joint_batches.TrainPairs(
            photos, {name: [text] for name, text in zip("abc", prompts, strict=True)}, CLIP
        )
        line = pairs.say_what_prompts_tell_apart()
        assert line is expected or line.startswith(expected)


def test_stage3_views_by_the_chunk_are_the_same_whenever_they_are_made():
    pairs = joint_batches.TrainPairs(photos_of({"a": 7}, Augmentation()), {"a": ["1"]}, CLIP)
    batch, other = pairs.batches([[0, 1, 2, 3, 4, 5, 6]] * 2, 0, 0, 1, with_images=False)
    assert batch.images is None and batch.image_labels.tolist() == [0] * 7
    first, again, elsewhere = (list(pairs.image_chunks(which, 3)) for which in (batch, batch, other))
    assert [len(chunk) for chunk in first] == [3, 3, 1]
    for one, two, three in zip(first, again, elsewhere, strict=True):
        assert torch.equal(one, two) and not torch.equal(one, three)
