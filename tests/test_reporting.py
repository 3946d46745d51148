"""The ledger's rules on hand-made frames, intervals by hand, every plot, and what publishing writes and refuses."""

import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from utils.errors import CourseError, UsageError
from utils.profiles import load_profile
from utils.reporting import claims as ledger
from utils.reporting import plots
from utils.reporting.claims import NOT_REPRODUCED, OUT_OF_REACH, PARTLY, REPRODUCED, RULES, TOO_FEW, Claim, claims, \
    own_verdicts, verdict, verdicts, write_ledger
from utils.reporting.measurements import MEASUREMENTS
from utils.reporting.publish import STAMP, publish, published_alt
from utils.reporting.reference import build_reference, mean_interval, paper_accuracies, reference_note, \
    reference_table, summarise
from utils.reporting.style import method_styles

SEEDS = (0, 1, 2)


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


# --- the rules ------------------------------------------------------------------------------------------------------

def frame(per_seed: list[dict], experiment: str = "ranks") -> pd.DataFrame:
    """One row per seed and entry of ``{r: values}``; r = 0 is full fine-tuning. Values may be a list of rows."""
    rows = []
    for seed, by_rank in enumerate(per_seed):
        for r, values in by_rank.items():
            for value in values if isinstance(values, list) else [values]:
                rows.append({"experiment": experiment, "seed": seed, "r": r, "run": f"{experiment}{seed}r{r}"} | value)
    return pd.DataFrame(rows)


def counts(full: int, **lora: int) -> dict:
    """Counts at epsilon 0.5 of full and of ranks r1, r8, …; every run has accuracy 0.8 unless told."""
    return {0: {"n_intruders": full, "accuracy": 0.8, "epsilon": 0.5}} | {
        int(name[1:]): {"n_intruders": count, "accuracy": 0.8, "epsilon": 0.5} for name, count in lora.items()}


def accuracies(*values: float) -> dict:
    """Final accuracies of full, r = 1, 8 and 64; the runs' earlier ones lie far apart and must not count."""
    return {r: [{"step": 10, "accuracy": r / 100}, {"step": 20, "accuracy": value}]
            for r, value in zip((0, 1, 8, 64), values, strict=True)}


def losses(full: float, r1: float, r8: float, r64: float, r384: float) -> dict:
    return {r: {"pseudo_loss": value} for r, value in ((0, full), (1, r1), (8, r8), (64, r64), (384, r384))}


def growth(*steps: tuple[int, float]) -> dict:
    """(count, strongest ratio) at steps 10, 20, … of rank 8; full fine-tuning's many intruders must not count."""
    lora = [{"step": 10 * (i + 1), "n_intruders": n, "strongest_ratio": ratio} for i, (n, ratio) in enumerate(steps)]
    return {8: lora, 0: [{"step": 10, "n_intruders": 50, "strongest_ratio": 9.0},
                         {"step": 20, "n_intruders": 0, "strongest_ratio": math.nan}]}


def by_k(full: list[int], r8: list[int]) -> dict:
    return {r: [{"k": k, "n_intruders": n} for k, n in zip((0.1, 0.5, 1.0), values, strict=True)]
            for r, values in ((0, full), (8, r8), (1, [0, 0, 0]))}


# rule -> (its parameters, a seed where it holds with its effect, a seed where it fails with its effect)
CASES = {
    "accuracy_within": ({"tolerance": 0.0625}, accuracies(0.75, 0.78125, 0.71875, 0.75), 0.03125,
                        accuracies(0.75, 0.875, 0.75, 0.75), -0.0625),
    "no_intruders_in_full": ({"epsilon": 0.5}, counts(0, r8=9), 0.5, counts(2, r8=9), -1.5),
    "more_intruders_at_equal_accuracy": ({"epsilon": 0.5, "tolerance": 0.03}, counts(1, r1=0, r8=5), 4,
                                         counts(3, r1=0, r8=3), 0),
    "fewer_at_full_width": ({"epsilon": 0.5, "low_rank": 8}, counts(0, r1=1, r8=7, r384=2), 5,
                            counts(0, r1=9, r8=2, r384=4), -2),
    "grows_through_training": ({}, growth((1, 0.2), (2, 0.4), (4, 0.9)), 3, growth((4, 0.2), (9, 0.3), (4, 0.4)), 0),
    "above_full_at_every_k": ({"low_rank": 8}, by_k([0, 1, 4], [2, 1, 9]), 0.5, by_k([0, 3, 4], [2, 1, 9]), -1.5),
    "full_forgets_more": ({"max_rank": 64}, losses(5.0, 4.5, 4.75, 4.25, 9.0), 0.25, losses(5.0, 4.5, 4.75, 5.5, 1.0),
                          -0.5),
    "u_shape": ({"low_rank": 8}, losses(5.0, 4.75, 4.5, 4.5, 5.5), 0.25, losses(5.0, 4.25, 4.5, 4.5, 5.5), -0.25),
}


