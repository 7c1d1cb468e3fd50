"""Energies for denoisers: a ladder of unnormalised densities, an initialiser for their samplers, and the denoiser they are.

Levels k = 0 .. T of a variance-preserving path x_k = a_k x_0 + s_k e. With r = a_{k+1} / a_k, v = 1 - r^2 and y = r x_k, the
next level is x_{k+1} = y + sqrt(v) e, and the recovery conditional p(y | x_{k+1}) ~ exp(f(y, k) - |y - x_{k+1}|^2 / (2 v)) is
nearly Gaussian where f alone has many modes: a few Langevin moves from a good start sample it. f(., k) itself is log p(y) +
constant, so its gradient is a score, and through the process's one conversion a denoiser.

Reference: Zhu et al. 2023, arXiv 2309.05153; Gao et al. 2021, arXiv 2012.08125 (without the initialiser).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError
from fokker.keyed import noise, sample_ids
from fokker.net.mlp import MLP
from fokker.process import Process, Time, as_time


@dataclass(frozen=True, eq=False)
class Ladder(Process):
    """Variance preserving with log-SNR -2 log tan of an angle that is linear in t, from `high` at t = 0 to `low` at t = 1.

    `levels` + 1 times k / levels are the rungs.
    """

    levels: int = 6
    high: float = 9.8
    low: float = -5.1

    def __post_init__(self) -> None:
        if self.levels < 2 or not self.low < self.high:
            raise FokkerError(f"levels={self.levels}, high={self.high}, low={self.low}: use at least 2 levels and low < high")
        super().__post_init__()

    def _angle(self, t: Tensor) -> Tensor:
        first, last = (math.atan(math.exp(-x / 2)) for x in (self.high, self.low))
        return first + (last - first) * t

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.cos(self._angle(t))

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sin(self._angle(t))

    def rungs(self) -> tuple[Tensor, Tensor]:
        """a and s of the levels 0 .. T, float64."""
        t = torch.linspace(0, 1, self.levels + 1, dtype=torch.float64)
        return self.alpha(t), self.sigma(t)

    def steps(self) -> tuple[Tensor, Tensor]:
        """(r, v) of the levels 0 .. T - 1, float64; r is 1 at the last, whose energy is that of x itself."""
        a, _ = self.rungs()
        r = a[1:] / a[:-1]
        v = 1 - r**2
        r = r.clone()
        r[-1] = 1.0
        return r, v

    def strides(self, std: float, part: float = 0.6) -> tuple[float, ...]:
        """The step of Langevin moves at each level, in units of sqrt(v_k), for data whose finest structure has deviation `std`.

        d^2 is `part` of the recovery conditional's variance 1 / (1 / (r^2 (a^2 std^2 + s^2)) + 1 / v) inside a mode. Each move
        then forgets part / 2 of where it was and ends 1 / (1 - part / 4) too wide; with part >= 1 it adds more noise than the
        conditional has, and no energy can make such a chain fit.
        """
        if not std >= 0 or not 0 < part < 1:
            raise FokkerError(f"std={std}, part={part} are not accepted; give a deviation of at least 0 and a part in (0, 1)")
        (a, s), (r, v) = self.rungs(), self.steps()
        precise = 1 / (r**2 * (a[:-1] ** 2 * std**2 + s[:-1] ** 2))
        tied = 1 / v
        # the last level's chain is not tied to the state above it
        tied[-1] = 0.0
        return tuple(float(d) for d in torch.sqrt(part / ((precise + tied) * v)))

    def shares(self, std: float) -> tuple[float, ...]:
        """The variance r^2 (a^2 std^2 + s^2) of a mode at each level, in units of v_k: shares of a `ResidualEnergy`."""
        if not std >= 0:
            raise FokkerError(f"std={std} is not accepted; give a deviation of at least 0")
        (a, s), (r, v) = self.rungs(), self.steps()
        return tuple(float(x) for x in r**2 * (a[:-1] ** 2 * std**2 + s[:-1] ** 2) / v)


class ResidualEnergy(nn.Module):
    """f(y, k) = -|y - h(y, k)|^2 / (2 share v_k): an energy with tails, which plain networks lack and then diverge for.

    `net(y, c)` is h, told c = 10 k / T - 5. `share` v_k is about the variance of a mode at its level, whose centre h then is;
    one share for all levels or one for each (`Ladder.shares`).
    """

    def __init__(self, net: nn.Module, ladder: Ladder, share: float | Sequence[float] = 0.2) -> None:
        super().__init__()
        each = (share,) * ladder.levels if isinstance(share, int | float) else tuple(share)
        if len(each) != ladder.levels or not all(x > 0 for x in each):
            raise FokkerError(f"share={share} is not accepted; give a share above 0 of a step's variance, one or one a level")
        self.net = net
        self.levels = ladder.levels
        self.register_buffer("width", (torch.tensor(each, dtype=torch.float64) * ladder.steps()[1]).float())

    def forward(self, y: Tensor, k: Tensor, **cond: Cond) -> Tensor:
        """f of each sample, (batch,); k (batch,) int64."""
        width: Tensor = self.width[k]  # type: ignore[index]
        rest = (y - self.net(y, clock(k, self.levels), **cond)).flatten(1)
        f: Tensor = -rest.square().sum(1) / (2 * width)
        return f


def clock(k: Tensor, levels: int) -> Tensor:
    """What a network is told about its level: -5 at the data, 5 at the noise."""
    return 10 * k.to(torch.float32) / levels - 5


class CooperativeEnergy(nn.Module):
    """A ladder of energies with an initialiser whose samples a few Langevin moves of the energy refine.

    energy       f(y, k, **cond) -> (batch,)
    initialiser  g(x_{k+1}, c, **cond) of the start y_0 = x_{k+1} + sqrt(v) g + sqrt(r^2 v s_k^2 / s_{k+1}^2) z; None starts the
                 chain at x_{k+1} itself (diffusion recovery likelihood), as does g = 0
    moves        Langevin moves y += d^2 / 2 (grad f - (y - x_{k+1}) / v) + d z with d = `step` sqrt(v), one step for all
                 levels or one for each (see `Ladder.strides`); at the last level the quadratic term is left out
    """

    def __init__(
        self,
        energy: nn.Module,
        initialiser: nn.Module | None,
        ladder: Ladder | None = None,
        moves: int = 15,
        step: float | Sequence[float] = 0.4,
    ) -> None:
        super().__init__()
        self.energy, self.initialiser, self.ladder = energy, initialiser, ladder or Ladder()
        each = (step,) * self.ladder.levels if isinstance(step, int | float) else tuple(step)
        if moves < 1 or len(each) != self.ladder.levels or not all(d > 0 for d in each):
            raise FokkerError(f"moves={moves}, step={step}: use at least 1 move, and one step above 0 or one for each level")
        self.moves = moves
        a, s = self.ladder.rungs()
        r, v = self.ladder.steps()
        spread = torch.sqrt(v) * r * s[:-1] / s[1:]
        step_of = torch.tensor(each, dtype=torch.float64) * torch.sqrt(v)
        for name, value in (("a", a), ("s", s), ("r", r), ("v", v), ("spread", spread), ("d", step_of)):
            self.register_buffer(name, value.float())

    @classmethod
    def of_vectors(
        cls,
        dim: int,
        width: int = 128,
        depth: int = 2,
        initialiser: bool = True,
        ladder: Ladder | None = None,
        moves: int = 15,
        step: float | Sequence[float] = 0.4,
        spectral: bool = False,
        share: float | Sequence[float] = 0.2,
        seed: int = 0,
    ) -> "CooperativeEnergy":
        """Perceptrons for data of `dim` numbers; `spectral` bounds every layer of the energy's by its spectral norm.

        The initialiser is 0 at first. `share` is that of `ResidualEnergy`.
        """
        rungs = ladder or Ladder()
        start = MLP(dim, width=width, depth=depth, seed=seed + 1) if initialiser else None
        if start is not None:
            # from an arbitrary first guess energy and initialiser chase each other away from the data
            torch.nn.init.zeros_(start.lower.weight)
            torch.nn.init.zeros_(start.lower.bias)
        net = MLP(dim, width=width, depth=depth, seed=seed)
        if spectral:
            for layer in [*net.inner, *net.outer]:
                torch.nn.utils.parametrizations.spectral_norm(layer)
        return cls(ResidualEnergy(net, rungs, share), start, rungs, moves, step)

    def part(self, name: str, k: Tensor, like: Tensor) -> Tensor:
        """A coefficient of levels k (batch,), for multiplying `like`."""
        values: Tensor = getattr(self, name)[k]
        return values.reshape(-1, *[1] * (like.ndim - 1)).to(like.dtype)

    def pull(self, y: Tensor, k: Tensor, **cond: Cond) -> Tensor:
        """The gradient of f in y."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            f = self.energy(y, k, **cond)
            gradient: Tensor = torch.autograd.grad(f.sum(), y)[0]
        return gradient

    def begin(self, x_next: Tensor, k: Tensor, z: Tensor, **cond: Cond) -> Tensor:
        """y_0 given x_{k+1}; z unit normal."""
        if self.initialiser is None:
            return x_next
        return self.aim(x_next, k, **cond) + self.part("spread", k, x_next) * z

    def aim(self, x_next: Tensor, k: Tensor, **cond: Cond) -> Tensor:
        """The mean of y_0 given x_{k+1}."""
        if self.initialiser is None:
            return x_next
        move: Tensor = self.initialiser(x_next, clock(k, self.ladder.levels), **cond)
        return x_next + torch.sqrt(self.part("v", k, x_next)) * move

    def refine(self, y: Tensor, x_next: Tensor, k: Tensor, z: Tensor, **cond: Cond) -> Tensor:
        """y_K from y_0 by the energy's Langevin moves, detached; z (batch, moves, ...) unit normal."""
        was = self.training
        # layers that change as they are called (spectral norms) must stand still in the chain
        self.eval()
        v = self.part("v", k, y)
        tied = (k < self.ladder.levels - 1).reshape(-1, *[1] * (y.ndim - 1)).to(y.dtype)
        d2 = self.part("d", k, y) ** 2
        y = y.detach()
        for i in range(z.shape[1]):
            y = y + d2 / 2 * (self.pull(y, k, **cond) - tied * (y - x_next) / v) + torch.sqrt(d2) * z[:, i]
        self.train(was)
        return y.detach()

    @torch.no_grad()
    def sample(
        self,
        shape: Sequence[int],
        seed: int = 0,
        ids: Sequence[int] | Tensor | None = None,
        moves: int | None = None,
        **cond: Cond,
    ) -> Tensor:
        """Samples (n, ...) at level 0, down the ladder from noise: a start and Langevin moves at each level.

        Raises FokkerError where the chains leave the finite numbers.
        """
        which = sample_ids(shape[0] if ids is None else len(ids), ids)
        whole = (len(which), *shape[1:])
        x = noise(whole, seed, which)
        count = self.moves if moves is None else moves
        for k in range(self.ladder.levels - 1, -1, -1):
            level = torch.full((len(which),), k)
            z = torch.stack([noise(whole, seed, which, "step", k << 16 | i) for i in range(count + 1)], 1)
            y = self.refine(self.begin(x, level, z[:, 0], **cond), x, level, z[:, 1:], **cond)
            x = y / self.part("r", level, y)
            if not bool(torch.isfinite(x).all()):
                raise FokkerError(f"the chains left the finite numbers at level {k}; train longer, or use a smaller step")
        return x

    def denoiser(self) -> "EnergyDenoiser":
        """E[x_0 | x_t] by the gradient of the energies."""
        return EnergyDenoiser(self)


