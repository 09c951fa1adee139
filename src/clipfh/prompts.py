"""Prompts: one or more texts an identity, made from its description, and counted as CLIP's tokenizer counts them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from clipfh.datasets import Description
from clipfh.errors import InputError, shown
from clipfh.files import read_json, write_json
from clipfh.records import normal_id

CONTEXT_LENGTH = 77  # tokens that CLIP's text encoder takes, start and end token included
START_AND_END = 2
_MADE_BY = {  # file name to script; prompts of another name are a user's own, in the place of script 01's
    "image_prompts_clean.json": "03_filter_valid_identities.py",
    "image_prompts_cleaned_for_v4.json": "04_generate_structured_prompts_for_v4.py",
}
DESCRIPTIONS_MADE_BY = "python preprocessing/00_prepare_dataset.py --dataset NAME --data_root DIR"

# In-Shop names its categories in the plural, two at a time ("Tees_Tanks"); a photo shows one of them.
_SINGULAR = {
    "blouses": "blouse", "cardigans": "cardigan", "coats": "coat", "dresses": "dress", "hoodies": "hoodie",
    "jackets": "jacket", "jumpsuits": "jumpsuit", "polos": "polo", "rompers": "romper", "shirts": "shirt",
    "skirts": "skirt", "suiting": "suit", "sweaters": "sweater", "sweatshirts": "sweatshirt", "tanks": "tank top",
    "tees": "tee", "vests": "vest",
}  # fmt: skip
_WITHOUT_ARTICLE = ("denim", "pants", "leggings", "shorts", "jeans", "trousers", "tights")
_WEARERS = {"women": "women's", "men": "men's"}


class Tokenizer(Protocol):
    """What counting needs of a tokenizer; open_clip's `SimpleTokenizer` is one."""

    def encode(self, text: str) -> list[int]:
        """Token ids of the text without the start and end tokens."""
        ...


@lru_cache(maxsize=1)
def clip_tokenizer() -> Tokenizer:
    """The tokenizer of OpenAI's CLIP, from open_clip; loaded at the first call, as it takes seconds."""
    import clipfh.torchvision_guard  # noqa: F401, I001  (before open_clip, see there)
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=CONTEXT_LENGTH)


@lru_cache(maxsize=1 << 14)
def token_ids(text: str) -> tuple[int, ...]:
    """Token ids of a text without the start and end tokens, by open_clip's own tokenizer, uncut."""
    return tuple(clip_tokenizer().encode(text))


def plain_prompt(description: Description, item_id: str = "") -> str:
    """A short prompt from colour, category and an item id that is a name: "a photo of a red women's dress".

    Where there is neither colour nor category, the item id stands in, made readable; where there is none, "an item".
    """
    category = readable_category(description.category)
    name = name_from_item_id(item_id)
    # "Yellow Onion" needs no "onion" after it; an empty category is in every name
    noun = name if category.lower() in name.lower() else f"{name} {category}".strip()
    color = " and ".join(
        part.strip() for part in re.split("[,/]", _one_line(description.color)) if says_something(part)
    )
    phrase = f"{color} {noun}".strip()
    if not phrase:
        return f"a photo of item {readable_name(item_id)}" if readable_name(item_id) else "a photo of an item"
    if name or not noun or noun.lower().endswith(_WITHOUT_ARTICLE):
        return f"a photo of {phrase}"
    return f"a photo of {'an' if phrase[0].lower() in 'aeiou' else 'a'} {phrase}"


def prompt_from_description(description: Description, item_id: str = "") -> str:
    """The plain prompt and the whole raw description after it: marketing, sizes, care and all, however long.

    Attributes stand in for the description where it has no text.
    """
    lines = [line for line in map(_one_line, description.lines) if line]
    if lines and not says_something(description.category + description.color):
        return " ".join(lines)  # nothing to say before it; it may be a whole prompt already
    if lines:
        return f"{plain_prompt(description, item_id)}. {' '.join(lines)}"
    attributes = [attribute for attribute in map(_one_line, description.attributes) if attribute]
    return ", ".join([plain_prompt(description, item_id), *attributes])


def readable_category(category: str) -> str:
    """A category as words, in the singular where it is one of In-Shop's.

    >>> readable_category("WOMEN/Tees_Tanks")
    "women's tee or tank top"
    """
    words = readable_name(category).split()
    lowered = [word.lower() for word in words]
    wearer = ""
    if len(words) > 1 and (lowered[0] in _WEARERS or lowered[0] in _WEARERS.values()):
        wearer = _WEARERS.get(lowered[0], lowered[0])
        words, lowered = words[1:], lowered[1:]
    nouns = [_SINGULAR.get(word) for word in lowered]
    if nouns and all(nouns):
        words = [" or ".join(nouns)]
    elif nouns and nouns[-1]:
        words = [*lowered[:-1], nouns[-1]]
    elif lowered and lowered[-1] in _WITHOUT_ARTICLE:
        words = lowered
    return " ".join([wearer, *words]).strip()


