"""The ledger as one page: every claim with what was published, the reference's verdict, the reader's own, and a link.

Everything here is computed from tables and from the notebooks' own cells.
"""

import io
from itertools import cycle
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from utils.errors import CourseError
from utils.files import read_text, write_text
from utils.ledger.claims import PAPERS, claim_link, verdicts
from utils.ledger.reference import reference_note
from utils.paths import cache_dir, ensure_dir, reference_dir
from utils.profiles import Profile
from utils.reporting.drawn import Drawn, figure
from utils.reporting.panels import panels
from utils.reporting.verdicts import (
    ARITHMETIC,
    DOES_NOT_HOLD,
    HOLDS,
    NO_POWER,
    NOT_REPRODUCED,
    OUT_OF_REACH,
    REPRODUCED,
    SAME_DIRECTION,
    TOO_FEW,
    UNDECIDED,
    chance,
)

OURS = "What this course adds"
BY_ARITHMETIC = "True by arithmetic, no evidence"
TITLES = (*dict.fromkeys(PAPERS.values()), OURS, BY_ARITHMETIC)
LOOKS = {REPRODUCED: ("#0173b2", ""), HOLDS: ("#0173b2", "||"), SAME_DIRECTION: ("#56b4e9", "//"),
         UNDECIDED: ("#ece133", ".."), NOT_REPRODUCED: ("#de8f05", "xx"), DOES_NOT_HOLD: ("#de8f05", "++"),
         NO_POWER: ("#cccccc", "--"), TOO_FEW: ("#e8e8e8", "oo"), OUT_OF_REACH: ("#ffffff", ""),
         ARITHMETIC: ("#949494", "")}
NARROW = 3  # % of the axis: a segment that its number does not fit into beside its neighbours'


def _verdict_file(profile: Profile, notebook: str) -> Path:
    return cache_dir() / "verdicts" / profile.profile / f"{notebook}.csv"


def keep_own(table: pd.DataFrame, profile: Profile, notebook: str) -> None:
    """Keep what a notebook's claims came to in the reader's runs, for the ledger (of ``own_verdicts``)."""
    path = _verdict_file(profile, notebook)
    ensure_dir(path.parent)
    write_text(path, table.to_csv(index=False))


def own_kept(profile: Profile) -> pd.DataFrame:
    """What every notebook that was run here left, in the columns of ``own_verdicts``; what cannot be read is not.

    A claim that moved to a later notebook is told by that one alone, whatever the earlier one had left before.
    """
    columns = ["claim", "epsilon", "own_effect", "own_agree", "own_seeds"]
    parts = [_own_part(path, columns) for path in sorted(_verdict_file(profile, "00").parent.glob("*.csv"))]
    parts = [part for part in parts if len(part)]
    found = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    found = found.drop_duplicates(columns[:2], keep="last", ignore_index=True)
    return found.astype({"epsilon": float, "own_effect": float})


def _own_part(path: Path, columns: list[str]) -> pd.DataFrame:
    """What one notebook left; nothing where the file is of an older form, or broken: the notebook can be run again."""
    try:
        part = pd.read_csv(io.StringIO(read_text(path)))
        if list(part.columns) == columns:
            return part.astype({"claim": str} | dict.fromkeys(columns[1:], float)).drop_duplicates(columns[:2])
    except (CourseError, FileNotFoundError, ValueError, pd.errors.ParserError):
        pass
    return pd.DataFrame(columns=columns)


def ledger(profile: Profile) -> pd.DataFrame:
    """All claims on one page.

    Returns
    -------
    pandas.DataFrame
        The columns of :func:`utils.ledger.claims.verdicts`, and ``title`` (the paper's, or that of our own claims),
        ``reference`` and ``yours`` (effects in words), ``agrees`` (whether the reader's seeds all lie on the side that
        the verdict says; None where either is silent), ``link``. Title by title in the order of the notebooks.
    """
    table = verdicts(profile).merge(own_kept(profile), on=["claim", "epsilon"], how="left")
    records = table.to_dict("records")
    table = table.assign(title=[title_of(row) for row in records], reference=[effect_text(row) for row in records],
                         yours=[own_text(row) for row in records], agrees=[_agrees(row) for row in records],
                         link=[claim_link(row["claim"]) for row in records])
    return table.sort_values("title", key=lambda titles: titles.map(TITLES.index), kind="stable", ignore_index=True)


