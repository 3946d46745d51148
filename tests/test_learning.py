"""Notebooks 09 and 10: their rules by hand, what their tables are made of, their claims against the paper's tables."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from utils.errors import CourseError
from utils.ledger.claims import claims
from utils.profiles import PROFILE_NAMES, load_profile
from utils.reporting.claims import judge_claim
from utils.reporting.registry import RULES
from utils.reporting.selection import marked
from utils.reporting.verdicts import NO_POWER, OUT_OF_REACH, powerless
from utils.studies.learning import measure, tables
from utils.studies.learning.published import published_base, published_curves, published_tulu
from utils.training.spec import Method, RunSpec, run_specs

LOSS = "loss_nats_per_token"
RUN = ("task", "r", "learning_rate", "weight_decay", "decay_towards", "attention_dropout", "method", "experiment")
OURS = [claim for claim in claims() if claim.study == "learning"]
JUDGED = [claim for claim in OURS if claim.rule]


def row(r: int, **values) -> dict:
    """A run's row of a rank (0 is full fine-tuning) with everything that is not told as usual."""
    usual = {"experiment": "code", "r": r, "learning_rate": 1e-3, "weight_decay": 0.0, "decay_towards": "zero",
             "attention_dropout": 0.0, "method": f"LoRA r={r}" if r else "full", "step": 20, "learning": 4.0,
             "base_exact_match": 0.0}
    return usual | {"task": values.get("experiment", "code")} | values


def frame(*per_seed: list[dict]) -> pd.DataFrame:
    """The rows of seeds 0, 1, … as rules get them."""
    return marked(pd.DataFrame([{"seed": seed, "run": "/".join(str(one[name]) for name in RUN) + f"/{seed}"} | one
                                for seed, part in enumerate(per_seed) for one in part]))


def rank(name: str) -> int:
    return 0 if name == "full" else int(name[1:])


def ends(column: str, experiment: str = "code", **values: float) -> list[dict]:
    """Last values by rank (`full`, `r1`, `r8`); at the step before, the order is the opposite."""
    return [row(rank(name), experiment=experiment, step=step, **{column: at})
            for name, value in values.items() for step, at in ((10, 9 - value), (20, value))]


def course(column: str, **values: tuple) -> list[dict]:
    """Values at steps 10, 20 and 40 by rank."""
    return [row(rank(name), step=step, **{column: value})
            for name, at in values.items() for step, value in zip((10, 20, 40), at, strict=True)]


def plane(experiment: str = "code", **points: tuple) -> list[dict]:
    """(learning, forgetting) at each step, by rank."""
    return [row(rank(name), experiment=experiment, step=10 * place, learning=x, forgetting=y)
            for name, at in points.items() for place, (x, y) in enumerate(at, start=1)]


def regularised(decay: float, dropout: float) -> list[dict]:
    """Forgetting under the largest decay and dropout, plainly 1; smaller ones, decay towards W0 and LoRA say 9."""
    def full(value: float, **values) -> list[dict]:
        at = {"experiment": "regularisers", "method": f"full, {values}"} | values
        return [row(0, step=step, forgetting=number, **at) for step, number in ((10, 5.0), (20, value))]

    return [*full(1.0, experiment="code", method="full"), *full(decay, weight_decay=0.01),
            *full(dropout, attention_dropout=0.1), *full(9.0, weight_decay=0.005), *full(9.0, attention_dropout=0.05),
            *full(9.0, weight_decay=0.1, decay_towards="base"), row(8, forgetting=9.0)]


def decays(towards_base: float, r8: float) -> list[dict]:
    """Forgetting at a learning of 4, where plain full fine-tuning forgets 2 and rank 1 forgets 3."""
    return [row(0, forgetting=2.0), row(1, forgetting=3.0), row(8, forgetting=r8),
            row(0, forgetting=towards_base, weight_decay=0.1, decay_towards="base", method="full, decay 0.1 to W0",
                experiment="regularisers", task="code")]


