"""The forms in which covariances may be given, brought to the one form of `fokker.laws.mixture`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fokker.errors import FokkerError

Covariances = float | Tensor | Sequence[Tensor]
Form = tuple[Tensor, Tensor, Tensor]  # basis (K, dim, r), eigenvalues (K, r), variance outside the basis (K,)


def as64(value: object) -> Tensor:
    """`value` (a tensor, an array, numbers) as a detached float64 tensor, no digit lost on the way."""
    return torch.as_tensor(value, dtype=torch.float64).detach()


def from_dense(covs: Tensor) -> Form:
    """The form of dense covariances (K, dim, dim), symmetric and non-negative; tiny negative eigenvalues are rounding.

    The residual variance has no direction left and may be anything; the largest eigenvalue makes every sum one of
    positive terms.
    """
    values, basis = torch.linalg.eigh((covs + covs.mT) / 2)
    values = values.clamp_min(0)
    return basis, values, values.amax(-1)


def covariances(covs: Covariances, components: int, dim: int) -> Form:
    """Any accepted form as the internal one. Raises FokkerError where sizes or signs are wrong."""
    accepted = (
        f"give a variance, ({components},) variances, ({dim}, {dim}) or ({components}, {dim}, {dim}) matrices, or the triple "
        f"basis ({components}, {dim}, r), eigenvalues ({components}, r), std ({components},)"
    )
    if isinstance(covs, tuple | list) and len(covs) == 3 and all(isinstance(c, Tensor) for c in covs):
        return _low_rank(as64(covs[0]), as64(covs[1]), as64(covs[2]), components, dim, accepted)
    dense = as64(covs)
    if not bool(torch.isfinite(dense).all()):
        raise FokkerError("covariances must be finite")
    if dense.shape in ((), (components,)):
        if bool((dense < 0).any()):
            raise FokkerError("an isotropic variance is negative; variances are squares of standard deviations")
        empty = dense.new_zeros(components, dim, 0)
        return empty, empty[:, 0], dense.expand(components).clone()
    if dense.shape == (dim, dim):
        dense = dense.expand(components, dim, dim)
    if dense.shape != (components, dim, dim):
        raise FokkerError(f"covariances have shape {tuple(dense.shape)}; {accepted}")
    size = dense.abs().amax((-1, -2), keepdim=True)
    if bool(((dense - dense.mT).abs() > 1e-6 * size).any()):
        raise FokkerError("a covariance is not symmetric")
    if bool((torch.linalg.eigvalsh((dense + dense.mT) / 2)[:, 0] < -1e-6 * size[:, 0, 0]).any()):
        raise FokkerError("a covariance has a negative eigenvalue")
    return from_dense(dense)


def _low_rank(basis: Tensor, values: Tensor, std: Tensor, components: int, dim: int, accepted: str) -> Form:
    rank = basis.shape[-1]
    std = std.expand(components) if std.ndim == 0 else std
    if basis.shape != (components, dim, rank) or values.shape != (components, rank) or std.shape != (components,):
        shapes = tuple(basis.shape), tuple(values.shape), tuple(std.shape)
        raise FokkerError(f"the low-rank covariance has shapes {shapes}; {accepted}")
    if rank > dim or bool((values < 0).any()) or bool((std < 0).any()):
        raise FokkerError("a low-rank covariance needs r <= dim, eigenvalues and std not negative")
    eye = torch.eye(rank, dtype=basis.dtype, device=basis.device)
    if bool(((basis.mT @ basis - eye).abs() > 1e-6).any()):
        raise FokkerError("the columns of a low-rank basis must be orthonormal; use torch.linalg.qr(basis)[0]")
    # given in float32, the columns are orthonormal to its rounding only
    basis = torch.linalg.qr(basis)[0]
    if rank == dim:
        return basis, values, values.amax(-1)
    return basis, values, std.square()
