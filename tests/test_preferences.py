"""Preference tuning: templates and masks, pairs, log-probabilities by hand, TRL's trainers, keys, tables."""

import json
import math
from itertools import pairwise
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from datasets import Dataset

from utils.errors import CourseError, UsageError
from utils.files import canonical_json
from utils.profiles import load_profile
from utils.profiles.schema import ModelReference, Preferences, TaskSizes
from utils.reporting.measured import Measured
from utils.sealed import seal
from utils.sources import preferences as sources
from utils.sources.domains import mathematics_questions
from utils.sources.models import resolve
from utils.sources.tasks import load_task, task
from utils.studies.preferences import figures as preferences_figures
from utils.studies.preferences import judge
from utils.studies.preferences import measure as preferences_measure
from utils.studies.preferences import measure as reporting
from utils.training import preferences as module
from utils.training import store as store_module
from utils.training import train as train_module
from utils.training.data import tokenizer_of
from utils.training.preferences import (
    agreement,
    chat_tokenizer,
    encoded,
    fitting,
    held_out_pairs,
    pair_batches,
    pair_logps,
    scores,
)
from utils.training.spec import Method, RunSpec, preference_specs
from utils.training.store import RunStore
from utils.training.trainer import common_arguments
from utils.training.weights import base_matrices, load_into, prepare

FULL, LORA = Method(kind="full"), Method(kind="lora", r=4, lora_alpha=8)
POLICY = ModelReference(source="packaged", name="small-decoder")
JUDGE = ModelReference(source="packaged", name="minilm")
SIZES = TaskSizes(train_rows=16, test_rows=8, max_length=96)
TALK = [{"role": "user", "content": "What is 2 + 3?"}]
FIVE = [{"role": "assistant", "content": "5"}]


@pytest.fixture(scope="module")
def policy():
    return resolve(POLICY)


@pytest.fixture(scope="module")
def tokenizer(policy):
    return chat_tokenizer(policy.folder, "question-answer")


def spec(objective: str, **changes) -> RunSpec:
    """Two steps of four pairs; a reward model on MiniLM, all else on the small decoder."""
    base = JUDGE if objective == "reward" else POLICY
    return RunSpec(**{
        "base": base, "base_revision": resolve(base).revision, "task": "answers", "sizes": SIZES, "method": FULL,
        "learning_rate": 1e-3, "schedule": "linear", "warmup_fraction": 0.0, "steps": 2, "epochs": None,
        "batch_size": 4, "checkpoints": 2, "seed": 0, "objective": objective,
        "template": "separated" if objective == "reward" else "question-answer",
        "beta": 0.1 if objective in ("dpo", "orpo", "online_dpo") else None} | changes)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return RunStore(tmp_path_factory.mktemp("preferences") / "runs")


# --- templates and masks --------------------------------------------------------------------------------------------


def test_a_conversation_under_the_decoder_s_template(tokenizer):
    text = tokenizer.apply_chat_template(TALK + FIVE, tokenize=False)
    assert text == "<|endoftext|>Question: What is 2 + 3?\nAnswer:\n5<|endoftext|>"
    prompt = tokenizer.apply_chat_template(TALK, add_generation_prompt=True, tokenize=False)
    assert text.startswith(prompt) and text.removeprefix(prompt) == "5<|endoftext|>"


def test_a_conversation_under_the_judge_s_template():
    judge = chat_tokenizer(resolve(JUDGE).folder, "separated")
    text = judge.apply_chat_template(TALK + FIVE, tokenize=False)
    assert text == "[CLS] What is 2 + 3? [SEP] 5 [SEP]"
    ids = judge(text, add_special_tokens=False)["input_ids"]
    assert ids[0] == judge.cls_token_id and ids.count(judge.sep_token_id) == 2


@pytest.mark.parametrize("answer", ["5", "-5", "True", "8:51 PM", "-1/72"])
def test_what_is_learnt_is_what_the_marks_of_generation_say(tokenizer, answer):
    """Two ways to the same mask: the template's marks, and where prompt and whole part."""
    said = [{"role": "assistant", "content": answer}]
    marked = tokenizer.apply_chat_template(TALK + said, return_dict=True, return_assistant_tokens_mask=True)
    ids, start = encoded(tokenizer, TALK, said)
    assert ids == marked["input_ids"]
    assert marked["assistant_masks"] == [0] * start + [1] * (len(ids) - start)
    assert tokenizer.decode(ids[start:]) == f"{answer}<|endoftext|>"


