"""A small model in the form in which open_clip saves one for the hub, with a text tokenizer of a few words."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch

from clipfh.models.clip import open_clip


def write_hf_folder(
    folder: Path, words: Iterable[str], *, init_logit_bias: float | None = None, **text: object
) -> None:
    """Configuration, weights, and a tokenizer that pads with its end token; `text` goes into the text tower's part."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {"</s>": 1, "<unk>": 2, **{word: number for number, word in enumerate(words, 3)}, "<pad>": 0}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    tower = {"context_length": 16, "vocab_size": len(vocabulary), "hf_tokenizer_name": str(folder), "width": 32}
    tower |= {"heads": 2, "layers": 2, "no_causal_mask": True, "proj_bias": True, "pool_type": "last", **text}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    model = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": tower}
    model |= {} if init_logit_bias is None else {"init_logit_bias": init_logit_bias}
    config = {"model_cfg": {**model, "custom_text": True}, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    torch.save(open_clip.model.CustomTextCLIP(**model).state_dict(), folder / "open_clip_pytorch_model.bin")
