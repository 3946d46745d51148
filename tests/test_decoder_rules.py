"""The second paper's rules on hand-made tables, its claims against its tables, and the pure parts of the latter."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from test_reporting import Read

from utils.errors import UsageError
from utils.ledger import reference as reference
from utils.ledger.claims import OUT_OF_REACH, claims, verdict
from utils.profiles import PROFILE_NAMES, load_profile
from utils.reporting.registry import RULES as DECODER_RULES
from utils.studies.learning import measure as learning_measure
from utils.studies.learning.published import published_base, published_curves, published_tulu
from utils.studies.update_rank import measure as update_rank_measure
from utils.studies.update_rank.published import published_memory
from utils.training.spec import Method, RunSpec, run_specs

LOSS, WEIGHTS = "loss_nats_per_token", ("q_proj", "o_proj", "up_proj", "down_proj")
RUN = ("task", "r", "lora_alpha", "learning_rate", "optimiser", "batch_size", "weight_decay", "decay_towards",
       "attention_dropout", "targets", "scaling", "method")
SECOND = [claim for claim in claims() if claim.rule in DECODER_RULES]


def row(r: int, **values) -> dict:
    """A run of a rank (0 is full fine-tuning) with everything that is not told as usual."""
    usual = {"experiment": "code", "r": r, "lora_alpha": 2 * r, "learning_rate": 1e-3, "optimiser": "adamw",
             "batch_size": 16, "weight_decay": 0.0, "decay_towards": "zero", "attention_dropout": 0.0, "targets": "all",
             "scaling": "alpha = 2r" if r else "", "method": f"LoRA r={r}" if r else "full", "step": 20}
    return usual | {"task": values.get("experiment", "code")} | values


def frame(per_seed: list[list[dict]]) -> pd.DataFrame:
    """The rows of seeds 0, 1, …; the untouched base stands in the table once, with the first seed."""
    rows = [{"seed": seed, "run": "/".join(str(one[name]) for name in RUN) + f"/{seed}"} | one
            for seed, part in enumerate(per_seed) for one in part]
    table = pd.DataFrame(rows)
    return table[(table["method"] != "base") | (table["seed"] == 0)].reset_index(drop=True)


def ends(column: str, experiment: str, **values: float) -> list[dict]:
    """Last values by rank (`full`, `r1`, `r8`); at the step before, the order is the opposite."""
    return [row(int(name[1:]) if name != "full" else 0, experiment=experiment, step=step, **{column: at})
            for name, value in values.items() for step, at in ((10, 9 - value), (20, value))]


def course(column: str, experiment: str, **values: tuple) -> list[dict]:
    """Values at steps 10, 20 and 40 by rank."""
    return [row(int(name[1:]) if name != "full" else 0, experiment=experiment, step=step, **{column: value})
            for name, at in values.items() for step, value in zip((10, 20, 40), at, strict=True)]


def plane(experiment: str, **points: tuple) -> list[dict]:
    """(learning, forgetting) at each step, by rank."""
    return [row(int(name[1:]) if name != "full" else 0, experiment=experiment, step=10 * place, learning=x,
                forgetting=y) for name, at in points.items() for place, (x, y) in enumerate(at, start=1)]


def regularised(decay: float, dropout: float) -> list[dict]:
    """Forgetting under the largest decay and dropout, plainly 1; smaller ones, decay towards W0 and LoRA say 9."""
    def full(value: float, **values) -> list[dict]:
        at = {"experiment": "regularisers", "method": f"full, {values}"} | values
        return [row(0, step=step, forgetting=number, **at) for step, number in ((10, 5.0), (20, value))]

    return [*full(1.0, experiment="code", method="full"), *full(decay, weight_decay=0.01),
            *full(dropout, attention_dropout=0.1), *full(9.0, weight_decay=0.005), *full(9.0, attention_dropout=0.05),
            *full(9.0, weight_decay=0.1, decay_towards="base"), row(8, forgetting=9.0)]


def written(column: str, outcome: str, base: tuple, lora: tuple, full: tuple) -> list[dict]:
    """Values of two problems by model; another outcome and another temperature say 99."""
    models = (("base", 0, base), ("LoRA r=8", 8, lora), ("full", 0, full))
    return [row(r, method=method, task_id=problem, experiment="instruction", outcome=which, temperature=temperature,
                **{column: value if (which, temperature) == (outcome, 0.2) else 99.0})
            for method, r, values in models for problem, value in enumerate(values)
            for which in (outcome, "other") for temperature in (0.2, 0.8)]


def passing(full: float, r8: float) -> list[dict]:
    """pass@1 at temperature 0.8; at another k or temperature and of rank 1 LoRA passes everything, and so does base."""
    at = [row(r, experiment="instruction", k=1, temperature=0.8, pass_at_k=value)
          for r, value in ((0, full), (8, r8), (1, 1.0))]
    others = [row(r, experiment="instruction", k=k, temperature=temperature, pass_at_k=float(r > 0))
              for r in (0, 8) for k, temperature in ((1, 0.2), (2, 0.8))]
    return [*at, *others, row(0, method="base", experiment="instruction", k=1, temperature=0.8, pass_at_k=1.0)]


def controlled(trained: float, random: float) -> list[dict]:
    return [row(r, control=control, forgetting=value) for r, values in ((0, (trained, random)), (8, (9.0, 0.0)))
            for control, value in zip(("trained", "random, full rank"), values, strict=True)]


# rule[/variant] -> (parameters, a seed where it holds, its effect, a seed where it fails, its effect)
CASES = {
    "ordered_by_rank": ({"in_experiment": "code", "column": LOSS}, ends(LOSS, "code", full=3, r1=4, r8=3.25), 0.25,
                        ends(LOSS, "code", full=3, r1=3.25, r8=3.75), -0.5),
    "ordered_by_rank/sign": ({"in_experiment": "mathematics", "column": "exact_match", "sign": -1},
                             ends("exact_match", "mathematics", full=0.625, r1=0.25, r8=0.5), 0.125,
                             ends("exact_match", "mathematics", full=0.5, r1=0.25, r8=0.5), 0),
    "below_full": ({"in_experiment": "instruction", "rank": "every", "column": "forgetting"},
                   ends("forgetting", "instruction", full=0.75, r1=0.5, r8=0.25), 0.25,
                   ends("forgetting", "instruction", full=0.75, r1=0.25, r8=1), -0.25),
    "below_full/sign": ({"in_experiment": "code", "rank": "lowest", "column": "choice", "sign": -1},
                        ends("choice", "code", full=0.5, r1=0.625, r8=0.25), 0.125,
                        ends("choice", "code", full=0.5, r1=0.5, r8=0.75), 0),
    # rank 8's gap is 0, 0.25, 0.5; that of rank 1 goes up and down
    "gap_widens": ({"in_experiment": "code", "rank": "highest", "earlier": 1},
                   course(LOSS, "code", full=(5, 4, 3), r8=(5, 4.25, 3.5), r1=(5, 5, 3)), 0.25,
                   course(LOSS, "code", full=(5, 4, 3), r8=(5, 4.5, 3.25), r1=(5, 4, 9)), -0.25),
    "close_to_full": ({"in_experiment": "instruction", "rank": "highest", "tolerance": 0.125},
                      ends(LOSS, "instruction", full=3, r1=9, r8=3.0625), 0.0625,
                      ends(LOSS, "instruction", full=3, r1=3, r8=3.25), -0.125),
    # places 3 1 2 against 1 2 3: squares 4 + 1 + 1, rho = 1 - 6 * 6 / 24
    "grows_with_duration": ({"in_experiment": "code", "rank": "full", "column": "forgetting"},
                            course("forgetting", "code", full=(1, 2, 3), r1=(3, 2, 1)), 1,
                            course("forgetting", "code", full=(3, 1, 2), r1=(1, 2, 3)), -0.5),
    "grows_with_duration/lowest": ({"in_experiment": "code", "rank": "lowest", "column": "forgetting"},
                                   course("forgetting", "code", r1=(1, 2, 3), r8=(3, 2, 1), full=(3, 2, 1)), 1,
                                   course("forgetting", "code", r1=(3, 1, 2), r8=(1, 2, 3), full=(1, 2, 3)), -0.5),
    "more_on_first_task": ({"experiments": ["code", "mathematics"], "column": "forgetting"},
                           [*ends("forgetting", "code", full=0.5, r8=0), *ends("forgetting", "mathematics", full=0.25)],
                           0.25,
                           [*ends("forgetting", "code", full=0.5, r8=9), *ends("forgetting", "mathematics", full=0.5)],
                           0),
    "above_base": ({"rank": "full", "least": 0.125},
                   [one | {"base_exact_match": 0.25} for one in ends("exact_match", "mathematics", full=0.5, r8=0)],
                   0.125,
                   [one | {"base_exact_match": 0.25} for one in ends("exact_match", "mathematics", full=0.25, r8=1)],
                   -0.125),
    # both reach 1.5; full, from (1, 0.5) to (2, 1), has forgotten 0.75 there
    "forgets_less_when_matched": ({"in_experiment": "code", "rank": "highest"},
                                  plane("code", full=((1, 0.5), (2, 1)), r8=((0.5, 0.25), (1.5, 0.5)), r1=((1, 9),)),
                                  0.25,
                                  plane("code", full=((1, 0.5), (2, 1)), r8=((0.5, 0.25), (1.5, 1)), r1=((1, 0),)),
                                  -0.25),
    "forgets_more_when_matched": ({"in_experiment": "mathematics", "rank": "highest"},
                                  plane("mathematics", full=((1, 0.5), (2, 1)), r8=((0.5, 0.25), (1.5, 1))), 0.25,
                                  plane("mathematics", full=((1, 0.5), (2, 1)), r8=((0.5, 0.25), (1.5, 0.5))), -0.25),
    "like_full": ({"column": "forgetting", "tolerance": 0.25}, regularised(1.125, 0.9375), 0.125,
                  regularised(1.125, 0.5), -0.25),
    # places 4 2 3 1 against 1 2 3 4: squares 9 + 9, rho = 1 - 6 * 18 / 60
    "goes_along": ({"in_experiment": "code", "x": "kl_nats_per_token", "y": "forgetting", "least": 0.5},
                   [row(r, step=step, kl_nats_per_token=kl, forgetting=f) for r, step, kl, f in (
                       (0, 10, 3, 0.3), (0, 20, 4, 0.4), (8, 10, 1, 0.1), (8, 20, 2, 0.2))], 0.5,
                   [row(r, step=step, kl_nats_per_token=kl, forgetting=f) for r, step, kl, f in (
                       (0, 10, 3, 0.3), (0, 20, 4, 0.1), (8, 10, 1, 0.4), (8, 20, 2, 0.2))], -1.3),
    "trained_forgets_more": ({}, controlled(0.5, 0.25), 0.25, controlled(0.25, 0.25), 0),
    "less_diverse": ({"column": "rarefied", "outcome": "failed", "temperature": 0.2},
                     written("rarefied", "failed", (8, 6), (5, 5), (6, 2)), 1,
                     written("rarefied", "failed", (8, 6), (3, 3), (6, 2)), -1),
    "more_alike": ({"column": "self_bleu", "outcome": "all", "temperature": 0.2},
                   written("self_bleu", "all", (0.25, 0.25), (0.25, 0.75), (0.5, 0.75)), 0.125,
                   written("self_bleu", "all", (0.25, 0.25), (0.25, 0.75), (0.5, 0.5)), 0),
    "passes_more": ({"k": 1, "rank": "highest", "temperature": 0.8}, passing(0.5, 0.25), 0.25, passing(0.5, 0.5), 0),
}

# What a seed may lack (a diverged run is in no table), such that it cannot be judged.
LACKING = {
    "ordered_by_rank": ["r == 0", "r == 1", "r == 8"], "ordered_by_rank/sign": ["r == 0", "r == 1", "r == 8"],
    "below_full": ["r == 0", "r == 1", "r == 8"], "below_full/sign": ["r == 0", "r == 1"],
    "gap_widens": ["r == 0", "r == 8"], "close_to_full": ["r == 0", "r == 8"],
    "grows_with_duration": ["r == 0"], "grows_with_duration/lowest": ["r == 1"],
    "more_on_first_task": ["experiment == 'code'", "experiment == 'mathematics'", "r == 0"], "above_base": ["r == 0"],
    "forgets_less_when_matched": ["r == 0", "r == 8"], "forgets_more_when_matched": ["r == 0", "r == 8"],
    "like_full": ["experiment == 'code'", "weight_decay == 0.01", "attention_dropout == 0.1"],
    "goes_along": ["step > 0"],
    "trained_forgets_more": ["r == 0", "control == 'trained'", "control == 'random, full rank' and r == 0"],
    "less_diverse": ["method == 'full'", "r == 8", "outcome == 'failed'"],
    "more_alike": ["method == 'full'", "r == 8", "outcome == 'all'"],
    "passes_more": ["method == 'full'", "r == 8", "k == 1"],
}

# Rules that read all of their measurement, which is of one experiment or whose rows say what they are.
EVERY_EXPERIMENT = {"like_full", "trained_forgets_more", "less_diverse", "more_alike", "passes_more"}


def the_rule(case: str):
    return DECODER_RULES[case.split("/")[0]]


def test_every_rule_has_a_case():
    assert {name.split("/")[0] for name in CASES} == set(DECODER_RULES) and set(LACKING) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_rule_gives_each_seed_its_effect(name):
    """Worked by hand: positive where the sentence holds, one value per seed, in any order of rows."""
    rule, holds, positive, fails, negative = CASES[name]
    table = frame([holds, fails, holds])
    for ordered in (table, table.iloc[::-1], table.sample(frac=1, random_state=0)):
        effects = the_rule(name)(ordered, rule)
        assert effects.to_dict() == pytest.approx({0: positive, 1: negative, 2: positive})
    assert positive > 0 >= negative


@pytest.mark.parametrize("name, lacking", [(name, lacking) for name in LACKING for lacking in LACKING[name]])
def test_a_seed_without_a_run_that_the_rule_needs_is_not_judged(name, lacking):
    """What is left of that seed stands in for nothing, and the other seed keeps its effect."""
    rule, holds, positive, *_ = CASES[name]
    whole = frame([holds, holds])
    gone = whole[whole["seed"] == 1].query(lacking)
    assert len(gone)
    assert the_rule(name)(whole.drop(index=gone.index), rule).dropna().to_dict() == pytest.approx({0: positive})


@pytest.mark.parametrize("name", [name for name in CASES if name not in EVERY_EXPERIMENT])
def test_a_rule_reads_its_own_experiment_only(name):
    rule, holds, positive, fails, _ = CASES[name]
    foreign = frame([fails]).assign(experiment="shuffled", run=lambda table: table["run"] + "x")
    assert the_rule(name)(pd.concat([frame([holds]), foreign], ignore_index=True), rule).to_dict() == pytest.approx(
        {0: positive})


@pytest.mark.parametrize("name, column", [("ordered_by_rank", LOSS), ("ordered_by_rank/sign", "exact_match"),
                                          ("below_full", "forgetting"), ("below_full/sign", "choice")])
def test_a_value_that_was_not_measured_is_not_passed_over(name, column):
    """The order of two ranks says nothing of a third whose multiple choice or exact match is missing."""
    rule, holds, *_ = CASES[name]
    table = frame([holds])
    table.loc[table["r"] == 1, column] = math.nan
    assert the_rule(name)(table, rule).isna().tolist() == [True]


@pytest.mark.parametrize("rank, effect", [("lowest", -1), ("highest", 0.25), ("full", 0.5)])
def test_the_rank_is_the_lowest_or_the_highest_of_all_seeds(rank, effect):
    """In a seed that lacks it no other rank stands in for it; `full` against itself leaves the tolerance."""
    table = frame([ends(LOSS, "code", full=3, r1=4.5, r2=9, r8=3.25), ends(LOSS, "code", full=3, r2=3)])
    rule = {"in_experiment": "code", "tolerance": 0.5, "rank": rank}
    found = DECODER_RULES["close_to_full"](table, rule)
    assert found[0] == effect and (rank == "full" or math.isnan(found[1]))


@pytest.mark.parametrize("name, rows", [
    ("ordered_by_rank", ends(LOSS, "code", full=3, r1=3, r8=3)), ("gap_widens", course(
        LOSS, "code", full=(5, 4, 3), r8=(5, 4.5, 3.5))), ("grows_with_duration", course("forgetting", "code",
                                                                                        full=(1, 1, 1))),
    ("close_to_full", ends(LOSS, "instruction", full=3, r8=3.125))],
    ids=lambda value: value if isinstance(value, str) else "")
def test_a_tie_is_an_effect_of_zero_which_does_not_hold(name, rows):
    assert the_rule(name)(frame([rows]), CASES[name][0]).tolist() == [0]


def test_a_gap_needs_an_earlier_duration_than_the_last():
    rule, holds, *_ = CASES["gap_widens"]
    assert DECODER_RULES["gap_widens"](frame([holds]), rule | {"earlier": 2}).isna().all()


def test_regularisers_that_were_never_tried_are_not_judged():
    """Without dropout in the table plain full fine-tuning must not stand for it."""
    table = frame([regularised(1.125, 1.0)])
    rule = CASES["like_full"][0]
    assert DECODER_RULES["like_full"](table[table["attention_dropout"] == 0], rule).isna().tolist() == [True]


def test_without_the_base_no_generation_is_more_or_less_diverse():
    for name in ("less_diverse", "more_alike"):
        rule, holds, *_ = CASES[name]
        table = frame([holds])
        assert DECODER_RULES[name](table[table["method"] != "base"], rule).isna().all()


# --- the claims of the second paper

@pytest.mark.parametrize("claim", SECOND, ids=lambda claim: claim.id)
def test_a_claims_parameters_are_those_its_rule_reads(claim):
    """A misspelt parameter would be ignored, and one left out would make every seed NaN, both in silence."""
    if set(claim.out_of_reach) == set(PROFILE_NAMES):
        return  # judged nowhere: its rule is only there because a claim must name one
    alike = [case for name, case in CASES.items()
             if name.split("/")[0] == claim.rule and set(case[0]) == set(claim.model_extra)]
    assert alike, f"no case of {claim.rule} has the parameters {sorted(claim.model_extra)}"
    asked = Read(alike[0][0])
    assert DECODER_RULES[claim.rule](frame([alike[0][1]]), asked).notna().all()
    assert not asked.missed and asked.asked >= set(claim.model_extra)


FIGURES = "1A 1B 1C 1D 2A 2B 2C 2D 3 4 5 6 7 S1 S2 S3 S4 S5 S6 S7 S8 S9 S10".split()  # arXiv 2405.09673v2
TABLES = ["1", *(f"S{number}" for number in range(1, 17))]


def named_in(text: str, word: str) -> set[str]:
    """
    >>> sorted(named_in("Figs S4 to S6, Tables S9 and S11", "Fig")), named_in("Fig 1A, Table S1", "Table")
    (['S4', 'S5', 'S6'], {'S1'})
    """
    found = set()
    for span in re.findall(rf"\b{word}s? (S?\d+[A-D]?(?:(?:, | and | to )S?\d+[A-D]?)*)", text):
        for first, last in re.findall(r"(S?\d+[A-D]?)(?: to S(\d+))?", span):
            found |= {first} if not last else {f"S{number}" for number in range(int(first[1:]), int(last) + 1)}
    return found


def test_every_figure_and_table_of_the_second_paper_has_a_claim():
    """By panel, or the whole figure where the claim speaks of all of it; and none is named that is not there."""
    texts = [claim.figure for claim in claims() if claim.paper == "Learns less v2"]
    figures, tables = (set().union(*(named_in(text, word) for text in texts)) for word in ("Fig", "Table"))
    assert {claim.id for claim in SECOND} == {claim.id for claim in claims() if claim.paper == "Learns less v2"}
    assert [one for one in FIGURES if one not in figures] == [] and set(TABLES) == tables
    assert figures <= set(FIGURES) | {"1", "2"}


R16, R64, R256, FULL = "LoRA r=16", "LoRA r=64", "LoRA r=256", "full"
ALL = (R16, R64, R256, FULL)
# Claim -> (table, method, duration) of each number that its `published` quotes, in the text's order.
QUOTED = {
    "learns-less-code": [("S1", method, 20) for method in ALL],
    "gap-widens-code": [("S1", method, at) for at in (1, 20) for method in (R256, FULL)],
    "learns-less-math": [("S3", method, 20) for method in ALL],
    "exact-match-order": [("S3", method, 20) for method in ALL],
    "answers-learnt": [("base", "openwebmath", "learning"), ("S3", FULL, 20)],
    "instruction-matches": [("S5", R256, 4), ("S5", FULL, 4), ("S7", R256, 8), ("S7", FULL, 8)],
    "forgets-less-code": [*(("S2", method, 20) for method in ALL), ("base", "starcoder", "forgetting")],
    "forgets-less-math": [("S4", method, 20) for method in ALL],
    "forgetting-grows": [("S2", FULL, at) for at in (0.25, 4, 20)],
    "lora-forgetting-grows": [("S2", R16, at) for at in (0.25, 20)],
    "code-forgets-more": [("S2", FULL, 20), ("S4", FULL, 20)],
    "instruction-forgets-less": [("S6", method, 16) for method in ALL],
    "tulu-chat": [("S10", method, 6) for method in ALL],
    "memory-tables": [("S14", f"{way}, {optimiser}", 1) for way in (FULL, "LoRA") for optimiser in ("Adam", "Lion")],
}


def quoted(table: str, method: str, duration) -> float:
    if table == "base":
        base = published_base()
        return base[(base["dataset"] == method) & (base["quantity"] == duration)]["value"].item()
    if table == "S14":
        memory = published_memory()
        return memory[(memory["model"] == "7B") & (memory["method"] == method) & (memory["gpus"] == duration)][
            "gigabytes"].item()
    curves = pd.concat([published_curves(), published_tulu()])
    return curves[(curves["table"] == table) & (curves["method"] == method) & (curves["duration"] == duration)][
        "value"].item()


@pytest.mark.parametrize("claim", SECOND, ids=lambda claim: claim.id)
def test_quoted_numbers_stand_in_the_published_tables(claim):
    """Each at its place: rank, duration and table. A claim that is not listed quotes no tabulated number."""
    pattern = r"(?<![\w.])\d*\.\d{3}\b" if claim.id != "memory-tables" else r"(?<= )\d+(?:\.\d+)?"
    numbers = [float(number) for number in re.findall(pattern, claim.published)]
    assert numbers == [quoted(*place) for place in QUOTED.get(claim.id, [])]


def planned(measurement: str, profile, seeds: tuple[int, ...]) -> pd.DataFrame:
    """The table that a measurement would make of the profile's planned runs, with made-up numbers."""
    random, rows = np.random.default_rng(0), []

    def numbers(*names: str) -> dict:
        return dict(zip(names, random.uniform(0.1, 0.9, len(names)), strict=True))

    wanted = {"learning_curves": learning_measure.MAIN, "regulariser_curves": ("regularisers", "code"),
              "norm_controls": ("code",),
              "instruction_curves": [name for name in profile.decoder_experiments if name.startswith("instruction")],
              "diversity": ("instruction",), "pass_rates": ("instruction",), "rank_dynamics": update_rank_measure.EXPERIMENTS,
              "sensitivity": ("rates", "optimisers", "alpha", "modules", "batches", "scalings")}
    further = {"norm_controls": [{"control": name} for name in ("trained", "random, full rank")],
               "diversity": [{"outcome": name, "temperature": 0.2} for name in ("passed", "failed", "all")],
               "pass_rates": [{"k": 1, "temperature": 0.8}],
               "rank_dynamics": [{"type": name} for name in WEIGHTS]}.get(measurement, [{}])
    specs = [(name, spec) for name in wanted[measurement] for spec in run_specs(profile, name, seeds)]
    base = [] if measurement not in ("diversity", "pass_rates") else [
        {"method": "base", "r": 0, "seed": seeds[0], "experiment": "instruction"}]
    for one in base + [{"experiment": name} | spec.columns | learning_measure._settings(spec) | {
            "step": step, "last": step == (spec.durations or (spec.steps,))[-1]}
            for name, spec in specs for step in spec.durations or (spec.steps,)]:
        exact = str(one.get("task")).startswith("mathematics")
        for also in further:
            rows.append(one | also | numbers(LOSS, "forgetting", "learning", "choice", "kl_nats_per_token", "rarefied",
                                             "unique_ratio", "self_bleu", "pass_at_k", "update_rank", "ratio",
                                             "base_rank", "tuned_rank") | {
                name: random.uniform() if exact else math.nan for name in ("exact_match", "base_exact_match")})
    table = pd.DataFrame(rows)
    return table[table["last"]] if measurement == "norm_controls" else table


