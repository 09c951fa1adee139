"""The shapes of garments on a figure, as polygons in body units (see `garment_body`)."""

from dataclasses import dataclass, field
from itertools import pairwise

from clipfh.drawn.garments.body import ANKLE, CROTCH, HIP, KNEE, WAIST, Figure, Point, Polygon, limb, mirrored
from clipfh.drawn.garments.catalogue import Garment

TROUSERS = {"Denim", "Pants", "Shorts", "Leggings"}
OUTERWEAR = {"Cardigans", "Jackets_Coats", "Jackets_Vests", "Suiting"}
_TOP_HEM = {"cropped": 2.85, "hip-length": 3.85, "longline": 4.75, "knee-length": 5.55}
_SKIRT_HEM = {"mini": 4.75, "knee-length": 5.55, "midi": 6.35, "maxi": 7.25}
_LEG_HEM = {
    "short": 4.62,
    "mid-thigh": 5.0,
    "knee-length": 5.75,
    "cropped": 6.55,
    "ankle-length": 7.05,
    "full-length": 7.45,
}
_SLEEVE_END = {"short sleeves": 0.36, "three-quarter sleeves": 0.7, "long sleeves": 0.98}
_EASE = {"fitted": 0.03, "regular": 0.11, "relaxed": 0.22}
_LEG_WIDTHS = {  # half widths at thigh, knee and ankle
    "skinny": (0.37, 0.23, 0.15),
    "slim-leg": (0.39, 0.28, 0.2),
    "straight-leg": (0.41, 0.33, 0.29),
    "wide-leg": (0.45, 0.45, 0.5),
    "flared": (0.38, 0.25, 0.47),
}
_NECKLINES: dict[str, Polygon] = {  # right half, from the middle outwards
    "crew neck": [(0, 1.45), (0.2, 1.4), (0.33, 1.24)],
    "V-neck": [(0, 2.08), (0.17, 1.68), (0.33, 1.24)],
    "scoop neck": [(0, 1.93), (0.2, 1.87), (0.36, 1.6), (0.42, 1.27)],
    "boat neck": [(0, 1.42), (0.4, 1.39), (0.64, 1.31)],
    "square neck": [(0, 1.82), (0.42, 1.8), (0.44, 1.27)],
    "turtleneck": [(0, 0.99), (0.26, 0.97), (0.3, 1.24)],
    "collar": [(0, 1.62), (0.27, 1.2)],
    "lapels": [(0, 2.5), (0.3, 1.2)],
    "hood": [(0, 1.5), (0.22, 1.4), (0.36, 1.18)],
}


@dataclass
class Outline:
    """A garment's shape: fabric polygons, trims with their brightness, seams, and what shows through an open front."""

    sleeves: list[Polygon] = field(default_factory=list)
    fabric: list[Polygon] = field(default_factory=list)
    trims: list[tuple[Polygon, float]] = field(default_factory=list)
    seams: list[Polygon] = field(default_factory=list)
    opening: list[Polygon] = field(default_factory=list)


def interpolate(profile: list[Point], y: float) -> float:
    """The half width at height `y`; `profile` holds (y, half width) pairs, sorted."""
    for (y0, w0), (y1, w1) in pairwise(profile):
        if y <= y1:
            return w0 + (w1 - w0) * max(0.0, (y - y0) / (y1 - y0))
    return profile[-1][1]


def garment_extent(garment: Garment) -> Point:
    """The garment's top and hem on the y axis."""
    if garment.category == "Skirts":
        return WAIST - 0.05, _SKIRT_HEM[garment.length]
    if garment.category in TROUSERS:
        return WAIST - 0.05, _LEG_HEM[garment.length]
    if garment.category == "Dresses":
        return 1.2, _SKIRT_HEM[garment.length]
    if garment.category == "Rompers_Jumpsuits":
        return 1.2, _LEG_HEM[garment.length]
    return 1.2, _TOP_HEM[garment.length]


