"""What a shop writes about a garment: a marketing sentence, what identifies the item, then sizes and care."""

import random
import re

from clipfh.drawn.garments.catalogue import MOTIFS, Garment

_MARKETING = (
    "Meet the {noun} that your wardrobe has been waiting for.",
    "Effortless from the first coffee to the last song of the night.",
    "Some pieces never go out of style, and this one is a fine example.",
    "Add it to your weekend rotation and thank us later.",
    "Whether you're off to the office or out for brunch, this {noun} has you covered.",
    "We love a {noun} that does all the hard work for you.",
    "New this season and already a favorite of our stylists.",
    "A little polish goes a long way, and this {noun} proves it.",
    "Equal parts comfy and cool – our new everyday {noun} is here.",
    "Café-ready and made for long afternoons, this {noun} is a must-have.",
    "Call it “the one”: a {noun} with that je ne sais quoi, à la Parisienne.",
    "Our best-selling {noun} is back, now with ForeverSoft™ finish.",
    "Naïve no more: the {noun} grows up this season.",
    "Déjà vu? This {noun} brings back the best of the ’90s.",
)
_IDENTITY = (
    "This {fit}{length}{noun} comes in {cloth} and features {features}.",
    "A {fit}{length}{noun} in {cloth}, finished with {features}.",
    "Cut in {cloth}, this {fit}{length}{noun} has {features}.",
    "Designed in {cloth}, with {features}, it is a {fit}{length}{noun} worth keeping.",
)
_STYLING = (
    "Pair it with ankle boots and a structured bag for an easy day-to-night look.",
    "Layer it under your favorite jacket when the temperature drops.",
    "Style it with white sneakers and you are good to go.",
    "Team it with a bold watch and your favorite pair of sunglasses.",
    "It looks just as good dressed up as it does on a lazy Sunday.",
)
_CLOTH = {
    "Denim": ("98% cotton, 2% elastane", "100% cotton denim", "99% cotton, 1% spandex"),
    "Sweaters": ("60% acrylic, 40% cotton", "55% cotton, 45% merino wool", "100% acrylic knit"),
    "Cardigans": ("60% acrylic, 40% cotton", "70% viscose, 30% nylon"),
    "Jackets_Coats": ("Shell: 100% polyester; lining: 100% viscose", "80% wool, 20% polyamide"),
    "Jackets_Vests": ("Shell: 100% nylon; lining: 100% polyester", "100% cotton canvas"),
    "Suiting": ("65% polyester, 32% viscose, 3% elastane", "100% wool, half lined"),
    "Leggings": ("92% polyester, 8% spandex", "90% cotton, 10% elastane"),
    "": (
        "100% cotton",
        "95% rayon, 5% spandex",
        "100% polyester",
        "60% cotton, 40% polyester",
        "97% cotton, 3% elastane",
    ),
}
_CARE = (
    "Machine wash cold",
    "Hand wash cold, lay flat to dry",
    "Machine wash at 30 °C",
    "Dry clean only",
    "Do not tumble dry",
)
_NOUNS = {
    "Dresses": "dress", "Blouses_Shirts": "blouse", "Sweaters": "sweater", "Cardigans": "cardigan",
    "Graphic_Tees": "graphic tee", "Skirts": "skirt", "Denim": "jeans", "Pants": "pants", "Shorts": "shorts",
    "Leggings": "leggings", "Shirts_Polos": "shirt",
}  # fmt: skip
_SINGULAR_TO_PLURAL = (
    ("it is a", "they are a pair of"),
    ("It looks just as good dressed up as it does", "They look just as good dressed up as they do"),
    ("This", "These"), ("this", "these"),
    ("comes in", "come in"), ("features", "feature"),
    ("has", "have"),
    ("^A", "A pair of"), ("it", "them"),
)  # fmt: skip
_MODELS = {  # heights and sizes
    "WOMEN": (("5'8\"", "5'9\"", "5'9½\"", "5'10\"", "5'11\""), ("Small", "Medium")),
    "MEN": (("6'0\"", "6'1\"", "6'1½\"", "6'2\""), ("Medium", "Large")),
}
_SIZE_NOTES = ("- Sizes XS–XL; runs true to size", "- Available in sizes S, M and L")
_PLURAL = ("jeans", "pants", "shorts", "leggings")


def noun(garment: Garment) -> str:
    """What one calls the garment."""
    if garment.category == "Tees_Tanks":
        return "tank top" if garment.sleeves in ("sleeveless", "spaghetti straps") else "tee"
    if garment.category == "Sweatshirts_Hoodies":
        return "hoodie" if garment.neckline == "hood" else "sweatshirt"
    if garment.category == "Rompers_Jumpsuits":
        return "romper" if garment.length == "short" else "jumpsuit"
    if garment.category in ("Jackets_Coats", "Jackets_Vests", "Suiting"):
        if garment.sleeves == "sleeveless":
            return "vest"
        if garment.category == "Suiting":
            return "suit jacket"
        return "coat" if garment.length == "knee-length" else "jacket"
    if garment.category == "Shirts_Polos" and garment.detail in ("half-button placket", "embroidered logo"):
        return "polo shirt"
    return _NOUNS[garment.category]


