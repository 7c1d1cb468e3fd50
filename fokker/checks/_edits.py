"""What the checks of editors share: modes u_a + v_b, an edit that changes a and keeps b, and its ideal.

16 modes mu_ab = u_a + v_b in 8 dimensions (u, v of deviation 2, spread 0.3), weights the softmax of 0.5 N(0, 1), so that a
and b are mildly dependent. The scene was chosen on seeds from 100 on, which no check is judged on. The condition is the
vector of log mixture weights, zeros for none. The ideal edit of x_0 from a to a' is x_0 - u_a + u_a'. The responsibilities
play the attention map: `Lending` gives the target branch the source branch's marginal over b.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fokker.denoiser import Denoiser, Run, Wrapper
from fokker.keyed import noise, uniform
from fokker.process import VP, Time, as_time, expand

FACTORS, DIM, SIZE, SPREAD, SAMPLES = 4, 8, 2.0, 0.3, 64
# the log-weight of the chosen class over the others: a condition that says all by itself, and one that guidance strengthens
SURE, WEAK = 4.0, 2.0
PROCESS = VP()


class Modes(Denoiser):
    """The exact denoiser of the mixture, with its responsibilities (batch, a, b) open to view."""

    def __init__(self, means: Tensor, logits: Tensor) -> None:
        super().__init__(PROCESS)
        self.means, self.prior = means, logits

    def maps(self, x_t: Tensor, t: Time, logits: Tensor | None) -> Tensor:
        """p(a, b | x_t) under a condition."""
        alpha, sigma = self._noise(x_t, t)
        distance = (x_t[:, None, None] - alpha[..., None, None] * self.means).square().sum(-1)
        scores = self.prior - distance / (2 * ((alpha * SPREAD) ** 2 + sigma**2))[..., None]
        if logits is not None:
            scores = scores + logits.unflatten(-1, self.prior.shape)
        maps: Tensor = scores.flatten(1).softmax(1)
        return maps.reshape(-1, *self.prior.shape)

    def belief(self, x_t: Tensor, t: Time, maps: Tensor) -> Tensor:
        """E[x_0 | x_t] where the modes have these responsibilities."""
        alpha, sigma = self._noise(x_t, t)
        mean = torch.einsum("nab,abd->nd", maps, self.means)
        gain = alpha * SPREAD**2 / ((alpha * SPREAD) ** 2 + sigma**2)
        return mean + gain * (x_t - alpha * mean)

    def x0(self, x_t: Tensor, t: Time, logits: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return self.belief(x_t, t, self.maps(x_t, t, logits))

    def _noise(self, x_t: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        time = as_time(t).expand(len(x_t)) if as_time(t).ndim == 0 else as_time(t)
        return expand(self.process.alpha(time), x_t), expand(self.process.sigma(time), x_t)


class Lending(Wrapper):
    """Of a joint batch, the target half is given the source half's marginal over b for the first `until` steps."""

    def __init__(self, inner: Modes, until: float) -> None:
        super().__init__(inner)
        self.modes, self.until = inner, until

    def reset(self, run: Run) -> None:
        self.step, self.row = -1, -1

    def x0(self, x_t: Tensor, t: Time, logits: Tensor | None = None) -> Tensor:  # type: ignore[override]
        assert self.run is not None
        if self.run.row != self.row:
            self.row, self.step = self.run.row, self.step + 1
        maps = self.modes.maps(x_t, t, logits)
        if self.step < self.until:
            blocks = maps.unflatten(0, (-1, 2, self.run.batch // 2))
            source, target = blocks[:, 0], blocks[:, 1]
            kept = source.sum(-2, keepdim=True)
            lent = target / target.sum(-2, keepdim=True).clamp_min(1e-300) * kept
            maps = torch.stack([source, lent], 1).flatten(0, 2)
        self.run.evaluations += len(x_t)
        return self.modes.belief(x_t, t, maps)


@dataclass(frozen=True)
class Task:
    """Samples (n, 8) of class a, the conditions of source and target, and the ideal edits."""

    denoiser: Modes
    x: Tensor
    source: dict[str, Any]
    target: dict[str, Any]
    ideal: Tensor

    def miss(self, x: Tensor) -> float:
        """Mean squared distance to the ideal edit."""
        return float((x - self.ideal).square().sum(1).mean())

    def error(self, x: Tensor) -> float:
        """Mean squared error of a reconstruction."""
        return float((x - self.x).square().sum(1).mean())


def task(seed: int, strength: float, n: int = SAMPLES) -> Task:
    """One mixture, n samples of it, and for each another class to become."""
    u, v = (SIZE * noise((FACTORS, DIM), seed, stream="check", index=k, dtype=torch.float64) for k in (0, 1))
    means = u[:, None] + v
    prior = 0.5 * noise((FACTORS, FACTORS), seed, stream="check", index=2, dtype=torch.float64)
    draws = uniform((n, 2), seed, stream="check", index=3)
    mode = (prior.flatten().softmax(0).cumsum(0)[None] < draws[:, :1]).sum(1).clamp_max(FACTORS**2 - 1)
    a, b = mode // FACTORS, mode % FACTORS
    other = (a + 1 + (draws[:, 1] * (FACTORS - 1)).long()) % FACTORS
    x = means[a, b] + SPREAD * noise((n, DIM), seed, stream="check", index=4, dtype=torch.float64)
    ideal = x - u[a] + u[other]

    def weights(chosen: Tensor) -> dict[str, Tensor]:
        table = torch.zeros(n, FACTORS, FACTORS, dtype=torch.float64)
        table[torch.arange(n), chosen] = strength
        return {"logits": table.flatten(1)}

    return Task(Modes(means, prior.flatten().log_softmax(0).reshape(prior.shape)), x, weights(a), weights(other), ideal)
