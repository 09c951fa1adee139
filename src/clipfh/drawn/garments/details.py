"""Prints and details, drawn on the cloth of a garment: pockets, buttons, motifs (64 pixels a body unit)."""

from collections.abc import Callable

from PIL import ImageDraw

from clipfh.drawn.garments.catalogue import Garment
from clipfh.drawn.garments.choices import MOTIFS
from clipfh.drawn.garments.motifs import draw_motif
from clipfh.drawn.garments.silhouettes import TROUSERS, garment_extent

Color = tuple[int, int, int]
_UNIT = 64


def draw_detail(draw: ImageDraw.ImageDraw, garment: Garment, main: Color, accent: Color) -> None:
    """Draw `garment.detail`; details that are a matter of shape alone (an open front) draw nothing."""
    top, hem = garment_extent(garment)
    line = _shift(main, -0.38) if sum(main) > 230 else _shift(main, 0.42)
    if garment.detail in MOTIFS:
        draw_motif(draw, garment.detail, 256, 2.28 * _UNIT, 33, accent)
    elif garment.detail == "embroidered logo":
        draw.ellipse((270, 118, 288, 136), fill=accent)
        draw.line((270, 141, 288, 141), fill=accent, width=3)
    elif garment.detail in _DRAWINGS:
        _DRAWINGS[garment.detail](draw, top * _UNIT, hem * _UNIT, line, accent, garment)


def _shift(color: Color, amount: float) -> Color:
    """Darker (`amount` < 0) or lighter."""
    target = 0 if amount < 0 else 255
    return tuple(round(c + abs(amount) * (target - c)) for c in color)


def _front(garment: Garment) -> float:
    """Where a front closure begins, below the neckline."""
    return {"V-neck": 2.05, "lapels": 2.45, "scoop neck": 1.9, "square neck": 1.8}.get(garment.neckline, 1.45) * _UNIT


def _buttons(draw, top, hem, line, accent, garment):
    start = 3.0 * _UNIT if garment.category == "Skirts" else _front(garment)
    end = min(hem, 7.3 * _UNIT) if garment.category != "Rompers_Jumpsuits" else 3.6 * _UNIT
    draw.line((249, start, 249, end), fill=line, width=1)
    draw.line((263, start, 263, end), fill=line, width=1)
    for y in range(round(start) + 10, round(end) - 4, 22):
        draw.ellipse((252, y - 4, 260, y + 4), fill=line)


def _placket(draw, top, hem, line, accent, garment):
    draw.rectangle((249, 1.5 * _UNIT, 263, 2.3 * _UNIT), outline=line)
    for y in (108, 124, 140):
        draw.ellipse((252, y - 4, 260, y + 4), fill=line)


def _zip(draw, top, hem, line, accent, garment):
    draw.rectangle((251, 1.4 * _UNIT, 261, hem + 8), fill=line)
    draw.line((256, 1.4 * _UNIT, 256, hem + 8), fill=(214, 214, 218), width=3)


def _half_zip(draw, top, hem, line, accent, garment):
    draw.rectangle((251, 1.0 * _UNIT, 261, 2.3 * _UNIT), fill=line)
    draw.line((256, 1.0 * _UNIT, 256, 2.25 * _UNIT), fill=(214, 214, 218), width=3)
    draw.rectangle((253, 2.2 * _UNIT, 259, 2.42 * _UNIT), fill=(190, 190, 196))


def _double_breasted(draw, top, hem, line, accent, garment):
    draw.line((238, 2.45 * _UNIT, 238, hem), fill=line, width=2)
    for y in range(166, round(min(hem, 4.4 * _UNIT)) - 6, 27):
        for x in (244, 271):
            draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=line)


def _chest_pocket(draw, top, hem, line, accent, garment):
    draw.line([(266, 122), (294, 122), (294, 148), (280, 156), (266, 148), (266, 122)], fill=line, width=3)
    draw.line((266, 128, 294, 128), fill=line, width=2)


def _kangaroo(draw, top, hem, line, accent, garment):
    y = min(hem, 3.85 * _UNIT) - 62
    draw.line(
        [(226, y + 50), (226, y + 30), (238, y), (274, y), (286, y + 30), (286, y + 50), (226, y + 50)],
        fill=line,
        width=3,
    )


def _patch_pockets(draw, top, hem, line, accent, garment):
    y = min(hem, 3.95 * _UNIT) - 52
    for x in (218, 262):
        draw.rectangle((x, y, x + 32, y + 36), outline=line, width=3)
        draw.rectangle((x, y, x + 32, y + 9), fill=line)


def _lace(draw, top, hem, line, accent, garment):
    lace = (250, 246, 238) if sum(line) < 500 or garment.color not in ("white", "cream") else (206, 196, 178)
    y = hem - 8
    draw.rectangle((0, y - 5, 512, y + 6), fill=lace)
    for x in range(0, 512, 14):
        draw.ellipse((x, y - 12, x + 13, y + 2), fill=lace)
        draw.ellipse((x + 4, y - 5, x + 9, y), fill=line)


