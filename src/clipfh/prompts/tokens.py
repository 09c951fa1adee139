"""How many tokens a text has for a model: counted by its own tokenizer, against its own length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

CONTEXT_LENGTH = 77  # tokens that CLIP's text encoder takes, start and end token included
START_AND_END = 2


class Tokenizer(Protocol):
    """What counting needs of a tokenizer; open_clip's `SimpleTokenizer` is one."""

    def encode(self, text: str) -> list[int]:
        """Token ids of the text without the start and end tokens."""
        ...


@lru_cache(maxsize=1)
def clip_tokenizer() -> Tokenizer:
    """The tokenizer of OpenAI's CLIP, from open_clip; loaded at the first call, as it takes seconds."""
    import clipfh.models.torchvision_guard  # noqa: F401, I001  (before open_clip, see there)
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=CONTEXT_LENGTH)


@lru_cache(maxsize=1 << 14)
def token_ids(text: str) -> tuple[int, ...]:
    """Token ids of a text without the start and end tokens, by open_clip's own tokenizer, uncut."""
    return tuple(clip_tokenizer().encode(text))


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
    from clipfh.models.names import canonical_model_name, load_tokenizer  # takes seconds: open_clip

    return token_counter(load_tokenizer(canonical_model_name(model)))
