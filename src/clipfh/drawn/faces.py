"""Drawn faces of seven emotions, 48 px grey, in the folders of FER2013: a dataset that needs no download.

A face is a person (proportions, hair, skin, light, pose), drawn with the brows, eyes and mouth of an emotion, each at
a random strength. No person appears twice. All lengths are fractions of the face's half width, y points down.
"""

import math
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from clipfh.drawn.generated_folder import generated_folder, is_generated

_VERSION = 1  # to be raised when the same parameters give other files, so that old folders are made anew
SIDE, _ZOOM = 48, 4  # drawn larger and reduced, which smooths the lines

# brow_raise: of the whole brow; brow_slant: inner end up (sad, fear) or down (angry); eye: opening; smile: corners up;
# mouth: opening; mouth_width; wrinkle: of the nose; lift: of the upper lip
_NEUTRAL = {"brow_raise": 0.0, "brow_slant": 0.0, "eye": 1.0, "smile": 0.0, "mouth": 0.0, "mouth_width": 1.0}
_NEUTRAL |= {"wrinkle": 0.0, "lift": 0.0}
_EXPRESSIONS = {
    "angry": {"brow_raise": -0.13, "brow_slant": -0.24, "eye": 0.75, "smile": -0.14, "mouth_width": 0.85},
    "disgust": {"brow_raise": -0.08, "brow_slant": -0.1, "eye": 0.45, "smile": -0.2, "wrinkle": 1.0, "lift": 0.2},
    "fear": {"brow_raise": 0.14, "brow_slant": 0.2, "eye": 1.45, "smile": -0.08, "mouth": 0.26, "mouth_width": 1.25},
    "happy": {"brow_raise": 0.03, "eye": 0.75, "smile": 0.36, "mouth": 0.16, "mouth_width": 1.35},
    "neutral": {},
    "sad": {"brow_raise": 0.02, "brow_slant": 0.26, "eye": 0.6, "smile": -0.3, "mouth_width": 0.9},
    "surprise": {"brow_raise": 0.26, "eye": 1.6, "mouth": 0.55, "mouth_width": 0.7},
}


def generate(folder: Path, *, num_train: int, num_test: int, seed: int) -> None:
    """Write `train/<emotion>/` and `test/<emotion>/` with so many faces each; a finished folder is left alone.

    Raises:
        InputError: `folder` holds something else, or cannot be written.
    """
    parameters = {"faces_version": _VERSION, "num_train": num_train, "num_test": num_test, "seed": seed}
    if is_generated(folder, parameters):
        return
    with generated_folder(folder, parameters) as made:
        for split, count in (("train", num_train), ("test", num_test)):
            for emotion in _EXPRESSIONS:
                (made / split / emotion).mkdir(parents=True)
                for number in range(count):
                    rng = random.Random(f"{seed} {split} {emotion} {number}")
                    render_face(emotion, rng).save(made / split / emotion / f"{number:04d}.png")


def render_face(emotion: str, rng: random.Random) -> Image.Image:
    """One face of a new person: (48, 48) grey."""
    strength = rng.uniform(0.65, 1.2)
    target = {**_NEUTRAL, **_EXPRESSIONS[emotion]}
    face = {name: rest + strength * (target[name] - rest) for name, rest in _NEUTRAL.items()}
    face = {name: value + rng.gauss(0, 0.02) for name, value in face.items()}
    side = SIDE * _ZOOM
    skin, hair = rng.randint(120, 225), rng.randint(15, 150)
    image = Image.new("L", (side, side), rng.randint(20, 235))
    draw = ImageDraw.Draw(image)
    half = side * rng.uniform(0.34, 0.41)  # the face's half width
    center = (side / 2 + rng.gauss(0, 3), side * 0.52 + rng.gauss(0, 3))
    _draw_head(draw, center, half, skin, hair, rng)
    _draw_features(draw, center, half, skin, hair, face, rng)
    image = image.rotate(rng.gauss(0, 6), Image.Resampling.BILINEAR, fillcolor=image.getpixel((0, 0)))
    return _light(image.filter(ImageFilter.GaussianBlur(rng.uniform(1.0, 3.0))), rng)


def _draw_head(
    draw: ImageDraw.ImageDraw, center: tuple[float, float], half: float, skin: int, hair: int, rng: random.Random
) -> None:
    x, y = center
    tall = half * rng.uniform(1.2, 1.4)
    length = rng.uniform(0.6, 1.6)  # of the hair
    draw.ellipse((x - 1.12 * half, y - 1.12 * tall, x + 1.12 * half, y - tall + length * tall), fill=hair)
    draw.rectangle((x - 0.4 * half, y + 0.7 * tall, x + 0.4 * half, y + 1.6 * tall), fill=int(skin * 0.8))
    draw.ellipse((x - half, y - tall, x + half, y + tall), fill=skin)
    fringe = rng.uniform(0.35, 0.6)
    draw.chord((x - half, y - 1.05 * tall, x + half, y - 1.05 * tall + 2 * fringe * half), 180, 360, fill=hair)