@pytest.mark.parametrize("name", ["laptop", "gpu"])
def test_reference_results_have_the_runs_that_claims_need(name, monkeypatch):
    """A claim in reach whose runs the profile does not plan, or of too few seeds, would have no verdict for ever."""
    monkeypatch.setattr("utils.training.spec.resolve", lambda base: SimpleNamespace(revision="x"))
    profile = load_profile(name).with_reference_runs()
    tables, without = {}, []
    for claim in SECOND:
        if name in claim.out_of_reach or claim.measurement in ("toy_deviations", "memory_formulas"):
            continue
        if claim.measurement not in tables:
            tables[claim.measurement] = planned(claim.measurement, profile, profile.reference_seeds)
        judged = verdict(claim, tables[claim.measurement], name)
        without += [claim.id] if judged["seeds"] < claim.min_seeds else []
    assert without == []


def test_claims_out_of_reach_have_their_reasons():
    """No chat judge, no eight GPUs and no billions of tokens anywhere; generated arithmetic is laptop's alone."""
    nowhere = {claim.id for claim in SECOND if set(claim.out_of_reach) == set(PROFILE_NAMES)}
    assert nowhere == {"dataset-sizes", "tulu-chat", "throughput"}
    elsewhere = {claim.id: set(claim.out_of_reach) for claim in SECOND
                 if claim.out_of_reach and claim.id not in nowhere}
    exact = {name: load_profile(name).decoder_experiments["mathematics"].task for name in PROFILE_NAMES}
    without = {name for name, task in exact.items() if not task.startswith("mathematics")}
    assert elsewhere == dict.fromkeys(("exact-match-order", "answers-learnt"), without)
    assert all(verdict(claim, pd.DataFrame({"x": [1]}), "laptop")["verdict"] == OUT_OF_REACH
               for claim in SECOND if claim.id in nowhere)


