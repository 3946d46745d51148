"""One test for each symbol of another library that the project leans on, so that an upgrade says what broke.

Each docstring tells what happens, or happened, when the symbol is not what it was.
"""

import copy
import inspect

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook
from torch import nn

from utils.training.targets import lora_pattern
from utils.training.trainer import common_arguments


@pytest.fixture
def arguments(tmp_path) -> dict:
    return common_arguments(tmp_path, steps=100, batch_size=4, learning_rate=1e-3, warmup_fraction=0.06,
                            schedule="linear", seed=3, save_every=25)


@pytest.fixture
def classifier(tiny_base):
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=2, dtype=torch.float32)


def test_training_arguments_take_ours(arguments):
    """`warmup_ratio` became `warmup_steps`; a removed keyword stops every run at its first line."""
    from transformers import TrainingArguments

    made = TrainingArguments(**arguments)
    assert made.warmup_steps == 6 and isinstance(made.warmup_steps, int) and made.get_warmup_steps(100) == 6
    assert (made.max_steps, made.seed, made.data_seed, made.weight_decay) == (100, 3, 3, 0.0)
    assert (made.optim, str(made.report_to)) == ("adamw_torch_fused", "[]")


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup"])
def test_every_schedule_that_a_profile_may_name_exists(arguments, schedule):
    """A profile that passes its check must not fail in the trainer."""
    from transformers import TrainingArguments, get_scheduler

    made = TrainingArguments(**arguments | {"lr_scheduler_type": schedule})
    optimiser = torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = get_scheduler(made.lr_scheduler_type, optimiser, num_warmup_steps=2, num_training_steps=10)
    assert scheduler.get_last_lr() == [0.0]


def test_group_by_length_is_a_sampling_strategy(arguments):
    """`group_by_length=True` became `train_sampling_strategy`; left out in silence, padding is half of the work."""
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_pt_utils import LengthGroupedSampler

    made = TrainingArguments(**arguments, train_sampling_strategy="group_by_length", length_column_name="length")
    rows = Dataset.from_dict({"input_ids": [[1]] * 8, "labels": [0] * 8, "length": [1, 9, 2, 8, 3, 7, 4, 6]})
    sampler = Trainer(model=nn.Linear(1, 1), args=made, train_dataset=rows)._get_train_sampler(rows)
    assert isinstance(sampler, LengthGroupedSampler) and list(sampler.lengths) == rows["length"][:]


def test_a_length_grouped_order_is_drawn_from_torchs_own_generator():
    """SealPoints restores that generator when a run resumes; another source would give other rows."""
    from transformers.trainer_pt_utils import LengthGroupedSampler

    sampler = LengthGroupedSampler(2, lengths=list(range(1, 41)))
    state = torch.get_rng_state()
    first, second = list(sampler), list(sampler)
    torch.set_rng_state(state)
    assert list(sampler) == first != second


def test_trainer_callbacks_have_the_events_that_ours_override():
    """An event that is no longer called leaves a run without checkpoints, and no error."""
    from transformers import TrainerCallback

    from utils.training.checkpoints import Checkpoints
    from utils.training.masked_lm import HeldOutCurve
    from utils.training.trainer import Progress, SealPoints
    from utils.training.variants import AllocateRanks

    for ours in (AllocateRanks, Checkpoints, HeldOutCurve, Progress, SealPoints):
        events = [name for name in vars(ours) if name.startswith("on_")]
        assert events and all(hasattr(TrainerCallback, name) for name in events), ours


def test_sft_config_takes_ours_and_refuses_the_old_name(arguments):
    """TRL renamed `max_seq_length` to `max_length`; ignored, texts would be cut at TRL's default of 1024."""
    from trl import SFTConfig

    assert SFTConfig(**arguments, gradient_checkpointing=False, max_length=96).max_length == 96
    with pytest.raises(TypeError, match="max_seq_length"):
        SFTConfig(**arguments, max_seq_length=96)


def test_sft_trainer_takes_the_tokenizer_as_processing_class():
    """`tokenizer=` went in 2025."""
    from trl import SFTTrainer

    assert {"model", "args", "train_dataset", "callbacks", "processing_class"} <= set(
        inspect.signature(SFTTrainer).parameters)


