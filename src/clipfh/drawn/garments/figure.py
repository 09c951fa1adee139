"""The person who wears the garment: body, head and hair, other clothes, and what hides a part of it."""

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from clipfh.drawn.garments.body import CROTCH, HIP, WAIST, Figure, limb, mirrored
from clipfh.drawn.garments.camera import Camera
from clipfh.drawn.garments.catalogue import Garment
from clipfh.drawn.garments.choices import COLORS
from clipfh.drawn.garments.silhouettes import garment_extent

Color = tuple[int, int, int]
_SKIN = ((248, 216, 190), (236, 192, 160), (214, 164, 128), (178, 124, 88), (134, 88, 60), (92, 60, 44))
_HAIR = ((28, 22, 22), (58, 38, 28), (104, 66, 40), (170, 120, 66), (214, 180, 116), (128, 52, 34), (150, 150, 152))
_BAGS = ((26, 26, 28), (128, 78, 42), (196, 150, 100), (160, 30, 40), (60, 80, 110), (232, 226, 212))
_PLAIN_COLORS = ("black", "white", "charcoal", "navy", "heather grey", "camel", "light blue", "cream")


@dataclass(frozen=True)
class Model:
    """How the person looks."""

    skin: Color
    hair: Color
    hair_style: str
    shoes: Color


def pick_model(gender: str, rng: random.Random) -> Model:
    """A random person."""
    style = rng.choice(
        ("long", "long", "bob", "bun", "short") if gender == "WOMEN" else ("short", "short", "crop", "bun", "bald")
    )
    return Model(rng.choice(_SKIN), rng.choice(_HAIR), style, rng.choice(_BAGS))


def other_clothes(garment: Garment, rng: random.Random) -> list[Garment]:
    """Plain clothes that go with the garment and differ from photo to photo."""
    top, hem = garment_extent(garment)
    plain = {"accent": "", "pattern": "solid", "detail": ""}
    color = rng.choice(_PLAIN_COLORS)
    if top > 2:
        sleeves = rng.choice(("short sleeves", "long sleeves", "sleeveless"))
        return [
            Garment(
                garment.gender,
                "Tees_Tanks",
                color,
                sleeves=sleeves,
                neckline="crew neck",
                length="cropped",
                fit="fitted",
                **plain,
            )
        ]
    if garment.category in ("Dresses", "Rompers_Jumpsuits"):
        return []
    blank = {"sleeves": "", "neckline": "", **plain}
    if garment.gender == "WOMEN" and rng.random() < 0.3 and hem < 4.8:
        return [Garment("WOMEN", "Skirts", color, length="knee-length", fit=rng.choice(("A-line", "pencil")), **blank)]
    length = rng.choice(("full-length", "ankle-length", "mid-thigh"))
    return [Garment(garment.gender, "Pants", color, length=length, fit=rng.choice(("skinny", "straight-leg")), **blank)]


def draw_body(
    layer: Image.Image, shape: Image.Image, camera: Camera, figure: Figure, model: Model, garment: Garment
) -> None:
    """Skin, shoes and, behind the shoulders, long hair."""
    parts = []
    if model.hair_style == "long":
        parts.append(([(-0.42, 0.4), (0.42, 0.4), (0.5, 1.2), (0.44, 1.85), (-0.44, 1.85), (-0.5, 1.2)], model.hair))
    for joints in figure.legs:
        parts.append((limb(joints, (0.34, 0.21, 0.12)), model.skin))
        x = joints[2][0]
        outward = 0.16 if x > 0 else -0.16
        parts.append(
            ([(x - 0.15, 7.28), (x + 0.15, 7.28), (x + 0.17 + outward, 7.62), (x - 0.17 + outward, 7.62)], model.shoes)
        )
    for joints in figure.arms:
        parts.append((limb(joints, (0.18, 0.14, 0.09)), model.skin))
        x, y = joints[2]
        parts.append(
            (
                [(x - 0.12, y - 0.05), (x + 0.12, y - 0.05), (x + 0.13, y + 0.25), (x, y + 0.38), (x - 0.13, y + 0.25)],
                model.skin,
            )
        )
    trunk = mirrored([
        (0, 1.2), (0.19, 1.18), (0.28, 1.33), (figure.shoulder - 0.05, 1.46), (figure.chest, 2.0),
        (figure.waist, WAIST), (figure.hip, HIP), (figure.hip - 0.05, CROTCH + 0.1), (0.03, CROTCH),
    ])  # fmt: skip
    parts.append((trunk, model.skin))
    parts.append(([(-0.19, 0.8), (0.19, 0.8), (0.21, 1.35), (-0.21, 1.35)], _darker(model.skin, 0.86)))
    _paint(layer, shape, camera, parts)


