"""Heat-maps of singular vectors and what is read off them (paper's Figs 1, 2b, 2c and 3)."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.reporting.drawn import Drawn, Found, figure, finding, shown_table
from utils.reporting.measured import Measured
from utils.reporting.panels import PANEL, label_left, outer_legend, panels
from utils.reporting.style import method_styles
from utils.reporting.words import both, listed, over_seeds

OFFSETS = "offsets"
SEEN = 24  # vectors of a heat-map: with more, an offset of one place is narrower than a pixel

Maps = Mapping[str, np.ndarray]


@figure("03_similarity", measurements=("similarity_summary",), place="Illusion v3, Fig 1")
def similarity(summary: Measured, maps: Maps, *, matrix: str) -> Drawn:
    """The first vectors as heat-maps, and how far each tuned vector's best match lies from its own index.

    Parameters
    ----------
    summary : Measured
        ``similarity_summary``, which the finding speaks of.
    maps : mapping of str to array of shape (tuned, pretrained)
        Absolute cosines by method.
    """
    figure_ = plt.figure(figsize=(2 * PANEL[0], 6.4))
    axes = figure_.subplot_mosaic([list(maps), [OFFSETS] * len(maps)], height_ratios=(2.2, 1))
    for method, cosines in maps.items():
        heat_map(axes[method], cosines[:SEEN, :SEEN], title=method)
        axes[method].plot((0.5, SEEN + 0.5), (0.5, SEEN + 0.5), color="white", linewidth=0.8, linestyle=":")
    figure_.colorbar(axes[next(iter(maps))].images[0], ax=[axes[method] for method in maps], label="|cosine|",
                     shrink=0.8)
    _offsets(axes[OFFSETS], maps, summary.profile.spectra.epsilon)
    outer_legend(figure_, [axes[OFFSETS]])
    figure_.suptitle(matrix, fontsize="medium")
    diagonal = {method: cosines.diagonal().mean() for method, cosines in maps.items()}
    moved = {method: float(np.median(best_offset(cosines)[10:])) for method, cosines in maps.items()}
    shown = pd.DataFrame({"method": list(maps), "mean |cosine| on the diagonal": list(diagonal.values()),
                          "mean best match": [cosines.max(1).mean() for cosines in maps.values()],
                          "median offset beyond the tenth": list(moved.values())})
    alt = (f"Heat-maps of absolute cosines between the first {SEEN} tuned (columns) and pretrained (rows) left "
           "singular vectors of one matrix, and below them the offset of each tuned vector's best match against its "
           f"index. Mean on the diagonal of all {len(next(iter(maps.values())))}: {listed(diagonal, '{:.2f}')}. Median "
           f"offset beyond the tenth vector: {listed(moved, '{:.0f}')}.")
    return Drawn(figure_, alt, "Tuned against pretrained singular vectors of one matrix, and how far each best match "
                               "lies "
                 "from the diagonal.", long_form(maps), shown)


@finding("03_similarity")
def similarity_found(summary: Measured, maps: Maps, *, matrix: str) -> Found:
    """What the tables say to :func:`similarity`, and whether it is what was expected."""
    shift = {kind: part["shift"].dropna() for kind, part in summary.best.groupby("method_kind")}
    shifted, still = (shift["lora"] > 0).all(), (shift["full"] == 0).all()
    return Found(f"In the clearest matrix of each seed, {summary.source}: LoRA's vectors beyond the tenth are "
                 f"displaced by {over_seeds(shift['lora'])} places, full fine-tuning's by {over_seeds(shift['full'])}. "
                 "The slope is the same in both; only the offset differs.", bool(shifted and still))


def best_offset(cosines: np.ndarray) -> np.ndarray:
    """Index of each tuned vector minus that of its best match; positive where others were pushed down."""
    return np.arange(len(cosines)) - cosines.argmax(1)


def _offsets(axis: Axes, maps: Maps, epsilon: float) -> None:
    """Offsets of the vectors that have a pretrained counterpart: an intruder's best match has no meaning."""
    for method, style in method_styles(maps).items():
        offsets, places = best_offset(maps[method]), np.arange(1, len(maps[method]) + 1)
        matched = maps[method].max(1) >= epsilon
        axis.plot(places[matched], offsets[matched], label=method, markersize=4, **style)
    axis.set(xlabel="index of the tuned vector (those with a counterpart)", ylabel="index minus\nbest match's index")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))


def heat_map(axis: Axes, cosines: np.ndarray, *, title: str) -> None:
    """Absolute cosines of shape (tuned, pretrained), tuned vectors in columns as in the paper."""
    tuned, pretrained = cosines.shape
    axis.imshow(cosines.T, vmin=0, vmax=1, cmap="viridis", origin="upper", aspect="equal", interpolation="nearest",
                extent=(0.5, tuned + 0.5, pretrained + 0.5, 0.5))
    axis.set(title=title, xlabel="tuned vector", ylabel="pretrained vector")
    axis.grid(False)


