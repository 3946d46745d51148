"""The ledger's rules on hand-made frames, intervals by hand, every plot, and what publishing writes and refuses."""

import json
import math
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from utils.ledger import claims as ledger
from utils.ledger import reference as reference_module
from utils.errors import CourseError, UsageError
from utils.ledger import claims as claims
from utils.ledger.claims import (
    NOT_REPRODUCED,
    OUT_OF_REACH,
    PARTLY,
    REPRODUCED,
    TOO_FEW,
    Claim,
    claims,
    own_verdicts,
    verdict,
    verdicts,
    write_ledger,
)
from utils.ledger.reference import build_reference, paper_accuracies, reference_note, reference_table
from utils.profiles import PROFILE_NAMES, Profile, load_profile
from utils.reporting import panels as kit_panels
from utils.reporting import registry as kit_registry
from utils.reporting.publish import STAMP, publish, published_alt
from utils.reporting.registry import MEASUREMENTS, RULES
from utils.reporting.statistics import mean_interval, rank_correlation, summarise
from utils.reporting.style import method_styles
from utils.studies.intruders import figures as intruders_figures
from utils.studies.intruders import rules as intruders_rules
from utils.studies.released import rules as released_rules
from utils.studies.similarity import figures as similarity_figures
from utils.studies.similarity import rules as similarity_rules
from utils.studies.similarity.measure import WINDOWS

SEEDS = (0, 1, 2)
FIRST_PAPER = [claim for claim in claims() if claim.rule in RULES]  # the second paper's: tests/test_decoder_rules.py


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


# --- the rules ------------------------------------------------------------------------------------------------------

RUN = ("experiment", "seed", "r", "learning_rate", "lora_alpha", "method", "train_rows")


def frame(per_seed: list[dict], experiment: str = "ranks") -> pd.DataFrame:
    """One row per seed and entry of ``{r: values}``; r = 0 is full fine-tuning. Values may be a list of rows.

    Rows of one seed, rank, experiment, rate, alpha, method and number of training rows are the same run.
    """
    rows = []
    for seed, by_rank in enumerate(per_seed):
        for r, values in by_rank.items():
            for value in values if isinstance(values, list) else [values]:
                row = {"experiment": experiment, "seed": seed, "r": r} | value
                rows.append({"run": "/".join(str(row.get(name, "")) for name in RUN)} | row)
    return pd.DataFrame(rows)


def counts(full: int, **lora: int) -> dict:
    """Counts at epsilon 0.5 of full and of ranks r1, r8, …; every run has accuracy 0.8 unless told."""
    return {0: {"n_intruders": full, "accuracy": 0.8, "epsilon": 0.5}} | {
        int(name[1:]): {"n_intruders": count, "accuracy": 0.8, "epsilon": 0.5} for name, count in lora.items()}


def growth(*steps: tuple[int, float]) -> dict:
    """(count, strongest ratio) at steps 10, 20, … of rank 8; full fine-tuning's many intruders must not count."""
    lora = [{"step": 10 * (i + 1), "n_intruders": n, "strongest_ratio": ratio} for i, (n, ratio) in enumerate(steps)]
    return {8: lora, 0: [{"step": 10, "n_intruders": 50, "strongest_ratio": 9.0},
                         {"step": 20, "n_intruders": 0, "strongest_ratio": math.nan}]}


def by_k(full: list[int], r8: list[int]) -> dict:
    return {r: [{"k": k, "n_intruders": n} for k, n in zip((0.1, 0.5, 1.0), values, strict=True)]
            for r, values in ((0, full), (8, r8), (1, [0, 0, 0]))}


def with_epsilons(by_rank: dict) -> dict:
    """The same with rows of epsilon 0.2 beside, whose counts are the negative ones."""
    return {r: [*values, *(row | {"epsilon": 0.2, "n_intruders": -row["n_intruders"]} for row in values)]
            for r, values in by_rank.items()}


def by_data(*counts: int) -> dict:
    """Counts of rank 8 after 600, 1200, 2400 (experiment data) and 4800 rows (ranks); those of rank 1 fall."""
    sizes = dict(zip((600, 1200, 2400, 4800), ("data", "data", "data", "ranks"), strict=True))
    return {r: [{"experiment": name, "train_rows": rows, "n_intruders": n, "epsilon": 0.5}
                for (rows, name), n in zip(sizes.items(), values, strict=True)]
            for r, values in ((8, counts), (1, (90, 60, 30, 0)))}


def variants(lora: int, b_only: int) -> dict:
    """LoRA at 2e-3 and B only at 4e-3 are the accurate ones; the others' counts must not matter, nor full's."""
    runs = (("LoRA r=8", 2e-3, 0.8, lora), ("LoRA r=8", 4e-3, 0.7, 0), ("B only r=8", 2e-3, 0.6, 0),
            ("B only r=8", 4e-3, 0.7, b_only))
    return {r: [{"experiment": "variants", "method": method, "learning_rate": rate, "accuracy": accuracy,
                 "n_intruders": n, "epsilon": 0.5} for method, rate, accuracy, n in those]
            for r, those in ((8, runs), (0, (("full", 2e-4, 0.9, 0),)))}


def summary(column: str, lora: float, full: float) -> dict:
    return {8: {column: lora}, 0: {column: full}}


def windows(lora: int, full: int) -> dict:
    """Counts at width 8; at width 1 LoRA has many."""
    return {r: [{"width": 1, "n_intruders": wide}, {"width": 8, "n_intruders": n}]
            for r, wide, n in ((8, 90, lora), (0, 0, full))}


def planted(index: int, cosine: float) -> dict:
    """Below and at the largest singular value a planted direction is no leading one; at twice it, it is as given."""
    return {8: [{"ratio": ratio, "index": place, "max_cosine": value} for ratio, place, value in (
        (0.5, 9, 0.9), (1.0, 2, 0.95), (1.2, 1, 0.125), (2.0, index, cosine))]}


