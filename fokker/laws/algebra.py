"""Closed forms on Gaussian mixtures: what guidance, composition and restoration aim at, known exactly.

Results stay low rank where they are: a product or a posterior differs from a multiple of the identity only in the span
of the bases (and of the measurement), so the work is done in an orthonormal basis Q of that span.
"""

import math
from collections.abc import Sequence
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.laws.forms import Form, as64, from_dense
from fokker.laws.mixture import GaussianMixture

# a product of mixtures has a component per combination; more than this is taken for a mistake
LIMIT = 20_000


def mixture(
    laws: Sequence[GaussianMixture],
    weights: Tensor | Sequence[float] | None = None,
    labels: Sequence[int] | None = None,
) -> GaussianMixture:
    """sum_i weights_i p_i, as one law. `weights` default to equal; `labels` gives each law a class (default: their
    own)."""
    _same_shape(laws)
    w = as64([1.0] * len(laws) if weights is None else weights)
    if w.shape != (len(laws),) or bool((w < 0).any()) or not bool(w.sum() > 0):
        raise FokkerError(f"weights of shape {tuple(w.shape)} for {len(laws)} laws; give one each, not negative")
    rank = max(law.rank for law in laws)
    forms = [_padded(law, rank) for law in laws]
    basis, values, variance = (torch.cat([f[i] for f in forms]) for i in range(3))
    if labels is not None:
        own: Tensor | None = torch.cat([torch.full((p.components,), c) for p, c in zip(laws, labels, strict=True)])
    else:
        known = [p.labels for p in laws if p.labels is not None]
        own = torch.cat(known) if len(known) == len(laws) else None
    log_weights = torch.cat([p.log_weights + torch.log(v).to(p.device) for p, v in zip(laws, w, strict=True)])
    return GaussianMixture.build(
        log_weights, torch.cat([p.means for p in laws]), (basis, values, variance), own, laws[0].shape
    )


def product(laws: Sequence[GaussianMixture], powers: Sequence[float] | None = None) -> GaussianMixture:
    """The normalised prod_i p_i(x)^powers_i, as one law.

    A mixture takes positive integer powers (its components multiply out); a single Gaussian takes any real power,
    negative ones for quotients such as p_1 p_2 / p_0. Raises FokkerError where no mixture has that density, where the
    result cannot be normalised, or where it would have more than 20,000 components.
    """
    _same_shape(laws)
    powers = [1.0] * len(laws) if powers is None else [float(p) for p in powers]
    if len(powers) != len(laws):
        raise FokkerError(f"{len(powers)} powers for {len(laws)} laws; give one each")
    slots: list[tuple[GaussianMixture, float, Tensor]] = []
    log_coefficient = torch.zeros(1, dtype=torch.float64, device=laws[0].device)
    for law, power in zip(laws, powers, strict=True):
        choices, gain, exponent = _expansion(law, power)
        many = len(log_coefficient) * len(choices)
        if many > LIMIT:
            raise FokkerError(f"this product would have {many} components or more; at most {LIMIT} are worked out")
        slots = [(p, g, i.repeat_interleave(len(choices))) for p, g, i in slots]
        slots += [(law, exponent, column.repeat(len(log_coefficient))) for column in choices.T]
        log_coefficient = log_coefficient.repeat_interleave(len(choices)) + gain.repeat(len(log_coefficient))
    labelled = [(p, i) for p, g, i in slots if p.labels is not None]
    labels = labelled[0][0].labels[labelled[0][1]] if len(labelled) == 1 else None  # type: ignore[index]
    return _fuse(slots, log_coefficient, labels)