def controlled(trained: float, random: float) -> list[dict]:
    return [row(r, control=control, forgetting=value)
            for r, values in ((0, (trained, random)), (8, (9.0, 0.5)))
            for control, value in zip(("trained", "random, full rank" if r == 0 else "random, rank r"), values,
                                      strict=True)]


def against(x: str, y: str, **points: tuple) -> list[dict]:
    return [row(rank(name), step=10 * place, **{x: one, y: other})
            for name, at in points.items() for place, (one, other) in enumerate(at, start=1)]


CODE, KL = {"in_experiment": "code"}, "kl_nats_per_token"
# rule -> (parameters, rows of a seed, its effect by hand, rows without which that seed has none)
CASES = {
    "step_in_rank, largest": (CODE | {"column": LOSS, "which": "largest"}, ends(LOSS, full=3, r1=4, r8=3.25), -0.25,
                              ["r == 0", "r == 1", "r == 8"]),
    "step_in_rank, smallest": (CODE | {"column": "exact_match", "which": "smallest"},
                               ends("exact_match", full=0.5, r1=0.25, r8=0.625), -0.125, ["r == 0", "r == 1"]),
    "minus_full, every": (CODE | {"column": "forgetting", "rank": "every"},
                          ends("forgetting", full=0.75, r1=0.5, r8=1.0), 0.25, ["r == 0", "r == 8"]),
    "minus_full, lowest": (CODE | {"column": "choice", "rank": "lowest"}, ends("choice", full=0.5, r1=0.625, r8=0.25),
                           0.125, ["r == 0", "r == 1"]),
    "gap_widens": (CODE | {"rank": "highest", "earlier": 1}, course(LOSS, full=(5, 4, 3), r1=(9, 9, 9),
                                                                    r8=(5, 4.5, 3.75)), 0.25, ["r == 0", "r == 8"]),
    "grows_with_duration": (CODE | {"column": "forgetting", "rank": "full"},
                            course("forgetting", full=(1, 3, 2), r8=(3, 2, 1)), 0.5, ["r == 0"]),
    "first_minus_second": ({"column": "forgetting", "experiments": ["code", "mathematics"]},
                           [*ends("forgetting", full=1.5), *ends("forgetting", "mathematics", full=4.0)], -2.5,
                           ["experiment == 'code'", "experiment == 'mathematics'"]),
    "above_base": (CODE | {"rank": "full"}, [row(0, step=20, exact_match=0.25, base_exact_match=0.125),
                                             row(0, step=10, exact_match=0.9), row(8, exact_match=0.9)], 0.125,
                   ["r == 0"]),
    "forgets_when_matched": (CODE | {"rank": "highest"}, plane(
        full=((3, 1), (5, 2)), r1=((2, 9), (4.5, 9)), r8=((3, 1), (4, 2))), 0.5, ["r == 0", "r == 8"]),
    "forgets_beside_decay": ({}, decays(1.5, 1.75), 0.25, ["decay_towards == 'base'", "method == 'full'"]),
    "distance_from_plain": ({"column": "forgetting"}, regularised(0.75, 1.125), 0.25,
                            ["method == 'full'", "weight_decay == 0.01", "attention_dropout == 0.1"]),
    "goes_along": (CODE | {"x": KL, "y": "forgetting"}, against(KL, "forgetting", full=((1, 1), (2, 3)), r8=((3, 2),)),
                   0.5, ["step > 0"]),
    "goes_along_more": (CODE | {"x": KL, "other": LOSS, "y": "forgetting"}, [
        one | {LOSS: -one["forgetting"]} for one in against(KL, "forgetting", full=((1, 1), (2, 3)), r8=((3, 2),))],
        1.5, ["step > 0"]),
    "share_beyond_full_at_equal": (CODE | {"x": KL, "y": "forgetting", "rank": "highest"}, against(
        KL, "forgetting", full=((1, 1), (3, 3)), r8=((1, 1), (2, 3))), 0.5, ["r == 0", "r == 8"]),
    "trained_minus_random, full": ({"rank": "full", "control": "random, full rank"}, controlled(2.0, 0.5), 1.5,
                                   ["r == 0", "control == 'random, full rank'"]),
    "trained_minus_random, highest": ({"rank": "highest", "control": "random, rank r"}, controlled(2.0, 0.5), 8.5,
                                      ["r == 8", "control == 'trained'"])}


