"""Leading eigenpairs of a matrix that is nearly diagonal in a known basis, and the proof that none was missed.

In the basis of W0's singular vectors the tuned Gram matrix is C = diag(lambda) + a change: of low rank for LoRA, small
for a dense update. Davidson's method (J. Comp. Phys. 17, 1975) takes a few rounds there, because the diagonal is an
excellent preconditioner: from a residual r of the Ritz pair (theta, y) the subspace grows by about
(diag(lambda) - theta)^-1 r.

Everything is batched over matrices of one size, and vectors are rows: shapes are (b, vectors, q). float64 throughout.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

ANGLE = 1e-6  # wanted residual over gap, the angle between a vector and the true one; the bound counts what is left
MAX_ROUNDS = 24
USUAL_ROUNDS = 5  # what room is made for at first
GUARD = 4  # pretrained directions beyond k + 1 that the subspace starts with


class RitzPairs(NamedTuple):
    """The k leading pairs of each matrix, and the next Ritz value below them."""

    values: torch.Tensor  # (b, k), descending
    vectors: torch.Tensor  # (b, k, q), orthonormal rows
    residuals: torch.Tensor  # (b, k), norms of C y - theta y
    next_value: torch.Tensor  # (b,)


def starting_subspace(q: int, k: int, changed: torch.Tensor) -> torch.Tensor:
    """Orthonormal rows spanning the leading pretrained directions and the update's own.

    Without the update's directions an intruder, orthogonal to all leading pretrained vectors, could be missed.

    Parameters
    ----------
    q, k : int
    changed : torch.Tensor of shape (b, c, q)
        The update's directions in W0's basis; c may be 0.

    Returns
    -------
    torch.Tensor of shape (b, p + c, q)
    """
    p = min(_multiple_of_four(k + 1 + GUARD), q)
    unit = torch.eye(p, q, dtype=torch.float64, device=changed.device).expand(len(changed), p, q).contiguous()
    return torch.cat([unit, _orthonormal(changed, unit)], dim=1) if changed.shape[1] else unit


class Preconditioner:
    """(C - theta)^-1 approximately: its diagonal alone, or for LoRA of small rank with the whole update.

    By Woodbury's identity, for M = diag(d) - theta + Z K Z^T:
    M^-1 v = D v - D Z S^-1 Z^T D v with D = (diag(d) - theta)^-1 and S = K^-1 + Z^T D Z of few rows. With the whole
    update M is exact, and the method converges cubically, as Rayleigh quotient iteration does.

    Parameters
    ----------
    diagonal : torch.Tensor of shape (b, q)
    directions : torch.Tensor of shape (b, c, q), optional
        Rows of Z^T.
    inverse : torch.Tensor of shape (b, c, c), optional
        K^-1.
    """

    def __init__(self, diagonal: torch.Tensor, directions: torch.Tensor | None = None,
                 inverse: torch.Tensor | None = None):
        self.diagonal, self.directions, self.inverse = diagonal, directions, inverse
        self.exact = directions is not None
        if directions is not None:
            c = directions.shape[1]
            self.upper = torch.triu_indices(c, c, device=diagonal.device)
            self.products = directions[:, self.upper[0]] * directions[:, self.upper[1]]  # (b, c (c + 1) / 2, q)

    def at(self, theta: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """M^-1 for theta of shape (b, c): a function of (b, c, q) that takes one shift to each row."""
        distance = self.diagonal[:, None, :] - theta[..., None]
        least = 1e-9 * self.diagonal[:, :1, None].clamp(min=torch.finfo(torch.float64).tiny)
        scale = torch.where(distance.abs() < least, least, distance).reciprocal()
        directions, inverse = self.directions, self.inverse
        if directions is None or inverse is None:
            return lambda rows: rows * scale
        c = directions.shape[1]
        small = torch.empty(*theta.shape, c, c, dtype=torch.float64, device=theta.device)
        small[..., self.upper[0], self.upper[1]] = scale @ self.products.mT
        small[..., self.upper[1], self.upper[0]] = small[..., self.upper[0], self.upper[1]]
        small += inverse[:, None]

        def solve(rows: torch.Tensor) -> torch.Tensor:
            scaled = rows * scale
            inner = torch.linalg.solve_ex(small, (scaled @ directions.mT)[..., None])[0][..., 0]
            return scaled - (inner @ directions) * scale
        return solve


def leading_pairs(apply: Callable[[torch.Tensor], torch.Tensor], preconditioner: Preconditioner, start: torch.Tensor,
                  *, k: int, noise: torch.Tensor) -> RitzPairs:
    """The k leading eigenpairs of C by Davidson's method, until each residual is small against its gap.

    Parameters
    ----------
    apply : callable
        (b, c, q) -> C times each row.
    preconditioner : Preconditioner
    start : torch.Tensor of shape (b, m, q)
        From :func:`starting_subspace`, m > k.
    noise : torch.Tensor of shape (b,)
        Residuals below this are rounding; there is no use in going on.
    """
    width = min(_multiple_of_four(k + 1), start.shape[1])
    space, new = _Subspace(start.shape, start, USUAL_ROUNDS * width), start
    for round_ in range(MAX_ROUNDS):
        space.grow(new, apply(new))
        values, weights = torch.linalg.eigh(space.inner)
        values, weights = values.flip(-1), weights.flip(-1)[..., :width].mT
        vectors, image = weights @ space.rows, weights @ space.image
        residual = image - vectors * values[:, :width, None]
        sizes = residual.norm(dim=-1)[:, :k + 1]
        wanted = torch.maximum(ANGLE * _gaps(values, k), noise[:, None])
        wanted[:, k] = torch.maximum(wanted[:, k], 0.1 * (values[:, k - 1] - values[:, k]))  # only to place a bound
        if (sizes <= wanted).all() or round_ == MAX_ROUNDS - 1 or space.size + width > start.shape[2]:
            break
        if preconditioner.exact:
            space.restart(vectors, image, values[:, :width])
        solve = preconditioner.at(values[:, :width])
        new = _orthonormal(_correction(solve(vectors), solve(residual), vectors), space.rows)
    return RitzPairs(values[:, :k], vectors[:, :k], sizes[:, :k], values[:, k])


def _multiple_of_four(count: int) -> int:
    """Products with 12 rows run a third faster than with 11."""
    return -(-count // 4) * 4


class _Subspace:
    """Orthonormal rows, C times each, and the matrix of C within their span; rows are added in place."""

    def __init__(self, shape: tuple[int, ...], like: torch.Tensor, room: int):
        self.size = 0
        self._rows, self._image = (like.new_empty(shape[0], shape[1] + room, shape[2]) for _ in range(2))
        self._inner = like.new_zeros(shape[0], shape[1] + room, shape[1] + room)

    @property
    def rows(self) -> torch.Tensor:
        return self._rows[:, :self.size]

    @property
    def image(self) -> torch.Tensor:
        return self._image[:, :self.size]

    @property
    def inner(self) -> torch.Tensor:
        return self._inner[:, :self.size, :self.size]

    def grow(self, rows: torch.Tensor, image: torch.Tensor) -> None:
        old, self.size = self.size, self.size + rows.shape[1]
        if self.size > self._rows.shape[1]:
            more = self.size  # twice the room
            self._rows, self._image = (torch.nn.functional.pad(part, (0, 0, 0, more)) for part in
                                       (self._rows, self._image))
            self._inner = torch.nn.functional.pad(self._inner, (0, more, 0, more))
        self._rows[:, old:self.size], self._image[:, old:self.size] = rows, image
        self._inner[:, old:self.size, :self.size] = image @ self.rows.mT  # eigh reads the lower triangle alone

    def restart(self, rows: torch.Tensor, image: torch.Tensor, values: torch.Tensor) -> None:
        """Keep the Ritz vectors alone.

        Parameters
        ----------
        rows, image : torch.Tensor of shape (b, count, q)
            The Ritz vectors and what the operator makes of them.
        values : torch.Tensor of shape (b, count)
            Their Ritz values.
        """
        self.size = rows.shape[1]
        self._rows[:, :self.size], self._image[:, :self.size] = rows, image
        self._inner[:, :self.size, :self.size] = torch.diag_embed(values)


def _correction(solved_vectors: torch.Tensor, solved_residual: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Olsen's correction t = -M^-1 r + epsilon M^-1 x, orthogonal to x; rows of norm 1.

    The plain M^-1 r would return x itself where M is exact. Where theta has become an eigenvalue of M to the last bit,
    the solution overflows; that vector has converged, and x itself stands for a direction that adds nothing.
    """
    size = (vectors * solved_vectors).sum(-1, keepdim=True)
    epsilon = (vectors * solved_residual).sum(-1, keepdim=True) / torch.where(size == 0, 1.0, size)
    step = epsilon * solved_vectors - solved_residual
    size = step.norm(dim=-1, keepdim=True)
    return torch.where(size.isfinite() & (size > 0), step / size, vectors)


