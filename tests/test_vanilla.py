"""Notebook 14's comparisons and rules on tables small enough to work out by hand, and its runs at smoke."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from utils.studies.variants import measure as vanilla
from utils.ledger.claims import claims
from utils.profiles import load_profile
from utils.reporting.registry import RULES as VARIANT_RULES
from utils.studies.variants import figures as variants_figures
from utils.studies.variants import measure as variants_measure
from utils.studies.variants import sharpness as variants_sharpness
from utils.training.metrics import token_accuracy
from utils.training.spec import run_specs
from utils.training.store import Run

STUDY = ["LoRA", "PiSSA", "MiLoRA", "Init[AB]", "OLoRA", "LoRA-GA", "DoRA", "GraLoRA", "RandLoRA", "LoFT"]


def rows(variant: str, losses: dict[float, float], *, seed: int = 0, experiment: str = "vanilla", **more) -> list[dict]:
    """A grid of runs: loss by learning rate; the accuracy falls by a tenth of what the loss rises."""
    return [{"experiment": experiment, "variant": variant, "method": f"{variant} r=8", "r": 8, "batch_size": 8,
             "steps": 60, "learning_rate": rate, "seed": seed, "run": f"{experiment}{variant}{rate}{seed}{more}",
             "loss_nats_per_token": loss, "token_accuracy": 1 - loss / 10, "learning": 7 - loss, "forgetting": 1.0,
             "n_intruders": 3, "relative_norm": rate, "diverged": np.isnan(loss)} | more
            for rate, loss in losses.items()]


def two_methods(seed: int = 0) -> pd.DataFrame:
    """LoRA best (2.0) at 0.1, PiSSA (2.1) at 0.01; LoRA at 0.01 2.5, PiSSA at 0.1 3.1."""
    return pd.DataFrame(rows("LoRA", {0.01: 2.5, 0.1: 2.0, 1.0: 4.0}, seed=seed)
                        + rows("PiSSA", {0.001: 2.4, 0.01: 2.1, 0.1: 3.1}, seed=seed))


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
        for spec, status in zip(specs, ("done", "diverged"))]
    monkeypatch.setattr(vanilla, "experiment_runs", lambda profile, name, seeds, diverged: (
        found if name == "vanilla" else []))
    measured = dict.fromkeys(variants_measure.MEASURED, 2.0)
    monkeypatch.setattr(variants_measure, "_base_row", lambda *_: measured)
    monkeypatch.setattr(variants_measure, "_run_row", lambda *_: measured)
    table = variants_measure.variant_sweep(profile, (0,))
    assert table["diverged"].tolist() == [False, True] and table["learning_rate"].nunique() == 2
    assert table["loss_nats_per_token"].isna().tolist() == [False, True] and len(variants_measure.main_grid(table)) == 1


# --- comparisons ----------------------------------------------------------------------------------------------------


def test_the_best_rates_and_what_a_borrowed_one_costs():
    """PiSSA loses 1.0 at LoRA's rate, LoRA 0.5 at PiSSA's; LoRA's best rate is ten times PiSSA's."""
    table = two_methods()
    best = variants_measure.best_of_each(table).set_index("variant")
    assert best["learning_rate"].to_dict() == {"LoRA": 0.1, "PiSSA": 0.01} and best.loc["PiSSA", "ratio"] == 10
    assert list(best.index) == ["LoRA", "PiSSA"] and (best["edge"] == "").all()
    borrowed = variants_measure.borrowed_rate(table).set_index("variant")
    assert borrowed.loc["PiSSA", ["lost_nats", "vanilla_lost_nats"]].tolist() == pytest.approx([1.0, 0.5])
    assert borrowed.loc["LoRA", "lost_nats"] == 0 and borrowed.loc["PiSSA", "lost_accuracy"] == pytest.approx(0.1)


def test_the_nearest_rate_is_borrowed_where_vanillas_own_was_not_tried():
    table = pd.DataFrame(rows("LoRA", {0.01: 2.5, 0.1: 2.0, 1.0: 4.0}) + rows("OLoRA", {0.003: 2.2, 0.04: 2.6}))
    row = variants_measure.borrowed_rate(table).set_index("variant").loc["OLoRA"]
    assert (row["own_rate"], row["borrowed_rate"]) == (0.003, 0.04) and row["lost_nats"] == pytest.approx(0.4)


def test_the_spread_at_the_best_and_at_one_rate():
    """Best: 2.0 and 2.1. At LoRA's rate: 2.0 and 3.1. Over seeds each varies by 0.1 up and down."""
    table = pd.concat([two_methods(0), two_methods(1).assign(
        loss_nats_per_token=lambda t: t["loss_nats_per_token"] + 0.2)])
    row = variants_measure.spread(table).set_index("measure").loc["loss_nats_per_token"]
    assert (row["best"], row["worst"]) == ("LoRA", "PiSSA")
    assert row["spread"] == pytest.approx(0.1) and row["at_one_rate"] == pytest.approx(1.1)
    assert row["seed_deviation"] == pytest.approx(0.2 / 2**0.5)


