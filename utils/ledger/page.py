"""The ledger as one page: every claim with its published value, the reference's verdict, the reader's own, and where to
read on. Everything here is computed from tables and from the notebooks' own cells.
"""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.files import write_text
from utils.ledger.claims import NOT_REPRODUCED, OUT_OF_REACH, PARTLY, REPRODUCED, TOO_FEW, claim_link, verdicts
from utils.paths import cache_dir, ensure_dir
from utils.profiles import Profile
from utils.reporting.panels import panels

ILLUSION = "LoRA vs Full Fine-tuning: An Illusion of Equivalence (arXiv 2410.21228)"
PAPERS = {"Illusion v3": ILLUSION, "Illusion v1": ILLUSION,
          "Learns less v2": "LoRA Learns Less and Forgets Less (arXiv 2405.09673v2)",
          "Rates v2": "Learning Rate Matters: Vanilla LoRA May Suffice (arXiv 2602.04998v2)",
          "PEFT benchmark": "PEFT's method comparison on MetaMathQA (huggingface/peft)",
          "ours": "What this course adds"}
LOOKS = {REPRODUCED: ("#0173b2", ""), PARTLY: ("#56b4e9", "//"), NOT_REPRODUCED: ("#de8f05", "xx"),
         TOO_FEW: ("#cccccc", ".."), OUT_OF_REACH: ("#ffffff", "")}
YOURS = ("holds in your seeds", "your effect")


def _verdict_file(profile: Profile, notebook: str) -> Path:
    return cache_dir() / "verdicts" / profile.profile / f"{notebook}.csv"


def keep_own(table: pd.DataFrame, profile: Profile, notebook: str) -> None:
    """Keep what a notebook's claims came to in the reader's runs, for the ledger (of :func:`own_verdicts`)."""
    path = _verdict_file(profile, notebook)
    ensure_dir(path.parent)
    write_text(path, table[["claim", *YOURS]].to_csv(index=False))


def own_kept(profile: Profile) -> pd.DataFrame:
    """What every notebook that was run here left: ``claim``, ``holds in your seeds``, ``your effect``."""
    folder = _verdict_file(profile, "00").parent
    parts = [pd.read_csv(path) for path in sorted(folder.glob("*.csv"))]
    empty = pd.DataFrame(columns=["claim", *YOURS])
    return pd.concat([part for part in parts if len(part)], ignore_index=True) if any(map(len, parts)) else empty


def ledger(profile: Profile) -> pd.DataFrame:
    """All claims on one page.

    Returns
    -------
    pandas.DataFrame
        One row per claim, paper by paper in the order of ``claims.toml``: ``paper`` (its title), ``claim``,
        ``sentence``, ``figure``, ``published``, ``verdict`` (of the reference), ``reference`` (effect with its 95 %
        interval and in how many seeds it holds, as text), ``yours`` (the same of the reader's runs, empty before the
        notebook has run), ``agrees`` (whether the reader's runs all say what the verdict says; None where either is
        silent), ``control``, ``notebook``, ``link``.
    """
    table = verdicts(profile).merge(own_kept(profile), on="claim", how="left")
    rows = pd.DataFrame([_row(row) for row in table.to_dict("records")])
    titles = list(dict.fromkeys(PAPERS.values()))
    return rows.sort_values("paper", key=lambda papers: papers.map(titles.index), kind="stable", ignore_index=True)


def _row(row: dict) -> dict:
    named = {name: row[name] for name in ("claim", "sentence", "figure", "published", "verdict")}
    return {"paper": PAPERS.get(row["paper"], row["paper"])} | named | {
        "reference": _reference_text(row), "yours": _own_text(row), "agrees": _agrees(row), "control": row["control"],
        "notebook": row["notebook"], "link": claim_link(row["claim"])}


def _reference_text(row: dict) -> str:
    if pd.isna(row["effect"]):
        return ""
    interval = "" if pd.isna(row["low"]) else f" ({row['low']:.3g} … {row['high']:.3g})"
    return f"{row['effect']:.3g}{interval}, {row['holds']} of {row['seeds']} seeds"


