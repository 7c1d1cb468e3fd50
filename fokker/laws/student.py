"""A Gaussian mixture under the heavy-tailed kernel of PFGM++: normal noise of random scale."""

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.laws.components import Diffused, Gains

if TYPE_CHECKING:
    from fokker.laws.law import Level
    from fokker.laws.mixture import GaussianMixture

# v = centre + width * sinh(node): the trapezoid rule then converges geometrically, exponential tails included
REACH = 4.5


class DiffusedStudent(Diffused):
    """The components when the noise is sigma g / sqrt(tau), tau ~ Gamma(D / 2, D / 2): Student with D degrees of
    freedom.

    Given tau everything is as for normal noise of variance sigma^2 / tau, and linear in the state; what is averaged
    over tau given x and k is therefore only the gains. For components without width the averages are closed, otherwise
    they are integrals over v = log tau around its most probable value.

    Reference: Xu et al. 2023, arXiv 2302.04265 (the kernel).
    """

    def __init__(self, law: "GaussianMixture", x: Tensor, level: "Level") -> None:
        super().__init__(law, x, level)
        if level.dof is None:
            raise FokkerError("a Student kernel needs its degrees of freedom")
        self.dof = level.dof
        self.law_noise = self.noise
        if not law.points:
            centre, width = self._locate()
            # few degrees of freedom: the peak is wide and may be double
            nodes = 73 if self.dof >= 100 else 217
            step = 2 * REACH / (nodes - 1)
            places = [-REACH + i * step for i in range(nodes)]
            self.nodes = [centre + width * math.sinh(p) for p in places]
            joint = [
                self._log_joint(v) + torch.log(width * (math.cosh(p) * step))
                for v, p in zip(self.nodes, places, strict=True)
            ]
            self.joint = torch.stack(joint)  # log of p(x, v | k) times the node's weight, (nodes, n, K)

    def log_likelihood(self) -> Tensor:
        dim, dof = self.law.dim, self.dof
        if self.law.points:
            front = math.lgamma((dof + dim) / 2) - math.lgamma(dof / 2) - dim / 2 * math.log(math.pi * dof)
            size = torch.log(torch.as_tensor(self.noise, dtype=torch.float64, device=self.law.device))
            return front - dim / 2 * size - (dof + dim) / 2 * torch.log1p(self.distance / (dof * self.noise))
        return torch.logsumexp(self.joint, 0)

    def belief_gains(self) -> Gains:
        if self.law.points:
            zero = torch.zeros_like(self.distance)
            return zero + 1, zero, torch.zeros_like(self.z)
        return self._averaged(Diffused.belief_gains)

    def score_gains(self) -> Gains:
        if self.law.points:
            tight = (self.dof + self.law.dim) / (self.dof * self.noise + self.distance)
            return self.alpha * tight, -tight, torch.zeros_like(self.z)
        return self._averaged(Diffused.score_gains)

    # --- the integral over v = log tau -----------------------------------------------------------------------------

    def _given(self, v: Tensor) -> Diffused:
        """The components with normal noise, at v (n, K)."""
        part = copy.copy(self)
        part.set_noise(self.law_noise * torch.exp(-v))
        return part

    def _log_joint(self, v: Tensor) -> Tensor:
        """log p(x, v | k), (n, K)."""
        half = self.dof / 2
        log_prior = half * (math.log(half) + v - torch.exp(v)) - math.lgamma(half)
        return log_prior + Diffused.log_likelihood(self._given(v))

    def _averaged(self, gains: Callable[[Diffused], Gains]) -> Gains:
        """Gains averaged over v given x and k."""
        chance = torch.softmax(self.joint, 0)
        first, second, third = (torch.zeros_like(c) for c in (self.distance, self.distance, self.z))
        for v, weight in zip(self.nodes, chance, strict=True):
            on_mean, on_state, on_basis = gains(self._given(v))
            first, second = first + weight * on_mean, second + weight * on_state
            third = third + weight[..., None] * on_basis
        return first, second, third

    @torch.no_grad()
    def _locate(self) -> tuple[Tensor, Tensor]:
        """The most probable v given x and k (n, K), by bisection of the slope, and a width of its peak."""
        law, dof = self.law, self.dof
        free = law.dim - law.rank
        outer = (self.distance - self.z.square().sum(-1)).clamp_min(0)
        low = -torch.log1p(self.distance / self.noise / dof) - 1
        high = torch.full_like(low, math.log1p(law.dim / dof) + 1)
        for _ in range(40):
            v = (low + high) / 2
            part = self._given(v)
            inside, outside = part.noise_inner / part.ve, part.noise / part.vp
            pull = (inside * (1 - self.z.square() / part.ve)).sum(-1) + outside * (free - outer / part.vp)
            rising = dof * (1 - torch.exp(v)) + pull > 0
            low, high = torch.where(rising, v, low), torch.where(rising, high, v)
        v = (low + high) / 2
        # the prior's curvature and at most that of dim numbers of data: the peak is no narrower than this
        return v, torch.sqrt(2 / (dof * torch.exp(v) + law.dim))

    def each(self) -> Tensor:
        raise _normal_only()

    def variances(self) -> tuple[Tensor, Tensor]:
        raise _normal_only()


def _normal_only() -> FokkerError:
    return FokkerError("this is worked out for normal noise only, not for PFGMPP's kernel")
