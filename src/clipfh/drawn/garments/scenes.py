"""Where and in what light a photo is taken: backgrounds, brightness, tint, contrast and shade."""

import math
import random
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Color = tuple[int, int, int]
_STAGE_PX = 384
_STREETS = 6
_WALLS = (
    (236, 232, 226),
    (206, 190, 170),
    (150, 170, 186),
    (182, 150, 140),
    (134, 150, 128),
    (96, 100, 108),
    (222, 204, 150),
    (170, 124, 108),
)


@lru_cache(maxsize=4)
def noise(kind: str) -> Image.Image:
    """Grey maps that never change: "folds" of cloth (512 px, in body units) and "grain" of a sensor (256 px)."""
    rng = np.random.RandomState(5)
    if kind == "grain":
        return Image.fromarray(rng.normal(128, 10, (256, 256)).clip(0, 255).astype(np.uint8))
    y, x = np.mgrid[0:512, 0:512] / 64.0
    height = np.zeros((512, 512))
    for _ in range(9):
        slant, frequency, phase = rng.normal(0, 0.25), rng.uniform(4, 13), rng.uniform(0, 6)
        height += np.sin(frequency * (x + slant * y) + 1.2 * np.sin(1.3 * y + phase) + phase)
    for _ in range(4):
        slant, frequency, phase = rng.choice((-1, 1)) * rng.uniform(0.6, 1.4), rng.uniform(2, 5), rng.uniform(0, 6)
        height += 0.8 * np.sin(frequency * (x + slant * y) + phase)
    light = 0.89 + 0.11 * np.tanh(height / 2.2)
    return Image.fromarray((255 * light).clip(0, 255).astype(np.uint8))


def draw_background(size_px: int, view: str, rng: random.Random) -> tuple[Image.Image, str]:
    """A background, and the kind of scene: "studio", "wall" or "street"."""
    kinds = (
        ("studio", "studio", "studio", "wall") if view == "flat" else ("studio",) * 7 + ("wall",) * 1 + ("street",) * 2
    )
    scene = rng.choice(kinds)
    if scene == "street":
        stage = _street(rng.randrange(_STREETS))
        side = rng.randint(_STAGE_PX // 2, _STAGE_PX)
        left, top = rng.randint(0, _STAGE_PX - side), rng.randint(0, _STAGE_PX - side)
        picture = stage.resize((size_px, size_px), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
        return (picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else picture), scene
    if scene == "wall":
        color = rng.choice(_WALLS)
    else:
        grey = rng.randint(215, 250)
        color = (grey, grey, min(255, grey + rng.randint(0, 6)))
    picture = Image.new("RGB", (size_px, size_px), color)
    if view != "flat" and rng.random() < 0.6:  # the line where the wall meets the floor
        y = round(size_px * rng.uniform(0.75, 0.97))
        ImageDraw.Draw(picture).rectangle(
            (0, y, size_px, size_px), fill=tuple(round(c * rng.uniform(0.82, 0.95)) for c in color)
        )
    if scene == "wall" and rng.random() < 0.5:
        _panel(picture, color, rng)
    return picture, scene


def _panel(picture: Image.Image, color: Color, rng: random.Random) -> None:
    """Boards or bricks on a wall."""
    draw, size = ImageDraw.Draw(picture), picture.width
    dark = tuple(round(c * 0.88) for c in color)
    step = size // rng.randint(5, 12)
    if rng.random() < 0.5:
        for x in range(0, size, step):
            draw.line((x, 0, x, size), fill=dark, width=2)
        return
    for row, y in enumerate(range(0, size, step // 2 + 4)):
        draw.line((0, y, size, y), fill=dark, width=2)
        for x in range((row % 2) * step // 2, size, step):
            draw.line((x, y, x, y + step // 2 + 4), fill=dark, width=2)


@lru_cache(maxsize=_STREETS)
def _street(number: int) -> Image.Image:
    """A blurred street: sky, houses with windows, trees, pavement."""
    rng = random.Random(f"street {number}")
    picture = Image.new("RGB", (_STAGE_PX, _STAGE_PX), rng.choice(((190, 210, 232), (222, 222, 220), (240, 214, 184))))
    draw = ImageDraw.Draw(picture)
    horizon = rng.randint(240, 300)
    x = -20
    while x < _STAGE_PX:
        width, top = rng.randint(60, 130), rng.randint(10, 120)
        house = tuple(rng.randint(80, 210) for _ in range(3))
        house = tuple(round(0.5 * c + 0.5 * sum(house) / 3) for c in house)
        draw.rectangle((x, top, x + width, horizon), fill=house)
        window = rng.choice(((60, 70, 86), (238, 224, 170), (150, 176, 200)))
        for wy in range(top + 12, horizon - 24, 34):
            for wx in range(x + 10, x + width - 16, 26):
                draw.rectangle((wx, wy, wx + 13, wy + 20), fill=window)
        x += width
    draw.rectangle(
        (0, horizon, _STAGE_PX, _STAGE_PX), fill=rng.choice(((122, 122, 126), (168, 162, 152), (92, 94, 100)))
    )
    for _ in range(rng.randint(1, 4)):
        tx, ty, radius = rng.randint(0, _STAGE_PX), rng.randint(90, 190), rng.randint(24, 56)
        draw.rectangle((tx - 5, ty, tx + 5, horizon + 12), fill=(84, 64, 50))
        draw.ellipse(
            (tx - radius, ty - radius, tx + radius, ty + radius),
            fill=(rng.randint(50, 110), rng.randint(100, 140), rng.randint(50, 80)),
        )
    for _ in range(rng.randint(0, 3)):
        cx = rng.randint(0, _STAGE_PX)
        draw.rounded_rectangle(
            (cx, horizon - 14, cx + 90, horizon + 26),
            12,
            fill=rng.choice(((160, 40, 40), (40, 60, 110), (210, 210, 214), (30, 30, 34))),
        )
    return picture.filter(ImageFilter.GaussianBlur(5))


def light_photo(photo: Image.Image, scene: str, rng: random.Random) -> Image.Image:
    """Apply exposure, tint, contrast, a fall-off of light across the picture, and grain."""
    exposure = rng.uniform(0.88, 1.14)
    warmth, green = rng.gauss(0, 0.045), rng.gauss(0, 0.015)
    gamma = rng.uniform(0.85, 1.2) if scene == "street" else rng.uniform(0.92, 1.1)
    table: list[int] = []
    for gain in (exposure * (1 + warmth), exposure * (1 + green), exposure * (1 - warmth)):
        table += [max(0, min(255, round(255 * gain * (v / 255) ** gamma))) for v in range(256)]
    photo = photo.point(table)
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0.0, 0.22)
    dx, dy = strength * math.cos(angle), strength * math.sin(angle)
    corners = [1 - max(0.0, sx * dx + sy * dy) for sy in (-0.5, 0.5) for sx in (-0.5, 0.5)]
    fall = Image.new("L", (2, 2))
    fall.putdata([round(255 * c) for c in corners])
    fall = fall.resize(photo.size, Image.Resampling.BILINEAR)
    photo = ImageChops.multiply(photo, Image.merge("RGB", (fall, fall, fall)))
    if rng.random() < 0.35:
        grain = ImageChops.offset(noise("grain"), rng.randrange(256), rng.randrange(256)).resize(photo.size)
        photo = ImageChops.add(photo, Image.merge("RGB", (grain, grain, grain)), scale=1, offset=-128)
    return photo