def test_a_prompt_that_ends_in_a_blank_is_not_the_beginning_of_the_whole(policy):
    other = chat_tokenizer(policy.folder, "blank-at-end")
    said = [{"role": "assistant", "content": "True"}]
    _, start = encoded(other, TALK, said)
    prompt = other.apply_chat_template(TALK, add_generation_prompt=True)["input_ids"]
    assert start == len(prompt) - 1 and other.decode(prompt[start:]) == " "


def test_a_template_is_put_on_a_copy(policy, tokenizer):
    before = (policy.folder / "tokenizer_config.json").read_bytes()
    assert tokenizer.chat_template and tokenizer_of(policy.folder).chat_template is None
    assert (policy.folder / "tokenizer_config.json").read_bytes() == before


def test_a_tokenizer_without_a_template_is_refused(policy):
    with pytest.raises(CourseError, match="has no chat template; name one as 'template' in the profile"):
        chat_tokenizer(policy.folder, None)
    with pytest.raises(UsageError, match="Unknown chat template 'chatml'; the known ones are question-answer, separ"):
        chat_tokenizer(policy.folder, "chatml")


def test_prompts_without_room_are_left_out_and_none_is_an_error(tokenizer):
    pairs = [{"prompt": [{"role": "user", "content": "1" * size}]} for size in (3, 90)]
    assert fitting(pairs, tokenizer, 60) == pairs[:1]
    with pytest.raises(CourseError, match="None of 2 prompts leaves room for an answer: all have 5 tokens or more"):
        fitting(pairs, tokenizer, 5)


# --- pairs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_rejected_answers_are_of_the_same_kind_and_never_the_right_one(split):
    pairs = sources.answer_pairs(split)
    rows = mathematics_questions("heldout" if split == "test" else "train")
    answers = rows.groupby("kind")["answer"].agg(set)
    assert len(pairs) == len(rows) and (pairs["chosen"] != pairs["rejected"]).all()
    for row, kind, right in zip(pairs.head(300).to_dict("records"), rows["kind"], rows["answer"], strict=False):
        assert json.loads(row["chosen"]) == [{"role": "assistant", "content": right}]
        assert json.loads(row["rejected"])[0]["content"] in answers[kind]


def test_the_next_different_answer_goes_round():
    assert sources._next_different(["a", "a", "b", "c"]) == ["b", "b", "c", "a"]
    with pytest.raises(CourseError, match="All 2 answers of a kind of question are 'a'"):
        sources._next_different(["a", "a"])


def test_the_control_swaps_half_of_the_training_pairs_and_no_test_pair():
    right, swapped = (load_task(name, TaskSizes(train_rows=400, test_rows=50, max_length=96))
                      for name in ("answers", "answers-swapped"))
    assert swapped.test.equals(right.test) and (swapped.train["prompt"] == right.train["prompt"]).all()
    changed = swapped.train["chosen"] != right.train["chosen"]
    assert 0.4 < changed.mean() < 0.6
    assert (swapped.train["chosen"][changed] == right.train["rejected"][changed]).all()
    assert (swapped.train["rejected"][changed] == right.train["chosen"][changed]).all()


def test_no_question_is_in_both_splits():
    data = load_task("answers", TaskSizes(max_length=96))
    assert not set(data.train["prompt"]) & set(data.test["prompt"])
    assert task("answers").labels == ("reward",)


def test_ultrafeedback_is_divided_into_prompt_and_answers(monkeypatch):
    both = [{"role": "user", "content": "Well?"}]
    rows = [{"chosen": both + FIVE, "rejected": both + [{"role": "assistant", "content": "6"}], "score_chosen": 9.0},
            {"chosen": both + FIVE, "rejected": both + FIVE, "score_chosen": 5.0}]
    monkeypatch.setattr(sources.hub, "dataset_split", lambda name, config, split: Dataset.from_list(rows))
    pairs = sources.ultrafeedback_pairs("train")
    assert sources.conversations(pairs) == [{"prompt": both, "chosen": FIVE,
                                             "rejected": [{"role": "assistant", "content": "6"}]}]
    monkeypatch.setattr(sources.hub, "dataset_split", lambda *_: Dataset.from_list([{"chosen": both}]))
    with pytest.raises(CourseError, match="Expected columns chosen, rejected in .* but rejected is missing"):
        sources.ultrafeedback_pairs("train")


