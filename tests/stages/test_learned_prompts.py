"""Stage 2's learned texts: where their vectors stand, what they teach the loss, and what they leave alone."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hf_folder import write_hf_folder
from places import stage_module

from clipfh.core.errors import InputError
from clipfh.models import parts
from clipfh.models.clip import encode_texts, freeze_text_encoder, load_clip, token_embedding

learned_prompts = stage_module("stage2_img_encoder_finetune", "learned_prompts")
LearnedPrompts, learn = learned_prompts.LearnedPrompts, learned_prompts.learn
SETTINGS = learned_prompts.ClassTexts(text="learned", learned_tokens=4, learned_epochs=20, learned_lr=0.01)
WORDS = ("a", "photo", "of", ".", "x", "y", "red", "dress", "with", "blue", "sleeves")


def of_transformers(folder, words):
    """A CLIP whose text side is open_clip's `CustomTextCLIP`, with a tokenizer of `words` alone."""
    pytest.importorskip("transformers", reason="needs the extra hf")
    write_hf_folder(folder, words)
    return load_clip(f"local-dir:{folder}")


@pytest.fixture(scope="module")
def tiny():
    clip = load_clip("tiny-rn", "random")
    freeze_text_encoder(clip.model)
    return clip


@pytest.fixture(params=["tiny-rn", "custom", "small-clip"])
def clip(request, tmp_path, tiny):
    """One of each way in which open_clip holds a text encoder."""
    if request.param == "small-clip" and not parts.has_parts():
        pytest.skip("needs the extra parts")
    made = {"tiny-rn": lambda: tiny, "custom": lambda: of_transformers(tmp_path, WORDS)}
    clip = made.get(request.param, lambda: load_clip("small-clip", "random"))()
    freeze_text_encoder(clip.model)
    return clip


def clusters(num_classes, dim, photos=5):
    """Unit features of photos around a direction for each identity, and their labels."""
    labels = torch.arange(num_classes).repeat(photos)
    around = F.normalize(torch.randn(num_classes, dim), dim=1)[labels] + 0.3 * torch.randn(len(labels), dim) / dim**0.5
    return F.normalize(around, dim=1), labels


def test_vectors_of_words_give_the_features_of_the_words(clip):
    prompts = LearnedPrompts(clip, 3, 4, seed=0)
    clip.model.eval()
    row = clip.tokenizer(["red dress with sleeves"])[0]
    words = row[row != clip.tokenizer(["."])[0]][:4] if clip.name.startswith("local") else row[1:5]
    with torch.no_grad():
        prompts.contexts[1] = token_embedding(clip.model)(words)
        features = prompts.features(torch.tensor([2, 1]))
        (expected,) = encode_texts(clip, ["a photo of a red dress with sleeves."], "cpu")
    torch.testing.assert_close(features[1], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(features[0], expected, atol=1e-3)
    # and without the hook words are words again
    assert torch.equal(encode_texts(clip, ["a photo of a red dress with sleeves."], "cpu")[0], expected)


def test_only_vectors_of_the_batch_get_a_gradient(clip):
    prompts = LearnedPrompts(clip, 5, 2, seed=0)
    prompts.features(torch.tensor([3, 1])).square().sum().backward()  # constant, yet connected
    prompts.features(torch.tensor([3, 1]))[:, 0].sum().backward()
    assert prompts.contexts.grad.flatten(1).any(dim=1).tolist() == [False, True, False, True, False]
    assert all(value.grad is None for name, value in clip.model.named_parameters() if not name.startswith("visual."))


def test_first_vectors_are_no_louder_than_words_and_of_the_seed(tiny):
    prompts = LearnedPrompts(tiny, 50, 4, seed=3)
    assert prompts.contexts.shape == (50, 4, 128)
    assert prompts.contexts.std().item() == pytest.approx(0.02, rel=0.05)  # open_clip's own, which 0.02 is
    assert torch.equal(prompts.contexts, LearnedPrompts(tiny, 50, 4, seed=3).contexts)
    assert not torch.equal(prompts.contexts, LearnedPrompts(tiny, 50, 4, seed=4).contexts)
    weight = token_embedding(tiny.model).weight
    with torch.no_grad():
        weight.mul_(0.1)
        quiet = LearnedPrompts(tiny, 50, 4, seed=3).contexts
        weight.mul_(10)
    assert quiet.std().item() == pytest.approx(0.002, rel=0.05)


def test_texts_learn_to_find_the_photos_of_their_identity(tiny):
    features, labels = clusters(12, 256)
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    state = torch.get_rng_state()
    tiny.model.train()
    texts, line = learn(LearnedPrompts(tiny, 12, 4, 0), features, labels, SETTINGS, precision="float32", seed=0)
    assert texts.shape == (12, 256) and not texts.requires_grad
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(12))
    assert ((texts @ features.T).argmax(dim=1) % 12).tolist() == list(range(12))
    assert line.endswith("in 20 epochs; Rank-1 of 12 texts over their 60 train photos 100.0")
    first, last = (float(word) for word in line.split("loss ")[1].split(" in")[0].split(" to "))
    assert last < first
    # the model is as it was, and what others draw at random is not touched
    assert all(torch.equal(value, before[name]) for name, value in tiny.model.state_dict().items())
    assert tiny.model.training and torch.equal(state, torch.get_rng_state())
    again, _ = learn(LearnedPrompts(tiny, 12, 4, 0), features, labels, SETTINGS, precision="float32", seed=0)
    assert torch.equal(again, texts)


def test_no_more_texts_are_encoded_at_once_than_a_batch_has(tiny, monkeypatch):
    monkeypatch.setattr(learned_prompts, "BATCH", 8)
    encoded, encode_text = [], tiny.model.encode_text
    monkeypatch.setattr(tiny.model, "encode_text", lambda ids: encoded.append(len(ids)) or encode_text(ids))
    features, labels = clusters(30, 256, photos=2)
    once = replace(SETTINGS, learned_epochs=1)
    texts, _ = learn(LearnedPrompts(tiny, 30, 1, 0), features, labels, once, precision="float32", seed=0)
    assert len(texts) == 30 and max(encoded) == 8 and len(encoded) == 8 + 4


def test_a_tokenizer_without_the_placeholders_is_refused(tmp_path):
    clip = of_transformers(tmp_path, [word for word in WORDS if word not in ("x", "y")])
    with pytest.raises(InputError, match=r"has 0 tokens for the 4 placeholders of 'a photo of a x x x x.'"):
        LearnedPrompts(clip, 3, 4, seed=0)


def test_a_text_longer_than_the_context_is_refused(tiny):
    LearnedPrompts(tiny, 3, 70, seed=0)
    with pytest.raises(InputError, match=r"for the 80 placeholders .*--learned_tokens"):
        LearnedPrompts(tiny, 3, 80, seed=0)


def test_a_loss_that_is_no_number_is_refused(tiny):
    features, labels = clusters(3, 256)
    features[4] = torch.nan
    with pytest.raises(InputError, match=r"not finite .*--learned_lr"):
        learn(LearnedPrompts(tiny, 3, 2, 0), features, labels, SETTINGS, precision="float32", seed=0)


def test_learned_texts_need_the_term_that_takes_them():
    SETTINGS.require(("supcon", "i2t"))
    replace(SETTINGS, text="prompts").require(("supcon",))
    with pytest.raises(InputError, match=r"--loss supcon\+id has no i2t"):
        SETTINGS.require(("supcon", "id"))