def test_lora_config_scales_as_written(classifier):
    """`use_rslora` is the difference between alpha / r and alpha / sqrt(r): a factor of 8 at rank 64."""
    from peft import LoraConfig, TaskType, get_peft_model

    scales = {}
    for stabilised in (False, True):
        config = LoraConfig(r=4, lora_alpha=8, use_rslora=stabilised, lora_dropout=0.0, bias="none",
                            target_modules=lora_pattern("bert"), task_type=TaskType.SEQ_CLS,
                            modules_to_save=["pooler", "classifier"])
        model = get_peft_model(copy.deepcopy(classifier), config)
        layer = model.base_model.model.bert.encoder.layer[0].output.dense
        scales[stabilised] = layer.scaling["default"]
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert "base_model.model.classifier.modules_to_save.default.weight" in trained
        assert "base_model.model.bert.pooler.modules_to_save.default.dense.weight" in trained
        assert sum("lora_A" in name for name in trained) == 12
        assert layer.lora_B["default"].weight.abs().sum() == 0, "B = 0 at the start"
    assert scales == {False: 2.0, True: 4.0}


def test_an_adapter_is_injected_taken_out_and_put_back(tiny_base):
    """The committed masked-LM base lies under these names; renamed, its adapter would load as nothing at all."""
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import BertForMaskedLM

    def injected():
        model = BertForMaskedLM.from_pretrained(tiny_base, dtype=torch.float32)
        return inject_adapter_in_model(LoraConfig(r=2, lora_alpha=4, target_modules=lora_pattern("bert")), model)

    model = injected()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    state = get_peft_model_state_dict(model)
    assert "bert.encoder.layer.0.attention.self.query.lora_A.weight" in state and len(state) == 24
    other = injected()
    assert set_peft_model_state_dict(other, state).unexpected_keys == []
    again = get_peft_model_state_dict(other)
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())
    layer = other.bert.encoder.layer[0].output.dense
    assert isinstance(layer, BaseTunerLayer)
    before = layer.base_layer.weight.clone()
    layer.merge(safe_merge=True)
    delta = 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(layer.base_layer.weight, before + delta)


def test_a_safe_merge_refuses_nan(tiny_base):
    """A broken adapter must not become a base model that loads."""
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import BertForMaskedLM

    model = inject_adapter_in_model(LoraConfig(r=2, target_modules=lora_pattern("bert")),
                                    BertForMaskedLM.from_pretrained(tiny_base, dtype=torch.float32))
    layer = model.bert.encoder.layer[0].output.dense
    nn.init.constant_(layer.lora_B["default"].weight, float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        layer.merge(safe_merge=True)


def test_gguf_weights_can_be_asked_for_dequantised():
    """Left to itself the loader may keep the blocks packed, and then training changes nothing."""
    from transformers import GgufConfig

    assert (GgufConfig().dequantize, GgufConfig(dequantize=True).dequantize) == (False, True)


def test_from_pretrained_takes_dtype_and_refuses_pickles(tiny_base, tmp_path):
    """`torch_dtype` became `dtype`; without it a bfloat16 checkpoint would be trained in bfloat16 on a CPU."""
    from transformers import AutoModel, AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=3, dtype=torch.float32,
                                                               use_safetensors=True)
    assert model.dtype == torch.float32 and model.classifier.out_features == 3
    assert AutoModel.from_pretrained(tiny_base, dtype=torch.bfloat16).dtype == torch.bfloat16
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    with pytest.raises(OSError):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, use_safetensors=True)


def notebook(path, *sources: str):
    book = new_notebook(cells=[new_code_cell(sources[0], metadata={"tags": ["parameters"]}),
                               *map(new_code_cell, sources[1:])])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)
    return str(path)


def test_papermill_lists_the_declared_parameters(tmp_path):
    """Papermill itself ignores a parameter that a notebook does not declare: a typo would run the default."""
    import papermill

    path = notebook(tmp_path / "n.ipynb", 'PROFILE = "laptop"\nSEEDS = None')
    assert list(papermill.inspect_notebook(path)) == ["PROFILE", "SEEDS"]


