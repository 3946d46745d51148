"""The numbers of "LoRA Learns Less and Forgets Less" against its tables, and the trade-off by hand."""

import math

import pandas as pd
import pytest

from utils.errors import UsageError
from utils.reporting.selection import pareto_front
from utils.studies.learning.published import (
    matched_learning,
    published_base,
    published_curves,
    published_tulu,
    remembering_at,
    tradeoff_table,
)

# Rows as printed in the paper's supplement, one per method and table, in the order of their durations.
PRINTED = """
S1 LoRA r=16  .143 .144 .141 .141 .154 .159 .162 .162
S1 LoRA r=64  .142 .146 .141 .153 .157 .176 .194 .196
S1 LoRA r=256 .144 .142 .143 .159 .159 .208 .211 .224
S1 full       .152 .153 .172 .181 .218 .258 .255 .263
S2 LoRA r=16  .645 .642 .645 .642 .644 .640 .638 .635
S2 LoRA r=64  .646 .644 .646 .646 .639 .634 .626 .626
S2 LoRA r=256 .644 .645 .643 .639 .636 .630 .618 .617
S2 full       .625 .624 .625 .616 .599 .583 .551 .545
S3 LoRA r=16  .162 .157 .161 .155 .165 .156 .152 .158
S3 LoRA r=64  .163 .167 .150 .166 .164 .168 .179 .163
S3 LoRA r=256 .162 .161 .140 .170 .193 .196 .203 .202
S3 full       .155 .152 .165 .158 .224 .238 .283 .293
S4 LoRA r=16  .640 .641 .646 .641 .643 .641 .636 .637
S4 LoRA r=64  .640 .640 .638 .637 .643 .634 .634 .627
S4 LoRA r=256 .638 .638 .637 .634 .633 .620 .620 .616
S4 full       .634 .634 .640 .630 .629 .619 .613 .618
S5 LoRA r=16  .197 .275 .358 .338 .324
S5 LoRA r=64  .249 .339 .417 .392 .405
S5 LoRA r=256 .299 .385 .498 .437 .466
S5 full       .302 .464 .470 .497 .416
S6 LoRA r=16  .653 .648 .652 .646 .609
S6 LoRA r=64  .652 .651 .632 .580 .510
S6 LoRA r=256 .655 .659 .631 .552 .517
S6 full       .595 .579 .512 .446 .414
S7 LoRA r=16  .447 .528 .580 .578 .569
S7 LoRA r=64  .527 .588 .624 .624 .595
S7 LoRA r=256 .557 .607 .625 .634 .594
S7 full       .604 .641 .642 .619 .599
S8 LoRA r=16  .628 .617 .616 .616 .596
S8 LoRA r=64  .617 .609 .608 .586 .568
S8 LoRA r=256 .613 .607 .599 .584 .567
S8 full       .598 .599 .590 .572 .559
S10 LoRA r=16 5.681 5.997 5.712
S10 LoRA r=64 5.597 5.725 5.944
S10 LoRA r=256 5.788 5.834 5.894
S10 full      5.825 5.838 5.862
S11 LoRA r=16 .491 .502 .504
S11 LoRA r=64 .503 .509 .504
S11 LoRA r=256 .502 .496 .492
S11 full      .507 .504 .502
S12 LoRA r=16 .251 .275 .280
S12 LoRA r=64 .285 .270 .295
S12 LoRA r=256 .296 .335 .301
S12 full      .324 .291 .303
S13 LoRA r=16 .650 .657 .657
S13 LoRA r=64 .649 .655 .647
S13 LoRA r=256 .653 .649 .629
S13 full      .660 .652 .621
""".strip().splitlines()
DURATIONS = {8: [0.25, 0.5, 1, 2, 4, 8, 16, 20], 5: [1, 2, 4, 8, 16], 3: [2, 4, 6]}
TABLES = {"S1": ("starcoder", "learning", "HumanEval"), "S2": ("starcoder", "forgetting", "mean of three"),
          "S3": ("openwebmath", "learning", "GSM8K"), "S4": ("openwebmath", "forgetting", "mean of three"),
          "S5": ("magicoder", "learning", "HumanEval"), "S6": ("magicoder", "forgetting", "mean of three"),
          "S7": ("metamath", "learning", "GSM8K"), "S8": ("metamath", "forgetting", "mean of three"),
          "S10": ("tulu", "learning", "MT-bench"), "S11": ("tulu", "learning", "MMLU"),
          "S12": ("tulu", "learning", "GSM8K"), "S13": ("tulu", "forgetting", "mean of three")}