def _draw_features(
    draw: ImageDraw.ImageDraw,
    center: tuple[float, float],
    half: float,
    skin: int,
    hair: int,
    face: dict[str, float],
    rng: random.Random,
) -> None:
    apart, eye_y = rng.uniform(0.38, 0.46), rng.uniform(-0.24, -0.14)
    eye_width, dark = rng.uniform(0.17, 0.22), int(skin * 0.45)
    brow_width, brow_weight = rng.uniform(0.2, 0.26), rng.uniform(0.06, 0.11)
    iris = rng.randint(10, 70)

    def at(dx: float, dy: float) -> tuple[float, float]:
        return center[0] + dx * half, center[1] + dy * half

    def line(points: list[tuple[float, float]], width: float, fill: int) -> None:
        draw.line([at(*point) for point in points], fill=fill, width=max(1, round(width * half)), joint="curve")

    def oval(dx: float, dy: float, width: float, height: float, fill: int) -> None:
        draw.ellipse((*at(dx - width, dy - height), *at(dx + width, dy + height)), fill=fill)

    for sign in (-1, 1):
        opening = max(0.025, 0.1 * face["eye"])
        oval(sign * apart, eye_y, eye_width + 0.02, opening + 0.03, dark)
        oval(sign * apart, eye_y, eye_width, opening, 235)
        oval(sign * apart, eye_y, min(0.09, eye_width), min(0.09, opening), iris)
        brow_y = eye_y - 0.27 - face["brow_raise"]
        inner = (sign * (apart - brow_width), brow_y - face["brow_slant"])
        outer = (sign * (apart + brow_width), brow_y + 0.3 * face["brow_slant"] + 0.04)
        middle = (sign * apart, (inner[1] + outer[1]) / 2 - 0.04)
        line([inner, middle, outer], brow_weight, min(hair, int(skin * 0.5)))
        if face["wrinkle"] > 0.3:
            for depth in (0.05, 0.14):
                line([(sign * 0.04, eye_y + depth), (sign * 0.16, eye_y + depth - 0.07)], 0.035, dark)
            line([(sign * 0.18, 0.2), (sign * 0.4, 0.48)], 0.045, dark)
    nose = rng.uniform(0.24, 0.32)
    line([(0.03, eye_y + 0.1), (0.1, nose - 0.04), (0.0, nose), (-0.1, nose - 0.02)], 0.045, int(skin * 0.68))
    _draw_mouth(at, line, draw, face, dark, half, rng)


def _draw_mouth(at, line, draw, face: dict[str, float], dark: int, half: float, rng: random.Random) -> None:
    width, mouth_y = 0.33 * face["mouth_width"], rng.uniform(0.58, 0.66)
    steps = [t / 8 - 1 for t in range(17)]  # -1..1 along the mouth
    bend = face["smile"]
    middle = [(width * t, mouth_y + bend * (0.5 - t * t) * 0.7) for t in steps]
    opening = [math.cos(t * math.pi / 2) for t in steps]
    above, below = 0.5 * face["mouth"] + face["lift"], 0.5 * face["mouth"]
    upper = [(x, y - above * share) for (x, y), share in zip(middle, opening, strict=True)]
    lower = [(x, y + below * share) for (x, y), share in zip(middle, opening, strict=True)]
    if face["mouth"] + face["lift"] > 0.08:
        draw.polygon([at(*point) for point in upper + lower[::-1]], fill=25)
        if bend > 0.1 or face["lift"] > 0.1:  # teeth
            teeth = [((ux + lx) / 2, (uy + ly) / 2) for (ux, uy), (lx, ly) in zip(upper, lower, strict=True)]
            draw.polygon([at(*point) for point in upper[2:-2] + teeth[2:-2][::-1]], fill=230)
        line(upper, 0.05, dark)
        line(lower, 0.06, dark)
    else:
        line(middle, 0.07, dark)


def _light(image: Image.Image, rng: random.Random) -> Image.Image:
    """Reduce to 48 px under a light from one side, with contrast and noise of a photograph."""
    grey = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
    angle, depth = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.3)
    axis = np.linspace(-1, 1, SIDE)
    grey = grey * (1 + depth * (math.cos(angle) * axis[None, :] + math.sin(angle) * axis[:, None]))
    grey = (grey - 128) * rng.uniform(0.75, 1.1) + 128 + rng.gauss(0, 8)
    noise = np.random.default_rng(rng.getrandbits(64)).normal(0, rng.uniform(1, 5), grey.shape)
    return Image.fromarray((grey + noise).round().clip(0, 255).astype(np.uint8))