def readable_name(identifier: str) -> str:
    """An identifier as words: "Granny-Smith" and "granny_smith" give "Granny Smith" and "granny smith"."""
    return " ".join(re.sub(r"[_/\\-]+", " ", _one_line(identifier)).split()) if says_something(identifier) else ""


def name_from_item_id(item_id: str) -> str:
    """The item id as words where it is a name ("Granny-Smith"); empty where it is a number or code ("id_0002")."""
    name = readable_name(item_id)
    is_name = any(len(word) > 2 for word in name.split()) and not any(character.isdigit() for character in name)
    return name if is_name else ""


def read_descriptions(path: Path) -> dict[str, Description]:
    """Read `descriptions.json`: `{item_id: {"category", "color", "lines", "attributes"}}`; keys may be absent.

    Raises:
        InputError: the file is missing, malformed, or an entry has parts of another type.
    """
    descriptions = {}
    for item_id, entry in _by_id(read_json(path, made_by=DESCRIPTIONS_MADE_BY), path):
        if not isinstance(entry, dict):
            raise InputError(f"{path}: the description of {item_id!r} must be an object, not {type(entry).__name__}")
        texts = {key: "" if entry.get(key) is None else entry[key] for key in ("category", "color")}
        lists = {key: [] if entry.get(key) is None else entry[key] for key in ("lines", "attributes")}
        for key, value in texts.items():
            if not isinstance(value, str):
                raise InputError(f'{path}: "{key}" of {item_id!r} must be a string, not {type(value).__name__}')
        for key, value in lists.items():
            if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
                raise InputError(f'{path}: "{key}" of {item_id!r} must be a list of strings')
        descriptions[item_id] = Description(**texts, **{key: tuple(value) for key, value in lists.items()})
    return descriptions


def read_prompts(path: Path, *, allow_empty: bool = False) -> dict[str, list[str]]:
    """Read `{item_id: prompt or [prompts]}`; every identity gets a list.

    Args:
        path: the JSON file.
        allow_empty: take identities without text, with an empty list, instead of raising.

    Raises:
        InputError: the file is missing or malformed; a value is no text; an identity has no or an empty prompt.
    """
    prompts: dict[str, list[str]] = {}
    for item_id, value in _by_id(read_json(path, made_by=_made_by(path)), path):
        texts: list[Any] = value if isinstance(value, list) else [value]
        for text in texts:
            if not isinstance(text, str):
                raise InputError(
                    f"{path}: the prompt of {item_id!r} must be a string or a list of strings, found {shown(text)}"
                )
        filled = [_replace_lone_surrogates(text) for text in texts if text.strip()]
        if len(filled) < max(len(texts), 1) and not allow_empty:
            raise InputError(
                f"{path}: the prompt of {item_id!r} is empty. Fill it in, or make the file with: {_made_by(path)}"
            )
        prompts[item_id] = filled
    return prompts


def _by_id(entries: dict[str, Any], path: Path) -> Iterator[tuple[str, Any]]:
    """The entries of an object by item id, in the spelling of the table of images."""
    seen: set[str] = set()
    for key, value in entries.items():
        item_id = normal_id(key)
        if item_id in seen:
            raise InputError(f"{path}: {item_id!r} stands there twice, in composed and in decomposed letters")
        seen.add(item_id)
        yield item_id, value


def write_prompts(path: Path, prompts: Mapping[str, str | list[str]]) -> None:
    """Write `{item_id: prompt}`, sorted by id; a list of one prompt becomes that prompt."""
    values = {}
    for item_id in sorted(prompts):
        value = prompts[item_id]
        values[item_id] = value[0] if isinstance(value, list) and len(value) == 1 else value
    write_json(path, values)


def prompts_for(item_ids: Iterable[str], prompts: Mapping[str, list[str]], path: Path) -> dict[str, list[str]]:
    """The prompts of the given identities, in their order; `path` is the file they came from.

    Raises:
        InputError: identities without a prompt; the first 20 are named.
    """
    item_ids = list(dict.fromkeys(item_ids))
    absent = [item_id for item_id in item_ids if not prompts.get(item_id)]
    if absent:
        named = ", ".join(absent[:20]) + (", ..." if len(absent) > 20 else "")
        raise InputError(
            f"{path}: {len(absent)} of {len(item_ids)} identities without prompt: {named}. Make them with: "
            f"{_made_by(path)}"
        )
    return {item_id: prompts[item_id] for item_id in item_ids}


def _made_by(path: Path) -> str:
    """The command that makes a file of prompts."""
    script = _MADE_BY.get(Path(path).name, "01_generate_prompts_from_descriptions.py")
    return f"python preprocessing/{script} --dataset NAME"


def says_something(text: str) -> bool:
    """Whether there is more than blanks and ASCII punctuation; emoji and other symbols count as something."""
    return any(character.isalnum() or not (character.isascii() or character.isspace()) for character in text)


def _one_line(text: str) -> str:
    return " ".join(_replace_lone_surrogates(text).split())


def _replace_lone_surrogates(text: str) -> str:
    """JSON can carry half of a surrogate pair; UTF-8 files and the tokenizer can't."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