def effects(name: str, table: pd.DataFrame):
    return RULES[name.split(",")[0]].function(table, **CASES[name][0])


@pytest.mark.parametrize("name", CASES)
def test_a_rule_gives_each_seed_its_effect_in_any_order_of_rows(name):
    _, rows, by_hand, _ = CASES[name]
    table = frame(rows, rows)
    for ordered in (table, table.iloc[::-1], table.sample(frac=1, random_state=0)):
        assert effects(name, ordered).values.to_dict() == pytest.approx({0: by_hand, 1: by_hand})


@pytest.mark.parametrize("name, lacking", [(name, lacking) for name in CASES for lacking in CASES[name][3]])
def test_a_seed_without_a_run_that_the_rule_needs_has_no_effect_and_says_why(name, lacking):
    """What is left of that seed stands in for nothing, and the other seed keeps its effect."""
    _, rows, by_hand, _ = CASES[name]
    whole = frame(rows, rows)
    gone = whole[whole["seed"] == 1].query(lacking)
    assert len(gone)
    found = effects(name, whole.drop(index=gone.index))
    assert found.values.dropna().to_dict() == pytest.approx({0: by_hand})
    assert 1 not in found.values.index or found.missing[1]


def test_every_rule_of_a_claim_has_a_case():
    assert {claim.rule for claim in JUDGED} == {name.split(",")[0] for name in CASES}


def test_a_column_that_is_gone_stops_the_rule():
    with pytest.raises(KeyError, match=LOSS):
        effects("gap_widens", frame(CASES["gap_widens"][1]).drop(columns=LOSS))
    claim = next(claim for claim in JUDGED if claim.id == "gap-widens-code")
    with pytest.raises(CourseError, match=f"'{LOSS}' of measurement 'learning_curves'"):
        judge_claim(claim, frame(CASES["gap_widens"][1]).reindex(columns=measure.COLUMNS).drop(columns=LOSS), "laptop")


def test_a_value_that_was_not_measured_is_not_passed_over():
    """The order of two ranks says nothing of a third whose exact match is missing."""
    table = frame(CASES["step_in_rank, smallest"][1])
    table.loc[table["r"] == 1, "exact_match"] = math.nan
    assert effects("step_in_rank, smallest", table).missing == {0: "no exact_match measured at r = 1"}


def test_what_a_run_forgets_that_did_not_learn_says_nothing():
    rows = [*ends("forgetting", full=1.0, r8=0.5), row(1, learning=1.0, forgetting=0.1)]
    found = RULES["minus_full"].function(frame(rows), column="forgetting", rank="every")
    assert found.values.to_dict() == {0: -0.5}, "rank 1 learnt a quarter, and would win by its forgetting"


def test_no_order_among_answers_below_guessing_and_nothing_spared_where_nothing_is_forgotten():
    rows = ends("exact_match", full=0.0625, r8=0.03125)
    table = frame(rows).query("step == 20")
    ordered = RULES["step_in_rank"].function
    assert "guessing" in ordered(table, column="exact_match", which="smallest", guessing=0.1).no_power
    assert not ordered(table, column="exact_match", which="smallest", guessing=0.05).no_power
    assert RULES["minus_full"].function(frame([row(0, forgetting=-0.1), row(8, forgetting=0.0)]), column="forgetting",
                                        rank="every").no_power == "no run forgets anything"
    claim = next(claim for claim in JUDGED if claim.id == "exact-match-order")
    found = ordered(pd.concat([frame(rows, rows, rows)]).query("step == 20"), column="exact_match", which="smallest",
                    guessing=0.1)
    assert powerless(found, claim.expect) == found.no_power and NO_POWER == "no power"