def test_what_the_study_lacks_is_in_no_spread():
    table = pd.concat([two_methods(), pd.DataFrame(rows("full", {0.01: 1.5, 0.1: 1.0, 1.0: 2.0}))])
    assert variants_measure.spread(table).iloc[0]["best"] == "LoRA"


def test_a_rate_at_which_a_seed_diverged_is_no_best_rate():
    """Seed 1 of LoRA diverged at 0.1: the mean of the one seed that survived would have won."""
    table = pd.concat([two_methods(0), two_methods(1)], ignore_index=True)
    lost = (table["seed"] == 1) & (table["variant"] == "LoRA") & (table["learning_rate"] == 0.1)
    table.loc[lost, ["loss_nats_per_token", "token_accuracy"]] = np.nan
    table.loc[lost, "diverged"] = True
    best = variants_measure.best_of_each(table).set_index("variant")
    assert best.loc["LoRA", "learning_rate"] == 0.01 and best.loc["PiSSA", "learning_rate"] == 0.01


def varied_table() -> pd.DataFrame:
    """Ranks 2, 8, 32: best rates 1, 0.1, 0.01, so a slope of -2 log 10 / log 16 per log rank; losses 3.0, 2.0, 1.5."""
    parts = rows("LoRA", {0.01: 2.5, 0.1: 2.0, 1.0: 4.0})
    parts += rows("LoRA", {0.1: 3.4, 1.0: 3.0, 10.0: 4.0}, experiment="vanilla_ranks", r=2)
    parts += rows("LoRA", {0.001: 1.8, 0.01: 1.5, 0.1: 2.2}, experiment="vanilla_ranks", r=32)
    return pd.DataFrame(parts)


def test_the_best_rate_against_a_setting():
    found = variants_measure.best_rate_against(varied_table(), "rank")
    assert found.set_index("setting")["learning_rate"].to_dict() == {8: 0.1, 2: 1.0, 32: 0.01}
    assert variants_measure.best_rate_against(two_methods(), "batch size").empty


def test_published_numbers_and_the_studys_own_demonstration():
    """PiSSA at LoRA's rate 5.6 points, LoRA at PiSSA's 1.2: printed as accuracies of 43.8 and 48.4."""
    best = variants_measure.published_best().set_index("method")
    assert set(best.index) == set(STUDY) and best["accuracy"].max() - best["accuracy"].min() == pytest.approx(0.84)
    assert best.loc["PiSSA", "rate_ratio"] == pytest.approx(10) and best.loc["LoRA", "rate_ratio"] == 1
    lost = variants_measure.published_borrowed().set_index("method")["lost_points"]
    assert lost["PiSSA"] == pytest.approx(5.63) and lost["LoRA"] == pytest.approx(1.2)


# --- rules ----------------------------------------------------------------------------------------------------------


