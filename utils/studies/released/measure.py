"""Released checkpoints: the first paper's 7B pairs, counted matrix by matrix without either model in memory.

A profile names the pairs (``released``). Of a 7B pair one matrix of each model is in memory at a time, and what its
leading vectors gave is kept in ``cache/released``, so that an analysis that was interrupted goes on where it stopped.
The first model over a base takes longest: each of its 224 matrices needs an eigendecomposition, which is kept for all
other models over that base (30 GB in ``cache/spectra``). Measured on one thread of a busy CPU, for a full update of a
11008 x 4096 matrix in float16: 100 s the first time, 18 s with the base's part kept, 0.7 GiB at the peak.
"""

import gc
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xxhash
from torch import nn

from utils.errors import CourseError, UsageError, reason_of
from utils.evaluation.language import text_loss
from utils.files import canonical_json
from utils.machine import compute_dtype, device_name
from utils.paths import cache_dir, ensure_dir
from utils.profiles.schema import Profile, ReleasedPair, Spectra
from utils.reporting.registry import measurement
from utils.reporting.runs import Seeds
from utils.sources.checkpoints import Adapter, match_names, some
from utils.sources.corpora import pretraining_passages
from utils.sources.pairs import CheckpointPair, identity, open_pair, place_of
from utils.spectra.base import small_side
from utils.spectra.cache import SpectrumCache
from utils.spectra.checkpoint_pairs import checkpoint_pairs, stored_floor, stored_types
from utils.spectra.fast import Pair, leading_cosines, leading_table, leading_triplets, merged_weight
from utils.spectra.intervention import Direction, leading_intruder, require_factor, scaled
from utils.spectra.intruders import count_intruders, first_intruders
from utils.tables import cached_table
from utils.training.targets import split_name

VERSION = 1  # raise it when what is kept means something else
PAIR_COLUMNS = ("profile", "group", "method", "r")
MODEL_DTYPE = "bfloat16"  # of a model whose loss is measured: 13.5 GB for 7B on a GPU; float32, twice that, on a CPU


def released_vectors(pair: ReleasedPair, spectra: Spectra, k: int | float | None = None, *,
                     matrices: str | None = None) -> pd.DataFrame:
    """Vector table of one pair, computed matrix by matrix and kept as it is.

    Parameters
    ----------
    pair : ReleasedPair
    spectra : Spectra
        The counts are the definition's at its epsilons.
    k : int or float, optional
        Leading vectors per matrix, or a fraction of each matrix's own; the settings' k by default. Up to a quarter of
        them (and for LoRA with 6 r up to the width) the fast core is at work. Beyond that every matrix costs a second
        eigendecomposition, and most of them two full float64 SVDs on top, because the bound leaves open where the
        vectors of small, nearly equal singular values point: by estimate several minutes for each matrix of a 7B model
        and most of a day for all.
    matrices : str, optional
        A regular expression; only matrices whose name in the base has a match.

    Returns
    -------
    pandas.DataFrame
        One row per matrix and vector: ``group``, ``method`` (the pair's label), ``r`` (an adapter's rank as its factors
        have it, 0 for a whole model), the columns of :func:`utils.spectra.fast.leading_table`, ``precision_floor``
        (what the stored types leave open of the cosine), ``layer`` and ``type``.

    Raises
    ------
    CourseError
        If the files cannot be had, are damaged, or do not go together; one sentence.
    """
    opened, k = open_released(pair, matrices), spectra.k if k is None else k
    asked = _asked(opened) | {"k": k, "epsilons": sorted({*spectra.epsilons, spectra.epsilon})}
    folder, spectrum = _folder(pair, asked), SpectrumCache(device=device_name())
    missing = [name for name in opened.sources if not (folder / f"{name}.parquet").exists()]
    if missing:
        print(f"{pair.group}, {pair.label}: {len(missing)} of {len(opened.sources)} matrices to compute.", flush=True)
    table = pd.concat([cached_table(folder / f"{name}.parquet", asked, lambda name=name: _matrix_vectors(
        opened, name, asked, spectrum=spectrum)) for name in opened.sources], ignore_index=True)
    places = {name: _place(name) for name in opened.sources}
    return pd.DataFrame(_identity(pair, opened), index=table.index).join(table).assign(
        layer=table["matrix"].map(lambda name: places[name][0]), type=table["matrix"].map(lambda name: places[name][1]))