# rule -> (its parameters, a seed where it holds with its effect, a seed where it fails with its effect); a rule whose
# claims give it different parameters has a case for each, named after the stroke
CASES = {
    "no_intruders_in_full": ({"epsilon": 0.5}, counts(0, r8=9), 0.5, counts(2, r8=9), -1.5),
    "more_intruders_at_equal_accuracy": ({"epsilon": 0.5, "tolerance": 0.03}, counts(1, r1=0, r8=5), 4,
                                         counts(3, r1=0, r8=3), 0),
    "fewer_at_full_width": ({"epsilon": 0.5, "low_rank": 8}, counts(0, r1=1, r8=7, r384=2), 5,
                            counts(0, r1=9, r8=2, r384=4), -2),
    "grows_through_training": ({}, growth((1, 0.2), (2, 0.4), (4, 0.9)), 3, growth((4, 0.2), (9, 0.3), (4, 0.4)), 0),
    "above_full_at_every_k": ({"low_rank": 8}, by_k([0, 1, 4], [2, 1, 9]), 0.5, by_k([0, 3, 4], [2, 1, 9]), -1.5),
    "grows_with_data": ({"epsilon": 0.5, "rank": 8}, with_epsilons(by_data(1, 3, 5, 9)), 1,
                        with_epsilons(by_data(9, 3, 5, 1)), -0.8),
    "grows_with_data/flat": ({"epsilon": 0.5, "rank": 8, "flat": 3}, by_data(4, 7, 5, 4), 0.5, by_data(4, 9, 5, 4),
                             -1.5),
    "variant_below": ({"epsilon": 0.5, "beside": "LoRA r=8", "method": "B only r=8"}, with_epsilons(variants(9, 4)), 5,
                      with_epsilons(variants(3, 4)), -1),
    "every_variant_has": ({"epsilon": 0.5}, with_epsilons(variants(9, 1)), 0.5, with_epsilons(variants(9, 0)), -0.5),
    "lora_minus_full": ({"column": "shift"}, summary("shift", 3, 0.5), 2.5, summary("shift", 0, 0.5), -0.5),
    "lora_minus_full/sign": ({"column": "mean_cosine", "sign": -1}, summary("mean_cosine", 0.625, 0.875), 0.25,
                             summary("mean_cosine", 0.875, 0.75), -0.125),
    "lora_minus_full/least": ({"column": "flattest", "sign": -1, "least": 0.25}, summary("flattest", 0.25, 0.75), 0.25,
                              summary("flattest", 0.25, 0.375), -0.125),
    "lora_minus_full_window": ({"width": 8}, windows(4, 1), 3, windows(0, 1), -1),
    "planted_on_top": ({"epsilon": 0.5}, planted(1, 0.25), 0.25, planted(2, 0.25), -1),
}
OWN_TESTS = {"seeds_overlap": {"epsilon"}, "released_lora_above_full": {"epsilon"}}  # no effect of a seed alone

# Rules that read all of their table: a measurement of one experiment, or one that means several.
EVERY_EXPERIMENT = {"grows_with_data", "grows_with_data/flat"}

# What a seed may lack (a diverged run is left out of every table), such that it cannot be judged.
LACKING = {
    "no_intruders_in_full": ["r == 0"],
    "more_intruders_at_equal_accuracy": ["r == 0", "r > 0"],
    "fewer_at_full_width": ["r == 8", "r == 384"],
    "grows_through_training": ["r == 8"],
    "above_full_at_every_k": ["r == 8", "r == 0"],
    "grows_with_data": ["train_rows > 1200", "r == 8"],
    "grows_with_data/flat": ["train_rows > 1200", "r == 8"],
    "variant_below": ["method == 'LoRA r=8'", "method == 'B only r=8'"],
    "every_variant_has": ["method == 'LoRA r=8'", "r > 0"],
    "lora_minus_full": ["r == 0", "r == 8"],
    "lora_minus_full/sign": ["r == 0", "r == 8"],
    "lora_minus_full/least": ["r == 0", "r == 8"],
    "lora_minus_full_window": ["r == 0", "r == 8"],
    "planted_on_top": ["r == 8", "ratio > 1"],
}


def the_rule(case: str):
    return RULES[case.split("/")[0]]


def a_claim(rule: str, **values) -> Claim:
    return Claim(**{"id": "x", "notebook": "04", "paper": "p", "figure": "f", "sentence": "s", "published": "p",
                    "measurement": "forgetting", "rule": rule, "control": "c", "min_seeds": 3} | values)


def test_every_rule_has_a_case():
    assert {name.split("/")[0] for name in CASES} | set(OWN_TESTS) == set(RULES)
    assert set(LACKING) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_rule_gives_each_seed_its_effect(name):
    """Worked by hand: positive where the sentence holds, one value per seed."""
    rule, holds, positive, fails, negative = CASES[name]
    effects = the_rule(name)(frame([holds, fails, holds]), rule)
    assert effects.to_dict() == pytest.approx({0: positive, 1: negative, 2: positive})
    assert positive > 0 >= negative


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pattern, word", [("hhh", REPRODUCED), ("hfh", PARTLY), ("fhf", PARTLY),
                                           ("fff", NOT_REPRODUCED), ("hh", TOO_FEW)])
def test_the_verdict_follows_from_the_seeds(name, pattern, word):
    """All seeds: reproduced; some: partly; none: not; fewer seeds than asked for: no verdict."""
    rule, holds, positive, fails, negative = CASES[name]
    table = frame([holds if seed == "h" else fails for seed in pattern])
    judged = verdict(a_claim(name.split("/")[0], **rule), table, "laptop")
    effects = [positive if seed == "h" else negative for seed in pattern]
    mean, low, high = mean_interval(effects)
    assert judged == {"verdict": word, "seeds": len(pattern), "holds": pattern.count("h"),
                      "effect": pytest.approx(mean, abs=1e-4), "low": pytest.approx(low, abs=1e-4),
                      "high": pytest.approx(high, abs=1e-4)}


@pytest.mark.parametrize("name", [name for name in CASES if name not in EVERY_EXPERIMENT])
def test_a_rule_reads_its_own_experiment_only(name):
    """Rows of the second task, of the learning-rate sweep or of a side experiment must not move a verdict."""
    rule, holds, positive, fails, _ = CASES[name]
    own = frame([holds])
    others = {"ranks", "second", "learning_rates", "matched_alpha"} - set(own["experiment"])
    foreign = [frame([fails, fails]).assign(experiment=other, run=lambda t: t["run"] + "x") for other in others]
    assert the_rule(name)(pd.concat([own, *foreign]), rule).to_dict() == pytest.approx({0: positive})


@pytest.mark.parametrize("name", CASES)
def test_a_rule_does_not_depend_on_the_order_of_rows(name):
    rule, holds, positive, _, _ = CASES[name]
    table = frame([holds])
    for shuffled in (table.iloc[::-1], table.sample(frac=1, random_state=0)):
        assert the_rule(name)(shuffled, rule).to_dict() == pytest.approx({0: positive})


@pytest.mark.parametrize("name", [name for name in CASES if "epsilon" in CASES[name][0] and name != "planted_on_top"])
def test_a_rule_reads_its_own_epsilon(name):
    """Counts at another epsilon play no part."""
    rule, holds, positive, fails, _ = CASES[name]
    table = pd.concat([frame([fails]).assign(epsilon=0.9), frame([holds])])
    assert the_rule(name)(table, rule).to_dict() == pytest.approx({0: positive})


@pytest.mark.parametrize("name, lacking", [(name, lacking) for name in LACKING for lacking in LACKING[name]])
def test_a_seed_without_a_run_that_the_rule_needs_is_not_judged(name, lacking):
    """A diverged run is left out of every table: that seed has no effect, and the others still have theirs.

    What remains must not stand in for it: not the next largest rate, the other alpha or the ranks that are left.
    """
    rule, holds, positive, _, _ = CASES[name]
    whole = frame([holds, holds])
    gone = whole[whole["seed"] == 1].query(lacking)
    assert len(gone)
    table = whole.drop(index=gone.index)
    assert the_rule(name)(table, rule).dropna().to_dict() == pytest.approx({0: positive})