def test_conversations_that_part_early_are_refused():
    with pytest.raises(CourseError, match="share all but their last message, but they part earlier"):
        sources.divided(TALK + FIVE, [{"role": "user", "content": "Else?"}] + FIVE)


# --- log-probabilities and agreement by hand ------------------------------------------------------------------------


class Flat(torch.nn.Module):
    """Every next token equally likely, but for one that gets `more` nats."""

    def __init__(self, size: int, favourite: int = 0, more: float = 0.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.logits = torch.zeros(size)
        self.logits[favourite] = more

    def forward(self, input_ids, attention_mask=None):
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1) + self.weight)


def test_log_probabilities_count_the_answer_alone(tokenizer):
    pairs = [{"prompt": TALK, "chosen": FIVE, "rejected": [{"role": "assistant", "content": "123"}]}] * 3
    batches = pair_batches(pairs, tokenizer, 96, batch_size=2)
    assert [len(batch["input_ids"]) for batch in batches] == [4, 2]
    found = pair_logps(Flat(2048), batches)
    each = math.log(2048)
    assert found["chosen"].tolist() == pytest.approx([-2 * each] * 3), "the digit and the end token"
    assert found["rejected"].tolist() == pytest.approx([-4 * each] * 3)
    assert found["tokens"].tolist() == [2, 2, 2]
    five = tokenizer("5")["input_ids"][0]
    liked = pair_logps(Flat(2048, five, math.log(2)), batches)
    assert liked["chosen"].iloc[0] == pytest.approx(math.log(2) - 2 * math.log(2049))


def test_pairs_of_like_length_go_together_and_none_is_lost(tokenizer):
    sizes = (30, 1, 20, 2)
    pairs = [{"prompt": TALK, "chosen": [{"role": "assistant", "content": "1" * size}], "rejected": FIVE}
             for size in sizes]
    batches = pair_batches(pairs, tokenizer, 96, batch_size=2)
    widths = [batch["input_ids"].shape[1] for batch in batches]
    assert widths == sorted(widths)
    assert pair_logps(Flat(2048), batches)["tokens"].tolist() == [size + 1 for size in sorted(sizes)]


def test_scores_come_in_the_order_of_the_conversations():
    judge = chat_tokenizer(resolve(JUDGE).folder, "separated")

    class Length(torch.nn.Module):
        config = SimpleNamespace(max_position_embeddings=512)

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids, attention_mask, **_):
            return SimpleNamespace(logits=attention_mask.sum(1, keepdim=True) + 0 * self.weight)

    talks = [TALK + [{"role": "assistant", "content": " ".join(["one"] * size)}] for size in (9, 1, 5)]
    found = scores(Length(), judge, talks, batch_size=2)
    assert (found - found[1]).tolist() == [8, 0, 4]


def test_an_answer_that_is_cut_keeps_its_labels_within_the_length(tokenizer):
    long = [{"role": "assistant", "content": "7" * 60}]
    batch, = pair_batches([{"prompt": TALK, "chosen": long, "rejected": FIVE}], tokenizer, 30)
    _, start = encoded(tokenizer, TALK, long)
    assert batch["input_ids"].shape == (2, 30)
    assert (batch["labels"][0] != -100).sum() == 30 - start


def test_implicit_rewards_by_hand():
    policy = pd.DataFrame({"chosen": [-2.0, -5.0], "rejected": [-1.0, -9.0], "tokens": [2, 3]})
    reference = pd.DataFrame({"chosen": [-4.0, -4.0], "rejected": [-2.0, -9.0], "tokens": [2, 3]})
    found = preferences_measure.implicit_measures(policy, reference, 0.5)
    assert found["accuracy"] == 0.5 and found["raw_accuracy"] == 0.5, "gains 2 > 1, -1 < 0; and -2 < -1, -5 > -9"
    assert found["margin"] == pytest.approx(0.5 * ((2 - 1) + (-1 - 0)) / 2)
    assert found["preference_loss"] == pytest.approx((math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(0.5))) / 2)
    assert (found["chosen_reward"], found["rejected_reward"]) == pytest.approx((0.25, 0.25))
    assert found["accuracy_se"] == pytest.approx(math.sqrt(0.25 / 2)) and found["n"] == 2
    assert found["loss_nats_per_token"] == pytest.approx(7 / 5)


