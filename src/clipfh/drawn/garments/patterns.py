"""The cloth of a garment: its colour, pattern, print and details, drawn once on a square of body units.

The square reaches from -4 to 4 along x and from 0 to 8 along y (see `garment_silhouettes`).
"""

import math
import random
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from clipfh.drawn.garments.body import WAIST
from clipfh.drawn.garments.catalogue import Garment, rgb
from clipfh.drawn.garments.choices import COLORS, MOTIFS
from clipfh.drawn.garments.details import draw_detail
from clipfh.drawn.garments.silhouettes import garment_extent

UNIT_PX = 64
CLOTH_PX = 8 * UNIT_PX
Color = tuple[int, int, int]


def blend(a: Color, b: Color, share: float) -> Color:
    """The colour at `share` of the way from `a` to `b`."""
    return tuple(round(x + share * (y - x)) for x, y in zip(a, b, strict=True))


@lru_cache(maxsize=8)
def noise(cells: int, cells_y: int, contrast: float, kind: int = 0) -> Image.Image:
    """Smooth grey noise of `cells` x `cells_y` cells over the cloth, mean 128; the same for the same arguments."""
    values = np.random.RandomState(1000 * kind + cells + 7 * cells_y).rand(cells_y, cells)
    grey = np.clip(128 + contrast * 255 * (values - 0.5), 0, 255).astype(np.uint8)
    return Image.fromarray(grey).resize((CLOTH_PX, CLOTH_PX), Image.Resampling.BICUBIC)


def weave_cloth(garment: Garment, rng: random.Random, *, back: bool = False) -> Image.Image:
    """The RGB cloth, `CLOTH_PX` square. Prints and fronts (buttons, zips) are left out behind.

    `rng` places what is random in a pattern: give the front and the back the same one.
    """
    main = rgb(garment.color, garment.category)
    accent = COLORS[garment.accent] if garment.accent else main
    cloth = Image.new("RGB", (CLOTH_PX, CLOTH_PX), main)
    draw = ImageDraw.Draw(cloth)
    if garment.pattern in _DRAWN:
        _DRAWN[garment.pattern](draw, main, accent, rng)
    elif garment.pattern in _THRESHOLDED:
        cloth = _stain(cloth, garment.pattern, main, accent)
    elif garment.pattern == "color-block":
        top, hem = garment_extent(garment)
        split = WAIST if garment.category in ("Dresses", "Rompers_Jumpsuits") else top + 0.5 * (hem - top)
        draw.rectangle((0, split * UNIT_PX, CLOTH_PX, CLOTH_PX), fill=accent)
    draw = ImageDraw.Draw(cloth)
    if garment.category == "Denim":
        cloth = Image.composite(
            Image.new("RGB", cloth.size, blend(main, (255, 255, 255), 0.25)),
            cloth,
            noise(170, 90, 0.9).point(lambda v: v // 3),
        )
        draw = ImageDraw.Draw(cloth)
        _stitch_denim(draw, main, back)
    elif garment.category in ("Sweaters", "Cardigans"):
        ribs = blend(main, (0, 0, 0) if sum(main) > 200 else (255, 255, 255), 0.1)
        if garment.pattern == "solid":
            for x in range(0, CLOTH_PX, 6):
                draw.line((x, 0, x, CLOTH_PX), fill=ribs, width=2)
    if not (back and (garment.detail in MOTIFS or garment.detail in _FRONT_DETAILS)):
        draw_detail(ImageDraw.Draw(cloth), garment, main, accent)
    return cloth


_FRONT_DETAILS = {
    "button front", "zip front", "half zip", "chest pocket", "kangaroo pocket", "double-breasted front",
    "half-button placket", "embroidered logo", "patch pockets",
    "ripped knees", "knotted hem", "drawstring waist", "open front",
}  # fmt: skip


def _stitch_denim(draw: ImageDraw.ImageDraw, main: Color, back: bool) -> None:
    thread = (206, 150, 84) if sum(main) < 500 else blend(main, (0, 0, 0), 0.3)
    for side in (1, -1):
        center = 256 + side * 26
        if back:
            box = [(center - 14, 218), (center + 14, 218), (center + 14, 244), (center, 252), (center - 14, 244)]
            draw.line([*box, box[0]], fill=thread, width=2)
        else:
            draw.arc((center + side * 14 - 22, 170, center + side * 14 + 22, 212), 0, 180, fill=thread, width=2)
    if not back:
        draw.line([(262, 192), (262, 236), (256, 250)], fill=thread, width=2)


def _stripes(draw, main, accent, rng):
    for y in range(0, CLOTH_PX, 26):
        draw.rectangle((0, y, CLOTH_PX, y + 11), fill=accent)


def _pinstripes(draw, main, accent, rng):
    for x in range(0, CLOTH_PX, 15):
        draw.line((x, 0, x, CLOTH_PX), fill=accent, width=2)


def _gingham(draw, main, accent, rng):
    half = blend(main, accent, 0.5)
    for at in range(0, CLOTH_PX, 24):
        draw.rectangle((at, 0, at + 11, CLOTH_PX), fill=half)
    for y in range(0, CLOTH_PX, 24):
        draw.rectangle((0, y, CLOTH_PX, y + 11), fill=half)
        for x in range(0, CLOTH_PX, 24):
            draw.rectangle((x, y, x + 11, y + 11), fill=accent)


def _plaid(draw, main, accent, rng):
    light, dark = blend(main, (255, 255, 255), 0.45), blend(main, accent, 0.55)
    for at in range(0, CLOTH_PX, 56):
        draw.rectangle((at, 0, at + 17, CLOTH_PX), fill=dark)
        draw.line((at + 36, 0, at + 36, CLOTH_PX), fill=light, width=3)
    for y in range(0, CLOTH_PX, 56):
        draw.rectangle((0, y, CLOTH_PX, y + 17), fill=dark)
        draw.line((0, y + 36, CLOTH_PX, y + 36), fill=light, width=3)
        for x in range(0, CLOTH_PX, 56):
            draw.rectangle((x, y, x + 17, y + 17), fill=accent)


def _dots(draw, main, accent, rng):
    for row, y in enumerate(range(0, CLOTH_PX, 17)):
        for x in range((row % 2) * 10, CLOTH_PX, 20):
            draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=accent)


