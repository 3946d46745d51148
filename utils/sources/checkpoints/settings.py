"""What an adapter's configuration says, as PEFT reads it; the counts follow from it, so nothing of it is guessed.

An allow-list, checked against the installed PEFT by a test: an initialisation, or a switch, that is not known here may
change what the factors mean, as each new one of PEFT's has.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UsageError
from utils.sources.checkpoints.foreign import named_settings

DEFAULT_ALPHA = 8  # PEFT's LoraConfig
# Initialisations that leave the base's weight as it is; all others of PEFT's rewrite it.
HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica", "true", "false")
# Switches that make more of an adapter than scale * B A, by the installed PEFT.
BEYOND_LORA = ("use_qalora", "layer_replication", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config",
               "alora_invocation_tokens", "target_parameters", "enable_lora")
# Switches and settings that change training only, or another part of the file than the factors.
HARMLESS = ("use_rslora", "use_dora", "eva_config", "corda_config", "lora_ga_config", "loftq_config", "megatron_config",
            "velora_config", "runtime_config")
_MERGE = "merge it into its base with PEFT's `merge_and_unload` and give the merged copy"
_MOST = 1e9  # beyond, a float32 weight is none


@dataclass(frozen=True)
class Settings:
    """An adapter's configuration, checked: what scales its factors, and what else its files may hold."""

    r: int | None = None
    alpha: float = DEFAULT_ALPHA
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    base_name: str = ""
    revision: str | None = None

    def rank_of(self, module: str) -> int | None:
        """The rank that the configuration gives a module; None if it says nothing of ranks."""
        key = pattern_of(self.rank_pattern, module)
        return self.r if key is None else self.rank_pattern[key]

    def scale_of(self, module: str, rank: int) -> float:
        """alpha / r, or alpha / sqrt(r) for rsLoRA, with the module's own alpha where the configuration gives one."""
        key = pattern_of(self.alpha_pattern, module)
        alpha = self.alpha if key is None else self.alpha_pattern[key]
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def pattern_of(patterns: dict[str, Any], module: str) -> str | None:
    """The first pattern that means a module: it matches the whole name, or what follows one of its dots.

    ``peft.utils.other.get_pattern_key`` written out, since PEFT takes seconds to import; "^" anchors it to the start.

    >>> pattern_of({"^layers.1.k": 1, "q": 2}, "model.layers.1.k"), pattern_of({"q": 2}, "model.layers.1.q")
    (None, 'q')
    """
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)


def settings_of(source: str, config: dict, file: Path) -> Settings:
    """The settings of an ``adapter_config.json``.

    Parameters
    ----------
    source : str
        How the reader called the adapter.
    config : dict
        What the file holds.
    file : Path

    Raises
    ------
    UsageError
        If it is no plain LoRA of PEFT's, or a value is not what PEFT could have written.
    """
    if "peft_type" not in config and (whose := named_settings(config)):
        raise UsageError(f"{source} {whose}.")
    kind = config.get("peft_type", "unknown")
    if kind != "LORA":
        raise UsageError(f"{source} is an adapter of kind {kind}, not LoRA; {_MERGE}.")
    _check_start(source, config.get("init_lora_weights", True))
    _check_switches(source, config)
    read = _Reader(config, file)
    return Settings(
        r=read.value("r", _is_rank, "a whole number from 1", default=None),
        rank_pattern=read.pattern("rank_pattern", _is_rank),
        alpha=read.value("lora_alpha", _is_alpha, "a finite number", default=DEFAULT_ALPHA),
        alpha_pattern=read.pattern("alpha_pattern", _is_alpha), use_rslora=read.switch("use_rslora"),
        use_dora=read.switch("use_dora"), fan_in_fan_out=read.switch("fan_in_fan_out"),
        base_name=read.text("base_model_name_or_path") or "", revision=read.text("revision"))


def _check_start(source: str, start: object) -> None:
    plain = start.lower() if isinstance(start, str) else start
    if not any(plain is known or (isinstance(known, str) and plain == known) for known in HARMLESS_STARTS):
        raise UsageError(f"{source} started from {start!r:.100}, which is not among the initialisations that are known "
                         "to leave the base's weight as it is, so its factors alone may not give the tuned weight over "
                         "the original base; merge it into the base it was trained on with PEFT's `merge_and_unload` "
                         "and give the merged copy, or save it anew with PEFT's "
                         "`path_initial_model_for_weight_conversion`, which makes plain LoRA of PiSSA, OLoRA and the "
                         "like.")


def _check_switches(source: str, config: dict) -> None:
    """UsageError for a switch that is on and makes more of the adapter, or that nothing is known of."""
    if beyond := [name for name in BEYOND_LORA if config.get(name)]:
        raise UsageError(f"{source} uses {beyond[0]}, which is more than scale * B A; {_MERGE}.")
    unknown = [name for name, value in config.items() if value and name not in HARMLESS
               and (name.startswith("use_") or name.endswith("_config"))]
    if unknown:
        raise UsageError(f"{source} uses {unknown[0]}, which is not known here and may make more of it than scale * B "
                         f"A; {_MERGE}.")


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 2**20


def _is_alpha(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MOST


class _Reader:
    """Values of a configuration, each checked; errors name the file, the key and the value."""

    def __init__(self, config: dict, file: Path):
        self.config, self.file = config, file

    def value(self, key: str, fits: Callable[[object], bool], wanted: str, *, default: Any) -> Any:
        """A number that is there and fits, or the default if it is not there."""
        if key in self.config and not fits(self.config[key]):
            raise self._wrong(key, self.config[key], wanted)
        return self.config.get(key, default)

    def switch(self, key: str) -> bool:
        value = self.config.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return bool(value)

    def text(self, key: str) -> str | None:
        value = self.config.get(key)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, value, "a text or nothing")
        return value

    def pattern(self, key: str, fits: Callable[[object], bool]) -> dict:
        value = self.config.get(key)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(key, value, "a mapping of names to numbers")
        for name, number in (value or {}).items():
            if not fits(number):
                raise self._wrong(f"{key}.{name}", number, "a number")
            try:
                re.compile(rf"(.*\.)?({name})$")
            except (re.error, OverflowError, RecursionError) as error:
                raise self._wrong(key, name, f"a regular expression ({error})") from error
        return value or {}

    def _wrong(self, key: str, value: object, wanted: str) -> UsageError:
        return UsageError(f"{self.file} gives {key} as {str(value)[:100]!r}, where PEFT writes {wanted}; save the "
                          "adapter again with PEFT.")
