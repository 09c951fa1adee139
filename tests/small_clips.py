"""CLIPs of random weights that are built in a moment."""

from pathlib import Path

import pytest
from torch import nn

import clipfh.models.torchvision_guard  # noqa: F401  (before open_clip)

import open_clip  # isort: skip


def open_clip_vit() -> nn.Module:
    """open_clip's own image encoder and text encoder, whose attention is `nn.MultiheadAttention`."""
    vision = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2}
    return open_clip.model.CLIP(24, vision, text)


def bert_clip(folder: Path) -> nn.Module:
    """EfficientNet-Lite0 and a small BERT of transformers, as small-clip has them, with random weights."""
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    transformers.BertConfig(vocab_size=50, **small).save_pretrained(folder)
    vision = {"timm_model_name": "tf_efficientnet_lite0", "image_size": 32, "timm_pool": "avg", "timm_proj": "mlp"}
    text = {"hf_model_name": str(folder), "hf_model_pretrained": False, "hf_pooler_type": "mean_pooler"}
    return open_clip.model.CustomTextCLIP(24, vision, {**text, "hf_proj_type": "linear", "context_length": 12})
