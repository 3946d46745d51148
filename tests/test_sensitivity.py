"""Best rates, ratios and slopes against values worked out by hand; the figures draw what their tables hold."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from utils.errors import UsageError
from utils.profiles import load_profile
from utils.reporting.measured import Measured
from utils.reporting.selection import marked
from utils.sources.models import resolve
from utils.studies.sensitivity import figures, tables
from utils.training.weights import base_matrices

USUAL = {"task": "python", "optimiser": "adamw", "batch_size": 16, "targets": "all", "step": 80}
BASE = 9.0  # the untouched base's loss


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def run(experiment: str, method: str, rate: float, loss: float, *, seed: int = 0, forgetting: float = 0.2, alpha=None,
        scaling=None, **other) -> dict:
    """A row; as in the store, the key depends on everything but the experiment and the results."""
    r = int(method.split("=")[1].split(",")[0]) if "=" in method else 0
    alpha = 2 * r if alpha is None else alpha
    scaling = scaling or ("" if not r else "alpha = 2r" if alpha == 2 * r else "alpha / r")
    row = USUAL | other | {"method": method, "r": r, "lora_alpha": alpha, "scaling": scaling, "learning_rate": rate,
                           "seed": seed}
    return row | {"experiment": experiment, "run": str(sorted(row.items())), tables.LOSS: loss, "learning": BASE - loss,
                  "forgetting": forgetting}


def rates() -> list[dict]:
    """Full is best at 1e-3 (two seeds, mean 4.0), r=8 at 1e-2 inside its grid, r=1 at the end of its own."""
    return [run("rates", "full", 1e-4, 5.0, forgetting=0.1), run("rates", "full", 1e-3, 3.8, forgetting=0.5),
            run("rates", "full", 1e-3, 4.2, seed=1, forgetting=0.7), run("rates", "full", 1e-2, 5.0),
            run("rates", "LoRA r=8", 1e-3, 6.0), run("rates", "LoRA r=8", 1e-2, 5.0),
            run("rates", "LoRA r=8", 1e-1, 6.0), run("rates", "LoRA r=1", 1e-3, 7.0),
            run("rates", "LoRA r=1", 1e-2, 6.5)]


def whole() -> pd.DataFrame:
    """Every experiment, small."""
    return pd.DataFrame([
        *rates(),
        run("optimisers", "full", 1e-4, 4.5, optimiser="lion"), run("optimisers", "LoRA r=8", 1e-3, 5.5,
                                                                    optimiser="lion"),
        run("alpha", "LoRA r=8", 1e-2, 5.9, alpha=1), run("alpha", "LoRA r=8", 1e-2, 5.4, alpha=8),
        run("modules", "LoRA r=4", 1e-2, 5.2), run("modules", "LoRA r=10, attention", 1e-2, 5.8, targets="attention"),
        run("modules", "LoRA r=7, mlp", 1e-2, 5.3, targets="mlp"), run("modules", "LoRA r=7, mlp", 1e-2, 5.5, seed=1,
                                                                       targets="mlp"),
        run("batches", "full", 1e-3, 4.6, batch_size=64), run("batches", "full", 1e-2, 4.5, batch_size=64),
        run("batches", "LoRA r=8", 1e-2, 6.5, batch_size=64), run("batches", "LoRA r=8", 1e-2, 4.9, batch_size=4),
        run("scalings", "LoRA r=8", 1e-2, 5.0), run("scalings", "LoRA r=64", 1e-4, 5.1),
        run("scalings", "LoRA r=64", 1e-3, 4.9), run("scalings", "LoRA r=64", 1e-2, 5.3),
        run("scalings", "LoRA r=64", 1e-3, 5.2, alpha=16), run("scalings", "LoRA r=64", 1e-2, 4.8, alpha=16),
        run("scalings", "LoRA r=64", 1e-1, 5.4, alpha=16),
        run("scalings", "rsLoRA r=8", 1e-2, 5.0, alpha=6, scaling="alpha / sqrt(r)")])


def only(table: pd.DataFrame, **values) -> pd.Series:
    for column, value in values.items():
        table = table[table[column] == value]
    (row,) = [row for _, row in table.iterrows()]
    return row


def test_best_rate_of_the_mean_over_seeds():
    best = tables.best_rate_table(pd.DataFrame(rates()), ["method"])
    full = only(best, method="full")
    assert (full["learning_rate"], full["seeds"], full["rates"], full["edge"]) == (1e-3, 2, 3, "")
    assert (full["loss"], full["loss_below"], full["loss_above"]) == pytest.approx((4.0, 5.0, 5.0))
    assert full["fine_rate"] == pytest.approx(1e-3), "the neighbours are equal, so the vertex is in the middle"


def test_a_best_rate_at_the_end_of_the_grid_is_a_bound():
    best = only(tables.best_rate_table(pd.DataFrame(rates()), ["method"]), method="LoRA r=1")
    assert (best["edge"], best["loss_below"]) == ("highest", 7.0)
    assert pd.isna(best["loss_above"]) and pd.isna(best["fine_rate"])
    falling = pd.DataFrame([run("rates", "full", 1e-3, 4.0), run("rates", "full", 1e-2, 5.0)])
    assert tables.best_rate_table(falling, ["method"])["edge"].tolist() == ["lowest"]
    assert tables.best_rate_table(falling.head(1), ["method"])["edge"].tolist() == ["only"]


def test_parabola_leans_towards_the_lower_neighbour():
    # In x = log10(rate): through (-3, 2), (-2, 1), (-1, 5): curvature 5/2, slope at -2 is 3/2, vertex -2 - 3/10.
    assert tables.parabola_minimum([1e-3, 1e-2, 1e-1], [2, 1, 5]) == pytest.approx(10**-2.3)
    assert pd.isna(tables.parabola_minimum([1e-3, 1e-2, 1e-1], [1, 1, 1])), "a flat line has no minimum"


def test_a_run_of_two_experiments_counts_once():
    table = pd.DataFrame([run("rates", "LoRA r=8", 1e-2, 5.0), run("scalings", "LoRA r=8", 1e-2, 5.0),
                          run("scalings", "LoRA r=8", 1e-2, 7.0, seed=1)])
    assert len(tables.selection(table, "scalings")) == 2
    assert tables.rate_means(table, ["method"])[tables.LOSS].tolist() == [6.0], "not (5 + 5 + 7) / 3"
    assert len(tables.runs_once(table, ["experiment"])) == 3, "once for each experiment it is in"


def test_only_a_runs_last_step_counts():
    early = run("rates", "full", 1e-3, 1.0) | {"step": 40}
    table = pd.DataFrame([early, run("rates", "full", 1e-3, 4.0) | {"run": early["run"]}])
    assert tables.best_rate_table(table, ["method"])["loss"].tolist() == [4.0]


def test_selection_puts_the_usual_runs_beside():
    table = whole()
    optimisers = tables.selection(table, "optimisers")
    assert optimisers.groupby(["panel", "series"]).size().to_dict() == {
        ("LoRA r=8", "AdamW"): 3, ("LoRA r=8", "Lion"): 1, ("full", "AdamW"): 4, ("full", "Lion"): 1}
    assert set(tables.selection(table, "alpha")["series"]) == {"alpha = 1", "alpha = 8", "alpha = 16"}
    assert set(tables.selection(table, "modules")["series"]) == {"all, r=4", "attention, r=10", "mlp, r=7"}
    assert tables.selection(None, "alpha") is None
    with pytest.raises(UsageError, match="'alphas'"):
        tables.selection(table, "alphas")


def test_the_sweep_has_the_further_ranks_of_alpha_2r():
    """The best LoRA of notebook 13, r = 64, was left out of every table about the best rate."""
    methods = tables.selection(whole(), "rates").groupby("method").size().to_dict()
    assert methods == {"full": 4, "LoRA r=1": 2, "LoRA r=64": 3, "LoRA r=8": 3}


def test_alpha_16_at_rank_8_is_a_point_of_both_scalings():
    runs = tables.selection(whole(), "scalings")
    assert runs.groupby(["panel", "series"]).size().to_dict() == {
        ("alpha / r, alpha = 16", "LoRA r=64"): 3, ("alpha / r, alpha = 16", "LoRA r=8"): 3,
        ("alpha / sqrt(r), alpha = 6", "LoRA r=8"): 1, ("alpha = 2r", "LoRA r=64"): 3, ("alpha = 2r", "LoRA r=8"): 3}


def test_rates_within_a_share_of_the_best_learning():
    # Full learns 4, 5, 4 of the base's 9; r=8 learns 3, 4, 3; r=1 learns 2, 2.5.
    strict, loose = tables.rates_within(whole()), tables.rates_within(whole(), share=0.8)
    # r=64 learns 3.9, 4.1, 3.7.
    assert strict.set_index("method")["within"].to_dict() == {"full": 1, "LoRA r=8": 1, "LoRA r=1": 1, "LoRA r=64": 3}
    assert loose.set_index("method")["within"].to_dict() == {"full": 3, "LoRA r=8": 1, "LoRA r=1": 2, "LoRA r=64": 3}
    full = only(loose, method="full")
    assert (full["best_learning"], full["span"], full["edge"]) == (5.0, pytest.approx(100), "both")
    assert only(strict, method="LoRA r=1")["edge"] == "highest"


def test_rate_ratio_and_its_bounds():
    ratio = tables.rate_ratio(whole())
    inside, bound = only(ratio, method="LoRA r=8"), only(ratio, method="LoRA r=1")
    assert (inside["ratio"], inside["fine_ratio"], inside["bound"]) == (pytest.approx(10), pytest.approx(10), "")
    assert (bound["ratio"], bound["bound"]) == (pytest.approx(10), "at least") and pd.isna(bound["fine_ratio"])
    with pytest.raises(UsageError, match="'full'"):
        tables.rate_ratio(pd.DataFrame(rates()[4:]))
    low_full = tables.rate_ratio(pd.DataFrame([run("rates", "full", 1e-3, 4.0), run("rates", "full", 1e-2, 5.0),
                                             *rates()[4:]]))
    assert low_full["bound"].tolist() == ["at least", "at least"], "full's true best lies lower still"


def test_slope_of_the_best_rate():
    slopes = tables.best_rate_slope(whole())
    rule = only(slopes, scaling="alpha = 2r")
    # From 1e-2 at rank 8 to 1e-3 at rank 64: log(1/10) / log(8).
    assert (rule["slope"], rule["ranks"], rule["edges"]) == (pytest.approx(-1.10731, abs=1e-5), 2, 0)
    assert only(slopes, scaling="alpha / r, alpha = 16")["slope"] == pytest.approx(0)
    single = only(slopes, scaling="alpha / sqrt(r), alpha = 6")
    assert pd.isna(single["slope"]) and single["edges"] == 1
    # The vertex at rank 64: x = -3, losses 5.1, 4.9, 5.3: curvature .3, slope .1, so -3 - .1 / .6.
    assert rule["fine_slope"] == pytest.approx((-3 - 1 / 6 + 2) / 0.90309, abs=1e-5)


def test_batch_penalty_at_each_sizes_own_best_rate():
    table = tables.batch_penalty(whole())
    full = only(table, method="full")
    assert (full["learning_rate"], full["loss"], full["usual_loss"]) == (1e-2, 4.5, 4.0)
    assert (full["penalty"], full["usual_size"], full["edge"]) == (pytest.approx(0.5), 16, "highest")
    assert only(table, method="LoRA r=8", batch_size=64)["penalty"] == pytest.approx(1.5)
    assert only(table, method="LoRA r=8", batch_size=4)["penalty"] == pytest.approx(-0.1)


def test_one_rate_lower():
    table = tables.gentler_rate(whole()[lambda t: t["experiment"] == "rates"], ["method"])
    full = only(table, method="full")
    assert (full["best_rate"], full["lower_rate"], full["forgetting"]) == (1e-3, 1e-4, pytest.approx(0.6))
    assert (full["learning_kept"], full["forgetting_kept"]) == pytest.approx((4 / 5, 0.1 / 0.6))
    alone = tables.gentler_rate(pd.DataFrame(rates()[:1]), ["method"])
    assert pd.isna(alone["lower_rate"]).all() and pd.isna(alone["learning_kept"]).all()


def test_how_many_rates_beat_lora():
    table = tables.beaten_by(pd.DataFrame([*rates(), run("rates", "full", 3e-3, 4.9)]))
    assert table.set_index("method")["beaten_by"].to_dict() == {"LoRA r=8": 2, "LoRA r=1": 4}, "5.0 against 4.0, 4.9"
    assert set(table["of"]) == {4}


def test_adapter_numbers_by_hand():
    shapes = {"layers.0.self_attn.q_proj": (4, 4), "layers.0.mlp.up_proj": (8, 4)}
    kinds = pd.DataFrame({"targets": ["all", "attention", "mlp", "mlp", "all"], "r": [2, 3, 1, 1, 0]})
    table = tables.adapter_numbers(kinds, shapes)
    assert table["numbers"].tolist() == [2 * (8 + 12), 3 * 8, 12] and table["matrices"].tolist() == [2, 1, 1]


def test_modules_are_compared_at_equal_numbers():
    profile = load_profile("laptop")
    shapes = {name: tuple(w.shape) for name, w in base_matrices(resolve(profile.continued).folder).items()}
    kinds = pd.DataFrame({"targets": [group.targets for group in profile.decoder_experiments["modules"].runs],
                          "r": [next(iter(group.learning_rate)) for group in
                                profile.decoder_experiments["modules"].runs]})
    numbers = tables.adapter_numbers(kinds, shapes)["numbers"]
    assert len(numbers) == 3 and numbers.max() / numbers.min() < 1.05


def test_recommendations():
    values = tables.recommendations(whole()).set_index("measured")["value"]
    # r = 64 is LoRA's best, 4.9 against full's 4.0, and the highest rank: 6.5 - 4.9 above the lowest.
    assert values.tolist() == pytest.approx([0.9, 1.6, 0.6, 0.2, 0.9, 10.0])
    lacking = tables.recommendations(pd.DataFrame(rates()))["value"]
    assert lacking.isna().tolist() == [False, False, True, True, True, False]


def test_in_words():
    words = tables.in_words(tables.selection(whole(), "modules"))
    assert words == ("all, r=4: 5.20 at 0.01; attention, r=10: 5.80 at 0.01; mlp, r=7: 5.40 at 0.01 "
                     "(nats per token, at the learning rate).")


# --- figures

def lines(axis) -> dict:
    return {line.get_label(): line for line in axis.get_lines()}


def given(own: pd.DataFrame, reference: pd.DataFrame | None = None) -> Measured:
    both = [None if one is None else marked(one) for one in (own, reference)]
    return Measured("sensitivity", load_profile("smoke"), (0,), *both)


def test_loss_against_rate():
    own = pd.DataFrame(rates())
    result = figures.learning_rate(given(own, own))
    (axis,) = result.figure.axes
    full = lines(axis)["full"]
    assert full.get_ydata().tolist() == pytest.approx([5.0, 4.0, 5.0]) and to_hex(full.get_color()) == "#000000"
    assert axis.get_xscale() == "log"
    assert [tick for tick in axis.get_xticks() if 1e-4 <= tick <= 0.1] == pytest.approx(
        [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1])
    assert "full: 4.00 at 0.001" in result.alt and "LoRA r=1: 6.50 at 0.01" in result.alt
    assert result.shown["method"].tolist() == ["full", "LoRA r=8", "LoRA r=1"]
    assert result.shown["end of the grid"].tolist() == ["", "", "highest"]


def test_a_run_that_did_not_learn_is_hollow_and_in_no_line():
    """r = 1 at 1e-3 learns 2 of the 5.2 that full learns at its best in that seed."""
    (axis,) = figures.learning_rate(given(pd.DataFrame(rates()))).figure.axes
    assert lines(axis)["LoRA r=8"].get_xdata().tolist() == [1e-2], "3 and 3 of 5.2 are too little, 4 is enough"
    hollow = [line for line in axis.get_lines() if line.get_label() == "_did not learn"]
    assert {line.get_markerfacecolor() for line in hollow} == {"none"}
    assert sorted(x for line in hollow for x in line.get_xdata()) == [1e-3, 1e-3, 1e-2, 1e-1]


def test_forgetting_against_rate_without_a_reference():
    result = figures.forgetting_against_rate(given(pd.DataFrame(rates())))
    assert lines(result.figure.axes[0])["full"].get_ydata().tolist() == pytest.approx([0.1, 0.6, 0.2])
    assert "full: 0.10 at 0.0001, 0.60 at 0.001" in result.alt and not result.figure.axes[0].collections


@pytest.mark.parametrize("name, titles, labels", [
    ("optimisers", ["full", "LoRA r=8"], {"AdamW", "Lion"}), ("alpha", [""], {"alpha = 1", "alpha = 8", "alpha = 16"}),
    ("modules", [""], {"all, r=4", "attention, r=10", "mlp, r=7"}),
    ("batches", ["full", "LoRA r=8"], {"batches of 16", "batches of 64", "batches of 4"}),
    ("scalings", ["alpha = 2r", "alpha / r, alpha = 16", "alpha / sqrt(r), alpha = 6"], {"LoRA r=8", "LoRA r=64"})])
def test_each_comparison_has_its_panels_and_series(name, titles, labels):
    result = getattr(figures, name)(given(whole(), whole()))
    assert [axis.get_title() for axis in result.figure.axes] == titles
    assert {text.get_text() for text in result.figure.legends[0].get_texts()} == labels


def test_modules_are_told_by_their_losses():
    result = figures.modules(given(whole()))
    assert result.shown["loss there"].tolist() == pytest.approx([5.2, 5.8, 5.4])
    assert "attention, r=10: 5.80 at 0.01" in result.alt and len(result.table) == 4


def test_alpha_as_a_rate_multiplies_the_two():
    result = figures.alpha_as_rate(given(whole()))
    assert lines(result.figure.axes[0])["alpha = 8"].get_xdata().tolist() == [1e-2]
    assert "alpha = 1, 0.00125: 5.90" in result.alt and "alpha = 16, 0.02: 5.00" in result.alt


def test_best_rate_against_rank():
    result = figures.best_rate_against_rank(given(whole()))
    (axis,) = result.figure.axes
    best = [line for line in axis.get_lines() if line.get_label() == "_best"]
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log") and not axis.texts
    assert [line.get_ydata().tolist() for line in best] == [[1e-2, 1e-3], [1e-2, 1e-2], []]
    single = [len(line.get_xdata()) for line in axis.get_lines() if line.get_label() == "_only"]
    assert single == [0, 0, 1], "nothing was compared at one rate"
    assert "alpha = 2r, r = 64: 0.001" in result.alt and "(edge: only)" in result.alt


def test_an_arrow_points_to_where_the_true_best_rate_may_be():
    rising = pd.DataFrame([run("scalings", "LoRA r=64", 1e-4, 5.0), run("scalings", "LoRA r=64", 1e-3, 4.0)])
    (axis,) = figures.best_rate_against_rank(given(rising)).figure.axes
    assert len(axis.texts) == 1 and axis.texts[0].xyann[1] < axis.texts[0].xy[1], "the arrow's head lies higher"