def title_of(row: dict) -> str:
    """Under which heading a claim stands: its paper's if it judges the paper's own statement."""
    return {"ours": OURS, "arithmetic": BY_ARITHMETIC}.get(row["kind"]) or PAPERS[row["paper"]]


def effect_text(row: dict) -> str:
    """A reference's effect with interval and unit in words, or why there is none."""
    if pd.isna(row["effect"]):
        return row["why"]
    text = f"{row['effect']:.3g}"
    if not pd.isna(row["low"]):
        text += f" ({row['low']:.3g} … {row['high']:.3g})"
    seeds = f"{row['agree']} of {row['seeds']} seeds"
    return f"{text} {row['unit']}, {seeds}" + (f"; {row['why']}" if row["why"] else "")


def own_text(row: dict) -> str:
    """The reader's effect in words; empty before the notebook has run."""
    if pd.isna(row.get("own_effect")):
        return ""
    return f"{row['own_effect']:.3g}, {row['own_agree']:.0f} of {row['own_seeds']:.0f} seeds"


def _agrees(row: dict) -> bool | None:
    if not own_text(row) or row["verdict"] not in (REPRODUCED, HOLDS, NOT_REPRODUCED, DOES_NOT_HOLD):
        return None
    return row["own_agree"] == (row["own_seeds"] if row["verdict"] in (REPRODUCED, HOLDS) else 0)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """How many claims under each title came to which verdict, and in how many of them the reader's runs agree.

    Returns
    -------
    pandas.DataFrame
        ``paper``, ``claims``, one column per verdict, ``yours agree``, ``yours judged``.
    """
    rows = []
    for title, part in table.groupby("title", sort=False):
        judged = part["agrees"].dropna()
        rows.append({"paper": title, "claims": len(part)}
                    | {verdict: int((part["verdict"] == verdict).sum()) for verdict in LOOKS}
                    | {"yours agree": int(judged.astype(bool).sum()), "yours judged": len(judged)})
    return pd.DataFrame(rows)


def chance_note(table: pd.DataFrame) -> str:
    """How much of the ledger chance could have made, in two sentences (of :func:`ledger` or ``verdicts``)."""
    found = chance(table)
    return (f"Of {found['tested']} tests (a claim that is judged at two ε counts as two), about "
            f"{found['expected']:.1f} would come out reproduced (or hold) by chance if none were true; "
            f"{found['positive']} did. At a false discovery rate of 5 % (Benjamini–Hochberg over all of "
            f"them) {found['standing']} of those stand.")


@figure("17_verdicts", place="the ledger")
def verdict_bars(profile: Profile, table: pd.DataFrame) -> Drawn:
    """The summary as a figure: one bar per paper, a colour and a hatch per verdict, numbers of claims inside.

    `table` is that of :func:`summary`.
    """
    drawn, (axis,) = panels(1, width=9, height=1.6 + 0.7 * len(table))
    left = pd.Series(0, index=table.index)
    axis.set_xlim(0, 102)
    for (verdict, (colour, hatch)), lift in zip(LOOKS.items(), cycle((-0.25, 0, 0.25))):
        share = 100 * table[verdict] / table["claims"]
        axis.barh(table.index, share, left=left, color=colour, hatch=hatch, edgecolor="black", linewidth=0.6,
                  label=verdict)
        _numbers(axis, table[verdict], left + share / 2, lift=lift * (share < NARROW))
        left = left + share
    names = [name.split(" (arXiv")[0].split(":")[0] for name in table["paper"]]
    axis.set(yticks=list(table.index), xlabel="% of its claims (their numbers in the bars)",
             yticklabels=[f"{name} ({count})" for name, count in zip(names, table["claims"], strict=True)])
    axis.invert_yaxis()
    axis.grid(visible=False)
    drawn.legend(loc="outside lower center", ncols=4, fontsize="small")
    parts = "; ".join(f"{name}: " + ", ".join(f"{row[verdict]} {verdict}" for verdict in LOOKS if row[verdict])
                      for name, row in zip(names, table.to_dict("records"), strict=True))
    return Drawn(drawn, f"Stacked bars of the number of claims by verdict. {parts}.",
                 "Verdicts on the claims of each paper, on those that this course adds, and on what is true by "
                 "arithmetic.", table)


