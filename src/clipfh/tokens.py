"""How many tokens a text has for a model: counted by its own tokenizer, against its own length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from clipfh.prompts import CONTEXT_LENGTH, START_AND_END, clip_tokenizer


@dataclass(frozen=True)
class TokenCounter:
    """Counts tokens as one model reads them, uncut.

    Attributes:
        tokenizer: open_clip's, of any kind.
        context_length: how many tokens the text encoder takes, `num_special` included.
        num_special: start and end tokens that are added to a text.
    """

    tokenizer: Any
    context_length: int = CONTEXT_LENGTH
    num_special: int = START_AND_END

    def encode(self, text: str) -> list[int]:
        """Token ids of the text without the special ones."""
        inner = getattr(self.tokenizer, "tokenizer", None)  # of transformers, in open_clip's wrapper
        if inner is None:
            return self.tokenizer.encode(text)
        clean = getattr(self.tokenizer, "clean_fn", str)
        return list(inner(clean(text), add_special_tokens=False, truncation=False, verbose=False)["input_ids"])

    def count(self, text: str) -> int:
        """Number of tokens, the special ones included; over `context_length` the tokenizer cuts the text."""
        return len(self.encode(text)) + self.num_special

    def num_cut(self, prompts: Mapping[str, Sequence[str]]) -> int:
        """How many of the prompts of all identities are cut."""
        return sum(self.count(text) > self.context_length for texts in prompts.values() for text in texts)


def token_counter(tokenizer: Any) -> TokenCounter:
    """The counter of an open_clip tokenizer."""
    inner = getattr(tokenizer, "tokenizer", None)
    special = START_AND_END if inner is None else inner.num_special_tokens_to_add(pair=False)
    return TokenCounter(tokenizer, tokenizer.context_length, special)


@lru_cache(maxsize=4)
def counter_of(model: str | None) -> TokenCounter:
    """The counter of a model by its name; None: CLIP's byte pairs, 77 of them.

    Raises:
        InputError: an unknown model, or one whose tokenizer cannot be had here.
    """
    if model is None:
        return TokenCounter(clip_tokenizer())
    from clipfh.model_names import canonical_model_name, load_tokenizer  # takes seconds: open_clip

    return token_counter(load_tokenizer(canonical_model_name(model)))