def test_a_tie_is_no_agreement():
    assert agreement(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0]))["accuracy"] == 0.5


# --- TRL's trainers -------------------------------------------------------------------------------------------------


def built(one: RunSpec, folder, start: dict | None = None, judge=None):
    """The trainer as train() builds it, before its first step; and its rows."""
    base = resolve(one.base)
    model, rows, _ = module.loaded(one, base)
    model = prepare(load_into(model, start or {}), one.method, causal=True)
    arguments = common_arguments(folder, steps=2, batch_size=4, learning_rate=1e-3, warmup_fraction=0.0,
                                 schedule="linear", seed=0, save_every=2)
    return module.trainer(model, rows, arguments, callbacks=[], base=base, spec=one, reward=judge), rows


def test_trl_cuts_the_pairs_where_we_do(tmp_path, tokenizer):
    trainer, rows = built(spec("dpo"), tmp_path)
    for row, prepared in zip(rows, trainer.train_dataset, strict=False):
        for which in ("chosen", "rejected"):
            ids, start = encoded(tokenizer, row["prompt"], row[which])
            assert prepared["prompt_ids"] + prepared[f"{which}_ids"] == ids
            assert len(prepared["prompt_ids"]) == start


def test_trl_trains_sft_on_the_answer_alone(tmp_path, tokenizer):
    trainer, rows = built(spec("sft"), tmp_path)
    batch = trainer.data_collator([trainer.train_dataset[place] for place in range(4)])
    for row, ids, labels in zip(rows, batch["input_ids"], batch["labels"], strict=False):
        whole, start = encoded(tokenizer, row["prompt"], row["completion"])
        assert ids[:len(whole)].tolist() == whole
        assert labels.tolist() == [-100] * start + whole[start:] + [-100] * (len(labels) - len(whole))


def test_orpo_adds_nothing_to_what_the_template_wrote(tmp_path, tokenizer):
    """ORPO puts begin and end tokens where they are missing; a template that left them out would be another one."""
    trainer, rows = built(spec("orpo"), tmp_path)
    for row, prepared in zip(rows, trainer.train_dataset, strict=False):
        whole, start = encoded(tokenizer, row["prompt"], row["chosen"])
        assert prepared["chosen_input_ids"] == whole
        assert prepared["chosen_labels"] == [-100] * start + whole[start:]


@pytest.mark.parametrize("method", [FULL, LORA])
def test_the_reference_of_dpo_is_the_start_and_not_the_base(tmp_path, policy, method):
    """TRL reads a missing reference from the base's folder: after SFT that is another model."""
    start = {name: weight * 1.1 for name, weight in base_matrices(policy.folder).items()}
    trainer, _ = built(spec("dpo", method=method), tmp_path, start)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch).item()
    assert loss == pytest.approx(math.log(2), abs=1e-5), "policy and reference are one model before the first step"
    assert (trainer.ref_model is None) == (method == LORA)


def test_without_a_named_reference_trl_takes_the_base(tmp_path, policy):
    """The trap that _dpo avoids; when TRL mends it, this test says so."""
    from trl import DPOConfig, DPOTrainer

    model, rows, _ = module.loaded(spec("dpo"), policy)
    load_into(model, {name: weight * 1.1 for name, weight in base_matrices(policy.folder).items()})
    trainer = DPOTrainer(model=model, train_dataset=rows, processing_class=chat_tokenizer(
        policy.folder, "question-answer"), args=DPOConfig(
            str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none"))
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader()))).item()
    assert abs(loss - math.log(2)) > 1e-3


@pytest.fixture(scope="module")
def chain(store):
    """SFT, the reward model, and a run of every objective from them."""
    sft, reward = spec("sft"), spec("reward")
    more = {"dpo": {"start": sft}, "orpo": {}, "online_dpo": {"start": sft, "reward": reward, "max_new_tokens": 4}}
    specs = {"sft": sft, "reward": reward} | {
        (name, method.kind): spec(name, method=method, **changes) for name, changes in more.items()
        for method in (FULL, LORA)}
    return {name: store.get(one) for name, one in specs.items()}


