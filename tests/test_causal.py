"""Causal runs through TRL on a tiny stand-in decoder, and the packaged decoder's real weights.

The functions that start with ``inside_`` run in the stand-in Hub's process, with the network shut off; the tests judge
what they return.
"""

import math
import tempfile
from pathlib import Path

import pytest
import standin_hub
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from utils.profiles.schema import ModelReference, TaskSizes
from utils.sources.models import resolve
from utils.training import train as training
from utils.training.checkpoints import checkpoint_path
from utils.training.data import tokenizer_of
from utils.training.spec import Method, RunSpec
from utils.training.weights import base_matrices, load_into, merged, prepare

METHODS = {"full": Method(kind="full"), "LoRA r=4": Method(kind="lora", r=4, lora_alpha=8)}
ROWS = 12  # three steps an epoch, so that the resumed run goes on in the middle of its second
STEPS, INTERRUPTED_AT, RESUMED_AT = 8, 5, 4  # resume points are saved every second step
MATRICES = 14  # seven linear kinds in each of two layers


@pytest.fixture(scope="module")
def answers(standin) -> dict[str, dict]:
    return standin.ask("test_causal", *(name for name in globals() if name.startswith("inside_")))


def _spec(method: Method, name: str = standin_hub.SMALL) -> RunSpec:
    base = ModelReference(source="hub", name=name)
    return RunSpec(base=base, base_revision=resolve(base).revision, task="metamath",
                   sizes=TaskSizes(train_rows=ROWS, max_length=96), method=method, learning_rate=1e-2,
                   schedule="linear", warmup_fraction=0.0, steps=STEPS, epochs=None, batch_size=4, checkpoints=4,
                   seed=1)


def _train(spec: RunSpec, folder: Path) -> dict:
    return training.train(spec, resolve(spec.base), folder)


def _tensors(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(checkpoint_path(folder, step))


def inside_training() -> dict:
    found = {}
    for label, method in METHODS.items():
        spec = _spec(method)
        with tempfile.TemporaryDirectory() as folder:
            result, tensors = _train(spec, Path(folder)), _tensors(Path(folder), STEPS)
        base = resolve(spec.base)
        model, _, measure = training._causal(spec, base)
        tuned = merged(base_matrices(base.folder), tensors, 0.0 if method.kind == "full" else method.scale)
        found[label] = {
            "before": measure(model.eval()), "rows": result["measured"]["metrics"], "status": result["run"]["status"],
            "revision": spec.base_revision, "moved": sum(not torch.equal(tuned[name], weight) for name, weight
                                                         in base_matrices(base.folder).items()),
            "kinds": sorted({name.split(".")[0] for name in tensors}), "merged": measure(load_into(model, tuned))}
    return found


@pytest.mark.parametrize("label", METHODS)
def test_loss_falls_and_the_merged_weights_have_the_measured_loss(answers, label):
    found = standin_hub.answer(answers, "inside_training")[label]
    assert (found["status"], found["revision"], found["moved"]) == ("done", standin_hub.COMMIT, MATRICES)
    assert [row["step"] for row in found["rows"]] == [2, 4, 6, 8]
    losses = [found["before"]["loss_nats_per_token"], *(row["loss_nats_per_token"] for row in found["rows"])]
    assert losses[0] > losses[1] > losses[-1] and losses[-1] < losses[0] - 0.5
    assert found["merged"]["loss_nats_per_token"] == pytest.approx(losses[-1], abs=1e-4)
    assert found["kinds"] == (["weight"] if label == "full" else ["lora_A", "lora_B"])


def inside_labels() -> dict:
    """Ids and labels per row: ours, and TRL's own processed data through its own collator."""
    import pandas as pd
    from datasets import Dataset

    from utils.sources.tasks import load_task
    from utils.training.trainer import common_arguments

    found = {}
    for name in (standin_hub.SMALL, standin_hub.LARGE):
        spec = _spec(METHODS["full"], name)
        base = resolve(spec.base)
        frame = pd.concat([load_task("metamath", spec.sizes).train, pd.DataFrame({
            "prompt": ["Question: Why?\nAnswer:", "Question: " + "How many? " * 60 + "\nAnswer:"],
            "completion": [" We add 2 and 3." * 60, " 12"]})], ignore_index=True)
        model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
        with tempfile.TemporaryDirectory() as folder:
            arguments = common_arguments(Path(folder), steps=1, batch_size=1, learning_rate=1e-3, warmup_fraction=0.0,
                                         schedule="linear", seed=0, save_every=1)
            rows = Dataset.from_pandas(frame, preserve_index=False)
            trainer = training._sft_trainer(model, rows, arguments, callbacks=[], base=base, spec=spec)
            theirs = [trainer.data_collator([row]) for row in trainer.train_dataset]
        ours = training.completion_batches(frame, base.folder, spec.sizes.max_length, batch_size=1)
        found[name] = {"rows": len(frame), "eos": tokenizer_of(base.folder).eos_token_id, **{
            whose: [[batch[part][0].tolist() for part in ("input_ids", "labels")] for batch in batches]
            for whose, batches in (("ours", ours), ("theirs", theirs))}}
        batches = training.completion_batches(frame, base.folder, spec.sizes.max_length, batch_size=4)
        found[name]["batched"] = [[ids[mask == 1].tolist(), labels[mask == 1].tolist()]
                                  for batch in batches for ids, labels, mask in
                                  zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True)]
    return found


