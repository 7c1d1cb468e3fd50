"""Laws of token sequences that are known exactly: chains, whose marginals given any corruption follow by two passes."""

import itertools

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser
from fokker.discrete.draw import categorical
from fokker.discrete.process import TokenProcess
from fokker.errors import FokkerError
from fokker.keyed import uniform
from fokker.process import Time


class MarkovChain:
    """p(x) = start(x_1) prod_i transition(x_{i-1}, x_i) over sequences of `length` tokens.

    start (K,) and transition (K, K), rows that sum to one; float64 throughout. Raises FokkerError where they do not.
    """

    def __init__(self, start: Tensor, transition: Tensor, length: int) -> None:
        self.start, self.transition = (torch.as_tensor(v, dtype=torch.float64) for v in (start, transition))
        K = len(self.start)
        if self.transition.shape != (K, K) or length < 1:
            raise FokkerError(
                f"start {tuple(self.start.shape)}, transition {tuple(self.transition.shape)}, length={length}; give (K,), "
                "(K, K) and at least 1"
            )
        for name, rows in (("start", self.start), ("transition", self.transition)):
            if bool((rows < 0).any()) or float((rows.sum(-1) - 1).abs().max()) > 1e-5:
                raise FokkerError(f"the rows of {name} must be probabilities that sum to one")
        self.start, self.transition = _normal(self.start), _normal(self.transition)
        self.size, self.length = K, length

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n sequences (n, length), int64, keyed by sample."""
        u = uniform((n, self.length), seed, stream="law", bits=52)
        x = [categorical(self.start.expand(n, -1), u[:, 0])]
        for i in range(1, self.length):
            x.append(categorical(self.transition[x[-1]], u[:, i]))
        return torch.stack(x, 1)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats of sequences (n, length)."""
        steps = torch.log(self.transition)[x[:, :-1], x[:, 1:]].sum(1)
        return torch.log(self.start)[x[:, 0]] + steps

    def joint(self) -> Tensor:
        """The whole law (K, ..., K), one axis a position; FokkerError above a million states."""
        if self.size**self.length > 1_000_000:
            raise FokkerError(f"{self.size}^{self.length} states are too many to list; use shorter sequences")
        every = torch.tensor(list(itertools.product(range(self.size), repeat=self.length)))
        return torch.exp(self.log_prob(every)).reshape((self.size,) * self.length)

    def denoiser(self, process: TokenProcess) -> "ChainDenoiser":
        """The exact E[x_0 | x_t]."""
        return ChainDenoiser(self, process)

    def forward(self, evidence: Tensor) -> Tensor:
        """p(x_0^i = k | x_t^1 .. x_t^i) (batch, length, K) from the evidence q(x_t^i | x_0^i = k)."""
        known = [_normal(self.start * evidence[:, 0])]
        for i in range(1, self.length):
            known.append(_normal((known[-1] @ self.transition) * evidence[:, i]))
        return torch.stack(known, 1)

    def marginals(self, evidence: Tensor) -> Tensor:
        """p(x_0^i = k | x_t) (batch, length, K), by the forward-backward passes."""
        known = self.forward(evidence)
        later = torch.ones_like(known[:, 0])
        out = [known[:, -1]]
        for i in range(self.length - 2, -1, -1):
            later = _normal((evidence[:, i + 1] * later) @ self.transition.T)
            out.append(_normal(known[:, i] * later))
        return torch.stack(out[::-1], 1)

    def posterior_draw(self, evidence: Tensor, u: Tensor) -> Tensor:
        """Joint draws x_0 ~ p(x_0 | x_t) (batch, length), from u of that shape: forward passes, backward draws."""
        known = self.forward(evidence)
        x = [categorical(known[:, -1], u[:, -1])]
        for i in range(self.length - 2, -1, -1):
            x.append(categorical(known[:, i] * self.transition[:, x[-1]].T, u[:, i]))
        return torch.stack(x[::-1], 1)


class ChainDenoiser(Denoiser):
    """The posterior marginals (batch, length, K) of a chain given a corrupted sequence, exact at any time of any process."""

    def __init__(self, law: MarkovChain, process: TokenProcess) -> None:
        super().__init__(process)
        if process.size != law.size:
            raise FokkerError(f"the process has {process.size} tokens and the law {law.size}; they must agree")
        self.law, self.corruption = law, process

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        return self.law.marginals(self.corruption.evidence(x_t, t))

    def draw_x0(self, x_t: Tensor, t: Time, u: Tensor, **cond: Cond) -> Tensor:
        """One joint draw x_0 ~ p(x_0 | x_t) from uniform numbers of its shape."""
        return self.law.posterior_draw(self.corruption.evidence(x_t, t), u)


def _normal(rows: Tensor) -> Tensor:
    return rows / rows.sum(-1, keepdim=True).clamp_min(1e-300)
