"""Processes that lead to an observation y: restoration, bridges, speech.

Each has beta != 0. x_t - beta(t) y is a plain process with the same alpha and sigma, so every solver works on them.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fokker.process import VP, Process


@dataclass(frozen=True, eq=False)
class MeanReverting(Process):
    """x_t = y + (x_0 - y) e^{-theta_t} + lambda sqrt(1 - e^{-2 theta_t}) eps, with theta_t = rate (t^2 + t) / 2 rising.

    `noise` is the stationary standard deviation lambda, `rate` the total reversion at t = 1.
    Reference: Luo et al. 2023, arXiv 2301.11699 (IR-SDE).
    """

    noise: float = 0.3
    rate: float = 5.0
    anchored = True

    def _theta(self, t: Tensor) -> Tensor:
        return self.rate * (t**2 + t) / 2

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self._theta(t))

    def _beta(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._theta(t))

    def _sigma(self, t: Tensor) -> Tensor:
        return self.noise * torch.sqrt(-torch.expm1(-2 * self._theta(t)))


@dataclass(frozen=True, eq=False)
class ResidualShift(Process):
    """x_t = x_0 + eta_t (y - x_0) + kappa sqrt(eta_t) eps: the mean shifts to y while noise grows with the same schedule.

    sqrt(eta) = a (b / a)^(t^power) from a = min(least / kappa, least) to b = 0.99, so that noise of `least` (for kappa of at
    least 1) is left at t = 0: 0.04 in the chain of 15 steps, 0.2 in the released models of 4. `fokker.solve.shifting.chain`
    lays out those chains, which end with a step from t = 0 to the data.
    Reference: Yue et al. 2024, arXiv 2403.07319 (ResShift).
    """

    kappa: float = 2.0
    power: float = 0.3
    least: float = 0.04
    anchored = True
    end = 0.0

    def _eta(self, t: Tensor) -> Tensor:
        low, high = min(self.least / self.kappa, self.least), 0.99
        # t^power has an infinite slope at 0, where its value is wanted exactly
        warped = torch.where(t > 0, t.clamp_min(1e-300) ** self.power, torch.zeros_like(t))
        eta: Tensor = (low * (high / low) ** warped) ** 2
        return eta

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - self._eta(t)

    def _beta(self, t: Tensor) -> Tensor:
        return self._eta(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.kappa * torch.sqrt(self._eta(t))


@dataclass(frozen=True, eq=False)
class ResidualDenoising(Process):
    """x_t = x_0 + a(t) (y - x_0) + b(t) eps: the residual and the noise have clocks of their own.

    a = 1 - (1 - t)^(falling + 1) and b = noise t^((rising + 1) / 2) are the sums of increments that fall as (1 - t)^falling
    and of variances that rise as t^rising. `noise` is 1 for generation and 0.1 for restoration in the paper.
    Reference: Liu et al. 2024, arXiv 2308.13712 (RDDM).
    """

    noise: float = 1.0
    falling: float = 1.0
    rising: float = 1.0
    anchored = True

    def _alpha(self, t: Tensor) -> Tensor:
        return (1 - t) ** (self.falling + 1)

    def _beta(self, t: Tensor) -> Tensor:
        return 1 - self._alpha(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.noise * t ** ((self.rising + 1) / 2)


@dataclass(frozen=True, eq=False)
class ResidualForm(Process):
    """A plain process with its signal's decay read as a shift to y: x_t = alpha x_0 + (1 - alpha) y + sigma eps.

    With y = 0 it is the process itself, which is how RDDM contains DDIM; with an observation it restores with the schedule
    of a generator. Reference: Liu et al. 2024, arXiv 2308.13712, section 4.
    """

    of: Process = field(default_factory=VP)
    anchored = True

    def _alpha(self, t: Tensor) -> Tensor:
        return self.of.alpha(t)

    def _beta(self, t: Tensor) -> Tensor:
        return 1 - self.of.alpha(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.of.sigma(t)


@dataclass(frozen=True, eq=False)
class Resfusion(Process):
    """x_t = a x_0 + (1 - a) (y - x_0) + sqrt(1 - a^2) eps on VP's a, run up to the time where x_0 has vanished (a = 1/2).

    In our form alpha = 2 a - 1, beta = 1 - a; t = 1 is that interior time, so the start y / 2 + sigma eps needs no clean
    image and the path is as short as it can be. Reference: Shi et al. 2024, arXiv 2311.14900.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    anchored = True

    def __post_init__(self) -> None:
        vp = VP(self.beta_min, self.beta_max)
        half = vp.time(math.log(1 / 3)).item()  # alpha = 1/2, sigma^2 = 3/4
        object.__setattr__(self, "_vp", vp)
        object.__setattr__(self, "_half", half)
        super().__post_init__()

    def _a(self, t: Tensor) -> Tensor:
        a: Tensor = self._vp._alpha(t * self._half)  # type: ignore[attr-defined]
        return a

    def _alpha(self, t: Tensor) -> Tensor:
        # the time of a = 1/2 is rounded; alpha is 0 there by construction
        rest = 2 * self._a(t) - 1
        return torch.where(rest > 1e-12, rest, torch.zeros_like(rest))

    def _beta(self, t: Tensor) -> Tensor:
        return 1 - self._a(t)

    def _sigma(self, t: Tensor) -> Tensor:
        sigma: Tensor = self._vp._sigma(t * self._half)  # type: ignore[attr-defined]
        return sigma