def _orthonormal(rows: torch.Tensor, space: torch.Tensor) -> torch.Tensor:
    """Rows made orthonormal to each other and to those of `space`; twice, since once leaves rounding behind.

    A row that lies within the space already turns into an arbitrary new direction.
    """
    for _ in range(2):
        rows = torch.linalg.qr((rows - (rows @ space.mT) @ space).mT).Q.mT
    if (rows @ space.mT).abs().max() < 1e-10:
        return rows
    # Rows without a component of their own: Householder's reflections over both find them new directions.
    return torch.linalg.qr(torch.cat([space, rows], dim=1).mT).Q.mT[:, space.shape[1]:]


def _gaps(values: torch.Tensor, k: int) -> torch.Tensor:
    """Distance of each of the k + 1 leading values to its nearest neighbour among all Ritz values; (b, k + 1)."""
    step = values[:, :-1] - values[:, 1:]
    above = torch.cat([torch.full_like(step[:, :1], torch.inf), step], dim=1)
    below = torch.cat([step, torch.full_like(step[:, :1], torch.inf)], dim=1)
    return torch.minimum(above, below)[:, :k + 1]


def bound_between(pairs: RitzPairs, diagonal: torch.Tensor) -> torch.Tensor:
    """A level tau between the k-th value and the next one, as far as can be from every entry of the diagonal; (b,)."""
    parts = torch.linspace(0.25, 0.75, 11, dtype=torch.float64, device=diagonal.device)
    levels = pairs.next_value[:, None] + parts * (pairs.values[:, -1] - pairs.next_value)[:, None]
    distance = (levels[:, :, None] - diagonal[:, None, :]).abs().amin(-1)
    return levels.gather(1, distance.argmax(1, keepdim=True))[:, 0]