def a_claim(rule: str, **values) -> Claim:
    return Claim(**{"id": "x", "notebook": "04", "paper": "p", "figure": "f", "sentence": "s", "published": "p",
                    "measurement": "forgetting", "rule": rule, "control": "c", "min_seeds": 3} | values)


def test_every_rule_has_a_case():
    assert set(CASES) == set(RULES)


@pytest.mark.parametrize("name", CASES)
def test_a_rule_gives_each_seed_its_effect(name):
    """Worked by hand: positive where the sentence holds, one value per seed."""
    rule, holds, positive, fails, negative = CASES[name]
    effects = RULES[name](frame([holds, fails, holds]), rule)
    assert effects.to_dict() == pytest.approx({0: positive, 1: negative, 2: positive})
    assert positive > 0 >= negative


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pattern, word", [("hhh", REPRODUCED), ("hfh", PARTLY), ("fhf", PARTLY),
                                           ("fff", NOT_REPRODUCED), ("hh", TOO_FEW)])
def test_the_verdict_follows_from_the_seeds(name, pattern, word):
    """All seeds: reproduced; some: partly; none: not; fewer seeds than asked for: no verdict."""
    rule, holds, positive, fails, negative = CASES[name]
    table = frame([holds if seed == "h" else fails for seed in pattern])
    judged = verdict(a_claim(name, **rule), table, "laptop")
    effects = [positive if seed == "h" else negative for seed in pattern]
    mean, low, high = mean_interval(effects)
    assert judged == {"verdict": word, "seeds": len(pattern), "holds": pattern.count("h"),
                      "effect": pytest.approx(mean, abs=1e-4), "low": pytest.approx(low, abs=1e-4),
                      "high": pytest.approx(high, abs=1e-4)}


@pytest.mark.parametrize("name", CASES)
def test_a_rule_reads_the_first_experiment_only(name):
    """Rows of the second task or of the learning-rate sweep must not move a verdict."""
    rule, holds, positive, fails, _ = CASES[name]
    both = pd.concat([frame([holds]), frame([fails], experiment="second"), frame([fails, fails], "learning_rates")])
    assert RULES[name](both, rule).to_dict() == pytest.approx({0: positive})


@pytest.mark.parametrize("name", CASES)
def test_a_rule_does_not_depend_on_the_order_of_rows(name):
    rule, holds, positive, _, _ = CASES[name]
    assert RULES[name](frame([holds]).iloc[::-1], rule).to_dict() == pytest.approx({0: positive})


@pytest.mark.parametrize("name", ["no_intruders_in_full", "more_intruders_at_equal_accuracy", "fewer_at_full_width"])
def test_a_rule_reads_its_own_epsilon(name):
    """Counts at another epsilon play no part."""
    rule, holds, positive, fails, _ = CASES[name]
    table = pd.concat([frame([fails]).assign(epsilon=0.9), frame([holds])])
    assert RULES[name](table, rule).to_dict() == pytest.approx({0: positive})


@pytest.mark.parametrize("name", ["accuracy_within", "no_intruders_in_full", "more_intruders_at_equal_accuracy",
                                  "full_forgets_more"])
def test_a_seed_without_its_full_run_is_not_judged(name):
    """A diverged run is left out of every table: that seed has no effect, and the others still have theirs."""
    rule, holds, positive, _, _ = CASES[name]
    table = frame([holds, holds])
    table = table[(table["seed"] != 1) | (table["r"] != 0)]
    assert RULES[name](table, rule).dropna().to_dict() == pytest.approx({0: positive})


@pytest.mark.parametrize("name, missing", [("fewer_at_full_width", 8), ("u_shape", 1), ("u_shape", 8)])
def test_a_seed_without_the_rank_in_question_is_not_judged(name, missing):
    """The same for a diverged LoRA run that the sentence speaks of."""
    rule, holds, positive, _, _ = CASES[name]
    table = frame([holds, holds])
    table = table[(table["seed"] != 1) | (table["r"] != missing)]
    assert RULES[name](table, rule).dropna().to_dict() == pytest.approx({0: positive})