def test_seeds_agree_where_methods_differ_more():
    """LoRA's mean count is 10, full's 0; seed 0's counts lie 2 away, and 0.7 is the epsilon that counts."""
    def table(full: tuple, lora: tuple, epsilon: float = 0.7) -> pd.DataFrame:
        return frame([{0: {"method": "full", "n_intruders": a, "epsilon": epsilon},
                       8: {"method": "LoRA r=8", "n_intruders": b, "epsilon": epsilon}}
                      for a, b in zip(full, lora, strict=True)])

    rule = {"epsilon": 0.7}
    apart = table((0, 0, 0), (8, 10, 12))
    decoys = [table((50, 0, 7), (0, 50, 9), 0.5), table((50, 0, 7), (0, 50, 9)).assign(experiment="second")]
    assert intruders_rules.seeds_overlap(pd.concat([apart, *decoys]), rule).to_dict() == {0: 8, 1: 10, 2: 8}
    assert intruders_rules.seeds_overlap(table((0, 0, 6), (3, 3, 3)), rule).to_dict() == {0: -1, 1: -1, 2: -3}
    judged = verdict(a_claim("seeds_overlap", **rule), apart, "laptop")
    assert judged["verdict"] == REPRODUCED and judged["effect"] == pytest.approx(26 / 3, abs=1e-4)


def test_one_seed_cannot_agree_with_itself():
    """A reader's single seed lies at no distance from its own mean: nothing is shown by that. A lost run likewise."""
    table = frame([counts(0, r8=8), counts(0, r8=12), counts(0, r8=10)]).assign(method=lambda t: t["r"].astype(str))
    assert intruders_rules.seeds_overlap(table[table["seed"] == 0], {"epsilon": 0.5}).isna().all()
    lost = table[(table["seed"] != 2) | (table["r"] == 0)]
    assert intruders_rules.seeds_overlap(lost, {"epsilon": 0.5}).dropna().to_dict() == {0: 8, 1: 8}


def test_released_models_are_judged_group_by_group():
    """LoRA's smallest count minus the largest of the fully tuned ones ("full #2" is one), not at another epsilon."""
    table = pd.DataFrame([{"group": group, "method": method, "n_intruders": n, "epsilon": epsilon}
                          for group, method, n, epsilon in (
        ("alpaca", "full", 0, 0.5), ("alpaca", "full #2", 3, 0.5), ("alpaca", "LoRA r=16", 5, 0.5),
        ("alpaca", "QLoRA r=64", 9, 0.5), ("alpaca", "LoRA r=16", 0, 0.9), ("magicoder", "full", 0, 0.5),
        ("magicoder", "LoRA r=256", 0, 0.5), ("magicoder", "LoRA r=16", 7, 0.5), ("metamath", "LoRA r=16", 7, 0.5))])
    effects = released_rules.released_lora_above_full(table, {"epsilon": 0.5})
    assert effects.dropna().to_dict() == {"alpaca": 2, "magicoder": 0}  # metamath's full model could not be had
    assert verdict(a_claim("released_lora_above_full", epsilon=0.5, min_seeds=1), table, "paper")["verdict"] == PARTLY


def test_intruders_count_only_at_equal_accuracy():
    """LoRA runs away from full's accuracy are not compared; without any near one a seed has no effect."""
    rule = {"epsilon": 0.5, "tolerance": 0.0625}
    near, far = counts(0, r1=2, r8=9), counts(0, r1=2, r8=9)
    near[8]["accuracy"] = far[8]["accuracy"] = far[1]["accuracy"] = 0.5
    effects = intruders_rules.more_intruders_at_equal_accuracy(frame([near, far]), rule)
    assert effects[0] == 2 and math.isnan(effects[1])
    judged = verdict(a_claim("more_intruders_at_equal_accuracy", min_seeds=1, **rule), frame([far]), "laptop")
    assert judged["verdict"] == TOO_FEW and judged["seeds"] == 0


@pytest.mark.parametrize("steps, effect", [
    (((1, 0.5), (5, 0.25)), -1), (((0, math.nan), (5, 0.25)), 5), (((1, 0.5), (5, 0.5)), 4),
    (((3, 0.2), (1, 0.9)), -2)], ids=["more but weaker", "first ones", "as strong", "fewer"])
def test_growth_asks_for_more_and_not_weaker(steps, effect):
    """More intruders do not hold where the strongest one became weaker; none at first has no strength to compare."""
    assert intruders_rules.grows_through_training(frame([growth(*steps)]), {}).tolist() == [effect]


def test_a_change_of_exactly_the_allowed_size_is_flat():
    """4 to 7 is a change of 3; two amounts of data show no course, so a lost run cannot make a count flat."""
    rule = {"epsilon": 0.5, "rank": 8, "flat": 3}
    assert intruders_rules.grows_with_data(frame([by_data(4, 7, 4, 4), by_data(4, 8, 4, 4)]), rule).tolist() == [0.5, -0.5]


def test_a_planted_direction_must_resemble_nothing():
    """On top, but alike: the margin to epsilon is negative."""
    assert similarity_rules.planted_on_top(frame([planted(1, 0.75)]), {"epsilon": 0.5}).tolist() == [-0.25]


# --- verdicts and the file of claims --------------------------------------------------------------------------------

def test_a_claim_out_of_reach_is_not_judged():
    """Even with a table at hand; on another profile the same claim is judged."""
    rule, holds, *_ = CASES["no_intruders_in_full"]
    claim = a_claim("no_intruders_in_full", out_of_reach=("laptop",), **rule)
    table = frame([holds] * 3)
    assert verdict(claim, table, "laptop") == {"verdict": OUT_OF_REACH, "seeds": 0, "holds": 0, "effect": None,
                                               "low": None, "high": None}
    assert verdict(claim, table, "paper")["verdict"] == REPRODUCED


@pytest.mark.parametrize("table", [None, pd.DataFrame()], ids=["none", "empty"])
def test_without_a_table_there_is_no_verdict(table):
    judged = verdict(a_claim("u_shape", low_rank=8), table, "laptop")
    assert judged["verdict"] == TOO_FEW and judged["seeds"] == 0 and judged["effect"] is None


def test_a_single_seed_has_an_effect_but_no_interval():
    """One seed may be enough for a claim that says so; its interval is unknown, not zero."""
    rule, holds, positive, *_ = CASES["u_shape"]
    judged = verdict(a_claim("u_shape", min_seeds=1, **rule), frame([holds]), "laptop")
    assert judged["verdict"] == REPRODUCED and judged["effect"] == positive
    assert math.isnan(judged["low"]) and math.isnan(judged["high"])


def test_the_file_of_claims_is_sound():
    """Unique ids; known rules, measurements, notebooks and profiles; a control each."""
    found = claims()
    assert len({claim.id for claim in found}) == len(found) >= 50
    for claim in found:
        assert claim.rule in kit_registry.RULES and claim.measurement in MEASUREMENTS, claim.id
        assert claim.min_seeds >= 1 and claim.control and claim.sentence.endswith("."), claim.id
        assert claim.notebook.isdigit() and len(claim.notebook) == 2, claim.id
        assert set(claim.out_of_reach) <= {"smoke", "laptop", "gpu", "paper"}, claim.id


class Read(dict):
    """A rule's parameters that remember what was asked for, and what was asked for in vain."""

    def __init__(self, values: dict):
        super().__init__(values)
        self.asked, self.missed = set(), set()

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)

    def __missing__(self, key):
        self.missed.add(key)
        raise KeyError(key)

    def __contains__(self, key):
        self.asked.add(key)
        return super().__contains__(key)

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)


