"""Heat-maps of singular vectors and what is read off them (paper's Figs 1, 2b, 2c and 3)."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.reporting.drawn import Drawn, Found, all_met, figure, finding, shown_table
from utils.reporting.measured import Measured
from utils.reporting.panels import PANEL, chance_bands, label_left, outer_legend, panels
from utils.reporting.style import method_styles
from utils.reporting.words import both, over_seeds
from utils.studies.similarity.choice import LORA, ROLES, Shown, in_shown

SEEN = 24  # vectors of a heat-map: with more, an offset of one place is narrower than a pixel

Maps = Mapping[str, np.ndarray]


@figure("03_similarity", measurements=("similarity_summary",), place="Illusion v3, Fig 1")
def similarity(summary: Measured, maps: Mapping[str, Maps], *, shown: Sequence[Shown]) -> Drawn:
    """The first vectors as heat-maps, one row per matrix, and how far each tuned vector's best match lies from its own.

    Parameters
    ----------
    summary : Measured
        ``similarity_summary``, which the finding speaks of.
    maps : mapping of str to mapping of str to array of shape (tuned, pretrained)
        Absolute cosines by matrix and method.
    shown : sequence of Shown
        The matrices in the order in which they are drawn; the offsets are of the first.
    """
    rows = matrix_rows(shown)
    methods = list(maps[shown[0].matrix])
    figure_ = plt.figure(figsize=(2 * PANEL[0], 4.8 * len(rows) + 2))
    grid = figure_.add_gridspec(len(rows) + 1, len(methods), height_ratios=[2.2] * len(rows) + [1])
    drawn = []
    for place, (matrix, method) in enumerate((matrix, method) for matrix in rows for method in methods):
        drawn.append(figure_.add_subplot(grid[divmod(place, len(methods))]))
        heat_map(drawn[-1], maps[matrix][method][:SEEN, :SEEN], title=map_title(method, matrix, rows[matrix]))
        drawn[-1].plot((0.5, SEEN + 0.5), (0.5, SEEN + 0.5), color="white", linewidth=0.8, linestyle=":")
    figure_.colorbar(drawn[0].images[0], ax=drawn, label="|cosine|", shrink=0.6)
    offsets = figure_.add_subplot(grid[-1, :])
    _offsets(offsets, maps[shown[0].matrix], summary.profile.spectra.epsilon)
    offsets.set_title(f"{shown[0].matrix}, {shown[0].role}", fontsize="small")
    outer_legend(figure_, [offsets])
    numbers = _aligned(maps, rows)
    told = "; ".join(f"{row.matrix}, {row.method}: {row[3]:.2f} and {row[5]:.0f}" for row in numbers.itertuples())
    alt = (f"Heat-maps of absolute cosines between the first {SEEN} tuned (columns) and pretrained (rows) left "
           "singular vectors, one row per matrix, and below the offset of each tuned vector's best match in the first "
           "matrix. Mean on the diagonal of all vectors compared and median offset beyond the tenth: "
           f"{told}.")
    table = pd.concat([_drawn_cells(maps[matrix]).assign(matrix=matrix) for matrix in rows], ignore_index=True)
    return Drawn(figure_, alt, "Tuned against pretrained singular vectors, and how far each best match lies from the "
                               f"diagonal. Matrices: {choice_words(shown)}.", table, numbers)


def _aligned(maps: Mapping[str, Maps], rows: Mapping[str, str]) -> pd.DataFrame:
    """What the heat-maps come to in numbers, one row per matrix and method."""
    return pd.DataFrame([{"matrix": role, "method": method, "mean |cosine| on the diagonal": cosines.diagonal().mean(),
                          "mean best match": cosines.max(1).mean(),
                          "median offset beyond the tenth": float(np.median(best_offset(cosines)[10:]))}
                         for matrix, role in rows.items() for method, cosines in maps[matrix].items()])


def map_title(method: str, matrix: str, role: str) -> str:
    """What stands over a heat-map: method, matrix, and what the matrix stands for, in lines that fit the panel."""
    return "\n".join([method, matrix, *textwrap.wrap(role, 40)])


def matrix_rows(shown: Sequence[Shown]) -> dict[str, str]:
    """Each matrix once with what it stands for, in order: two roles may fall on one."""
    rows: dict[str, list[str]] = {}
    for one in shown:
        rows.setdefault(one.matrix, []).append(one.role)
    return {matrix: both(roles) for matrix, roles in rows.items()}


def choice_words(shown: Sequence[Shown]) -> str:
    """How the matrices were chosen, in words for a caption."""
    seeds = shown[0].seeds
    roles = both(one.role for one in shown)
    return f"{roles} by {'seeds' if len(seeds) > 1 else 'seed'} {both(map(str, seeds))}, not by the one shown" \
        if seeds else f"{roles}, since there is no other seed to choose on"


def _drawn_cells(maps: Maps) -> pd.DataFrame:
    """The cells of the heat-maps, and each tuned vector's best match, of which the offsets are."""
    table = long_form(maps)
    best = table.groupby(["method", "tuned"])["cosine"].transform("max") == table["cosine"]
    return table[best | ((table["tuned"] <= SEEN) & (table["pretrained"] <= SEEN))]