def test_intruders_count_only_at_equal_accuracy():
    """LoRA runs away from full's accuracy are not compared; without any near one a seed has no effect."""
    rule = {"epsilon": 0.5, "tolerance": 0.0625}
    near, far = counts(0, r1=2, r8=9), counts(0, r1=2, r8=9)
    near[8]["accuracy"] = far[8]["accuracy"] = far[1]["accuracy"] = 0.5
    effects = ledger.more_intruders_at_equal_accuracy(frame([near, far]), rule)
    assert effects[0] == 2 and math.isnan(effects[1])
    judged = verdict(a_claim("more_intruders_at_equal_accuracy", min_seeds=1, **rule), frame([far]), "laptop")
    assert judged["verdict"] == TOO_FEW and judged["seeds"] == 0


@pytest.mark.parametrize("steps, effect", [
    (((1, 0.5), (5, 0.25)), -1), (((0, math.nan), (5, 0.25)), 5), (((1, 0.5), (5, 0.5)), 4),
    (((3, 0.2), (1, 0.9)), -2)], ids=["more but weaker", "first ones", "as strong", "fewer"])
def test_growth_asks_for_more_and_not_weaker(steps, effect):
    """More intruders do not hold where the strongest one became weaker; none at first has no strength to compare."""
    assert ledger.grows_through_training(frame([growth(*steps)]), {}).tolist() == [effect]


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
    """Unique ids; known rules, measurements, notebooks and profiles; a control each; parameters that its rule reads."""
    found = claims()
    assert len({claim.id for claim in found}) == len(found) >= 8
    for claim in found:
        assert claim.rule in RULES and claim.measurement in MEASUREMENTS, claim.id
        assert claim.min_seeds >= 1 and claim.control and claim.sentence.endswith("."), claim.id
        assert claim.notebook.isdigit() and len(claim.notebook) == 2, claim.id
        assert set(claim.out_of_reach) <= {"smoke", "laptop", "gpu", "paper"}, claim.id
        assert set(claim.model_extra) == set(CASES[claim.rule][0]), claim.id


def test_a_claim_with_an_unknown_rule_is_refused(tmp_path, monkeypatch):
    """A misspelt rule fails when the file is read, with the claim and the known rules."""
    values = a_claim("no_such_rule").model_dump() | {"out_of_reach": []}
    lines = ["[[claim]]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    (tmp_path / "claims.toml").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(ledger, "PAPER", tmp_path)
    with pytest.raises(CourseError, match="claim 'x' names the rule 'no_such_rule'.*u_shape"):
        ledger.claims.__wrapped__()


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
        "u-curve": PARTLY, "full-forgets-more": REPRODUCED, "llama-counts": OUT_OF_REACH}
    assert table.loc["u-curve", ["seeds", "holds"]].tolist() == [3, 2]
    assert verdicts("laptop", "06")["claim"].tolist() == ["full-forgets-more", "u-curve"]


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
    assert table.index.tolist() == ["full-forgets-more", "u-curve"]


def test_own_verdicts_without_own_tables_show_the_reference(references):
    """A notebook whose own measurement is missing still shows the reference's verdicts."""
    table = own_verdicts({}, load_profile("laptop"), "06")
    assert table["verdict"].tolist() == [REPRODUCED, PARTLY]


def test_the_reference_note_says_where_results_come_from(references):
    (references / "laptop" / "provenance.json").write_text(json.dumps({"seeds": [0, 1, 2], "provenance": {
        "hardware": {"device": "cpu", "threads": 2}, "date": "2026-01-02T03:04:05Z", "packages": {"torch": "9.9"}}}))
    assert reference_note("smoke") == "Reference: seeds [0, 1, 2], cpu (2 threads), 2026-01-02, torch 9.9."
    assert reference_note("gpu").startswith("No reference results are committed for gpu")


