"""How a model is trained, as far as it decides what that costs."""

from dataclasses import dataclass

from utils.errors import UsageError

CHOICES = {"method": ("full", "lora", "qlora"), "optimiser": ("adamw", "adamw8bit", "lion", "sgd", "adafactor"),
           "precision": ("float32", "mixed", "bfloat16"), "attention": ("sdpa", "eager"), "targets": ("all", "qv")}


@dataclass(frozen=True)
class Recipe:
    """What is trained, in which numbers and batches.

    ``full`` trains every parameter. ``lora`` adds factors of rank `r` in float32 to a frozen base of `precision`
    (``targets``: all seven maps, or queries and values), ``qlora`` to one of four bits (NF4, double quantisation).
    `precision` is ``float32``, ``mixed`` (bfloat16 with a float32 copy that is updated: 16 bytes with Adam) or
    ``bfloat16`` throughout. `padded` batches carry an attention mask, for which keys and values are repeated.
    """

    method: str = "full"
    r: int = 8
    optimiser: str = "adamw"
    precision: str = "float32"
    checkpointing: bool = False
    batch: int = 1
    length: int = 512
    attention: str = "sdpa"
    targets: str = "all"
    padded: bool = False

    def __post_init__(self) -> None:
        for field, known in CHOICES.items():
            if (value := getattr(self, field)) not in known:
                raise UsageError(f"Expected {field} to be one of {', '.join(known)}, got '{value}'; do choose one.")
        if min(self.r, self.batch, self.length) < 1:
            raise UsageError(f"Expected rank, batch and length of 1 or more, got {self.r}, {self.batch} and "
                             f"{self.length}; do give such.")

    @property
    def tokens(self) -> int:
        """Of one batch."""
        return self.batch * self.length

    @property
    def full(self) -> bool:
        """Whether every parameter is trained."""
        return self.method == "full"

    @property
    def activation_bytes(self) -> int:
        """Of one number of the forward pass."""
        return 4 if self.precision == "float32" else 2

    @property
    def label(self) -> str:
        """A short name, such as ``LoRA r=8, AdamW, checkpointing``."""
        method = {"full": "full", "lora": f"LoRA r={self.r}", "qlora": f"QLoRA r={self.r}"}[self.method]
        optimiser = {"adamw": "AdamW", "adamw8bit": "8-bit AdamW", "lion": "Lion", "sgd": "SGD",
                     "adafactor": "Adafactor"}[self.optimiser]
        return f"{method}, {optimiser}" + ", checkpointing" * self.checkpointing
