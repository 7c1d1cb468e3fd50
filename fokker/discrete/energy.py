"""A sequence-level energy that corrects the factorised belief: joint draws of x_0 in place of marginals."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fokker.denoiser import Cond, Denoiser, Wrapper
from fokker.discrete.draw import categorical
from fokker.discrete.solve import tokens
from fokker.errors import FokkerError
from fokker.keyed import uniform
from fokker.process import Time, expand
from fokker.train.objective import Key, Objective, Tensors

# (x_0 candidates (n, length), belief (n, length, K), x_t (n, length), t) -> energy (n,); lower is likelier
Energy = Callable[[Tensor, Tensor, Tensor, Time], Tensor]


@dataclass(frozen=True)
class Residual:
    """E = -log p(x_0) + sum_i log belief_i(x_0^i) for a model of whole sequences: draws weighted by exp(-E) follow p.

    Tokens that are known cancel between candidates of one x_t, for any log_prob of whole sequences.
    Reference: Xu et al. 2024, arXiv 2410.21357 (autoregressive energy).
    """

    log_prob: Callable[[Tensor], Tensor]

    def __call__(self, x_0: Tensor, belief: Tensor, x_t: Tensor, t: Time) -> Tensor:
        drawn = torch.log(belief.gather(-1, x_0[..., None])[..., 0].clamp_min(1e-300)).sum(-1)
        return drawn - self.log_prob(x_0)


class Learned(nn.Module):
    """E = net(x_t, x_0) (n,), a network that was trained by `NoiseContrast` to tell data from factorised draws."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_0: Tensor, belief: Tensor, x_t: Tensor, t: Time) -> Tensor:
        energy: Tensor = self.net(x_t, x_0)
        return energy.to(torch.float64)


class EnergyCorrected(Wrapper):
    """One x_0 ~ sum_i belief_i exp(-E), as a one-hot belief, by importance resampling of `candidates` factorised draws.

    Weights are softmax(-E / temperature) over the candidates, drawn in parallel from the inner belief. A solver that is given a
    one-hot belief takes the reverse step q(x_s | x_t, x_0). Acts at times in `window`, early in the run where many tokens are
    decoded at once; outside it the inner belief passes unchanged. Draws are keyed by the run's seed, sample and row;
    `Remembered` around it keeps a draw while no token changed.

    energy      (x_0, belief, x_t, t) -> (n,), such as `Residual(law.log_prob)`
    candidates  1 is off but for the joint draw; cost in energies, never in calls of the denoiser

    Raises FokkerError for no candidates, a temperature that is not above 0 or a window that is none.
    Reference: Xu et al. 2024, arXiv 2410.21357.
    """

    tokens = True

    def __init__(
        self,
        inner: Denoiser,
        energy: Energy,
        candidates: int = 8,
        window: tuple[float, float] = (0.0, 1.0),
        temperature: float = 1.0,
    ) -> None:
        super().__init__(inner)
        if candidates < 1 or not temperature > 0 or not 0 <= window[0] < window[1] <= 1:
            raise FokkerError(
                f"candidates={candidates}, temperature={temperature}, window={window}; give at least one candidate, a "
                "temperature above 0 and an interval of times in [0, 1]"
            )
        self.size = tokens(inner.process).size
        self.energy, self.candidates, self.window, self.temperature = energy, candidates, tuple(window), temperature

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        belief: Tensor = self.inner(x_t, t, **cond)
        inside = torch.as_tensor(t, dtype=torch.float64, device=x_t.device)
        inside = (inside >= self.window[0]) & (inside <= self.window[1])
        if inside.ndim == 0 and not bool(inside):
            return belief
        chosen = nn.functional.one_hot(self.draw(x_t, belief, t), self.size).to(belief.dtype)
        return chosen if inside.ndim == 0 else torch.where(expand(inside, belief), chosen, belief)

    def draw(self, x_t: Tensor, belief: Tensor, t: Time) -> Tensor:
        """The candidate that was picked, (n, length)."""
        n, m = len(x_t), self.candidates
        seed, ids, row = (self.run.seed, self.run.ids, self.run.row) if self.run else (0, None, 0)
        u = uniform((n, m * x_t[0].numel() + 1), seed, ids, "step", row << 8 | 255, x_t.device, bits=52)
        # sample by sample, its candidates one after another
        each = categorical(belief[:, None].expand(-1, m, *belief.shape[1:]), u[:, :-1].reshape(n, m, *x_t.shape[1:]))
        time = t.repeat_interleave(m, 0) if isinstance(t, Tensor) and t.ndim else t
        energy = self.energy(
            each.flatten(0, 1), belief.repeat_interleave(m, 0), x_t.repeat_interleave(m, 0), time
        ).reshape(n, m)
        picked = categorical(torch.softmax(-energy.to(torch.float64) / self.temperature, -1), u[:, -1])
        return each[torch.arange(n, device=x_t.device), picked]


@dataclass(frozen=True)
class NoiseContrast(Objective):
    """-log sigmoid(-E(x_0)) - log sigmoid(E(x')) with x' one factorised draw of a frozen belief: E converges to the residual.

    `energy` is what is trained; the denoiser given to the trainer must hold it (`EnergyCorrected(belief, Learned(net))`), whose
    belief is not differentiated. Reference: Xu et al. 2024, arXiv 2410.21357; Gutmann & Hyvarinen 2010.
    """

    def draw(self, denoiser: Denoiser, batch: Tensors, key: Key, device: torch.device | str = "cpu") -> Tensors:
        """x, x_t, t and the uniform numbers of the negative."""
        x, process = batch["x"], tokens(denoiser.process)
        _, shared = key.uniforms()
        t = ((shared + key.rows.to(torch.float64) / key.batch) % 1.0).clamp_min(1e-3)
        ids, index = key.names()
        eps = uniform((len(x), 2 * math.prod(x.shape[1:])), key.seed, ids, "train", index, bits=52)
        first, second = (part.reshape(x.shape) for part in eps.chunk(2, 1))
        drawn = {"x": x, "x_t": process.add_noise(x, first, t), "t": t, "u": second}
        return {k: v.to(device) for k, v in drawn.items()}

    def loss(self, denoiser: Denoiser, drawn: Tensors) -> Tensor:
        if not isinstance(denoiser, EnergyCorrected):
            raise FokkerError("NoiseContrast trains the energy of an EnergyCorrected denoiser; wrap the belief in one")
        x, x_t, t = drawn["x"], drawn["x_t"], drawn["t"]
        with torch.no_grad():
            belief = denoiser.inner(x_t, t)
            negative = categorical(belief, drawn["u"])
        true, false = (denoiser.energy(v, belief, x_t, t) for v in (x, negative))
        return (nn.functional.softplus(true) + nn.functional.softplus(-false)).to(torch.float32)
