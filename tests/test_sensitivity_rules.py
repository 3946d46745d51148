"""The rules of notebook 13 by hand: each side at its best rate, bounds give no value, and a missing run is named."""

import math

import pandas as pd
import pytest

from utils.reporting.registry import RULES
from utils.reporting.selection import marked
from utils.studies.sensitivity import rules
from utils.studies.sensitivity.tables import LOSS

RATES = (1e-4, 1e-3, 1e-2, 1e-1)


def row(r: int, loss: float, rate: float = 1e-3, **values) -> dict:
    """A run of a rank (0 is full fine-tuning) with everything that is not told as usual."""
    usual = {"experiment": "rates", "r": r, "lora_alpha": 2 * r, "learning_rate": rate, "optimiser": "adamw",
             "batch_size": 16, "targets": "all", "scaling": "alpha = 2r" if r else "", "step": 20,
             "method": f"LoRA r={r}" if r else "full", LOSS: loss, "learning": 5 - loss, "task": "python"}
    return usual | values


def valley(r: int, loss: float, best: float = 1e-3, **values) -> list[dict]:
    """The least loss at a rate inside its grid: one nat more at a tenth and at ten times of it."""
    return [row(r, loss + (by != 1), best * by, **values) for by in (0.1, 1, 10)]


def table(*seeds: list[dict]) -> pd.DataFrame:
    """The rows of seeds 0, 1, … as the course marks every table; a run's key is all of its settings."""
    keys = ("r", "lora_alpha", "learning_rate", "optimiser", "batch_size", "targets", "scaling")
    return marked(pd.DataFrame([one | {"seed": seed, "run": f"{seed} " + " ".join(str(one[key]) for key in keys)}
                                for seed, part in enumerate(seeds) for one in part]))


def swept(full: tuple, r8: tuple) -> list[dict]:
    """Losses of full and rank 8 at the four rates; rank 1 has its least at the smallest."""
    return [row(r, loss, rate) for r, losses in ((0, full), (8, r8), (1, (1, 2, 3, 4)))
            for rate, loss in zip(RATES, losses, strict=True)]


def alphas(two_r: float, eight: float, one: float) -> list[dict]:
    """Least losses of rank 8 with alpha 16 (the sweep's), 8 and 1, each inside its grid; rank 1 is best of all."""
    return [*valley(8, two_r), *valley(8, eight, experiment="alpha", lora_alpha=8, scaling="alpha / r"),
            *valley(8, one, best=1e-2, experiment="alpha", lora_alpha=1, scaling="alpha / r"), *valley(1, 0.5)]


def optimisers(r: int, adamw: float, lion: float) -> list[dict]:
    return [*valley(r, adamw), *valley(r, lion, best=1e-4, experiment="optimisers", optimiser="lion"), row(1, 0.5)]


def modules(**losses: float) -> list[dict]:
    return [one for name, loss in losses.items() for one in valley(4, loss, experiment="modules", targets=name)]


def batches(full: tuple, r8: tuple) -> list[dict]:
    """Least losses with a batch of 16 (the sweep's) and 64; a batch of 4 is at 9."""
    return [one for r, (usual, large) in ((0, full), (8, r8))
            for name, size, loss in (("rates", 16, usual), ("batches", 64, large), ("batches", 4, 9.0))
            for one in valley(r, loss, experiment=name, batch_size=size)]


def best_at(fixed: dict[int, float], rising: dict[int, float]) -> list[dict]:
    """Best rate by rank with alpha 16 and with alpha = 2r, inside its grid; rank 8 has alpha 16 under both."""
    def runs(best: dict[int, float], alpha: int | None, scaling: str) -> list[dict]:
        return [one for r, rate in best.items() for one in valley(
            r, 2, best=rate, experiment="scalings", lora_alpha=alpha or 2 * r, scaling=scaling)]

    return [*runs(fixed, 16, "alpha / r"), *runs(rising, None, "alpha = 2r"),
            *runs({1: 1.0, 8: 1e-3, 64: 1e-6}, 16, "alpha / sqrt(r)")]


