"""The noising of tokens: keep, replace or mask, in closed form at any time."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fokker.errors import FokkerError, unknown
from fokker.keyed import uniform
from fokker.process import Process, Time, as_time, derivative, expand

SCHEDULES = ("linear", "cosine", "polynomial")


@dataclass(frozen=True, eq=False)
class TokenProcess(Process):
    """x_t ~ Cat(alpha(t) x_0 + sigma(t) n) token by token, sigma = 1 - alpha, n = replace / K everywhere + (1 - replace) mask.

    States are integers: 0 .. size - 1 the tokens, `mask` = size the mask, which stays. `replace` 0 only masks, 1 only
    replaces by uniform tokens, what is between does both. Any two times compose, so the transition s -> t keeps a token with
    alpha(t) / alpha(s), masks it with 1 - (1 - g(t)) / (1 - g(s)), g = (1 - replace) sigma, and replaces it otherwise.

    schedule  linear      alpha = 1 - t
              cosine      alpha = 1 - sin(pi t / 2)
              polynomial  alpha = 1 - t^power

    Noise of this process is uniform in (0, 1), one number a token. Raises FokkerError for fewer than two tokens or a share
    outside [0, 1]. Reference: Austin et al. 2021, arXiv 2107.03006; Gu et al. 2022, arXiv 2111.14822 (mask and replace).
    """

    size: int
    replace: float = 0.0
    schedule: str = "linear"
    power: float = 1.0
    end = 0.0
    tokens = True

    def __post_init__(self) -> None:
        if self.size < 2 or not 0 <= self.replace <= 1 or not self.power > 0:
            raise FokkerError(
                f"size={self.size}, replace={self.replace}, power={self.power}; give at least 2 tokens, a share in [0, 1] "
                "and a power above 0"
            )
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        if self.power != 1.0 and self.schedule != "polynomial":
            raise FokkerError(
                f"power={self.power} has no effect without schedule='polynomial'; set that or leave it out"
            )
        super().__post_init__()

    @property
    def mask(self) -> int:
        """The state that says "masked"."""
        return self.size

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - self._sigma(t)

    def _sigma(self, t: Tensor) -> Tensor:
        if self.schedule == "cosine":
            return torch.sin(t * (math.pi / 2))
        return t**self.power

    def time_at(self, sigma: Tensor) -> Tensor:
        """The time at which a share `sigma` of the tokens is noise."""
        return torch.asin(sigma) * (2 / math.pi) if self.schedule == "cosine" else sigma ** (1 / self.power)

    def shares(self, t: Time) -> tuple[Tensor, Tensor, Tensor]:
        """(kept, replaced, masked) at time t, float64; `replaced` may give back the same token."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        return alpha, self.replace * sigma, (1 - self.replace) * sigma

    def between(self, s: Time, t: Time) -> tuple[Tensor, Tensor, Tensor]:
        """(kept, replaced, masked) of the transition from time s to the later t; nothing is inverted but shares at s."""
        (a_s, _, g_s), (a_t, _, g_t) = self.shares(s), self.shares(t)
        kept, seen = a_t / a_s, (1 - g_t) / (1 - g_s)
        if self.replace == 0:
            seen = kept
        return kept, (seen - kept).clamp_min(0), 1 - seen

    # --- noising ---------------------------------------------------------------------------------------------------

    def sample_noise(self, shape: tuple[int, ...], seed: int = 0, ids: Any = None, **where: Any) -> Tensor:
        where.pop("dtype", None)
        return uniform(shape, seed, ids, bits=52, **where)

    def add_noise(self, x_0: Tensor, eps: Tensor, t: Time, y: Tensor | None = None) -> Tensor:
        """x_t from tokens x_0 (batch, ...) and uniform numbers `eps` of the same shape."""
        kept, replaced, _ = (expand(c, x_0).to(x_0.device) for c in self.shares(t))
        other = ((eps - kept) / replaced.clamp_min(1e-300) * self.size).clamp(0, self.size - 1).long()
        changed = torch.where(eps < kept + replaced, other, self.mask)
        return torch.where(eps < kept, x_0, changed)

    def start(self, eps: Tensor, y: Tensor | None = None, t: float = 1.0) -> Tensor:
        """The state at the noise end from numbers of the shape (batch, length): masks, and tokens where `eps` says so."""
        if self.replace == 0:
            return torch.full(eps.shape, self.mask, dtype=torch.int64, device=eps.device)
        if bool((eps <= 0).any()) or bool((eps >= 1).any()):
            raise FokkerError(
                "the start of a process that replaces needs uniform numbers; use process.sample_noise(shape)"
            )
        return self.add_noise(torch.zeros(eps.shape, dtype=torch.int64, device=eps.device), eps, 1.0)

    # --- the way back ----------------------------------------------------------------------------------------------

    def evidence(self, x_t: Tensor, t: Time) -> Tensor:
        """q(x_t | x_0 = k) for every k, up to a factor for masks: (..., K), float64."""
        kept, replaced, _ = (expand(c, x_t).to(x_t.device)[..., None] for c in self.shares(t))
        own = x_t[..., None] == torch.arange(self.size, device=x_t.device)
        masked = (x_t == self.mask)[..., None]
        # what only masks has not changed a token that is seen, also at t = 1
        return torch.where(masked, 1.0, replaced / self.size + kept * own if self.replace else own.to(torch.float64))

    def reverse(self, x_t: Tensor, belief: Tensor, t: Time, s: Time) -> Tensor:
        """p(x_s | x_t) = sum_k q(x_s | x_t, x_0 = k) belief_k for s < t: (..., K + 1), float64, the mask last.

        belief (..., K) are the marginals of x_0 (or a one-hot x_0, which gives the posterior itself).
        """
        belief = belief.to(torch.float64)
        masked = (x_t == self.mask)[..., None]
        a_s, b_s, g_s = (expand(c, x_t).to(x_t.device)[..., None] for c in self.shares(s))
        kept, replaced, hidden = (expand(c, x_t).to(x_t.device)[..., None] for c in self.between(s, t))
        g_t = expand(self.shares(t)[2], x_t).to(x_t.device)[..., None]
        likely = torch.where(masked, g_t, self.evidence(x_t, t))
        weight = torch.where(likely > 0, belief / likely.clamp_min(1e-300), 0.0)
        total = weight.sum(-1, keepdim=True)
        own = x_t[..., None] == torch.arange(self.size, device=x_t.device)
        seen = torch.where(masked, hidden, kept * own + replaced / self.size) * (a_s * weight + b_s / self.size * total)
        if self.replace == 0:
            seen = torch.where(masked, seen, belief * own)
        return torch.cat([seen, torch.where(masked, g_s * total, 0.0)], -1)

    def rates(self, x_t: Tensor, belief: Tensor, t: float) -> Tensor:
        """The rate at which x_t jumps to every other state as time falls: (..., K + 1), float64, 0 for staying.

        sum_k belief_k R_t(j -> x_t) q(j | k) / q(x_t | k), with forward rates R_t that replace a token at (replacing) / K and
        mask it at (masking). Reference: Campbell et al. 2022, arXiv 2205.14987.
        """
        time = as_time(t)
        kept, replaced, hidden = self.shares(time)
        slope = derivative(self._sigma, time)
        masking = (1 - self.replace) * slope / (1 - hidden)
        replacing = slope / kept - masking
        masked = (x_t == self.mask)[..., None]
        own = x_t[..., None] == torch.arange(self.size, device=x_t.device)
        likely = torch.where(masked, hidden, self.evidence(x_t, t))
        weight = torch.where(likely > 0, belief.to(torch.float64) / likely.clamp_min(1e-300), 0.0)
        there = kept * weight + replaced / self.size * weight.sum(-1, keepdim=True)
        jump = torch.where(masked, masking, replacing / self.size) * there
        return torch.cat([torch.where(own, 0.0, jump), torch.zeros_like(jump[..., :1])], -1)
