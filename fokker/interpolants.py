"""Stochastic interpolants: bridges in finite time between two laws, both arbitrary, neither of them noise.

    x_t = alpha(t) x_0 + beta(t) x_1 + gamma(t) z,    t in [0, 1],    gamma(0) = gamma(1) = 0,    (x_0, x_1) from a coupling

No belief about x_0 alone says where to go, for E[x_0 | x_t] does not fix E[x_1 | x_t]: such a bridge has two fields, a
velocity b = E[dx_t/dt | x_t] and a score s = -eta / gamma, eta = E[z | x_t]. They give an ODE and, for any noise eps(t) >= 0,
SDEs with the same marginals in both directions:

    dX = b dt;    forward dX = (b + eps s) dt + sqrt(2 eps) dW;    down from t = 1, dX = (b - eps s) dt + sqrt(2 eps) dW.

Reference: Albergo, Boffi, Vanden-Eijnden 2023, arXiv 2303.08797.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fokker.denoiser import Cond, Denoiser, as_denoiser
from fokker.errors import FokkerError, unknown
from fokker.keyed import noise, sample_ids
from fokker.laws.mixture import GaussianMixture
from fokker.process import Interpolant, Time, as_time, derivative, expand

PATHS = ("linear", "trigonometric", "encoding-decoding")
GAMMAS = ("brownian", "quadratic", "squared-sine", "none")


class Coefficients(NamedTuple):
    """alpha, beta, gamma at a time and their rates of change, float64."""

    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    d_alpha: Tensor
    d_beta: Tensor
    d_gamma: Tensor


@dataclass(frozen=True)
class Interpolation:
    """The path between the ends and the noise on the way.

    path   linear             (1 - t, t)
           trigonometric      (cos(pi t / 2), sin(pi t / 2)): keeps the variance of independent ends
           encoding-decoding  cos^2(pi t) for x_0 up to t = 1/2 and for x_1 from there: through pure noise in the middle
    gamma  brownian           sqrt(a t (1 - t)); its rate is infinite at the ends, where only gamma gamma' is finite
           quadratic          a t (1 - t)
           squared-sine       a sin^2(pi t)
           none               0: an ODE only, no score
    """

    path: str = "linear"
    gamma: str = "brownian"
    a: float = 2.0

    def __post_init__(self) -> None:
        if self.path not in PATHS:
            raise unknown("path", self.path, PATHS)
        if self.gamma not in GAMMAS:
            raise unknown("gamma", self.gamma, GAMMAS)
        if not self.a > 0:
            raise FokkerError(f"a={self.a} is not accepted; the strength of the noise is above 0")
        if self.path == "encoding-decoding" and self.gamma != "squared-sine":
            raise FokkerError("the path encoding-decoding needs gamma='squared-sine', which is all there is in the middle")

    def alpha_of(self, t: Tensor) -> Tensor:
        if self.path == "linear":
            return 1 - t
        if self.path == "trigonometric":
            return torch.sin(math.pi / 2 * (1 - t))
        return torch.where(t < 0.5, torch.cos(math.pi * t) ** 2, torch.zeros_like(t))

    def gamma_of(self, t: Tensor) -> Tensor:
        if self.gamma == "brownian":
            return torch.sqrt(self.a * t * (1 - t))
        if self.gamma == "quadratic":
            return self.a * t * (1 - t)
        return self.a * torch.sin(math.pi * t) ** 2 if self.gamma == "squared-sine" else torch.zeros_like(t)

    def at(self, t: Time) -> Coefficients:
        """All coefficients, elementwise in t."""
        t = as_time(t)

        def beta(t: Tensor) -> Tensor:
            return self.alpha_of(1 - t)

        parts = (self.alpha_of, beta, self.gamma_of)
        return Coefficients(*(f(t) for f in parts), *(derivative(f, t) for f in parts))

    def on(self, t: Time, x: Tensor) -> Coefficients:
        """The coefficients to multiply x with: of its dtype and rank."""
        found = self.at(t)
        return Coefficients(*(expand(c, x).to(x.device, x.dtype) for c in found))

    def add_noise(self, x_0: Tensor, x_1: Tensor, z: Tensor, t: Time) -> Tensor:
        """x_t, shapes as x_0."""
        c = self.on(t, x_0)
        return c.alpha * x_0 + c.beta * x_1 + c.gamma * z


class BridgeField(nn.Module, ABC):
    """Velocity and eta of a bridge. Subclasses define `fields(x, t, **cond)`, both of the shape of x."""

    def __init__(self, interpolation: Interpolation) -> None:
        super().__init__()
        self.interpolation = interpolation

    @abstractmethod
    def fields(self, x: Tensor, t: Time, **cond: Cond) -> tuple[Tensor, Tensor]:
        """(b, eta) at x (batch, ...), t one time or one a sample."""

    def forward(self, x: Tensor, t: Time, **cond: Cond) -> tuple[Tensor, Tensor]:
        return self.fields(x, t, **cond)

    def velocity(self, x: Tensor, t: Time, **cond: Cond) -> Tensor:
        """b = E[dx_t/dt | x_t]."""
        return self.fields(x, t, **cond)[0]

    def score(self, x: Tensor, t: Time, **cond: Cond) -> Tensor:
        """The gradient of log p_t; FokkerError where there is no noise."""
        gamma = self.interpolation.on(t, x).gamma
        if bool((gamma == 0).any()):
            raise FokkerError("there is no noise at this time (gamma = 0), and so no score; use a time inside (0, 1)")
        return -self.fields(x, t, **cond)[1] / gamma

    def one_sided(self) -> Denoiser:
        """The denoiser of x_0, where x_1 is unit normal and independent: x_t is then data and noise, a plain process.

        Its process is the path (alpha, sqrt(beta^2 + gamma^2)) of `fokker.process.Interpolant`: diffusion and flow matching.
        """
        path = self.interpolation
        if path.path == "encoding-decoding":
            raise FokkerError("the path encoding-decoding has lost x_0 at t = 1/2: it is no process of x_0 beyond")

        def sigma(t: Tensor) -> Tensor:
            return torch.sqrt(path.alpha_of(1 - t) ** 2 + path.gamma_of(t) ** 2)

        return as_denoiser(lambda x, t: self.velocity(x, t), Interpolant(path.alpha_of, sigma), "flow")


def couple(rho_0: GaussianMixture, rho_1: GaussianMixture) -> GaussianMixture:
    """The law of independent (x_0, x_1), a mixture of all pairs of components in twice the dimensions, shape (2, dim)."""
    if rho_0.dim != rho_1.dim:
        raise FokkerError(f"the ends have dimensions {rho_0.dim} and {rho_1.dim}; a bridge needs equal ones")
    n, m, dim = rho_0.components, rho_1.components, rho_0.dim
    weights = (rho_0.weights[:, None] * rho_1.weights).flatten()
    means = torch.stack([rho_0.means[:, None].expand(n, m, dim), rho_1.means.expand(n, m, dim)], 2)
    covs = torch.zeros(n, m, 2 * dim, 2 * dim, dtype=torch.float64)
    covs[..., :dim, :dim], covs[..., dim:, dim:] = rho_0.covs[:, None], rho_1.covs
    return GaussianMixture(weights, means.reshape(n * m, 2, dim), covs.flatten(0, 1))


class ExactField(BridgeField):
    """Both fields in closed form for a coupling that is a Gaussian mixture over (x_0, x_1), shape (2, dim); see `couple`.

    Given a component with means (m, n) and covariance blocks P, Q, R of (x_0, x_1), x_t is normal with mean alpha m + beta n
    and covariance S = alpha^2 P + alpha beta (Q + Q^T) + beta^2 R + gamma^2; the expectations of x_0, x_1 and z are linear.
    """

    def __init__(self, coupling: GaussianMixture, interpolation: Interpolation | None = None) -> None:
        super().__init__(interpolation or Interpolation())
        if len(coupling.shape) != 2 or coupling.shape[0] != 2:
            raise FokkerError(f"a coupling has the shape (2, dim), not {coupling.shape}; make one with couple(rho_0, rho_1)")
        dim = coupling.shape[1]
        self.coupling, covs = coupling, coupling.covs
        self.ends = coupling.means[:, :dim], coupling.means[:, dim:]
        self.blocks = covs[:, :dim, :dim], covs[:, :dim, dim:], covs[:, dim:, dim:]

    def fields(self, x: Tensor, t: Time, **cond: Cond) -> tuple[Tensor, Tensor]:
        state = x.to(torch.float64)
        found = self.interpolation.at(t)
        c, wide = (Coefficients(*(v.reshape(-1, *ones) for v in found)) for ones in ((1, 1), (1, 1, 1)))
        P, Q, R = self.blocks
        eye = torch.eye(state.shape[1], dtype=torch.float64)
        # one for each time and component, (1 or batch, J, dim, dim)
        S = wide.alpha**2 * P + wide.alpha * wide.beta * (Q + Q.mT) + wide.beta**2 * R + wide.gamma**2 * eye
        rest = state[:, None] - c.alpha * self.ends[0] - c.beta * self.ends[1]
        solved = _times(torch.linalg.inv(S), rest)
        half = -0.5 * ((rest * solved).sum(-1) + torch.linalg.slogdet(S)[1])
        share = torch.softmax(self.coupling.log_weights + half, -1)[..., None]
        x_0 = self.ends[0] + _times(wide.alpha * P + wide.beta * Q, solved)
        x_1 = self.ends[1] + _times(wide.alpha * Q.mT + wide.beta * R, solved)
        z = c.gamma * solved
        b = c.d_alpha * x_0 + c.d_beta * x_1
        # at the ends gamma' is infinite and z zero: their product is not wanted there
        b = torch.where(c.gamma > 0, b + c.d_gamma * z, b)
        return (share * b).sum(1).to(x.dtype), (share * z).sum(1).to(x.dtype)


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """matrices (1 or batch, J, dim, dim) times vectors (batch, J, dim)."""
    if len(matrices) == 1:
        return torch.einsum("jde,bje->bjd", matrices[0], vectors)
    return torch.einsum("bjde,bje->bjd", matrices, vectors)


class NetworkField(BridgeField):
    """Two networks, or one with two heads, as the fields: net(x, c, **cond) -> (batch, ...) each, c = 10 t - 5.

    learn="b" takes the first as b itself; learn="v" as v = E[dI/dt | x_t], with b = v + gamma' eta, which spares the network
    what diverges at the ends. `eta` None takes the second half of the first network's channels (dimension 1) for eta.
    """

    def __init__(
        self, net: nn.Module, eta: nn.Module | None = None, interpolation: Interpolation | None = None, learn: str = "b"
    ) -> None:
        super().__init__(interpolation or Interpolation())
        if learn not in ("b", "v"):
            raise unknown("learn", learn, ("b", "v"))
        self.net, self.eta, self.learn = net, eta, learn

    def heads(self, x: Tensor, t: Time, **cond: Cond) -> tuple[Tensor, Tensor]:
        """(b or v, eta), as the networks say them."""
        dtype = next(self.parameters()).dtype
        c = (10 * as_time(t) - 5).to(x.device, torch.float32)
        c = c.expand(len(x)) if c.ndim == 0 else c
        first: Tensor = self.net(x.to(dtype), c, **cond)
        if self.eta is None:
            one, two = first.chunk(2, 1)
            return one.to(x.dtype), two.to(x.dtype)
        return first.to(x.dtype), self.eta(x.to(dtype), c, **cond).to(x.dtype)

    def fields(self, x: Tensor, t: Time, **cond: Cond) -> tuple[Tensor, Tensor]:
        first, eta = self.heads(x, t, **cond)
        return (first + self.interpolation.on(t, x).d_gamma * eta if self.learn == "v" else first), eta


@dataclass(frozen=True)
class Bridge:
    """Carries samples of one end to the other: the ODE for eps = 0, an SDE for eps > 0, a number or a function of t.

    `steps` equal steps of Heun's method (solver "euler": one slope a step) between `margin` and 1 - margin, where gamma' is
    still finite; the noise of a step is added to both slopes' states. Two evaluations of the field a step (Euler: one).
    """

    steps: int = 100
    eps: float | Callable[[float], float] = 0.0
    solver: str = "heun"
    margin: float = 1e-3

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.margin < 0.5:
            raise FokkerError(f"steps={self.steps}, margin={self.margin}: use at least 1 step and a margin in [0, 0.5)")
        if self.solver not in ("euler", "heun"):
            raise unknown("solver", self.solver, ("euler", "heun"))
        if not callable(self.eps) and not self.eps >= 0:
            raise FokkerError(f"eps={self.eps} is not accepted; the noise level is not negative")

    @torch.no_grad()
    def __call__(
        self,
        field: BridgeField,
        x: Tensor,
        backward: bool = False,
        seed: int = 0,
        ids: Sequence[int] | Tensor | None = None,
        path: bool = False,
        **cond: Cond,
    ) -> Tensor:
        """x (batch, ...) at t = 0 carried to t = 1, or back; with `path` all states (steps + 1, batch, ...)."""
        which = None if ids is None else sample_ids(len(x), ids)
        clock = torch.linspace(self.margin, 1 - self.margin, self.steps + 1, dtype=torch.float64)
        times: list[float] = (clock.flip(0) if backward else clock).tolist()
        states = [x]
        for k in range(self.steps):
            t, s = times[k], times[k + 1]
            kick: Tensor | float = 0.0
            level = self.level(t)
            if level > 0:
                z = noise(tuple(x.shape), seed, which, "step", k, x.dtype, x.device)
                kick = math.sqrt(2 * level * abs(s - t)) * z
            slope = self.drift(field, x, t, backward, **cond)
            ahead = x + (s - t) * slope + kick
            if self.solver == "heun":
                ahead = x + 0.5 * (s - t) * (slope + self.drift(field, ahead, s, backward, **cond)) + kick
            x = ahead
            if path:
                states.append(x)
        if not bool(torch.isfinite(x).all()):
            raise FokkerError("the bridge left the finite numbers; use more steps, a smaller eps or a larger margin")
        return torch.stack(states) if path else x

    def level(self, t: float) -> float:
        """eps at time t."""
        return float(self.eps(t)) if callable(self.eps) else float(self.eps)

    def drift(self, field: BridgeField, x: Tensor, t: float, backward: bool, **cond: Cond) -> Tensor:
        """b + eps s on the way forward, b - eps s on the way back."""
        b, eta = field.fields(x, t, **cond)
        level = self.level(t)
        if level == 0:
            return b
        gamma = float(field.interpolation.at(t).gamma)
        if gamma == 0:
            raise FokkerError("an SDE needs the score, and there is none where gamma = 0; use eps=0 or another gamma")
        return b + (level if backward else -level) / gamma * eta


__all__ = ["Bridge", "BridgeField", "ExactField", "Interpolation", "NetworkField", "couple"]
