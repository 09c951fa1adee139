"""Small pictures of scenes: a place, a light, and one or two objects in it. Drawn with Pillow, as garments are."""

import random

from PIL import Image, ImageDraw, ImageFilter

from clipfh.drawn.garments.motifs import Color, draw_motif

SUPERSAMPLING = 2

# place: colours of the ground far away and near by, between which it fades
PLACES: dict[str, tuple[Color, Color]] = {
    "meadow": ((150, 190, 110), (80, 140, 60)),
    "beach": ((230, 210, 160), (244, 228, 184)),
    "desert": ((214, 160, 98), (190, 126, 66)),
    "snow field": ((226, 234, 242), (248, 250, 252)),
    "sea": ((60, 110, 160), (24, 66, 116)),
    "street": ((126, 126, 130), (88, 88, 92)),
    "forest": ((70, 96, 60), (52, 70, 40)),
    "mountains": ((128, 140, 110), (96, 110, 80)),
}
# light: colours of the sky above and at the horizon, and the brightness of everything else
LIGHTS: dict[str, tuple[Color, Color, float]] = {
    "day": ((104, 168, 232), (206, 228, 244), 1.0),
    "sunset": ((128, 82, 150), (250, 160, 90), 0.86),
    "night": ((10, 14, 44), (34, 44, 92), 0.52),
    "storm": ((84, 90, 100), (140, 146, 152), 0.74),
}
OBJECT_COLORS: dict[str, Color] = {
    "red": (214, 34, 38), "blue": (36, 84, 214), "yellow": (246, 214, 44), "green": (34, 140, 62),
    "orange": (244, 132, 30), "purple": (124, 52, 160), "pink": (246, 140, 184), "black": (26, 26, 30),
    "white": (248, 248, 244), "brown": (116, 70, 40), "turquoise": (56, 196, 196),
}  # fmt: skip
_MOTIFS = {"star": "star print", "heart": "heart print", "cat": "cat print", "palm tree": "palm tree print",
           "anchor": "anchor print", "diamond": "diamond print"}  # fmt: skip
OBJECTS = ("house", "tent", "car", "boat", "balloon", "kite", "umbrella", "ball", "box", "tree", *_MOTIFS)


def render_scene(
    place: str, light: str, objects: list[tuple[str, str, str, str]], rng: random.Random, *, image_px: int = 96
) -> Image.Image:
    """A scene: RGB, `image_px` square.

    Args:
        place: one of `PLACES`.
        light: one of `LIGHTS`.
        objects: kind, colour, size ("small" or "large") and side ("left", "middle" or "right") of each.
        rng: draws what no caption tells: horizon, exact places and sizes, tints, sharpness.
        image_px: side of the picture.
    """
    side = SUPERSAMPLING * image_px
    horizon = round(side * rng.uniform(0.4, 0.56))
    top, bottom, brightness = LIGHTS[light]
    picture = Image.new("RGB", (side, side))
    picture.paste(_fade(side, horizon, _near(top, rng), _near(bottom, rng)))
    ground = [_near(color, rng) for color in PLACES[place]]
    land = Image.new("RGB", (side, side))
    land.paste(_fade(side, side - horizon, *ground), (0, horizon))
    _furnish(ImageDraw.Draw(land), place, side, horizon, rng)
    _draw_objects(ImageDraw.Draw(land), objects, side, horizon, rng)
    # the land and everything on it darkens with the light; what is black stays sky
    mask = land.convert("L").point([0] + [255] * 255)
    land = land.point([round(v * brightness) for v in range(256)] * 3)
    _light_up(ImageDraw.Draw(picture), light, side, horizon, rng)
    picture.paste(land, mask=mask)
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.2))).reduce(SUPERSAMPLING)


def _near(color: Color, rng: random.Random) -> Color:
    """The colour, a little off."""
    return tuple(max(1, min(255, c + rng.randint(-14, 14))) for c in color)


def _fade(width: int, height: int, first: Color, last: Color) -> Image.Image:
    """From one colour above to another below."""
    strip = Image.new("RGB", (1, 2))
    strip.putdata([first, last])
    return strip.resize((width, max(1, height)), Image.Resampling.BILINEAR)


