"""What a weights file's path tells of its training."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from clipfh.core.errors import InputError
from clipfh.models.checkpoint import write_checkpoint
from clipfh.models.clip import load_clip, open_clip
from clipfh.models.weights_name import weights_named_by


@pytest.mark.parametrize(
    ("model", "path", "tag"),
    [
        ("ViT-B-32", "ViT-B-32.laion400m_e32.safetensors", "laion400m_e32"),
        ("ViT-B-16", "ViT-B-16.dfn2b.safetensors", "dfn2b"),
        ("ViT-B-16", "ViT-B-16-metaclip_400m.pt", "metaclip_400m"),
        ("ViT-L-14", "ViT-L-14.laion2b_s32b_b82k.bin", "laion2b_s32b_b82k"),
        ("ViT-B-32", "vit_b_32-laion400m_e31-d867053b.pt", "laion400m_e31"),
        ("ViT-B-32", "ViT-B-32-OpenAI.safetensors", "openai"),
        ("ViT-B-32", "openai/ViT-B-32.safetensors", "openai"),
        (
            "ViT-B-16",
            "models--timm--vit_base_patch16_clip_224.openai/snapshots/1/open_clip_model.safetensors",
            "openai",
        ),
        ("ViT-B-32", "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K/snapshots/1/a.bin", "laion2b_s34b_b79k"),
        ("ViT-B-16-SigLIP", "models--timm--ViT-B-16-SigLIP/snapshots/1/open_clip_model.safetensors", "webli"),
        ("coca_ViT-L-14", "mscoco_finetuned_laion2B-s13B-b90k.pt", "mscoco_finetuned_laion2b_s13b_b90k"),  # the longest
        ("tiny-vit", "dfn2b_s39b.pt", "dfn2b_s39b"),  # of another architecture, and not dfn2b
        ("ViT-B-32", "my_openaitest.pt", None),  # within a word
        ("ViT-B-32", "laion.safetensors", None),
        ("ViT-B-32", "openai-experiments/mine.safetensors", None),  # a folder counts by its whole name
        ("ViT-B-32", "clip_v1.pt", None),  # a tag of others that is a word of any name
    ],
)
def test_the_tag_of_a_path(model, path, tag):
    named = weights_named_by(Path("/w") / path, model)
    assert (named.tag if named else None) == tag
    if named:
        assert named.part in path


def test_every_tag_is_found_in_the_name_that_our_message_advises():
    for model, tag in open_clip.list_pretrained():
        named = weights_named_by(Path(f"/w/{model}.{tag}.safetensors"), model)
        assert named is not None and named.tag == tag, (model, tag)
        assert named.config == open_clip.get_pretrained_cfg(model, tag)


def test_a_named_file_is_fed_as_its_tag(tmp_path, capsys):
    torch.manual_seed(0)
    state = load_clip("tiny-vit", "random").model.state_dict()
    path = tmp_path / "ViT-L-14.laion2b_s32b_b82k.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    clip = load_clip("tiny-vit", str(path))
    assert (clip.mean, clip.std, clip.quick_gelu) == ((0.5,) * 3, (0.5,) * 3, False)
    said = capsys.readouterr().out
    assert "laion2b_s32b_b82k" in said and "mean 0.5" in said and said.count("\n") == 1
    path = path.rename(tmp_path / "ViT-B-16-SigLIP.webli.safetensors")
    assert load_clip("tiny-vit", str(path)).resize_mode == "squash"


def test_a_stated_tag_wins_over_the_name(tmp_path, capsys):
    torch.manual_seed(0)
    state = load_clip("tiny-vit", "random").model.state_dict()
    path = tmp_path / "a=b.openai.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    named = load_clip("tiny-vit", str(path))
    assert named.quick_gelu and "--pretrained TAG=FILE" in capsys.readouterr().out
    stated = load_clip("tiny-vit", f"laion2b_s32b_b82k={path}")
    assert (stated.mean, stated.quick_gelu, stated.pretrained) == ((0.5,) * 3, False, str(path))
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match=r"openai=...: 'random' is no file"):
        load_clip("tiny-vit", "openai=random")
    ours = tmp_path / "ours.pth"
    write_checkpoint(ours, {**named.architecture(), "state_dict": named.model.state_dict()})
    with pytest.raises(InputError, match="records itself how it was trained"):
        load_clip("tiny-vit", f"openai={ours}")