@pytest.mark.process
def test_papermill_takes_our_keywords_and_marks_each_cell(tmp_path):
    """The status of each cell tells a finished notebook from one that a cell left in the middle."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    given = dict(cwd=str(tmp_path), progress_bar=False, execution_timeout=60, kernel_name="python3", log_output=False)
    done = papermill.execute_notebook(notebook(tmp_path / "n.ipynb", "A = 1", "import os; (A, os.getcwd())"),
                                      str(tmp_path / "out.ipynb"), parameters={"A": 2}, **given)
    assert [cell.metadata.papermill.status for cell in done.cells] == ["completed"] * 3
    assert done.cells[1].metadata.tags == ["injected-parameters"]
    assert done.cells[2].outputs[0]["data"]["text/plain"] == str((2, str(tmp_path)))
    with pytest.raises(PapermillExecutionError) as caught:
        papermill.execute_notebook(notebook(tmp_path / "bad.ipynb", "A = 1", "1 / 0"), str(tmp_path / "out.ipynb"),
                                   parameters={"A": 2}, **given)
    assert (caught.value.ename, caught.value.evalue, caught.value.exec_count) == (
        "ZeroDivisionError", "division by zero", 3)


def test_snapshot_download_takes_patterns():
    """Without `allow_patterns` a mirror's pickle copies come along: up to 27 GB for a 7B model."""
    from huggingface_hub import snapshot_download

    assert {"repo_id", "revision", "allow_patterns"} <= set(inspect.signature(snapshot_download).parameters)


def test_the_hubs_errors_are_the_ones_we_tell_apart():
    """A gated model, an unknown one and no network are three different sentences; one is a subclass of another."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    assert issubclass(GatedRepoError, RepositoryNotFoundError), "hub.py asks for the narrower one first"
    assert issubclass(RevisionNotFoundError, HfHubHTTPError)
    assert issubclass(LocalEntryNotFoundError, Exception) and issubclass(OfflineModeIsEnabled, Exception)


def test_load_dataset_takes_split_revision_and_streaming(tmp_path):
    """Streaming takes the first rows of sets that are too large to download whole."""
    from datasets import Dataset, load_dataset

    assert {"path", "name", "split", "revision", "streaming"} <= set(inspect.signature(load_dataset).parameters)
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n')
    stream = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", streaming=True)
    assert Dataset.from_list(list(stream.take(2)), features=stream.features)["text"][:] == ["a", "b"]


def test_safetensors_keep_names_values_and_metadata(tmp_path):
    """Without the metadata `format: pt` transformers refuses a file."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file, save_file

    tensors = {"a": torch.arange(6, dtype=torch.float32).view(2, 3), "b": torch.ones(2, dtype=torch.float16)}
    save_file(tensors, tmp_path / "t.safetensors", metadata={"format": "pt"})
    again = load_file(tmp_path / "t.safetensors")
    assert all(torch.equal(again[name], tensor) and again[name].dtype == tensor.dtype
               for name, tensor in tensors.items())
    with safe_open(tmp_path / "t.safetensors", "pt") as stream:
        assert stream.metadata() == {"format": "pt"}
    (tmp_path / "t.safetensors").write_bytes((tmp_path / "t.safetensors").read_bytes()[:-1])
    with pytest.raises(SafetensorError):
        load_file(tmp_path / "t.safetensors")


def test_a_masking_with_a_seed_is_always_the_same(tiny_base):
    """The held-out curve is measured on one masking; a new one at each measurement would be noise of its own."""
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    rows = [{"input_ids": list(range(5, 45)), "attention_mask": [1] * 40}] * 4

    def labels(seed: int) -> torch.Tensor:
        torch.manual_seed(seed + 17)
        return DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, seed=seed)(rows)["labels"]

    first = labels(0)
    torch.manual_seed(99)
    again = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, seed=0)(rows)["labels"]
    assert torch.equal(first, again) and not torch.equal(first, labels(1))
    assert 0.05 < (first != -100).float().mean() < 0.3


def test_the_masked_head_is_where_we_look_for_it(tiny_base):
    """The head is applied to the masked positions alone, so its module is called by name."""
    from transformers import AutoModelForMaskedLM

    from utils.training.masked_lm import masked_lm_logits

    model = AutoModelForMaskedLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    ids = torch.arange(5, 25).view(2, 10)
    where = torch.zeros_like(ids, dtype=torch.bool)
    where[0, 3] = where[1, 7] = True
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[where]
        torch.testing.assert_close(masked_lm_logits(model, ids, torch.ones_like(ids), where=where), whole)


def test_a_padding_collator_keeps_labels(tiny_base):
    """Trainer reads `labels`; the collator turns nothing else into them."""
    from transformers import AutoTokenizer, DataCollatorWithPadding

    batch = DataCollatorWithPadding(AutoTokenizer.from_pretrained(tiny_base))(
        [{"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1], "labels": 1},
         {"input_ids": [4], "attention_mask": [1], "labels": 0}])
    assert batch["labels"].tolist() == [1, 0] and batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_file_lock_times_out_at_once(tmp_path):
    """`timeout=0` must raise, not wait: the message that another process trains depends on it."""
    from filelock import FileLock, Timeout

    with FileLock(tmp_path / "a.lock"), pytest.raises(Timeout):
        FileLock(tmp_path / "a.lock").acquire(timeout=0)


def test_fused_adamw_runs_on_a_cpu():
    """The laptop's optimiser is the fused one; where it is missing every run fails at its first step."""
    weight = nn.Parameter(torch.ones(3))
    optimiser = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0, fused=True)
    weight.sum().backward()
    optimiser.step()
    torch.testing.assert_close(weight.detach(), torch.full((3,), 0.9))


