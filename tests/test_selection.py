"""Which rows of a table count: the best learning rate, chosen alike everywhere."""

import pandas as pd

from utils.reporting.selection import best_rate, best_rates, comparable_rates


def with_rates(rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["method", "learning_rate", "seed", "accuracy"])


def kept(rows: list[tuple]) -> set[tuple]:
    found = best_rates(with_rates(rows))
    return set(found[["method", "learning_rate", "seed"]].itertuples(index=False, name=None))


def test_each_method_is_taken_at_its_best_rate():
    """By the mean over seeds, each method for itself, with all of its rows."""
    assert kept([("LoRA", 1e-3, 0, 0.8), ("LoRA", 1e-3, 1, 0.6), ("LoRA", 2e-3, 0, 0.75), ("LoRA", 2e-3, 1, 0.75),
                 ("full", 1e-3, 0, 0.5), ("full", 2e-3, 0, 0.4)]) == {
        ("LoRA", 2e-3, 0), ("LoRA", 2e-3, 1), ("full", 1e-3, 0)}


def test_a_rate_of_the_first_seed_alone_is_judged_on_that_seed():
    """Seed 0 is the lucky one: 0.8 there against a mean of 0.7 over three would win though 0.85 beats it on seed 0."""
    three = [("LoRA", 1e-3, seed, accuracy) for seed, accuracy in enumerate((0.85, 0.6, 0.65))]
    assert kept([*three, ("LoRA", 2e-3, 0, 0.8)]) == {("LoRA", 1e-3, seed) for seed in range(3)}
    assert kept([*three, ("LoRA", 2e-3, 0, 0.9)]) == {("LoRA", 2e-3, 0)}


def test_rates_that_share_no_seed_are_taken_by_number_of_seeds():
    """The first seed diverged at the one rate: what remains of it has more seeds than the other's single one."""
    assert kept([("LoRA", 1e-3, 1, 0.6), ("LoRA", 1e-3, 2, 0.6), ("LoRA", 2e-3, 0, 0.9)]) == {
        ("LoRA", 1e-3, 1), ("LoRA", 1e-3, 2)}


def test_groups_are_compared_each_by_its_own_seeds():
    """Every group as if it were alone: LoRA's rates share seed 1, full's none, so its rate of two seeds stays."""
    rows = [("LoRA", 1e-3, 0, 0.9), ("LoRA", 1e-3, 1, 0.6), ("LoRA", 2e-3, 1, 0.8),
            ("full", 1e-3, 0, 0.5), ("full", 2e-3, 1, 0.4), ("full", 2e-3, 2, 0.4)]
    table = with_rates(rows[::2] + rows[1::2])
    found = comparable_rates(table, ["method"])
    assert set(found.itertuples(index=False, name=None)) == {rows[1], rows[2], rows[4], rows[5]}
    alone = pd.concat([comparable_rates(part) for _, part in table.groupby("method")])
    pd.testing.assert_frame_equal(found.sort_index(), alone.sort_index())


def test_of_equal_rates_the_smaller_is_taken_in_any_order():
    rows = [("LoRA", 2e-3, 0, 0.75), ("LoRA", 1e-3, 0, 0.75)]
    assert kept(rows) == kept(rows[::-1]) == {("LoRA", 1e-3, 0)}


def test_the_best_is_the_least_of_a_loss():
    table = with_rates([("LoRA", 1e-3, 0, 0.5), ("LoRA", 2e-3, 0, 0.4), ("LoRA", 3e-3, 0, 0.6)]).rename(
        columns={"accuracy": "loss"})
    assert best_rate(table, value="loss", least=True) == 2e-3 and best_rate(table, value="loss") == 3e-3


def test_groups_are_told_apart_by_every_column_given():
    """Of two experiments each has its own best rate, and an index with repeated labels keeps the right rows."""
    first = with_rates([("LoRA", 1e-3, 0, 0.9), ("LoRA", 2e-3, 0, 0.8)]).assign(experiment="one")
    second = with_rates([("LoRA", 1e-3, 0, 0.1), ("LoRA", 2e-3, 0, 0.2)]).assign(experiment="two")
    both = pd.concat([first, second])
    found = best_rates(both, by=("experiment", "method"))
    assert found[["experiment", "learning_rate"]].values.tolist() == [["one", 1e-3], ["two", 2e-3]]
    assert best_rates(both.head(0), by=("experiment", "method")).empty