def outline_columns(axis: Axes, columns: list[int]) -> None:
    """Outline tuned vectors (indices from 1) of a heat-map, as the paper outlines intruders in magenta."""
    height = axis.images[0].get_array().shape[0]
    for column in columns:
        axis.add_patch(plt.Rectangle((column - 0.5, 0.5), 1, height, fill=False, edgecolor="magenta", linewidth=2,
                                     clip_on=False, zorder=3))


def side_by_side(maps: Maps, *, matrix: str) -> tuple[Figure, list[Axes]]:
    """One heat-map per method with one scale of colour."""
    figure_, axes = panels(len(maps), height=4.6)
    for axis, (title, cosines) in zip(axes, maps.items(), strict=True):
        heat_map(axis, cosines, title=title)
    figure_.colorbar(axes[0].images[0], ax=axes, label="|cosine|", shrink=0.8)
    figure_.suptitle(matrix, fontsize="medium")
    return figure_, axes


def long_form(maps: Maps) -> pd.DataFrame:
    """A similarity matrix per method as a tidy table: ``method``, ``tuned``, ``pretrained``, ``cosine``."""
    return pd.concat([pd.DataFrame(cosines, columns=range(1, cosines.shape[1] + 1)).assign(
        method=method, tuned=range(1, len(cosines) + 1)).melt(["method", "tuned"], var_name="pretrained",
                                                              value_name="cosine")
                      for method, cosines in maps.items()], ignore_index=True)


@figure("03_top_ten", measurements=("similarity_summary",), place="Illusion v3, Fig 3")
def top_ten(summary: Measured, maps: Maps, *, matrix: str) -> Drawn:
    """The leading vectors enlarged, with intruders outlined.

    `maps` holds all pretrained vectors (columns of each array), so that a best match further down is seen; drawn are
    the k leading ones of both sides.
    """
    spectra = summary.profile.spectra
    k, epsilon = spectra.k, spectra.epsilon
    figure_, axes = side_by_side({method: cosines[:k, :k] for method, cosines in maps.items()}, matrix=matrix)
    foreign = {method: [int(index) + 1 for index in np.flatnonzero(cosines[:k].max(1) < epsilon)]
               for method, cosines in maps.items()}
    for axis, columns in zip(axes, foreign.values(), strict=True):
        outline_columns(axis, columns)
    named = {method: both(map(str, columns)) or "none" for method, columns in foreign.items()}
    shown = pd.DataFrame({"method": list(named), f"intruders among the {k} leading": [*map(len, foreign.values())],
                          "their indices": list(named.values())})
    alt = (f"Two {k} by {k} heat-maps of absolute cosines between leading tuned (columns) and pretrained (rows) "
           f"vectors. Columns outlined as intruders (largest cosine below {epsilon}): "
           + "; ".join(f"{method}: {columns}" for method, columns in named.items()) + ".")
    return Drawn(figure_, alt, f"The {k} leading vectors of one matrix; columns outlined in magenta have no pretrained "
                 f"counterpart (largest cosine below {epsilon}).",
                 long_form({method: cosines[:k, :k] for method, cosines in maps.items()}), shown)


@finding("03_top_ten")
def top_ten_found(summary: Measured, maps: Maps, *, matrix: str) -> Found:
    """What the tables say to :func:`top_ten`, and whether it is what was expected."""
    blank = {kind: part["blank_rows"] for kind, part in summary.best.groupby("method_kind")}
    counts = (f"Among the ten leading vectors of the clearest matrix LoRA has {over_seeds(blank['lora'])} without a "
              f"pretrained counterpart, full fine-tuning {over_seeds(blank['full'])}, {summary.source}.")
    if not blank["full"].eq(0).all():
        return Found(f"{counts} So a blank column does not tell the two apart here.", False)
    return Found(f"{counts} The matrix was chosen for LoRA's least alike vector, so one for LoRA is no surprise; none "
                 "for full fine-tuning is the result.", bool(blank["lora"].gt(0).all()))