def test_adalora_has_a_schedule_and_a_pruning_call(classifier):
    """Without `total_step` and the call at every step nothing is ever pruned, and the run is a wider LoRA."""
    from peft import AdaLoraConfig, TaskType, get_peft_model

    config = AdaLoraConfig(init_r=6, target_r=4, lora_alpha=8, total_step=20, tinit=2, tfinal=4, deltaT=1,
                           target_modules=lora_pattern("bert"), task_type=TaskType.SEQ_CLS)
    model = get_peft_model(classifier, config)
    layer = model.base_model.model.bert.encoder.layer[0].output.dense
    assert layer.lora_A["default"].shape == (6, 64) and layer.lora_E["default"].shape == (6, 1)
    assert layer.lora_B["default"].shape == (32, 6) and layer.scaling["default"] == 8
    assert layer.ranknum["default"].item() == 6 and not layer.ranknum["default"].requires_grad
    assert list(inspect.signature(model.base_model.update_and_allocate).parameters) == ["global_step"]


def test_vera_shares_its_matrices_and_trains_two_vectors(classifier):
    """`_vera_pair` cuts the shared matrices to a layer's size; other names, and every VeRA run ends in an error."""
    from peft import TaskType, VeraConfig, get_peft_model

    model = get_peft_model(classifier, VeraConfig(r=8, target_modules=lora_pattern("bert"),
                                                  task_type=TaskType.SEQ_CLS))
    layers = model.base_model.model.bert.encoder.layer
    narrow, wide = layers[0].attention.self.query, layers[0].intermediate.dense
    assert narrow.vera_A["default"] is wide.vera_A["default"] and narrow.vera_A["default"].shape == (8, 64)
    assert narrow.vera_B["default"].shape == (64, 8)
    assert wide.vera_lambda_b["default"].shape == (64,) and wide.vera_lambda_d["default"].shape == (8,)
    assert wide.vera_lambda_b["default"].abs().sum() == 0, "no update at the start"
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad and "vera" in name}
    assert len(trained) == 24 and all("vera_lambda" in name for name in trained)


def test_pissa_is_an_initialisation_that_rewrites_the_base(classifier):
    """Under another name PEFT would start from zero, and from a base that is whole: the wrong update is stored."""
    from peft import LoraConfig, get_peft_model

    layer = classifier.bert.encoder.layer[0].output.dense
    before = layer.weight.detach().clone()
    model = get_peft_model(classifier, LoraConfig(r=4, lora_alpha=8, init_lora_weights="pissa",
                                                  target_modules=lora_pattern("bert")))
    wrapped = model.base_model.model.bert.encoder.layer[0].output.dense
    residual, update = wrapped.get_base_layer().weight, wrapped.get_delta_weight("default")
    assert update.norm() > 0.1 * before.norm()
    torch.testing.assert_close(residual + update, before, rtol=0, atol=1e-6)


def test_lora_plus_puts_b_into_a_group_of_its_own(classifier):
    """Its learning rate is a ratio of A's; a renamed keyword would go on to AdamW, and there it is an error."""
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_loraplus_optimizer

    model = get_peft_model(classifier, LoraConfig(r=4, lora_alpha=8, target_modules=lora_pattern("bert")))
    optimiser = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, weight_decay=0.0, loraplus_lr_ratio=16)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(parameter)]: group["lr"] for group in optimiser.param_groups for parameter in group["params"]}
    assert len(rates) == 24 and all(group["weight_decay"] == 0 for group in optimiser.param_groups)
    assert {("lora_B" in name, round(rate, 6)) for name, rate in rates.items()} == {(True, 0.016), (False, 0.001)}