@pytest.mark.parametrize("claim", FIRST_PAPER, ids=lambda claim: claim.id)
def test_a_claims_parameters_are_those_its_rule_reads(claim):
    """A misspelt parameter would be ignored, and one left out would make every seed NaN, both in silence."""
    if claim.rule in OWN_TESTS:
        assert set(claim.model_extra) == OWN_TESTS[claim.rule]
        return
    alike = [case for name, case in CASES.items()
             if name.split("/")[0] == claim.rule and set(case[0]) == set(claim.model_extra)]
    assert alike, f"no case of {claim.rule} has the parameters {sorted(claim.model_extra)}"
    rule, holds, positive, *_ = alike[0]
    asked = Read(rule)
    assert RULES[claim.rule](frame([holds]), asked).to_dict() == pytest.approx({0: positive})
    assert not asked.missed and asked.asked >= set(claim.model_extra)


def test_claims_out_of_reach_are_those_whose_models_a_profile_lacks():
    """The released checkpoints are named by the paper profile alone; LLaMA2 is trained or scaled by none.

    Everything else is in reach of every profile: a claim is not excused because it failed.
    """
    named = [name for name in PROFILE_NAMES if load_profile(name).released]
    assert named == ["paper"]
    for claim in FIRST_PAPER:
        elsewhere = "LLaMA" in claim.sentence and claim.measurement != "released_counts"
        without = set(PROFILE_NAMES) if elsewhere else set(PROFILE_NAMES) - set(named) \
            if claim.measurement == "released_counts" else set()
        assert without <= set(claim.out_of_reach), claim.id
        assert without or not claim.out_of_reach, claim.id


# Every figure and table of arXiv 2410.21228v3, by panel where panels say different things.
FIGURES = ("1 2a 2b 2c 3 4a 4b 4c 4d 5 6a 6b 7 8 9a 9b 9c 10 11 12 13 14a 14b 15a 15b 15c 15d 16 17 18 19 20 21 22 "
           "23").split()
TABLES = "1 2 3 4 5".split()


def named_in(text: str, word: str) -> set[str]:
    """Numbers and panels after "Fig", "Figs", "Table" or "Tables": "Figs 9b, 9c and 18", "Fig 15b-d".

    >>> sorted(named_in("Figs 8 and 12, Table 3", "Fig"))
    ['12', '8']
    """
    found = set()
    for span in re.findall(rf"\b{word}s? ((?:\d+[a-z]?(?:-[a-z])?(?:, | and )?)+)", text):
        for number, first, end in re.findall(r"(\d+)([a-z]?)(?:-([a-z]))?", span):
            panels = [chr(code) for code in range(ord(first), ord(end or first) + 1)] if first else [""]
            found |= {number + panel for panel in panels}
    return found


def test_every_figure_and_table_of_the_paper_has_a_claim():
    """By its panel, or the whole figure where the claim speaks of all of it; and no claim names one that is not there.

    v1's figures are numbered otherwise, and extensions have none.
    """
    texts = [claim.figure for claim in claims() if claim.paper == "Illusion v3"]
    figures, tables = (set().union(*(named_in(text, word) for text in texts)) for word in ("Fig", "Table"))
    assert [one for one in FIGURES if one not in figures and one.rstrip("abcd") not in figures] == []
    assert set(TABLES) == tables
    assert figures <= set(FIGURES) | {one.rstrip("abcd") for one in FIGURES}


def trained(profile: Profile, runs: tuple, seeds: int) -> set[tuple]:
    """(variant, rank, alpha, rate) of the LoRA runs, and ("full",), that reference results have of as many seeds."""
    found = set()
    for group in runs:
        if seeds == 1 or not group.first_seed_only:
            if group.method == "full":
                found.add(("full",))
            else:
                found |= {(group.variant, r, 2 * r if group.lora_alpha == "2r" else group.lora_alpha, rate)
                          for r, rate in group.learning_rate.items() if not group.rank_stabilised}
    return found


def provides(profile: Profile, claim: Claim) -> bool:
    """Whether the profile plans the runs, factors and grids that a claim's rule looks for, with enough seeds."""
    def runs(experiment: str) -> set[tuple]:
        return trained(profile, profile.experiments[experiment].runs, claim.min_seeds)

    def has(found: set[tuple], r: int, alpha: int | None = None) -> bool:
        return ("full",) in found if r == 0 else any(
            one[0] == "lora" and one[1] == r and alpha in (None, one[2]) for one in found if one != ("full",))

    def scaled(rule: dict) -> bool:
        grids = profile.intervention.lambdas, profile.intervention.control_lambdas
        chosen = [one for one in profile.intervention.runs if claim.min_seeds == 1 or not one.first_seed_only]
        return any(one.r == rule["rank"] and any(run[1:2] + run[3:] == (one.r, one.learning_rate) for run in runs(
            profile.intervention.experiment)) for one in chosen) and rule.get("factor", 1) in grids[0] and set(
                rule.get("factors", [1])) <= set(grids[1])

    def data(rule: dict) -> bool:
        groups = [group for group in profile.experiments["data"].runs if rule["rank"] in group.learning_rate
                  and len(group.train_rows) >= 2]
        main = {one[1:2] + one[3:] for one in runs("ranks") if len(one) > 1}
        return any((rule["rank"], group.learning_rate[rule["rank"]]) in main for group in groups)

    def in_sequence(r: int, alpha: int | None = None) -> bool:
        seeds = profile.continual.reference_seeds or profile.reference_seeds
        return claim.min_seeds <= len(seeds) and has(sequence, r, alpha)

    labels = {"LoRA r=8": "lora", "B only r=8": "b_only", "PiSSA r=8": "pissa"}
    sequence = trained(profile, profile.continual.runs, claim.min_seeds)
    checks = {
        "fewer_at_full_width": lambda rule: has(runs("ranks"), rule["low_rank"]),
        "above_full_at_every_k": lambda rule: has(runs("ranks"), rule["low_rank"]),
        "u_shape": lambda rule: has(runs("ranks"), rule["low_rank"]) and has(runs("ranks"), 1),
        "higher_rates_more": lambda rule: sum(one[1:2] == (profile.spectra.showcase_rank,) for one in runs(
            "learning_rates")) >= 3,
        "largest_rate_passes_full": lambda rule: has(runs("learning_rates"), 0),
        "falls_with_rank": lambda rule: len({one[1] for one in runs(rule["in_experiment"]) if len(one) > 1}) >= 3,
        "alpha_adds": lambda rule: has(runs("rule"), rule["rank"], 2 * rule["rank"]) and has(
            runs("alpha_8"), rule["rank"], 8),
        "alpha_collapses_rank": lambda rule: has(runs("rule"), rule["rank"]) and has(runs("alpha_8"), rule["rank"]),
        "larger_effective_rank": lambda rule: all(has(runs(rule["in_experiment"]), rule[end])
                                                  for end in ("higher", "lower")),
        "grows_with_data": data,
        "variant_below": lambda rule: {labels[rule["beside"]], labels[rule["method"]]} <= {
            one[0] for one in runs("variants") if one[1:2] == (8,)},
        "every_variant_has": lambda rule: {"lora", "b_only", "pissa", "adalora", "lora_plus", "vera"} <= {
            one[0] for one in runs("variants")},
        **dict.fromkeys(("scaling_helps",
                         "intruders_beyond_norm"), scaled),
        "summary_above_full": lambda rule: in_sequence(rule["rank"], rule.get("alpha", 2 * rule["rank"])) and (
            in_sequence(rule["rank"], rule["beside_alpha"]) if "beside_alpha" in rule else in_sequence(0)),
        "accumulates": lambda rule: in_sequence(rule["rank"], 2 * rule["rank"]) and in_sequence(0),
        "lora_minus_full_window": lambda rule: rule["width"] in WINDOWS,
        "threshold_separates": lambda rule: has(runs("learning_rates"), rule["rank"]),
    }
    rule = claim.model_extra
    return rule.get("epsilon", 0.5) in profile.spectra.epsilons and checks.get(claim.rule, lambda rule: True)(rule)