@finding("03_similarity")
def similarity_found(summary: Measured, maps: Mapping[str, Maps], *, shown: Sequence[Shown]) -> Found:
    """What the tables say to :func:`similarity`, and whether it is what was expected."""
    roles = [role for role in ROLES if role in {one.role for one in shown}] or [shown[0].role]
    told, met = [], []
    for role in roles:
        shift = {kind: part["shift"].dropna() for kind, part in in_shown(summary.best, role).groupby("method_kind")}
        if not all(len(shift.get(kind, ())) for kind in ("lora", "full")):
            continue
        told.append(f"in the matrix {role} by LoRA {over_seeds(shift['lora'])} and by full fine-tuning "
                    f"{over_seeds(shift['full'])}")
        met.append(bool((shift["full"] == 0).all() and (role != roles[0] or (shift["lora"] > 0).all())))
    if not told:
        return Found(f"No seed has been measured in a matrix that other seeds chose, {summary.source}.", None)
    chosen = "; each seed's matrix was chosen on the others" if summary.best["seed"].nunique() > 1 else ""
    return Found("Places by which vectors beyond the tenth are displaced, "
                 f"{'; '.join(told)}, {summary.source}{chosen}.", all_met(*met))


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
    axis.set(xlabel="tuned vector", ylabel="pretrained vector")
    axis.set_title(title, fontsize="small")
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
def top_ten(summary: Measured, maps: Mapping[str, Maps], *, shown: Sequence[Shown]) -> Drawn:
    """The leading vectors enlarged, with intruders outlined, one row per matrix.

    `maps` holds all pretrained vectors (columns of each array), so that a best match further down is seen; drawn are
    the k leading ones of both sides.
    """
    spectra = summary.profile.spectra
    k, epsilon = spectra.k, spectra.epsilon
    rows = matrix_rows(shown)
    cells = [(matrix, method) for matrix in rows for method in maps[matrix]]
    figure_, axes = panels(len(cells), height=4.8)
    foreign = {}
    for axis, (matrix, method) in zip(axes, cells, strict=True):
        heat_map(axis, maps[matrix][method][:k, :k], title=map_title(method, matrix, rows[matrix]))
        foreign[matrix, method] = [int(index) + 1
                                   for index in np.flatnonzero(maps[matrix][method][:k].max(1) < epsilon)]
        outline_columns(axis, foreign[matrix, method])
    figure_.colorbar(axes[0].images[0], ax=axes, label="|cosine|", shrink=0.6)
    numbers = pd.DataFrame([{"matrix": rows[matrix], "method": method, f"intruders among the {k} leading": len(columns),
                             "their indices": both(map(str, columns)) or "none"}
                            for (matrix, method), columns in foreign.items()])
    told = "; ".join(f"{row[1]}, {row[2]}: {row[4]}" for row in numbers.itertuples())
    alt = (f"{k} by {k} heat-maps of absolute cosines between leading tuned (columns) and pretrained (rows) vectors, "
           f"one row per matrix. Columns outlined as intruders (largest cosine below {epsilon}): {told}.")
    table = pd.concat([long_form({method: cosines[:k, :k] for method, cosines in maps[matrix].items()}).assign(
        matrix=matrix) for matrix in rows], ignore_index=True)
    return Drawn(figure_, alt, f"The {k} leading vectors; columns outlined in magenta have no pretrained counterpart "
                 f"(largest cosine below {epsilon}). Matrices: {choice_words(shown)}.", table, numbers)


@finding("03_top_ten")
def top_ten_found(summary: Measured, maps: Mapping[str, Maps], *, shown: Sequence[Shown]) -> Found:
    """What the tables say to :func:`top_ten`, and whether it is what was expected."""
    at = in_shown(summary.best, LORA)
    blank = {kind: part["blank_rows"] for kind, part in at.groupby("method_kind")}
    if set(blank) != {"lora", "full"}:
        return Found(f"No seed has been measured in a matrix that other seeds chose, {summary.source}.", None)
    how = "that the other seeds find clearest for LoRA" if summary.best["seed"].nunique() > 1 else "in the middle"
    counts = (f"Among the ten leading vectors of the matrix {how} LoRA has {over_seeds(blank['lora'])} without a "
              f"pretrained counterpart, full fine-tuning {over_seeds(blank['full'])}, {summary.source}.")
    if summary.best.groupby("run")["matrix"].nunique().min() > 1:
        share = (summary.best["blank_rows"] > 0).groupby(summary.best["method_kind"]).mean()
        counts += (f" Of all matrices {share['lora']:.0%} have one or more after LoRA, {share['full']:.0%} after full "
                   "fine-tuning.")
    return Found(counts, bool(blank["full"].eq(0).all() and blank["lora"].gt(0).all()))