HIGHEST = {"rank": "highest"}
CASES = {  # rule -> parameters, a seed's rows, the effect by hand
    # full's vertex at 1e-3 and rank 8's at 1e-2, both symmetric: one decade
    "decades_above_full": (HIGHEST, swept((4, 2, 4, 5), (5, 4, 3, 4)), 1.0),
    "decades_above_full/times": (HIGHEST | {"times": 10.0}, swept((4, 2, 4, 5), (5, 4, 3, 4)), 0.0),
    # vertex of (4, 2, 3) in decades: curvature 1.5, slope -0.5 at the middle, so 1/6 higher: 1 - 1/6
    "decades_above_full/fine": (HIGHEST, swept((4, 2, 3, 5), (5, 4, 3, 4)), 5 / 6),
    # full learns 1, 2, 3, 1.5 and needs 1.5; rank 8 learns .25, .5, 2, .5 and needs 1
    "more_good_rates": (HIGHEST | {"share": 0.5}, swept((4, 3, 2, 3.5), (4.75, 4.5, 3, 4.5)), 2.0),
    "two_r_gains": (HIGHEST, alphas(3, 3.25, 4), 0.25),
    "two_r_gains/worse": (HIGHEST, alphas(3, 2.5, 4), -0.5),
    # at 1e-4: 4.25 - 4; 1e-3: 3.25 - 3; 1e-2: min(4.25, 4) - 4 = 0
    "two_r_gains_at_every_rate": (HIGHEST, alphas(3, 3.25, 4), 0.0),
    "lion_gains": ({"rank": "full"}, optimisers(0, 3, 2.75), 0.25),
    "lion_gains/lora": (HIGHEST, optimisers(8, 3, 3.5), -0.5),
    # shared rates 1e-4: 4 - 2.75, and 1e-3: 3 - 3.75
    "lion_gains_at_every_rate": ({"rank": "full"}, optimisers(0, 3, 2.75), -0.75),
    "module_gap": ({"targets": ["attention", "mlp"]}, modules(attention=3.5, mlp=3, all=1), 0.5),
    # slopes 0 and -1
    "rate_falls_with_rank": ({}, best_at({1: 1 / 8, 8: 1 / 8, 64: 1 / 8}, {1: 1, 8: 1 / 8, 64: 1 / 64}), 1.0),
    "batch_costs_more": (HIGHEST | {"times": 4}, batches((3, 3.25), (3, 3.75)), 0.5),
}
LACKING = {  # what a seed may lack (a diverged run is in no table), such that it cannot be judged
    "decades_above_full": ["r == 0", "r == 8"], "more_good_rates": ["r == 0", "r == 8"],
    "two_r_gains": ["lora_alpha == 16", "lora_alpha == 8", "lora_alpha == 1"],
    "two_r_gains_at_every_rate": ["lora_alpha == 16", "lora_alpha in (8, 1)"],
    "lion_gains": ["optimiser == 'lion'", "optimiser == 'adamw' and r == 0",
                   "optimiser == 'lion' and learning_rate == 1e-4"],
    "lion_gains_at_every_rate": ["optimiser == 'lion'", "optimiser == 'lion' and learning_rate == 1e-4"],
    "module_gap": ["targets == 'attention'", "targets == 'mlp'"],
    "rate_falls_with_rank": ["r == 64", "scaling == 'alpha / r' and r == 1", "scaling == 'alpha = 2r' and r == 1"],
    "batch_costs_more": ["r == 0", "r == 8", "batch_size == 64", "batch_size == 16"],
}


@pytest.mark.parametrize("case", CASES)
def test_a_rule_gives_each_seed_its_effect(case):
    parameters, rows, effect = CASES[case]
    rule = RULES[case.split("/")[0]].function
    for ordered in (table(rows, rows), table(rows, rows).iloc[::-1]):
        assert rule(ordered, **parameters).values.to_dict() == pytest.approx({0: effect, 1: effect})