def judged(name: str, table: pd.DataFrame, **rule) -> float:
    (effect,) = VARIANT_RULES[name](table, rule).to_list()
    return effect


def test_rules_on_two_methods():
    table = two_methods()
    assert judged("rates_below_vanilla", table, variants=["PiSSA"]) == pytest.approx(1.0)
    assert np.isnan(judged("rates_below_vanilla", table, variants=["PiSSA", "OLoRA"])), "one of them was not trained"
    assert judged("worse_at_borrowed_rate", table, variant="PiSSA") == pytest.approx(0.5)
    assert judged("one_rate_misleads", table, column="loss_nats_per_token", times=2) == pytest.approx(9.0)
    assert np.isnan(judged("vanilla_within", table, column="token_accuracy", tolerance=0.02)), "eight are missing"


def ten_methods() -> pd.DataFrame:
    """Best rates in the study's order, as multiples of LoRA's 1e-3; the best of the nine is 0.3 nats below LoRA."""
    published = variants_measure.published_best().set_index("method")
    return pd.DataFrame([row for index, (name, ratio) in enumerate(published["rate_ratio"].items())
                         for row in rows(name, {
                             f / ratio: loss + 0.1 * index + (0.2 if name == "LoRA" else 0)
                             for f, loss in ((1e-4, 3.0), (1e-3, 2.0), (1e-2, 3.0))})])


def test_rules_on_ten_methods():
    table = ten_methods()
    assert judged("rates_as_published", table, least=0.5) == pytest.approx(0.5)
    best = {name: part["loss_nats_per_token"].min() for name, part in table.groupby("variant")}
    gap = best["LoRA"] - min(loss for name, loss in best.items() if name != "LoRA")
    assert judged("vanilla_within", table, column="loss_nats_per_token", tolerance=0.6) == pytest.approx(0.6 - gap)
    assert judged("vanilla_within", table, column="token_accuracy", tolerance=0.02) == pytest.approx(0.02 - gap / 10)
    turned = table.assign(learning_rate=1 / table["learning_rate"])
    assert judged("rates_as_published", turned, least=0.5) == pytest.approx(-1.5)


def test_rules_on_settings():
    table = varied_table()
    slope = -2 * np.log(10) / np.log(16)
    assert judged("best_rate_moves", table, setting="rank", sign=-1) == pytest.approx(-slope)
    assert judged("better_with_rank", table) == pytest.approx(0.5)
    few = table[table["r"] != 32]
    assert np.isnan(judged("best_rate_moves", few, setting="rank", sign=-1))
    assert np.isnan(judged("better_with_rank", few))


def test_rules_on_intruders():
    table = pd.DataFrame(rows("LoRA", {0.01: 2.5, 0.1: 2.0, 1.0: 2.4}, n_intruders=5) + rows(
        "full", {0.01: 2.0, 0.1: 1.0, 1.0: 2.0}, n_intruders=2))
    assert judged("more_intruders_than_full", table) == 3
    rising = table.assign(n_intruders=table["learning_rate"] * 10)
    assert judged("intruders_follow", rising, column="relative_norm", least=0.7) == pytest.approx(0.3)


def hessian_table() -> pd.DataFrame:
    """Five methods: the sharper the start, the lower the rate; in Adam's coordinates the product is 40 for all."""
    table = pd.DataFrame({"variant": ["LoRA", "PiSSA", "OLoRA", "LoRA-GA", "MiLoRA"], "seed": 0, "block": "module",
                          "at": "initialisation", "largest": [1.0, 10.0, 60.0, 50.0, 2.0],
                          "best_learning_rate": [1e-1, 1e-2, 1e-3, 2e-3, 5e-2]})
    return table.assign(smallest=-0.8 * table["largest"], preconditioned=40 / table["best_learning_rate"])


