"""One look for every figure: colour-blind-safe palette, markers and line styles that double the colour."""

import matplotlib
import seaborn as sns

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))

FRONT = {"color": "0.75", "linewidth": 2.5}


def use_style() -> None:
    """Set seaborn's theme and the project's sizes; the fixed SVG salt makes equal figures equal files."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    matplotlib.rcParams.update({"figure.dpi": 100, "savefig.dpi": 150, "figure.constrained_layout.use": True,
                                "axes.titlesize": "medium", "svg.hashsalt": "lora-course", "legend.fontsize": "small"})


def method_styles(methods: list[str]) -> dict[str, dict]:
    """Colour, marker and dash of each method label; full fine-tuning is always black.

    A second fully tuned model is "full #2": black again, with a dash and marker of its own.
    """
    colours, styles, index = sns.color_palette("colorblind"), {}, 0
    for method in methods:
        if method.split(" #")[0] == "full":
            several = sum(style["color"] == "black" for style in styles.values())
            styles[method] = {"color": "black", "marker": MARKERS[several % len(MARKERS)],
                              "linestyle": DASHES[several % len(DASHES)]}
            continue
        styles[method] = {"color": colours[index % len(colours)], "marker": MARKERS[(index + 1) % len(MARKERS)],
                          "linestyle": DASHES[(index + 1) % len(DASHES)]}
        index += 1
    return styles