def _own_text(row: dict) -> str:
    holds, effect = (row[name] for name in YOURS)
    if not isinstance(holds, str) or holds.endswith("of 0"):
        return ""
    return f"{effect:.3g}, {holds} seeds"


def _agrees(row: dict) -> bool | None:
    text = _own_text(row)
    if not text or row["verdict"] not in (REPRODUCED, NOT_REPRODUCED):
        return None
    held, seeds = (int(part) for part in row[YOURS[0]].split(" of "))
    return held == (seeds if row["verdict"] == REPRODUCED else 0)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """How many claims of each paper came to which verdict, and in how many of them the reader's runs agree.

    Returns
    -------
    pandas.DataFrame
        ``paper``, ``claims``, one column per verdict, ``yours agree``, ``yours judged``.
    """
    rows = []
    for paper, part in table.groupby("paper", sort=False):
        judged = part["agrees"].dropna()
        rows.append({"paper": paper, "claims": len(part)}
                    | {verdict: int((part["verdict"] == verdict).sum()) for verdict in LOOKS}
                    | {"yours agree": int(judged.astype(bool).sum()), "yours judged": len(judged)})
    return pd.DataFrame(rows)


def verdict_bars(table: pd.DataFrame) -> Figure:
    """The summary as a figure: one bar per paper, a colour and a hatch per verdict, numbers inside.

    `table` is that of :func:`summary`.
    """
    figure, (axis,) = panels(1, width=9, height=1.2 + 0.7 * len(table))
    left = pd.Series(0, index=table.index)
    for verdict, (colour, hatch) in LOOKS.items():
        axis.barh(table.index, table[verdict], left=left, color=colour, hatch=hatch, edgecolor="black", linewidth=0.6,
                  label=verdict)
        _numbers(axis, table[verdict], left)
        left = left + table[verdict]
    names = [name.split(" (arXiv")[0].split(":")[0] for name in table["paper"]]
    axis.set(yticks=list(table.index), yticklabels=names, xlabel="claims")
    axis.invert_yaxis()
    axis.grid(visible=False)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return figure


def _numbers(axis: Axes, counts: pd.Series, left: pd.Series) -> None:
    for place, count in counts.items():
        if count:
            axis.text(left[place] + count / 2, place, str(count), ha="center", va="center", fontsize="small",
                      bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"})


def as_page(table: pd.DataFrame, paper: str) -> str:
    """The claims of one paper (its title) as a Markdown table, each with a link to the cell that measures it."""
    columns = ("sentence", "figure", "published", "verdict", "reference", "yours", "control")
    lines = ["| claim | where | published | verdict | reference | yours | control | cell |", "|---|" + "---|" * 7]
    for row in table[table["paper"] == paper].to_dict("records"):
        cells = [f"**{row[name]}**" if name == "verdict" else row[name] for name in columns]
        lines.append("| " + " | ".join([*cells, f"[{row['notebook']}]({row['link']})"]) + " |")
    return "\n".join(lines)


def summary_markdown(profile: Profile) -> str:
    """The summary of the reference's verdicts as a Markdown table, for the README."""
    table = summary(ledger(profile)).drop(columns=["yours agree", "yours judged"])
    header = "| " + " | ".join(table.columns) + " |\n|" + "---|" * len(table.columns)
    return header + "\n" + "\n".join("| " + " | ".join(str(value) for value in row) + " |" for row in table.to_numpy())


def as_text(table: pd.DataFrame) -> str:
    """The ledger for a terminal: claims grouped by paper, each with its verdict, the numbers and the link."""
    lines = []
    for paper, part in table.groupby("paper", sort=False):
        lines += ["", paper]
        for row in part.to_dict("records"):
            lines.append(f"  [{row['verdict']}] {row['sentence']} ({row['figure']})")
            numbers = [f"published: {row['published']}"] + [
                f"{name}: {row[name]}" for name in ("reference", "yours") if row[name]]
            lines += [f"      {'; '.join(numbers)}", f"      control: {row['control']}; notebooks/{row['link']}"]
    return "\n".join(lines[1:])