def test_every_objective_trains_and_moves_its_matrices(chain):
    for name, run in chain.items():
        assert run.steps == [1, 2] and not run.diverged
        before = run.start.tuned_matrices() if run.start else run.base_matrices()
        moved = [not torch.equal(weight, before[matrix]) for matrix, weight in run.tuned_matrices().items()]
        assert all(moved) and len(moved) == len(before), name
        assert run.metrics()["accuracy"].between(0, 1).all() and (run.metrics()["n"] == 8).all()


def test_what_goes_on_from_sft_starts_at_its_matrices(chain):
    for name in (("dpo", "full"), ("dpo", "lora"), ("online_dpo", "lora")):
        run = chain[name]
        assert run.start.spec.key == chain["sft"].spec.key
        change = torch.stack([(weight - run.start.tuned_matrices()[matrix]).norm() for matrix, weight in
                              run.tuned_matrices().items()]).norm()
        whole = torch.stack([(weight - run.base_matrices()[matrix]).norm() for matrix, weight in
                             run.tuned_matrices().items()]).norm()
        assert 0 < change < whole
    assert chain[("orpo", "full")].start is None


def test_a_reward_run_is_a_classifier_of_one_number(chain):
    run = chain["reward"]
    model = run.classifier()
    judge = chat_tokenizer(run.base.folder, run.spec.template)
    pairs = held_out_pairs(run.spec, run.base)
    found = scores(model, judge, [pair["prompt"] + pair["chosen"] for pair in pairs], batch_size=3)
    assert found.shape == (8,) and found.std() > 0
    alone = model(**judge(judge.apply_chat_template(pairs[0]["prompt"] + pairs[0]["chosen"], tokenize=False),
                          return_tensors="pt", add_special_tokens=False)).logits
    assert found[0].item() == pytest.approx(alone.item(), abs=1e-5), "padding changes nothing"


def test_the_judge_reads_its_own_tokens_and_template(tmp_path, chain):
    """Online, the policy's answers come to the reward model as its own tokenizer and template write them."""
    run, seen = chain["reward"], []
    model = run.classifier()
    judge = chat_tokenizer(run.base.folder, run.spec.template)
    model.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs["input_ids"]), with_kwargs=True)
    one = spec("online_dpo", method=LORA, reward=run.spec, max_new_tokens=4)
    trainer, _ = built(one, tmp_path, judge=model)
    trainer.train()
    texts = judge.batch_decode(torch.cat([ids[:, :6] for ids in seen]))
    assert len(seen) == 2 and len(texts) == 16, "two answers to each of four prompts in both steps"
    assert all(text.startswith("[CLS]") and "<|endoftext|>" not in text and "answer:" not in text for text in texts)


def test_a_run_from_a_diverged_start_is_refused_in_one_sentence(tmp_path):
    start = spec("sft", learning_rate=1.0, method=LORA)
    folder = tmp_path / "runs" / start.key
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"run": {"status": "diverged"}, "measured": {"metrics": []}}))
    seal(folder, about={"run": start.key})
    with pytest.raises(CourseError, match=r"starts from \w+ \(LoRA r=4 on answers\), which diverged; lower its"):
        RunStore(tmp_path / "runs").get(spec("dpo", start=start))


def test_a_preference_task_needs_an_objective(tmp_path):
    with pytest.raises(UsageError, match="Expected an objective of sft, dpo, .* got 'likelihood'"):
        RunStore(tmp_path).get(spec("likelihood", template="question-answer"))


def test_a_dpo_run_with_an_adapter_is_resumed_to_the_same_numbers(tmp_path, monkeypatch, chain):
    one = spec("dpo", method=LORA, steps=4, checkpoints=1, start=chain["sft"].spec)
    whole = RunStore(chain["sft"].folder.parent).get(one).trained()
    interrupted = tmp_path / "runs"
    interrupted.mkdir()
    (interrupted / chain["sft"].spec.key).symlink_to(chain["sft"].folder)
    real = store_module.train

    def cut(*arguments, **named):
        from transformers import TrainerCallback

        class Stop(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == 3:
                    raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train_module, "Progress", lambda label: Stop())
            return real(*arguments, **named)

    monkeypatch.setattr(store_module, "train", cut)
    with pytest.raises(KeyboardInterrupt):
        RunStore(interrupted).get(one)
    assert list((interrupted / one.key / "resume").glob("checkpoint-*/SEAL.json"))
    monkeypatch.setattr(store_module, "train", real)
    again = RunStore(interrupted).get(one).trained()
    assert again.keys() == whole.keys() and all(torch.equal(again[name], whole[name]) for name in whole)


