"""Publishing a figure: image, table and provenance under one name, shown with its alt text."""

import io
import json

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure

from utils.errors import CourseError
from utils.files import atomic_write, write_json, write_text
from utils.paths import ensure_dir, figures_dir
from utils.profiles import Profile
from utils.provenance import provenance

STAMP = "smoke: not evidence"


def publish(figure: Figure, table: pd.DataFrame, identifier: str, *, alt: str, profile: Profile,
            rows_shown: int = 12) -> None:
    """Write a figure's image, table and provenance, and show image, alt text and the table's first rows.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    table : pandas.DataFrame
        Exactly what was drawn of our own results.
    identifier : str
        File name without suffix, such as ``"04_count_against_epsilon"``.
    alt : str
        What a reader who cannot see the figure needs: the kind of plot, its axes and what it shows, with numbers.
    profile : Profile
        Decides the folder, and the stamp where its results are no evidence.
    rows_shown : int
        Rows of the table printed under the figure; the CSV holds all.

    Raises
    ------
    CourseError
        If the table is empty or the alt text too short to say anything.
    """
    if table.empty or len(alt) < 40:
        raise CourseError(f"Figure {identifier} needs a table with rows and an alt text that describes it; got "
                          f"{len(table)} rows and {len(alt)} characters.")
    if not profile.evidence:
        figure.text(0.5, 0.5, STAMP, fontsize=28, color="grey", alpha=0.35, ha="center", va="center", rotation=25)
    folder = ensure_dir(figures_dir() / profile.profile)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    with atomic_write(folder / f"{identifier}.png") as temporary:
        temporary.write_bytes(png.getvalue())
    with atomic_write(folder / f"{identifier}.svg") as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    plt.close(figure)
    write_text(folder / f"{identifier}.csv", table.to_csv(index=False))
    write_json(folder / f"{identifier}.json", {
        "figure": identifier, "profile": profile.profile, "evidence": profile.evidence, "alt": alt,
        "rows": len(table), "columns": list(table.columns), "runs": sorted(set(table.get("run", []))),
        "provenance": provenance()})
    display(Image(png.getvalue(), width=min(900, int(figure.get_size_inches()[0] * 80)), alt=alt))
    display(Markdown(f"*{alt}* Table: `figures/{profile.profile}/{identifier}.csv`, {len(table)} rows."))
    display(table.head(rows_shown).style.hide(axis="index").format(precision=4))


def published_alt(identifier: str, profile_name: str) -> str:
    """The alt text that a figure was published with."""
    path = figures_dir() / profile_name / f"{identifier}.json"
    return json.loads(path.read_text(encoding="utf-8"))["alt"]