def test_pefts_mitigation_takes_our_keywords_and_leaves_its_adapter_active(classifier):
    """Notebook 07 reads the merged factors of the adapter that it makes, and says which head it leaves."""
    from peft import LoraConfig, TaskType, get_peft_model
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    model = get_peft_model(classifier, LoraConfig(r=2, lora_alpha=4, target_modules=lora_pattern("bert"),
                                                  task_type=TaskType.SEQ_CLS, modules_to_save=["classifier"]))
    reduce_intruder_dimension(model, new_adapter_name="less", top_k=3, threshold_epsilon=0.5, mitigation_lambda=0.75,
                              logging_sink=None)
    layer = model.base_model.model.bert.encoder.layer[0].output.dense
    assert model.active_adapters == ["less"] and layer.get_delta_weight("less").shape == (32, 64)
    assert set(model.base_model.model.classifier.modules_to_save) == {"default", "less"}


def test_logistic_regression_is_multinomial_and_takes_an_inverse_penalty():
    """The refitted heads: `multi_class` went in 2025; one-against-rest in its place would be another head."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = torch.randn(90, 5, generator=torch.Generator().manual_seed(0)).numpy()
    y = torch.arange(90).remainder(3).numpy()
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(x, y)
    scores, shares = (getattr(head, name)(x) for name in ("decision_function", "predict_proba"))
    torch.testing.assert_close(torch.tensor(scores).softmax(1), torch.tensor(shares))
    assert head[-1].coef_.shape == (3, 5) and head.predict(x).dtype == y.dtype


class OneWeight(nn.Module):
    """The loss is a hundred times the only weight, so that its gradient is always a hundred."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.0]))

    def forward(self, input_ids, labels=None):
        return {"loss": 100 * self.weight.sum()}


@pytest.fixture
def seen(tmp_path) -> dict[str, dict]:
    """What a callback sees at each event of a run of two steps under our arguments, its peak rate 0.1 falling to 0."""
    from datasets import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments

    found = {}

    class Watching(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model, optimizer, **kwargs):
            self.see("on_optimizer_step", state.global_step, model, optimizer)

        def on_step_end(self, args, state, control, model, optimizer, **kwargs):
            self.see("on_step_end", state.global_step, model, optimizer)

        def see(self, event, step, model, optimizer):
            gradient = model.weight.grad
            found[f"{event} {step}"] = {
                "weight": model.weight.item(), "gradient": None if gradient is None else gradient.item(),
                "rate": optimizer.param_groups[0]["lr"],
                "saved": sorted(path.name for path in tmp_path.glob("checkpoint-*"))}

    ours = common_arguments(tmp_path, steps=2, batch_size=1, learning_rate=0.1, warmup_fraction=0.0,
                            schedule="linear", seed=0, save_every=1)
    rows = Dataset.from_dict({"input_ids": [[1], [2]], "labels": [0, 0]})
    Trainer(model=OneWeight(), args=TrainingArguments(**ours | {"optim": "sgd"}), train_dataset=rows,
            callbacks=[Watching()]).train()
    return found


def test_no_gradient_clipping_is_zero(seen):
    """At None or 1.0 the papers' recipe would be clipped, and every learning rate would mean something else."""
    assert seen["on_optimizer_step 0"]["gradient"] == 100
    assert seen["on_step_end 1"]["weight"] == pytest.approx(-0.1 * 100)


def test_a_callback_is_called_between_the_optimisers_step_and_the_clearing_of_gradients(seen):
    """AdaLoRA's importance is weight times gradient: after `zero_grad` every direction would look unimportant."""
    for step, weight in ((0, -10.0), (1, -15.0)):  # the step is counted afterwards
        event = seen[f"on_optimizer_step {step}"]
        assert event["gradient"] == 100 and event["weight"] == pytest.approx(weight)


def test_a_callback_at_the_end_of_a_step_has_the_next_rate_no_gradients_and_the_save_to_come(seen):
    """A cooled copy is taken there: an old rate, left gradients or a save before it would change the hot run."""
    for step, rate in ((1, 0.05), (2, 0.0)):
        event = seen[f"on_step_end {step}"]
        assert event["gradient"] in (None, 0.0) and event["rate"] == pytest.approx(rate)
        assert event["saved"] == [f"checkpoint-{earlier}" for earlier in range(1, step)]


