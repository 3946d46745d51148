"""What transformers knows of a model from its configuration alone: names in memory, and which module is of what kind.

The model is built on torch's meta device, where weights take no memory, and its own rules for renaming on load
(``transformers.conversion_mapping``) are asked. Code that a checkpoint brings along is never run. Importing
transformers takes seconds, so this is asked only where names or shapes leave something open.
"""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

MOST_LAYERS = 512  # a configuration that asks for more, of layers or experts in a layer, is not built
_DEEPEST = 8  # parts within parts of a configuration
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)|(?<=\.)\d+$")


class Architecture:
    """Names and kinds of modules by transformers; :func:`architecture_of` makes it."""

    def __init__(self, rename: Callable[[str], str | None], kinds: dict[str, str]):
        self._rename, self._kinds = rename, kinds

    def memory_name(self, module: str) -> str | None:
        """A module's name in memory; None where transformers does more on loading than rename, such as to fuse two."""
        return self._rename(module)

    def kind(self, module: str) -> str | None:
        """The class of a module, such as "Linear", "Conv1D" or "Embedding"; None where it is not known.

        Layers are told by what surrounds their number, so that a configuration with fewer layers does as well.
        """
        name = self._rename(module) or module
        parts = _NUMBER.sub("#", name).split(".")
        found = (self._kinds.get(".".join(parts[place:])) for place in range(len(parts)))
        return next((kind for kind in found if kind), None)


def architecture_of(config: dict | None) -> Architecture | None:
    """What transformers knows of the model of a ``config.json``; None if it knows no such model."""
    if not config or not isinstance(config.get("model_type"), str) or not _is_modest(config):
        return None
    # Neither decides a name, and a quantised copy's would ask for packages that are not here.
    plain = {key: value for key, value in config.items() if key not in ("quantization_config", "auto_map")}
    return _built(json.dumps(plain, sort_keys=True))


def _is_modest(config: dict, depth: int = 0) -> bool:
    """Whether no number of layers or experts is beyond what a model has; a damaged file could keep us for hours."""
    for key, value in config.items():
        if isinstance(value, dict) and (depth == _DEEPEST or not _is_modest(value, depth + 1)):
            return False
        if re.search(r"layer|block|expert|depth", key) and isinstance(value, int) and value > MOST_LAYERS:
            return False
    return True


@lru_cache(maxsize=4)
def _built(config_json: str) -> Architecture | None:
    from utils.machine import quiet_transformers

    quiet_transformers()
    config = json.loads(config_json)
    for way in (lambda: _of_model(_meta_model(config)), lambda: _of_patterns(config)):
        with suppress(Exception):  # a configuration may lack or contradict anything, and each model fails its own way
            return way()
    return None


def _meta_model(config: dict) -> Any:
    import torch
    import transformers

    settings = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(config)
    named = next(iter(config.get("architectures") or []), None)
    cls = getattr(transformers, named, None) if isinstance(named, str) else None
    with torch.device("meta"):
        if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel):
            return cls(settings)
        return transformers.AutoModel.from_config(settings, trust_remote_code=False)


def _of_model(model: Any) -> Architecture:
    from transformers.conversion_mapping import get_model_conversion_mapping

    kinds: dict[str, str] = {}
    for name, module in model.named_modules():
        parts = _NUMBER.sub("#", name).split(".")
        for place in range(len(parts)):  # a checkpoint of the bare body lacks what stands before
            if "#" in parts[place:]:
                end, kind = ".".join(parts[place:]), type(module).__name__
                kinds[end] = kind if kinds.get(end, kind) == kind else ""  # two towers that share an ending
    tensors = {name: True for name, _ in model.state_dict().items()}
    return Architecture(_renaming(get_model_conversion_mapping(model), model.base_model_prefix, tensors), kinds)


def _of_patterns(config: dict) -> Architecture | None:
    """The renaming alone, by the names under which transformers keeps it, where the model cannot be built."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    named = [*(config.get("architectures") or []), config["model_type"]]
    found = [get_checkpoint_conversion_mapping(name) for name in named if isinstance(name, str)]
    patterns = next((one for one in found if one), None)
    return None if patterns is None else Architecture(_renaming(patterns), {})


def _renaming(transforms: list, prefix: str | None = None, tensors: dict | None = None) -> Callable[[str], str | None]:
    """Module -> its name in memory, by the rules that transformers loads weights with."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]

    def rename(module: str) -> str | None:
        name, converted = rename_source_key(f"{module}.weight", renamings, converters, prefix, tensors)
        return None if converted is not None else name.removesuffix(".weight")

    return rename