def test_guessing_is_what_the_claim_says_at_laptop():
    questions = load_profile("laptop").decoder_evaluation.questions
    claim = next(claim for claim in JUDGED if claim.id == "exact-match-order")
    assert claim.parameters["guessing"] == pytest.approx(tables.guessing(questions), abs=5e-4)


# --- what is quoted, and what is planned

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
    texts = [claim.published.place for claim in claims() if claim.paper == "Learns less v2" and claim.published]
    figures, numbered = (set().union(*(named_in(text, word) for text in texts)) for word in ("Fig", "Table"))
    assert [one for one in FIGURES if one not in figures] == [] and set(TABLES) == numbered
    assert figures <= set(FIGURES) | {"1", "2"}


R16, R64, R256, FULL = "LoRA r=16", "LoRA r=64", "LoRA r=256", "full"
ALL = (R16, R64, R256, FULL)
AT_20 = {table: [(table, method, 20) for method in ALL] for table in ("S1", "S2", "S3", "S4")}
# Claim -> (table, method, duration) of each number that its `published` quotes, in the text's order.
QUOTED = {
    "learns-less-code": AT_20["S1"], "learns-less-math": AT_20["S3"], "exact-match-order": AT_20["S3"],
    "gap-widens-code": [("S1", method, at) for at in (1, 20) for method in (R256, FULL)],
    "gap-widens-math": [("S3", method, at) for at in (4, 20) for method in (R256, FULL)],
    "answers-learnt": [("base", "openwebmath", "learning"), ("S3", FULL, 20)],
    "instruction-matches": [("S5", R256, 4), ("S5", FULL, 4), ("S7", R256, 8), ("S7", FULL, 8)],
    "forgets-less-code": [*AT_20["S2"], ("base", "starcoder", "forgetting")],
    "forgets-less-code-benchmarks": [*AT_20["S2"], ("base", "starcoder", "forgetting")],
    "forgets-less-math": AT_20["S4"], "lowest-forgets-less-math": [("S4", R16, 20), ("S4", FULL, 20)],
    "forgetting-grows": [("S2", FULL, at) for at in (0.25, 4, 20)],
    "lora-forgetting-grows": [("S2", R16, at) for at in (0.25, 20)],
    "code-forgets-more": [("S2", FULL, 20), ("S4", FULL, 20)],
    "instruction-forgets-less": [("S6", method, 16) for method in ALL],
    "cloze-order": [("S2", R16, 20), ("S2", FULL, 20)], "tulu-chat": [("S10", method, 6) for method in ALL]}


def quoted(table: str, method: str, duration) -> float:
    if table == "base":
        base = published_base()
        return base[(base["dataset"] == method) & (base["quantity"] == duration)]["value"].item()
    curves = pd.concat([published_curves(), published_tulu()])
    return curves[(curves["table"] == table) & (curves["method"] == method) & (curves["duration"] == duration)][
        "value"].item()


@pytest.mark.parametrize("claim", OURS, ids=lambda claim: claim.id)
def test_quoted_numbers_stand_in_the_published_tables(claim):
    """Each at its place: rank, duration and table. A claim that is not listed quotes no tabulated number."""
    text = claim.published.numbers if claim.published else ""
    assert [float(number) for number in re.findall(r"(?<![\w.])\d*\.\d{3}\b", text)] == [
        quoted(*place) for place in QUOTED.get(claim.id, [])]