@pytest.mark.parametrize("name", ["laptop", "gpu", "paper"])
def test_reference_results_have_the_runs_that_claims_need(name):
    """A claim in reach whose runs no profile trains, or with too few seeds, would stay "too few seeds" for ever."""
    profile = load_profile(name).with_reference_runs()
    assert [claim.id for claim in FIRST_PAPER if name not in claim.out_of_reach and not provides(profile, claim)] == []
    assert all(claim.min_seeds <= len(profile.reference_seeds) for claim in claims())


@pytest.mark.parametrize("claim", [claim for claim in claims() if "laptop" not in claim.out_of_reach],
                         ids=lambda claim: claim.id)
def test_a_committed_table_answers_its_claim(claim):
    """The measurement's own columns are those the rule reads: at least one seed has an effect."""
    table = reference_table(claim.measurement, "laptop")
    if table is None:
        pytest.skip(f"no reference table of {claim.measurement} yet")
    assert kit_registry.RULES[claim.rule](table, claim.model_extra).notna().any()


def test_a_claim_with_an_unknown_rule_is_refused(tmp_path, monkeypatch):
    """A misspelt rule fails when the file is read, with the claim and the known rules."""
    values = a_claim("no_such_rule").model_dump() | {"out_of_reach": []}
    lines = ["[[claim]]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    (tmp_path / "claims.toml").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(ledger, "PAPER", tmp_path)
    with pytest.raises(CourseError, match="claim 'x' names the rule 'no_such_rule'.*u_shape"):
        claims.claims.__wrapped__()


@pytest.fixture
def references(tmp_path, monkeypatch):
    """Reference results of the laptop in which the U-curve holds in two of three seeds, and nothing else is known."""
    folder = tmp_path / "laptop"
    folder.mkdir()
    _, holds, _, fails, _ = CASES["u_shape"]
    frame([holds, fails, holds]).to_csv(folder / "forgetting.csv", index=False)
    monkeypatch.setenv("LORA_COURSE_REFERENCE", str(tmp_path))
    return tmp_path


def test_the_ledger_is_computed_from_the_reference(references):
    """Verdicts come from the committed tables; a claim without a table has none; notebooks filter."""
    table = verdicts("laptop").set_index("claim")
    assert table["verdict"].to_dict() == {claim.id: TOO_FEW for claim in claims()} | {
        "u-curve": PARTLY, "full-forgets-more": REPRODUCED} | dict.fromkeys((
            "llama-heat-maps", "llama-counts", "llama-every-k", "llama-correlation", "released-names",
            "llama-forgetting", "llama-scaling", "dataset-sizes", "tulu-chat", "throughput"), OUT_OF_REACH)
    assert table.loc["u-curve", ["seeds", "holds"]].tolist() == [3, 2]
    assert verdicts("laptop", "06")["claim"].tolist() == ["full-forgets-more", "u-curve", "llama-forgetting"]


def test_smoke_is_shown_against_the_laptop(references):
    """The smoke profile has no reference of its own."""
    pd.testing.assert_frame_equal(reference_table("forgetting", "smoke"), reference_table("forgetting", "laptop"))
    assert reference_table("forgetting", "gpu") is None and reference_table("intruder_counts", "laptop") is None
    with pytest.raises(UsageError, match="Unknown measurement 'nonsense'"):
        reference_table("nonsense", "laptop")


def test_the_written_ledger_names_each_claim_with_its_verdict(references):
    """LEDGER.md holds one row per claim, and says that no reference run is recorded."""
    text = write_ledger(load_profile("laptop"))
    assert (references / "laptop" / "LEDGER.md").read_text(encoding="utf-8") == text
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert set(rows) == {"claim"} | {claim.id for claim in claims()}
    assert "**partly** | 2 of 3 seeds | 0.0833 (" in rows["u-curve"]
    assert f"**{OUT_OF_REACH}**" in rows["llama-counts"] and "No reference results" in text


def test_own_runs_stand_beside_the_reference(references):
    """The reader's seeds are counted, the reference keeps the verdict; claims without own data stay empty."""
    rule, holds, positive, fails, negative = CASES["u_shape"]
    table = own_verdicts({"forgetting": frame([fails])}, load_profile("laptop"), "06").set_index("claim")
    assert table.loc["u-curve", "verdict"] == PARTLY
    assert table.loc["u-curve", "holds in your seeds"] == "0 of 1" and table.loc["u-curve", "your effect"] == negative
    assert table.index.tolist() == ["full-forgets-more", "u-curve", "llama-forgetting"]
    assert table["holds in your seeds"].isna().tolist() == [False, False, True]  # a claim out of reach has none


def test_own_verdicts_without_own_tables_show_the_reference(references):
    """A notebook whose own measurement is missing still shows the reference's verdicts."""
    table = own_verdicts({}, load_profile("laptop"), "06")
    assert table["verdict"].tolist() == [REPRODUCED, PARTLY, OUT_OF_REACH]
    assert table["holds in your seeds"].isna().all()


def test_the_reference_note_says_where_results_come_from(references):
    (references / "laptop" / "provenance.json").write_text(json.dumps({"seeds": [0, 1, 2], "provenance": {
        "hardware": {"device": "cpu", "threads": 2}, "date": "2026-01-02T03:04:05Z", "packages": {"torch": "9.9"}}}))
    assert reference_note("smoke") == "Reference: seeds [0, 1, 2], cpu (2 threads), 2026-01-02, torch 9.9."
    assert reference_note("gpu").startswith("No reference results are committed for gpu")


def test_smoke_makes_no_reference(references):
    with pytest.raises(UsageError, match="smoke is not evidence"):
        build_reference(load_profile("smoke"))


def test_reference_tables_keep_learning_rates_whole(references, monkeypatch):
    """Of a rate of 1.5625e-6 six decimals left 2e-6, which is no run's; seven digits keep small numbers too."""
    table = pd.DataFrame({"run": ["a", "b"], "learning_rate": [1.5625e-6, 9.375e-5], "n_intruders": [1, 2],
                          "accuracy": [2 / 3, 0.5], "forgetting": [math.nan, 1 / 3]})
    monkeypatch.setattr(reference_module, "MEASUREMENTS", {
        "intruder_counts": lambda profile, seeds: table.assign(seed=seeds[0], whole=profile.whole),
        "forgetting": lambda profile, seeds: pd.DataFrame()})
    build_reference(load_profile("laptop"), (5,))
    read = reference_table("intruder_counts", "laptop")
    assert read["learning_rate"].tolist() == [1.5625e-6, 9.375e-5] and read["n_intruders"].tolist() == [1, 2]
    assert read["accuracy"].tolist() == [0.6666667, 0.5] and read["forgetting"].tolist()[1] == 0.3333333
    assert read["seed"].tolist() == [5, 5] and read["whole"].all()  # with the reference-only runs


# --- statistics -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("values, mean, half", [
    # t quantiles from a printed table: 4.3027 for 2 degrees of freedom, 12.7062 for 1, 2.7764 for 4
    ([1.0, 2.0, 3.0], 2.0, 4.3027 * 1 / 3 ** 0.5), ([0.0, 2.0], 1.0, 12.7062 * 2 ** 0.5 / 2 ** 0.5),
    ([2, 4, 4, 4, 6], 4.0, 2.7764 * 2 ** 0.5 / 5 ** 0.5), ([5.0, 5.0, 5.0], 5.0, 0.0)])
