"""Shop text taken apart into cleaned sentences and comma clauses."""

import html
import re

from clipfh.prompts.clause_topics import is_left_out, is_visible
from clipfh.prompts.plain import says_something

_TAG = re.compile(r"<[^<>]*>")
_LINE_BREAK = re.compile(r"[\r\n\v\f\x85\u2028\u2029]+|<\s*/?\s*(?:br|p|li|ul|div)\b[^<>]*>", re.IGNORECASE)
# CJK marks, which the tokenizer's cleaning makes ASCII, have no space after them; "27.5" and "1,000" are one clause
_SENTENCE_END = re.compile(r"[!?]+[\"”')\]]*(?:\s+|$|(?=\w))|\.+[\"”')\]]*(?:\s+|$)|[。｡;•·|]+")
_CLAUSE_END = re.compile(r",(?!\d)|[、，]|\s[–—-]+\s|:\s(?!\d)")
_CONJUNCTION = re.compile(r"^(?:and|or|but|plus)\s+", re.IGNORECASE)
_EDGES = " \t.,;:-–—*•·\"“”'"
_MAX_PASSES = 8


def clean_text(text: str) -> str:
    """The text as CLIP's tokenizer will read it, apart from its case: encoding repaired, HTML undone, spaces single.

    Markup and "<" are removed: the tokenizer would take a literal `<end_of_text>` for the end token, and the model
    would stop reading there. Repeated until nothing changes, as HTML may be escaped several times over.
    """
    import clipfh.models.torchvision_guard  # noqa: F401, I001  (before open_clip, see there)
    from open_clip.tokenizer import get_clean_fn

    clean = get_clean_fn("whitespace")
    for number in range(2 * _MAX_PASSES):
        before = text
        text = _TAG.sub(" ", clean(text)).replace("<", " ")
        if number >= _MAX_PASSES:
            text = text.replace("&", " ")  # escaped more than 16 times over: not a text any more
        if text == before:
            break
    return text.strip()


def split_sentences(text: str) -> list[str]:
    """Sentences of raw text, cleaned; line breaks and bullets end one too. Full stops go, "!" and "?" stay."""
    sentences = []
    for line in _LINE_BREAK.split(html.unescape(text)):
        cleaned = clean_text(line)
        start = 0
        for match in _SENTENCE_END.finditer(cleaned):
            mark = match.group()[0] if match.group()[0] in "!?" else ""  # a sign of marketing
            sentences.append(_trim(cleaned[start : match.start()]) + mark)
            start = match.end()
        sentences.append(_trim(cleaned[start:]))
    return [sentence for sentence in sentences if says_something(sentence)]


def split_clauses(sentence: str) -> list[str]:
    """Comma clauses of a sentence, without leading conjunctions."""
    clauses = [_trim(_CONJUNCTION.sub("", _trim(part))) for part in _CLAUSE_END.split(sentence)]
    return [clause for clause in clauses if says_something(clause)]


def descriptive_clauses(sentence: str) -> list[str]:
    """The clauses of a sentence that describe the item, without "!" and "?".

    Beside a clause that is left out, only those that name something visible stay: the others belong to the same
    enumeration ("perfect for the office, a dinner, a party").
    """
    clauses = split_clauses(sentence)
    kept = [clause for clause in clauses if not is_left_out(clause)]
    if len(kept) < len(clauses):
        kept = [clause for clause in kept if is_visible(clause)]
    return [clause.rstrip("!?" + _EDGES) for clause in kept]


def _trim(text: str) -> str:
    return text.strip(_EDGES)
