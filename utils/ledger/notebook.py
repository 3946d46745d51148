"""What every notebook begins and ends with: profile and seeds, the cost card, the verdicts, the self-check."""

import math
from collections.abc import Callable

import pandas as pd
from IPython.display import Markdown, display

from utils.errors import UsageError
from utils.ledger.cells import notebook_cells
from utils.ledger.claims import own_verdicts, verdicts
from utils.ledger.page import effect_text, keep_own, own_text, sentence_of
from utils.ledger.reference import COSTS, measured_costs, reference_folder, reference_note
from utils.ledger.session import measured_tables, start_session
from utils.machine import set_up_process
from utils.paths import NOTEBOOKS, notebook_files, notebook_number, reference_dir
from utils.profiles import Profile, load_profile
from utils.profiles.used import remember
from utils.reporting.style import use_style


def begin(notebook: str, profile_name: str, seeds: list[int] | None = None) -> tuple[Profile, tuple[int, ...]]:
    """Load the profile, set up the libraries, and show what the notebook cost where it was measured.

    Parameters
    ----------
    notebook : str
        Its number, such as ``"04"`` or ``"04b"``.
    profile_name : str
        The notebook's parameter ``PROFILE``.
    seeds : list of int, optional
        The notebook's parameter ``SEEDS``; the profile's own seeds if empty.

    Raises
    ------
    UsageError
        If the profile is unknown, or `seeds` is no list of different whole numbers.
    """
    profile = load_profile(profile_name)
    if seeds and (not isinstance(seeds, list | tuple) or len({*map(str, seeds)}) < len(seeds)
                  or not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds)):
        raise UsageError(f"Expected SEEDS to be a list of different whole numbers such as [0, 1], got {seeds!r}; give "
                         "such a list, or None for the profile's own.")
    set_up_process()
    use_style()
    start_session()
    chosen = tuple(seeds or profile.seeds)
    remember(profile, chosen)
    display(Markdown(f"**Profile `{profile.profile}`**, seeds {list(chosen)}. {profile.summary}"))
    display(Markdown(cost_card(notebook)))
    display(Markdown(reference_note(profile)))
    return profile, chosen


def cost_card(notebook: str) -> str:
    """Measured seconds and memory of a notebook at each profile where it was run, as a Markdown table."""
    lines = ["| profile | runs trained | seconds, first run | seconds, run again | peak GiB |", "|---|---|---|---|---|"]
    for measured_at in sorted(path.parent.name for path in reference_dir().glob(f"*/{COSTS}")):
        for name, cost in measured_costs(measured_at).items():
            if notebook_number(name) == notebook:
                cold, warm = cost.get("cold", {}), cost.get("warm", {})
                peak = max(entry["peak_gib"] for entry in cost.values())
                lines.append(f"| {measured_at} | {cold.get('trained_runs', '')} | {cold.get('seconds', '')} | "
                             f"{warm.get('seconds', '')} | {peak} |")
    return "\n".join(lines) if len(lines) > 2 else "Not measured on any machine yet."


def course_map(profile: Profile) -> pd.DataFrame:
    """Every notebook with its title and what it cost where this profile was measured.

    Returns
    -------
    pandas.DataFrame
        ``notebook``, ``about``, ``seconds, first run``, ``seconds, again``, ``peak GiB``; NaN where never measured.
        Smoke shows those of the laptop.
    """
    costs, rows = measured_costs(reference_folder(profile).name), []
    for number, notebook in notebook_files(NOTEBOOKS).items():
        (_, first), *_ = notebook_cells(notebook)
        cost = costs.get(notebook.stem, {})
        rows.append({"notebook": number, "about": first.splitlines()[0].split("· ")[-1],
                     "seconds, first run": cost.get("cold", {}).get("seconds"),
                     "seconds, again": cost.get("warm", {}).get("seconds"),
                     "peak GiB": max((entry["peak_gib"] for entry in cost.values()), default=None)})
    return pd.DataFrame(rows)


def conclude(profile: Profile, notebook: str) -> None:
    """Show each claim of the notebook: the verdict of the reference results, and what the reader's runs say.

    The reader's runs are what :func:`utils.ledger.session.measured` gave since ``begin``; what they say is kept for
    the ledger of notebook 17.
    """
    own = own_verdicts(measured_tables(profile), profile, notebook)
    keep_own(own, profile, notebook)
    table = verdicts(profile, notebook).merge(own, on=["claim", "epsilon"], how="left")
    rows = table.to_dict("records")
    shown = pd.DataFrame({
        "claim": [sentence_of(row) for row in rows], "verdict": table["verdict"],
        "effect, 95 % interval": [effect_text(row) for row in rows], "expected": table["expect"],
        "yours": [own_text(row) for row in rows], "control": table["control"]})
    display(shown.style.hide(axis="index").set_properties(subset=["claim", "control"], **{"white-space": "normal"}))
    if not profile.evidence:
        display(Markdown("*This profile's own numbers are no evidence; only the reference's verdicts count.*"))


def check(answer: object, expected: Callable[[], float], *, tolerance: float = 1e-6, hint: str = "") -> None:
    """Compare the reader's answer with the computed one, without showing it.

    Parameters
    ----------
    answer : float, int or None
        None means "not answered yet", which is no error.
    expected : callable
        Computes the right value; only called once there is an answer.
    """
    if answer is None:
        print("Not answered yet: replace None above and run the cell again.")
    elif math.isclose(float(answer), float(expected()), rel_tol=tolerance, abs_tol=tolerance):
        print("Right.")
    else:
        print(f"Not yet. {hint}".strip())
