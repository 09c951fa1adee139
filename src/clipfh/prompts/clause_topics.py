r"""What a clause of a shop text is about, told by its words.

The lists hold regular expressions for whole words, found in In-Shop's and in grocers' descriptions; matching ignores
case. They are a filter, not a parser: a clause that none of them knows counts as description and is kept.
"""

import re

CARE = (
    r"(?:machine|hand)[\s-]?wash\w*", r"wash(?:able|\s+(?:cold|warm|separately|with|inside|before|at))", "bleach",
    r"(?:tumble|line|drip|air|hang|lay flat to)[\s-]+dry", r"dry[\s-]?clean\w*", r"(?:cool|warm|low)\s+iron",
    r"iron\s+(?:low|cool|on|if)", r"do\s+not", r"care\s+(?:label|instructions|guide)", r"shelf\s+life",
    r"refrigerat\w*", r"room\s+temperature", r"(?:store|keep)\s+(?:in|at|cool|dry|away)", r"(?:stored|kept)",
    r"best\s+before", r"sensitive\s+to",
)  # fmt: skip
SIZING = (
    r"sizes?", "sizing", r"runs\s+(?:small|large|big)", r"models?\s+(?:is|wears?|are)", r"wearing\s+an?", r"measured",
    r"measurements?", r"x{0,3}[sl]\s*[-–/]\s*x{0,3}[sl]",
    r"(?:chest|waist|hips?|inseam|rise|length|bust|height):?\s*\d+", r"\d+\s*(?:inch(?:es)?|cm|mm|ft)",
)  # fmt: skip
SALE = (
    "shipping", "ships", "shipped", r"deliver\w*", r"(?:free|easy)\s+returns?", r"returns?\s+(?:policy|within)",
    "exchanges?", r"in\s+stock", r"sold\s+out", r"order\s+(?:now|today|online|yours)", "buy",
    r"shop\s+(?:the|now|our|all)", r"price\w*", r"discount\w*", "sale", r"gift\s+card", "sku",
    r"(?:style|item)\s+(?:no|number)", "imported", r"guarantee\w*", r"warrant\w*", r"ethical\w*", r"sustainab\w*",
    r"\d+\s?(?:usd|eur|gbp)", r"(?:made|designed)\s+in\s+(?:the\s+)?(?:us|usa|uk|eu|italy|france|portugal|turkey)",
    r"(?:made|designed)\s+in\s+(?:china|india|vietnam|korea|japan|california|london)",
)  # fmt: skip
STYLING = (  # names what else to wear: the colours and garments in it belong to other items
    r"(?:pairs?|team|wear|style|match|layer|works|goes|looks)\s+"
    r"(?:(?:it|this|that|them|these|great|well|perfectly|nicely|good)\s+)*(?:with|over|under)",
    r"(?:perfect|great|ideal|beautiful|best)\s+with",
)
SERVING = (
    r"fits?\s+(?:well|for|in)", r"suit(?:able|ed)\s+(?:for|as|to)", r"can\s+(?:also\s+)?be\s+(?:eaten|used|\w+ed)",
    "eaten", "cooked", "recipes?", "vitamins?", "antioxidants?", r"nutri\w+", "serve[ds]?",
    r"good\s+(?:for|as|to|in)", r"used\s+(?:for|in|as|like)",
)  # fmt: skip
MARKETING = (
    "you", "yours?", r"you(?:'ll|'re|'ve)", "i'm", "we", r"we(?:'ve|'re)", "our", "us", "i", "my", "let", "meet",
    "introducing", r"look\s+no\s+further", r"who\s+says", r"say\s+hello", r"get\s+ready", r"must[\s-]?haves?",
    r"perfect(?:ly)?\s+(?:for|to|piece|match|choice)", "ideal", "adore", r"lov(?:e|es|ed|ing)", "wardrobes?",
    r"effortless\w*", r"timeless\w*", r"favou?rites?", "go-to", "staples?", "essentials?", "everyday", "weekends?",
    "seasons?", "season's", r"all[\s-]?day", r"night\s+out", "brunch", "office", "beach", "vacation", "occasions?",
    r"trend\w*", r"elevat\w*", r"upgrad\w*", r"turn\s+heads", "compliments?", "versatile",
    r"dress(?:ed|es)?\s+(?:it\s+)?(?:up|down)", "popular", "delicious", "tasty", "snacks?", "desserts?", "salads?",
    r"new\s+in", "arrivals?", "collection", "inspired", r"irresistibl\w*", "stunning", "gorgeous",
    r"touch\s+of", "whether", r"no\s+matter", r"from\s+day\s+to",
    r"never\s+go(?:es)?", r"fine\s+example", r"call\s+it", r"brings?\s+back",
)  # fmt: skip
COLOR_AND_PATTERN = (
    "black", "white", "gr[ae]y", "red", "blue", "navy", "green", "yellow", "orange", "pink", "purple", "violet",
    "brown", "beige", "cream", "ivory", "tan", "teal", "burgundy", "olive", "gold(?:en)?", "silver", "rust", "coral",
    "mustard", "mint", "lavender", "turquoise", "fuchsia", "camel", "charcoal", "khaki", "taupe", "plum", "lemon",
    r"(?:green|yellow|brown|redd|pink|orange|purple|blu)ish", "dark", "light", "bright", "pale", r"colou?r\w*",
    "floral", "stripe[ds]?", r"pinstrip\w+", "plaid", "gingham", "check(?:ed|ered)", "polka", "dot(?:s|ted)?",
    "paisley", r"print(?:s|ed)?", "logo", r"camo\w*", "leopard", "zebra", "geometric", "abstract",
    r"tie-dye\w*", r"heather\w*", "marled", "chevron", "solid", r"pattern\w*", r"embroider\w*", r"embellish\w*",
    r"distress\w*", "ripped",
)  # fmt: skip
MATERIAL = (
    "cotton", "linen", "wool", "silk", "denim", "leather", "suede", r"knit\w*", "rib(?:bed)?", "woven", "chiffon",
    "satin", "velvet", "corduroy", "fleece", "lace", r"crochet\w*", r"sequin\w*", r"bead\w*", "mesh", "sheer",
    "jersey", "crepe", "tweed", "faux", "fur", "cable", "quilted", "polyester", "rayon", "spandex", "nylon",
    "viscose",
)  # fmt: skip
PART_AND_CUT = (
    r"\w*-?neck(?:line|lines|ed)?", r"collar\w*", r"sleeve\w*", r"cuff\w*", r"hem(?:s|line|med)?", r"pocket\w*",
    r"button\w*", r"zip\w*", "hood(?:ed)?", r"drawstring\w*", r"waist\w*", r"strap\w*", r"shoulder\w*", "placket",
    r"lapel\w*", "lining", "lined", r"ruffle\w*", r"pleat\w*", r"fring\w+", r"tassel\w*", "bow", r"belt\w*", "slits?",
    "cutouts?", r"trim\w*", "tiers?", "tiered", r"panel\w*", r"seam\w*", "front", "racerback", "midi", "maxi", "mini",
    "crop(?:ped)?", "slim", "skinny", "a-line", r"flar\w+", "loose", "relaxed", "boxy", "fitted", "bodycon",
    "oversized", "straight", "wide", "(?:high|low)-rise", r"\w*-?length", r"\w+-leg", "silhouette",
)  # fmt: skip
PRODUCE_AND_BODY = (
    "peel", "pulp", "shell", "skin", "flesh", "kernels?", "seeds?", "leaf", "leaves", "stalks?", "vines?", r"shap\w+",
    "round", "oval", "oblong", "spots?", "shiny", "matte", "smooth", "cartons?", "bottles?", "packages?", "nails?",
    r"palm\w*", "dorsal", "rings?", "beard", "hair", "glasses",
)  # fmt: skip


