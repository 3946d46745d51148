"""Notebook 14's comparisons and rules on tables small enough to work out by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from variant_cases import STUDY, hessian_table, rows, ten_methods, two_methods, varied_table

from utils.errors import CourseError
from utils.ledger.claims import claim_named, claims
from utils.profiles import load_profile
from utils.reporting.claims import effects_of, judge_claim
from utils.reporting.registry import MEASUREMENTS
from utils.reporting.selection import marked
from utils.studies.variants import measure, sharpness, tables
from utils.studies.variants import rules as variant_rules
from utils.training.metrics import token_accuracy
from utils.training.spec import run_specs
from utils.training.store import Run

# --- the metric -----------------------------------------------------------------------------------------------------


class Fixed(torch.nn.Module):
    """Answers every position with the same token."""

    def __init__(self, token: int):
        super().__init__()
        self.weight, self.token = torch.nn.Parameter(torch.zeros(1)), token

    def forward(self, input_ids, attention_mask):
        logits = torch.zeros(*input_ids.shape, 5)
        logits[..., self.token] = 1
        return type("Output", (), {"logits": logits})


def test_token_accuracy_compares_with_the_next_token_and_skips_the_unlabelled():
    """Labels 1 2 2 -100 2: the first predicts nothing, of the other three that count two or three are the token 2."""
    ids = torch.tensor([[1, 2, 2, 4, 2]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([[1, 2, 2, -100, 2]])}
    assert token_accuracy(Fixed(2), [batch])["token_accuracy"] == 1.0
    found = token_accuracy(Fixed(2), [batch | {"labels": torch.tensor([[2, 2, 1, -100, 2]])}])
    assert found["token_accuracy"] == pytest.approx(2 / 3)
    assert found["token_accuracy_se"] == pytest.approx((2 / 3 * 1 / 3 / 3) ** 0.5)


# --- runs -----------------------------------------------------------------------------------------------------------


def test_a_diverged_run_stays_in_the_table(monkeypatch):
    """Dropped, its rate would look untried; as an error, one bad rate would end the whole sweep."""
    profile = load_profile("laptop")
    specs = [spec for spec in run_specs(profile, "vanilla", (0,)) if spec.method.variant == "lora"][:2]
    base = type("Base", (), {"name": "base", "revision": "0"})
    found = [Run(spec, None, base, {"run": {"status": status}, "measured": {
        "steps": 60, "trainable_parameters": 1, "train_seconds": 1.0, "metrics": []}})
        for spec, status in zip(specs, ("done", "diverged"), strict=True)]
    monkeypatch.setattr(measure, "experiment_runs", lambda profile, name, seeds, diverged: (
        found if name == "vanilla" else []))
    values = dict.fromkeys(measure.MEASURED, 2.0)
    monkeypatch.setattr(measure, "_base_row", lambda *_, **__: values)
    monkeypatch.setattr(measure, "_run_row", lambda *_, **__: values)
    table = measure.variant_sweep(profile, (0,))
    assert table["diverged"].tolist() == [False, True] and table["learning_rate"].nunique() == 2
    assert table["loss_nats_per_token"].isna().tolist() == [False, True] and len(tables.main_grid(table)) == 1


# --- comparisons ----------------------------------------------------------------------------------------------------


def test_the_best_rates_and_what_a_borrowed_one_costs():
    """PiSSA loses 1.0 at LoRA's rate, LoRA 0.5 at PiSSA's; LoRA's best rate is ten times PiSSA's."""
    table = two_methods()
    best = tables.best_of_each(table).set_index("variant")
    assert best["learning_rate"].to_dict() == {"LoRA": 0.1, "PiSSA": 0.01} and best.loc["PiSSA", "ratio"] == 10
    assert list(best.index) == ["LoRA", "PiSSA"] and (best["edge"] == "").all()
    borrowed = tables.borrowed_rate(table).set_index("variant")
    assert borrowed.loc["PiSSA", ["lost_nats", "vanilla_lost_nats"]].tolist() == pytest.approx([1.0, 0.5])
    assert borrowed.loc["LoRA", "lost_nats"] == 0 and borrowed.loc["PiSSA", "lost_accuracy"] == pytest.approx(0.1)


def test_the_nearest_rate_is_borrowed_where_vanillas_own_was_not_tried():
    table = pd.DataFrame(rows("LoRA", {0.01: 2.5, 0.1: 2.0, 1.0: 4.0}) + rows("OLoRA", {0.003: 2.2, 0.04: 2.6}))
    row = tables.borrowed_rate(table).set_index("variant").loc["OLoRA"]
    assert (row["own_rate"], row["borrowed_rate"]) == (0.003, 0.04) and row["lost_nats"] == pytest.approx(0.4)


def test_the_spread_at_the_best_and_at_one_rate():
    """Best: 2.0 and 2.1. At LoRA's rate: 2.0 and 3.1. Over seeds each varies by 0.1 up and down."""
    table = pd.concat([two_methods(0), two_methods(1).assign(
        loss_nats_per_token=lambda t: t["loss_nats_per_token"] + 0.2)])
    row = tables.spread(table).set_index("measure").loc["loss_nats_per_token"]
    assert (row["best"], row["worst"]) == ("LoRA", "PiSSA")
    assert row["spread"] == pytest.approx(0.1) and row["at_one_rate"] == pytest.approx(1.1)
    assert row["seed_deviation"] == pytest.approx(0.2 / 2**0.5)


