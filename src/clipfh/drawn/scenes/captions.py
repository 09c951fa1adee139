"""Generated scenes and what five people would write below each: no caption is like another, all are true."""

import random
from dataclasses import dataclass

from clipfh.drawn.scenes.drawing import LIGHTS, OBJECT_COLORS, OBJECTS, PLACES

_IN = {
    "meadow": ("in a green meadow", "on the grass of a meadow"),
    "beach": ("on a sandy beach", "at the beach, in front of the water"),
    "desert": ("in the desert", "between the dunes of a desert"),
    "snow field": ("in a field of snow", "on white snow"),
    "sea": ("on the open sea", "in the waves of the sea"),
    "street": ("in a street of houses", "on the road of a grey town"),
    "forest": ("at the edge of a dark forest", "in front of a forest"),
    "mountains": ("below snowy mountains", "in front of high mountains"),
}
_AT = {
    "day": ("by day", "under a blue sky", "in bright sunshine"),
    "sunset": ("at sunset", "under an orange evening sky", "as the sun goes down"),
    "night": ("at night", "under the moon and the stars", "in the dark"),
    "storm": ("in a storm", "under grey clouds", "while lightning strikes"),
}
_BESIDE = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
_OPENINGS = ("a picture of", "a scene with", "there is", "we see", "you can see")
_LARGE = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}


@dataclass(frozen=True)
class Scene:
    """What a scene shows.

    Attributes:
        place, light: keys of `scene_drawing.PLACES` and `LIGHTS`.
        objects: (kind, colour, size, side) of one or two objects, from left to right.
    """

    place: str
    light: str
    objects: tuple[tuple[str, str, str, str], ...]


def draw_scene(rng: random.Random) -> Scene:
    """A scene at random: one object in the middle, or two different ones side by side."""
    sides = rng.choice((("middle",), ("left", "right"), ("left", "right"), ("left", "right")))
    kinds = rng.sample(OBJECTS, len(sides))
    colors = rng.sample(list(OBJECT_COLORS), len(sides))
    sizes = [rng.choice(("small", "large")) for _ in sides]
    return Scene(
        rng.choice(list(PLACES)), rng.choice(list(LIGHTS)), tuple(zip(kinds, colors, sizes, sides, strict=True))
    )


def scene_captions(scene: Scene, rng: random.Random) -> list[str]:
    """Five different captions of a scene; each names place, light, kinds and colours, in another order and wording."""
    makers = (_as_list, _place_first, _light_first, _by_side, _in_passing)
    return [" ".join(make(scene, rng).split()) for make in makers]


def _object(part: tuple[str, str, str, str], rng: random.Random, *, with_size: bool = True) -> str:
    kind, color, size, _ = part
    words = f"{rng.choice(_LARGE[size])} {color} {kind}" if with_size else f"{color} {kind}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _both(scene: Scene, rng: random.Random, join: str, *, with_size: bool = True) -> str:
    return join.join(_object(part, rng, with_size=with_size) for part in scene.objects)


def _as_list(scene: Scene, rng: random.Random) -> str:
    join = rng.choice((" to the left of ", " and, to its right, "))
    return f"{_both(scene, rng, join)} {rng.choice(_IN[scene.place])} {rng.choice(_AT[scene.light])}"


def _place_first(scene: Scene, rng: random.Random) -> str:
    where = rng.choice(_IN[scene.place])
    return f"{where} {rng.choice(_AT[scene.light])}: {_both(scene, rng, ' and ', with_size=rng.random() < 0.5)}"


def _light_first(scene: Scene, rng: random.Random) -> str:
    described = [f"{_object(part, rng)} {_BESIDE[part[3]]}" for part in reversed(scene.objects)]
    return f"{rng.choice(_AT[scene.light])}, {' and '.join(described)}, {rng.choice(_IN[scene.place])}"


def _by_side(scene: Scene, rng: random.Random) -> str:
    described = [f"{_BESIDE[part[3]]} {_object(part, rng, with_size=False)}" for part in scene.objects]
    return f"{scene.place} {rng.choice(_AT[scene.light])}, {', '.join(described)}"


def _in_passing(scene: Scene, rng: random.Random) -> str:
    opening = rng.choice(_OPENINGS)
    reverse = Scene(scene.place, scene.light, scene.objects[::-1])
    both = _both(reverse, rng, rng.choice((" next to ", " beside ", " with ")), with_size=False)
    return f"{opening} {both} {rng.choice(_IN[scene.place])}, {rng.choice(_AT[scene.light])}"