def _light_up(draw: ImageDraw.ImageDraw, light: str, side: int, horizon: int, rng: random.Random) -> None:
    """Sun, moon and stars, clouds, lightning."""
    x, y = rng.uniform(0.1, 0.9) * side, rng.uniform(0.1, 0.5) * horizon
    if light == "night":
        for _ in range(24):
            px, py = rng.uniform(0, side), rng.uniform(0, horizon)
            draw.ellipse((px, py, px + 2, py + 2), fill=(238, 238, 220))
        draw_motif(draw, "moon print", x, y, 0.07 * side, (244, 240, 206))
        return
    if light != "storm":
        radius, y = (0.06 * side, y) if light == "day" else (0.1 * side, horizon - 0.04 * side)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(255, 236, 150))
    for _ in range(rng.randint(5, 8) if light == "storm" else rng.randint(0, 2)):
        cx, cy, width = rng.uniform(0, side), rng.uniform(0, 0.6) * horizon, rng.uniform(0.1, 0.2) * side
        shade = rng.randint(58, 84) if light == "storm" else 244
        draw.ellipse((cx - width, cy - 0.3 * width, cx + width, cy + 0.3 * width), fill=(shade, shade, shade + 6))
    if light == "storm":
        draw_motif(draw, "lightning bolt print", x, 0.55 * horizon, 0.22 * side, (255, 250, 190))


def _furnish(draw: ImageDraw.ImageDraw, place: str, side: int, horizon: int, rng: random.Random) -> None:
    """What tells a place: trees of a forest, houses of a street, waves, dunes, peaks."""
    if place in ("sea", "beach"):
        if place == "beach":  # a strip of water behind the sand
            draw.rectangle((0, horizon, side, horizon + 0.1 * side), fill=_near((56, 130, 190), rng))
        for _ in range(9):
            x = rng.uniform(0, side)
            y = rng.uniform(horizon + 4, side if place == "sea" else horizon + 0.1 * side)
            draw.arc((x, y, x + 0.12 * side, y + 0.04 * side), 180, 360, fill=(214, 232, 246), width=2)
    elif place == "desert":
        for _ in range(3):
            x, width = rng.uniform(-0.2, 0.9) * side, rng.uniform(0.4, 0.8) * side
            box = (x, horizon - 0.08 * side, x + width, horizon + 0.12 * side)
            draw.ellipse(box, fill=_near((206, 148, 84), rng))
    elif place == "mountains":
        for _ in range(5):
            x, rise = rng.uniform(0, side), rng.uniform(0.16, 0.34) * side
            draw.polygon(
                [(x - rise, horizon), (x, horizon - rise), (x + rise, horizon)], fill=_near((96, 96, 108), rng)
            )
            peak = [(x - 0.3 * rise, horizon - 0.7 * rise), (x, horizon - rise), (x + 0.3 * rise, horizon - 0.7 * rise)]
            draw.polygon(peak, fill=(240, 244, 248))
    elif place == "forest":
        for number in range(11):
            x = (number + rng.uniform(0.1, 0.9)) * side / 11
            rise = rng.uniform(0.2, 0.34) * side
            points = [(x - 0.08 * side, horizon + 4), (x, horizon - rise), (x + 0.08 * side, horizon + 4)]
            draw.polygon(points, fill=_near((28, 74, 42), rng))
    elif place == "street":
        x = 0.0
        while x < side:
            width, rise = rng.uniform(0.12, 0.24) * side, rng.uniform(0.1, 0.3) * side
            grey = rng.randint(120, 200)
            draw.rectangle((x, horizon - rise, x + width, horizon), fill=_near((grey, grey - 8, grey - 16), rng))
            for wx in range(int(x) + 5, int(x + width) - 6, 11):
                draw.rectangle((wx, horizon - rise + 6, wx + 5, horizon - rise + 14), fill=(70, 80, 96))
            x += width
        for x in range(-10, side, 36):
            y = horizon + 0.6 * (side - horizon)
            draw.rectangle((x, y, x + 18, y + 4), fill=(236, 236, 230))
    else:  # tufts of a meadow, hollows in the snow
        color = (60, 110, 46) if place == "meadow" else (206, 218, 232)
        for _ in range(14):
            x, y = rng.uniform(0, side), rng.uniform(horizon + 6, side)
            draw.line((x, y, x + rng.uniform(-4, 4), y - 6), fill=color, width=2)