def test_smoke_makes_no_reference(references):
    with pytest.raises(UsageError, match="smoke is not evidence"):
        build_reference(load_profile("smoke"))


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
    "accuracy_curves": ({"step": (10, 20, 30)}, lambda own, ref: plots.accuracy_curves(own, ref), 2),
    "counts_against_epsilon": ({"epsilon": (0.1, 0.5, 0.9)},
                               lambda own, ref: plots.counts_against_epsilon(own, ref, level=0.14), 2),
    "growth": ({"step": (10, 20)}, lambda own, ref: plots.growth(own, ref), 4),
    "counts_against_k": ({"k": (0.1, 0.5, 1.0)}, lambda own, ref: plots.counts_against_k(own, ref), 2),
    "forgetting_against_rank": ({}, lambda own, ref: plots.forgetting_against_rank(own, ref), 2),
    "scatter_by_method": ({}, lambda own, ref: plots.scatter_by_method(
        own, {"n_intruders": "intruders", "relative_norm": "norm"}, y="forgetting", label="nats", reference=ref), 2),
    "accuracy_beside_paper": ({}, lambda own, ref: plots.accuracy_beside_paper(own, paper_differences(), ref), 2),
}


def paper_differences() -> pd.DataFrame:
    paper = paper_accuracies()
    full = paper[paper["method"] == "full"].set_index(["table", "task"])["accuracy"]
    lora = paper[paper["method"] != "full"]
    of_full = full.loc[list(zip(lora["table"], lora["task"], strict=True))].values
    return lora.assign(difference=lora["accuracy"] - of_full)


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


def test_lines_are_the_mean_and_bands_the_extremes():
    """The reader's line is the mean over own seeds; the band spans the reference's smallest to largest seed."""
    own = pd.DataFrame({"task": "t", "method": "full", "step": [1, 2, 1, 2], "accuracy": [0.5, 0.75, 0.75, 1.0]})
    reference = pd.DataFrame({"task": "t", "method": "full", "step": [1, 2] * 3,
                              "accuracy": [0.1, 0.2, 0.3, 0.4, 0.2, 0.3]})
    axis = plots.accuracy_curves(own, reference).axes[0]
    assert [line.get_ydata().tolist() for line in lines_named(axis, "full")] == [[0.625, 0.875]]
    corners = axis.collections[0].get_paths()[0].vertices
    spans = {step: sorted(set(corners[corners[:, 0] == step][:, 1])) for step in (1, 2)}
    assert spans == {1: pytest.approx([0.1, 0.3]), 2: pytest.approx([0.2, 0.4])}


def test_forgetting_shows_full_and_base_as_levels():
    """Full fine-tuning and the base are horizontal lines at their own values, LoRA a curve over its ranks."""
    own = frame([{0: {"pseudo_loss": 5.0}, 1: {"pseudo_loss": 4.75}, 8: {"pseudo_loss": 4.5}}]).assign(
        task="t", base_pseudo_loss=4.25, method="x")
    axis = plots.forgetting_against_rank(own).axes[0]
    levels = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    assert levels == {"LoRA, yours": [4.75, 4.5], "full, yours": [5.0, 5.0], "base": [4.25, 4.25]}
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1", "8"]


def test_learning_rate_curves():
    figure = drawn(plots.learning_rate_curves(grid(tasks=("movies",), learning_rate=(1e-4, 1e-3)),
                                              {"accuracy": "test accuracy", "n_intruders": "intruders"}))
    assert [axis.get_ylabel() for axis in figure.axes] == ["test accuracy", "intruders"]
    assert figure.axes[0].get_xscale() == "log" and len(figure.axes[0].lines) == len(METHODS)


def test_similarity_maps_and_outlined_rows():
    """One heat-map per entry with the values given; an outlined row frames exactly that row across the map."""
    maps = {"full": np.eye(6), "LoRA": np.full((6, 6), 0.25)}
    figure = drawn(plots.similarity_maps(maps, matrix="layer 0 query"))
    assert [axis.get_title() for axis in figure.axes[:2]] == ["full", "LoRA"]
    assert np.array_equal(figure.axes[0].images[0].get_array(), maps["full"])
    plots.outline_rows(figure, 1, [1, 4])
    boxes = [patch.get_bbox().bounds for patch in figure.axes[1].patches]
    assert boxes == [(0.5, 0.5, 6, 1), (0.5, 3.5, 6, 1)] and not figure.axes[0].patches


def test_cosines_by_index_marks_both_levels():
    vectors = pd.DataFrame({"method": ["full"] * 3 + ["LoRA r=8"] * 3, "index": [1, 2, 3] * 2,
                            "max_cosine": [0.9, 0.8, 0.9, 0.2, 0.9, 0.8]})
    axis = drawn(plots.cosines_by_index(vectors, epsilon=0.5, level=0.14)).axes[0]
    assert lines_named(axis, "LoRA r=8")[0].get_ydata().tolist() == [0.2, 0.9, 0.8]
    assert lines_named(axis, "epsilon = 0.5")[0].get_ydata() == [0.5, 0.5]
    assert lines_named(axis, "a random direction")[0].get_ydata() == [0.14, 0.14]