def tilt(
    law: GaussianMixture, linear: Tensor | None = None, quadratic: float | Tensor | None = None
) -> GaussianMixture:
    """The normalised p(x) exp(b . x - x^T Q x / 2), with `linear` b (dim,) and `quadratic` Q a number or (dim, dim).

    Q need not be positive. Raises FokkerError if the result cannot be normalised.
    """
    b = torch.zeros(law.dim, dtype=torch.float64, device=law.device)
    if linear is not None:
        b = as64(linear).to(law.device).reshape(-1)
        if len(b) != law.dim:
            raise FokkerError(f"linear has {len(b)} numbers, the law has dimension {law.dim}")
    if quadratic is None:
        # C b by the form itself, so that laws without density can be tilted too
        inside = torch.einsum("kdr,d->kr", law.basis, b)
        shift = law.variance[:, None] * b + torch.einsum(
            "kdr,kr->kd", law.basis, (law.eigenvalues - law.variance[:, None]) * inside
        )
        log_weights = law.log_weights + (law.means + 0.5 * shift) @ b
        return GaussianMixture.build(log_weights, law.means + shift, law.form, law.labels, law.shape)
    q = as64(quadratic).to(law.device)
    if q.shape not in ((), (law.dim, law.dim)):
        raise FokkerError(f"quadratic has shape {tuple(q.shape)}; give a number or ({law.dim}, {law.dim})")
    every = torch.arange(law.components, device=law.device)
    return _fuse([(law, 1.0, every)], torch.zeros_like(law.log_weights), law.labels, b, (q + q.mT) / 2 if q.ndim else q)


def affine(
    law: GaussianMixture, matrix: float | Tensor, offset: float | Tensor = 0.0, shape: Sequence[int] | None = None
) -> GaussianMixture:
    """The law of A x + b, with A a number or (m, dim) and b a number or (m,).

    `shape` is the shape of A x (default: unchanged for a number or square A, else (m,)).
    """
    a = as64(matrix).to(law.device)
    b = as64(offset).to(law.device)
    b = b.reshape(-1) if b.ndim else b
    if a.ndim == 0:
        square = a.square()
        form = law.basis, law.eigenvalues * square, law.variance * square
        return GaussianMixture.build(law.log_weights, a * law.means + b, form, law.labels, shape or law.shape)
    if a.ndim != 2 or a.shape[1] != law.dim or b.shape not in ((), (len(a),)):
        raise FokkerError(f"A has shape {tuple(a.shape)} and b {tuple(b.shape)} for a law of dimension {law.dim}")
    gram = a @ a.T
    scale = gram.diagonal().mean()
    moved = a @ law.basis
    gap = law.eigenvalues - law.variance[:, None]
    if bool((gram - scale * torch.eye(len(a), dtype=a.dtype, device=a.device)).abs().max() <= 1e-13 * scale):
        form = _from_factor(moved, gap, scale * law.variance)
    else:
        form = from_dense((moved * gap[:, None]) @ moved.mT + law.variance[:, None, None] * gram)
    shape = shape or (law.shape if len(a) == law.dim else (len(a),))
    return GaussianMixture.build(law.log_weights, law.means @ a.T + b, form, law.labels, shape)


def marginal(
    law: GaussianMixture, indices: Tensor | Sequence[int], shape: Sequence[int] | None = None
) -> GaussianMixture:
    """The law of some coordinates of the flattened sample, in the given order."""
    index = torch.as_tensor(indices, dtype=torch.int64, device=law.device)
    if (
        index.ndim != 1
        or len(set(index.tolist())) != len(index)
        or bool((index < -law.dim).any() or (index >= law.dim).any())
    ):
        raise FokkerError(f"indices must be different integers below the dimension {law.dim}")
    form = _from_factor(law.basis[:, index], law.eigenvalues - law.variance[:, None], law.variance)
    return GaussianMixture.build(law.log_weights, law.means[:, index], form, law.labels, shape or (len(index),))