def test_mean_interval_by_hand(values, mean, half):
    """Mean and 95 % t-interval with the sample's own standard deviation (n - 1)."""
    assert mean_interval(values) == pytest.approx((mean, mean - half, mean + half), rel=1e-4)


def test_mean_interval_at_another_confidence():
    """90 % at 2 degrees of freedom: 2.9200."""
    assert mean_interval([1, 2, 3], confidence=0.9)[2] == pytest.approx(2 + 2.92 / 3 ** 0.5, rel=1e-4)


def test_one_value_has_no_interval():
    mean, low, high = mean_interval([3.5])
    assert mean == 3.5 and math.isnan(low) and math.isnan(high)


def test_summarise_by_group():
    """One row per group in order of appearance, with interval, extremes and number of seeds."""
    table = pd.DataFrame({"method": ["b", "b", "b", "a"], "r": [8, 8, 8, 0], "loss": [1.0, 2.0, 3.0, 7.0]})
    found = summarise(table, "loss", ["method", "r"])
    assert found[["method", "r", "loss", "min", "max", "seeds"]].values.tolist() == [["b", 8, 2.0, 1.0, 3.0, 3],
                                                                                    ["a", 0, 7.0, 7.0, 7.0, 1]]
    assert found["high"][0] == pytest.approx(2 + 4.3027 / 3 ** 0.5, rel=1e-4) and math.isnan(found["low"][1])
    assert summarise(table, "loss", ["method"])["method"].tolist() == ["b", "a"]


@pytest.mark.parametrize("x, y, rho", [
    ([1, 2, 3, 4, 5], [1, 2, 3, 5, 4], 0.9), ([1, 2, 3, 4, 5], [10, 400, 20, 300, 30], 0.3),
    # ties share the mean of their places: 1, 2.5, 2.5, 4 against 1, 2, 3, 4 is 4.5 / sqrt(4.5 * 5)
    ([1, 2, 2, 3], [1, 2, 3, 4], 4.5 / 22.5 ** 0.5)])
def test_rank_correlation_by_hand(x, y, rho):
    """Places 1 2 3 5 4 and 1 5 2 4 3 differ from 1 to 5 by squares that sum to 2 and 14: 1 - 6 * 14 / 120 is 0.3."""
    assert rank_correlation(x, y)["rho"] == pytest.approx(rho)
    turned = rank_correlation(x, [-value for value in y])
    assert turned["rho"] == pytest.approx(-rank_correlation(x, y)["rho"]) and turned["n"] == len(x)


def test_the_interval_of_a_rank_correlation_by_hand():
    """n = 5 and rho = 0.9: atanh 1.4722, standard error sqrt(1.405 / 2) = 0.8382, half 1.6427; p from a table, 0.0374.

    Turned around, the interval is the mirrored one.
    """
    found = rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 5, 4])
    assert (found["low"], found["high"]) == pytest.approx((math.tanh(1.4722 - 1.6427), math.tanh(1.4722 + 1.6427)),
                                                          abs=1e-4)
    assert found["p"] == pytest.approx(0.0374, abs=1e-4) and found["n"] == 5
    turned = rank_correlation([1, 2, 3, 4, 5], [5, 4, 3, 1, 2])
    assert (turned["low"], turned["high"]) == pytest.approx((-found["high"], -found["low"]))
    narrow = rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 5, 4], confidence=0.5)
    assert found["low"] < narrow["low"] < 0.9 < narrow["high"] < found["high"]


@pytest.mark.parametrize("y, rho", [([1, 2, 3, 9], 1), ([4, 3, 2, -7], -1)])
def test_a_perfect_rank_correlation_has_an_interval_of_no_width(y, rho):
    """Fisher's transformation is infinite there."""
    found = rank_correlation([1, 2, 3, 4], y)
    assert (found["rho"], found["low"], found["high"], found["n"]) == (rho, rho, rho, 4)


@pytest.mark.parametrize("x, y", [([1, 2, 3], [1, 2, 3]), ([1, 2, 3, 4], [5, 5, 5, 5]), ([0, 0, 0, 0], [1, 2, 3, 4]),
                                  ([], [])], ids=["three pairs", "constant y", "constant x", "none"])
def test_too_little_for_a_rank_correlation_is_nan(x, y):
    found = rank_correlation(x, y)
    assert found["n"] == len(x) and all(math.isnan(found[name]) for name in ("rho", "low", "high", "p"))


# --- figures --------------------------------------------------------------------------------------------------------

METHODS = {"full": 0, "LoRA r=1": 1, "LoRA r=8": 8}


def grid(seeds=(0,), tasks=("movies", "topics"), **axes: tuple) -> pd.DataFrame:
    """Every combination of task, method, seed and the axes given, with plausible values of each drawn column."""
    rows = [{"task": task, "method": method, "r": r, "seed": seed, "run": f"{task}{r}{seed}"}
            for task in tasks for method, r in METHODS.items() for seed in seeds]
    for name, values in axes.items():
        rows = [row | {name: value} for row in rows for value in values]
    table, rng = pd.DataFrame(rows), np.random.default_rng(len(seeds))
    return table.assign(accuracy=rng.uniform(0.5, 0.9, len(table)), n_intruders=rng.integers(0, 40, len(table)),
                        strongest_ratio=rng.uniform(0, 2, len(table)), least_cosine=rng.uniform(0, 1, len(table)),
                        pseudo_loss=rng.uniform(4, 6, len(table)), base_pseudo_loss=4.5,
                        difference=rng.uniform(-0.1, 0.1, len(table)), forgetting=rng.uniform(0, 1, len(table)),
                        relative_norm=rng.uniform(0, 0.1, len(table)))


# name -> (columns that span the frame, the call with own data and reference, number of panels)
WITH_REFERENCE = {
    "counts_against_epsilon": ({"epsilon": (0.1, 0.5, 0.9)},
                               lambda own, ref: intruders_figures.counts_against_epsilon(own, ref, level=0.14), 2),
    "growth": ({"step": (10, 20)}, lambda own, ref: intruders_figures.growth(own, ref), 4),
    "counts_against_k": ({"k": (0.1, 0.5, 1.0)}, lambda own, ref: intruders_figures.counts_against_k(own, ref), 2),
}


def artists(figure: Figure) -> int:
    """How many things are drawn: lines and filled or stroked collections."""
    return sum(len(axis.lines) + len(axis.collections) + len(axis.patches) for axis in figure.axes)


def drawn(figure: Figure) -> Figure:
    """A figure that really renders, each of its panels with a label below or a title above."""
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    assert all(axis.get_xlabel() or axis.get_title() for axis in figure.axes if axis.get_label() != "<colorbar>")
    return figure


