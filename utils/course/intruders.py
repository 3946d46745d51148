"""``python -m utils intruders``: the count between any two checkpoints, streamed matrix by matrix."""

import re
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import CourseError, UsageError
from utils.files import atomic_write
from utils.machine import device_name
from utils.progress import track
from utils.provenance import provenance
from utils.sources.pairs import CheckpointPair, open_pair, place_of
from utils.spectra.cache import SpectrumCache
from utils.spectra.checkpoint_pairs import checkpoint_pairs, stored_floor, stored_types
from utils.spectra.fast import Leading, leading_cosines
from utils.spectra.svd import is_intruder

if TYPE_CHECKING:
    import pandas as pd  # as every other import here that only the figure needs, when it is drawn


def analyse(base: str, tuned: str, *, k: int = 10, epsilons: list[float] | None = None,
            layers: re.Pattern | None = None, vectors: str = "left", device: str = "auto",
            allow_pickle: bool = False, adapter: str | None = None) -> dict:
    """Count the intruder dimensions of a tuned model, exactly as defined, with everything the counts follow from.

    Parameters
    ----------
    base : str
        Folder or Hub name; ``"-"`` for the base that the adapter's configuration names.
    tuned : str
        Folder or Hub name of a model, or of a PEFT LoRA adapter over `base`.
    k, epsilons, vectors
        See :func:`utils.spectra.fast.leading_cosines`; epsilons 0.1 … 0.9 by default.
    layers : re.Pattern, optional
        Only matrices whose name has a match.
    device : {"auto", "cpu", "cuda"}
    allow_pickle, adapter
        See :func:`utils.sources.checkpoints.open_checkpoint`.

    Returns
    -------
    dict
        Ready for JSON: ``base``, ``tuned``, ``k``, ``epsilons``, ``vectors``, ``total`` (epsilon -> count),
        ``matrices`` (each with ``name``, ``shape``, ``method``, ``stored``, ``singular_values``, ``max_cosines``,
        ``margin`` (the least distance of a cosine to an epsilon), ``precision_floor``, ``base_largest``, ``counts``),
        ``precision_floor`` (the largest), ``within_floor`` (decisions nearer to an epsilon than that), ``notes``,
        ``seconds``, ``provenance``.

    Raises
    ------
    UsageError
        Whatever is wrong with the two checkpoints, in one sentence.
    """
    epsilons = epsilons or [round(0.1 * part, 1) for part in range(1, 10)]
    device = _device(device)
    pair = open_pair(base, tuned, layers=layers, allow_pickle=allow_pickle, allow_base_pickle=allow_pickle,
                     adapter=adapter)
    started, matrices = time.perf_counter(), []
    try:
        found = leading_cosines(checkpoint_pairs(pair.original, pair.changed, pair.sources), k=k, epsilons=epsilons,
                                vectors=vectors, spectrum=SpectrumCache(device=device).spectrum, device=device)
        for one in track(found, total=len(pair.sources), label="matrices"):
            matrices.append(_row(one, pair, epsilons, vectors=vectors))
    except CourseError as error:
        raise UsageError(str(error)) from error
    seconds = time.perf_counter() - started
    total = {_key(epsilon): sum(row["counts"][_key(epsilon)] for row in matrices) for epsilon in epsilons}
    within = sum(_within(row, epsilons) for row in matrices)
    return {"base": pair.original.name, "tuned": tuned, "k": k, "epsilons": epsilons, "vectors": vectors,
            "total": total, "matrices": matrices, "precision_floor": max(row["precision_floor"] for row in matrices),
            "within_floor": within, "notes": list(pair.notes), "seconds": round(seconds, 3),
            "provenance": provenance() | {"device": device, "base_folder": pair.original.folder.resolve().name,
                                          "tuned_folder": pair.changed.folder.resolve().name}}


def _key(epsilon: float) -> str:
    """A threshold as a key of JSON: every digit, so that two thresholds never share one."""
    return repr(float(epsilon))


def _device(asked: str) -> str:
    if asked == "cuda" and device_name() != "cuda":
        raise UsageError("--device cuda was asked for, but torch sees no GPU here; use --device cpu.")
    return device_name() if asked == "auto" else asked


