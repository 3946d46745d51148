"""One look for every figure: the course's table of colours and markers, doubled by line styles.

Every method and rank looks the same in all notebooks: full fine-tuning is black, plain LoRA takes colour and marker
from its rank (dark to light as the rank rises), a variant takes its colour from the variant and its marker from the
rank, with a broken line. What is no method (seeds, kinds, tasks) takes the colour-blind palette in order.
"""

import math
import re
from collections.abc import Iterable

import matplotlib
import seaborn as sns

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
FRONT = {"color": "0.75", "linewidth": 2.5}
FULL, BASE = {"color": "black", "marker": "o"}, {"color": "0.45", "marker": "_"}

# Rank -> colour (of matplotlib's "plasma", which keeps its order for all eyes and in grey) and marker. The last is a
# rank as large as the matrix is wide. A rank between two takes the nearer one's look.
RANKS = {1: ("#0d0887", "s"), 2: ("#4c02a1", "P"), 4: ("#7e03a8", "^"), 8: ("#a92395", "D"), 16: ("#cc4778", "v"),
         32: ("#e56b5d", "X"), 64: ("#f89540", "p"), 256: ("#e3b505", "h"), 512: ("#8c9a1e", "*")}
VARIANTS = {"B only": "#0173b2", "LoRA+": "#de8f05", "PiSSA": "#029e73", "AdaLoRA": "#d55e00", "VeRA": "#cc78bc",
            "OLoRA": "#ca9161", "MiLoRA": "#56b4e9", "Init[AB]": "#949494", "LoRA-GA": "#882255", "DoRA": "#117733",
            "GraLoRA": "#44aa99", "RandLoRA": "#332288", "LoFT": "#999933", "rsLoRA": "#ee99aa",
            "LoRA-GA (PEFT)": "#661100"}
_LABEL = re.compile(r"(?P<family>full|base|LoRA|" + "|".join(map(re.escape, VARIANTS)) + r")"
                    r"(?: r=(?P<rank>[1-9]\d*))?(?P<rest>(?:,| #).*)?")


def use_style() -> None:
    """Set seaborn's theme and the project's sizes; the fixed SVG salt makes equal figures equal files."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    matplotlib.rcParams.update({"figure.dpi": 100, "savefig.dpi": 150, "figure.constrained_layout.use": True,
                                "axes.titlesize": "medium", "svg.hashsalt": "lora-course", "legend.fontsize": "small"})


def rank_level(rank: int) -> int:
    """The rank of the table :data:`RANKS` that a rank takes its look from: the nearest by ratio.

    >>> rank_level(8), rank_level(9), rank_level(384)
    (8, 8, 512)
    """
    return min(RANKS, key=lambda level: abs(math.log2(level) - math.log2(rank)))


def method_style(label: str) -> dict | None:
    """Colour, marker and line of a method's label such as ``"LoRA r=8"``; None for what is no method.

    >>> method_style("LoRA r=8")["color"] == method_style("LoRA r=8, attention")["color"]
    True
    """
    found = _LABEL.fullmatch(label)
    if not found:
        return None
    family, rank = found["family"], found["rank"]
    if family in ("full", "base"):
        return {**(FULL if family == "full" else BASE), "linestyle": "-"}
    colour, marker = RANKS[rank_level(int(rank or 8))]
    if family != "LoRA":
        return {"color": VARIANTS[family], "marker": marker, "linestyle": "--"}
    return {"color": colour, "marker": marker, "linestyle": "-"}


def method_styles(methods: Iterable[str]) -> dict[str, dict]:
    """The look of each label; of labels that would look alike the later ones get another line and marker.

    A second fully tuned model is "full #2", a second rate of one method "LoRA r=8, 0.002": its own colour again.
    """
    palette, styles, others = sns.color_palette("colorblind"), {}, 0
    for method in dict.fromkeys(methods):
        style = method_style(method)
        if style is None:
            style = {"color": palette[others % len(palette)], "marker": MARKERS[(others + 1) % len(MARKERS)],
                     "linestyle": DASHES[(others + 1) % len(DASHES)]}
            others += 1
        alike = sum(style["color"] == other["color"] for other in styles.values())
        if any(style == other for other in styles.values()):
            style = style | {"linestyle": DASHES[(DASHES.index(style["linestyle"]) + alike) % len(DASHES)],
                             "marker": MARKERS[alike % len(MARKERS)]}
        styles[method] = style
    return styles
