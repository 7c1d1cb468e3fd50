"""Exact likelihood by the probability-flow ODE: how probable are these data under a denoiser's law?

With r = sqrt(alpha^2 + sigma^2), w = (x - beta y) / r, the angle phi = atan2(sigma, alpha) and u = log(pi / (2 phi)), the
probability flow of every process is one smooth equation, and a density moves along it by the divergence of its rate:

    dw / du = (phi / sin phi) (D - cos(phi) w),      d log p / du = -div,      div = (phi / sin phi) (r tr dD/dx - N cos phi).

log p_t(x) is the log-density of the end point at t = 1, which is known, plus the integral of the divergence. The trace is
exact (N backward passes) or Hutchinson's estimate, whose probes belong to the sample and stay the same along a trajectory;
every probe is integrated by itself, so that their scatter is the sampling error.

Reference: Song et al. 2021, arXiv 2011.13456; Grathwohl et al. 2019, arXiv 1810.01367 (the estimator); Chen et al. 2018,
arXiv 1806.07366 (the change of density).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fokker.denoiser import Cond, Deanchored, Denoiser, Run, followed
from fokker.errors import FokkerError, unknown
from fokker.keyed import noise, sample_ids
from fokker.process import Process
from fokker.solve.adaptive import METHODS

DIVERGENCES = ("auto", "exact", "hutchinson")
PROBES = ("rademacher", "normal")
FIXED = "rk4"
# up to this many coordinates an exact trace costs no more than a good estimate of it
SMALL = 32

Ids = Sequence[int] | Tensor | None
Prior = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Density:
    """log p of each sample and what it is worth.

    log_prob (batch,) in nats, float64; `error` (batch,) the standard error left by the probes: 0 where the trace is exact,
    NaN for a single probe, which cannot tell; `latent` (batch, ...) the state at t = 1 that the flow leads to; `nfe` the
    evaluations a sample, each with `probes` backward passes.
    """

    log_prob: Tensor
    error: Tensor
    latent: Tensor
    nfe: float
    probes: int


@dataclass(frozen=True)
class FlowLikelihood:
    """log p_t(x) of a denoiser's law, its encoding of x into noise, and the way back.

    divergence  exact, hutchinson, or auto: exact up to 32 coordinates
    probes      Hutchinson's probes a sample; `probe` is rademacher (the smaller variance) or normal
    method      an adaptive method of torchdiffeq with `rtol` and `atol`, or with `steps` that many steps of Runge-Kutta 4
    start       the time t that x is taken at; unless given the process's own end, below which a network knows nothing

    Adaptive steps are chosen for the whole batch, so there a sample depends on its batch at the level of the tolerance.
    Raises FokkerError for options that do not fit and for a start without noise. Reference: Song et al. 2021, arXiv 2011.13456.
    """

    divergence: str = "auto"
    probes: int = 8
    probe: str = "rademacher"
    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int | None = None
    start: float | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("divergence", self.divergence, DIVERGENCES),
            ("probe", self.probe, PROBES),
            ("method", self.method, METHODS),
        ):
            if value not in known:
                raise unknown(name, value, known)
        if self.probes < 1 or (self.steps is not None and self.steps < 1):
            raise FokkerError(f"probes={self.probes}, steps={self.steps}: use at least 1")
        if not (self.rtol > 0 and self.atol > 0):
            raise FokkerError(f"rtol={self.rtol}, atol={self.atol} are not accepted; tolerances are above 0")

    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        *,
        y: Tensor | None = None,
        prior: Prior | None = None,
        seed: int = 0,
        ids: Ids = None,
        **cond: Cond,
    ) -> Density:
        """log p of x (batch, ...), taken as the state at the time `start`.

        `prior` is the log-density of the state at t = 1, (batch, ...) -> (batch,); unless given that of the process's start,
        beta y + sigma noise. `seed` and `ids` name the probes, y and `cond` are the anchor and the conditions.
        """
        process, count = denoiser.process, x[0].numel()
        exact = self.divergence == "exact" or (self.divergence == "auto" and count <= SMALL)
        probes = None if exact else self._probes(x, seed, ids)
        flow = _Flow(denoiser, x, y, seed, ids, cond)
        begin = self.begin(process)
        latent, change = flow.follow(x, begin, 1.0, self, probes, exact)
        if prior is None:
            _, beta, sigma = process.at(1.0)
            eps = (latent - beta * flow.y if flow.y is not None else latent) / sigma
            top = process.log_noise(eps) - count * math.log(sigma)
        else:
            top = prior(latent).to(torch.float64)
        each = top[:, None] + change
        scatter = each.std(1) / math.sqrt(each.shape[1]) if each.shape[1] > 1 else torch.full_like(top, math.nan)
        error = torch.zeros_like(top) if exact else scatter
        return Density(each.mean(1), error, latent.to(x.dtype), flow.run.nfe, count if exact else self.probes)

    def encode(self, denoiser: Denoiser, x: Tensor, y: Tensor | None = None, **cond: Cond) -> Tensor:
        """The state at t = 1 that the flow leads x to."""
        flow = _Flow(denoiser, x, y, 0, None, cond)
        return flow.follow(x, self.begin(denoiser.process), 1.0, self)[0].to(x.dtype)

    def decode(self, denoiser: Denoiser, latent: Tensor, y: Tensor | None = None, **cond: Cond) -> Tensor:
        """The state at the time `start` from which the flow leads to `latent`: the inverse of `encode`."""
        flow = _Flow(denoiser, latent, y, 0, None, cond)
        return flow.follow(latent, 1.0, self.begin(denoiser.process), self)[0].to(latent.dtype)

    def begin(self, process: Process) -> float:
        """The time that data are taken at; FokkerError where there is no noise yet."""
        t = float(process.end if self.start is None else self.start)
        if not 0 <= t < 1 or not process.at(t)[2] > 0 or process.sigma(t) == 0:
            raise FokkerError(f"start={t:g}: {process.name} has no noise there; use a time in (0, 1), such as 1e-3")
        return t

    def _probes(self, x: Tensor, seed: int, ids: Ids) -> list[Tensor]:
        """One tensor (batch, N) a probe, a function of (seed, id, number of the probe)."""
        shape = (len(x), x[0].numel())
        drawn = (noise(shape, seed, ids, "measure", k, torch.float64, x.device) for k in range(self.probes))
        return [z if self.probe == "normal" else torch.where(z < 0, -1.0, 1.0).to(z) for z in drawn]


class _Flow:
    """The flow of one denoiser on one batch."""

    def __init__(
        self, denoiser: Denoiser, x: Tensor, y: Tensor | None, seed: int, ids: Ids, cond: dict[str, Cond]
    ) -> None:
        if not x.is_floating_point() or x.ndim < 2:
            raise FokkerError(f"x has shape {tuple(x.shape)} and dtype {x.dtype}; give floating point (batch, ...)")
        accepted = denoiser.conditions
        for name in cond:
            if accepted is not None and name not in accepted:
                raise unknown("condition", name, accepted)
        self.process, self.cond, self.shape = denoiser.process, cond, x.shape
        self.y = self.process.anchor(y).to(x.device, torch.float64) if self.process.anchored else None
        if self.y is None and y is not None:
            self.cond = {**cond, "y": y}
        self.run = Run(len(x), seed, None if ids is None else sample_ids(len(x), ids))
        whole = denoiser if self.y is None else Deanchored(denoiser, self.y)
        self.denoiser = whole.bind(self.run)

    def follow(
        self,
        x: Tensor,
        t: float,
        s: float,
        how: FlowLikelihood,
        probes: list[Tensor] | None = None,
        exact: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The state at time s (batch, ...) of the trajectory through x at t, and log p_t - log p_s, one column a probe."""
        from torchdiffeq import odeint

        (a0, b0, s0), (a1, b1, s1) = self.process.at(t), self.process.at(s)
        r0, r1 = math.hypot(a0, s0), math.hypot(a1, s1)
        plain = x.to(torch.float64) - (b0 * self.y if self.y is not None else 0.0)
        w = plain.flatten(1) / r0
        columns = 0 if probes is None and not exact else 1 if probes is None else len(probes)
        ends = [math.log(math.pi / 2 / math.atan2(sigma, alpha)) for alpha, sigma in ((a0, s0), (a1, s1))]
        clock = torch.linspace(ends[0], ends[1], 1 + (how.steps or 1), dtype=torch.float64, device=w.device)
        turned = {ends[0]: t, ends[1]: s}

        def rate(u: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            # the trial that chooses the first step may lie beyond the end
            w, at = state[0], min(max(float(u), min(ends)), max(ends))
            phi = math.pi / 2 * math.exp(-at)
            cos, sin = math.cos(phi), math.sin(phi)
            # the ends themselves are exact; a rounded time could fall outside what the process knows
            time = turned.get(at, float(self.process.time(2 * math.log(max(cos, 1e-300) / sin))))
            r = math.hypot(*self.process.at(time)[::2])
            belief, trace = self._ask(r * w, time, probes, exact)
            return phi / sin * (belief - cos * w), phi / sin * (r * trace - cos * w.shape[1])

        with torch.no_grad():
            state = (w, w.new_zeros(len(w), columns))
            options = {"method": FIXED} if how.steps else {"method": how.method, "rtol": how.rtol, "atol": how.atol}
            path, total = odeint(rate, state, clock, **options)
        moved = (path[-1] * r1).reshape(self.shape)
        if self.y is not None:
            moved = moved + b1 * self.y
        change = total[-1] + w.shape[1] * (math.log(r1) - math.log(r0))
        if not bool(torch.isfinite(moved).all() & torch.isfinite(change).all()):
            raise FokkerError("the flow left the finite numbers; look at the denoiser, or use a smaller rtol and atol")
        return moved, change

    def _ask(self, x: Tensor, t: float, probes: list[Tensor] | None, exact: bool) -> tuple[Tensor, Tensor]:
        """The belief (batch, N) and the trace of its Jacobian, one column a probe."""
        self.run.t = t
        if probes is None and not exact:
            belief: Tensor = self.denoiser(x.reshape(self.shape), t, **self.cond)
            return belief.flatten(1), x.new_zeros(len(x), 0)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            belief = followed(self.denoiser(x.reshape(self.shape), t, **self.cond)).flatten(1)
            if probes is None:
                size = belief.shape[1]
                parts = [
                    torch.autograd.grad(belief[:, i].sum(), x, retain_graph=i + 1 < size)[0][:, i] for i in range(size)
                ]
                return belief.detach(), torch.stack(parts, 1).sum(1, keepdim=True)
            columns = [
                (torch.autograd.grad(belief, x, v, retain_graph=k + 1 < len(probes))[0] * v).sum(1)
                for k, v in enumerate(probes)
            ]
        return belief.detach(), torch.stack(columns, 1)


def log_prob(
    denoiser: Denoiser,
    x: Tensor,
    *,
    divergence: str = "auto",
    probes: int = 8,
    steps: int | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    start: float | None = None,
    y: Tensor | None = None,
    prior: Prior | None = None,
    seed: int = 0,
    ids: Ids = None,
    **cond: Cond,
) -> Tensor:
    """log p(x) of each sample (batch,), in nats, by the probability flow; `FlowLikelihood` has all options and the errors."""
    how = FlowLikelihood(divergence, probes, rtol=rtol, atol=atol, steps=steps, start=start)
    return how(denoiser, x, y=y, prior=prior, seed=seed, ids=ids, **cond).log_prob


# --- data on a lattice -------------------------------------------------------------------------------------------------

DEQUANTISATIONS = ("truncated-normal", "uniform")


@dataclass(frozen=True)
class Lattice:
    """A bound on log P of discrete data whose coordinates are multiples of `bin` apart, from a density of continuous ones.

    log P(x) >= E_q [log p(x') - log q(x' | x)] for x' anywhere in the cell of x:

        uniform            q flat over the cell: for a density that is smooth on the scale of a cell
        truncated-normal   x' = x + (sigma / alpha) z at the time where 3 sigma / alpha is half a cell, z cut there: for a model
                           trained on the lattice itself, whose density is there a sum of such bells, it is log P(x) but for
                           what neighbours add; against a smooth density it loses 0.35 nats a coordinate

    Reference: Theis, van den Oord, Bethge 2016, arXiv 1511.01844 (uniform); Zheng et al. 2023, arXiv 2305.03935 (truncated).
    """

    bin: float
    how: str = "truncated-normal"

    def __post_init__(self) -> None:
        if not self.bin > 0:
            raise FokkerError(f"bin={self.bin} is not accepted; give the distance of neighbouring levels, above 0")
        if self.how not in DEQUANTISATIONS:
            raise unknown("dequantisation", self.how, DEQUANTISATIONS)

    @staticmethod
    def of(x: Tensor, most: int = 4096) -> float | None:
        """The distance of neighbouring levels if all numbers of x lie on one lattice of at most `most` levels, else None."""
        levels = torch.unique(x.detach().to("cpu", torch.float64))
        if not 2 <= len(levels) <= most:
            return None
        gap = float(levels.diff().min())
        steps = (levels - levels[0]) / gap
        return gap if bool(((steps - steps.round()).abs() < 1e-3).all() & (steps[-1] < most)) else None

    def bound(
        self,
        denoiser: Denoiser,
        x: Tensor,
        likelihood: FlowLikelihood | None = None,
        seed: int = 0,
        ids: Ids = None,
        **cond: Cond,
    ) -> Density:
        """The bound on log P(x), from one draw of x' a sample, keyed by (seed, id).

        Raises FokkerError for an anchored process.
        """
        process, how = denoiser.process, likelihood or FlowLikelihood()
        if process.anchored:
            raise FokkerError("data on a lattice are measured under plain processes; this denoiser has an anchor")
        from fokker.keyed import uniform

        u = uniform(x.shape, seed, ids, "measure", 1 << 20, x.device)
        count, clean = x[0].numel(), x.to(torch.float64)
        if self.how == "uniform":
            cost = torch.full((len(x),), -count * math.log(self.bin), dtype=torch.float64, device=x.device)
            t = how.begin(process)
            moved = clean + self.bin * (u - 0.5)
        else:
            t = float(process.time(-2 * math.log(self.bin / 6)))
            alpha, _, sigma = process.at(t)
            spread = sigma / alpha
            inside = math.erf(self.bin / (2 * spread * math.sqrt(2)))
            z = math.sqrt(2) * torch.erfinv((2 * u - 1) * inside)
            moved = clean + spread * z
            cost = (-0.5 * z.square() - math.log(spread * math.sqrt(2 * math.pi) * inside)).flatten(1).sum(1)
        alpha = process.at(t)[0]
        at_t = FlowLikelihood(
            how.divergence, how.probes, how.probe, how.method, how.rtol, how.atol, how.steps, start=t
        )
        found = at_t(denoiser, (alpha * moved).to(x.dtype), seed=seed, ids=ids, **cond)
        value = found.log_prob + count * math.log(alpha) - cost
        return Density(value, found.error, found.latent, found.nfe, found.probes)


__all__ = ["Density", "FlowLikelihood", "Lattice", "log_prob"]