def _row(found: Leading, pair: CheckpointPair, epsilons: list[float], *, vectors: str) -> dict:
    stored = stored_types(pair.original, pair.changed, found.name, tuned_name=pair.sources[found.name])
    floor = stored_floor(found, stored, vectors)
    cosines = found.max_cosines
    return {"name": found.name, "shape": list(found.shape), "method": found.method,
            "stored": [str(kind).removeprefix("torch.") for kind in stored],
            "singular_values": found.singular_values.tolist(), "max_cosines": cosines.tolist(),
            "margin": min((cosines - epsilon).abs().min().item() for epsilon in epsilons),
            "precision_floor": floor.max().item(), "base_largest": found.base_values[0].item(),
            "counts": {_key(epsilon): int(is_intruder(cosines, epsilon).sum()) for epsilon in epsilons}}


def _within(row: dict, epsilons: list[float]) -> int:
    return sum(abs(cosine - epsilon) < row["precision_floor"] for cosine in row["max_cosines"] for epsilon in epsilons)


def summary(report: dict) -> str:
    """What a reader wants to know of a report, in a few lines."""
    matrices = report["matrices"]
    methods = Counter(row["method"] for row in matrices)
    stored = sorted({kind for row in matrices for kind in row["stored"]})
    lines = [(f"{report['tuned']} against {report['base']}: {len(matrices)} matrices, {report['vectors']} vectors, "
              f"k = {report['k']}"), *report["notes"],
             "epsilon    " + " ".join(f"{epsilon:>6g}" for epsilon in report["epsilons"]),
             "intruders  " + " ".join(f"{count:>6}" for count in report["total"].values())]
    least = min(matrices, key=lambda row: min(row["max_cosines"]))
    place = least["max_cosines"].index(min(least["max_cosines"]))
    lines.append(f"Least like any pretrained vector: number {place + 1} of {least['name']}, largest cosine "
                 f"{least['max_cosines'][place]:.3f}, singular value {least['singular_values'][place]:.3g} "
                 f"(the base's largest: {least['base_largest']:.3g}).")
    lines.append(f"Stored as {' and '.join(stored)}, which leaves cosines open by about "
                 f"{report['precision_floor']:.1g}; {report['within_floor']} of {_decisions(report)} decisions "
                 "are nearer to their epsilon than that.")
    ways = ", ".join(f"{n} {name}" for name, n in methods.most_common())
    lines.append(f"Computed in {report['seconds']:.2f} s: {ways}. The counts are those of the definition.")
    return "\n".join(lines)


def _decisions(report: dict) -> int:
    return sum(len(row["max_cosines"]) for row in report["matrices"]) * len(report["epsilons"])


def tables(report: dict) -> "tuple[pd.DataFrame, pd.DataFrame, float]":
    """Counts by epsilon, places by layer and type, and the epsilon of the places (the one nearest to 0.5)."""
    import pandas as pd

    epsilon = min(report["epsilons"], key=lambda value: abs(value - 0.5))
    counts = pd.DataFrame({"epsilon": report["epsilons"], "n_intruders": list(report["total"].values())})
    split = [place_of(row["name"]) for row in report["matrices"]]
    several = len({prefix for prefix, _, _ in split}) > 1
    places = pd.DataFrame([{"layer": layer, "type": f"{prefix}…{kind}" if several else kind,
                            "n_intruders": row["counts"][_key(epsilon)]}
                           for (prefix, layer, kind), row in zip(split, report["matrices"], strict=True)])
    return counts, places, epsilon


def _short(source: str) -> str:
    """A Hub name as it is, a folder by its last part."""
    return Path(source).name if Path(source).is_dir() else source


def draw(report: dict, file: Path) -> None:
    """Write the figure of a report; what it shows in words goes into a PNG's or SVG's description."""
    import matplotlib

    matplotlib.use("Agg")
    from utils.spectra.chance import random_ranges
    from utils.studies.intruders.subsets import intruder_overview

    counts, places, epsilon = tables(report)
    shapes = [row["shape"] if report["vectors"] == "left" else row["shape"][::-1] for row in report["matrices"]]
    figure = intruder_overview(counts, places, title=f"{_short(report['tuned'])} against {_short(report['base'])}, "
                               f"k = {report['k']}", epsilon=epsilon, chance=random_ranges(shapes))
    total = ", ".join(f"{count} at epsilon {epsilon}" for epsilon, count in report["total"].items())
    words = (f"Intruder dimensions of {report['tuned']} against {report['base']}: line of the count over epsilon "
             f"({total}), and heat-map by layer and matrix type at epsilon {epsilon:g}.")
    key = {".png": {"Description": words, "Software": None}, ".svg": {"Description": words, "Date": None},
           ".pdf": {"Subject": words, "CreationDate": None}}[file.suffix]
    with atomic_write(file) as temporary:
        figure.savefig(temporary, format=file.suffix[1:], metadata=key)