def outline_garment(garment: Garment, figure: Figure, *, back: bool) -> Outline:
    """The shape of `garment` on `figure`, seen from the front or from behind."""
    outline = Outline()
    _, hem = garment_extent(garment)
    if garment.category in TROUSERS:
        _add_trousers(outline, figure, garment.fit, hem)
    elif garment.category == "Skirts":
        _add_skirt(outline, figure, garment.fit, hem)
    elif garment.category == "Dresses":
        _add_bodice(outline, garment, figure, WAIST, 0.1 if garment.fit == "shift" else 0.03, back)
        _add_skirt(outline, figure, garment.fit, hem)
    elif garment.category == "Rompers_Jumpsuits":
        _add_bodice(outline, garment, figure, WAIST + 0.05, 0.07, back)
        _add_trousers(outline, figure, garment.fit, hem)
    else:
        _add_bodice(outline, garment, figure, hem, _EASE[garment.fit] + 0.06 * (garment.category in OUTERWEAR), back)
    return outline


def _add_trousers(outline: Outline, figure: Figure, fit: str, hem: float) -> None:
    thigh, knee, ankle = _LEG_WIDTHS[fit]
    waist, hip = figure.waist + 0.03, figure.hip + 0.04
    outer = max(0.36 + thigh, hip - 0.06)
    outline.fabric.append(
        mirrored([(0, WAIST - 0.05), (waist, WAIST - 0.05), (hip, HIP), (outer, CROTCH), (0.02, CROTCH + 0.08)])
    )
    end = 0.5 * (hem - 4.0) / (KNEE - 4.0) if hem <= KNEE else 0.5 + 0.5 * (hem - KNEE) / (ANKLE - KNEE)
    for side, (_, middle, bottom) in zip((1, -1), figure.legs, strict=True):  # wide legs move apart, so that two show
        middle = (middle[0] + side * max(0.0, knee - 0.3), middle[1])
        bottom = (bottom[0] + side * max(0.0, ankle - 0.24), bottom[1])
        leg = limb([(side * 0.38, 4.0), middle, bottom], (thigh - 0.02, knee, ankle), end)
        outline.fabric.append(leg)
        middle_of_leg = len(leg) // 2
        outline.seams.append(leg[middle_of_leg:] if side > 0 else leg[:middle_of_leg])
    outline.trims.append(
        (mirrored([(0, WAIST - 0.05), (waist, WAIST - 0.05), (waist + 0.02, WAIST + 0.1), (0, WAIST + 0.1)]), 0.82)
    )
    outline.seams.append([(0, WAIST + 0.1), (0.0, CROTCH + 0.05), (0, CROTCH + 0.3)])


def _add_skirt(outline: Outline, figure: Figure, fit: str, hem: float) -> None:
    drop = hem - HIP
    waist, hip = figure.waist + 0.03, figure.hip + 0.03
    width = {
        "pencil": hip - 0.07 * drop, "bodycon": hip - 0.06 * drop, "shift": hip + 0.04 * drop,
        "A-line": hip + 0.1 + 0.2 * drop, "flared": hip + 0.3 + 0.32 * drop, "fit-and-flare": hip + 0.28 + 0.3 * drop,
    }[fit]  # fmt: skip
    if fit in ("A-line", "flared", "fit-and-flare"):
        hip = waist + (width - waist) * 0.72 * (HIP - WAIST) / (hem - WAIST) + 0.09
    if fit == "shift":
        waist += 0.1
    outline.fabric.append(
        mirrored(
            [
                (0, WAIST - 0.05),
                (waist, WAIST - 0.05),
                (hip, HIP),
                (width, hem),
                (0.5 * width, hem + 0.07),
                (0, hem + 0.09),
            ]
        )
    )
    if fit != "shift":
        outline.seams.append([(-waist, WAIST), (waist, WAIST)])


