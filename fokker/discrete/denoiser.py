"""Denoisers of tokens: a network's logits as a belief, and wrappers that keep or narrow a belief."""

import torch
from torch import Tensor, nn

from fokker.denoiser import Cond, Denoiser, Run, Wrapper
from fokker.discrete.process import TokenProcess
from fokker.errors import FokkerError
from fokker.process import Time


class TokenDenoiser(Denoiser):
    """softmax of net(x_t) (batch, length, K) as E[x_0 | x_t], float64.

    Where the process only masks, a token that is seen is known (its belief is one-hot) and the answer does not depend on t,
    so the network is not told the time. Where it also replaces, the network is called as net(x_t, sigma) with sigma (batch,)
    or (batch, length) the share of noise, float32. The mask is the id K: the network embeds K + 1 ids and answers K logits.
    """

    def __init__(self, net: nn.Module, process: TokenProcess) -> None:
        super().__init__(process)
        self.net, self.corruption = net, process

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        belief = torch.softmax(self.logits(x_t, t, **cond).to(torch.float64), -1)
        if self.corruption.replace:
            return belief
        seen = (x_t != self.corruption.mask)[..., None]
        own = x_t[..., None] == torch.arange(self.corruption.size, device=x_t.device)
        return torch.where(seen, own.to(belief.dtype), belief)

    def logits(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        """The network's own answer, with its graph."""
        if not self.corruption.replace:
            out: Tensor = self.net(x_t, **cond)
            return out
        sigma = self.corruption.sigma(t).to(x_t.device, torch.float32)
        noisy: Tensor = self.net(x_t, sigma.expand(len(x_t)) if sigma.ndim == 0 else sigma, **cond)
        return noisy


class Remembered(Wrapper):
    """The last belief for every sample whose tokens did not change since: exact where beliefs do not depend on time.

    Small ancestral steps of a masked process uncover nothing most of the time; with this wrapper they cost nothing then, and
    a run costs each sample no more calls than it has tokens. Looks at values, so it waits for the device once a call.
    Raises FokkerError for a process that replaces tokens, whose beliefs change with time. Reference: Sahoo et al. 2024,
    arXiv 2406.07524 (caching of masked diffusion).
    """

    tokens = True

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        if not (isinstance(inner.process, TokenProcess) and inner.process.replace == 0):
            raise FokkerError(
                "a belief can be remembered only where it does not depend on time; use a process that only masks"
            )
        self.last: tuple[Tensor, Tensor] | None = None

    def reset(self, run: Run) -> None:
        self.last = None

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        if self.last is None or self.last[0].shape != x_t.shape:
            belief: Tensor = self.inner(x_t, t, **cond)
        else:
            moved = (x_t != self.last[0]).flatten(1).any(1).nonzero()[:, 0]
            belief = self.last[1]
            if len(moved):
                time = t[moved] if isinstance(t, Tensor) and t.ndim else t
                own = {k: v[moved] if isinstance(v, Tensor) and v.ndim else v for k, v in cond.items()}
                belief = belief.index_copy(0, moved, self.inner(x_t[moved], time, **own))
        if self.run is not None:
            self.last = (x_t, belief)
        return belief


class Truncated(Wrapper):
    """The belief raised to 1 / temperature and cut to the most probable tokens of total mass `mass`, then normalised.

    temperature 1 and mass 1 are off. Lower temperatures and masses give likelier tokens and less variety: report the entropy
    beside any likelihood. Raises FokkerError for a temperature that is not above 0 or a mass outside (0, 1].
    Reference: Gu et al. 2022, arXiv 2111.14822 (truncation by mass).
    """

    tokens = True

    def __init__(self, inner: Denoiser, temperature: float = 1.0, mass: float = 1.0) -> None:
        super().__init__(inner)
        if not temperature > 0 or not 0 < mass <= 1:
            raise FokkerError(
                f"temperature={temperature}, mass={mass}; give a temperature above 0 and a mass in (0, 1]"
            )
        self.temperature, self.mass = temperature, mass

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        belief: Tensor = self.inner(x_t, t, **cond)
        if self.temperature != 1:
            belief = torch.softmax(torch.log(belief) / self.temperature, -1)
        if self.mass < 1:
            ranked, order = belief.sort(-1, descending=True)
            kept = ranked.cumsum(-1) - ranked < self.mass
            belief = torch.zeros_like(belief).scatter(-1, order, torch.where(kept, ranked, 0.0))
            belief = belief / belief.sum(-1, keepdim=True)
        return belief