def _chevron(draw, main, accent, rng):
    xs = range(-16, CLOTH_PX + 32, 16)
    for y in range(0, CLOTH_PX + 30, 30):
        draw.line([(x, y + (12 if i % 2 else 0)) for i, x in enumerate(xs)], fill=accent, width=9)


def _scatter(rng: random.Random, step: int):
    """Points on a shaken grid, so that they are random but never crowded."""
    for row, y in enumerate(range(0, CLOTH_PX, step)):
        for x in range((row % 2) * step // 2, CLOTH_PX, step):
            yield x + rng.uniform(-0.22, 0.22) * step, y + rng.uniform(-0.22, 0.22) * step


def _floral(draw, main, accent, rng):
    leaf = (70, 128, 74) if sum(main) > 300 else (132, 182, 120)
    heart = (246, 214, 92) if sum(accent) < 620 else (222, 150, 40)
    for x, y in _scatter(rng, 34):
        turn, radius = rng.uniform(0, 1.2), rng.uniform(5.5, 8.5)
        draw.ellipse((x + 7, y + 6, x + 19, y + 12), fill=leaf)
        for petal in range(5):
            px, py = x + radius * math.cos(turn + 1.2566 * petal), y + radius * math.sin(turn + 1.2566 * petal)
            draw.ellipse((px - 5, py - 5, px + 5, py + 5), fill=accent)
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=heart)


def _stars(draw, main, accent, rng):
    for x, y in _scatter(rng, 30):
        turn = rng.uniform(0, 1.2)
        radii = (9, 4) * 5
        draw.polygon(
            [(x + r * math.cos(turn + 0.6283 * i), y + r * math.sin(turn + 0.6283 * i)) for i, r in enumerate(radii)],
            fill=accent,
        )


def _leopard(draw, main, accent, rng):
    inner = blend(main, accent, 0.45)
    for x, y in _scatter(rng, 23):
        a, b, start = rng.uniform(5, 8), rng.uniform(4, 7), rng.uniform(0, 360)
        draw.ellipse((x - a, y - b, x + a, y + b), fill=inner)
        draw.arc((x - a, y - b, x + a, y + b), start, start + 250, fill=accent, width=4)


def _stain(cloth: Image.Image, pattern: str, main: Color, accent: Color) -> Image.Image:
    """Patterns that follow noise: marled yarn, camouflage and tie-dye."""
    other = Image.new("RGB", cloth.size, accent)
    if pattern == "marled":
        return Image.composite(other, cloth, noise(60, 200, 1.6).point(lambda v: 255 if v > 150 else 0))
    if pattern == "tie-dye":
        return Image.composite(other, cloth, noise(14, 14, 2.2, 1))
    third = Image.new("RGB", cloth.size, blend(main, (0, 0, 0), 0.55))
    cloth = Image.composite(third, cloth, noise(26, 30, 1.8, 2).point(lambda v: 255 if v > 160 else 0))
    return Image.composite(other, cloth, noise(24, 28, 1.8, 3).point(lambda v: 255 if v > 165 else 0))


_DRAWN = {
    "striped": _stripes, "pinstriped": _pinstripes, "gingham": _gingham, "plaid": _plaid, "polka dot": _dots,
    "chevron": _chevron, "floral": _floral, "star-print": _stars, "leopard": _leopard,
}  # fmt: skip
_THRESHOLDED = {"marled", "tie-dye", "camo"}
