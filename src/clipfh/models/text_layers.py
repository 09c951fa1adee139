"""The blocks of a text encoder, what stands before them, and what follows: and holding all but the last."""

import re

from torch import nn

from clipfh.models.clip import is_text_parameter

_BLOCK = re.compile(r"\.(resblocks|layers?|blocks?|h)\.\d+\.")  # of open_clip; BERT, T5 and the like
_EMBEDDING = re.compile(r"emb|shared\.")  # token and position embeddings, the class token; T5's


def is_in_text_block(name: str) -> bool:
    """Whether a parameter's name belongs to a block of the text encoder."""
    return is_text_parameter(name) and _BLOCK.search(f".{name}") is not None


def follows_text_blocks(name: str) -> bool:
    """Whether a parameter's name belongs to what follows the blocks of the text encoder: last norm, projection."""
    return is_text_parameter(name) and not is_in_text_block(name) and _EMBEDDING.search(name) is None


def hold_text_blocks(model: nn.Module) -> None:
    """Keep the embeddings and blocks of a CLIP's text encoder as they are, and let what follows them learn.

    Held parameters get no gradient, and nothing is dropped out: the blocks make of a text what they make of it in
    retrieval. As nothing before them learns, the backward pass ends behind them. To be called after `model.train()`,
    which turns dropout on.
    """
    for name, parameter in model.named_parameters():
        if is_text_parameter(name):
            parameter.requires_grad_(follows_text_blocks(name))
    tower = getattr(model, "text", None)  # open_clip's own text encoder, whose parts are the CLIP's, has no dropout
    if tower is not None:
        tower.eval()
