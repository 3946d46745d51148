"""What notebook 08's figures show, said from their tables, and whether it is what the notebook expects."""

import numpy as np
import pandas as pd

from utils.profiles import Profile
from utils.reporting.drawn import Found, all_met, finding
from utils.reporting.measured import Measured
from utils.reporting.words import both, listed
from utils.spectra import is_intruder
from utils.studies.continual.noise import forgetting_beside_noise
from utils.studies.continual.rules import plain
from utils.studies.forgetting.readout import broken_readout, readout_limit
from utils.studies.similarity.choice import Shown

TIE = 0.03  # of accuracy: the bound of the claim that methods tie
STAYS = 0.1  # by how much less the mean cosine on a diagonal that stays may be at the end
EQUAL = 1.1  # a factor within which two products of alpha and rate pass for equal


@finding("08_accuracy_through_the_sequence")
def accuracy_through_the_sequence_found(accuracies: Measured) -> Found:
    """Whether the methods tie at first and LoRA falls faster, the lowest rank fastest, beyond what noise would do."""
    chains = plain(forgetting_beside_noise(accuracies))
    full = chains[chains["method_kind"] == "full"].groupby("seed")[["after", "change"]].mean()
    lora = chains[(chains["method_kind"] == "lora") & chains["seed"].isin(full.index)]
    rows = accuracies.best_profile.continual.probe_test_rows
    noise, beyond = _beside_noise(chains, rows)
    if lora.empty:
        return Found(f"No seed has both LoRA and full fine-tuning, {accuracies.source}. {noise}", None)
    means = lora.assign(apart=lora["after"] - lora["seed"].map(full["after"]),
                        faster=lora["change"] - lora["seed"].map(full["change"])).groupby(
        ["r", "method"])[["apart", "faster"]].mean().droplevel("r")
    # Two standard errors of the difference of two means over tasks and seeds, at most: p (1 - p) is a quarter or less.
    unsure = 2 * (0.5 / (rows * lora["stages"].max() * lora.groupby("method").size().min())) ** 0.5
    widest = means["apart"].abs().max()
    tie = True if widest <= TIE else None if widest <= TIE + unsure else False
    order = bool((means["faster"] < 0).all() and means["faster"].iloc[0] <= means["faster"].min())
    return Found(
        f"Right after a task's own stage accuracy minus full fine-tuning's is {listed(means['apart'], '{:+.3f}')} on "
        f"average over tasks and common seeds, {accuracies.source}; its change from there to the end, minus full's, is "
        f"{listed(means['faster'], '{:+.3f}')}. {noise}", all_met(tie, order if beyond else None))


def _beside_noise(chains: pd.DataFrame, rows: int) -> tuple[str, bool]:
    """A sentence on average forgetting beside that of a model that forgets nothing; whether a chain exceeds that."""
    means = chains.groupby("method", sort=False)["average_forgetting"].mean()
    exceed = int((chains["average_forgetting"] > chains["null_95"]).sum())
    judged = (f"{exceed} of {len(chains)} chains exceed that" if exceed else
              "no chain exceeds that, so neither forgetting nor an order of the methods can be told from noise")
    return (f"Average forgetting is {listed(means, '{:.3f}')}; a model that forgets nothing, tested on {rows} fresh "
            f"rows at each stage, would show {chains['null_mean'].mean():.3f} on average and more than "
            f"{chains['null_95'].mean():.3f} one time in twenty: {judged}."), exceed > 0


