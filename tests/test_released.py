"""Released checkpoints, on stand-ins in folders: counts as defined, kept matrix by matrix, in bounded memory.

No test here knows whether the names in paper.yaml exist on the Hub; that takes a connection.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import standin_checkpoints as standin
import standin_hub
import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file
from standin_checkpoints import configured, edited, pickled, save_adapter
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from utils.course.intruders import analyse
from utils.errors import CourseError, UsageError
from utils.evaluation.language import text_loss
from utils.paths import ROOT
from utils.profiles import load_profile
from utils.profiles.schema import Profile, ReleasedPair, Spectra
from utils.reporting.measured import Measured
from utils.sources.pairs import identity, open_pair
from utils.spectra import count_intruders, random_ranges, similarity, thin_svd, vector_table
from utils.studies.released import figures as released_figures
from utils.studies.released import measure as released_measure
from utils.studies.released.measure import (
    released_counts,
    released_counts_by_k,
    released_interventions,
    released_similarity,
    released_vectors,
)

EPSILONS = (0.1, 0.3, 0.5, 0.7, 0.9)
SPECTRA = Spectra(k=10, epsilon=0.5, epsilons=EPSILONS, k_fractions=(0.05, 0.2, 0.5, 1.0), showcase_rank=8)
LAYOUT = {"layers": 6, "width": 160, "inner": 224}
UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LORA_COURSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A base and a fully tuned model of LLaMA's layout in two shards, float16, and an adapter over the base."""
    home = tmp_path_factory.mktemp("released")
    for name in ("base", "tuned"):
        standin.write_sharded_llama(home / name, tuned=name == "tuned", **LAYOUT)
        assert len(list((home / name).glob("*.safetensors"))) == 2
    plain = home / "plain"
    LlamaForCausalLM(LlamaConfig(vocab_size=60, hidden_size=160, intermediate_size=224, num_hidden_layers=2,
                                 num_attention_heads=4)).save_pretrained(plain)
    adapter = save_adapter(home / "adapter", plain, LlamaForCausalLM, r=4, lora_alpha=8,
                           target_modules=["q_proj", "up_proj"])
    return {"base": home / "base", "tuned": home / "tuned", "plain": plain, "adapter": adapter}


def pair_of(base, tuned, label: str = "full", group: str = "metamath", **settings) -> ReleasedPair:
    return ReleasedPair(group=group, label=label, base=str(base), tuned=str(tuned), **settings)


def profile_of(*pairs: ReleasedPair) -> Profile:
    return load_profile("laptop").model_copy(update={"released": pairs, "spectra": SPECTRA})


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """The matrices of a checkpoint in float64, read without the code under test."""
    return {name.removesuffix(".weight"): weight.double() for file in sorted(folder.glob("*.safetensors"))
            for name, weight in load_file(file).items() if "_proj" in name}


def definition(folders: dict[str, Path]):
    return vector_table(stored(folders["base"]), stored(folders["tuned"]))


# The profile ----------------------------------------------------------------------------------------------------------


def test_the_paper_profile_names_the_pairs_of_the_figure():
    content = yaml.safe_load((ROOT / "utils/profiles/paper.yaml").read_text(encoding="utf-8"))["released"]
    pairs = TypeAdapter(tuple[ReleasedPair, ...]).validate_python(content)
    by_group = {group: [pair for pair in pairs if pair.group == group] for group in ("alpaca", "metamath", "magicoder")}
    assert sum(map(len, by_group.values())) == len(pairs) == 12
    assert [pair.label for pair in by_group["alpaca"]] == ["full", "full #2", "LoRA r=16", "QLoRA r=64"]
    for group in ("metamath", "magicoder"):
        assert [pair.label for pair in by_group[group]] == ["full", "LoRA r=16", "LoRA r=64", "LoRA r=256"]
    for pair in pairs:
        rank = re.search(r"rank-(\d+)", pair.tuned)
        assert rank is None or pair.label == f"LoRA r={rank[1]}"
        assert pair.base == ("huggyllama/llama-7b" if pair.group == "alpaca" else "NousResearch/Llama-2-7b-hf")
        assert "fnetuning" not in pair.tuned and pair.tuned.count("/") == 1