def _ruffle(draw, top, hem, line, accent, garment):
    draw.line((0, hem - 26, 512, hem - 26), fill=line, width=4)
    for x in range(0, 512, 11):
        draw.line((x, hem - 24, x + 4, hem + 10), fill=line, width=2)


def _tiers(draw, top, hem, line, accent, garment):
    start = 3.1 * _UNIT
    for part in (1 / 3, 2 / 3):
        y = start + part * (hem - start)
        draw.line((0, y, 512, y), fill=line, width=4)
        for x in range(0, 512, 13):
            draw.line((x, y, x + 2, y + 13), fill=line, width=2)


def _pleats(draw, top, hem, line, accent, garment):
    for step in range(-9, 10):
        draw.line((256 + 8 * step, 190, 256 + 8 * step * (1 + (hem - 190) / 300), hem + 8), fill=line, width=2)


def _creases(draw, top, hem, line, accent, garment):
    for x in (232, 280):
        draw.line((x, 208, x, hem), fill=line, width=3)


def _belt(draw, top, hem, line, accent, garment):
    leather = (120, 72, 38) if garment.color not in ("chocolate brown", "rust", "camel") else (24, 24, 26)
    y = 196 if garment.category in TROUSERS or garment.category == "Rompers_Jumpsuits" else 180  # under the waistband
    draw.rectangle((180, y, 332, y + 14), fill=leather)
    draw.rectangle((246, y - 3, 266, y + 17), outline=(226, 196, 110), width=3)


def _drawstring(draw, top, hem, line, accent, garment):
    y = 188 if garment.category in TROUSERS or garment.category == "Rompers_Jumpsuits" else hem - 14
    cord = (246, 244, 236) if garment.color not in ("white", "cream") else (60, 60, 66)
    draw.line([(200, y), (312, y)], fill=line, width=3)
    draw.line([(256, y), (247, y + 32)], fill=cord, width=4)
    draw.line([(256, y), (266, y + 28)], fill=cord, width=4)


def _knot(draw, top, hem, line, accent, garment):
    for dx in (-26, -13, 0, 13, 26):
        draw.line((256 + dx, hem - 36, 256, hem - 8), fill=line, width=2)
    draw.ellipse((247, hem - 14, 265, hem + 4), fill=line)


def _cables(draw, top, hem, line, accent, garment):
    for x in range(10, 512, 41):
        for y in range(60, round(hem) + 10, 14):
            draw.arc((x - 7, y - 7, x + 7, y + 9), 20, 200, fill=line, width=3)
        draw.line((x - 11, 0, x - 11, 512), fill=line, width=1)
        draw.line((x + 11, 0, x + 11, 512), fill=line, width=1)


def _ribbed_trim(draw, top, hem, line, accent, garment):
    draw.rectangle((0, hem - 20, 512, hem + 12), fill=line)
    for x in range(0, 512, 7):
        draw.line((x, hem - 20, x, hem + 12), fill=_shift(line, -0.25), width=2)


def _side_stripes(draw, top, hem, line, accent, garment):
    for side in (1, -1):
        for x in (296, 311):
            draw.line((256 + side * (x - 256), 184, 256 + side * (x - 256 - 4), hem), fill=accent, width=6)


def _cargo(draw, top, hem, line, accent, garment):
    y = min(4.95 * _UNIT, hem - 46)
    for x in (212, 268):
        draw.rectangle((x, y, x + 32, y + 34), outline=line, width=3)
        draw.rectangle((x - 1, y, x + 33, y + 10), fill=line)


def _cuffs(draw, top, hem, line, accent, garment):
    draw.rectangle((0, hem - 18, 512, hem + 14), fill=line)


def _ripped(draw, top, hem, line, accent, garment):
    skin = (226, 190, 164)
    for center, y in ((230, 352), (282, 366)):
        draw.ellipse((center - 15, y - 9, center + 15, y + 9), fill=skin)
        for dy in (-5, 0, 5):
            draw.line((center - 14, y + dy, center + 14, y + dy + 1), fill=(240, 240, 240), width=2)


def _mesh(draw, top, hem, line, accent, garment):
    for x in (213, 278):
        draw.rectangle((x, 5.2 * _UNIT, x + 22, 6.1 * _UNIT), fill=line)
        for step in range(0, 58, 5):
            draw.line((x, 5.2 * _UNIT + step, x + 22, 5.2 * _UNIT + step), fill=_shift(line, 0.3), width=1)


_DRAWINGS: dict[str, Callable[..., None]] = {
    "button front": _buttons, "half-button placket": _placket, "zip front": _zip, "half zip": _half_zip,
    "double-breasted front": _double_breasted, "chest pocket": _chest_pocket, "kangaroo pocket": _kangaroo,
    "patch pockets": _patch_pockets, "lace trim": _lace, "ruffle hem": _ruffle, "tiers": _tiers, "pleats": _pleats,
    "pressed creases": _creases, "belt": _belt, "drawstring waist": _drawstring, "knotted hem": _knot,
    "cable knit": _cables,
    "ribbed trim": _ribbed_trim, "side stripes": _side_stripes, "cargo pockets": _cargo, "cuffed hems": _cuffs,
    "ripped knees": _ripped, "mesh panels": _mesh,
}  # fmt: skip