def test_what_the_study_lacks_is_in_no_spread():
    table = pd.concat([two_methods(), pd.DataFrame(rows("full", {0.01: 1.5, 0.1: 1.0, 1.0: 2.0}))])
    assert tables.spread(table).iloc[0]["best"] == "LoRA"


def test_a_rate_at_which_a_seed_diverged_is_no_best_rate():
    """Seed 1 of LoRA diverged at 0.1: the mean of the one seed that survived would have won."""
    table = pd.concat([two_methods(0), two_methods(1)], ignore_index=True)
    lost = (table["seed"] == 1) & (table["variant"] == "LoRA") & (table["learning_rate"] == 0.1)
    table.loc[lost, ["loss_nats_per_token", "token_accuracy"]] = np.nan
    table.loc[lost, "diverged"] = True
    best = tables.best_of_each(table).set_index("variant")
    assert best.loc["LoRA", "learning_rate"] == 0.01 and best.loc["PiSSA", "learning_rate"] == 0.01


def test_the_best_rate_against_a_setting():
    found = tables.best_rate_against(varied_table(), "rank")
    assert found.set_index("setting")["learning_rate"].to_dict() == {8: 0.1, 2: 1.0, 32: 0.01}
    assert tables.best_rate_against(two_methods(), "batch size").empty


def test_published_numbers_and_the_studys_own_demonstration():
    """PiSSA at LoRA's rate 5.6 points, LoRA at PiSSA's 1.2: printed as accuracies of 43.8 and 48.4."""
    best = measure.published_best().set_index("method")
    assert set(best.index) == set(STUDY) and best["accuracy"].max() - best["accuracy"].min() == pytest.approx(0.84)
    assert best.loc["PiSSA", "rate_ratio"] == pytest.approx(10) and best.loc["LoRA", "rate_ratio"] == 1
    lost = measure.published_borrowed().set_index("method")["lost_points"]
    assert lost["PiSSA"] == pytest.approx(5.63) and lost["LoRA"] == pytest.approx(1.2)


# --- rules ----------------------------------------------------------------------------------------------------------


def effect(name: str, table: pd.DataFrame, **parameters) -> float:
    """The effect of the only seed; NaN where a run is missing, with a reason."""
    found = getattr(variant_rules, name)(marked(table), **parameters)
    (value,) = found.values.to_list()
    assert np.isnan(value) == bool(found.missing)
    return value


def test_rules_on_two_methods():
    table = two_methods()
    assert effect("least_rate_ratio", table, variants=["PiSSA"]) == pytest.approx(1.0)
    assert effect("lost_beyond_vanilla", table, variant="PiSSA") == pytest.approx(0.5)


def test_a_method_that_was_not_trained_is_a_missing_run():
    table = two_methods()
    assert np.isnan(effect("least_rate_ratio", table, variants=["PiSSA", "OLoRA"]))
    assert np.isnan(effect("lost_beyond_vanilla", table, variant="OLoRA"))
    for rule in ("best_variant_beyond_vanilla", "spread_at_best", "spread_at_one_rate"):
        assert np.isnan(effect(rule, table, column="token_accuracy")), "eight of ten are missing"
    assert np.isnan(effect("rates_beside_published", table))
    found = variant_rules.least_rate_ratio(table, variants=["OLoRA"])
    assert list(found.missing) == [0] and "variant = OLoRA" in found.missing[0]


def test_rules_on_ten_methods():
    table = ten_methods()
    assert effect("rates_beside_published", table) == pytest.approx(1.0)
    assert effect("rates_beside_published", table.assign(learning_rate=1 / table["learning_rate"])) == pytest.approx(-1)
    best = {name: part["loss_nats_per_token"].min() for name, part in table.groupby("variant")}
    gap = best["LoRA"] - min(loss for name, loss in best.items() if name != "LoRA")
    for column, unit in (("loss_nats_per_token", 1), ("token_accuracy", 0.1)):
        assert effect("best_variant_beyond_vanilla", table, column=column) == pytest.approx(gap * unit)
        assert effect("spread_at_best", table, column=column) == pytest.approx(
            (max(best.values()) - min(best.values())) * unit)


def test_the_spread_at_one_rate_counts_in_spreads_at_the_best():
    """Best 2.0 and 2.1 as in two methods, eight more like PiSSA: 1.1 nats apart at LoRA's rate, 0.1 at their best."""
    pissa = two_methods().query("variant == 'PiSSA'")
    table = pd.concat([two_methods(), *(pissa.assign(variant=name, run=name + pissa["run"]) for name in STUDY[2:])])
    assert effect("spread_at_one_rate", table, column="loss_nats_per_token") == pytest.approx(11)