@figure("03_best_match", measurements=("similarity_summary",), place="Illusion v3, Fig 2b")
def best_match(summary: Measured, vectors: pd.DataFrame, *, shown: Shown, chance: pd.DataFrame) -> Drawn:
    """Largest cosine with any pretrained vector against the tuned vector's index.

    Parameters
    ----------
    vectors : pandas.DataFrame
        ``method``, ``index``, ``max_cosine`` of one matrix.
    shown : Shown
        That matrix, and how it was chosen.
    chance : pandas.DataFrame
        Where a random direction's largest cosine lies in it, of :func:`utils.spectra.random_ranges`.
    """
    epsilon = summary.profile.spectra.epsilon
    figure_, (axis,) = panels(1, width=8)
    for method, style in method_styles(vectors["method"].unique()).items():
        part = vectors[vectors["method"] == method]
        axis.plot(part["index"], part["max_cosine"], linestyle="none", marker=style["marker"], color=style["color"],
                  markersize=5, label=method, alpha=0.8)
    axis.axhline(epsilon, color="black", linestyle="--", linewidth=1, label=f"epsilon = {epsilon}")
    chance_bands(axis, chance, upright=False)
    axis.set(xlabel="index of the tuned singular vector", ylabel="largest |cosine|", ylim=(0, 1.03))
    outer_legend(figure_, [axis])
    average = vectors.groupby("method", sort=False)["max_cosine"].agg(["mean", "min"]).reset_index()
    alt = ("Scatter of the largest absolute cosine with any pretrained vector against the index of the tuned vector. "
           + "; ".join(f"{row['method']}: mean {row['mean']:.2f}, least {row['min']:.2f}"
                       for row in average.to_dict("records"))
           + f". A random direction would reach {chance['low'].min():.2f} to {chance['high'].max():.2f}.")
    return Drawn(figure_, alt, "Each tuned vector's best match among the pretrained ones, in one matrix: "
                               f"{shown.words}.", vectors,
                 shown_table(average, {"method": "method", "mean": "mean best match", "min": "least"}))


@finding("03_best_match")
def best_match_found(summary: Measured, vectors: pd.DataFrame, *, shown: Shown, chance: pd.DataFrame) -> Found:
    """What the tables say to :func:`best_match`, and whether it is what was expected."""
    mean = {kind: part["mean_cosine"] for kind, part in in_shown(summary.best, shown.role).groupby("method_kind")}
    if set(mean) != {"lora", "full"}:
        return Found(f"No seed has been measured in a matrix that other seeds chose, {summary.source}.", None)
    difference = mean["lora"].to_numpy().mean() - mean["full"].to_numpy().mean()
    lower = (mean["lora"].to_numpy() < mean["full"].to_numpy()).all()
    return Found(f"In the matrix {shown.role} the mean best match is {over_seeds(mean['full'])} for full "
                 "fine-tuning and "
                 f"{over_seeds(mean['lora'])} for LoRA, {abs(difference):.2f} "
                 f"{'lower' if difference < 0 else 'higher'}, "
                 f"{summary.source}.", bool(lower))


@figure("03_one_vector", measurements=("similarity_summary",), place="Illusion v3, Fig 2c")
def one_vector(summary: Measured, rows: np.ndarray, *, shown: Shown) -> Drawn:
    """The most and the least pretrained-like of LoRA's leading vectors against all pretrained ones.

    Parameters
    ----------
    rows : numpy.ndarray of shape (leading tuned, all pretrained)
        Absolute cosines of the LoRA run in the matrix `shown`.
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
    return Drawn(figure_, alt, "The most and the least pretrained-like of LoRA's leading vectors against every "
                               f"pretrained one, in one matrix: {shown.words}.", table)


def _first_tenth(row: np.ndarray) -> float:
    return float((row[:len(row) // 10]**2).sum() / (row**2).sum())


@finding("03_one_vector")
def one_vector_found(summary: Measured, rows: np.ndarray, *, shown: Shown) -> Found:
    """What the tables say to :func:`one_vector`, and whether it is what was expected."""
    least = {kind: part["flattest"] for kind, part in in_shown(summary.best, shown.role).groupby("method_kind")}
    if set(least) != {"lora", "full"}:
        return Found(f"No seed has been measured in a matrix that other seeds chose, {summary.source}.", None)
    share = _first_tenth(rows[int(rows.max(1).argmin())])
    where = "evenly over all pretrained vectors" if share < 0.15 else (
        f"unevenly: {share:.0%} of its squared length lies on the first tenth of them")
    return Found(f"The least alike leading vector matches no pretrained one better than {over_seeds(least['lora'])} in "
                 f"LoRA and {over_seeds(least['full'])} in full fine-tuning, {summary.source}. In the run shown it "
                 "has no spike, but it is spread "
                 f"{where}.", bool(least["lora"].max() < summary.profile.spectra.epsilon))