def color_name(garment: Garment) -> str:
    """The colour as a shop lists it: "Navy" or, with a second colour, "Navy/cream"."""
    name = garment.color if not garment.accent else f"{garment.color}/{garment.accent}"
    return name[0].upper() + name[1:]


def describe(garment: Garment, rng: random.Random) -> list[str]:
    """The lines of a description, 30 to 150 words in all; every attribute of the garment is named."""
    name = noun(garment)
    marketing = rng.choice(_MARKETING)
    if name in _PLURAL:
        marketing = rng.choice(
            [sentence for sentence in _MARKETING if "{noun}" not in sentence and " it " not in sentence]
        )
    fit = "regular-fit" if garment.fit == "regular" else garment.fit
    words = {"noun": name, "fit": f"{fit} ", "length": f"{garment.length} ", "cloth": cloth_in_words(garment)}
    prose = [marketing, rng.choice(_IDENTITY)]
    brief = rng.random() < 0.35  # these mostly fit into CLIP's 77 tokens, the others do not
    if not brief and rng.random() < 0.55:
        prose.append(rng.choice(_STYLING))
    lines = [sentence.format(features=_features(garment), **words) for sentence in prose]
    if name in _PLURAL:
        lines[1:] = [_make_plural(line) for line in lines[1:]]
    if not brief and rng.random() < 0.45:
        lines += ["Details", *(f"- {part[0].upper()}{part[1:]}" for part in visible_parts(garment))]
    cloth = rng.choice(_CLOTH.get(garment.category, _CLOTH[""]))
    lines += ["Content + Care", f"- {cloth}", f"- {rng.choice(_CARE)}", "Size + Fit"]
    if brief:
        return [*lines, _SIZE_NOTES[1]]
    heights, sizes = _MODELS[garment.gender]
    lines += [_measure(garment, rng), f"- Model is {rng.choice(heights)} and wearing a size {rng.choice(sizes)}"]
    if rng.random() < 0.4:
        lines.append(rng.choice(_SIZE_NOTES))
    return lines


def cloth_in_words(garment: Garment) -> str:
    """Colour and pattern: "navy and cream plaid", "solid red"."""
    if garment.pattern == "solid":
        return f"{garment.color} denim" if garment.category == "Denim" else f"solid {garment.color}"
    pattern = {
        "striped": "stripes",
        "pinstriped": "pinstripes",
        "gingham": "gingham checks",
        "polka dot": "polka dots",
        "chevron": "chevron stripes",
        "marled": "marled knit",
        "star-print": "star print",
        "floral": "floral print",
        "leopard": "leopard print",
    }
    return f"{garment.color} and {garment.accent} {pattern.get(garment.pattern, garment.pattern)}"


def visible_parts(garment: Garment) -> list[str]:
    """Sleeves, neckline and details, in a shop's words."""
    neck = {
        "V-neck": "a V-neckline", "collar": "a pointed collar", "lapels": "notched lapels", "hood": "a hood",
        "turtleneck": "a turtleneck",
    }  # fmt: skip
    parts = []
    if garment.neckline:
        parts.append(neck.get(garment.neckline, f"a {garment.neckline}line"))
    if garment.sleeves:
        parts.append("a sleeveless cut" if garment.sleeves == "sleeveless" else garment.sleeves)
    plural = garment.detail.endswith(("s", "s print")) and garment.detail != "PARIS print"
    detail = garment.detail
    if detail in MOTIFS or detail in ("embroidered logo", "side stripes"):
        detail = f"{garment.accent} {detail}"
    if garment.detail not in ("cable knit", "ribbed trim", "lace trim", "mesh panels") and not plural:
        detail = f"an {detail}" if detail[0] in "aeiou" else f"a {detail}"
    if garment.detail in MOTIFS:
        detail += " on the chest"
    return [*parts, detail]


def _features(garment: Garment) -> str:
    parts = visible_parts(garment)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _make_plural(sentence: str) -> str:
    """The sentence for a garment that is a pair."""
    for one, many in _SINGULAR_TO_PLURAL:
        sentence = re.sub(rf"\b{one}\b", many, sentence)
    return sentence


def _measure(garment: Garment, rng: random.Random) -> str:
    inches = [
        f"{rng.randint(least, most)}{rng.choice(('', '', '½'))}" for least, most in ((22, 38), (32, 44), (24, 38))
    ]
    if garment.neckline:
        return '- {}" full length, {}" chest, {}" waist'.format(*inches)
    return f'- {rng.randint(8, 12)}{rng.choice(("", "", "¼"))}" rise, {inches[0]}" length, {inches[2]}" waist'