@dataclass(frozen=True, eq=False)
class BrownianBridge(Process):
    """x_t = (1 - t) x_0 + t y + noise sqrt(t (1 - t)) eps: pinned at both ends.

    At t = 1 there is no noise: the first row of a plan leaves the point y with the process's own noise.
    Reference: Li et al. 2023, arXiv 2205.07680 (BBDM); Liu et al. 2023, arXiv 2302.05872 (I2SB).
    """

    noise: float = 1.0
    anchored = True

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def _beta(self, t: Tensor) -> Tensor:
        return t

    def _sigma(self, t: Tensor) -> Tensor:
        return self.noise * torch.sqrt(t * (1 - t))


@dataclass(frozen=True, eq=False)
class OUVE(Process):
    """x_t = e^{-gamma t} x_0 + (1 - e^{-gamma t}) y + sigma(t) eps: an Ornstein-Uhlenbeck drift with exploding variance.

    sigma(t)^2 = s_min^2 ((s_max/s_min)^{2t} - e^{-2 gamma t}) log(s_max/s_min) / (gamma + log(s_max/s_min)).
    Reference: Richter et al. 2023, arXiv 2208.05830 (SGMSE+, speech enhancement).
    """

    gamma: float = 1.5
    sigma_min: float = 0.05
    sigma_max: float = 0.5
    anchored = True
    end = 0.03

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self.gamma * t)

    def _beta(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.gamma * t)

    def _sigma(self, t: Tensor) -> Tensor:
        growth = torch.log(torch.tensor(self.sigma_max / self.sigma_min, dtype=torch.float64))
        # (s_max/s_min)^{2t} - e^{-2 gamma t} as an expm1: no cancellation near t = 0
        gap = torch.exp(-2 * self.gamma * t) * torch.expm1(2 * (growth + self.gamma) * t)
        return self.sigma_min * torch.sqrt(gap * growth / (self.gamma + growth))


@dataclass(frozen=True, eq=False)
class WholeAnchor(VP):
    """x_t = alpha x_0 + y + sigma eps: variance preserving about an anchor that is there in full at every time, also at t = 0.

    The state at a plan's end still carries y; a plan to x_0 itself (`end=0`) does not.
    Reference: Pandey, Mukherjee, Rai, Kumar 2022, arXiv 2201.00308 (DiffuseVAE, formulation 2).
    """

    anchored = True

    def _beta(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)