@pytest.mark.parametrize("name", [standin_hub.SMALL, standin_hub.LARGE])
def test_labels_are_those_that_trl_trains_on(answers, name):
    found = standin_hub.answer(answers, "inside_labels")[name]
    assert found["ours"] == found["theirs"] == found["batched"]
    assert len(found["ours"]) == found["rows"] - 1  # a prompt that leaves no room for its answer is dropped by both
    ended = [ids[-1] == labels[-1] == found["eos"] for ids, labels in found["ours"]]
    assert ended.count(False) == 1  # the answer that was cut; all others learn where to end
    assert all(labels[0] == -100 and labels[-1] != -100 for _, labels in found["ours"])


def inside_merge() -> dict:
    """The largest difference between our merge of a checkpoint and PEFT's own, over all matrices."""
    from utils.training.targets import tuned_modules

    method, found = METHODS["LoRA r=4"], {}
    for name in (standin_hub.SMALL, standin_hub.LARGE):
        spec = _spec(method, name).model_copy(update={"steps": 2, "checkpoints": 1})
        base = resolve(spec.base)
        with tempfile.TemporaryDirectory() as folder:
            _train(spec, Path(folder))
            tensors = _tensors(Path(folder), 2)
        model = prepare(AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32), method, causal=True)
        with torch.no_grad():
            for short, module in tuned_modules(model).items():
                module.lora_A["default"].weight.copy_(tensors[f"lora_A.{short}"])
                module.lora_B["default"].weight.copy_(tensors[f"lora_B.{short}"])
        theirs = {short: module.weight for short, module in tuned_modules(model.merge_and_unload()).items()}
        ours, before = merged(base_matrices(base.folder), tensors, method.scale), base_matrices(base.folder)
        found[name] = {"names": sorted(ours) == sorted(theirs) and len(ours),
                       "difference": max((ours[short] - theirs[short]).abs().max().item() for short in ours),
                       "update": min((ours[short] - before[short]).abs().max().item() for short in ours)}
    return found


@pytest.mark.parametrize("name", [standin_hub.SMALL, standin_hub.LARGE])
def test_merged_weights_are_those_of_peft(answers, name):
    found = standin_hub.answer(answers, "inside_merge")[name]
    assert found["names"] == MATRICES
    assert found["difference"] < 1e-6 < 1e-4 < found["update"]


def inside_resume() -> dict:
    """A run that Ctrl-C stops after a resume point, done again, beside one that nothing stopped."""
    spec, begun = _spec(METHODS["LoRA r=4"]), []
    plain = training.Progress

    class Interrupting(plain):
        def on_train_begin(self, args, state, control, **kwargs):
            begun.append(state.global_step)
            super().on_train_begin(args, state, control, **kwargs)

        def on_step_end(self, args, state, control, **kwargs):
            if len(begun) == 1 and state.global_step == INTERRUPTED_AT:
                raise KeyboardInterrupt
            super().on_step_end(args, state, control, **kwargs)

    with tempfile.TemporaryDirectory() as scratch:
        whole, cut = Path(scratch) / "whole", Path(scratch) / "cut"
        expected = _train(spec, whole)["measured"]["metrics"]
        training.Progress = Interrupting
        try:
            _train(spec, cut)
        except KeyboardInterrupt:
            begun.append("interrupted")
        rows = _train(spec, cut)["measured"]["metrics"]
        training.Progress = plain
        ours, theirs = _tensors(cut, STEPS), _tensors(whole, STEPS)
        start = _tensors(whole, 2)
    return {"begun": begun, "steps": [row["step"] for row in rows], "names": sorted(ours) == sorted(theirs),
            "losses": [[row["loss_nats_per_token"] for row in side] for side in (rows, expected)],
            "difference": max((ours[name] - theirs[name]).abs().max().item() for name in theirs),
            "moved": max((start[name] - theirs[name]).abs().max().item() for name in theirs)}


def test_an_interrupted_run_goes_on_and_ends_as_if_nothing_had_happened(answers):
    found = standin_hub.answer(answers, "inside_resume")
    assert found["begun"] == [0, "interrupted", RESUMED_AT]
    assert found["steps"] == [2, 4, 6, 8] and found["names"]
    assert found["difference"] < 1e-6 < found["moved"]
    assert found["losses"][0] == pytest.approx(found["losses"][1], abs=1e-6)


def test_the_packaged_decoder_is_a_real_model_that_can_be_trained():
    """Loaded as its file is, a GGUF may keep packed blocks, and training then changes nothing."""
    base = resolve(ModelReference(source="packaged", name="smollm2"))
    model = AutoModelForCausalLM.from_pretrained(base.folder, use_safetensors=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    text = "The capital of France is Paris, and the river that runs through it is called the Seine."
    tokens = tokenizer_of(base.folder)(text, return_tensors="pt")["input_ids"]
    weight = model.model.layers[-1].self_attn.q_proj.weight
    before, losses = weight.detach().clone(), []
    model.requires_grad_(False)
    weight.requires_grad_(True)  # one matrix of the last layer is enough: its gradient passes no other
    optimiser = torch.optim.Adam([weight], lr=1e-3)
    for _ in range(3):
        loss = model(input_ids=tokens, labels=tokens).loss
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert math.isfinite(losses[0]) and losses[0] < 6 < math.log(model.config.vocab_size)
    assert not torch.equal(weight, before) and losses[-1] < losses[0]
