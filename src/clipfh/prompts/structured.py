"""Token-safe prompts: what identifies an item, in whole clauses, within the 77 tokens that CLIP reads.

A longer prompt is cut by the tokenizer in silence, and what it loses is the end: in shop texts, after a marketing
sentence, often the very attributes that tell two items apart.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from clipfh.prompts.clause_topics import is_visible
from clipfh.prompts.clauses import clean_text, descriptive_clauses, split_clauses, split_sentences
from clipfh.prompts.description import Description
from clipfh.prompts.plain import name_from_item_id, plain_prompt, says_something
from clipfh.prompts.tokens import CONTEXT_LENGTH, START_AND_END, Tokenizer, token_ids

_OPENING = "a photo of "
_ARTICLE = re.compile(r"^(?:an?|the)\s+", re.IGNORECASE)
_LAST_RESORT = "a photo of an item"
_SHORTEST_CONTEXT = 8  # the last resort has 7 tokens
_MAX_CHARACTERS_PER_TOKEN = 32  # the longest entries of CLIP's vocabulary

Fits = Callable[[str], bool]
Shortening = Literal["", "words", "characters"]


@dataclass(frozen=True)
class StructuredPrompt:
    """A prompt and what became of its description.

    Attributes:
        text: the prompt; never empty, never over the context length.
        left_out: number of clauses of marketing, sizing, care, sale, styling and serving text.
        no_room: number of clauses that describe the item and did not fit.
        shortened: "words" where a single clause was cut between two words, "characters" where within a word.
    """

    text: str
    left_out: int = 0
    no_room: int = 0
    shortened: Shortening = ""


def token_safe_prompt(
    description: Description,
    tokenizer: Tokenizer | None = None,
    context_length: int = CONTEXT_LENGTH,
    item_id: str = "",
) -> str:
    """The text of `structure_prompt`."""
    return structure_prompt(description, tokenizer, context_length, item_id).text


def structure_prompt(
    description: Description,
    tokenizer: Tokenizer | None = None,
    context_length: int = CONTEXT_LENGTH,
    item_id: str = "",
) -> StructuredPrompt:
    """Build a prompt of at most `context_length` tokens, start and end tokens counted, for any Unicode text.

    It leads with colour, category and attributes. The sentences that name something visible follow, then the others:
    each whole, or as many of its comma clauses from the first on as fit. Same input, same prompt.

    Args:
        description: what the dataset says of the identity; any part may be empty.
        tokenizer: counts the tokens; by default that of OpenAI's CLIP.
        context_length: tokens that the text encoder takes.
        item_id: is said too where it is a name ("Granny-Smith").

    Raises:
        ValueError: `context_length` is under 8.
    """
    if context_length < _SHORTEST_CONTEXT:
        raise ValueError(f"context_length must be at least {_SHORTEST_CONTEXT}, not {context_length}")
    fits = _fits(tokenizer, context_length)
    attributes = [sentence for text in description.attributes for sentence in split_sentences(text)]
    sentences = [sentence for line in description.lines for sentence in split_sentences(line)]
    described = [clauses for clauses in map(descriptive_clauses, sentences) if clauses]
    is_known = says_something(clean_text(f"{description.color} {description.category}"))
    if not (described or attributes or is_known or name_from_item_id(item_id)):
        described = list(map(split_clauses, sentences))  # marketing beats "a photo of item 0002"
    described.sort(key=lambda clauses: not any(map(is_visible, clauses)))  # stable: within each kind, the shop's order
    units = [(", ", [attribute]) for attribute in attributes] + [(". ", clauses) for clauses in described]
    left_out = sum(len(split_clauses(sentence)) for sentence in sentences) - sum(map(len, described))

    # a text that is all there is may be a prompt already ("a photo of my red mug"): it is not given a second lead
    start = _lead(description, item_id, fits) if is_known or not units else StructuredPrompt("")
    built = _fill(start, units, fits)
    return replace(built if built.text else _lead(description, item_id, fits), left_out=left_out)


def _fits(tokenizer: Tokenizer | None, context_length: int) -> Fits:
    """A test for texts that have at least one token and, with start and end tokens, no more than `context_length`."""
    encode = tokenizer.encode if tokenizer is not None else token_ids
    num_special = getattr(tokenizer, "num_special", START_AND_END)

    def fits(text: str) -> bool:
        if len(text) > context_length * _MAX_CHARACTERS_PER_TOKEN:
            return False  # not worth counting: byte-pair encoding takes quadratic time on a long word
        return 0 < len(encode(text)) <= context_length - num_special

    return fits


def _lead(description: Description, item_id: str, fits: Fits) -> StructuredPrompt:
    """The plain prompt, shortened only where colour, category and name alone are too long."""
    cleaned = Description(category=clean_text(description.category), color=clean_text(description.color))
    text = clean_text(plain_prompt(cleaned, clean_text(item_id)))
    if fits(text):
        return StructuredPrompt(text)
    return _shorten(_OPENING, text.removeprefix(_OPENING), fits) or StructuredPrompt(
        _LAST_RESORT, shortened="characters"
    )


def _fill(start: StructuredPrompt, units: list[tuple[str, list[str]]], fits: Fits) -> StructuredPrompt:
    """Add (separator, clauses) units while they fit; only the first one is shortened, where not even a clause fits."""
    text, shortened, no_room = start.text, start.shortened, 0
    for number, (separator, clauses) in enumerate(units):
        opening = text + separator if text else ""
        new = [clause for clause in dict.fromkeys(clauses) if not _says(text, clause)]
        count = next((n for n in range(len(new), 0, -1) if fits(opening + ", ".join(new[:n]))), 0)
        if count:
            text = opening + ", ".join(new[:count])
        elif new and number == 0 and not shortened and (part := _shorten(opening, new[0], fits)):
            text, shortened, count = part.text, part.shortened, 1
        no_room += len(new) - count
    return StructuredPrompt(text, no_room=no_room, shortened=shortened)


def _says(text: str, clause: str) -> bool:
    """Whether the clause, apart from its article, is in the text already: shops say a feature twice."""
    words = re.escape(_ARTICLE.sub("", clause).casefold())
    return re.search(rf"(?<!\w){words}(?!\w)", text.casefold()) is not None


def _shorten(opening: str, clause: str, fits: Fits) -> StructuredPrompt | None:
    """`opening` with as many words of the clause as fit, or of its first word as many characters; None if not one."""
    words = clause.split(" ")
    count = _longest(len(words), lambda n: fits(opening + " ".join(words[:n])))
    if count:
        return StructuredPrompt(opening + " ".join(words[:count]), shortened="words")
    count = _longest(len(words[0]), lambda n: fits(opening + words[0][:n]))
    return StructuredPrompt(opening + words[0][:count], shortened="characters") if count else None


def _longest(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest n of 1..limit found to fit by bisection, 0 if none.

    A longer text can have fewer tokens ("th" + "e"), so this may stop short of the very longest.
    """
    best, low, high = 0, 1, limit
    while low <= high:
        middle = (low + high) // 2
        if fits(middle):
            best, low = middle, middle + 1
        else:
            high = middle - 1
    return best
