"""A positive semi-definite matrix of low rank from measurements of which some are grossly wrong, without knowing the rank."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fokker.errors import FokkerError, unknown
from fokker.keyed import noise
from fokker.restore import Operator

LOSSES, STARTS = ("l1", "l2"), ("orthonormal", "spectral")


@dataclass(frozen=True)
class Factorised:
    """What `robust_lowrank` found: X = U U^T with U = `factor` (batch, n, rank), and the `losses` (batch, steps + 1)."""

    factor: Tensor
    losses: Tensor

    @property
    def matrix(self) -> Tensor:
        """X (batch, n, n)."""
        X: Tensor = self.factor @ self.factor.mT
        return X

    def rank(self, tolerance: float = 1e-2) -> Tensor:
        """How many eigenvalues of X exceed `tolerance` times the largest, (batch,)."""
        values = torch.linalg.svdvals(self.factor).square()
        count: Tensor = (values > tolerance * values[:, :1]).sum(1)
        return count


def robust_lowrank(
    operator: Operator,
    y: Tensor,
    rank: int | None = None,
    loss: Literal["l1", "l2"] = "l1",
    init_scale: float = 1e-5,
    start: Literal["orthonormal", "spectral"] = "orthonormal",
    steps: int = 600,
    lr: float = 0.2,
    decay: float = 0.985,
    normalised: bool = True,
    seed: int = 0,
    ids: Sequence[int] | None = None,
) -> Factorised:
    """Sub-gradient descent on f(U) = mean_i |y_i - <A_i, U U^T>| from a small start, with as many factors as one likes:

        Q = (1 / m) sum_i sign(y_i - <A_i, U U^T>) (A_i + A_i^T) / 2,    U <- U + 2 lr decay^k Q U / |Q|,    U_0 = init_scale B.

    The sign makes the size of an outlier irrelevant. What lies in the range of the truth grows at a steady rate; what lies
    outside grows hardly, so that it ends about where it began: the error is governed by `init_scale` and not by `rank`. A step
    of constant size never converges under l1; a smaller start needs more steps, by log(1 / init_scale).

    operator    on matrices (batch, n, n), their A_i; y is (batch, ...) and may be wrong in a share of its entries
    rank        columns of U, at least that of the truth; None: n
    loss        "l2" for mean_i (y_i - <A_i, X>)^2 / 2, with which outliers are fitted as well
    start       B orthonormal, of random columns; or "spectral", a factor of the positive part of sum_i sign(y_i) A_i
    normalised  division by the spectral norm of Q, by which steps are free of units; without it `lr` has those of 1 / A (for
                standard normal A_i with a fifth of outliers |Q| is 0.7, so that 0.3 there is 0.2 here)
    seed, ids   name the random columns, one id per sample

    Raises FokkerError for a measurement of other than square matrices, a rank that they cannot have, or weights of 0.

    Reference: Ma, Fattahi 2022, arXiv 2202.08788.
    """
    if loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    if start not in STARTS:
        raise unknown("start", start, STARTS)
    if not (init_scale > 0 and lr > 0 and 0 < decay <= 1) or steps < 1:
        raise FokkerError(
            f"init_scale={init_scale}, lr={lr}, decay={decay}, steps={steps} are not accepted; give positive numbers, a decay "
            "of at most 1 and at least one step"
        )
    first = _pull(operator, y.sign())
    n = first.shape[-1]
    width = n if rank is None else rank
    if not 1 <= width <= n:
        raise FokkerError(f"rank={rank} is not accepted for {n} x {n} matrices; give 1 to {n}, or None for {n}")
    if start == "spectral":
        values, vectors = torch.linalg.eigh(first)
        top = values[:, -width:].clamp_min(0)
        B = vectors[:, :, -width:] * (top / torch.linalg.vector_norm(top, dim=1, keepdim=True)).sqrt()[:, None]
    else:
        B = torch.linalg.qr(noise((len(y), n, width), seed, ids, dtype=torch.float64, device=y.device))[0].to(first)
    U, losses = init_scale * B, []
    for k in range(steps + 1):
        misfit = y - operator(U @ U.mT)
        losses.append((misfit.abs() if loss == "l1" else misfit.square() / 2).flatten(1).mean(1))
        if k == steps:
            break
        Q = _pull(operator, misfit.sign() if loss == "l1" else misfit)
        size = (
            torch.linalg.matrix_norm(Q, 2).clamp_min(torch.finfo(Q.dtype).tiny)
            if normalised
            else torch.ones(len(Q)).to(Q)
        )
        U = U + 2 * lr * decay**k * (Q / size[:, None, None]) @ U
    return Factorised(U, torch.stack(losses, 1))


def sign_rip_deviation(
    operator: Operator, errors: Tensor, outliers: Tensor | float = 0.0, rank: int = 4
) -> tuple[Tensor, Tensor]:
    """(scale, deviation), each (batch,): how near the sub-gradients of a measurement are to those of the ideal l1 loss.

    For E in `errors` (batch, n, n), the misfit of a matrix, and `outliers` added to its measurement,

        Q = (1 / m) sum_i sign(<A_i, E> + s_i) A_i,   scale = <Q, E> / |E|,   deviation = sup_Y <Q - scale E / |E|, Y> / scale

    over |Y| <= 1 of that `rank`, which is the norm of the largest `rank` singular values. Sub-gradient descent finds the truth
    where scale > 0 and the deviation is small for all E of low rank. For normal A_i scale is sqrt(2 / pi) E[exp(-s^2 / (2
    |E|^2))] and the deviation falls as 1 / sqrt(m). Raises FokkerError for errors that are 0 or not square.

    Reference: Ma, Fattahi 2022, arXiv 2202.08788 (Sign-RIP).
    """
    length = torch.linalg.matrix_norm(errors)
    if errors.ndim != 3 or errors.shape[1] != errors.shape[2] or not bool((length > 0).all()):
        raise FokkerError(
            f"errors of shape {tuple(errors.shape)} are not accepted; give matrices (batch, n, n) other than 0"
        )
    Q = _pull(operator, (operator(errors) + outliers).sign())
    unit = errors / length[:, None, None]
    unit = (unit + unit.mT) / 2
    scale = (Q * unit).sum((1, 2)) / unit.square().sum((1, 2))
    left = torch.linalg.svdvals(Q - scale[:, None, None] * unit)[:, :rank]
    return scale, left.norm(dim=1) / scale


def _pull(operator: Operator, v: Tensor) -> Tensor:
    """(1 / m) sum_i v_i (A_i + A_i^T) / 2."""
    pulled = operator.adjoint(v)
    if pulled.ndim != 3 or pulled.shape[1] != pulled.shape[2]:
        raise FokkerError(
            f"this operator measures states of shape {tuple(pulled.shape[1:])}; low rank needs square matrices (n, n)"
        )
    return (pulled + pulled.mT) / (2 * math.prod(v.shape[1:]))