def lines_named(axis, name: str) -> list:
    return [line for line in axis.lines if line.get_label() == name]


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_a_figure_draws_own_data_with_and_without_reference(name):
    """Without a reference only the reader's results are drawn; with one, more is on the same panels."""
    axes, draw, panels = WITH_REFERENCE[name]
    own, reference = grid(**axes), grid(SEEDS, **axes)
    alone, both = drawn(draw(own, None)), drawn(draw(own, reference))
    assert len(alone.axes) == len(both.axes) == panels
    assert artists(both) > artists(alone)


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_a_reference_of_other_methods_does_not_disturb(name):
    """A reference that lacks the reader's methods (another profile's ranks) leaves the figure standing."""
    axes, draw, panels = WITH_REFERENCE[name]
    reference = grid(SEEDS, **axes)
    reference = reference.assign(method="LoRA r=512", r=reference["r"].where(reference["r"] == 0, 512))
    assert len(drawn(draw(grid(**axes), reference)).axes) == panels


def test_similarity_maps_and_outlined_rows():
    """One heat-map per entry with the values given; an outlined row frames exactly that row across the map."""
    maps = {"full": np.eye(6), "LoRA": np.full((6, 6), 0.25)}
    figure = drawn(similarity_figures.similarity_maps(maps, matrix="layer 0 query"))
    assert [axis.get_title() for axis in figure.axes[:2]] == ["full", "LoRA"]
    assert np.array_equal(figure.axes[0].images[0].get_array(), maps["full"])
    similarity_figures.outline_rows(figure, 1, [1, 4])
    boxes = [patch.get_bbox().bounds for patch in figure.axes[1].patches]
    assert boxes == [(0.5, 0.5, 6, 1), (0.5, 3.5, 6, 1)] and not figure.axes[0].patches


def test_cosines_by_index_marks_both_levels():
    vectors = pd.DataFrame({"method": ["full"] * 3 + ["LoRA r=8"] * 3, "index": [1, 2, 3] * 2,
                            "max_cosine": [0.9, 0.8, 0.9, 0.2, 0.9, 0.8]})
    axis = drawn(similarity_figures.cosines_by_index(vectors, epsilon=0.5, level=0.14)).axes[0]
    assert lines_named(axis, "LoRA r=8")[0].get_ydata().tolist() == [0.2, 0.9, 0.8]
    assert lines_named(axis, "epsilon = 0.5")[0].get_ydata() == [0.5, 0.5]
    assert lines_named(axis, "a random direction")[0].get_ydata() == [0.14, 0.14]


def test_one_vector():
    figure = drawn(similarity_figures.one_vector({"normal": np.eye(5)[0], "intruder": np.full(5, 0.1)}))
    heights = [[segment[1][1] for segment in axis.collections[0].get_segments()] for axis in figure.axes]
    assert heights == [[1, 0, 0, 0, 0], [0.1] * 5]


def test_toy_curves():
    sweep = pd.DataFrame({"ratio": [0.5, 1.0, 2.0], "index": [9, 2, 1], "overlap": [0.3, 0.8, 0.99],
                          "max_cosine": [0.9, 0.5, 0.2]})
    figure = drawn(similarity_figures.toy_curves(sweep, level=0.14))
    assert figure.axes[0].lines[0].get_ydata().tolist() == [0.9, 0.5, 0.2]
    assert figure.axes[1].lines[0].get_ydata().tolist() == [9, 2, 1]


def test_control_curves_have_one_panel_per_control():
    """The trained runs first; a control that lacks a method (full has no rank) draws the others."""
    runs = grid(tasks=("movies",), epsilon=(0.1, 0.5))
    controls = pd.concat([runs.assign(control="random, full rank"),
                          runs[runs["r"] > 0].assign(control="random, rank r")])
    figure = drawn(intruders_figures.control_curves(runs, controls))
    assert [axis.get_title() for axis in figure.axes] == ["trained", "random, full rank", "random, rank r"]
    assert [len(axis.lines) for axis in figure.axes] == [3, 3, 2]


@pytest.mark.parametrize("highest", [0, 7])
def test_places_print_each_count(highest):
    """Layer by type, one map per method, every count written into its cell; a model without intruders draws too."""
    table = pd.DataFrame([{"method": method, "layer": layer, "type": kind, "n_intruders": highest * layer}
                          for method in ("full", "LoRA r=8") for layer in (0, 1) for kind in ("query", "key")])
    figure = drawn(intruders_figures.places(table, ["full", "LoRA r=8"]))
    assert [text.get_text() for text in figure.axes[1].texts] == ["0", "0", str(highest), str(highest)]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["query", "key"]


# --- figures of the studies -----------------------------------------------------------------------------------------

def names_in(legend) -> list[str]:
    return [text.get_text() for text in legend.get_texts()]


def full_of_lines(figure: Figure, panels: int, legend: list[str] | None = None) -> Figure:
    """It renders; every panel has axis labels, something drawn and no infinite limits; the legend names the lines."""
    drawn(figure)
    axes = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
    assert len(axes) == panels
    for axis in axes:
        assert axis.lines or axis.collections or axis.images
        assert np.isfinite([*axis.get_xlim(), *axis.get_ylim()]).all()
    if legend is not None:
        assert sorted(names_in(figure.legends[0])) == sorted(legend)
    return figure


def bands(axis) -> list[tuple[float, float]]:
    """Smallest and largest height of each filled band that has any."""
    paths = [collection.get_paths()[0].vertices for collection in axis.collections if collection.get_paths()]
    return [(path[:, 1].min(), path[:, 1].max()) for path in paths if len(path)]


def lines_of(axis) -> dict[str, list]:
    """Heights of every line that has any, by its label."""
    return {line.get_label(): list(line.get_ydata()) for line in axis.lines
            if len(line.get_ydata()) and not line.get_label().startswith("_")}  # the reference's mean has no label


def points(rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["panel", "method", "x", "y"])


OWN = points([("one", "full", 1, 2.0), ("one", "full", 2, 4.0), ("one", "LoRA r=8", 1, 5.0),
              ("one", "LoRA r=8", 2, 6.0)])
AXES = {"x": "x", "y": "y", "panel": "panel", "xlabel": "step", "ylabel": "count"}


@pytest.mark.parametrize("panels", [1, 3])
def test_panel_lines_draw_own_lines_with_and_without_bands(panels):
    """The line is the mean over own rows, the band spans the reference's; only the first panel has the label left."""
    own = pd.concat([OWN, OWN.assign(y=OWN["y"] + 2)]).merge(pd.DataFrame({"number": range(panels)}), how="cross")
    own["panel"] = own["panel"] + own["number"].astype(str)
    reference = pd.concat([own.assign(y=own["y"] - 1), own.assign(y=own["y"] + 1)])
    alone = full_of_lines(kit_panels.panel_lines(own, **AXES), panels, ["full", "LoRA r=8"])
    both = full_of_lines(kit_panels.panel_lines(own, reference, **AXES), panels, ["full", "LoRA r=8"])
    for figure in (alone, both):
        assert [axis.get_title() for axis in figure.axes] == [f"one{number}" for number in range(panels)]
        assert lines_of(figure.axes[-1]) == {"full": [3, 5], "LoRA r=8": [6, 7]}
        assert figure.axes[0].get_ylabel() == "count" and figure.axes[-1].get_xlabel() == "step"
    assert bands(alone.axes[0]) == [] and bands(both.axes[0]) == [(1, 7), (4, 9)]