def _any_of(*lists: tuple[str, ...], also: str = "") -> re.Pattern:
    words = "|".join(word for words in lists for word in words)
    return re.compile(rf"(?<!\w)(?:{words})(?!\w){also}", re.IGNORECASE)


_NOT_THE_ITEM = _any_of(
    CARE, SIZING, SALE, STYLING, SERVING,
    also=r"""|[\d¼½¾]\s*(?:"|”|''|%\s?off)|[$€£¥]\s?\d|https?:|www\.|\S@\S"""
    r"|^(?:details|content|fabric|product|size|fit)\b[\w\s+&]{0,20}$",
)  # fmt: skip
# outside ASCII the lists know no words: there, "!" alone is no proof of marketing; a question describes in no language
_MARKETING = _any_of(MARKETING, also=r"|^[\x00-\x7f]*!$|\?$")
_VISIBLE = _any_of(COLOR_AND_PATTERN, MATERIAL, PART_AND_CUT, PRODUCE_AND_BODY)


def is_visible(clause: str) -> bool:
    """Whether a clause names something that a photo can show."""
    return bool(_VISIBLE.search(clause))


def is_left_out(clause: str) -> bool:
    """Whether a clause is marketing, sizing, care, sale, styling or serving text.

    A marketing clause that names something visible is description all the same ("you will love the floral print").
    """
    return bool(_NOT_THE_ITEM.search(clause)) or (bool(_MARKETING.search(clause)) and not is_visible(clause))