class EnergyDenoiser(Denoiser):
    """The belief that the energies imply: score(x_k) = r grad f(r x_k, k), converted by the process.

    Between the ladder's levels the nearest one answers; its energy is the log-density (up to a constant) `log_density`.
    """

    def __init__(self, model: CooperativeEnergy) -> None:
        super().__init__(model.ladder)
        self.model = model

    @property
    def conditions(self) -> None:
        return None

    def level(self, t: Time, batch: int, device: torch.device) -> Tensor:
        """The nearest level of each sample, (batch,) int64."""
        levels = self.model.ladder.levels
        k = (as_time(t).to(device) * levels).round().long().clamp(0, levels - 1)
        return k.expand(batch) if k.ndim == 0 else k

    def log_density(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        """f(r x_t, k) of each sample, (batch,): log p_t up to a constant of the level."""
        k = self.level(t, len(x_t), x_t.device)
        state = self.model.part("r", k, x_t) * x_t
        f: Tensor = self.model.energy(state.to(torch.float32), k, **cond)
        return f

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        k = self.level(t, len(x_t), x_t.device)
        r = self.model.part("r", k, x_t)
        score = r * self.model.pull((r * x_t).to(torch.float32), k, **cond).to(x_t.dtype)
        return self.process.to_x0("score", score, x_t, t)


__all__ = ["CooperativeEnergy", "EnergyDenoiser", "Ladder", "ResidualEnergy"]
