"""The posterior of a Gaussian mixture under a linear measurement: a Gaussian mixture again."""

import math

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.laws.algebra import _joint
from fokker.laws.forms import as64
from fokker.laws.mixture import GaussianMixture


def posterior(
    law: GaussianMixture, matrix: Tensor, y: Tensor, noise_std: float | Tensor, shape: tuple[int, ...] | None = None
) -> GaussianMixture:
    """p(x | y) for y = A x + noise_std n with n unit normal.

    `matrix` A (m, dim) acts on the flattened sample, `y` holds m numbers, `noise_std` is one number or one per row.
    Component k becomes N(m + G (y - A m), (I - G A) C (I - G A)^T + G N G^T), G = C A^T (A C A^T + N)^-1, and its
    weight is multiplied by N(y; A m, A C A^T + N).

    A row with noise_std = 0 is a constraint, met exactly; rows that repeat each other are merged. Raises FokkerError if
    constraints contradict each other, or fix a direction in which the law has no variance already.
    """
    a, value = as64(matrix).to(law.device), as64(y).to(law.device).reshape(-1)
    noise = as64(noise_std).to(law.device).reshape(-1)
    if a.ndim != 2 or a.shape[1] != law.dim or len(value) != len(a) or len(noise) not in (1, len(a)):
        raise FokkerError(
            f"matrix {tuple(a.shape)}, y with {len(value)} numbers and noise_std with {len(noise)} do not fit a law of "
            f"dimension {law.dim}; give (m, {law.dim}), m numbers, and one or m"
        )
    if not all(bool(torch.isfinite(v).all()) for v in (a, value, noise)) or bool((noise < 0).any()):
        raise FokkerError("matrix, y and noise_std must be finite, and noise_std not negative")
    a, value, noise, exact = _constraints(a, value, noise.expand(len(a)))
    variance = noise.square()

    basis = _joint([law.basis, a.T.expand(law.components, -1, -1)], law.dim)
    inner = basis.mT @ law.basis
    rank = basis.shape[-1]
    eye = torch.eye(rank, dtype=torch.float64, device=law.device)
    gap = law.eigenvalues - law.variance[:, None]
    prior = (inner * gap[:, None]) @ inner.mT + law.variance[:, None, None] * eye
    seen = a @ basis
    evidence = seen @ prior @ seen.mT + torch.diag(variance)
    factor, failed = torch.linalg.cholesky_ex(evidence)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square() / evidence.diagonal(dim1=-2, dim2=-1)
    if bool(failed.any()) or bool((pivots < 1e-14).any()):
        raise FokkerError(
            "noise_std is too small here: the law has no variance in a measured direction, so y would decide "
            "everything or contradict it; give a larger noise_std"
        )
    gain = torch.cholesky_solve(seen @ prior, factor).mT
    residual = value - law.means @ a.T
    moved = (basis @ (gain @ residual[..., None]))[..., 0]
    left = eye - gain @ seen
    after = left @ prior @ left.mT + (gain * variance) @ gain.mT
    values, vectors = torch.linalg.eigh((after + after.mT) / 2)
    values = values.clamp_min(0)
    values[:, :exact] = 0  # eigh sorts: these are the constraints, up to rounding
    whitened = torch.linalg.solve_triangular(factor, residual[..., None], upper=False)[..., 0]
    log_det = 2 * torch.log(factor.diagonal(dim1=-2, dim2=-1)).sum(-1)
    log_evidence = -0.5 * (whitened.square().sum(-1) + log_det + len(a) * math.log(2 * math.pi))
    form = basis @ vectors, values, values.amax(-1) if rank == law.dim else law.variance
    return GaussianMixture.build(
        law.log_weights + log_evidence, law.means + moved, form, law.labels, law.shape if shape is None else shape
    )


def _constraints(a: Tensor, value: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """The measurement with its noiseless rows replaced by independent ones, first, and their number."""
    hard = noise == 0
    if not bool(hard.any()):
        return a, value, noise, 0
    left, size, right = torch.linalg.svd(a[hard], full_matrices=False)
    keep = size > 1e-12 * size.max().clamp_min(1e-300)
    on_left = left.T @ value[hard]
    rest = value[hard] - left[:, keep] @ on_left[keep]
    if bool((rest.abs() > 1e-8 * (1 + value[hard].abs().max())).any()):
        raise FokkerError("the noiseless rows of the measurement contradict each other; give noise_std > 0")
    rows, targets = right[keep], on_left[keep] / size[keep]
    return (
        torch.cat([rows, a[~hard]]),
        torch.cat([targets, value[~hard]]),
        torch.cat([noise.new_zeros(len(rows)), noise[~hard]]),
        len(rows),
    )