def everything() -> pd.DataFrame:
    return pd.concat([published_curves(), published_tulu()], ignore_index=True)


def value(table: str, method: str, duration: float) -> float:
    every = everything()
    (found,) = every[(every["table"] == table) & (every["method"] == method) & (every["duration"] == duration)]["value"]
    return found


# --- the tables -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("line", PRINTED)
def test_every_printed_row_is_kept(line):
    table, *words = line.split()
    count = 2 if words[0] == "LoRA" else 1
    method, printed = " ".join(words[:count]), [float(word) for word in words[count:]]
    every = everything()
    rows = every[(every["table"] == table) & (every["method"] == method)]
    assert rows["value"].tolist() == printed
    assert rows["duration"].tolist() == DURATIONS[len(printed)]
    assert set(rows["unit"]) == ({"billion tokens"} if len(printed) == 8 else {"epochs"})
    assert set(rows["r"]) == {int(method.split("=")[1]) if count == 2 else 0}


def test_nothing_is_kept_that_was_not_printed():
    curves, tulu = published_curves(), published_tulu()
    assert (len(curves), len(tulu)) == (4 * (4 * 8 + 4 * 5), 4 * 4 * 3)
    assert not any(table.isna().any().any() for table in (curves, tulu, published_base()))
    kept = everything().groupby("table")[["dataset", "quantity", "metric"]].agg(lambda column: tuple(set(column)))
    assert {table: tuple(name for (name,) in row) for table, row in zip(kept.index, kept.values, strict=True)} == TABLES
    assert set(curves["source"]) | set(tulu["source"]) == {"table"}


def test_regimes_and_domains():
    found = published_curves()[["dataset", "regime", "domain"]].drop_duplicates().values.tolist()
    assert sorted(found) == [["magicoder", "instruction tuning", "code"], ["metamath", "instruction tuning", "math"],
                             ["openwebmath", "continued pretraining", "math"],
                             ["starcoder", "continued pretraining", "code"]]


def test_the_base_says_where_its_numbers_are_from():
    base = published_base()
    assert set(base["method"]) == {"base"} and len(base) == 8 + 3
    found = base.groupby("metric")[["value", "source"]].agg(lambda column: tuple(sorted(set(column))))
    assert found["value"].to_dict() == {"GSM8K": (0.145,), "HumanEval": (0.138,), "MT-bench": (2.74,),
                                        "mean of three": (0.671,)}
    assert found["source"].to_dict() == {"GSM8K": ("text",), "MT-bench": ("text",),
                                         "HumanEval": ("read off the figure",),
                                         "mean of three": ("read off the figure",)}


def test_what_the_text_says_of_its_tables():
    assert value("S1", "full", 20) - value("S1", "LoRA r=256", 20) == pytest.approx(0.039)
    at_20 = [value("S1", method, 20) for method in ("LoRA r=16", "LoRA r=64", "LoRA r=256", "full")]
    assert at_20 == sorted(at_20)
    at_6 = [value("S13", method, 6) for method in ("full", "LoRA r=256", "LoRA r=64", "LoRA r=16")]
    assert at_6 == sorted(at_6) == [0.621, 0.629, 0.647, 0.657]
    base = published_base().query("metric == 'mean of three'")["value"].max()
    assert published_curves().query("quantity == 'forgetting'")["value"].max() < base, "all forget something"


def test_a_reader_of_the_tables_cannot_change_them():
    for read in (published_curves, published_tulu, published_base):
        mine = read()
        mine.loc[:, "value"] = -1.0
        assert (read()["value"] > 0).all()


# --- the trade-off --------------------------------------------------------------------------------------------------

def points(*pairs: tuple[float, float], **columns) -> pd.DataFrame:
    """A table of (learning, remembering), with a duration that counts from 1."""
    return pd.DataFrame(pairs, columns=["learning", "remembering"]).assign(duration=range(1, len(pairs) + 1), **columns)


def test_learning_and_forgetting_side_by_side():
    table = tradeoff_table(published_curves())
    assert len(table) == 4 * 2 * (8 + 5)
    row = table.query("dataset == 'magicoder' and method == 'LoRA r=256' and duration == 4").iloc[0]
    assert (row["learning"], row["remembering"], row["metric"], row["r"]) == (0.498, 0.631, "HumanEval", 256)


def test_several_learning_metrics_are_refused():
    with pytest.raises(UsageError, match="tulu came with 3"):
        tradeoff_table(published_tulu())
    tulu = published_tulu()
    assert len(tradeoff_table(tulu[tulu["metric"].isin(["GSM8K", "mean of three"])])) == 12