def planned(measurement: str, profile) -> pd.DataFrame:
    """The table that a measurement would make of the profile's planned runs, with made-up numbers."""
    random = np.random.default_rng(0)
    wanted = {"learning_curves": measure.MAIN, "regulariser_curves": ("regularisers", "code"),
              "norm_controls": ("code",),
              "instruction_curves": [name for name in profile.decoder_experiments if name.startswith("instruction")],
              "sensitivity": ("rates",)}[measurement]
    further = [{"control": name} for name in ("trained", "random, full rank", "random, rank r")] if (
        measurement == "norm_controls") else [{}]
    rows = []
    planned_specs = [(name, one) for name in wanted for one in run_specs(profile, name, profile.reference_seeds)]
    for experiment, spec in planned_specs:
        steps = spec.durations or (spec.steps,)
        for step in steps[-1:] if measurement == "norm_controls" else steps:
            numbers = dict.fromkeys(measure.COLUMNS, 0.0) | spec.columns | measure._settings(spec)
            rows += [numbers | {"experiment": experiment, "step": step, "learning": random.uniform(3.5, 4.0)} | also | {
                column: random.uniform(0.1, 0.9) for column in (LOSS, "forgetting", "choice", KL, "exact_match")}
                for also in further]
    table = pd.DataFrame(rows)
    if measurement == "regulariser_curves":
        table["method"] = [measure._regularised(one) for one in table.to_dict("records")]
    return marked(table)


@pytest.mark.parametrize("name", ["laptop", "workstation", "gpu"])
def test_reference_results_have_the_runs_that_claims_need(name, monkeypatch):
    """A claim in reach whose runs the profile does not plan would have no verdict for ever."""
    monkeypatch.setattr("utils.training.spec.resolve", lambda base: SimpleNamespace(revision="x"))
    profile, made, without = load_profile(name).with_reference_runs(), {}, []
    for claim in JUDGED:
        if name not in claim.out_of_reach:
            if claim.measurement not in made:
                made[claim.measurement] = planned(claim.measurement, profile)
            without += [claim.id] if judge_claim(claim, made[claim.measurement], name).seeds < 3 else []
    assert without == []


def test_claims_out_of_reach_have_their_reasons():
    """No chat judge and no billions of tokens anywhere; arithmetic is laptop's alone, benchmarks the others'."""
    elsewhere = {claim.id: set(claim.out_of_reach) for claim in OURS if claim.out_of_reach}
    exact = {name for name in PROFILE_NAMES
             if not load_profile(name).decoder_experiments["mathematics"].task.startswith("mathematics")}
    benchmarks = {name for name in PROFILE_NAMES
                  if "hellaswag" not in load_profile(name).decoder_evaluation.choice_tasks}
    everywhere = set(PROFILE_NAMES)
    assert elsewhere == {"dataset-sizes": everywhere, "tulu-chat": everywhere, "exact-match-order": exact,
                         "answers-learnt": exact, "forgets-less-code-benchmarks": benchmarks}
    assert all(judge_claim(claim, None, "laptop").verdict == OUT_OF_REACH for claim in OURS if not claim.rule)


# --- what the tables are made of

@pytest.mark.parametrize("values, name", [
    ({}, "full"), ({"method": "LoRA r=8"}, "LoRA r=8"), ({"weight_decay": 7e-4}, "full, decay 0.0007 to zero"),
    ({"weight_decay": 7e-3, "decay_towards": "base"}, "full, decay 0.007 to W0"),
    ({"attention_dropout": 0.1}, "full, attention dropout 0.1")])
def test_a_regularised_run_is_called_by_what_it_has(values, name):
    usual = {"method": "full", "weight_decay": 0.0, "decay_towards": "zero", "attention_dropout": 0.0}
    assert measure._regularised(usual | values) == name


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
    found = measure._settings(spec(Method(**method, targets="mlp"), optimiser="lion", weight_decay=0.5))
    assert found == {"targets": "mlp", "optimiser": "lion", "batch_size": 16, "weight_decay": 0.5,
                     "decay_towards": "zero", "attention_dropout": 0.0, "scaling": scaling}
    assert set(found) == set(measure.SETTINGS)


@pytest.mark.parametrize("task, tokens", [("python", 3 * 16 * 4 * 128), ("functions", 3 * 16 * 4)])
def test_tokens_seen_count_accumulated_batches_and_rows_where_rows_differ(task, tokens):
    assert measure._train_tokens(spec(Method(kind="full"), task=task, gradient_accumulation=4), 3) == tokens