@measurement(columns=("profile", "group", "method", "r", "epsilon", "n_intruders"))
def released_counts(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Intruders among the k leading vectors of all matrices of every pair, at each epsilon (paper's Fig 4a-c).

    A pair that cannot be had is said in one sentence and left out; without any the table is empty.

    Returns
    -------
    pandas.DataFrame
        ``profile``, ``group``, ``method``, ``r``, ``epsilon``, ``k``, ``n_intruders``, ``within_floor`` (how many of
        the examined cosines lie nearer to epsilon than the stored types can tell) and ``n_matrices``.
    """
    spectra = profile.spectra

    def count(pair: ReleasedPair) -> pd.DataFrame:
        vectors = released_vectors(pair, spectra).assign(profile=profile.profile)
        counts = count_intruders(vectors, spectra.epsilons, [spectra.k], by=PAIR_COLUMNS)
        distance = {epsilon: (vectors["max_cosine"] - epsilon).abs() for epsilon in spectra.epsilons}
        within = counts["epsilon"].map(lambda epsilon: int((distance[epsilon] < vectors["precision_floor"]).sum()))
        return counts.assign(within_floor=within, n_matrices=vectors["matrix"].nunique())

    return _of_each(profile, count)


def released_counts_by_k(profile: Profile, *, fraction: float = 1.0, matrices: str | None = None) -> pd.DataFrame:
    r"""Intruders at the profile's epsilon against the fraction of vectors examined (paper's Fig 15b-d).

    All vectors of a 7B model cost full SVDs, as :func:`released_vectors` says: most of a day for each pair. A smaller
    `fraction` (the fast core reaches to 0.25) or a few `matrices`, such as ``r"layers\.(0|15|31)\."``, bound that.

    Parameters
    ----------
    profile : Profile
    fraction : float
        The profile's fractions of k up to this one; the vectors beyond it are not computed.
    matrices : str, optional
        Only matrices whose name in the base matches this regular expression.

    Returns
    -------
    pandas.DataFrame
        ``profile``, ``group``, ``method``, ``r``, ``epsilon``, ``k`` (the fraction), ``n_intruders``, ``n_matrices``.
    """
    spectra = profile.spectra
    fractions = [k for k in spectra.k_fractions if k <= fraction]
    if not fractions:
        raise UsageError(f"The fraction {fraction} lies below all of the profile's k_fractions; the smallest is "
                         f"{min(spectra.k_fractions)}.")

    def count(pair: ReleasedPair) -> pd.DataFrame:
        vectors = released_vectors(pair, spectra, float(max(fractions)), matrices=matrices)
        counts = count_intruders(vectors.assign(profile=profile.profile), [spectra.epsilon], fractions, by=PAIR_COLUMNS)
        return counts.assign(n_matrices=vectors["matrix"].nunique())

    return _of_each(profile, count)


def released_similarity(pair: ReleasedPair, matrix: str, top: int = 10) -> np.ndarray:
    """|cosine| of the leading tuned with the leading pretrained left vectors of one matrix (paper's Figs 1 and 3).

    Parameters
    ----------
    pair : ReleasedPair
    matrix : str
        Its name in the base, such as ``"model.layers.15.self_attn.q_proj"``.
    top : int
        Leading vectors of either; 10 is Fig 3, a few hundred show the shifted diagonal of Fig 1. All of them where a
        matrix has fewer.

    Returns
    -------
    numpy.ndarray of shape (top, top)
        Rows are tuned vectors, columns pretrained ones; in 0 … 1.

    Raises
    ------
    CourseError
        If the pair cannot be had, or has no such matrix.
    """
    opened = open_released(pair)
    if matrix not in opened.sources:
        raise UsageError(f"{pair.tuned} has no matrix '{matrix}' that is counted; it has "
                         f"{some(list(opened.sources))}.")
    spectrum = SpectrumCache(device=device_name()).spectrum
    one = _one_pair(opened, matrix)
    base = one.load()[0]
    own = spectrum(base, name=f"base matrix {matrix}")
    near = own.basis.cpu()[:, :top]
    if base.shape[0] > base.shape[1]:  # its rows are the longer side: u = W0 v / s
        near = (small_side(base).T.double() @ near) / own.values.cpu()[:top].clamp(min=torch.finfo(torch.float64).tiny)
    tuned = leading_triplets(one, k=min(top, *base.shape), spectrum=spectrum).u
    return (tuned.T @ near).abs().clamp(max=1.0).numpy()


def released_interventions(pair: ReleasedPair, texts: Sequence[str], spectra: Spectra, *, lambdas: Iterable[float],
                           tokens: int = 512, batch_size: int = 1) -> pd.DataFrame:
    """Causal loss on texts as the leading intruder of each matrix is scaled by lambda (the loss of paper's Fig 13).

    Every matrix with an intruder becomes Wt + (lambda - 1) u sigma v^T, all of them at once, those without one stay as
    they are. The tuned model is loaded once (an adapter merged into its base); the scaled weights are written into it
    matrix by matrix from the files, so that rounding does not add up and no second model is in memory. The losses are
    kept lambda by lambda. The paper's other curve, accuracy on the task, needs the task's own evaluation.

    Parameters
    ----------
    pair : ReleasedPair
    texts : sequence of str
        Text like the base's pre-training data.
    spectra : Spectra
        Whose k and epsilon say what an intruder is.
    lambdas : iterable of float
        0 removes, 1 changes nothing; without any intruder only 1 is measured.
    tokens, batch_size : int
        See :func:`utils.evaluation.language.text_loss`.

    Returns
    -------
    pandas.DataFrame
        One row per lambda: ``group``, ``method``, ``r``, ``lambda``, ``n_scaled`` (matrices that were changed),
        ``loss_nats_per_token``, ``base_loss_nats_per_token``, ``forgetting`` (their difference), ``tokens``.

    References
    ----------
    arXiv 2410.21228v3, section 5, Figs 8 and 13, Table 4.
    """
    lambdas = [float(factor) for factor in lambdas]
    for factor in lambdas:
        require_factor(factor)
    vectors = released_vectors(pair, spectra)
    opened = open_released(pair)
    model = _ScaledModel(pair, opened, spectra, first_intruders(vectors, epsilon=spectra.epsilon, k=spectra.k))
    asked = _asked(opened) | {"k": spectra.k, "epsilon": spectra.epsilon, "tokens": tokens, "texts": [
        _digest(text) for text in texts], "dtype": str(compute_dtype(MODEL_DTYPE))}
    folder = _folder(pair, asked)

    def loss(load: Callable[[], nn.Module]) -> pd.DataFrame:
        tokenizer = _tokenizer(opened)  # first: it may be missing, and a model takes minutes to load
        return pd.DataFrame([text_loss(load(), tokenizer, texts, tokens=tokens, batch_size=batch_size)])

    base = cached_table(folder / "base.parquet", asked, lambda: loss(lambda: _loaded(opened, adapted=False)))
    gc.collect()  # the base is not to be in memory beside the tuned model
    rows = []
    for factor in lambdas if model.matrices else [1.0]:
        row = cached_table(folder / f"lambda-{factor!r}.parquet", asked,
                           lambda factor=factor: loss(lambda: model.scaled_by(factor)))
        rows.append(row.assign(**{"lambda": factor, "n_scaled": len(model.matrices)}))
    table = pd.concat(rows, ignore_index=True)
    table["base_loss_nats_per_token"] = base["loss_nats_per_token"].item()
    table["forgetting"] = table["loss_nats_per_token"] - table["base_loss_nats_per_token"]
    return pd.DataFrame(_identity(pair, opened), index=table.index).join(table)


def released_losses(profile: Profile) -> pd.DataFrame:
    """Fig 13: :func:`released_interventions` of every pair at hand, on the profile's pre-training text and lambdas."""
    settings = profile.pseudo_loss

    def measure(pair: ReleasedPair) -> pd.DataFrame:
        texts = pretraining_passages(settings.corpus, settings.passages)
        lambdas = sorted({*profile.intervention.lambdas.intruder, 1.0})
        return released_interventions(pair, texts, profile.spectra, lambdas=lambdas, tokens=settings.tokens)

    return _of_each(profile, measure)


def open_released(pair: ReleasedPair, matrices: str | None = None) -> CheckpointPair:
    """Both checkpoints of a pair with their matrices matched; :func:`utils.sources.pairs.open_pair` says what fails."""
    try:
        layers = None if matrices is None else re.compile(matrices)
    except re.error as error:
        raise UsageError(f"'{matrices}' is not a regular expression: {error}.") from error
    return open_pair(pair.base, pair.tuned, layers=layers, base_revision=pair.base_revision,
                     tuned_revision=pair.tuned_revision, allow_pickle=pair.allow_pickle)


def _of_each(profile: Profile, measure: Callable[[ReleasedPair], pd.DataFrame]) -> pd.DataFrame:
    """The measurement of every pair that can be had; each other one is said and left out."""
    parts = []
    for pair in profile.released:
        try:
            parts.append(measure(pair))
        except CourseError as error:
            print(f"{pair.group}, {pair.label}: left out. {error}", flush=True)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _identity(pair: ReleasedPair, opened: CheckpointPair) -> dict:
    rank = opened.changed.rank if isinstance(opened.changed, Adapter) else 0
    return {"group": pair.group, "method": pair.label, "r": rank}


def _place(name: str) -> tuple[int, str]:
    """Layer and type as the course's own runs name them, and for other architectures whatever surrounds the number."""
    try:
        return split_name(name)
    except UsageError:
        prefix, layer, kind = place_of(name)
        return layer, f"{prefix}…{kind}" if prefix else kind


def _one_pair(opened: CheckpointPair, name: str) -> Pair:
    return next(checkpoint_pairs(opened.original, opened.changed, {name: opened.sources[name]}))


def _matrix_vectors(opened: CheckpointPair, name: str, asked: dict, *, spectrum: SpectrumCache) -> pd.DataFrame:
    """The leading vectors of one matrix."""
    k = asked["k"]
    if isinstance(k, float):
        k = max(1, math.floor(k * min(opened.original.entries[name].shape) + 1e-9))  # as count_intruders takes it
    found = next(leading_cosines([_one_pair(opened, name)], k=k, epsilons=asked["epsilons"], spectrum=spectrum.spectrum,
                                 device=device_name()))
    stored = stored_types(opened.original, opened.changed, name, tuned_name=opened.sources[name])
    return leading_table([found]).assign(precision_floor=stored_floor(found, stored).numpy())


def _asked(opened: CheckpointPair) -> dict:
    """What every number of a pair depends on."""
    return {"version": VERSION} | {role: [one.name, identity(one)] for role, one in
                                   (("base", opened.original), ("tuned", opened.changed))}


def _folder(pair: ReleasedPair, asked: dict) -> Path:
    """One folder per pair and settings, so that a matrix of another revision is never taken for this one's."""
    name = re.sub(r"[^\w.-]+", "-", Path(pair.tuned).name)[:60]
    return ensure_dir(cache_dir() / "released" / f"{name}-{_digest(canonical_json(asked))[:16]}")


def _digest(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())


@dataclass
class _ScaledModel:
    """The tuned model of a pair, loaded when it is first needed, with its leading intruders scaled in place."""

    pair: ReleasedPair
    opened: CheckpointPair
    spectra: Spectra
    intruders: pd.DataFrame

    @property
    def matrices(self) -> list[str]:
        """Those that have an intruder."""
        return list(self.intruders["matrix"].unique())

    @cached_property
    def _directions(self) -> dict[str, Direction]:
        spectrum, found = SpectrumCache(device=device_name()).spectrum, {}
        for name in self.matrices:
            found[name] = leading_intruder(_one_pair(self.opened, name), k=self.spectra.k, epsilon=self.spectra.epsilon,
                                           spectrum=spectrum)
        return found

    @cached_property
    def _model(self) -> nn.Module:
        return _loaded(self.opened, adapted=True, allow_pickle=self.pair.allow_pickle)

    @torch.no_grad()
    def scaled_by(self, factor: float) -> nn.Module:
        """The model with every leading intruder scaled by `factor`, whatever it was scaled by before."""
        directions, modules = self._directions, dict(self._model.named_modules())
        named = match_names(directions, modules)
        if lost := [name for name in directions if name not in named]:
            raise CourseError(f"{self.pair.tuned} has {some(lost)} in its files, but the model that transformers makes "
                              "of them has no module of that name.")
        for name, direction in directions.items():
            weight = scaled(merged_weight(*_one_pair(self.opened, name).load()), direction, factor)
            transposed = self.opened.original.entries[name].transposed
            modules[named[name]].weight.copy_(weight.T if transposed else weight)
        return self._model


@contextmanager
def _one_sentence(name: str, what: str) -> Iterator[None]:
    """CourseError for whatever the libraries say of a folder that they cannot use."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise CourseError(f"{name} could not be loaded as a {what}: {reason_of(error)[:200]}.") from error


def _tokenizer(opened: CheckpointPair):
    """The base's tokenizer, whichever model is measured, so that all see the same tokens."""
    from transformers import AutoTokenizer

    with _one_sentence(opened.original.name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(opened.original.folder, trust_remote_code=False)
    tokenizer.pad_token = tokenizer.eos_token  # Llama-2's own padding token has no row in its embedding
    return tokenizer


def _loaded(opened: CheckpointPair, *, adapted: bool, allow_pickle: bool = False) -> nn.Module:
    """The base or the tuned model on the device, an adapter merged by PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    whole = adapted and not isinstance(opened.changed, Adapter)
    source = opened.changed if whole else opened.original
    with _one_sentence(source.name, "causal language model"):
        # None takes safetensors where there are any, and a pickle only where there are none.
        model = AutoModelForCausalLM.from_pretrained(source.folder, dtype=compute_dtype(MODEL_DTYPE),
                                                     use_safetensors=None if whole and allow_pickle else True,
                                                     trust_remote_code=False)
        if adapted and not whole:
            model = PeftModel.from_pretrained(model, opened.changed.folder).merge_and_unload()
    return model.to(device_name()).eval()
