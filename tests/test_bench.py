"""The benchmark measures what it says it does: the same counts two ways, real spectra, ratios with their spread."""

import numpy as np
import pytest
import torch

from utils.course import bench
from utils.course.arguments import build_parser
from utils.course.cli import RUNS, main
from utils.sources.checkpoints import open_checkpoint
from utils.sources.pairs import matched_names
from utils.spectra.checkpoint_pairs import checkpoint_pairs
from utils.spectra.fast import LowRankUpdate


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One layer of an encoder 144 wide, with a model tuned by each kind of update."""
    folder = tmp_path_factory.mktemp("bench")
    bench.write_models(folder, layers=1, width=144)
    return folder


def test_shapes_and_norms_are_what_the_table_claims(models):
    """Six kinds a layer, RoBERTa's proportions, each update of its stated norm, LoRA of its stated rank."""
    base = open_checkpoint(str(models / "base"))
    assert [base.entries[name].shape for name in base.entries if "intermediate" in name] == [(576, 144)]
    assert len(base.entries) == 6
    for case, norm in bench.NORMS.items():
        tuned = open_checkpoint(str(models / case))
        pairs = list(checkpoint_pairs(base, tuned, matched_names(base, tuned)))
        assert len(pairs) == 6
        for pair in pairs:
            weight, other = pair.load()
            low_rank = isinstance(other, LowRankUpdate)
            update = other.added_to(weight) - weight if low_rank else other - weight
            assert (update.norm() / weight.norm()).item() == pytest.approx(norm, rel=1e-3)
            assert low_rank == case.startswith("LoRA")
            if low_rank:
                assert f"r={len(other.a)}" in case


def test_the_base_has_the_spectra_of_real_weights(models):
    """The fast core's cost depends on how close singular values lie, so they are not made up."""
    base = open_checkpoint(str(models / "base"))
    real = bench._real_spectra()["attention.self.query"][0]
    stretched = np.interp(np.linspace(0, 1, 144), np.linspace(0, 1, len(real)), real)
    found = torch.linalg.svdvals(base.read("encoder.layer.0.attention.self.query")).numpy()
    assert np.allclose(found, stretched, rtol=1e-3)


def test_counts_are_compared_with_float64_and_a_wrong_one_would_show(models, monkeypatch):
    """`different_counts` is 0 for the fast core, and not 0 once its cosines are off."""
    base = open_checkpoint(str(models / "base"))
    tuned = open_checkpoint(str(models / "LoRA r=8"))
    pairs = list(checkpoint_pairs(base, tuned, matched_names(base, tuned)))
    found = bench._fast(pairs, models / "cache")
    truth = [bench.thin_svd(pair.load()[0].double()) for pair in pairs]
    assert sum(bench._different(one, pair, svd) for one, pair, svd in zip(found, pairs, truth, strict=True)) == 0
    worse = found[0]._replace(max_cosines=torch.zeros(10, dtype=torch.float64))
    assert bench._different(worse, pairs[0], truth[0]) > 0


def test_the_whole_benchmark_runs_and_its_table_says_where(tmp_path, monkeypatch):
    """A row for each comparison, cold and warm; the spread holds the median; nothing is left behind."""
    monkeypatch.setattr(bench.tempfile, "mkdtemp", lambda prefix: str(tmp_path / "work"))
    result = bench.bench(["counts", "pseudo_loss"], rounds=2, layers=1, width=144, passages=1)
    assert [row["what"].startswith("count") for row in result["rows"]] == [True] * 8 + [False]
    assert all(row["ratio_min"] <= row["ratio"] <= row["ratio_max"] and row["seconds"] > 0 for row in result["rows"])
    assert [row["different_counts"] for row in result["rows"][:8]] == [0] * 8
    assert not (tmp_path / "work").exists()
    table = bench.bench_table(result)
    assert table.count("\n| ") == 9 and result["provenance"]["counts"]["date"][:10] in table and "epsilons: 0." in table


def test_what_is_measured_again_takes_the_place_of_what_was_and_the_rest_stays():
    made = {"date": "2026-11-30", "packages": {"torch": "2"}, "hardware": {"device": "cpu", "threads": 2, "cpu": "x"}}
    row = {"what": "a", "against": "b", "plain_seconds": 2, "seconds": 1, "ratio": 2, "ratio_min": 2, "ratio_max": 2,
           "rounds": 3}
    side = {"ratio_on_four": 2.5, "update_difference": 0.0123, "metric_difference": 0.04}
    runs = row | side | {"comparison": "side_by_side", "rounds": 1}
    old = {"setting": {"epsilons": [0.5]},
           "provenance": {"counts": made | {"date": "2026-11-02"}, "side_by_side": made},
           "rows": [row | {"comparison": "counts"}, runs | {"what": "old"}]}
    new = old | {"provenance": {"side_by_side": made}, "rows": [runs | {"what": "new"}]}
    both = bench.with_earlier(new, old)
    assert [one["what"] for one in both["rows"]] == ["a", "new"]
    table = bench.bench_table(both)
    assert "2026-11-02, torch 2, rounds: 3: counts." in table
    assert "2026-11-30, torch 2, rounds: 1: side by side." in table
    assert "2.5 times as fast" in table and "at most 0.01 of its norm" in table


def test_pseudo_loss_is_the_same_both_ways():
    """The row would raise if one forward pass per token gave another number than the batched way."""
    row = bench.pseudo_loss_row(rounds=1, passages=1)
    assert row["ratio"] > 0


def test_a_row_is_made_of_ratios_within_a_round():
    """The median of ratios, not the ratio of medians: a machine that slows down between rounds must not show."""
    row = bench._row("x", "y", plain=[1.0, 10.0, 4.0], fast=[0.1, 1.0, 0.2])
    assert (row["ratio"], row["ratio_min"], row["ratio_max"]) == (10.0, 10.0, 20.0)
    assert (row["plain_seconds"], row["seconds"]) == (4.0, 0.2)


def test_a_quick_benchmark_is_never_published(capsys):
    """Its model is too small to say anything."""
    assert main(["bench", "--quick", "--publish"]) == 2
    assert "not published" in capsys.readouterr().err


def test_the_command_knows_every_comparison():
    """Its words are written down once more there: importing torch for them would make every command slow."""
    parser = build_parser("course", "", RUNS)
    assert parser.parse_args(["bench", "--only", *bench.COMPARISONS]).only == list(bench.COMPARISONS)