def gaussian(law: GaussianMixture) -> GaussianMixture:
    """The Gaussian with the mean and covariance of a law, as a mixture of one component; low rank where that is."""
    weights = law.weights
    offsets = (law.means - law.mean().reshape(-1)) * weights.sqrt()[:, None]
    gap = weights[:, None] * (law.eigenvalues - law.variance[:, None])
    factor = torch.cat([law.basis.permute(1, 0, 2).flatten(1), offsets.T], 1)
    whole = torch.cat([gap.flatten(), torch.ones_like(weights)])
    form = _from_factor(factor[None], whole[None], (weights @ law.variance)[None])
    return GaussianMixture.build(torch.zeros_like(weights[:1]), law.mean().reshape(1, -1), form, None, law.shape)


def conditional(law: GaussianMixture, label: int) -> GaussianMixture:
    """p(x | label): the components of one class, their weights normalised."""
    if law.labels is None:
        raise FokkerError("this law has no labels; give labels= when making it")
    keep = law.labels == label
    if not bool(keep.any()):
        raise FokkerError(f"no component has label {label}; labels are {sorted(set(law.labels.tolist()))}")
    form = law.basis[keep], law.eigenvalues[keep], law.variance[keep]
    return GaussianMixture.build(law.log_weights[keep], law.means[keep], form, law.labels[keep], law.shape)


# --- products ----------------------------------------------------------------------------------------------------


def _expansion(law: GaussianMixture, power: float) -> tuple[Tensor, Tensor, float]:
    """(choices (M, slots) of components, log multiplicities (M,), exponent of every slot) of p^power."""
    first = torch.zeros(1, 1, dtype=torch.int64, device=law.device)
    none = torch.zeros(1, dtype=torch.float64, device=law.device)
    if law.components == 1:
        return first, none, power
    if power != int(power) or power < 1:
        raise FokkerError(
            f"a mixture of {law.components} components to the power {power:g} is not a mixture; "
            "positive integers work, and any power of a single Gaussian"
        )
    n = int(power)
    if math.comb(law.components + n - 1, n) > LIMIT:
        raise FokkerError(f"{law.components} components to the power {n} are more than {LIMIT} components")
    chosen = list(combinations_with_replacement(range(law.components), n))
    many = [
        math.lgamma(n + 1) - sum(math.lgamma(row.count(k) + 1) for k in set(row)) for row in chosen
    ]  # the multinomial coefficient
    as_float = torch.tensor(many, dtype=torch.float64, device=law.device)
    return torch.tensor(chosen, dtype=torch.int64, device=law.device), as_float, 1.0


