"""Models whose text side is of transformers, as SigLIP's: a small one, planted with a tokenizer of its own.

They need the extra `hf`; without it these tests are skipped, and `test_model_names.py` holds what is said then.
"""

import pytest
import torch
import torch.nn.functional as F
from hf_folder import write_hf_folder
from places import ROOT

from clipfh.models.checkpoint import write_checkpoint
from clipfh.models.clip import encode_texts, load_clip
from clipfh.prompts.description import Description
from clipfh.prompts.structured import structure_prompt
from clipfh.prompts.tokens import counter_of, token_counter

pytest.importorskip("transformers", reason="needs the extra hf")
WORDS = ("a", "red", "blue", "dress", "shirt", "of", "cotton", "with", "sleeves", "photo", "the")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As open_clip saves a SigLIP for the hub: configuration, weights, and a tokenizer that pads with its end token."""
    path = tmp_path_factory.mktemp("siglip")
    write_hf_folder(path, WORDS, init_logit_bias=-10, tokenizer_kwargs={"clean": "canonicalize"})
    return path


def test_it_is_loaded_with_its_own_tokenizer_and_bias(folder, tmp_path):
    clip = load_clip(f"local-dir:{folder}")
    assert clip.mean == (0.5,) * 3 and clip.model.logit_bias == -10
    assert clip.tokenizer(["A red dress!"]).tolist() == [[3, 4, 6, *[1] * 13]]
    features = encode_texts(clip, ["a red dress", "a blue shirt"], "cpu")
    with torch.no_grad():
        clip.model.logit_bias.fill_(-7)  # it is trained by whoever trains with a sigmoid; here it is kept
    path = tmp_path / "fine_tuned_BEST.pth"
    write_checkpoint(path, {**clip.architecture(), "state_dict": clip.model.state_dict()})
    again = load_clip(clip.name, str(path))
    assert again.model.logit_bias == -7
    assert torch.equal(encode_texts(again, ["a red dress", "a blue shirt"], "cpu"), features)


def test_prompts_are_counted_and_made_with_its_tokenizer(folder):
    counter = counter_of(f"local-dir:{folder}")
    assert (counter.context_length, counter.count("a red dress")) == (16, 4)
    assert token_counter(load_clip(f"local-dir:{folder}").tokenizer).count("a red dress") == 4
    description = Description(category="dress", lines=tuple(f"Sleeves of cotton with red {n}." for n in range(9)))
    text = structure_prompt(description, counter, counter.context_length).text
    assert 8 <= counter.count(text) <= 16


def test_a_text_tower_that_reads_its_padding_is_fed_as_it_was_trained(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "model" / "stage4_frozen_text_alignment"))
    from clipfh.models.frozen_text_clip import CLIPTextEncoder

    clip = load_clip(f"local-dir:{folder}")
    texts = ["a red dress", "the photo of a blue shirt with sleeves", "a " * 30]
    with torch.no_grad():
        expected = F.normalize(clip.model.eval().encode_text(clip.tokenizer(texts)), dim=1)
    encoder = CLIPTextEncoder(clip)
    ids, mask = encoder.tokenize(texts)
    assert mask.sum(dim=1).tolist() == [3, 8, 15]  # the end token is the padding, too
    assert torch.equal(encoder(ids, mask), expected)
    assert torch.equal(encoder(torch.where(mask == 1, ids, 0), mask), expected)  # padded otherwise
    assert torch.equal(encoder.encode(texts), expected)