def test_rules_on_settings():
    table = varied_table()
    assert effect("best_rate_slope", table, setting="rank") == pytest.approx(-2 * np.log(10) / np.log(16))
    assert effect("least_gain_with_rank", table) == pytest.approx(0.5)
    few = table[table["r"] != 32]
    assert np.isnan(effect("best_rate_slope", few, setting="rank")) and np.isnan(effect("least_gain_with_rank", few))


def test_a_best_rate_at_the_end_of_its_grid_is_left_out_of_the_slope():
    table = varied_table()
    assert np.isnan(effect("best_rate_slope", table[(table["r"] != 2) | (table["learning_rate"] <= 1)], setting="rank"))


def whole(table: pd.DataFrame) -> pd.DataFrame:
    """A table with every column that the measurement declares, as a reference's is."""
    return table.assign(**{name: 0.0 for name in MEASUREMENTS["variant_sweep"].columns if name not in table})


def test_a_best_rate_that_never_moves_has_no_power():
    """Three durations in three seeds, all best at the same rate: it can neither have fallen nor have stayed."""
    losses = {0.01: 2.5, 0.1: 2.0, 1.0: 4.0}
    table = pd.concat([pd.DataFrame(rows("LoRA", losses, seed=seed, steps=steps, experiment=name))
                       for seed in range(3) for steps, name in ((20, "vanilla_durations"), (60, "vanilla"),
                                                                (180, "vanilla_durations"))])
    found = judge_claim(claim_named("rate-falls-with-duration"), whole(table), "laptop")
    assert found.verdict == "no power" and found.effect == 0 and found.seeds == 3


def test_a_renamed_column_is_loud():
    table = whole(two_methods())
    for claim, column in (("vanilla-suffices", "token_accuracy"), ("intruders-follow-the-update", "relative_norm")):
        with pytest.raises(CourseError, match=column):
            effects_of(claim_named(claim), table.rename(columns={column: "other"}))


def test_rules_on_intruders():
    """Full's own best run has 2, LoRA's 5; of the runs that learnt, the count follows the norm."""
    table = pd.DataFrame(rows("LoRA", {0.01: 2.5, 0.1: 2.0, 1.0: 2.4}, n_intruders=5) + rows(
        "full", {0.01: 2.0, 0.1: 1.0, 1.0: 2.0}, n_intruders=2))
    assert effect("fewest_above_full", table) == 3
    rising = table.assign(n_intruders=table["learning_rate"] * 10)
    assert effect("intruders_follow", rising, column="relative_norm") == pytest.approx(1.0)


def test_a_run_that_did_not_learn_enters_no_correlation():
    """One rate at which nothing is learnt, with a huge update and no intruder, would turn the correlation."""
    table = pd.DataFrame(rows("LoRA", {0.01: 2.5, 0.1: 2.0, 1.0: 2.4}))
    table = table.assign(n_intruders=[1, 2, 3])
    lost = pd.DataFrame(rows("LoRA", {10.0: 6.9}, n_intruders=0))
    assert effect("intruders_follow", pd.concat([table, lost]), column="relative_norm") == pytest.approx(1.0)


def test_rules_on_the_hessian():
    table = hessian_table()
    assert effect("least_sharpness_ratio", table, block="module", variants=["PiSSA", "OLoRA"]) == pytest.approx(1.0)
    assert effect("rate_follows_sharpness", table, block="module") == pytest.approx(-1.0)
    assert np.isnan(effect("rate_follows_sharpness", table, block="module", methods=["LoRA", "PiSSA", "DoRA"]))
    assert effect("ratio_of_ends", table, block="module") == pytest.approx(0.8)
    plain = np.log10(table["largest"] * table["best_learning_rate"]).std(ddof=1)
    found = effect("deviation_saved_by_adam", table, block="module", at="initialisation")
    assert found == pytest.approx(plain), "in Adam's coordinates all products are equal"
    assert variant_rules.least_sharpness_ratio(table, block="adapter", variants=["PiSSA"]).values.empty
    rho = sharpness.sharpness_correlation(table).iloc[0]
    assert rho["rho"] == -1 and rho["n"] == 5


def test_the_farther_end_from_the_gradient_counts():
    """Largest 1.0 and smallest -0.8 where the gradient alone gives 0.9: both a ninth away."""
    table = hessian_table()
    assert effect("ends_off_gradient", table, block="module") == pytest.approx(1 / 9)
    assert effect("ends_off_gradient", table.assign(smallest=-1.8), block="module") == pytest.approx(1.0)


def test_every_claim_of_the_notebook_names_what_is_there():
    """A variant that no row is called by would make a claim that no seed can judge."""
    known = {method.label.split(" r=")[0] for method in {spec.method for spec in run_specs(
        load_profile("laptop").with_reference_runs(), "vanilla", (0,))}}
    assert set(STUDY) | set(tables.LACKING) == known
    for claim in claims():
        if claim.study == "variants":
            given = claim.parameters
            named = [*given.get("variants", []), *given.get("methods", []), *filter(None, [given.get("variant")])]
            assert set(named) <= known and given.get("setting", "rank") in tables.SETTINGS
