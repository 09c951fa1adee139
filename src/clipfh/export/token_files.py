"""A model's tokenizer as the files that transformers and the package tokenizers read."""

from pathlib import Path
from typing import Any

import clipfh.models.torchvision_guard  # noqa: F401  (before open_clip)
from clipfh.core.errors import InputError
from clipfh.models.clip import LoadedClip

from open_clip.tokenizer import HFTokenizer, SimpleTokenizer  # isort: skip

START, END = "<|startoftext|>", "<|endoftext|>"  # as transformers writes them; open_clip's own have other names
PADDING = 0  # open_clip's padding; nothing after the end token is looked at
TOKENIZER = "tokenizer.json"


def transformers_tokenizer(clip: LoadedClip) -> Any:
    """The tokenizer of `clip` as one of transformers.

    Raises:
        InputError: it is of a kind that has no such form.
    """
    tokenizer = clip.tokenizer
    if isinstance(tokenizer, HFTokenizer):
        return tokenizer.tokenizer
    if not isinstance(tokenizer, SimpleTokenizer):
        raise InputError(f"the tokenizer of {clip.name} has no file that other libraries read; use --format open_clip")
    from transformers import CLIPTokenizer  # takes seconds

    vocabulary = {token: number for token, number in tokenizer.encoder.items() if number < len(tokenizer.encoder) - 2}
    vocabulary |= {START: tokenizer.sot_token_id, END: tokenizer.eot_token_id}
    merges = [tuple(pair) for pair in tokenizer.bpe_ranks]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=tokenizer.context_length)


def write_tokenizer(clip: LoadedClip, folder: Path, texts: list[str]) -> None:
    """Write `tokenizer.json`, which cuts and pads to the context length L as the model wants it.

    Args:
        clip: the model.
        folder: of the file.
        texts: on which its token ids must be those of the model's own tokenizer.

    Raises:
        InputError: they are others, or there is no such form.
    """
    from tokenizers import Tokenizer

    source = transformers_tokenizer(clip)
    if not getattr(source, "is_fast", False):
        raise InputError(f"the tokenizer of {clip.name} has no {TOKENIZER}; use --format open_clip")
    length = clip.tokenizer.context_length
    tokenizer = Tokenizer.from_str(source.backend_tokenizer.to_str())
    pad = PADDING if isinstance(clip.tokenizer, SimpleTokenizer) else source.pad_token_id
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=pad, pad_token=tokenizer.id_to_token(pad))
    tokenizer.save(str(folder / TOKENIZER))
    ours = clip.tokenizer(texts).tolist()
    for text, expected, found in zip(texts, ours, tokenizer.encode_batch(texts), strict=True):
        if found.ids != expected:
            raise InputError(
                f"the tokenizer of {clip.name} cannot be written as {TOKENIZER}: {text[:60]!r} has other token ids. "
                "Use --format open_clip"
            )
