"""Gaussian mixtures: the law on which everything is known, in any dimension.

Every component is N(m_k, C_k) with the one form of covariance

    C_k = U_k diag(e_k) U_k^T + s_k^2 (I - U_k U_k^T),    U_k (dim, rank) orthonormal (or zero) columns,

so that a dense covariance (rank = dim), an isotropic one (rank = 0) and everything between share every formula. At a
noise level alpha, sigma the eigenvalues become alpha^2 e + sigma^2 and alpha^2 s^2 + sigma^2; nothing else changes.
"""

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.keyed import noise, sample_ids, uniform
from fokker.laws.components import Diffused, DiffusedCoordinates
from fokker.laws.forms import Covariances, Form, as64, covariances
from fokker.laws.law import BUDGET, Law, Level
from fokker.laws.student import DiffusedStudent
from fokker.process import Process, Time


class GaussianMixture(Law):
    """sum_k w_k N(m_k, C_k), with its exact denoiser, score, densities, flow and posteriors.

    `weights` (K,) positive, normalised here. `means` (K, dim), or (K, *shape) for shaped samples. `covs`: dense (K,
    dim, dim) or one (dim, dim) for all; isotropic variances, a number or (K,); or low rank, the triple (basis (K, dim,
    r) with orthonormal columns, eigenvalues (K, r), residual standard deviation (K,)). `labels` (K,) int gives each
    component a class. `shape` reshapes samples, for instance (1, 8, 8) for dim 64. Everything is float64.

    Raises FokkerError where sizes do not match, a weight is negative or a covariance is not symmetric and non-negative.
    """

    def __init__(
        self,
        weights: Tensor | Sequence[float],
        means: Tensor | Sequence[Sequence[float]],
        covs: Covariances,
        labels: Tensor | Sequence[int] | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        w, m = as64(weights), as64(means)
        if w.ndim != 1 or m.ndim < 2 or len(w) != len(m):
            raise FokkerError(
                f"weights {tuple(w.shape)} and means {tuple(m.shape)}; give (K,) and (K, dim) or (K, *shape)"
            )
        if not (torch.isfinite(w).all() and (w >= 0).all() and w.sum() > 0 and torch.isfinite(m).all()):
            raise FokkerError("weights and means must be finite, and weights not negative and not all zero")
        flat = m.flatten(1)
        form = covariances(covs, len(w), flat.shape[1])
        self._set(torch.log(w), flat, form, labels, m.shape[1:] if shape is None else shape)

    @staticmethod
    def build(
        log_weights: Tensor, means: Tensor, form: Form, labels: Tensor | None, shape: Sequence[int]
    ) -> "GaussianMixture":
        """A mixture from its internal form (basis, eigenvalues, residual variance), unchecked; weights are
        normalised."""
        law = GaussianMixture.__new__(GaussianMixture)
        law._set(log_weights, means, form, labels, shape)
        return law

    def _set(
        self,
        log_weights: Tensor,
        means: Tensor,
        form: Form,
        labels: Tensor | Sequence[int] | None,
        shape: Sequence[int],
    ) -> None:
        self.log_weights = torch.log_softmax(log_weights, 0)
        self.means = means
        self.basis, self.eigenvalues, self.variance = form
        self.components, self.dim, self.rank = self.basis.shape
        self.shape = tuple(shape)
        if math.prod(self.shape) != self.dim:
            raise FokkerError(f"shape {self.shape} has {math.prod(self.shape)} numbers, the means have {self.dim}")
        self.labels = None if labels is None else torch.as_tensor(labels, dtype=torch.int64, device=means.device)
        if self.labels is not None and (self.labels.shape != (self.components,) or bool((self.labels < 0).any())):
            raise FokkerError(f"labels must be {self.components} integers, not negative: one per component")
        self.points = self.rank == 0 and not bool(self.variance.any())
        # states are taken relative to the centre, so that a law far from the origin loses no digits
        self._centre = self.weights @ means
        offsets = means - self._centre
        # U_1 ... U_K and the means side by side: one product projects on all, one more comes back
        self._frame = torch.cat([self.basis.permute(1, 0, 2).flatten(1), offsets.T], dim=1).contiguous()
        self._back = self._frame.T.contiguous()
        self._inside = torch.einsum("kdr,kd->kr", self.basis, offsets)
        self._square = offsets.square().sum(1)
        self._table = self._conditionals()

    def _conditionals(self) -> Tensor:
        """Log weights given each label, (1 + labels, K): row 0 is no condition."""
        rows = [self.log_weights]
        if self.labels is not None:
            for label in range(int(self.labels.max()) + 1):
                rows.append(torch.log_softmax(self.log_weights.masked_fill(self.labels != label, -torch.inf), 0))
        return torch.stack(rows)

    # --- views ---------------------------------------------------------------------------------------------------

    @property
    def weights(self) -> Tensor:
        return self.log_weights.exp()

    @property
    def form(self) -> Form:
        """(basis, eigenvalues, residual variance)."""
        return self.basis, self.eigenvalues, self.variance

    @property
    def covs(self) -> Tensor:
        """The covariances, dense, (K, dim, dim)."""
        scaled = self.basis * (self.eigenvalues - self.variance[:, None])[:, None]
        eye = torch.eye(self.dim, dtype=torch.float64, device=self.device)
        return scaled @ self.basis.mT + self.variance[:, None, None] * eye

    @property
    def device(self) -> torch.device:
        return self.means.device

    @property
    def row_size(self) -> int:
        return self.components * max(1, self.rank) + self.dim

    @property
    def _variances(self) -> Tensor:
        """Every variance of every component, (K, rank or rank + 1)."""
        return self.eigenvalues if self.rank == self.dim else torch.cat([self.eigenvalues, self.variance[:, None]], 1)

    @property
    def _rounding(self) -> Tensor:
        """Below this (K, 1) a variance is the rounding of an eigenvalue, and means zero."""
        return self.dim * 2e-16 * self._variances.amax(1, keepdim=True)

    @property
    def singular(self) -> bool:
        return bool((self._variances <= self._rounding).any())

    @property
    def finest(self) -> float:
        positive = self._variances[self._variances > self._rounding]
        return math.sqrt(float(positive.min())) if len(positive) else 1.0

    def to(self, device: torch.device | str) -> Self:
        law = type(self).__new__(type(self))
        law.__dict__.update({k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.__dict__.items()})
        return law

    def __repr__(self) -> str:
        return f"{type(self).__name__}(components={self.components}, shape={self.shape}, rank={self.rank})"

    def mean(self) -> Tensor:
        return self._centre.reshape(self.shape)

    def cov(self) -> Tensor:
        offsets = (self.means - self._centre) * self.weights.sqrt()[:, None]
        scale = (self.weights[:, None] * (self.eigenvalues - self.variance[:, None])).flatten()
        basis = self._frame[:, : len(scale)]
        eye = torch.eye(self.dim, dtype=torch.float64, device=self.device)
        return (basis * scale) @ basis.T + offsets.T @ offsets + (self.weights @ self.variance) * eye

    # --- what the contract asks ----------------------------------------------------------------------------------

    def prior(self, label: Tensor | None = None, logits: Tensor | None = None) -> Tensor:
        if label is None:
            log_weights = self.log_weights
        else:
            known = len(self._table) - 1
            # on a device, looking would stall the run: there an unknown label ends in an index error or NaN
            if not label.is_cuda and len(label) and not -1 <= int(label.min()) <= int(label.max()) < known:
                raise FokkerError(f"a label is outside -1 .. {known - 1}; -1 stands for no condition")
            log_weights = self._table[label + 1]
        if logits is None:
            return log_weights
        if logits.shape[-1] != self.components:
            raise FokkerError(f"logits for {logits.shape[-1]} components; this law has {self.components}")
        return torch.log_softmax(log_weights + logits.to(log_weights), -1)

    def parts(self, x: Tensor, level: Level) -> Diffused | DiffusedCoordinates:
        """What the components say about flat states at a level."""
        if isinstance(level.alpha, Tensor) and level.alpha.shape[-1] > 1:
            return DiffusedCoordinates(self, x, level)
        return Diffused(self, x, level) if level.dof is None else DiffusedStudent(self, x, level)

    def weigh(self, x: Tensor, level: Level, prior: Tensor) -> Tensor:
        """p(k | x), (n, K)."""
        return torch.softmax(prior + self.parts(x, level).log_likelihood(), -1)

    def belief(self, x: Tensor, level: Level, prior: Tensor) -> Tensor:
        parts = self.parts(x, level)
        return parts.belief(torch.softmax(prior + parts.log_likelihood(), -1))

    def gradient(self, x: Tensor, level: Level, prior: Tensor) -> Tensor:
        parts = self.parts(x, level)
        return parts.gradient(torch.softmax(prior + parts.log_likelihood(), -1))

    def log_density(self, x: Tensor, level: Level, prior: Tensor) -> Tensor:
        return torch.logsumexp(prior + self.parts(x, level).log_likelihood(), -1)

    def spread(self, x: Tensor, level: Level, prior: Tensor) -> Tensor:
        parts = self.parts(x, level)
        return parts.spread(torch.softmax(prior + parts.log_likelihood(), -1))

    def covariance(self, x: Tensor, level: Level, prior: Tensor) -> Tensor:
        """Cov[x_0 | x], (n, dim, dim)."""
        parts = self.parts(x, level)
        return parts.covariance(torch.softmax(prior + parts.log_likelihood(), -1))

    def draw(self, prior: Tensor, seed: int, ids: Tensor) -> Tensor:
        which = self._choose(prior, seed, ids, 1)
        normal = noise((len(ids), self.dim), seed, ids, "law", 0, torch.float64, self.device)
        basis, std = self.basis[which], self.variance[which].sqrt()[:, None]
        along = (basis.mT @ normal[..., None])[..., 0] * (self.eigenvalues[which].sqrt() - std)
        return self.means[which] + std * normal + (basis @ along[..., None])[..., 0]

    def _choose(self, prior: Tensor, seed: int, ids: Tensor, index: int) -> Tensor:
        """A component for each sample, (n,)."""
        u = uniform((len(ids), 1), seed, ids, "law", index, self.device)
        total = torch.exp(prior).cumsum(-1).contiguous()
        which = torch.searchsorted(total, (u if prior.ndim == 2 else u.flatten()).contiguous()).reshape(-1)
        return which.clamp(max=self.components - 1)

    # --- what only a mixture knows -------------------------------------------------------------------------------

    def sample_labelled(
        self, n: int, seed: int = 0, ids: Sequence[int] | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Samples (n, *shape), the same as `sample` gives, and the labels (n,) of their components."""
        if self.labels is None:
            raise FokkerError("this law has no labels; give labels= when making it")
        which = sample_ids(n if ids is None else len(ids), ids, self.device)
        return self.sample(n, seed, ids), self.labels[self._choose(self.log_weights, seed, which, 1)]

    def responsibilities(
        self,
        x_t: Tensor,
        t: Time = 0.0,
        process: Process | None = None,
        label: int | Tensor | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        """p(k | x_t) for states (..., *shape), (..., K); of clean states if no process is given."""
        x, level = (x_t, Level(1.0, 0.0)) if process is None else self._noised(x_t, t, process, y)
        return self._apply("weigh", x, level, label)

    def posterior_cov(
        self, x_t: Tensor, t: Time, process: Process, label: int | Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        """Cov[x_0 | x_t], exact, (..., dim, dim); it equals sigma^2 / alpha times the Jacobian of the denoiser."""
        x, level = self._noised(x_t, t, process, y)
        return self._apply("covariance", x, level, label)

    def posterior_sampler(self, process: Process) -> "PosteriorSampler":
        """x_0 ~ p(x_0 | x_t), exact, beside the mean that the denoiser gives."""
        return PosteriorSampler(self, process)

    # --- laws from laws ------------------------------------------------------------------------------------------

    def posterior(self, matrix: Tensor, y: Tensor, noise_std: float | Tensor) -> "GaussianMixture":
        """p(x | y) for y = matrix @ x + noise_std n: a mixture again. See `fokker.laws.posterior`."""
        from fokker.laws.posterior import posterior

        return posterior(self, matrix, y, noise_std)

    def conditional(self, label: int) -> "GaussianMixture":
        """p(x | label): the components of one class."""
        from fokker.laws.algebra import conditional

        return conditional(self, label)

    def marginal(self, indices: Tensor | Sequence[int], shape: Sequence[int] | None = None) -> "GaussianMixture":
        """The law of some coordinates of the flattened sample."""
        from fokker.laws.algebra import marginal

        return marginal(self, indices, shape)

    def affine(
        self, matrix: float | Tensor, offset: float | Tensor = 0.0, shape: Sequence[int] | None = None
    ) -> "GaussianMixture":
        """The law of matrix @ x + offset."""
        from fokker.laws.algebra import affine

        return affine(self, matrix, offset, shape)

    def tempered(self, power: float) -> "GaussianMixture":
        """The normalised p(x)^power: any power of a single Gaussian, positive integers otherwise."""
        from fokker.laws.algebra import product

        return product([self], [power])

    def tilt(self, linear: Tensor | None = None, quadratic: float | Tensor | None = None) -> "GaussianMixture":
        """The normalised p(x) exp(linear . x - x^T quadratic x / 2)."""
        from fokker.laws.algebra import tilt

        return tilt(self, linear, quadratic)

    @staticmethod
    def fit(
        data: Tensor,
        components: int,
        rank: int,
        labels: Tensor | Sequence[int] | None = None,
        seed: int = 0,
        iterations: int = 200,
        floor: float = 1e-3,
    ) -> "GaussianMixture":
        """A mixture fitted to `data` (n, *shape) by maximum likelihood, with `components` of rank `rank` per class.

        EM for mixtures of probabilistic principal component analysers from a k-means start; variances are kept above
        `floor` times the data's mean variance. With `labels` (n,) each class is fitted by itself and the law is
        class-conditional. Raises FokkerError where a class has fewer points than components.

        Reference: Tipping & Bishop 1999, "Mixtures of probabilistic principal component analyzers".
        """
        from fokker.laws.fit import fit

        return fit(data, components, rank, labels, seed, iterations, floor)


class PosteriorSampler:
    """`sampler(x_t, t, seed, ids)` draws x_0 ~ p(x_0 | x_t) from a mixture, keyed per sample; `index` numbers the
    draws."""

    def __init__(self, law: GaussianMixture, process: Process) -> None:
        self.law, self.process = law, process

    def __call__(
        self,
        x_t: Tensor,
        t: Time,
        seed: int = 0,
        ids: Sequence[int] | Tensor | None = None,
        index: int = 0,
        label: int | Tensor | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        law = self.law
        x, level = law._noised(x_t, t, self.process, y)
        flat = x.reshape(-1, law.dim).to(torch.float64)
        which = sample_ids(len(flat), ids, law.device)
        prior = law.prior(law._labels(label, x.shape[: x.ndim - len(law.shape)]))
        rows = max(1, BUDGET // (law.row_size * law.dim))
        drawn = []
        for i in range(0, len(flat), rows):
            p = slice(i, i + rows)
            one_level = not isinstance(level.alpha, Tensor) or len(level.alpha) == 1
            parts = law.parts(flat[p], level if one_level else level.part(p))
            chance = torch.log_softmax((prior[p] if prior.ndim == 2 else prior) + parts.log_likelihood(), -1)
            # draws 0 and 1 are those of the law's own samples
            component = law._choose(chance, seed, which[p], 2 * index + 3)
            normal = noise((len(flat[p]), law.dim), seed, which[p], "law", 2 * index + 2, torch.float64, law.device)
            drawn.append(parts.draw(component, normal))
        return torch.cat(drawn).to(x_t.dtype).reshape(x_t.shape)