def _numbers(axis: Axes, counts: pd.Series, middles: pd.Series, *, lift: pd.Series) -> None:
    """Each count in the middle of its segment, or `lift` of a bar's height beside it."""
    for place, count in counts.items():
        if count:
            axis.text(middles[place], place + lift[place], str(count), ha="center", va="center", fontsize="x-small",
                      bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"})


def sentence_of(row: dict) -> str:
    """A claim's sentence, with the epsilon that it was judged at."""
    return row["sentence"] + ("" if pd.isna(row["epsilon"]) else f" (ε = {row['epsilon']:g})")


def as_page(table: pd.DataFrame, title: str) -> str:
    """The claims under one title as a Markdown table, each with a link to the cell that measures it."""
    lines = ["| claim | published | verdict | effect, 95 % interval | yours | cell |", "|---|---|---|---|---|---|"]
    for row in table[table["title"] == title].to_dict("records"):
        published = f"{row['published']} ({row['place']})" if row["place"] else row["published"]
        lines.append(f"| {sentence_of(row)} | {published} | **{row['verdict']}** | {row['reference']} | "
                     f"{row['yours']} | [{row['notebook']}]({row['link']}) |")
    return "\n".join(lines)


LEDGER_INTRODUCTION = (
    "Generated by `python -m utils claims --publish`. An effect is a mean over seeds in the unit named with it, with "
    "its "
    "95 % interval; a verdict follows from where the interval lies.")
WORDS = (
    "What the words mean: reproduced (ours: holds) – the interval lies where the claim says; same direction – every "
    "seed does, the interval does not, or all seeds give one number and there is no interval; undecided – neither; "
    "not reproduced (does not hold) – the interval lies on the other side; no power – the claim could not have "
    "failed or held on these runs.")
LEDGER_HEADER = ("| claim | the sentence | published | verdict | expected | effect, 95 % interval | control | "
                 "measured in |")


def _ledger_line(row: dict) -> str:
    published = "; ".join(filter(None, (row["published"], row["numbers"], row["place"])))
    cells = (row["claim"], sentence_of(row), published, f"**{row['verdict']}**", row["expect"], row["reference"],
             row["control"], f"[{row['notebook']}](../../../notebooks/{row['link']})")
    return f"| {' | '.join(cells)} |"


def write_ledger(profile: Profile) -> str:
    """Write ``data/reference/<profile>/LEDGER.md`` from the reference results and return its text."""
    table = ledger(profile)
    lines = [f"# Ledger of claims, profile {profile.profile}", "", reference_note(profile), "",
             f"{LEDGER_INTRODUCTION} {chance_note(table)}", "", WORDS, ""]
    for title in dict.fromkeys(table["title"]):
        lines += [f"## {title}", "", LEDGER_HEADER, "|---|---|---|---|---|---|---|---|"]
        lines += [_ledger_line(row) for row in table[table["title"] == title].to_dict("records")] + [""]
    text = "\n".join(lines)
    write_text(ensure_dir(reference_dir() / profile.profile) / "LEDGER.md", text)
    return text


def summary_markdown(profile: Profile) -> str:
    """The summary of the reference's verdicts as a Markdown table with the note on chance, for the README."""
    whole = ledger(profile)
    table = summary(whole).drop(columns=["yours agree", "yours judged"])
    table = table.loc[:, (table != 0).any()]
    header = "| " + " | ".join(table.columns) + " |\n|" + "---|" * len(table.columns)
    rows = "\n".join("| " + " | ".join(str(value) for value in row) + " |" for row in table.to_numpy())
    return f"{header}\n{rows}\n\n{chance_note(whole)}"


def as_text(table: pd.DataFrame) -> str:
    """The ledger for a terminal: claims grouped by title, each with its verdict, the numbers and the link."""
    lines = []
    for title, part in table.groupby("title", sort=False):
        lines += ["", title]
        for row in part.to_dict("records"):
            lines.append(f"  [{row['verdict']}] {sentence_of(row)} ({row['claim']})")
            numbers = [f"published: {row['published']}"] if row["published"] else []
            numbers += [f"{name}: {row[name]}" for name in ("reference", "yours") if row[name]]
            lines += [f"      {'; '.join(numbers)}", f"      control: {row['control']}; notebooks/{row['link']}"]
    return "\n".join(lines).lstrip("\n")