@finding("08_similarity_by_stage")
def similarity_by_stage_found(profile: Profile, maps: dict[str, dict[str, np.ndarray]], *,
                              shown: dict[str, Shown]) -> Found:
    """Whether columns without a match appear in LoRA as stages pass, and full fine-tuning keeps its diagonal."""
    epsilon, dark, diagonal, parts = profile.spectra.epsilon, [], [], []
    for method, by_stage in maps.items():
        cosines = list(by_stage.values())
        blank = [set(np.flatnonzero(is_intruder(one.max(axis=0), epsilon))) for one in cosines]
        places, later = set().union(*blank), set().union(*blank[1:]) - blank[0]
        least = min(one.max(axis=0).min() for one in cosines)
        dark.append(f"{len(places)} in {method} ({len(later)} after a later stage only)" if places else
                    f"none in {method} at any stage (least best match {least:.2f})")
        first, last = (float(np.diagonal(one).mean()) for one in (cosines[0], cosines[-1]))
        diagonal.append(f"{first:.2f} to {last:.2f} in {method}")
        parts.append(not places and first - last <= STAYS if method.startswith("full") else bool(later))
    return Found(f"Dark columns, below {epsilon}: {both(dark)}. From the first stage to the last the mean on the "
                 f"diagonal goes from {both(diagonal)}. Each map is of one matrix of one chain of yours, which that "
                 "chain did not choose.", all_met(*parts))


@finding("08_spectra_through_the_sequence")
def spectra_through_the_sequence_found(spectra: Measured) -> Found:
    """Whether intruders and pseudo-loss grow in LoRA, and whether full fine-tuning stays without intruders."""
    table = plain(spectra.best)
    first, last = (table[table["stage"] == stage].groupby("method", sort=False)[["n_intruders", "forgetting"]].mean()
                   for stage in (table["stage"].min(), table["stage"].max()))
    course = {name: both(f"{number.format(first.loc[method, name])} to {number.format(last.loc[method, name])} in "
                         f"{method}" for method in last.index)
              for name, number in (("n_intruders", "{:.3g}"), ("forgetting", "{:.2f}"))}
    lora = table[table["method_kind"] == "lora"]["method"].unique()
    grew = [bool((last.loc[method] > first.loc[method]).all()) for method in lora] or [None]
    full = table[table["method_kind"] == "full"]["n_intruders"]
    ends = table[table["stage"] == table["stage"].max()].groupby("method", sort=False)
    return Found(f"From the first stage to the last intruders go from {course['n_intruders']}; the rise of the "
                 f"pseudo-loss goes, in nats per token, from {course['forgetting']}; {spectra.source}."
                 f"{broken_readout(dict(iter(ends)), readout_limit(spectra.best_profile))}",
                 all_met(*grew, bool((full == 0).all()) if len(full) else None))


@finding("08_alpha_8_in_sequence")
def alpha_8_in_sequence_found(accuracies: Measured) -> Found:
    """Whether the highest rank forgets more with a fixed alpha than with alpha = 2r, beyond what noise would do."""
    chains = forgetting_beside_noise(accuracies)
    lora = chains[chains["method_kind"] == "lora"]
    lora = lora[lora["r"] == lora["r"].max()]
    usual = lora[lora["lora_alpha"] == 2 * lora["r"]]
    fixed = lora[(lora["lora_alpha"] != 2 * lora["r"]) & lora["seed"].isin(usual["seed"])]
    if fixed.empty:
        return Found(f"At the highest rank no chain has another alpha than 2r, {accuracies.source}, so nothing can be "
                     "compared.", None)
    shared = usual[usual["seed"].isin(fixed["seed"])]
    chosen = {fixed["lora_alpha"].iloc[0]: fixed, "2r": shared}
    means = {alpha: float(part["average_forgetting"].mean()) for alpha, part in chosen.items()}
    pair = pd.concat(chosen.values())
    beyond = bool((pair["average_forgetting"] > pair["null_95"]).any())
    judged = "" if beyond else (f"; neither exceeds {pair['null_95'].mean():.3f}, which noise alone does one time in "
                                "twenty, so the difference cannot be told from noise")
    products = pair["lora_alpha"] * pair["learning_rate"]
    mixed = (f" Alpha times the rate differs, too ({products.min():.3g} and {products.max():.3g}), so a difference "
             "would not be alpha's alone." if products.max() > EQUAL * products.min() else "")
    told = both(f"{mean:.3f} with alpha = {alpha}" for alpha, mean in means.items())
    other, twice = means.values()
    return Found(f"At rank {pair['r'].iloc[0]} average forgetting is {told}, over {fixed['seed'].nunique()} of the "
                 f"seeds of {accuracies.source}{judged}.{mixed}", other > twice if beyond else None)