def draw_head(
    layer: Image.Image, shape: Image.Image, camera: Camera, model: Model, *, back: bool, high_collar: bool
) -> None:
    """Face and hair; behind, hair alone."""
    bottom = 0.92 if high_collar else 1.02
    face = [(0, bottom), (0.2, 0.92), (0.32, 0.7), (0.35, 0.45), (0.3, 0.2), (0.16, 0.08), (0, 0.05)]
    parts = [(face + [(-x, y) for x, y in reversed(face)], model.skin)]
    cap = [
        (-0.37, 0.55),
        (-0.4, 0.25),
        (-0.25, 0.0),
        (0.0, -0.06),
        (0.25, 0.0),
        (0.4, 0.25),
        (0.37, 0.55),
        (0.27, 0.36),
        (0.0, 0.27),
        (-0.27, 0.36),
    ]
    if model.hair_style == "bob":
        parts += [([(s * 0.3, 0.2), (s * 0.44, 0.3), (s * 0.46, 1.05), (s * 0.28, 1.05)], model.hair) for s in (1, -1)]
    if model.hair_style == "bun":
        parts.append(([(-0.16, -0.2), (0.16, -0.2), (0.2, 0.02), (-0.2, 0.02)], model.hair))
    if back and model.hair_style != "bald":
        low = {"long": 1.7, "bob": 1.1}.get(model.hair_style, 0.82)
        parts.append(
            (
                [
                    (-0.37, 0.2),
                    (-0.2, -0.04),
                    (0.2, -0.04),
                    (0.37, 0.2),
                    (0.4, low - 0.1),
                    (0.2, low),
                    (-0.2, low),
                    (-0.4, low - 0.1),
                ],
                model.hair,
            )
        )
    elif model.hair_style != "bald":
        parts.append((cap, model.hair))
    if not back:
        parts += [([(s * 0.1, 0.5), (s * 0.2, 0.48), (s * 0.2, 0.54), (s * 0.1, 0.55)], (52, 38, 34)) for s in (1, -1)]
        parts.append(([(-0.1, 0.79), (0.1, 0.79), (0.05, 0.85), (-0.05, 0.85)], _darker(model.skin, 0.66)))
        parts.append(([(0, 0.55), (0.05, 0.69), (-0.04, 0.69)], _darker(model.skin, 0.84)))
    _paint(layer, shape, camera, parts)


def draw_occlusion(
    layer: Image.Image,
    shape: Image.Image,
    camera: Camera,
    figure: Figure,
    model: Model,
    garment: Garment,
    view: str,
    rng: random.Random,
) -> None:
    """In some photos something is in front of the garment: a bag, an arm, hair, a tag, or a hanger."""
    if rng.random() < 0.6:
        return
    side = rng.choice((1, -1))
    top, hem = garment_extent(garment)
    parts = []
    if view == "flat":
        x, y = side * rng.uniform(0.2, 0.7), rng.uniform(top + 0.4, max(top + 0.5, hem - 0.7))
        parts.append(([(x, y - 0.4), (x + 0.03, y - 0.4), (x + 0.03, y), (x, y)], (90, 80, 70)))
        parts.append(
            (
                [(x - 0.2, y), (x + 0.2, y), (x + 0.2, y + 0.55), (x - 0.2, y + 0.55)],
                rng.choice(((248, 246, 240), (206, 170, 126))),
            )
        )
        parts.append(
            ([(x - 0.12, y + 0.2), (x + 0.12, y + 0.2), (x + 0.12, y + 0.25), (x - 0.12, y + 0.25)], (60, 60, 60))
        )
    else:
        kind = rng.choice(("bag", "bag", "arm", "hair" if model.hair_style == "long" and view != "back" else "scarf"))
        if kind == "bag":
            color = rng.choice(_BAGS)
            x, y = side * rng.uniform(0.45, 0.8), rng.uniform(2.9, 3.9)
            if rng.random() < 0.6:
                parts.append((limb([(-side * 0.5, 1.4), (x, y + 0.1)], (0.05, 0.05)), _darker(color, 0.8)))
            parts.append(([(x - 0.42, y), (x + 0.42, y), (x + 0.48, y + 0.75), (x - 0.48, y + 0.75)], color))
            parts.append(
                ([(x - 0.42, y), (x + 0.42, y), (x + 0.44, y + 0.26), (x - 0.44, y + 0.26)], _darker(color, 0.82))
            )
        elif kind == "arm":
            elbow = figure.arms[0 if side > 0 else 1][1]
            wrist, fingers = (side * 0.12, elbow[1] - 0.28), (-side * 0.16, elbow[1] - 0.36)
            parts.append((limb([elbow, wrist, fingers], (0.15, 0.1, 0.08)), model.skin))
        elif kind == "hair":
            parts.append(
                (
                    [(side * 0.24, 0.5), (side * 0.44, 0.5), (side * 0.62, 1.5), (side * 0.5, 2.25), (side * 0.2, 1.6)],
                    model.hair,
                )
            )
        else:
            color = COLORS[rng.choice(_PLAIN_COLORS)]
            parts.append(([(-0.4, 1.08), (0.4, 1.08), (0.44, 1.42), (-0.44, 1.42)], color))
            parts.append((limb([(side * 0.22, 1.35), (side * 0.3, 2.2)], (0.13, 0.15)), _darker(color, 0.9)))
    _paint(layer, shape, camera, parts)


def _paint(layer: Image.Image, shape: Image.Image, camera: Camera, parts: list) -> None:
    """Fill polygons on the picture and on the mask of what the light models."""
    draw, mask = ImageDraw.Draw(layer), ImageDraw.Draw(shape)
    for polygon, color in parts:
        points = camera(polygon)
        draw.polygon(points, fill=color)
        mask.polygon(points, fill=255)


def _darker(color: Color, factor: float) -> Color:
    return tuple(round(c * factor) for c in color)
