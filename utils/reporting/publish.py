"""Publishing a figure: image, table and provenance under one name; shown with caption, small table and what was found.

A reader's figures go to ``figures/yours/<profile>/``, which git ignores; only ``course --publish`` writes the
committed ones in ``figures/<profile>/``.
"""

import io
import os
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure

from utils.errors import CourseError
from utils.files import atomic_write, read_json, write_json, write_text
from utils.paths import ensure_dir, figures_dir, relative
from utils.profiles import Profile
from utils.provenance import provenance
from utils.reporting.drawn import MOST_COLUMNS, MOST_ROWS, Drawn, Found
from utils.reporting.registry import FINDINGS, nearest

STAMP = "smoke: not evidence"
PUBLISH_VARIABLE = "LORA_COURSE_PUBLISH"
MET = {True: "As expected.", False: "Not what was expected.", None: "Whether that was expected cannot be said here."}


def figure_folder(profile: Profile) -> Path:
    """Where this process writes a profile's figures: the reader's own folder, or the committed one when publishing."""
    root = figures_dir()
    return (root if os.environ.get(PUBLISH_VARIABLE) == "1" else root / "yours") / profile.profile


def publish(drawn: Drawn) -> None:
    """Write a figure's image, table and provenance, and show image, caption and small table.

    Raises
    ------
    CourseError
        If the table is empty, the alt text too short to say anything, the caption no single sentence, or the small
        table larger than a reader takes in.
    """
    _check(drawn)
    profile, identifier, figure = drawn.profile, drawn.identifier, drawn.figure
    if not profile.evidence:
        figure.text(0.5, 0.5, STAMP, fontsize=28, color="grey", alpha=0.35, ha="center", va="center", rotation=25)
    _lay_out(figure)
    folder = ensure_dir(figure_folder(profile))
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    with atomic_write(folder / f"{identifier}.png") as temporary:
        temporary.write_bytes(png.getvalue())
    with atomic_write(folder / f"{identifier}.svg") as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    plt.close(figure)
    table = drawn.table
    write_text(folder / f"{identifier}.csv", table.to_csv(index=False))
    write_json(folder / f"{identifier}.json", {
        "figure": identifier, "profile": profile.profile, "evidence": profile.evidence, "alt": drawn.alt,
        "caption": drawn.caption, "rows": len(table), "columns": list(table.columns),
        "runs": sorted(set(table.get("run", []))), "provenance": provenance()})
    display(Image(png.getvalue(), width=min(900, int(figure.get_size_inches()[0] * 80)), alt=drawn.alt))
    display(Markdown(f"*{drawn.caption}* Table: `{relative(folder / identifier)}.csv`, {len(table)} rows."))
    if drawn.shown is not None:
        # A name of its own in place of a random one, or the notebook would differ each time that it is executed.
        styled = drawn.shown.style.set_uuid(identifier).hide(axis="index")
        display(styled.format(precision=3, na_rep=""))


def _lay_out(figure: Figure) -> None:
    """Give everything its place, once for both files; each would find it again, which takes longer than to draw."""
    if (dpi := matplotlib.rcParams["savefig.dpi"]) != "figure":  # as it is without our style
        figure.set_dpi(dpi)
    figure.draw_without_rendering()
    if _keep_inside(figure):
        figure.draw_without_rendering()
    figure.set_layout_engine("none")


def _keep_inside(figure: Figure) -> bool:
    """Break the titles and axis labels that leave the figure in two, at the space nearest their middle; True if any.

    The layout makes room for a label's height alone, so one longer than its panel is cut off at the image's edge.
    """
    broken = False
    for text in [text for axis in figure.axes for text in (axis.title, axis.xaxis.label, axis.yaxis.label)]:
        box, whole, words = text.get_window_extent(), figure.bbox, text.get_text()
        outside = box.x0 < whole.x0 or box.x1 > whole.x1 or box.y0 < whole.y0 or box.y1 > whole.y1
        # A formula between two $ is not broken.
        spaces = [at for at, letter in enumerate(words) if letter == " " and words[:at].count("$") % 2 == 0]
        if outside and spaces and "\n" not in words:
            middle = min(spaces, key=lambda at: abs(at - len(words) / 2))
            text.set_text(f"{words[:middle]}\n{words[middle + 1:]}")
            broken = True
    return broken


def _check(drawn: Drawn) -> None:
    if not drawn.identifier:
        raise CourseError("Expected what a registered figure function returns, got a figure without a name; decorate "
                          "the function with @figure.")
    if drawn.table.empty or len(drawn.alt) < 40:
        raise CourseError(f"Figure {drawn.identifier} needs a table with rows and an alt text that describes it; got "
                          f"{len(drawn.table)} rows and {len(drawn.alt)} characters.")
    if not drawn.caption.endswith(".") or len(drawn.caption) < 20 or len(drawn.caption) > 300:
        raise CourseError(f"Figure {drawn.identifier} needs a caption of one sentence, 20 to 300 characters with a "
                          f"full stop; got '{drawn.caption}'.")
    if drawn.shown is not None and (drawn.shown.shape[1] > MOST_COLUMNS or len(drawn.shown) > MOST_ROWS):
        raise CourseError(f"The table under figure {drawn.identifier} has {len(drawn.shown)} rows and "
                          f"{drawn.shown.shape[1]} columns; show at most {MOST_ROWS} and {MOST_COLUMNS}, the CSV holds "
                          "all.")


def found(drawn: Drawn) -> None:
    """Print what the figure shows, computed from its tables, and whether that was expected."""
    if drawn.identifier not in FINDINGS:
        raise CourseError(f"Figure '{drawn.identifier}' has no finding; write one beside its function and decorate it "
                          f"with @finding('{drawn.identifier}') ({nearest(drawn.identifier, FINDINGS)}).")
    args, keywords = drawn.inputs
    result: Found = FINDINGS[drawn.identifier](*args, **keywords)
    display(Markdown(f"**Found.** {result.text} *{MET[result.met]}*"))


def published_alt(identifier: str, profile_name: str) -> str:
    """The alt text that a committed figure was published with."""
    path = figures_dir() / profile_name / f"{identifier}.json"
    try:
        return str(read_json(path)["alt"])
    except (FileNotFoundError, KeyError, TypeError) as error:
        raise CourseError(f"{relative(path)} tells no alt text of figure {identifier}; publish it anew.") from error
