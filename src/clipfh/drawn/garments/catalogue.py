"""Which garments exist: attributes by category, and catalogues in which many items differ in one attribute only."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from typing import Literal

from clipfh.core.errors import InputError
from clipfh.drawn.garments.choices import CHOICES, COLORS, MOTIFS, NEUTRALS, WASHES, Choices

Pool = Literal["dataset", "pretraining"]


@dataclass(frozen=True)
class Garment:
    """What identifies an item. Fields that a category does not have are empty (`sleeves` of jeans)."""

    gender: str
    category: str
    color: str
    accent: str
    pattern: str
    sleeves: str
    neckline: str
    length: str
    fit: str
    detail: str


@dataclass(frozen=True)
class CatalogueItem:
    """A garment, and the family of near-identical garments that it belongs to."""

    garment: Garment
    family: int


_FIELDS = {
    "pattern": "patterns",
    "sleeves": "sleeves",
    "neckline": "necklines",
    "length": "lengths",
    "fit": "fits",
    "detail": "details",
}
_LEAST_CONTRAST = 160  # sum of absolute differences of the three channels
_ACCENTED_DETAILS = (*MOTIFS, "embroidered logo", "side stripes")


def rgb(name: str, category: str) -> tuple[int, int, int]:
    """The sRGB colour that a colour name stands for; denim has names of its own (washes)."""
    return WASHES[name] if category == "Denim" else COLORS[name]


def pool_of(garment: Garment) -> Pool:
    """The half of all attribute combinations that a garment belongs to, by a hash that never changes."""
    digest = hashlib.sha256("|".join(astuple(garment)).encode()).digest()
    return "dataset" if digest[0] % 2 == 0 else "pretraining"


def is_twin(a: Garment, b: Garment) -> bool:
    """Whether two garments differ in exactly one attribute."""
    return sum(x != y for x, y in zip(astuple(a), astuple(b), strict=True)) == 1


def make_catalogue(num_identities: int, *, seed: int, pool: Pool = "dataset") -> list[CatalogueItem]:
    """Draw different garments of one pool; about 60% of them have a twin, in the same family.

    A shorter catalogue of the same seed is the beginning of a longer one.

    Raises:
        InputError: `num_identities` is so large that the pool has no more combinations at hand.
    """
    rng = random.Random(f"catalogue {pool} {seed}")
    items: list[CatalogueItem] = []
    seen: set[Garment] = set()
    family = 0

    def add(make: Callable[[], Garment]) -> Garment | None:
        for _ in range(200):
            garment = make()
            if garment not in seen and pool_of(garment) == pool:
                seen.add(garment)
                items.append(CatalogueItem(garment, family))
                return garment
        return None

    while len(items) < num_identities:
        base = add(lambda: _draw(rng))
        if base is None:
            raise InputError(
                f"no more than {len(items)} different garments could be drawn; ask for fewer than {num_identities}"
            )
        for _ in range(rng.choices((0, 1, 2), weights=(58, 26, 16))[0]):
            add(lambda base=base: _change_one_attribute(base, rng))
        family += 1
    return items[:num_identities]


def _draw(rng: random.Random) -> Garment:
    gender, category = rng.choice(list(CHOICES))
    choices = CHOICES[gender, category]
    color = _draw_color(choices, rng)
    values = {name: rng.choice(getattr(choices, options)) for name, options in _FIELDS.items()}
    accent = _draw_accent(color, category, rng) if _needs_accent(values["pattern"], values["detail"]) else ""
    return Garment(gender, category, color, accent, **values)


def _draw_color(choices: Choices, rng: random.Random) -> str:
    """Neutral colours fill half of a shop's racks, so that colour alone does not identify an item."""
    neutral = [name for name in choices.colors if name in NEUTRALS]
    return rng.choice(neutral if rng.random() < 0.45 else choices.colors)


def _needs_accent(pattern: str, detail: str) -> bool:
    return pattern != "solid" or detail in _ACCENTED_DETAILS


def _draw_accent(color: str, category: str, rng: random.Random) -> str:
    """A second colour that stands out from the first; mostly a neutral one, as in shops."""
    first = rgb(color, category)
    strong = [name for name in COLORS if _color_distance(first, COLORS[name]) > _LEAST_CONTRAST]
    neutral = [name for name in strong if name in NEUTRALS]
    return rng.choice(neutral if rng.random() < 0.6 else strong)


def _color_distance(a: tuple[int, int, int], b: tuple[int, int, int]) -> int:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


def _change_one_attribute(base: Garment, rng: random.Random) -> Garment:
    """A random one-attribute neighbour of `base`, or `base` itself where the draw is not allowed."""
    name = rng.choice(("color", "color", "accent", *_FIELDS, "detail"))
    choices = CHOICES[base.gender, base.category]
    if name == "accent":
        return replace(base, accent=_draw_accent(base.color, base.category, rng)) if base.accent else base
    value = _draw_color(choices, rng) if name == "color" else rng.choice(getattr(choices, _FIELDS[name]))
    changed = replace(base, **{name: value})
    if _needs_accent(changed.pattern, changed.detail) != bool(base.accent):
        return base
    if name == "color" and base.accent:
        contrast = _color_distance(rgb(value, base.category), COLORS[base.accent])
        return changed if contrast > _LEAST_CONTRAST else base
    return changed