@figure("03_best_match", measurements=("similarity_summary",), place="Illusion v3, Fig 2b")
def best_match(summary: Measured, vectors: pd.DataFrame, *, level: tuple[float, float]) -> Drawn:
    """Largest cosine with any pretrained vector against the tuned vector's index.

    Parameters
    ----------
    vectors : pandas.DataFrame
        ``method``, ``index``, ``max_cosine`` of one matrix.
    level : tuple of float
        5th and 95th percentile of a random direction's largest cosine in this matrix.
    """
    epsilon = summary.profile.spectra.epsilon
    figure_, (axis,) = panels(1, width=8)
    for method, style in method_styles(vectors["method"].unique()).items():
        part = vectors[vectors["method"] == method]
        axis.plot(part["index"], part["max_cosine"], linestyle="none", marker=style["marker"], color=style["color"],
                  markersize=5, label=method, alpha=0.8)
    axis.axhline(epsilon, color="black", linestyle="--", linewidth=1, label=f"epsilon = {epsilon}")
    axis.axhspan(*level, color="grey", alpha=0.3, label="a random direction (5 to 95 %)")
    axis.set(xlabel="index of the tuned singular vector", ylabel="largest |cosine|", ylim=(0, 1.03))
    outer_legend(figure_, [axis])
    average = vectors.groupby("method", sort=False)["max_cosine"].agg(["mean", "min"]).reset_index()
    alt = ("Scatter of the largest absolute cosine with any pretrained vector against the index of the tuned vector. "
           + "; ".join(f"{row['method']}: mean {row['mean']:.2f}, least {row['min']:.2f}"
                       for row in average.to_dict("records"))
           + f". A random direction would reach {level[0]:.2f} to {level[1]:.2f}.")
    return Drawn(figure_, alt, "Each tuned vector's best match among the pretrained ones, in one matrix.", vectors,
                 shown_table(average, {"method": "method", "mean": "mean best match", "min": "least"}))


@finding("03_best_match")
def best_match_found(summary: Measured, vectors: pd.DataFrame, *, level: tuple[float, float]) -> Found:
    """What the tables say to :func:`best_match`, and whether it is what was expected."""
    mean = {kind: part["mean_cosine"] for kind, part in summary.best.groupby("method_kind")}
    difference = mean["lora"].to_numpy().mean() - mean["full"].to_numpy().mean()
    lower = (mean["lora"].to_numpy() < mean["full"].to_numpy()).all()
    return Found(f"The mean best match is {over_seeds(mean['full'])} for full fine-tuning and "
                 f"{over_seeds(mean['lora'])} for LoRA, {abs(difference):.2f} "
                 f"{'lower' if difference < 0 else 'higher'}, "
                 f"{summary.source}.", bool(lower))


@figure("03_one_vector", measurements=("similarity_summary",), place="Illusion v3, Fig 2c")
def one_vector(summary: Measured, rows: np.ndarray) -> Drawn:
    """The most and the least pretrained-like of LoRA's leading vectors against all pretrained ones.

    `rows` are absolute cosines of shape (leading tuned, all pretrained) of the LoRA run.
    """
    normal, strange = int(rows.max(1).argmax()), int(rows.max(1).argmin())
    figure_, axes = panels(2, sharey=True, height=3.4)
    colour = next(iter(method_styles([f"LoRA r={summary.profile.spectra.showcase_rank}"]).values()))["color"]
    for axis, index in zip(axes, (normal, strange), strict=True):
        axis.vlines(range(1, rows.shape[1] + 1), 0, rows[index], color=colour, linewidth=1)
        axis.set(title=f"LoRA's vector {index + 1}: best match {rows[index].max():.2f}",
                 xlabel="index of the pretrained vector", ylim=(0, 1.03))
    label_left(axes, "|cosine|")
    table = pd.DataFrame({"pretrained": range(1, rows.shape[1] + 1), "normal": rows[normal], "strange": rows[strange]})
    alt = (f"Two spike plots of the absolute cosine of one tuned vector with each of {rows.shape[1]} pretrained ones: "
           f"the closest match of the first is {rows[normal].max():.2f}, of the second only {rows[strange].max():.2f}; "
           f"the second has {_first_tenth(rows[strange]):.0%} of its squared length on the first tenth of them.")
    return Drawn(figure_, alt, "One normal and one foreign leading vector of LoRA against every pretrained "
                               "vector.", table)


def _first_tenth(row: np.ndarray) -> float:
    return float((row[:len(row) // 10]**2).sum() / (row**2).sum())


@finding("03_one_vector")
def one_vector_found(summary: Measured, rows: np.ndarray) -> Found:
    """What the tables say to :func:`one_vector`, and whether it is what was expected."""
    least = {kind: part["flattest"] for kind, part in summary.best.groupby("method_kind")}
    share = _first_tenth(rows[int(rows.max(1).argmin())])
    where = "evenly over all pretrained vectors" if share < 0.15 else (
        f"unevenly: {share:.0%} of its squared length lies on the first tenth of them")
    return Found(f"The least alike leading vector matches no pretrained one better than {over_seeds(least['lora'])} in "
                 f"LoRA and {over_seeds(least['full'])} in full fine-tuning, {summary.source}. In the run shown it "
                 "has no spike, but it is spread "
                 f"{where}.", bool(least["lora"].max() < summary.profile.spectra.epsilon))