def test_a_label_names_one_line(folders):
    twice = [pair_of(folders["base"], folders["tuned"]).model_dump()] * 2
    field = Profile.model_fields["released"]
    with pytest.raises(ValidationError, match="two pairs of group 'metamath' are labelled 'full'"):
        TypeAdapter(field.rebuild_annotation()).validate_python(twice)
    assert load_profile("laptop").released == ()


def assert_same(table: pd.DataFrame, other: pd.DataFrame) -> None:
    """Equal but for the last bits, which products of unaligned memory do not share."""
    pd.testing.assert_frame_equal(table, other, rtol=1e-8, atol=1e-9)


# Counts ---------------------------------------------------------------------------------------------------------------


def test_the_vectors_are_those_of_the_definition(folders):
    found = released_vectors(pair_of(folders["base"], folders["tuned"]), SPECTRA)
    exact = definition(folders).query("index <= 10")
    both = found.merge(exact, on=["matrix", "index"], suffixes=("", "_exact"))
    assert len(both) == len(found) == 6 * 7 * 10
    np.testing.assert_allclose(both["max_cosine"], both["max_cosine_exact"], atol=1e-7)
    np.testing.assert_allclose(both["singular_value"], both["singular_value_exact"], rtol=1e-9)
    assert set(found["group"]) == {"metamath"} and set(found["method"]) == {"full"} and set(found["r"]) == {0}
    assert set(found["layer"]) == set(range(6))
    assert set(found["type"]) == {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}
    assert found["precision_floor"].between(0, 1).all() and (found["precision_floor"] > 0).all()


def test_the_counts_are_those_of_the_definition(folders):
    pair = pair_of(folders["base"], folders["tuned"])
    counts = released_counts(profile_of(pair))
    exact = count_intruders(definition(folders), EPSILONS, [10])
    assert counts["n_intruders"].tolist() == exact["n_intruders"].tolist()
    assert counts["n_intruders"].nunique() > 2, "nothing was told apart"
    assert counts["epsilon"].tolist() == list(EPSILONS) and set(counts["n_matrices"]) == {42}
    assert set(counts["profile"]) == {"laptop"} and (counts["within_floor"] >= 0).all()
    report = analyse(pair.base, pair.tuned, epsilons=list(EPSILONS))
    assert counts["n_intruders"].tolist() == list(report["total"].values())
    assert counts["within_floor"].sum() <= report["within_floor"], "the report takes the largest floor of a matrix"


@pytest.mark.parametrize("fraction", [1.0, 0.2])
def test_counts_by_k_are_those_of_the_definition(folders, fraction):
    """With the vectors beyond the largest fraction left out, a fraction is still one of all of a matrix's vectors."""
    counts = released_counts_by_k(profile_of(pair_of(folders["base"], folders["tuned"])), fraction=fraction,
                                  matrices=r"layers\.[13]\.")
    exact = definition(folders)
    exact = exact[exact["matrix"].str.contains(r"layers\.[13]\.")]
    fractions = [k for k in SPECTRA.k_fractions if k <= fraction]
    wanted = count_intruders(exact, [0.5], fractions)
    assert counts[["k", "n_intruders"]].values.tolist() == wanted[["k", "n_intruders"]].values.tolist()
    assert set(counts["n_matrices"]) == {14} and counts["n_intruders"].is_monotonic_increasing


def test_a_fraction_below_the_grid_is_refused(folders):
    with pytest.raises(UsageError, match="0.01 lies below all .* the smallest is 0.05"):
        released_counts_by_k(profile_of(pair_of(folders["base"], folders["tuned"])), fraction=0.01)


def test_an_adapter_is_counted_over_its_base(folders, tmp_path):
    """Its rank is that of its factors, whatever the label says; a pickle is read where the pair allows it."""
    before, after = standin.merged_matrices(folders["plain"], folders["adapter"], LlamaForCausalLM)
    changed = [name for name in before if "q_proj" in name or "up_proj" in name]
    exact = count_intruders(vector_table({name: torch.tensor(before[name]) for name in changed},
                                         {name: torch.tensor(after[name]) for name in changed}), EPSILONS, [10])
    old = pickled(folders["adapter"], tmp_path / "pickled")
    counts = released_counts(profile_of(pair_of(folders["plain"], folders["adapter"], "LoRA r=16"),
                                        pair_of(folders["plain"], old, "pickled", allow_pickle=True)))
    assert counts["r"].tolist() == [4] * 10
    for _, part in counts.groupby("method"):
        assert part["n_intruders"].tolist() == exact["n_intruders"].tolist()
    assert counts["n_intruders"].max() > 0


