"""A run with some of its matrices changed: which directions are scaled, what stands in their place, what it answers.

Nothing is trained. Every changed model is the run's own classifier, and the base's own masked-LM, with matrices
exchanged; what two measurements ask of the same matrices is evaluated once in a process.
"""

import hashlib
from collections.abc import Callable
from functools import cached_property

import pandas as pd
from torch import nn

from utils.evaluation.pseudo import corpus_loss, pseudo_loss
from utils.machine import device_name
from utils.profiles import Profile
from utils.profiles.schema import PseudoLoss
from utils.reporting.items import packed, passages_as_text
from utils.reporting.runs import base_spectra, run_pairs
from utils.sources.corpora import pretraining_passages
from utils.spectra.intervention import (
    Direction,
    Directions,
    leading_directions,
    neighbour,
    random_direction,
    require_factor,
    scaled,
    shrunk,
    update_direction,
)
from utils.training.data import classification_data, evaluation_batches, tokenizer_of
from utils.training.metrics import predict
from utils.training.store import Run
from utils.training.weights import Tensors, load_into

# What is scaled, with lambda; the last is no scaling: another run, at a smaller share of the learning rate.
KINDS = ("intruder", "update triplet", "neighbour", "random direction", "whole update", "smaller rate")
_EVALUATED: dict[tuple, dict] = {}  # model and matrices -> what it answered, as long as the process lasts


class Changed:
    """One run whose matrices can be exchanged: what the classifier and the masked-LM then answer, item by item."""

    def __init__(self, run: Run, profile: Profile):
        self.run, self.settings, self.every = run, profile.pseudo_loss, profile.intervention.masked_every

    def measure(self, matrices: Tensors, *, answers: bool = True) -> dict:
        """What results with these matrices in the run's place.

        Parameters
        ----------
        matrices : dict of str to torch.Tensor
            By short name.
        answers : bool
            Whether the classifier is asked, too: that takes half of the time.

        Returns
        -------
        dict
            ``accuracy`` and ``right`` (which test rows, as :func:`utils.reporting.items.packed` writes them) of
            the classifier; ``pseudo_loss`` (nats per token) and ``passage_nats``, what each passage adds to it: their
            mean is the loss.
        """
        key = _digest(matrices)
        losses = _once((str(self.run.base.folder), self._text, key), lambda: self._losses(matrices))
        if not answers:
            return dict(losses)
        return _once((self.run.spec.key, key), lambda: self._answers(matrices)) | losses

    @property
    def _text(self) -> tuple:
        return (self.settings.corpus, self.settings.paired_passages, self.settings.tokens, self.every)

    def _answers(self, matrices: Tensors) -> dict:
        predicted, true = predict(load_into(self.classifier, matrices), self.batches)
        right = (predicted == true).numpy()
        return {"accuracy": float(right.mean()), "right": packed(right)}

    def _losses(self, matrices: Tensors) -> dict:
        model = load_into(self._masked_lm, matrices)
        table = passage_table(model, self.run, self.settings, every=self.every)
        added = table["negative_pll_nats"] * len(table) / table["tokens"].sum()
        return {"pseudo_loss": corpus_loss(table), "passage_nats": passages_as_text(added)}

    @cached_property
    def classifier(self) -> nn.Module:
        """The run's own, with its trained head."""
        return self.run.classifier().to(device_name())

    @cached_property
    def _masked_lm(self) -> nn.Module:
        return self.run.masked_lm().to(device_name())

    @cached_property
    def batches(self) -> list[dict]:
        """The test rows of the run's task."""
        _, test = classification_data(self.run.spec.task, self.run.spec.sizes, self.run.base.folder)
        return evaluation_batches(test, self.run.base.folder)


def passage_table(model: nn.Module, run: Run, settings: PseudoLoss, *, every: int) -> pd.DataFrame:
    """Pseudo-loss of each of the passages that two models are compared on, of every so many-th token of each."""
    texts = pretraining_passages(settings.corpus, settings.paired_passages)
    return pseudo_loss(model, tokenizer_of(run.base.folder), texts, tokens=settings.tokens, every=every)


def _once(key: tuple, evaluate: Callable[[], dict]) -> dict:
    if key not in _EVALUATED:
        _EVALUATED[key] = evaluate()
    return _EVALUATED[key]


def _digest(matrices: Tensors) -> str:
    found = hashlib.sha256()
    for name, weight in sorted(matrices.items()):
        found.update(name.encode())
        found.update(weight.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()


def run_directions(run: Run, profile: Profile) -> dict[str, Directions]:
    """Intruders and other leading directions of every matrix of a run, at the profile's k and epsilon.

    Where a matrix has an intruder, the first foreign triplet of its update stands beside it.
    """
    epsilon, found = profile.spectra.epsilon, {}
    for pair in run_pairs(run):
        leading = leading_directions(pair, k=profile.spectra.k, epsilon=epsilon, spectrum=base_spectra().spectrum)
        if leading.intruders:
            leading = leading._replace(of_update=update_direction(pair, epsilon=epsilon))
        found[pair.name] = leading
    return found


def changed_matrices(run: Run, directions: dict[str, Directions], *, kind: str, factor: float) -> Tensors:
    """Every matrix of a run with one kind of change at strength `factor` (lambda).

    Parameters
    ----------
    directions : dict of str to Directions
        From :func:`run_directions`; matrices without an intruder stay as they are, but for ``whole update``.
    kind : str
        One of :data:`KINDS` but the last, or ``all intruders``. ``intruder`` is the paper's: the highest-ranked one of
        each matrix, of SVD(W0 + dW); ``update triplet`` is what it would be of SVD(dW).
    factor : float
        0 removes, 1 changes nothing.
    """
    require_factor(factor)
    tuned = run.tuned_matrices()
    if factor == 1:
        return tuned  # to the last bit, which W0 + (Wt - W0) is not
    if kind == "whole update":
        base = run.base_matrices()
        return {name: shrunk(base[name], weight, factor) for name, weight in tuned.items()}
    for name, direction in picked(run, directions, kind):
        tuned[name] = scaled(tuned[name], direction, factor)
    return tuned


def picked(run: Run, directions: dict[str, Directions], kind: str) -> list[tuple[str, Direction]]:
    """The directions that one kind of change scales, each with the name of its matrix."""
    return [(name, one) for place, (name, leading) in enumerate(directions.items())
            for one in _of_kind(leading, kind, seed=run.spec.seed * 1_000_003 + place)]


def _of_kind(leading: Directions, kind: str, *, seed: int) -> list[Direction]:
    if not leading.intruders:
        return []
    first, beside = leading.intruders[0], neighbour(leading)
    return {"intruder": [first], "all intruders": leading.intruders, "neighbour": [beside] if beside else [],
            "update triplet": [leading.of_update] if leading.of_update else [],
            "random direction": [random_direction(first, seed=seed)]}[kind]