# --- what the tables are made of

@pytest.mark.parametrize("values, name", [
    ({}, "full"), ({"method": "LoRA r=8"}, "LoRA r=8"), ({"weight_decay": 7e-4}, "full, decay 0.0007 to zero"),
    ({"weight_decay": 7e-3, "decay_towards": "base"}, "full, decay 0.007 to W0"),
    ({"attention_dropout": 0.1}, "full, attention dropout 0.1")])
def test_a_regularised_run_is_called_by_what_it_has(values, name):
    usual = {"method": "full", "weight_decay": 0.0, "decay_towards": "zero", "attention_dropout": 0.0}
    assert learning_measure._regularised(usual | values) == name


def spec(method: Method, **values) -> RunSpec:
    usual = {"base": {"source": "packaged", "name": "smollm2"}, "base_revision": "x", "task": "python",
             "sizes": {"max_length": 128}, "learning_rate": 1e-3, "schedule": "linear", "warmup_fraction": 0.0,
             "steps": 10, "epochs": None, "batch_size": 16, "checkpoints": 1, "seed": 0}
    return RunSpec(method=method, **usual | values)


@pytest.mark.parametrize("method, scaling", [
    ({"kind": "full"}, ""), ({"kind": "lora", "r": 8, "lora_alpha": 16}, "alpha = 2r"),
    ({"kind": "lora", "r": 64, "lora_alpha": 16}, "alpha / r"),
    ({"kind": "lora", "r": 8, "lora_alpha": 16, "rank_stabilised": True}, "alpha / sqrt(r)")])
