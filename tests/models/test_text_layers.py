"""Holding the blocks of a text encoder."""

import pytest
import torch
from small_clips import bert_clip, open_clip_vit

from clipfh.models.clip import load_clip
from clipfh.models.text_layers import follows_text_blocks, hold_text_blocks, is_in_text_block

TOKENS = torch.tensor([[3, 7, 2, 9, 4, 1] + 6 * [0]]).repeat(4, 1)  # four times one text

AFTER = {
    "tiny-vit": {"ln_final.weight", "ln_final.bias", "text_projection"},
    "open_clip": {"ln_final.weight", "ln_final.bias", "text_projection"},
    "bert": {"text.proj.weight"},
}


@pytest.fixture(params=AFTER)
def named(request, tmp_path):
    build = {"tiny-vit": lambda: load_clip("tiny-vit", "random").model, "open_clip": open_clip_vit}
    return request.param, build.get(request.param, lambda: bert_clip(tmp_path))()


def test_what_follows_the_blocks_learns_and_the_rest_of_the_text_encoder_does_not(named):
    name, model = named
    model.train()
    model.visual.requires_grad_(False)
    hold_text_blocks(model)
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == AFTER[name] | {"logit_scale"}
    assert not any(weight.requires_grad for weight in model.visual.parameters())  # which is not its business
    context = getattr(model, "context_length", None) or TOKENS.shape[1]
    tokens = torch.nn.functional.pad(TOKENS, (0, context - TOKENS.shape[1]))
    features = model.encode_text(tokens)
    assert torch.equal(features, features[:1].expand_as(features))  # no dropout
    features.square().sum().backward()
    of_text = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert of_text == AFTER[name]


def test_dropout_is_what_is_turned_off(tmp_path):
    model = bert_clip(tmp_path).train()
    features = model.encode_text(TOKENS)
    assert not torch.allclose(features[0], features[1])  # or the test above could not fail


@pytest.mark.parametrize(
    ("name", "in_block", "after"),
    [
        ("transformer.resblocks.3.mlp.c_fc.weight", True, False),
        ("text.transformer.resblocks.0.ln_1.bias", True, False),
        ("text.transformer.encoder.layer.5.output.dense.weight", True, False),
        ("text.transformer.encoder.block.0.layer.0.SelfAttention.q.weight", True, False),
        ("text.transformer.h.0.attn.c_attn.weight", True, False),
        ("token_embedding.weight", False, False),
        ("positional_embedding", False, False),
        ("text.cls_emb", False, False),
        ("text.transformer.embeddings.LayerNorm.weight", False, False),
        ("text.transformer.shared.weight", False, False),
        ("text.transformer.encoder.final_layer_norm.weight", False, True),
        ("text.ln_final.weight", False, True),
        ("text.proj.2.weight", False, True),
        ("text_projection", False, True),
        ("logit_scale", False, False),
        ("logit_bias", False, False),
        ("visual.transformer.resblocks.3.mlp.c_fc.weight", False, False),
        ("visual.proj", False, False),
    ],
)
def test_names_of_text_encoders(name, in_block, after):
    assert (is_in_text_block(name), follows_text_blocks(name)) == (in_block, after)
