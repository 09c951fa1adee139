"""What a garment can be: colours, motifs, and the values that each attribute may take in each category."""

from collections.abc import Sequence
from dataclasses import dataclass

COLORS = {  # name: sRGB
    "black": (30, 30, 34),
    "charcoal": (76, 78, 84),
    "heather grey": (156, 158, 162),
    "white": (242, 242, 240),
    "cream": (236, 224, 196),
    "taupe": (150, 132, 116),
    "camel": (196, 152, 100),
    "chocolate brown": (88, 56, 40),
    "rust": (178, 82, 42),
    "coral": (246, 128, 106),
    "red": (202, 34, 42),
    "burgundy": (112, 26, 46),
    "blush pink": (244, 188, 196),
    "fuchsia": (216, 42, 132),
    "lavender": (186, 166, 220),
    "plum": (96, 46, 112),
    "navy": (30, 42, 88),
    "royal blue": (42, 84, 196),
    "light blue": (152, 190, 228),
    "teal": (22, 120, 126),
    "turquoise": (72, 196, 196),
    "mint": (166, 222, 190),
    "forest green": (38, 88, 54),
    "olive": (108, 110, 62),
    "mustard": (212, 160, 42),
    "lemon": (246, 228, 108),
}
NEUTRALS = ("black", "charcoal", "white", "cream", "navy", "heather grey", "camel", "olive", "burgundy")
WASHES = {
    "light wash": (158, 184, 208),
    "medium wash": (92, 128, 168),
    "dark wash": (44, 60, 96),
    "black": (40, 40, 44),
    "white": (238, 238, 236),
    "heather grey": (140, 144, 150),
}
MOTIFS = (
    "star print", "heart print", "mountain print", "sunburst print", "palm tree print", "anchor print",
    "lightning bolt print", "number 89 print", "PARIS print", "cat print", "moon print", "diamond print",
)  # fmt: skip


@dataclass(frozen=True)
class Choices:
    """The values that the fields of a category may take."""

    patterns: Sequence[str]
    lengths: Sequence[str]
    fits: Sequence[str]
    details: Sequence[str]
    sleeves: Sequence[str] = ("",)
    necklines: Sequence[str] = ("",)
    colors: Sequence[str] = tuple(COLORS)


_CUT = ("fitted", "regular", "relaxed")
_TOP = ("cropped", "hip-length", "longline")
_WOMEN_PRINTS = (
    "solid", "solid", "striped", "polka dot", "floral", "gingham", "chevron", "leopard", "star-print", "color-block",
)  # fmt: skip
_MEN_PRINTS = ("solid", "solid", "striped", "plaid", "gingham", "camo", "color-block", "polka dot")
_KNIT = ("solid", "solid", "striped", "marled", "chevron", "color-block")
_TAILORED = ("solid", "solid", "pinstriped", "plaid", "gingham")
_WOMEN_NECKS = ("crew neck", "V-neck", "scoop neck", "boat neck", "square neck", "turtleneck")
_SLEEVES = ("sleeveless", "short sleeves", "three-quarter sleeves", "long sleeves")
_DENIM_DETAILS = ("five pockets", "ripped knees", "cuffed hems", "belt", "cargo pockets")
_PANTS_DETAILS = ("drawstring waist", "belt", "cargo pockets", "side stripes", "cuffed hems", "pressed creases")