def test_a_panel_that_only_the_reference_has_is_drawn():
    """A reader trains some of the panels; the others show the band, and the axes that the reader's panels have."""
    reference = pd.concat([OWN, OWN.assign(panel="two"), OWN.assign(panel="two", y=9.0)])
    figure = full_of_lines(kit_panels.panel_lines(OWN, reference, **AXES), 2, ["full", "LoRA r=8"])
    assert figure.axes[1].get_title() == "two" and lines_of(figure.axes[1]) == {}
    assert bands(figure.axes[1]) == [(2, 9), (5, 9)]


def test_a_line_that_only_the_reference_has_is_a_band_in_the_legend():
    """Its band is drawn where it is known, with a colour of its own; full fine-tuning stays black."""
    more = points([("one", "LoRA r=64", x, y) for x, y in ((1, 7.0), (2, 8.0), (1, 7.5), (2, 9.0))])
    figure = full_of_lines(kit_panels.panel_lines(OWN, pd.concat([OWN, more]), **AXES), 1,
                           ["full", "LoRA r=8", "LoRA r=64"])
    axis = figure.axes[0]
    assert set(lines_of(axis)) == {"full", "LoRA r=8"} and (7, 9) in bands(axis)
    colours = {line.get_label(): to_hex(line.get_color()) for line in axis.lines if line.get_label()[0] != "_"}
    assert len(set(colours.values())) == 3 and colours["full"] == "#000000"


def test_panel_lines_by_a_number_name_it_above_the_legend():
    """Lines by seed, rank or rate: the legend says what its numbers are; a line is only in the panels that have it."""
    own = pd.concat([OWN.assign(rows=600), OWN.assign(rows=1200, panel="two")])
    figure = full_of_lines(kit_panels.panel_lines(own, own.assign(rows=own["rows"].astype(np.int64)), by="rows",
                                               xscale="log", yscale="symlog", **AXES), 2, ["600", "1200"])
    assert figure.legends[0].get_title().get_text() == "rows"
    assert [list(lines_of(axis)) for axis in figure.axes] == [["600"], ["1200"]]
    assert {(axis.get_xscale(), axis.get_yscale()) for axis in figure.axes} == {("log", "symlog")}


def test_values_in_long_form_make_panels():
    """One panel per column, with its label; nothing stays nothing, as where no reference is committed."""
    table = pd.DataFrame({"method": "full", "step": [1, 2], "accuracy": [0.5, 0.75], "loss": [3.0, 4.0]})
    long = kit_panels.by_value(table, {"accuracy": "test accuracy", "loss": "nats"})
    assert list(zip(long["panel"], long["value"], strict=True)) == [
        ("test accuracy", 0.5), ("test accuracy", 0.75), ("nats", 3.0), ("nats", 4.0)]
    assert kit_panels.by_value(None, {"accuracy": "test accuracy"}) is None
    figure = kit_panels.panel_lines(long, None, x="step", y="value", panel="panel", xlabel="step", ylabel="", sharey=False)
    assert [list(lines_of(axis).values()) for axis in full_of_lines(figure, 2).axes] == [[[0.5, 0.75]], [[3, 4]]]


def test_styles_tell_methods_apart_without_colour():
    """Full fine-tuning is black and solid wherever it stands; up to eight methods differ in marker and in dash."""
    names = ["LoRA r=1", "full", *(f"LoRA r={2 ** i}" for i in range(1, 7))]
    styles = method_styles(names)
    assert list(styles) == names and to_hex(styles["full"]["color"]) == "#000000" and styles["full"]["linestyle"] == "-"
    assert len({style["marker"] for style in styles.values()}) == len(names)
    assert len({str(style["linestyle"]) for style in styles.values()}) == len(names)


# --- publishing -----------------------------------------------------------------------------------------------------

ALT = "A line plot of intruder dimensions against epsilon: 12 for LoRA and 0 for full fine-tuning at 0.5."
TABLE = pd.DataFrame({"method": ["full", "LoRA r=8"], "n_intruders": [0, 12], "run": ["b2", "a1"]})


@pytest.fixture
def figures(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_COURSE_FIGURES", str(tmp_path))
    return tmp_path


def small_figure() -> Figure:
    figure, axis = plt.subplots(figsize=(3, 2))
    axis.plot([0, 1], [0, 12])
    return figure


def test_publishing_writes_image_table_and_provenance(figures):
    """Four files under the profile's folder, whole, that say what was drawn, from which runs, and with what."""
    publish(small_figure(), TABLE, "04_count", alt=ALT, profile=load_profile("laptop"))
    folder = figures / "laptop"
    assert {path.name for path in folder.iterdir()} == {f"04_count.{kind}" for kind in ("png", "svg", "csv", "json")}
    assert plt.imread(folder / "04_count.png").size  # decodes
    assert "</svg>" in (folder / "04_count.svg").read_text(encoding="utf-8")
    pd.testing.assert_frame_equal(pd.read_csv(folder / "04_count.csv"), TABLE, check_dtype=False)
    entry = json.loads((folder / "04_count.json").read_text(encoding="utf-8"))
    assert entry["alt"] == published_alt("04_count", "laptop") == ALT
    assert (entry["profile"], entry["evidence"], entry["rows"]) == ("laptop", True, 2)
    assert entry["runs"] == ["a1", "b2"] and entry["columns"] == list(TABLE.columns)
    assert {"torch", "peft", "transformers"} <= set(entry["provenance"]["packages"])


@pytest.mark.parametrize("profile, stamped", [("smoke", True), ("laptop", False)])
def test_only_a_profile_without_evidence_is_stamped(figures, profile, stamped):
    """The stamp is in the image itself; the provenance says the same."""
    figure = small_figure()
    publish(figure, TABLE, "04_count", alt=ALT, profile=load_profile(profile))
    assert (STAMP in [text.get_text() for text in figure.texts]) is stamped
    entry = json.loads((figures / profile / "04_count.json").read_text(encoding="utf-8"))
    assert entry["evidence"] is not stamped


def test_equal_figures_are_equal_files(figures):
    """No date or random id in the images: a figure that did not change makes no difference to review."""
    first, second = [], []
    for seen in (first, second):
        publish(similarity_figures.toy_curves(pd.DataFrame({"ratio": [1, 2], "index": [2, 1], "overlap": [0.5, 0.9],
                                               "max_cosine": [0.5, 0.2]}), level=0.1),
                TABLE, "04_toy", alt=ALT, profile=load_profile("laptop"))
        seen += [(figures / "laptop" / f"04_toy.{kind}").read_bytes() for kind in ("png", "svg", "csv")]
    assert first == second


def test_publishing_closes_the_figure(figures):
    """A course of many figures must not pile them up in memory."""
    publish(small_figure(), TABLE, "04_count", alt=ALT, profile=load_profile("laptop"))
    assert plt.get_fignums() == []


@pytest.mark.parametrize("table, alt", [(TABLE.iloc[:0], ALT), (TABLE, "A plot."), (TABLE, "")],
                         ids=["empty table", "short alt", "no alt"])
def test_a_figure_without_table_or_alt_text_is_refused(figures, table, alt):
    """Refused before anything is written, with the figure's name."""
    with pytest.raises(CourseError, match="Figure 04_count needs a table with rows and an alt text"):
        publish(small_figure(), table, "04_count", alt=alt, profile=load_profile("laptop"))
    assert not list(figures.rglob("*.*"))