# --- keys and profiles ----------------------------------------------------------------------------------------------


def test_older_keys_do_not_know_the_new_fields():
    old = RunSpec(base=POLICY, base_revision="r", task="movies", sizes=SIZES, method=FULL, learning_rate=1e-3,
                  schedule="linear", warmup_fraction=0.0, steps=2, epochs=None, batch_size=4, checkpoints=2, seed=0)
    content = canonical_json(old._content())
    for word in ("objective", "template", "beta", "max_new_tokens", "reward"):
        assert word not in content
    assert old.key == "466dc3c985500cca"


def test_what_decides_a_preference_run_decides_its_key():
    reward = spec("reward")
    one = spec("online_dpo", start=spec("sft"), reward=reward, max_new_tokens=4)
    changed = [one.model_copy(update=change) for change in (
        {"beta": 0.2}, {"template": "blank-at-end"}, {"max_new_tokens": 5}, {"start": None},
        {"reward": reward.model_copy(update={"seed": 1})}, {"objective": "dpo"})]
    assert len({one.key, *(other.key for other in changed)}) == 7
    assert RunSpec.model_validate_json(one.model_dump_json()).key == one.key


@pytest.mark.parametrize("changes", [{"reward": None}, {"max_new_tokens": None}])
def test_online_dpo_needs_a_judge_and_a_length(changes):
    whole = {"start": None, "reward": spec("reward"), "max_new_tokens": 4}
    with pytest.raises(ValueError, match="'online_dpo', and it alone, takes 'reward' and 'max_new_tokens'"):
        spec("online_dpo", **whole | changes)
    with pytest.raises(ValueError, match="'online_dpo', and it alone"):
        spec("dpo", reward=spec("reward"), max_new_tokens=4)


def test_a_profile_s_runs_go_on_from_one_another():
    found = preference_specs(load_profile("laptop"), (0, 1))
    for seed in (0, 1):
        sft, reward = (next(one for one in found[name] if one.seed == seed) for name in ("sft", "reward"))
        for name in ("dpo", "swapped", "online_dpo"):
            for one in (one for one in found[name] if one.seed == seed):
                assert one.start == sft and one.objective == ("dpo" if name == "swapped" else name)
                assert one.reward == (reward if name == "online_dpo" else None)
                assert one.task == ("answers-swapped" if name == "swapped" else "answers")
        assert all(one.start is None for one in found["orpo"])
    assert {one.template for one in found["reward"]} == {"separated"} != {one.template for one in found["dpo"]}


def test_a_sweep_is_the_reference_s_alone():
    profile = load_profile("laptop")
    usual, whole = (preference_specs(one, (0,))["dpo"] for one in (profile, profile.with_reference_runs()))
    assert {one.key for one in usual} < {one.key for one in whole}
    for method in ("full", "LoRA r=8"):
        rates = sorted(one.learning_rate for one in whole if one.method.label == method)
        assert len(rates) >= 3 and all(2.9 < high / low < 3.5 for low, high in pairwise(rates))


def section(**changes) -> dict:
    return load_profile("smoke").preferences.model_dump() | changes


@pytest.mark.parametrize("changes, reason", [
    ({"runs": {"sft": [{"method": "full", "learning_rate": 1e-3}]}}, "'runs' must name reward, dpo"),
    ({"max_new_tokens": 96}, "leaves no room for a prompt within 'max_length' 96"),
    ({"runs": section()["runs"] | {"sft": [{"method": "full", "learning_rate": [1e-3, 1e-2]}]}},
     "the first of 'sft' must be one run that every seed has"),
    ({"runs": section()["runs"] | {"kto": [{"method": "full", "learning_rate": 1e-3}]}}, "kto"),
])
def test_a_section_that_cannot_be_run_is_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        Preferences(**section(**changes))


def test_a_profile_without_the_section_has_no_tables():
    profile = load_profile("smoke").model_copy(update={"preferences": None})
    assert preferences_measure.preference_curves(profile).empty and judge.reward_readings(profile).empty
    with pytest.raises(UsageError, match="Profile smoke has no section 'preferences'"):
        preference_specs(profile)