def _draw_objects(
    draw: ImageDraw.ImageDraw, objects: list[tuple[str, str, str, str]], side: int, horizon: int, rng: random.Random
) -> None:
    for kind, color, size, place in objects:
        center = {"left": 0.26, "middle": 0.5, "right": 0.74}[place]
        x = side * (center + rng.uniform(-0.05, 0.05))
        radius = side * (rng.uniform(0.1, 0.125) if size == "small" else rng.uniform(0.18, 0.21))
        y = horizon + (side - horizon) * rng.uniform(0.3, 0.6) - 0.3 * radius
        if kind in ("balloon", "kite"):  # in the air
            y = max(radius, horizon - rng.uniform(0.5, 1.2) * radius)
        draw_object(draw, kind, x, y, radius, _near(OBJECT_COLORS[color], rng))


def draw_object(draw: ImageDraw.ImageDraw, kind: str, x: float, y: float, r: float, color: Color) -> None:
    """One of `OBJECTS`, centred at (x, y), about 2 r wide."""
    dark = tuple(round(0.55 * c) + 1 for c in color)

    def polygon(fill: Color, *points: tuple[float, float]) -> None:
        draw.polygon([(x + r * px, y + r * py) for px, py in points], fill=fill)

    def box(fill: Color, left: float, top: float, right: float, bottom: float, *, round_: bool = False) -> None:
        corners = (x + r * left, y + r * top, x + r * right, y + r * bottom)
        (draw.ellipse if round_ else draw.rectangle)(corners, fill=fill)

    if kind in _MOTIFS:
        draw_motif(draw, _MOTIFS[kind], x, y, r, color)
    elif kind == "house":
        box(color, -0.75, -0.15, 0.75, 0.9)
        polygon(dark, (-1, -0.15), (0, -1), (1, -0.15))
        box((250, 236, 170), -0.5, 0.1, -0.1, 0.45)
        box(dark, 0.15, 0.25, 0.5, 0.9)
    elif kind == "tent":
        polygon(color, (-1, 0.8), (0, -0.9), (1, 0.8))
        polygon(dark, (-0.3, 0.8), (0, -0.2), (0.3, 0.8))
    elif kind == "car":
        polygon(color, (-0.5, 0), (-0.3, -0.5), (0.4, -0.5), (0.65, 0))
        box(color, -1, 0, 1, 0.5)
        box((190, 214, 232), -0.28, -0.4, 0.34, -0.04)
        for wheel in (-0.55, 0.55):
            box((20, 20, 22), wheel - 0.25, 0.28, wheel + 0.25, 0.78, round_=True)
    elif kind == "boat":
        polygon(color, (-1, 0.3), (1, 0.3), (0.65, 0.85), (-0.65, 0.85))
        box(dark, -0.06, -1, 0.06, 0.3)
        polygon((246, 244, 236), (0.1, -0.95), (0.85, 0.2), (0.1, 0.2))
    elif kind == "balloon":
        box(color, -0.65, -1, 0.65, 0.45, round_=True)
        box((90, 62, 40), -0.2, 0.7, 0.2, 1)
        for end in (-0.2, 0.2):
            draw.line((x + 2 * end * r, y + 0.3 * r, x + end * r, y + 0.7 * r), fill=(60, 50, 40), width=1)
    elif kind == "kite":
        polygon(color, (0, -1), (0.6, -0.2), (0, 0.7), (-0.6, -0.2))
        draw.line((x, y - r, x, y + 0.7 * r), fill=dark, width=2)
        draw.line((x, y + 0.7 * r, x + 0.3 * r, y + 1.1 * r), fill=dark, width=2)
    elif kind == "umbrella":
        draw.pieslice((x - r, y - r, x + r, y + 0.9 * r), 180, 360, fill=color)
        box((70, 54, 40), -0.05, -0.05, 0.05, 0.95)
    elif kind == "ball":
        box(color, -0.75, -0.75, 0.75, 0.75, round_=True)
        draw.arc((x - 0.75 * r, y - 1.4 * r, x + 0.75 * r, y + 0.1 * r), 30, 150, fill=dark, width=3)
    elif kind == "box":
        box(color, -0.75, -0.6, 0.75, 0.75)
        box(dark, -0.75, -0.12, 0.75, 0.12)
        box(dark, -0.12, -0.6, 0.12, 0.75)
    else:  # a tree
        box((100, 68, 42), -0.14, 0.2, 0.14, 1)
        for dx, dy in ((-0.4, 0), (0.4, 0), (0, -0.45)):
            box(color, dx - 0.5, dy - 0.5, dx + 0.5, dy + 0.5, round_=True)