def test_one_vector():
    figure = drawn(plots.one_vector({"normal": np.eye(5)[0], "intruder": np.full(5, 0.1)}))
    heights = [[segment[1][1] for segment in axis.collections[0].get_segments()] for axis in figure.axes]
    assert heights == [[1, 0, 0, 0, 0], [0.1] * 5]


def test_toy_curves():
    sweep = pd.DataFrame({"ratio": [0.5, 1.0, 2.0], "index": [9, 2, 1], "overlap": [0.3, 0.8, 0.99],
                          "max_cosine": [0.9, 0.5, 0.2]})
    figure = drawn(plots.toy_curves(sweep, level=0.14))
    assert figure.axes[0].lines[0].get_ydata().tolist() == [0.9, 0.5, 0.2]
    assert figure.axes[1].lines[0].get_ydata().tolist() == [9, 2, 1]


def test_control_curves_have_one_panel_per_control():
    """The trained runs first; a control that lacks a method (full has no rank) draws the others."""
    runs = grid(tasks=("movies",), epsilon=(0.1, 0.5))
    controls = pd.concat([runs.assign(control="random, full rank"),
                          runs[runs["r"] > 0].assign(control="random, rank r")])
    figure = drawn(plots.control_curves(runs, controls))
    assert [axis.get_title() for axis in figure.axes] == ["trained", "random, full rank", "random, rank r"]
    assert [len(axis.lines) for axis in figure.axes] == [3, 3, 2]


@pytest.mark.parametrize("highest", [0, 7])
def test_places_print_each_count(highest):
    """Layer by type, one map per method, every count written into its cell; a model without intruders draws too."""
    table = pd.DataFrame([{"method": method, "layer": layer, "type": kind, "n_intruders": highest * layer}
                          for method in ("full", "LoRA r=8") for layer in (0, 1) for kind in ("query", "key")])
    figure = drawn(plots.places(table, ["full", "LoRA r=8"]))
    assert [text.get_text() for text in figure.axes[1].texts] == ["0", "0", str(highest), str(highest)]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["query", "key"]


def test_base_curve():
    figure = drawn(plots.base_curve(pd.DataFrame({"step": [0, 100], "heldout_loss_nats_per_token": [10.5, 5.5]})))
    assert figure.axes[0].lines[0].get_ydata().tolist() == [10.5, 5.5]


def test_scaling_curves():
    table = pd.DataFrame({"scaling": ["alpha / r"] * 2 + ["alpha / sqrt(r)"] * 2, "r": [1, 8] * 2,
                          "update_norm": [1.0, 0.125, 1.0, 0.5]})
    axis = drawn(plots.scaling_curves(table)).axes[0]
    assert lines_named(axis, "alpha / sqrt(r)")[0].get_ydata().tolist() == [1.0, 0.5]
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")


def test_styles_tell_methods_apart_without_colour():
    """Full fine-tuning is black and solid wherever it stands; up to eight methods differ in marker and in dash."""
    names = ["LoRA r=1", "full", *(f"LoRA r={2 ** i}" for i in range(1, 7))]
    styles = method_styles(names)
    assert list(styles) == names and to_hex(styles["full"]["color"]) == "#000000" and styles["full"]["linestyle"] == "-"
    assert len({style["marker"] for style in styles.values()}) == len(names)
    assert len({str(style["linestyle"]) for style in styles.values()}) == len(names)


def test_the_papers_tables_are_the_printed_ones():
    """Spot values of Tables 1 and 2 of arXiv 2410.21228v3, and their size: 7 methods x 6 tasks each."""
    paper = paper_accuracies()
    assert len(paper) == 84 and not paper["accuracy"].isna().any()
    value = paper.assign(task=paper["task"].str.lower()).set_index(["table", "r", "task"])["accuracy"]
    ranks = [tuple(sorted(part["r"].unique())) for _, part in paper.groupby("table")]
    assert ranks == [(0, 1, 2, 4, 8, 16, 64)] * 2
    assert value[1, 8, "mnli"] == 0.8648 and value[2, 8, "mnli"] == 0.8704 and value[2, 64, "fever"] == 0.6864
    assert value[1, 0, "mnli"] == value[2, 0, "mnli"] == 0.8745


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
        publish(plots.toy_curves(pd.DataFrame({"ratio": [1, 2], "index": [2, 1], "overlap": [0.5, 0.9],
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
