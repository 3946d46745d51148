"""What the type that weights are stored in leaves open: below this, a cosine's distance to epsilon means nothing."""

import math

import torch

from utils.spectra.fast import Leading

# Rounding errs by up to u 2^e for a number in [2^e, 2^(e+1)), evenly; over logarithmically spread mantissas m, the mean
# of m^2 is 3 / (2 ln 2), so the root mean square of the error is this times u times that of the weights.
_RELATIVE_RMS = math.sqrt(1 / 3 / (3 / (2 * math.log(2))))
Kind = torch.dtype | str  # a name where weights are stored in fewer bits: "I8", "F8_E4M3", "F8_E5M2", "MXFP4"
# Two units in the last place that err as much. Eight bits over a row's largest number, about four times its root mean
# square, err evenly within a step; MXFP4 has one bit of mantissa.
_EPS = {"F8_E4M3": torch.finfo(torch.float8_e4m3fn).eps, "F8_E5M2": torch.finfo(torch.float8_e5m2).eps, "MXFP4": 0.5,
        "I8": 2 * (4 / 127) / math.sqrt(12) / _RELATIVE_RMS}


def _eps(kind: Kind) -> float:
    return torch.finfo(kind).eps if isinstance(kind, torch.dtype) else _EPS[kind]


def precision_floor(found: Leading, base_dtype: Kind, tuned_dtype: Kind, *, far: bool) -> torch.Tensor:
    r"""How far rounding to the stored type is expected to move each largest cosine: an estimate, not a bound.

    Stored weights are W + E with independent errors of variance e^2, e = 0.39 u rms(W) and u half a unit in the last
    place. To first order the j-th singular vector turns by delta_j with

    E delta_j^2 = e^2 sum_(i != j) (sigma_j^2 + sigma_i^2) / (sigma_j^2 - sigma_i^2)^2,

    plus e^2 (longer - shorter side) / sigma_j^2 for vectors of the longer side. Both checkpoints are rounded, so their
    squares add up; a vector that turns by delta changes a cosine s by about delta sqrt(1 - s^2) + delta^2 / 2.

    Parameters
    ----------
    found : Leading
        One matrix's result; its base values stand in for the tuned ones beyond k.
    base_dtype, tuned_dtype : torch.dtype or str
        As stored, with a name for fewer bits. For an adapter give the base's type twice.
    far : bool
        Whether the vectors are those of the longer side.

    Returns
    -------
    torch.Tensor of shape (k,)
        Between 0 and 1; float64.
    """
    sigma, base = found.singular_values.double(), found.base_values.double()
    spectrum = torch.cat([sigma, base[len(sigma):]])
    excess = abs(found.shape[0] - found.shape[1]) if far else 0
    rms = base.norm().item() / math.sqrt(found.shape[0] * found.shape[1])
    errors = [_RELATIVE_RMS * _eps(dtype) / 2 * rms for dtype in (base_dtype, tuned_dtype)]
    squares = spectrum.square()
    apart = (squares[:len(sigma), None] - squares[None, :]).square()
    apart[:, :len(sigma)].fill_diagonal_(torch.inf)
    tiny = torch.finfo(torch.float64).tiny
    turn = ((squares[:len(sigma), None] + squares[None, :]) / apart.clamp(min=tiny)).sum(1)
    turn += excess / squares[:len(sigma)].clamp(min=tiny)
    # Of a matrix of zeros nothing is determined: 0 times infinity.
    delta = (turn * sum(error**2 for error in errors)).sqrt().clamp(max=1.0).nan_to_num(nan=1.0)
    cosines = found.max_cosines.double().clamp(max=1.0)
    return (delta * (1 - cosines.square()).sqrt() + delta.square() / 2).clamp(max=1.0)