def test_the_similarity_is_that_of_two_svds(folders):
    pair = pair_of(folders["base"], folders["tuned"])
    before, after = stored(folders["base"]), stored(folders["tuned"])
    for matrix in (UP, UP.replace("up", "down"), "model.layers.0.self_attn.q_proj"):
        exact = similarity(thin_svd(after[matrix]), thin_svd(before[matrix]), top=12)[:, :12]
        np.testing.assert_allclose(released_similarity(pair, matrix, 12), exact, atol=1e-6)
    assert released_similarity(pair, UP, 10_000).shape == (160, 160)
    with pytest.raises(UsageError, match="no matrix 'q' that is counted; it has 'model.layers.0"):
        released_similarity(pair, "q")


# What is kept ---------------------------------------------------------------------------------------------------------


class Counted:
    """Counts the matrices that are computed, and stops after some of them as an interrupt would."""

    def __init__(self, monkeypatch, stop_after: int | None = None):
        self.names, self.stop_after, plain = [], stop_after, released_measure._matrix_vectors

        def compute(opened, name, *rest, **named):
            if len(self.names) == self.stop_after:
                raise KeyboardInterrupt
            self.names.append(name)
            return plain(opened, name, *rest, **named)

        monkeypatch.setattr(released_measure, "_matrix_vectors", compute)


def kept_files(cache: Path) -> list[Path]:
    return sorted((cache / "released").glob("*/*.parquet"))


def test_an_interrupted_analysis_goes_on_where_it_stopped(folders, cache, monkeypatch, capsys):
    pair = pair_of(folders["base"], folders["tuned"])
    whole = released_vectors(pair, SPECTRA)
    shutil.rmtree(cache / "released")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Counted(patch, stop_after=15)
        released_vectors(pair, SPECTRA)
    assert len(kept_files(cache)) == 15 and not list((cache / "released").rglob("*.part"))
    capsys.readouterr()
    with monkeypatch.context() as patch:
        computed = Counted(patch).names
        again = released_vectors(pair, SPECTRA)
    assert len(computed) == 27 and "27 of 42 matrices to compute" in capsys.readouterr().out
    assert_same(again, whole)
    with monkeypatch.context() as patch:
        computed = Counted(patch).names
        assert released_vectors(pair, SPECTRA).equals(again) and computed == []
    assert capsys.readouterr().out == ""


def test_a_few_matrices_are_the_beginning_of_all(folders, monkeypatch):
    pair = pair_of(folders["base"], folders["tuned"])
    few = released_vectors(pair, SPECTRA, matrices=r"layers\.0\.")
    assert few["matrix"].nunique() == 7
    computed = Counted(monkeypatch).names
    released_vectors(pair, SPECTRA)
    assert len(computed) == 35 and not any("layers.0." in name for name in computed)