def test_settings_name_the_scaling(method, scaling):
    found = learning_measure._settings(spec(Method(**method, targets="mlp"), optimiser="lion", weight_decay=0.5))
    assert found == {"targets": "mlp", "optimiser": "lion", "batch_size": 16, "weight_decay": 0.5,
                     "decay_towards": "zero", "attention_dropout": 0.0, "scaling": scaling}
    assert set(found) == set(learning_measure.SETTINGS)


@pytest.mark.parametrize("task, tokens", [("python", 3 * 16 * 4 * 128), ("functions", 3 * 16 * 4)])
def test_tokens_seen_count_accumulated_batches_and_rows_where_rows_differ(task, tokens):
    one = spec(Method(kind="full"), task=task, gradient_accumulation=4)
    assert learning_measure._train_tokens(one, 3) == tokens


def test_references_can_be_made_one_by_one(tmp_path, monkeypatch):
    """Only what is named is measured and written; the other tables stay byte for byte."""
    monkeypatch.setenv("LORA_COURSE_REFERENCE", str(tmp_path))
    made = []

    def measurement(name: str):
        return lambda profile, seeds: made.append(name) or pd.DataFrame({"seed": seeds, "value": 0.5})

    monkeypatch.setattr(reference, "MEASUREMENTS", {name: measurement(name) for name in ("one", "two", "three")})
    (tmp_path / "laptop").mkdir()
    (tmp_path / "laptop" / "two.csv").write_text("kept")
    assert reference.build_reference(load_profile("laptop"), (4,), only=["three", "one"]) == ["three", "one"]
    assert made == ["one", "three"] and (tmp_path / "laptop" / "two.csv").read_text() == "kept"
    assert {path.name for path in (tmp_path / "laptop").iterdir()} == {"one.csv", "two.csv", "three.csv",
                                                                       "provenance.json"}
    assert pd.read_csv(tmp_path / "laptop" / "three.csv")["seed"].tolist() == [4]


def test_an_unknown_reference_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_COURSE_REFERENCE", str(tmp_path))
    monkeypatch.setattr(reference, "MEASUREMENTS", {"one": lambda *_: pytest.fail("something was measured")})
    with pytest.raises(UsageError, match="Unknown measurement 'nonsense'; the known ones are one"):
        reference.build_reference(load_profile("laptop"), only=["one", "nonsense"])
    assert not list(tmp_path.rglob("*.*"))