def test_the_front_by_hand():
    """B is beaten by A on both axes, D equals A on one and is worse on the other, E is A once more."""
    table = points((3, 2), (2, 1), (1, 3), (3, 1), (3, 2), (math.nan, 9))
    table.index = list("ABCDEF")
    assert pareto_front(table).to_dict() == dict(A=True, B=False, C=True, D=False, E=True, F=False)


def test_points_compete_within_their_group_only():
    table = pd.concat([points((1, 1), dataset="a"), points((2, 2), dataset="b")])  # with a repeated index
    assert pareto_front(table).tolist() == [False, True]
    assert pareto_front(table, by=["dataset"]).tolist() == [True, True]


def test_other_columns_may_be_compared():
    assert pareto_front(pd.DataFrame({"p": [1, 2], "q": [1, 0]}), x="p", y="q").tolist() == [True, True]
    assert pareto_front(pd.DataFrame({"p": [1, 2], "q": [0, 0]}), x="p", y="q").tolist() == [False, True]


def test_remembering_is_read_along_the_frontier():
    """(0.2, 0.5) is beaten by (0.3, 0.7), so a level of 0.1 or 0.2 costs what 0.3 costs; 0.35 lies half-way."""
    curve = points((0.2, 0.5), (0.4, 0.6), (0.3, 0.7), (0.35, 0.55))
    assert [remembering_at(curve, level) for level in (0.1, 0.2, 0.3, 0.4)] == [0.7, 0.7, 0.7, 0.6]
    assert remembering_at(curve, 0.35) == pytest.approx(0.65)
    assert math.isnan(remembering_at(curve, 0.41)) and math.isnan(remembering_at(curve.head(0), 0.1))


def test_matched_learning_by_hand():
    """Both reach 0.4: LoRA's last point keeps 0.6, full is half-way between 0.5 and 0.3."""
    table = pd.concat([points((0.2, 0.7), (0.4, 0.6), dataset="a", method="LoRA r=1"),
                       points((0.3, 0.5), (0.5, 0.3), dataset="a", method="full")])
    (row,) = matched_learning(table).to_dict("records")
    assert (row["dataset"], row["method"], row["level"], row["remembering"]) == ("a", "LoRA r=1", 0.4, 0.6)
    assert row["remembering_against"] == pytest.approx(0.4) and row["difference"] == pytest.approx(0.2)


def test_levels_that_a_method_never_reaches_are_nan():
    table = pd.concat([points((0.2, 0.7), (0.4, 0.6), dataset="a", method="LoRA r=1"),
                       points((0.3, 0.5), (0.5, 0.3), dataset="a", method="full")])
    found = matched_learning(table, levels=[0.3, 0.5, 0.6])
    assert found["remembering"].tolist()[0] == pytest.approx(0.65)
    assert found["remembering"].isna().tolist() == [False, True, True]
    assert found["remembering_against"].isna().tolist() == [False, False, True]
    assert found["difference"].isna().tolist() == [False, True, True]


def test_each_seed_is_compared_with_the_same_seed():
    table = pd.concat([points((0.4, remembered), dataset="a", method=method, seed=seed)
                       for method, seed, remembered in (("full", 0, 0.5), ("full", 1, 0.1), ("LoRA r=1", 0, 0.6),
                                                        ("LoRA r=1", 1, 0.4))])
    found = matched_learning(table)
    assert found["seed"].tolist() == [0, 1]
    assert found["difference"].tolist() == pytest.approx([0.1, 0.3])


def test_a_data_set_without_full_fine_tuning_is_refused():
    with pytest.raises(UsageError, match="'full'"):
        matched_learning(points((1, 1), dataset="a", method="LoRA r=1"))


def test_the_papers_conclusion_at_matched_learning():
    """LoRA is the better trade-off for code at every rank; for math at r = 256 full fine-tuning is."""
    found = matched_learning(tradeoff_table(published_curves())).set_index(["dataset", "method"])["difference"]
    assert (found[["starcoder", "magicoder"]] > 0).all()
    assert found["openwebmath", "LoRA r=256"] < 0 and found["metamath", "LoRA r=256"] < 0
    # r = 256 learns .224 at 20B tokens and keeps .617; full lies between (.218, .599) and (.258, .583).
    by_hand = 0.617 - (0.599 + (0.224 - 0.218) / (0.258 - 0.218) * (0.583 - 0.599))
    assert found["starcoder", "LoRA r=256"] == pytest.approx(by_hand)