@pytest.mark.parametrize("damage", ["emptied", "cut", "a bit", "another matrix"])
def test_a_kept_file_that_was_damaged_is_computed_again(folders, cache, monkeypatch, damage):
    pair = pair_of(folders["base"], folders["tuned"])
    whole = released_vectors(pair, SPECTRA)
    file, other = kept_files(cache)[3], kept_files(cache)[4]
    content = file.read_bytes()
    spoiled = bytearray(content)
    spoiled[len(content) // 2] ^= 1
    file.write_bytes({"emptied": b"", "cut": content[:-40], "a bit": bytes(spoiled),
                      "another matrix": other.read_bytes()}[damage])
    computed = Counted(monkeypatch).names
    again = released_vectors(pair, SPECTRA)
    assert computed == [file.stem]
    assert_same(again, whole)
    assert released_vectors(pair, SPECTRA).equals(again) and computed == [file.stem]


def test_other_settings_or_weights_are_never_answered_from_the_kept_ones(folders, tmp_path, monkeypatch):
    pair = pair_of(folders["base"], folders["tuned"])
    released_vectors(pair, SPECTRA, matrices="layers.0")
    computed = Counted(monkeypatch).names
    released_vectors(pair, SPECTRA.model_copy(update={"epsilons": (0.2,)}), matrices="layers.0")
    assert len(computed) == 7
    released_vectors(pair, SPECTRA, 4, matrices="layers.0")
    assert len(computed) == 14
    shutil.copytree(folders["tuned"], tmp_path / "tuned")
    shard = sorted((tmp_path / "tuned").glob("*.safetensors"))[0]
    spoiled = bytearray(shard.read_bytes())
    spoiled[-1] ^= 1
    shard.write_bytes(spoiled)
    before, after = (identity(open_pair(str(folders["base"]), str(folder)).changed)
                     for folder in (folders["tuned"], tmp_path / "tuned"))
    assert before != after


def test_a_snapshot_is_known_by_its_commit(folders, tmp_path):
    commit = "0123456789abcdef" * 2 + "01234567"
    snapshot = shutil.copytree(folders["tuned"], tmp_path / "models--a--b" / "snapshots" / commit)
    assert identity(open_pair(str(folders["base"]), str(snapshot)).changed) == commit


# Pairs that cannot be had ---------------------------------------------------------------------------------------------


def without_layer_number(tensors: dict) -> None:
    for name in list(tensors):
        tensors[name.replace("layers.", "layer_")] = tensors.pop(name)


def sentence_of(output: str, label: str) -> str:
    (line,) = [line for line in output.splitlines() if f", {label}: left out." in line]
    assert line.endswith((".", "?")) and "Traceback" not in line
    return line


def test_a_pair_that_cannot_be_had_is_said_and_left_out(folders, tmp_path, monkeypatch, capsys):
    """No network, a missing folder, a pickle without leave, another architecture, NaN: the other pairs are counted."""
    monkeypatch.setattr("utils.sources.hub.snapshot_download", unreachable)
    shard = sorted(folders["tuned"].glob("*.safetensors"))[0].name

    def not_a_number(tensors: dict) -> None:
        tensors[f"{UP}.weight"][0, 0] = float("nan")

    shutil.copytree(folders["tuned"], tmp_path / "nan")
    tensors = load_file(tmp_path / "nan" / shard)
    not_a_number(tensors)
    standin.save_file(tensors, tmp_path / "nan" / shard)
    pickle = pickled(folders["adapter"], tmp_path / "pickled")
    cases = {
        "no network": (folders["base"], "someone/full-model", ["someone/full-model", "neither in the cache nor"]),
        "missing": (folders["base"], tmp_path / "nowhere", ["There is no folder", "nowhere"]),
        "pickled": (folders["plain"], pickle, ["adapter_model.bin", "holds only pickled weights"]),
        "other": (folders["plain"], folders["tuned"], ["also has 'model.layers.2.", "are they of one architecture?"]),
        "nan": (folders["base"], tmp_path / "nan", [UP, "NaN or infinite"]),
        "no base": ("decapoda-research/llama-7b-hf", folders["adapter"],
                    [str(folders["adapter"]), "is an adapter", "decapoda-research/llama-7b-hf", "not at hand"]),
        "rewritten": (folders["plain"], configured(folders["adapter"], tmp_path / "pissa", init_lora_weights="pissa"),
                      ["'pissa'", "original base", "merge_and_unload", "path_initial_model_for_weight_conversion"]),
        "names": (folders["plain"], edited(folders["plain"], tmp_path / "names", without_layer_number),
                  ["'model.layer_0.", "more", "a name like 'model.layers.0.mlp.up_proj.weight'", "rename"]),
    }
    pairs = [pair_of(base, tuned, label) for label, (base, tuned, _) in cases.items()]
    counts = released_counts(profile_of(*pairs, pair_of(folders["plain"], folders["adapter"], "good")))
    assert set(counts["method"]) == {"good"}
    printed = capsys.readouterr().out
    for label, (_, _, parts) in cases.items():
        sentence = sentence_of(printed, label)
        assert [part for part in parts if part not in sentence] == [], sentence
    assert released_counts(profile_of(pairs[0])).empty and released_counts(profile_of()).empty


def unreachable(name: str, **settings):
    from huggingface_hub.errors import LocalEntryNotFoundError

    raise LocalEntryNotFoundError("no network")


def test_a_revision_is_asked_for_and_the_base_never_as_a_pickle(folders, monkeypatch):
    """A base has its weights twice on the Hub; leave to read the tuned pickle must not download the base's."""
    asked = {}

    def download(name: str, *, revision=None, allow_patterns: list[str]) -> str:
        asked[name] = (revision, "*.bin" in allow_patterns)
        return str(folders["base" if "base" in name else "tuned"])

    monkeypatch.setattr("utils.sources.hub.snapshot_download", download)
    released_vectors(pair_of("some/base", "some/tuned", base_revision="v1", tuned_revision="refs/pr/2",
                             allow_pickle=True), SPECTRA, matrices=r"layers\.0\.")
    assert asked == {"some/base": ("v1", False), "some/tuned": ("refs/pr/2", True)}


def test_an_adapter_whose_names_meet_nothing_lists_both_sides(folders, tmp_path):
    """Neither its modules nor the base's are guessed at."""
    def renamed(tensors: dict) -> None:
        for name in list(tensors):
            tensors[re.sub(r"layers\.(\d)\.", r"layer_\1.", name)] = tensors.pop(name)

    adapter = edited(folders["adapter"], tmp_path / "renamed", renamed)
    with pytest.raises(UsageError, match="No matrix is left to compare: .*'model.layer_0.*'model.layers.0.*") as caught:
        open_pair(str(folders["plain"]), str(adapter))
    assert "\n" not in str(caught.value)


def test_a_pattern_that_is_none_is_refused(folders):
    with pytest.raises(UsageError, match=r"'\(' is not a regular expression"):
        released_vectors(pair_of(folders["base"], folders["tuned"]), SPECTRA, matrices="(")


def test_other_architectures_have_layers_and_types(tmp_path):
    """Where no rule of the course's own names a matrix, what surrounds the layer's number does."""
    standin.build("t5").save_pretrained(tmp_path / "base")
    standin.tune(standin.build("t5")).save_pretrained(tmp_path / "tuned")
    found = released_vectors(pair_of(tmp_path / "base", tmp_path / "tuned"), SPECTRA, matrices=r"block\.1\.")
    assert set(found["layer"]) == {1} and found["type"].nunique() == found["matrix"].nunique() > 10


def inside_hub_pair() -> dict:
    """Runs in the process that sees only the stand-in Hub."""
    pair = ReleasedPair(group="g", label="full", base=standin_hub.ROBERTA, tuned=standin_hub.SHARDED)
    counts = released_counts(profile_of(pair, pair_of(standin_hub.ROBERTA, "nobody/unknown", "unknown")))
    folder = next((Path(os.environ["LORA_COURSE_CACHE"]) / "released").iterdir())
    tag = json.loads(pyarrow.parquet.read_schema(next(folder.iterdir())).metadata[b"tag"])
    return {"counts": counts[["method", "epsilon", "n_intruders"]].values.tolist(), "base": tag["settings"]["base"]}


def test_hub_names_are_read_with_the_network_shut_off(standin, tmp_path):
    answers = standin.ask("test_released", "inside_hub_pair", LORA_COURSE_CACHE=str(tmp_path / "cache"))
    found = standin_hub.answer(answers, "inside_hub_pair")
    assert found["counts"] == [["full", epsilon, 0] for epsilon in EPSILONS]
    assert found["base"] == [standin_hub.ROBERTA, standin_hub.COMMIT]


# Memory ---------------------------------------------------------------------------------------------------------------

_MEASURED = r"""
import json, re, sys
import torch
from utils.profiles.schema import ReleasedPair, Spectra
from utils.studies.released.measure import released_vectors
from utils.sources import weight_file

def peak():
    return int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) * 1024

weight_file.KEPT_OPEN_BYTES = 0  # so that shards are opened for each matrix, as those of 5 GB are
torch.linalg.eigh(torch.eye(64, dtype=torch.float64) @ torch.eye(64, dtype=torch.float64))
before = peak()
spectra = Spectra(k=10, epsilon=0.5, epsilons=(0.3, 0.5, 0.7), k_fractions=(1.0,), showcase_rank=8)
table = released_vectors(ReleasedPair(group="g", label="full", base=sys.argv[1], tuned=sys.argv[2]), spectra)
print(json.dumps({"peak": peak() - before, "matrices": table["matrix"].nunique(),
                  "computed": sorted(set(table["computed_by"]))}))
"""


@pytest.mark.process
def test_memory_is_that_of_one_matrix_and_not_of_a_model(tmp_path):
    """Peak memory over that of the process after its imports stays under twice what one matrix needs.

    What one matrix (out, in), q = min(out, in), needs in float64: W0 and Wt, 2 out in numbers; and of the core, whose
    largest moment is an eigendecomposition of a q x q Gram matrix, that matrix, its eigenvectors, and LAPACK's work
    space of two more: 4 q^2. The largest matrix of the model counts. The pair itself is more than twice that bound.

    The peak is VmHWM of a process of its own: its ru_maxrss would start at what pytest had when it started the process.
    Two things are set so that small matrices are treated as those of a 7B model are: shards are not kept open, and
    freed arrays of 1 MB and more go back to the system at once (glibc keeps freed ones of up to 32 MB for reuse).
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells the peak memory of a process")
    width, inner = 640, 1728
    weights = sum(standin.write_sharded_llama(tmp_path / name, layers=8, width=width, inner=inner,
                                              tuned=name == "tuned") for name in ("base", "tuned"))
    done = subprocess.run([sys.executable, "-c", _MEASURED, str(tmp_path / "base"), str(tmp_path / "tuned")], cwd=ROOT,
                          env=os.environ | {"LORA_COURSE_CACHE": str(tmp_path / "cache"),
                                            "MALLOC_MMAP_THRESHOLD_": "1000000"},
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    bound = 2 * 8 * (2 * inner * width + 4 * width**2)
    assert found["matrices"] == 8 * 7
    assert found["peak"] < bound < 2 * weights / 2, (found, bound, 2 * weights)
    assert found["computed"] == ["leading-vectors"]


# Interventions --------------------------------------------------------------------------------------------------------

TEXTS = ["the film is a quiet and moving story about a man", "a dull , empty film", "one of the best films of the year"]


@pytest.fixture(scope="module")
def models(tiny_base, tmp_path_factory) -> dict[str, Path]:
    """A causal base with a tokenizer whose padding token has no row, as Llama-2's; a tuned copy; an adapter."""
    home, tokenizer = tmp_path_factory.mktemp("causal"), AutoTokenizer.from_pretrained(tiny_base)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=144, intermediate_size=192,
                                         num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64))
    tokenizer.eos_token = "[SEP]"
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert tokenizer.pad_token_id == model.config.vocab_size
    model.save_pretrained(home / "base")
    tokenizer.save_pretrained(home / "base")
    standin.tune(model).save_pretrained(home / "full")
    save_adapter(home / "adapter", home / "base", LlamaForCausalLM, r=4, lora_alpha=16,
                 target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    return {name: home / name for name in ("base", "full", "adapter")}


def loss_of(model, folder: Path) -> float:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    return text_loss(model, tokenizer, TEXTS, tokens=32)["loss_nats_per_token"]


def tuned_model(models: dict[str, Path], which: str):
    if which == "full":
        return LlamaForCausalLM.from_pretrained(models["full"], dtype=torch.float32)
    from peft import PeftModel

    base = LlamaForCausalLM.from_pretrained(models["base"], dtype=torch.float32)
    return PeftModel.from_pretrained(base, models["adapter"]).merge_and_unload()


@torch.no_grad()
def by_hand(model, before: dict[str, np.ndarray], factor: float) -> int:
    """Scale the first intruder of each matrix of `model` by two plain SVDs; how many had one."""
    changed = 0
    for name, module in standin._linear_modules(model).items():
        weight = module.weight.double().numpy()
        u, s, vt = np.linalg.svd(weight, full_matrices=False)
        places = np.flatnonzero(standin.definition(before[name], weight)[1] < 0.5)
        if len(places):
            place = places[0]
            module.weight.copy_(torch.tensor(weight + (factor - 1) * s[place] * np.outer(u[:, place], vt[place])))
            changed += 1
    return changed


@pytest.mark.parametrize("which", ["full", "adapter"])
def test_interventions_change_the_loss_as_scaling_by_hand_does(models, which, monkeypatch):
    pair = pair_of(models["base"], models[which], which)
    table = released_interventions(pair, TEXTS, SPECTRA, lambdas=[2.0, 0, 1], tokens=32,
                                   batch_size=2).set_index("lambda")
    base = LlamaForCausalLM.from_pretrained(models["base"], dtype=torch.float32)
    before = standin.matrices(base)
    assert table["base_loss_nats_per_token"].unique() == pytest.approx(loss_of(base, models["base"]), abs=1e-5)
    for factor, row in table.iterrows():
        model = tuned_model(models, which)
        assert by_hand(model, before, factor) == row["n_scaled"] > 0
        assert row["loss_nats_per_token"] == pytest.approx(loss_of(model, models["base"]), abs=1e-4)
    assert table["loss_nats_per_token"].nunique() == 3 and set(table["r"]) == {0 if which == "full" else 4}
    np.testing.assert_allclose(table["forgetting"], table["loss_nats_per_token"] - table["base_loss_nats_per_token"])
    monkeypatch.setattr(released_measure, "_loaded", None)  # a loss that is kept needs no model
    again = released_interventions(pair, TEXTS, SPECTRA, lambdas=[0, 1], tokens=32, batch_size=2)
    assert again["loss_nats_per_token"].tolist() == table.loc[[0, 1], "loss_nats_per_token"].tolist()


def test_without_intruders_there_is_nothing_to_scale(models):
    pair = pair_of(models["base"], models["base"])
    table = released_interventions(pair, TEXTS, SPECTRA, lambdas=[0, 1, 2], tokens=32)
    assert table[["lambda", "n_scaled"]].values.tolist() == [[1.0, 0]]
    assert table["forgetting"].item() == 0


def test_a_factor_out_of_range_and_a_model_without_tokenizer_are_sentences(models, folders, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="lambda must lie between"):
        released_interventions(pair_of(models["base"], models["full"]), TEXTS, SPECTRA, lambdas=[-1])
    with pytest.raises(CourseError, match="plain could not be loaded as a tokenizer"):
        released_interventions(pair_of(folders["plain"], folders["adapter"]), TEXTS, SPECTRA, lambdas=[1])
    odd = shutil.copytree(models["base"], tmp_path / "odd")
    (odd / "config.json").write_text('{"model_type": "no-such-model"}')  # one that transformers refuses at once
    monkeypatch.setattr(released_measure, "_tokenizer", lambda opened: None)
    with pytest.raises(CourseError, match="odd could not be loaded as a causal language model"):
        released_interventions(pair_of(odd, models["adapter"]), TEXTS, SPECTRA, lambdas=[1])


# Figures --------------------------------------------------------------------------------------------------------------


def test_the_figures_have_a_panel_and_a_legend_for_each_group(folders, models):
    profile = profile_of(pair_of(folders["base"], folders["tuned"], "full", "alpaca"),
                         pair_of(folders["base"], folders["tuned"], "full #2", "alpaca"),
                         pair_of(folders["plain"], folders["adapter"], "LoRA r=4"))
    counts = Measured("released_counts", profile, (0,), released_counts(profile))
    drawn = released_figures.released(counts, chance=random_ranges([(4096, 4096)]))
    figure = drawn.figure
    assert [axis.get_title() for axis in figure.axes] == ["alpaca", "metamath"] and "alpaca full #2" in drawn.alt
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "full", "full #2", "LoRA r=4", "a random direction in 4096 dimensions (5 to 95 %)"}
    first, second = (line for line in figure.axes[0].lines if not line.get_label().startswith("_"))
    assert first.get_color() == second.get_color() == "black" and first.get_linestyle() != second.get_linestyle()
    by_k = released_counts_by_k(profile, fraction=0.2, matrices=r"layers\.0\.")
    axis = released_figures.released_by_k(profile, by_k).figure.axes[0]
    assert axis.get_xlabel() == "share of the tuned vectors examined"
    scaling = released_interventions(pair_of(models["base"], models["full"]), TEXTS, SPECTRA, lambdas=[0, 1], tokens=32)
    scaled = released_figures.released_scaling(profile, scaling)
    assert {text.get_text() for text in scaled.figure.legends[0].get_texts()} == {"full", "base"}
    assert "nats per token at" in scaled.alt