@pytest.mark.parametrize("case, lacking", [(case, lacking) for case, some in LACKING.items() for lacking in some])
def test_a_missing_run_is_named_and_nothing_stands_in_for_it(case, lacking):
    parameters, rows, effect = CASES[case]
    whole = table(rows, rows)
    gone = whole[whole["seed"] == 1].query(lacking).index
    assert len(gone)
    effects = RULES[case].function(whole.drop(index=gone), **parameters)
    assert effects.values.dropna().to_dict() == pytest.approx({0: effect}) and effects.missing[1]


@pytest.mark.parametrize("case", [case for case in CASES if "/" not in case])
def test_a_rule_reads_its_own_experiments_only(case):
    parameters, rows, effect = CASES[case]
    foreign = table(rows).assign(experiment="shuffled", run="x", **{LOSS: 0.0})
    both = pd.concat([table(rows), foreign], ignore_index=True)
    assert RULES[case].function(both, **parameters).values.to_dict() == pytest.approx({0: effect})


@pytest.mark.parametrize("full, side", [((2, 3, 4, 5), "lowest"), ((5, 4, 3, 2), "highest")])
def test_a_best_rate_at_the_end_of_its_grid_is_no_value(full, side):
    """Beyond the end a better one may lie: a ratio of best rates, and a gain at best rates, would be bounds."""
    effects = rules.decades_above_full(table(swept(full, (5, 4, 3, 4))), rank="highest")
    assert math.isnan(effects.values[0]) and f"is the {side} of its grid" in effects.missing[0]


def test_lion_is_not_beaten_while_a_higher_rate_might_win():
    """Its best rate was the highest of its grid, and the ledger said "not reproduced" all the same."""
    rows = [*valley(0, 3), row(0, 3.5, 1e-4, experiment="optimisers", optimiser="lion"),
            row(0, 3.2, 1e-3, experiment="optimisers", optimiser="lion"), row(1, 0.5)]
    effects = rules.lion_gains(table(rows), rank="full")
    assert "optimiser lion, 0.001, is the highest of its grid" in effects.missing[0]


def test_the_rate_is_chosen_over_the_seeds_and_not_within_each():
    """The last seed happens to be best at another rate; its loss at the rate that is best on average counts."""
    usual = modules(mlp=2, all=2.25)
    lucky = [one | ({LOSS: 2.0} if (one["targets"], one["learning_rate"]) == ("all", 1e-2) else {}) for one in usual]
    effects = rules.module_gap(table(usual, usual, lucky), targets=["all", "mlp"])
    assert effects.values.tolist() == pytest.approx([0.25, 0.25, 0.25])


def test_one_shared_rate_is_not_every_rate():
    rows = [row(0, 3.0), row(0, 2.0, experiment="optimisers", optimiser="lion"), row(1, 0.5)]
    effects = rules.lion_gains_at_every_rate(table(rows), rank="full")
    assert math.isnan(effects.values[0]) and "learning rates tried with both" in effects.missing[0]


def test_the_highest_rank_is_that_of_all_seeds():
    """In a seed that lacks it no other rank stands in for it; with the scalings a further rank is the highest."""
    rows = swept((4, 2, 4, 5), (5, 4, 3, 4))
    wide = valley(64, 2, best=1e-3, experiment="scalings")
    found = rules.decades_above_full(table([*rows, *wide], rows), rank="highest", scalings=True)
    assert found.values[0] == pytest.approx(0) and math.isnan(found.values[1])
    without = rules.decades_above_full(table([*rows, *wide], rows), rank="highest")
    assert without.values.tolist() == pytest.approx([1, 1])


def test_a_column_that_is_not_there_is_loud():
    with pytest.raises(KeyError, match="targets"):
        rules.module_gap(table(modules(mlp=3, all=3)).drop(columns="targets"), targets=["mlp", "all"])


def test_losses_are_the_outcome_of_a_claim_about_losses():
    effects = rules.module_gap(table(modules(mlp=3, all=3)), targets=["mlp", "all"])
    assert effects.outcome == LOSS and len(effects.outcomes) == 6
