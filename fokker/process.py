"""The forward noising x_t = alpha(t) x_0 + beta(t) y + sigma(t) eps, with t = 0 the data and t = 1 the noise.

A process states its coefficients. Log-SNR, its inverse, drift, diffusion and every conversion between the things a network
may predict follow from them and are written once, here. Coefficients are float64; a process is immutable.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from fokker.errors import FokkerError, unknown
from fokker.keyed import noise

Time = float | Tensor
PREDICTIONS = ("x0", "eps", "v", "score", "flow", "edm")


def as_time(t: Time) -> Tensor:
    """`t` as a float64 tensor on its own device."""
    return t.to(torch.float64) if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)


def expand(t: Tensor, x: Tensor) -> Tensor:
    """`t`, whose shape matches the leading dimensions of `x`, with trailing dimensions of size one appended."""
    if t.ndim > x.ndim or any(a not in (1, b) for a, b in zip(t.shape, x.shape, strict=False)):
        raise FokkerError(
            f"times of shape {tuple(t.shape)} do not fit a state of shape {tuple(x.shape)}; "
            "give one time, or one per leading index such as (batch,)"
        )
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


@dataclass(frozen=True, eq=False)
class Process:
    """A Gaussian noising process, given by `alpha`, `sigma` and, if it is anchored on an observation y, `beta`.

    Subclasses are frozen dataclasses that define `_alpha(t)` and `_sigma(t)` (and `_beta(t)`) on float64 tensors. The
    signal-to-noise ratio must fall strictly in t, or construction raises FokkerError naming the first time where it does not.
    `end` is the time at which plans stop unless told otherwise; `anchored` says that beta is not zero, `tokens` that states
    are integers (`fokker.discrete`), `dof` the degrees of freedom of a heavy-tailed noise (None: normal).
    """

    end = 1e-3
    anchored = False
    tokens = False
    dof: ClassVar[float | None] = None
    _known: dict[float, tuple[float, float, float]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        t = torch.linspace(0, 1, 1025, dtype=torch.float64)
        alpha, sigma = self.alpha(t), self.sigma(t)
        good = torch.isfinite(alpha) & torch.isfinite(sigma) & (alpha >= 0) & (sigma >= 0)
        if not good.all():
            at = float(t[~good][0])
            raise FokkerError(f"{self!r}: alpha and sigma must be finite and not negative, but are not at t={at:.4f}")
        # the angle is finite where the log-SNR is not, and monotone exactly when the SNR is
        known = sigma + alpha > 0
        stuck = (torch.atan2(sigma, alpha)[known].diff() <= 0).nonzero()
        if len(stuck):
            at = float(t[known][int(stuck[0]) + 1])
            raise FokkerError(f"{self!r}: the signal-to-noise ratio must fall strictly, but does not at t={at:.4f}")

    # --- what a process states -----------------------------------------------------------------------------------

    def _alpha(self, t: Tensor) -> Tensor:
        raise FokkerError(f"{type(self).__name__} does not define _alpha(t); a process states _alpha and _sigma")

    def _sigma(self, t: Tensor) -> Tensor:
        raise FokkerError(f"{type(self).__name__} does not define _sigma(t); a process states _alpha and _sigma")

    def _beta(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    # --- what follows --------------------------------------------------------------------------------------------

    def alpha(self, t: Time) -> Tensor:
        """Coefficient of x_0, elementwise in `t`, float64."""
        return self._alpha(as_time(t))

    def sigma(self, t: Time) -> Tensor:
        """Standard deviation of the noise, elementwise in `t`, float64."""
        return self._sigma(as_time(t))

    def beta(self, t: Time) -> Tensor:
        """Coefficient of the anchor y, elementwise in `t`, float64; zero for plain processes."""
        return self._beta(as_time(t))

    def logsnr(self, t: Time) -> Tensor:
        """log(alpha^2 / sigma^2), elementwise in `t`; -inf where alpha is 0 (also if sigma is), +inf where only sigma is."""
        t = as_time(t)
        alpha, sigma = self._alpha(t), self._sigma(t)
        return 2 * (torch.log(alpha) - torch.log(torch.where(alpha == 0, torch.ones_like(sigma), sigma)))

    def time(self, logsnr: Time) -> Tensor:
        """The t at which the log-SNR has the given value, clamped to [0, 1]; differentiable in `logsnr`."""
        target = as_time(logsnr)
        t, width = torch.zeros_like(target), 1.0
        inner = torch.arange(1, 16, dtype=torch.float64, device=t.device) / 16
        with torch.no_grad():
            for _ in range(16):  # an interval into sixteen, sixteen times
                clearer = self.logsnr(t[..., None] + width * inner) >= target[..., None]
                width /= 16
                t = t + width * clearer.sum(-1)
        if target.requires_grad:
            # the gradient of the implicit function; none where the value was clamped
            ends = self.logsnr(torch.tensor([1.0, 0.0], dtype=torch.float64, device=t.device))
            slope = derivative(self.logsnr, t)
            inside = (target > ends[0]) & (target < ends[1]) & torch.isfinite(slope)
            t = t + (target - target.detach()) / torch.where(inside, slope, torch.inf)
        return t

    def at(self, t: float) -> tuple[float, float, float]:
        """(alpha, beta, sigma) of the state at time t as Python floats, remembered: what a denoiser needs in a loop.

        At a bridge's pinned end, where alpha and sigma are 0, sigma is given as 1: the state there keeps unit noise (`start`).
        """
        if t not in self._known:
            if len(self._known) > 4096:
                self._known.clear()
            alpha, sigma = self.alpha(t).item(), self.sigma(t).item()
            self._known[t] = (alpha, self.beta(t).item(), sigma if alpha + sigma > 0 else 1.0)
        return self._known[t]

    def coefficients(self, t: Time, x: Tensor) -> tuple[Any, Any, Any]:
        """`at(t)` to multiply `x` with: floats for one time, tensors of x's dtype and rank for many."""
        if not isinstance(t, Tensor):
            return self.at(float(t))
        if t.ndim == 0 and t.device.type == "cpu" and not t.requires_grad:
            return self.at(t.item())
        alpha, sigma = self.alpha(t), self.sigma(t)
        sigma = torch.where(alpha + sigma > 0, sigma, torch.ones_like(sigma))
        alpha, beta, sigma = (expand(c, x).to(x.device, x.dtype) for c in (alpha, self.beta(t), sigma))
        return alpha, beta, sigma

    def drift(self, t: Time) -> Tensor:
        """f(t) of the forward SDE dx = f x dt + g dw (for x - beta y), d log(alpha) / dt; at the ends a hair inside."""
        t = as_time(t).clamp(1e-12, 1 - 1e-12)
        return derivative(self._alpha, t) / self._alpha(t)

    def diffusion(self, t: Time) -> Tensor:
        """g(t)^2 of the forward SDE, -sigma^2 d logsnr / dt; at the ends a hair inside."""
        t = as_time(t).clamp(1e-12, 1 - 1e-12)
        sigma, alpha = self._sigma(t), self._alpha(t)
        return 2 * sigma * (derivative(self._sigma, t) - sigma * derivative(self._alpha, t) / alpha)

    def relation(self, prediction: str, t: Time, x: Tensor) -> tuple[Any, Any, Any]:
        """(a, b, c) with a * prediction = b * x_t + c * x_0: every conversion is this one linear relation.

        eps is the noise, v = alpha eps - sigma x_0 (Salimans & Ho 2022, arXiv 2202.00512), score the gradient of
        log p_t, flow the velocity dx_t/dt = alpha' x_0 + sigma' eps. Raises FokkerError for another name.
        """
        alpha, _, sigma = self.coefficients(t, x)
        if prediction == "x0":
            return 1.0, 0.0, 1.0
        if prediction == "eps":
            return sigma, 1.0, -alpha
        if prediction == "v":
            return sigma, alpha, -(alpha**2 + sigma**2)
        if prediction == "score":
            return sigma**2, -1.0, alpha
        if prediction == "flow":
            time = as_time(t)
            rate = [derivative(f, time) for f in (self._alpha, self._sigma)]
            many = isinstance(alpha, Tensor)
            d_alpha, d_sigma = (expand(r, x).to(x.device, x.dtype) if many else r.item() for r in rate)
            return sigma, d_sigma, sigma * d_alpha - alpha * d_sigma
        raise unknown("prediction", prediction, [p for p in PREDICTIONS if p != "edm"])

    def to_x0(self, prediction: str, value: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """x_0 from what a network predicted at x_t - beta y; undefined where the prediction says nothing about x_0."""
        a, b, c = self.relation(prediction, t, x_t)
        return (a * value - b * x_t) / c  # type: ignore[no-any-return]

    def from_x0(self, prediction: str, x_0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """eps, v, score or flow (velocity) that belongs to the belief x_0 at x_t - beta y."""
        a, b, c = self.relation(prediction, t, x_t)
        return (b * x_t + c * x_0) / a  # type: ignore[no-any-return]

    def add_noise(self, x_0: Tensor, eps: Tensor, t: Time, y: Tensor | None = None) -> Tensor:
        """x_t = alpha x_0 + beta y + sigma eps; shapes as x_0, with `t` one time or one per leading index."""
        alpha, beta, sigma = self.coefficients(t, x_0)
        x_t: Tensor = alpha * x_0 + sigma * eps
        return x_t + beta * self.anchor(y) if self.anchored else x_t

    def start(self, eps: Tensor, y: Tensor | None = None, t: float = 1.0) -> Tensor:
        """The state at the noise end, beta y + sigma eps, from unit normal `eps`.

        A bridge has no noise there; its state keeps unit noise, with which the first row of a plan leaves the point mass.
        """
        _, beta, sigma = self.at(t)
        x = sigma * eps
        return x + beta * self.anchor(y) if self.anchored else x

    def anchor(self, y: Tensor | None) -> Tensor:
        """`y`, or FokkerError if this process is anchored and none was given."""
        if y is None:
            raise FokkerError(f"{self.name} is anchored on an observation; give it as y=")
        return y

    def sample_noise(self, shape: tuple[int, ...], seed: int = 0, ids: Any = None, **where: Any) -> Tensor:
        """Unit noise of the process's own kernel, keyed like `fokker.noise` (normal unless a process says otherwise)."""
        return noise(shape, seed, ids, **where)

    def log_noise(self, eps: Tensor) -> Tensor:
        """The log-density of that noise at `eps` (batch, ...), which is the law of the start where no signal is left."""
        flat = eps.flatten(1).to(torch.float64)
        return -0.5 * (flat.square().sum(1) + flat.shape[1] * math.log(2 * math.pi))

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def config(self) -> dict[str, Any]:
        """What rebuilds this process: its class name and its options."""
        return {"process": self.name} | {f.name: getattr(self, f.name) for f in fields(self) if f.init}


def derivative(f: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """df/dt elementwise, exact; itself differentiable."""
    return torch.func.jvp(f, (t,), (torch.ones_like(t),))[1]  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class VP(Process):
    """Variance preserving, with beta(t) linear from `beta_min` to `beta_max`.

    Reference: Song et al. 2021, arXiv 2011.13456; the continuous limit of Ho et al. 2020, arXiv 2006.11239.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha(t))

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)))

    def time(self, logsnr: Time) -> Tensor:
        slope = self.beta_max - self.beta_min
        integral = torch.nn.functional.softplus(-as_time(logsnr).clamp_min(-1e9), threshold=50)  # = int_0^t beta
        t = 2 * integral / (torch.sqrt(self.beta_min**2 + 2 * slope * integral) + self.beta_min).clamp_min(1e-300)
        return t.clamp(0, 1)


@dataclass(frozen=True, eq=False)
class SubVP(VP):
    """Sub-variance preserving: VP's alpha with sigma = 1 - alpha^2. Reference: Song et al. 2021, arXiv 2011.13456."""

    time = Process.time

    def _sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(2 * self._log_alpha(t))


@dataclass(frozen=True, eq=False)
class TableVP(Process):
    """Variance preserving from a table of betas (n,), as discrete-time checkpoints state it.

    Row i of the table is the time (i + 1) / n; between rows the angle atan2(sigma, alpha) is linear, which stays finite when
    the last row has no signal at all (zero terminal SNR, Lin et al. 2024, arXiv 2305.08891).
    """

    betas: tuple[float, ...]

    def __post_init__(self) -> None:
        betas = torch.as_tensor(self.betas, dtype=torch.float64)
        if betas.ndim != 1 or len(betas) < 2 or not bool(((betas > 0) & (betas <= 1)).all()):
            raise FokkerError("betas must be a list of at least two numbers in (0, 1]")
        object.__setattr__(self, "betas", tuple(betas.tolist()))
        bar = torch.cumprod(1 - betas, 0)
        angle = torch.cat([torch.zeros(1, dtype=torch.float64), torch.atan2(torch.sqrt(1 - bar), torch.sqrt(bar))])
        object.__setattr__(self, "_angles", angle)
        super().__post_init__()

    def __repr__(self) -> str:
        # what stands in messages, and what tells two tables apart
        digest = hashlib.sha256(repr(self.betas).encode()).hexdigest()[:8]
        return f"TableVP({len(self.betas)} betas from {self.betas[0]:g} to {self.betas[-1]:g}, {digest})"

    def _angle(self, t: Tensor) -> Tensor:
        angles: Tensor = self._angles.to(t.device)  # type: ignore[attr-defined]
        place = t * (len(angles) - 1)
        row = place.detach().floor().clamp(0, len(angles) - 2).long()
        return angles[row] + (place - row) * (angles[row + 1] - angles[row])

    def _alpha(self, t: Tensor) -> Tensor:
        # as a sine of what is left, so that alpha reaches 0 exactly where the table says so
        return torch.sin(torch.pi / 2 - self._angle(t))

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sin(self._angle(t))


@dataclass(frozen=True, eq=False)
class Cosine(Process):
    """Variance preserving with alpha a quarter cosine, offset by `s`. Reference: Nichol & Dhariwal 2021, arXiv 2102.09672."""

    s: float = 0.008

    def _alpha(self, t: Tensor) -> Tensor:
        # as a sine of what is left, so that alpha reaches 0 at t = 1 exactly
        scale = torch.pi / 2 / (1 + self.s)
        return torch.sin((1 - t) * scale) / torch.cos(torch.tensor(self.s * scale, dtype=t.dtype))

    def _sigma(self, t: Tensor) -> Tensor:
        # 1 - alpha^2 by the identity cos^2 a - cos^2 b = sin(b - a) sin(b + a): no cancellation near t = 0
        scale = torch.pi / 2 / (1 + self.s)
        square = torch.sin(t * scale) * torch.sin((t + 2 * self.s) * scale)
        return torch.sqrt(square) / torch.cos(torch.tensor(self.s * scale, dtype=t.dtype))


@dataclass(frozen=True, eq=False)
class VE(Process):
    """Variance exploding, sigma geometric from `sigma_min` to `sigma_max`. Reference: Song et al. 2021, arXiv 2011.13456."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    end = 0.0

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t


@dataclass(frozen=True, eq=False)
class EDM(Process):
    """Variance exploding with sigma proportional to time, sigma = sigma_max t; plans end at `sigma_min`.

    Reference: Karras et al. 2022, arXiv 2206.00364.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    @property
    def end(self) -> float:  # type: ignore[override]
        return self.sigma_min / self.sigma_max

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * t

    def time(self, logsnr: Time) -> Tensor:
        return (torch.exp(as_time(logsnr) / -2) / self.sigma_max).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Flow(Process):
    """Straight lines between data and noise, alpha = 1 - t, sigma = t.

    Reference: Liu et al. 2023, arXiv 2209.03003 (rectified flow); Lipman et al. 2023, arXiv 2210.02747.
    """

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def _sigma(self, t: Tensor) -> Tensor:
        return t

    def time(self, logsnr: Time) -> Tensor:
        return torch.sigmoid(as_time(logsnr) / -2)


@dataclass(frozen=True, eq=False)
class Interpolant(Process):
    """Any pair of coefficient functions of float64 tensors; the default is the variance-preserving quarter circle.

    Reference: Albergo & Vanden-Eijnden 2023, arXiv 2209.15571; Ma et al. 2024, arXiv 2401.08740.
    """

    alpha_of: Callable[[Tensor], Tensor] = lambda t: torch.sin((1 - t) * (torch.pi / 2))
    sigma_of: Callable[[Tensor], Tensor] = lambda t: torch.sin(t * (torch.pi / 2))

    def _alpha(self, t: Tensor) -> Tensor:
        return self.alpha_of(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_of(t)
