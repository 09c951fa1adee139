"""Five short captions of a generated garment, as people write them below photos rather than as shops do."""

import random

from clipfh.drawn.garments.catalogue import Garment
from clipfh.drawn.garments.descriptions import cloth_in_words, noun, visible_parts

_PLURAL = ("jeans", "pants", "shorts", "leggings")
_WEARERS = {"WOMEN": ("woman", "women"), "MEN": ("man", "men")}


def garment_captions(garment: Garment, rng: random.Random) -> list[str]:
    """Five different captions; each names the kind of garment and its cloth, and some of what else identifies it."""
    name, cloth = noun(garment), cloth_in_words(garment)
    parts = visible_parts(garment)
    rng.shuffle(parts)
    wearer, wearers = _WEARERS[garment.gender]
    one = "" if name in _PLURAL else "a "
    shape = f"{'regular-fit' if garment.fit == 'regular' else garment.fit} {garment.length}"
    captions = [
        f"a {wearer} in {cloth}: {one}{garment.length} {name} with {parts[0]}",
        f"{one}{shape} {name} in {cloth}, with {' and '.join(parts)}",
        f"{wearers}'s {name} in {cloth}, {garment.length}, {parts[-1]}",
        f"{rng.choice(('a photo of', 'the picture shows', 'this is'))} {one}{name}, {cloth}, {', '.join(parts[::-1])}",
        f"{cloth} {name} for {wearers}, {shape}, with {rng.choice(parts)}",
    ]
    return [" ".join(caption.split()) for caption in captions]