def _add_bodice(outline: Outline, garment: Garment, figure: Figure, hem: float, ease: float, back: bool) -> None:
    loose = max(0.0, ease - 0.1) * 2.2
    profile = [
        (2.05, figure.chest + ease), (WAIST, figure.waist + ease + loose), (HIP, figure.hip + ease),
        (6.0, figure.hip + ease + 0.22),
    ]  # fmt: skip
    half = list(_NECKLINES[garment.neckline])
    if back and garment.neckline != "turtleneck":
        half = [(0, 1.3), half[-1]]
    elif garment.sleeves == "spaghetti straps":
        half = [(0, 1.78), (0.42, 1.7)] if garment.neckline != "V-neck" else [(0, 2.1), (0.42, 1.7)]
    if garment.sleeves == "spaghetti straps":
        if back:
            half = [(0, 1.95), (0.42, 1.85)]
        outline.trims += [(limb([(s * 0.43, 1.75), (s * 0.38, 1.28)], (0.045, 0.045)), 0.85) for s in (1, -1)]
        half.append((0.62, 1.98))
    elif garment.sleeves == "sleeveless":
        half += [(max(0.6, figure.shoulder * 0.76), 1.37), (0.66 * figure.shoulder, 1.75)]
    else:
        half += [(figure.shoulder, 1.46), (figure.shoulder + 0.02, 1.7)]
    half += [(width, y) for y, width in profile if y < hem - 0.05]
    half += [(interpolate(profile, hem), hem), (0, hem + 0.04)]
    body = mirrored(half)
    if not back and "open" in garment.detail and garment.category in OUTERWEAR:
        gap = 0.2
        outline.opening.append(
            [
                (0, 1.3),
                (0.34, 1.25),
                (gap, 2.3),
                (gap + 0.06, hem + 0.1),
                (-gap - 0.06, hem + 0.1),
                (-gap, 2.3),
                (-0.34, 1.25),
            ]
        )
    elif not back and garment.neckline == "lapels":
        outline.opening.append([(0, 2.5), (0.3, 1.22), (-0.3, 1.22)])
    outline.fabric.append(body)
    if garment.sleeves in _SLEEVE_END:
        slack = 0.5 * ease
        widths = (0.27 + slack, 0.2 + slack, 0.15 + slack)
        outline.sleeves += [limb(joints, widths, _SLEEVE_END[garment.sleeves], rounded=True) for joints in figure.arms]
    _add_neck_trim(outline, garment.neckline, back)


def _add_neck_trim(outline: Outline, neckline: str, back: bool) -> None:
    if neckline == "turtleneck":
        outline.trims.append(([(-0.27, 0.95), (0.27, 0.95), (0.3, 1.22), (-0.3, 1.22)], 0.84))
    elif neckline == "hood":
        if back:
            outline.trims.append(([(-0.5, 1.15), (0.5, 1.15), (0.42, 1.75), (0.0, 2.1), (-0.42, 1.75)], 0.8))
        else:
            outline.trims += [
                ([(s * 0.3, 1.1), (s * 0.52, 1.05), (s * 0.56, 1.36), (s * 0.05, 1.6)], 0.78) for s in (1, -1)
            ]
    elif neckline == "collar":
        if back:
            outline.trims.append(([(-0.32, 1.12), (0.32, 1.12), (0.36, 1.32), (-0.36, 1.32)], 0.86))
        else:
            outline.trims += [
                ([(s * 0.24, 1.1), (s * 0.36, 1.22), (s * 0.3, 1.62), (s * 0.02, 1.55)], 0.86) for s in (1, -1)
            ]
    elif neckline == "lapels" and not back:
        outline.trims += [
            ([(s * 0.28, 1.15), (s * 0.46, 1.3), (s * 0.62, 1.75), (s * 0.44, 1.8), (s * 0.02, 2.55)], 0.8)
            for s in (1, -1)
        ]