# --- the Hub's profiles ---------------------------------------------------------------------------------------------


def inside_gpu() -> dict:
    """In a fresh process that sees only the stand-in Hub: gpu.yaml's runs, cut to a step of short texts."""
    from utils.sources.tasks import load_task
    from utils.studies.preferences.examples import example_conversation, template_table
    from utils.studies.preferences.judge import reward_readings
    from utils.studies.preferences.measure import preference_outcomes

    profile = load_profile("gpu")
    short = {"sizes": TaskSizes(train_rows=16, test_rows=6, max_length=96), "steps": 1, "gradient_accumulation": 1,
             "max_new_tokens": 3, "prompts": 3, "blocks": 2}
    runs = {name: tuple(group.model_copy(update={"steps": None, "checkpoints": 1}) for group in groups)
            for name, groups in profile.preferences.runs.items()}
    profile = profile.model_copy(update={"preferences": profile.preferences.model_copy(update=short | {"runs": runs})})
    outcomes = preference_outcomes(profile, (0,))
    talk = template_table(profile, *example_conversation(profile))
    return {"pairs": load_task("ultrafeedback", short["sizes"]).test.to_dict("records"),
            "outcomes": outcomes.isna().any().to_dict(), "rows": outcomes.groupby("experiment").size().to_dict(),
            "texts": talk["text"].tolist(), "lost": talk["lost"].tolist(), "learnt": talk["learnt"].tolist(),
            "readings": reward_readings(profile, (0,))["accuracy"].between(0, 1).all().item()}


@pytest.fixture(scope="module")
def gpu(standin, tmp_path_factory):
    import standin_hub

    found = standin.ask("test_preferences", "inside_gpu", LORA_COURSE_CACHE=str(tmp_path_factory.mktemp("gpu")))
    return standin_hub.answer(found, "inside_gpu")


def test_the_gpu_profile_s_runs_train_on_the_hub_s_names(gpu):
    rows = {name: sum(len(group.rates) for group in groups) for name, groups in
            load_profile("gpu").preferences.runs.items()}
    assert gpu["rows"] == {name: count for name, count in rows.items() if name != "reward"}
    assert {name for name, missing in gpu["outcomes"].items() if missing} == {"exact_match", "exact_match_se"}
    assert gpu["readings"] is True


def test_a_hub_model_keeps_its_own_template_and_its_judge_gets_ours(gpu):
    asked = json.loads(gpu["pairs"][0]["prompt"])[0]["content"]
    answer = json.loads(gpu["pairs"][0]["chosen"])[0]["content"]
    own, _, judge = gpu["texts"]
    assert own == f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    assert judge == f"<s> {asked} </s> {answer} </s>" and gpu["lost"][0] == 0
    assert gpu["learnt"][0] == f"{answer}<|im_end|>\n"


# --- tables and figures ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Every table of the notebook at smoke, with its runs in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "cache_dir", lambda: tmp_path_factory.mktemp("cache", numbered=True))
        folder = tmp_path_factory.mktemp("runs")
        patch.setattr(RunStore, "folder", property(lambda self: folder))
        profile = load_profile("smoke")
        found = {one.__name__: one(profile, (0,)) for one in (
            preferences_measure.preference_curves, preferences_measure.preference_outcomes,
            preferences_measure.preference_controls, judge.reward_readings)}
        patch.setattr(store_module, "train", lambda *_, **__: pytest.fail("trained again"))
        patch.setattr(reporting, "pair_logps", lambda *_: pytest.fail("measured again"))
        assert preferences_measure.preference_outcomes(profile, (0,)).equals(found["preference_outcomes"])
        yield found


def test_the_tables_have_a_row_for_every_run(tables):
    curves, outcomes = tables["preference_curves"], tables["preference_outcomes"]
    wanted = {"sft": 1, "dpo": 2, "swapped": 2, "orpo": 2, "online_dpo": 1}
    assert outcomes.groupby("experiment").size().to_dict() == wanted
    assert set(curves["step"]) == {1, 2} and not curves.duplicated(["experiment", "run", "step"]).any()
    shares = outcomes[["accuracy", "raw_accuracy", "exact_match", "ended"]]
    assert ((shares >= 0) & (shares <= 1)).all(axis=None)


