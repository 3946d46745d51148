"""Which matrices the papers tune, and what each is called, by architecture.

The first paper tunes and counts six linear kinds per encoder layer: query, key, value, the attention's output, and
the two of the feed-forward block. Classifier, pooler, embeddings and LayerNorm are never among them.
"""

import re
from typing import Any

from torch import nn

from utils.errors import UsageError

# model_type -> (pattern of a matrix's module name, head modules that every method trains)
_BERT = (r"encoder\.layer\.(?P<layer>\d+)\.(?:attention\.self\.|)"
         r"(?P<type>query|key|value|attention\.output\.dense|intermediate\.dense|output\.dense)")
_LLAMA = (r"layers\.(?P<layer>\d+)\.(?:self_attn|mlp)\."
          r"(?P<type>q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)")
PATTERNS = {"bert": _BERT, "roberta": _BERT, "llama": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA}
# A linear layer, plain or as PEFT wrapped it: which attributes it has is known only when it is there.
Layer = Any
HEADS = {"bert": ("pooler", "classifier"), "roberta": ("classifier",)}


def pattern_for(model_type: str) -> str:
    """The regular expression of the tuned matrices of an architecture; UsageError if it has no rule."""
    if model_type not in PATTERNS:
        raise UsageError(f"No rule says which matrices of a '{model_type}' model are tuned; "
                         f"there are rules for {', '.join(PATTERNS)} (utils/training/targets.py).")
    return PATTERNS[model_type]


def split_name(name: str) -> tuple[int, str]:
    """Layer index and matrix type of a module name.

    >>> split_name("encoder.layer.3.attention.self.query")
    (3, 'query')
    >>> split_name("layers.0.mlp.down_proj")
    (0, 'down_proj')
    """
    for pattern in (_BERT, _LLAMA):
        if found := re.fullmatch(rf"(?:.*\.)?{pattern}", name):
            return int(found["layer"]), found["type"]
    raise UsageError(f"'{name}' is not the name of a matrix that any rule in utils/training/targets.py knows.")


ATTENTION = ("query", "key", "value", "attention.output.dense", "q_proj", "k_proj", "v_proj", "o_proj")


def tuned_modules(model: nn.Module, targets: str = "all") -> dict[str, Layer]:
    """The tuned linear modules of a plain (unwrapped) model, by short name such as ``encoder.layer.0.output.dense``.

    `targets` is ``all``, or ``attention`` or ``mlp`` for a part of them.

    The short name starts at the first word of the architecture's pattern, so that a masked-LM model and a classifier
    built on the same body give the same names.
    """
    pattern = re.compile(rf"(?:.*\.)?(?P<short>{pattern_for(model_type(model))})")
    found = {}
    for name, module in model.named_modules():
        match = pattern.fullmatch(name) if hasattr(module, "weight") else None
        if match and (targets == "all" or (match["type"] in ATTENTION) == (targets == "attention")):
            found[match["short"]] = module
    return found


def model_type(model: nn.Module) -> str:
    """What transformers calls the architecture of a model, however it is wrapped."""
    config: Any = model.config
    return config.model_type


def lora_pattern(architecture: str) -> str:
    """The same rule in the form that PEFT's ``target_modules`` takes: one expression for the whole module name."""
    return rf"(?:.*\.)?{re.sub(r'[?]P<[a-z]+>', '?:', pattern_for(architecture))}"
