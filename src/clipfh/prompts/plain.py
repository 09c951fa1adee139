"""Plain prompts: an identity's description as one text, however long; and identifiers as words."""

import re

from clipfh.core.values import without_lone_surrogates
from clipfh.prompts.description import Description

# In-Shop names its categories in the plural, two at a time ("Tees_Tanks"); a photo shows one of them.
_SINGULAR = {
    "blouses": "blouse", "cardigans": "cardigan", "coats": "coat", "dresses": "dress", "hoodies": "hoodie",
    "jackets": "jacket", "jumpsuits": "jumpsuit", "polos": "polo", "rompers": "romper", "shirts": "shirt",
    "skirts": "skirt", "suiting": "suit", "sweaters": "sweater", "sweatshirts": "sweatshirt", "tanks": "tank top",
    "tees": "tee", "vests": "vest",
}  # fmt: skip
_WITHOUT_ARTICLE = ("denim", "pants", "leggings", "shorts", "jeans", "trousers", "tights")
_WEARERS = {"women": "women's", "men": "men's"}


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


def says_something(text: str) -> bool:
    """Whether there is more than blanks and ASCII punctuation; emoji and other symbols count as something."""
    return any(character.isalnum() or not (character.isascii() or character.isspace()) for character in text)


def _one_line(text: str) -> str:
    return " ".join(without_lone_surrogates(text).split())