def dense_bound_holds(matrix: torch.Tensor, vectors: torch.Tensor, values: torch.Tensor, *, tau: torch.Tensor,
                      noise: torch.Tensor) -> torch.Tensor:
    """Whether all eigenvalues of a dense symmetric matrix but the k found ones are proved to lie below tau; (b,) bool.

    With the found pairs deflated, tau I - (G - X diag(theta) X^T) has a Cholesky factor only if it is positive
    definite. On every vector orthogonal to X the deflated matrix equals G, so by Courant and Fischer the (k + 1)-th
    eigenvalue of G lies below tau. tau is lowered by the rounding of this test first.

    Parameters
    ----------
    matrix : torch.Tensor of shape (b, q, q)
        G, symmetric, float64.
    vectors : torch.Tensor of shape (b, k, q)
        The found eigenvectors X, as rows.
    values : torch.Tensor of shape (b, k)
        theta, descending.
    tau : torch.Tensor of shape (b,)
    noise : torch.Tensor of shape (b,)
        The rounding of the test, in units of the eigenvalues.
    """
    shifted = torch.baddbmm(matrix, vectors.mT * values[:, None, :], vectors, beta=-1, alpha=1)
    shifted.diagonal(dim1=-2, dim2=-1).add_((tau - noise)[:, None])
    return torch.linalg.cholesky_ex(shifted).info == 0


def low_rank_bound_holds(diagonal: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, inner: torch.Tensor,
                         tau: torch.Tensor, k: int) -> torch.Tensor:
    """Whether C = diag(d) + X B^T + B X^T + B N B^T is proved to have exactly k eigenvalues above tau; (b,) bool.

    C = diag(d) + Z K Z^T with Z = [X, B] and K = [[0, I], [I, N]], so K^-1 = [[-N, I], [I, 0]] has r positive and r
    negative eigenvalues. Sylvester's law of inertia, applied to both Schur complements of
    [[diag(d) - tau, Z], [Z^T, -K^-1]], gives: eigenvalues of C above tau = entries of d above tau + positive
    eigenvalues of T - r, where T = -K^-1 - Z^T (diag(d) - tau)^-1 Z has only 2r rows. The count is believed when no
    eigenvalue of T is within rounding of zero.

    Parameters
    ----------
    diagonal : torch.Tensor of shape (b, q)
    left, right : torch.Tensor of shape (b, r, q)
        X^T and B^T.
    inner : torch.Tensor of shape (b, r, r)
        N.
    """
    r = left.shape[1]
    balance = _balance(left, right)  # X B^T is the same with X c and B / c; then N becomes N c^2
    factors = torch.cat([left * balance, right / balance], dim=1)
    distance = diagonal - tau[:, None]
    met = (distance == 0).any(-1)  # tau is an entry itself where the k-th value and the next one are tied
    scaled = factors / torch.where(distance == 0, 1.0, distance)[:, None, :]
    inverse = inverse_middle(inner * balance.square())
    reduced = -inverse - factors @ scaled.mT
    values = torch.linalg.eigvalsh((reduced + reduced.mT) / 2)
    size = factors.norm(dim=(1, 2)) * scaled.norm(dim=(1, 2)) + inverse.norm(dim=(1, 2))
    safe = values.abs().amin(-1) > factors.shape[2] * torch.finfo(torch.float64).eps * size
    return safe & ~met & ((diagonal > tau[:, None]).sum(-1) + (values > 0).sum(-1) - r == k)


def inverse_middle(inner: torch.Tensor) -> torch.Tensor:
    """K^-1 = [[-N, I], [I, 0]] of K = [[0, I], [I, N]]; (b, 2r, 2r)."""
    eye = torch.eye(inner.shape[-1], dtype=inner.dtype, device=inner.device).expand_as(inner)
    return torch.cat([torch.cat([-inner, eye], -1), torch.cat([eye, torch.zeros_like(eye)], -1)], -2)


def _balance(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    tiny = torch.finfo(torch.float64).tiny
    ratio = right.norm(dim=(1, 2)).clamp(min=tiny**0.5) / left.norm(dim=(1, 2)).clamp(min=tiny**0.5)
    return ratio.sqrt()[:, None, None]
