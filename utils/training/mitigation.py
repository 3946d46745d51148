"""A stored run as a PEFT model again, and PEFT's own mitigation of intruders on it."""

from collections.abc import Iterable

import torch
from peft import PeftModel
from peft.tuners.lora.intruders import reduce_intruder_dimension
from transformers import AutoModelForSequenceClassification

from utils.errors import UsageError
from utils.sources.tasks import task
from utils.training.metrics import predict
from utils.training.store import Run
from utils.training.targets import tuned_modules
from utils.training.weights import Tensors, head_name, prepare

REDUCED = "intruder_reduced"
HEADS = 64


def as_peft_model(run: Run) -> PeftModel:
    """A finished LoRA run as a PEFT classifier with its adapter and head; UsageError for anything but plain LoRA."""
    method = run.spec.method
    if method.kind != "lora" or method.variant != "lora" or run.start is not None:
        raise UsageError(f"Run {run.spec.key} is {method.label}; only a plain LoRA run that starts from the base can "
                         "be put back into PEFT's form.")
    with torch.random.fork_rng(devices=[]):  # the head under the trained one: an adapter added later starts from it
        torch.manual_seed(run.spec.seed + 1)  # with the run's own seed it would be what this body was trained beside
        model = AutoModelForSequenceClassification.from_pretrained(
            run.base.folder, num_labels=len(task(run.spec.task).labels), dtype=torch.float32,
            use_safetensors=True, trust_remote_code=False)
    model, trained = prepare(model, method, causal=False), run.trained()
    with torch.no_grad():
        for name, module in tuned_modules(model).items():
            module.lora_A["default"].weight.copy_(trained[f"lora_A.{name}"])
            module.lora_B["default"].weight.copy_(trained[f"lora_B.{name}"])
        for name, parameter in model.named_parameters():
            if (stored := head_name(name)) in trained:
                parameter.copy_(trained[stored])
    return model.eval()


def mitigated_by_peft(run: Run, *, k: int, epsilon: float, factor: float) -> tuple[Tensors, PeftModel]:
    """What PEFT's ``reduce_intruder_dimension`` makes of a run: its merged matrices, and the model as PEFT leaves it.

    It scales every intruder among the k leading vectors, not only the first, and fits the result back into rank r by a
    further SVD, so that a part of what it computed is lost. Its new adapter gets a classification head of its own, not
    the trained one: the returned model shows that, its head drawn with another seed than the run's.

    Parameters
    ----------
    run : Run
        Of plain LoRA.
    k : int
        Leading vectors examined.
    epsilon : float
        Below it a vector is an intruder.
    factor : float
        1 changes nothing, 0 removes.

    References
    ----------
    huggingface/peft pull request 2999.
    """
    model = as_peft_model(run)
    reduce_intruder_dimension(model, new_adapter_name=REDUCED, top_k=k, threshold_epsilon=epsilon,
                              mitigation_lambda=factor, logging_sink=None)
    base = run.base_matrices()
    merged = {name: base[name] + module.get_delta_weight(REDUCED).detach()
              for name, module in tuned_modules(model).items()}
    return merged, model


@torch.no_grad()
def head_accuracies(model: PeftModel, batches: Iterable[dict], *, seed: int, heads: int = HEADS) -> torch.Tensor:
    """Test accuracies of a classifier with one untrained head after the other in its last layer's place.

    One such head may do well or badly: it need not know the task to split two tight clusters. Their mean is chance.

    Parameters
    ----------
    model : PeftModel
        Whose head, ``classifier``, is a linear layer (BERT) or ends with one (RoBERTa), on one vector per row.
    batches : iterable of dict
        As :func:`utils.training.metrics.predict` takes them.
    seed : int
        The run's: heads are drawn with the seeds after it, as Transformers draws them, normal and without a bias.
    heads : int
        How many.

    Returns
    -------
    torch.Tensor of shape (heads,)
    """
    features: list[torch.Tensor] = []
    head = next(module for name, module in model.named_modules()
                if name.endswith(f"modules_to_save.{REDUCED}") and "classifier" in name)
    last = [module for module in head.modules() if isinstance(module, torch.nn.Linear)][-1]  # BERT's is the head itself
    hook = last.register_forward_pre_hook(lambda _, given: features.append(given[0].cpu()))
    try:
        _, true = predict(model, batches)
    finally:
        hook.remove()
    rows_N_D, found = torch.cat(features), []
    for drawn in range(seed + 1, seed + 1 + heads):
        weight = torch.randn(last.out_features, last.in_features, generator=torch.Generator().manual_seed(drawn))
        found.append(((rows_N_D @ weight.T).argmax(-1) == true).double().mean())
    return torch.stack(found)