def test_rules_on_the_hessian():
    table = hessian_table()
    assert judged("sharper_than_vanilla", table, block="module", variants=["PiSSA", "OLoRA"]) == pytest.approx(1.0)
    assert judged("sharper_wants_lower_rate", table, block="module", least=0.3) == pytest.approx(0.7)
    assert judged("gradient_makes_both_ends", table, block="module", least=0.7) == pytest.approx(0.1)
    plain = np.log10(table["largest"] * table["best_learning_rate"]).std(ddof=1)
    assert judged("preconditioned_more_alike", table, block="module") == pytest.approx(plain)
    assert VARIANT_RULES["sharper_than_vanilla"](table, {"block": "adapter", "variants": ["PiSSA"]}).empty
    rho = variants_sharpness.sharpness_correlation(table).iloc[0]
    assert rho["rho"] == -1 and rho["n"] == 5


def test_every_claim_of_the_notebook_names_what_is_there():
    """A variant that no row is called by would make a claim that no seed can judge."""
    known = {method.label.split(" r=")[0] for method in {spec.method for spec in run_specs(
        load_profile("laptop").with_reference_runs(), "vanilla", (0,))}}
    assert set(STUDY) | set(variants_measure.LACKING) == known
    for claim in claims():
        if claim.notebook == "14":
            named = [*claim.model_extra.get("variants", []), *([claim.model_extra.get("variant")] * bool(
                claim.model_extra.get("variant")))]
            assert set(named) <= known and claim.measurement in ("variant_sweep", "variant_hessian")
            assert claim.model_extra.get("setting", "rank") in variants_measure.SETTINGS


# --- figures --------------------------------------------------------------------------------------------------------


def test_the_figures_take_a_single_seed_and_a_missing_reference():
    table = two_methods()
    best, borrowed = variants_measure.best_of_each(table), variants_measure.borrowed_rate(table)
    drawn = [variants_figures.rate_grid(table), variants_figures.rate_grid(table, table, y="loss_nats_per_token"),
             variants_figures.best_dots(best), variants_figures.best_dots(best, best, variants_measure.published_best()),
             variants_figures.lost_bars(borrowed, borrowed),
             variants_figures.rate_ratio_dots(best, None, variants_measure.published_best()),
             variants_figures.setting_lines({"rank": variants_measure.best_rate_against(varied_table(), "rank")}, None,
                                           variants_measure.published_settings()),
             variants_figures.intruder_scatter(table, None, x="relative_norm", xlabel="norm")]
    assert all(figure.axes for figure in drawn)
    plt.close("all")


def test_a_setting_with_a_single_rate_is_a_cross():
    """An empty panel with logarithmic axes is an error of matplotlib's, and says that nothing was tried."""
    one = variants_measure.best_rate_against(pd.DataFrame(rows("LoRA", {0.1: 2.0}) + rows(
        "LoRA", {0.1: 1.0}, experiment="vanilla_durations", steps=180)), "steps")
    figure = variants_figures.setting_lines({"steps": one}, None, variants_measure.published_settings())
    figure.canvas.draw()
    assert any(line.get_marker() == "x" and list(line.get_xdata()) == [60, 180] for line in figure.axes[0].lines)
    plt.close("all")


def test_a_diverged_run_is_a_cross_under_the_others():
    table = pd.concat([two_methods(), pd.DataFrame(rows("PiSSA", {1.0: float("nan")}))], ignore_index=True)
    figure = variants_figures.rate_grid(table, y="loss_nats_per_token")
    panel = next(axis for axis in figure.axes if axis.get_title() == "PiSSA")
    (cross,) = [line for line in panel.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert list(cross.get_xdata()) == [1.0] and cross.get_ydata()[0] < table["loss_nats_per_token"].min()
    plt.close("all")


def test_the_order_of_methods_puts_vanilla_first_and_what_the_study_lacks_last():
    assert variants_figures.in_order(["full", "PiSSA", "LoRA", "DoRA", "rsLoRA"]) == ["LoRA", "DoRA", "PiSSA", "rsLoRA",
                                                                                     "full"]