def test_rows_can_be_taken_in_their_own_order(arguments):
    """Blocks come shuffled by the run's seed, and cooled copies go on by number: a second shuffle would repeat some."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainingArguments

    made = TrainingArguments(**arguments, train_sampling_strategy="sequential")
    rows = Dataset.from_dict({"input_ids": [[number] for number in range(8)]})
    trainer = Trainer(model=nn.Linear(1, 1), args=made, train_dataset=rows)
    sampler = trainer._get_train_sampler(rows)
    assert isinstance(sampler, SequentialSampler) and list(sampler) == list(range(8))


def test_the_trainers_optimiser_runs_step_hooks_and_keeps_the_peak_rate():
    """Without the hook nothing decays; without `initial_lr` a cooldown has no rate to fall from."""
    from accelerate import Accelerator
    from transformers import get_scheduler

    weight, called = nn.Parameter(torch.ones(1)), []
    optimiser = torch.optim.SGD([weight], lr=0.5)
    optimiser.register_step_pre_hook(lambda own, arguments, keywords: called.append(own))
    wrapped = Accelerator(cpu=True).prepare(optimiser)
    assert type(wrapped).__name__ == "AcceleratedOptimizer"
    get_scheduler("constant_with_warmup", wrapped, num_warmup_steps=2, num_training_steps=10)
    assert wrapped.param_groups[0] | {"params": None} == optimiser.param_groups[0] | {"params": None}
    assert (wrapped.param_groups[0]["initial_lr"], wrapped.param_groups[0]["lr"]) == (0.5, 0.0)
    wrapped.param_groups[0]["lr"] = 0.25
    weight.grad = torch.ones(1)
    wrapped.step()
    assert called == [optimiser] and weight.item() == 0.75, "a rate that is set is the one that is used"
    kept = copy.deepcopy(wrapped.state_dict())
    wrapped.param_groups[0]["lr"] = 0.1
    wrapped.load_state_dict(kept)
    assert (optimiser.param_groups[0]["lr"], optimiser.param_groups[0]["initial_lr"]) == (0.25, 0.5)


def test_a_causal_models_config_takes_attention_dropout(tmp_path):
    """A keyword that no configuration knows ends up nowhere, and dropout would be off without a word."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                 num_attention_heads=1, num_key_value_heads=1)).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, attention_dropout=0.3)
    assert model.config.attention_dropout == model.model.layers[0].self_attn.attention_dropout == 0.3


def tiny_llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                                        num_attention_heads=2, num_key_value_heads=1))


def test_peft_has_the_sequels_variants_under_these_options():
    """A renamed option would leave vanilla LoRA under a variant's label: PEFT ignores none, but defaults do move."""
    from peft import GraloraConfig, LoraConfig, LoraGAConfig, RandLoraConfig

    assert LoraConfig().use_dora is False and LoraConfig().init_lora_weights is True
    assert (LoraGAConfig().direction, LoraGAConfig().scale, LoraGAConfig().stable_gamma) == ("ArB2r", "stable", 16)
    assert GraloraConfig().gralora_k == 2 and GraloraConfig().hybrid_r == 0
    assert RandLoraConfig().randlora_alpha == 20 * RandLoraConfig().r


def test_pefts_lora_ga_still_scales_b_by_the_gradients_singular_values():
    """It is why the notebook has two rows: the day that PEFT follows the paper, one of them goes."""
    from peft import LoraConfig, LoraGAConfig, get_peft_model
    from peft.tuners.lora.loraga import preprocess_loraga

    torch.manual_seed(0)
    model, ids = tiny_llama(), torch.arange(10)[None]
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"], init_lora_weights="lora_ga",
                        lora_ga_config=LoraGAConfig())
    preprocess_loraga(model, config, lambda: model(input_ids=ids, labels=ids).loss.backward())
    gradient = model.model.layers[0].self_attn.q_proj._peft_loraga_grad.clone()
    module = get_peft_model(model, config).base_model.model.model.layers[0].self_attn.q_proj
    lengths = module.lora_B["default"].weight.norm(dim=0)
    expected = torch.linalg.svdvals(gradient)[2:4] * 16**0.25 / 16**0.5
    torch.testing.assert_close(lengths.sort(descending=True).values, expected, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(module.lora_A["default"].weight.norm(dim=1), torch.ones(2))


def test_the_default_attention_has_no_second_derivative():
    """The day that it has one, the Hessian needs no other attention, and is faster."""
    model, ids = tiny_llama().eval(), torch.arange(10)[None]
    parameter = model.model.layers[0].self_attn.q_proj.weight

    def second_derivative() -> None:
        loss = model(input_ids=ids, labels=ids).loss
        (first,) = torch.autograd.grad(loss, parameter, create_graph=True)
        torch.autograd.grad(first.square().sum(), parameter)

    with pytest.raises(RuntimeError, match="scaled_dot_product"):
        second_derivative()
    model.set_attn_implementation("eager")
    second_derivative()