CHOICES: dict[tuple[str, str], Choices] = {
    ("WOMEN", "Dresses"): Choices(
        _WOMEN_PRINTS, ("mini", "knee-length", "midi", "maxi"), ("bodycon", "shift", "A-line", "fit-and-flare"),
        ("belt", "button front", "lace trim", "ruffle hem", "tiers", "plain finish"),
        ("spaghetti straps", *_SLEEVES), ("crew neck", "V-neck", "scoop neck", "boat neck", "square neck"),
    ),
    ("WOMEN", "Tees_Tanks"): Choices(
        _WOMEN_PRINTS, _TOP, _CUT, ("chest pocket", "lace trim", "plain finish", "embroidered logo", "knotted hem"),
        ("spaghetti straps", "sleeveless", "short sleeves", "long sleeves"), _WOMEN_NECKS[:5],
    ),
    ("WOMEN", "Blouses_Shirts"): Choices(
        (*_WOMEN_PRINTS, "plaid", "pinstriped"), _TOP[1:], _CUT,
        ("button front", "chest pocket", "lace trim", "ruffle hem", "knotted hem"), _SLEEVES, ("collar", "V-neck",
        "boat neck"),
    ),
    ("WOMEN", "Sweaters"): Choices(
        _KNIT, _TOP, _CUT[1:], ("cable knit", "ribbed trim", "chest pocket", "plain finish"), _SLEEVES[2:],
        _WOMEN_NECKS,
    ),
    ("WOMEN", "Cardigans"): Choices(
        _KNIT, _TOP, _CUT[1:], ("open front", "button front", "patch pockets", "cable knit"), _SLEEVES[2:],
        ("V-neck", "crew neck"),
    ),
    ("WOMEN", "Jackets_Coats"): Choices(
        (*_TAILORED, "color-block", "leopard"), ("cropped", "hip-length", "knee-length"), _CUT,
        ("zip front", "double-breasted front", "belt", "patch pockets", "open front"), _SLEEVES[2:], ("collar",
        "lapels", "hood"),
    ),
    ("WOMEN", "Graphic_Tees"): Choices(
        ("solid", "solid", "striped", "color-block"), _TOP, _CUT, MOTIFS, _SLEEVES[:3], ("crew neck", "V-neck",
        "scoop neck"),
    ),
    ("WOMEN", "Sweatshirts_Hoodies"): Choices(
        ("solid", "solid", "striped", "marled", "color-block", "tie-dye"), _TOP[:2], _CUT[1:],
        ("kangaroo pocket", "zip front", "drawstring waist", "embroidered logo", "star print", "heart print"),
        _SLEEVES[2:], ("hood", "crew neck"),
    ),
    ("WOMEN", "Rompers_Jumpsuits"): Choices(
        _WOMEN_PRINTS, ("short", "cropped", "full-length"), ("slim-leg", "straight-leg", "wide-leg"),
        ("belt", "button front", "lace trim", "drawstring waist"), ("spaghetti straps", *_SLEEVES[:2],
        "long sleeves"), ("V-neck", "scoop neck", "crew neck"),
    ),
    ("WOMEN", "Skirts"): Choices(
        (*_WOMEN_PRINTS, "plaid"), ("mini", "knee-length", "midi", "maxi"), ("pencil", "A-line", "flared"),
        ("pleats", "button front", "lace trim", "belt", "tiers", "plain finish"),
    ),
    ("WOMEN", "Denim"): Choices(
        ("solid",), ("cropped", "full-length"), ("skinny", "straight-leg", "flared", "wide-leg"), _DENIM_DETAILS,
        colors=tuple(WASHES),
    ),
    ("WOMEN", "Pants"): Choices(
        (*_TAILORED, "floral", "leopard"), ("cropped", "ankle-length", "full-length"), ("skinny", "straight-leg",
        "wide-leg", "flared"), _PANTS_DETAILS,
    ),
    ("WOMEN", "Shorts"): Choices(
        _WOMEN_PRINTS, ("short", "mid-thigh", "knee-length"), ("slim-leg", "wide-leg"), ("drawstring waist",
        "belt", "lace trim", "cuffed hems", "side stripes"),
    ),
    ("WOMEN", "Leggings"): Choices(
        ("solid", "solid", "striped", "leopard", "marled", "tie-dye", "star-print", "color-block"), ("knee-length",
        "cropped", "full-length"), ("skinny",),
        ("plain finish", "side stripes", "mesh panels", "drawstring waist"),
    ),
    ("MEN", "Tees_Tanks"): Choices(
        (*_MEN_PRINTS, "tie-dye"), _TOP[1:], _CUT, ("chest pocket", "plain finish", "embroidered logo",
        "star print", "mountain print", "number 89 print"),
        ("sleeveless", "short sleeves", "long sleeves"), ("crew neck", "V-neck", "scoop neck"),
    ),
    ("MEN", "Shirts_Polos"): Choices(
        (*_MEN_PRINTS, "pinstriped", "floral"), _TOP[1:], _CUT, ("button front", "chest pocket",
        "half-button placket", "embroidered logo"), _SLEEVES[1:], ("collar",),
    ),
    ("MEN", "Sweaters"): Choices(
        _KNIT, _TOP[1:], _CUT, ("cable knit", "ribbed trim", "half zip", "plain finish"), ("long sleeves",),
        ("crew neck", "V-neck", "turtleneck"),
    ),
    ("MEN", "Sweatshirts_Hoodies"): Choices(
        ("solid", "solid", "striped", "marled", "camo", "color-block", "tie-dye"), _TOP[1:], _CUT[1:],
        ("kangaroo pocket", "zip front", "half zip", "embroidered logo", "lightning bolt print",
        "number 89 print"), ("short sleeves", "long sleeves"), ("hood", "crew neck"),
    ),
    ("MEN", "Jackets_Vests"): Choices(
        ("solid", "solid", "plaid", "camo", "color-block"), ("hip-length", "knee-length"), _CUT, ("zip front",
        "patch pockets", "button front", "double-breasted front"),
        ("sleeveless", "long sleeves"), ("collar", "lapels", "hood"),
    ),
    ("MEN", "Suiting"): Choices(
        _TAILORED, ("hip-length", "longline"), _CUT[:2], ("button front", "double-breasted front", "patch pockets",
        "chest pocket"), ("sleeveless", "long sleeves"), ("lapels",),
    ),
    ("MEN", "Denim"): Choices(
        ("solid",), ("cropped", "full-length"), ("skinny", "straight-leg", "wide-leg"), _DENIM_DETAILS,
        colors=tuple(WASHES),
    ),
    ("MEN", "Pants"): Choices(
        (*_TAILORED, "camo"), ("cropped", "ankle-length", "full-length"), ("skinny", "straight-leg", "wide-leg"),
        _PANTS_DETAILS,
    ),
    ("MEN", "Shorts"): Choices(
        _MEN_PRINTS, ("mid-thigh", "knee-length"), ("slim-leg", "wide-leg"), ("drawstring waist", "belt",
        "cargo pockets", "side stripes", "cuffed hems"),
    ),
}  # fmt: skip