def _fuse(
    slots: Sequence[tuple[GaussianMixture, float, Tensor]],
    log_coefficient: Tensor,
    labels: Tensor | None,
    linear: Tensor | None = None,
    quadratic: Tensor | None = None,
) -> GaussianMixture:
    """prod over slots of N_index^exponent, times exp(b . x - x^T Q x / 2), by adding natural parameters.

    Each slot is (law, exponent, index (M,)); component j of the result is the product over slots of component index[j].
    """
    if any(law.singular for law, _, _ in slots):
        raise FokkerError("a law with directions without variance has no density to multiply; add noise to it first")
    first = slots[0][0]
    dim, device = first.dim, first.device
    dense = quadratic is not None and quadratic.ndim == 2
    basis = _joint([law.basis[i] for law, _, i in slots], dim, full=dense)
    rank = basis.shape[-1]
    eye = torch.eye(rank, dtype=torch.float64, device=device)
    # natural parameters are taken around a point near all factors, or their large terms would cancel
    origin = torch.stack([law.means[i] for law, _, i in slots]).mean(0)
    precision = torch.zeros(len(origin), rank, rank, dtype=torch.float64, device=device)
    outside = torch.zeros(len(origin), dtype=torch.float64, device=device)
    pull = torch.zeros_like(origin)
    log_weights = log_coefficient.clone()
    for law, power, i in slots:
        u, tight = law.basis[i], 1 / law.variance[i]
        gap = 1 / law.eigenvalues[i] - tight[:, None]
        inner = basis.mT @ u
        precision += power * (tight[:, None, None] * eye + (inner * gap[:, None]) @ inner.mT)
        outside += power * tight
        offset = law.means[i] - origin
        force = tight[:, None] * offset + (u @ (gap * (u.mT @ offset[..., None])[..., 0])[..., None])[..., 0]
        pull += power * force
        log_det = torch.log(law.eigenvalues[i]).sum(-1) + (dim - law.rank) * torch.log(law.variance[i])
        normaliser = -0.5 * ((offset * force).sum(-1) + log_det + dim * math.log(2 * math.pi))
        log_weights = log_weights + power * normaliser + (law.log_weights[i] if power == 1 else 0)
    if linear is not None:
        pull = pull + linear
        log_weights = log_weights + origin @ linear
    if quadratic is not None:
        moved = origin @ quadratic if dense else quadratic * origin
        precision = precision + (quadratic if dense else quadratic * eye)
        outside = outside + (0 if dense else quadratic)
        pull = pull - moved
        log_weights = log_weights - 0.5 * (moved * origin).sum(-1)
    values, vectors = torch.linalg.eigh(precision)
    if bool((values <= 0).any()) or (rank < dim and bool((outside <= 0).any())):
        raise FokkerError("this density cannot be normalised: in some direction it does not fall off")
    basis = basis @ vectors
    along = (basis.mT @ pull[..., None])[..., 0]
    shift = (basis @ (along / values)[..., None])[..., 0]
    gain, log_det = (along.square() / values).sum(-1), -torch.log(values).sum(-1)
    variance = (1 / values).amax(-1) if rank else 1 / outside
    if rank < dim:
        rest = pull - (basis @ along[..., None])[..., 0]
        shift = shift + rest / outside[:, None]
        gain = gain + rest.square().sum(-1) / outside
        log_det = log_det - (dim - rank) * torch.log(outside)
        variance = 1 / outside
    log_weights = log_weights + 0.5 * (gain + log_det + dim * math.log(2 * math.pi))
    return GaussianMixture.build(log_weights, origin + shift, (basis, 1 / values, variance), labels, first.shape)


# --- forms -------------------------------------------------------------------------------------------------------


def _joint(bases: Sequence[Tensor], dim: int, full: bool = False) -> Tensor:
    """An orthonormal basis (K, dim, R) of the span of several (K, dim, r); all of space if it is no smaller."""
    total = torch.cat(list(bases), -1)
    if full or total.shape[-1] >= dim:
        return torch.eye(dim, dtype=total.dtype, device=total.device).expand(len(total), dim, dim)
    basis: Tensor = torch.linalg.qr(total)[0]
    return basis


def _from_factor(factor: Tensor, gap: Tensor, variance: Tensor) -> Form:
    """The form of variance I + W diag(gap) W^T, with W (K, dim, r) any."""
    basis = _joint([factor], factor.shape[1])
    inner = basis.mT @ factor
    eye = torch.eye(basis.shape[-1], dtype=factor.dtype, device=factor.device)
    values, vectors = torch.linalg.eigh((inner * gap[:, None]) @ inner.mT + variance[:, None, None] * eye)
    values = values.clamp_min(0)
    return basis @ vectors, values, values.amax(-1) if basis.shape[-1] == factor.shape[1] else variance


def _padded(law: GaussianMixture, rank: int) -> Form:
    """The same form with more columns: zero ones, whose eigenvalue is the residual variance, change nothing."""
    extra = rank - law.rank
    basis = torch.cat([law.basis, law.basis.new_zeros(law.components, law.dim, extra)], -1)
    return basis, torch.cat([law.eigenvalues, law.variance[:, None].expand(-1, extra)], -1), law.variance


def _same_shape(laws: Sequence[GaussianMixture]) -> None:
    if not laws or len({law.shape for law in laws}) != 1:
        raise FokkerError(f"laws of shapes {[law.shape for law in laws]}; give at least one, all of the same shape")