def test_costs_are_differences_of_what_stands_beside_them(tables):
    table = tables["preference_outcomes"]
    assert (table["forgetting"] - (table["general_loss"] - table["base_general_loss"])).abs().max() < 1e-9
    sft = table.set_index("experiment").loc["sft"]
    assert sft["forgetting"] == sft["forgetting_since_start"], "its start is the base"
    later = table[table["experiment"].isin(["dpo", "swapped", "online_dpo"])]
    assert (later["forgetting_since_start"] - (later["general_loss"] - sft["general_loss"])).abs().max() < 1e-6
    assert (table["kl_nats_per_token"] > 0).all() and (table["relative_norm"] > 0).all()
    assert sft["n_intruders"] == sft["n_intruders_start"]


def test_a_random_update_has_the_trained_one_s_norm(tables):
    table = tables["preference_controls"]
    assert table.groupby("method")["control"].agg(set).to_dict() == {
        "full": {"trained", "random, full rank"}, "LoRA r=8": {"trained", "random, full rank", "random, rank r"}}
    for _, part in table.groupby("run"):
        assert part["relative_norm"].max() == pytest.approx(part["relative_norm"].min(), rel=1e-4)


def test_a_reward_model_is_read_under_both_templates_and_before_training(tables):
    table = tables["reward_readings"].set_index("template")
    assert list(table.index) == ["own", "policy's", "untrained"] and table["margin"].nunique() == 3


def test_the_best_rate_is_that_of_least_loss_and_at_a_tie_the_lower_one():
    rows = pd.DataFrame({"experiment": "dpo", "method": ["full"] * 3 + ["LoRA"], "seed": 0, "accuracy": 0.7,
                         "learning_rate": [3e-4, 1e-4, 1e-3, 1e-2], "preference_loss": [0.6, 0.6, 0.7, 0.9]})
    best = preferences_measure.best_rates(rows)
    assert best["learning_rate"].tolist() == [1e-4, 1e-2] and (best["accuracy"] == 0.7).all()
    assert preferences_measure.best_rates(rows.head(0)).empty


def test_the_reference_is_drawn_at_the_reader_s_rates_and_else_at_its_best():
    own = pd.DataFrame({"experiment": ["dpo"], "method": ["full"], "learning_rate": [1e-3]})
    known = pd.DataFrame({"experiment": ["dpo", "dpo", "orpo", "orpo"], "method": "full", "seed": 0,
                          "learning_rate": [1e-3, 1e-4, 1e-3, 1e-4], "preference_loss": [0.7, 0.6, 0.7, 0.6]})
    found = preferences_measure.beside(known, own)
    assert found[["experiment", "learning_rate"]].values.tolist() == [["dpo", 1e-3], ["orpo", 1e-4]]
    assert preferences_measure.beside(None, own) is None


def test_figures_draw_every_series_once_and_tell_their_numbers(tables):
    def measured(name: str) -> Measured:
        return Measured(name, load_profile("smoke"), (0,), tables[name], tables[name])

    outcomes, curves = measured("preference_outcomes"), tables["preference_curves"]
    best = preferences_measure.best_rates(outcomes.own)
    series = set(preferences_figures.series_of(best))
    assert series >= {"SFT, full", "DPO, full", "DPO, LoRA r=8", "DPO, pairs swapped, full", "online DPO, LoRA r=8"}
    for drawn, panels in ((preferences_figures.methods(outcomes), 3), (preferences_figures.intruders(outcomes), 3)):
        assert len(drawn.figure.axes) == panels
        assert series <= {text.get_text() for text in drawn.figure.legends[0].get_texts()}
        assert all(f"{row.experiment}, {row.method}:" in drawn.alt for row in best.itertuples())
    for drawn in (preferences_figures.agreement(outcomes, curves),
                  preferences_figures.log_probabilities(outcomes, curves),
                  preferences_figures.cost(outcomes, measured("preference_controls"))):
        assert len(drawn.figure.axes) == 2 and set(drawn.table["experiment"]) == {"dpo", "swapped", "online_dpo"}
    assert len(preferences_figures.rates(outcomes).figure.axes) == 4
    judged = preferences_figures.judge(measured("reward_readings"))
    ticks = judged.figure.axes[0].get_xticklabels()
    assert [text.get_text() for text in ticks] == ["own", "policy's", "untrained"] and "Chance is 0.5" in judged.alt
    plt.close("all")
