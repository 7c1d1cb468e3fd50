"""Log-densities that ride along a run: what a step adds to log q_t(x_t), from the state, the belief and the next state.

In u = x / alpha, with rho = sigma / alpha and D = (rho_t^2 - rho_s^2) the variance that the step removes, the score is
s = (belief - u) / rho^2 and

    d log q(u) = <du, s> - (D / 2) |s|^2             on paths driven by the process's noise (Ito: the Laplacian cancels)
    d log q(u) = <du, s> - (D / 2) (|s|^2 + div s)   on smooth paths

The first needs nothing but beliefs, for any model along any sampler's path; its error is of order 1/2 in the step. The second
needs a divergence, exact or estimated from random probes; along the flow of the model itself it becomes the change of volume.

Reference: Skreta et al. 2024, arXiv 2412.17762 (the Ito density estimator); Song et al. 2021, arXiv 2011.13456, Grathwohl
et al. 2019, arXiv 1810.01367 (the flow and random probes).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser, Run, Wrapper, followed
from fokker.errors import FokkerError, unknown
from fokker.keyed import noise, sample_ids
from fokker.loop import Trace
from fokker.loop import run as run_plan
from fokker.plan import Plan
from fokker.process import Process, Time

METHODS = ("ito", "exact", "hutchinson")


@dataclass(frozen=True)
class Move:
    """A step of a run from x_t at time t to x_s at time s, both (batch, ...), towards less noise.

    Raises FokkerError for a step towards more noise, and where a density is not defined: without signal (alpha = 0) or without
    noise (sigma = 0 at time t).
    """

    process: Process
    x_t: Tensor
    t: Time
    x_s: Tensor
    s: Time

    def __post_init__(self) -> None:
        (a, _, p), (b, _, q) = (self.process.coefficients(time, self.x_t) for time in (self.t, self.s))
        rising = bool(torch.as_tensor(q * a > p * b * (1 + 1e-9)).any())
        if rising or bool(torch.as_tensor((a == 0) | (b == 0)).any()) or bool(torch.as_tensor(p == 0).any()):
            raise FokkerError(
                f"no density can be followed from t={self.t} to t={self.s}: noise must fall, with signal and noise left; "
                "use a start below 1 where alpha is 0, and no restarts"
            )
        object.__setattr__(self, "_scales", (a, p / a, b, q / b))

    @property
    def removed(self) -> float | Tensor:
        """D = rho_t^2 - rho_s^2, the variance that the step removes, to multiply states with."""
        _, high, _, low = self._scales  # type: ignore[attr-defined]
        out: float | Tensor = high**2 - low**2
        return out

    def score(self, belief: Tensor) -> Tensor:
        """s = (belief - u) / rho^2 at x_t, in the units of x_0."""
        a, high, _, _ = self._scales  # type: ignore[attr-defined]
        out: Tensor = (belief - self.x_t / a) / high**2
        return out

    @property
    def du(self) -> Tensor:
        """The step in u = x / alpha."""
        a, _, b, _ = self._scales  # type: ignore[attr-defined]
        out: Tensor = self.x_s / b - self.x_t / a
        return out

    def ito(self, belief: Tensor, divergence: Tensor | None = None) -> Tensor:
        """log q_s(x_s) - log q_t(x_t) of the model with that belief at x_t, (batch,) in float64.

        Without a divergence for paths driven by the process's noise; with tr(dD/dx_t) (batch,) for smooth paths.
        """
        a, high, b, _ = self._scales  # type: ignore[attr-defined]
        score = self.score(belief).to(torch.float64)
        inner = self.du.to(torch.float64) * score - 0.5 * self.removed * score.square()
        out = inner.flatten(1).sum(1) - _summed(b, self.x_t) + _summed(a, self.x_t)
        if divergence is not None:
            # tr(ds/du) = (alpha tr(dD/dx) - dim) / rho^2
            of_score = (_one(a) * divergence - self.x_t[0].numel()) / _one(high) ** 2
            out = out - 0.5 * _one(self.removed) * of_score
        return out

    def flow(self, at_t: Tensor, at_s: Tensor | None = None) -> Tensor:
        """log q_s(x_s) - log q_t(x_t) along the model's own probability flow, (batch,), from tr(dD/dx) at its ends.

        The change of volume of du / d log rho = u - D, by the trapezoid rule (left ends only without `at_s`).
        """
        a, high, b, low = (_one(c) for c in self._scales)  # type: ignore[attr-defined]
        dim = self.x_t[0].numel()
        rate = dim - a * at_t if at_s is None else dim - 0.5 * (a * at_t + b * at_s)
        log: Tensor = torch.log(torch.as_tensor(high / low, dtype=torch.float64))
        scale = torch.log(torch.as_tensor(a / b, dtype=torch.float64))
        return rate * log + dim * scale


def _one(c: float | Tensor) -> float | Tensor:
    """A coefficient per sample (batch,) or one for all; FokkerError where it varies within a sample."""
    if not isinstance(c, Tensor) or c.ndim == 0:
        return c
    if c.numel() != c.shape[0]:
        raise FokkerError("densities are followed with one time a sample, not one a token")
    return c.flatten().to(torch.float64)


def _summed(c: float | Tensor, x: Tensor) -> float | Tensor:
    """The sum of log(c) over all numbers of a sample."""
    if not isinstance(c, Tensor):
        return math.log(c) * x[0].numel()
    return torch.log(c.to(torch.float64)).expand(x.shape).flatten(1).sum(1)


class WithDivergence(Wrapper):
    """The belief of `inner`, with tr(dD/dx_t) of each sample left in the run's `notes["divergence"]`.

    Exact by one backward pass per coordinate, or (`probes` > 0) Hutchinson's estimate v . J^T v from that many keyed random
    signs, the same ones in all rows of a run, so that the integrand stays smooth.
    """

    def __init__(self, inner: Denoiser, probes: int = 0) -> None:
        super().__init__(inner)
        if probes < 0:
            raise FokkerError(f"probes={probes} is not accepted; 0 is exact, else use a number of random probes")
        self.probes = probes

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            belief = followed(self.inner(x, t, **cond))
            total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
            count = self.probes or x[0].numel()
            for k in range(count):
                v = self._probe(x, k)
                (pulled,) = torch.autograd.grad(belief, x, v, retain_graph=k + 1 < count)
                total += (pulled * v).flatten(1).sum(1).to(torch.float64)
        if self.run is not None:
            self.run.notes["divergence"] = total / self.probes if self.probes else total
        return belief.detach()

    def _probe(self, x: Tensor, k: int) -> Tensor:
        if not self.probes:
            v = torch.zeros_like(x).flatten(1)
            v[:, k] = 1
            return v.view_as(x)
        run = self.run
        seed, ids = (run.seed, run.ids) if run is not None else (0, None)
        which = sample_ids(len(x), ids, x.device)
        return noise(tuple(x.shape), seed, which, "measure", k, x.dtype, x.device).sign()


class PathDensity:
    """Follows log q along a run as its `watch`; `value` (batch,) is log q at the last state that was shown.

    start     log q at the state that the run starts from, (batch,) or a number
    method    "ito" on stochastic runs; "flow" on the model's own probability flow, whose divergence is read from the notes
    """

    def __init__(self, process: Process, start: float | Tensor = 0.0, method: str = "ito") -> None:
        if method not in ("ito", "flow"):
            raise unknown("method", method, ("ito", "flow"))
        self.process, self.method = process, method
        self.value: Tensor = torch.as_tensor(start, dtype=torch.float64)
        self.last: tuple[Tensor, Time, Tensor, Tensor | None] | None = None

    def __call__(self, run: Run, x: Tensor, belief: Tensor) -> None:
        divergence = run.notes.get("divergence") if self.method == "flow" else None
        self.advance(x, run.t, divergence)
        self.last = x, run.t, belief, divergence

    def advance(self, x: Tensor, t: Time, divergence: Tensor | None = None) -> None:
        """The step from the last state to x at time t."""
        if self.last is not None:
            before, then, belief, divergence_before = self.last
            move = Move(self.process, before, then, x, t)
            change = move.ito(belief) if divergence_before is None else move.flow(divergence_before, divergence)
            self.value = self.value + change


@dataclass(frozen=True)
class Followed:
    """A run, and log q (batch,) of the model at its end: at `t`, the state being `x`."""

    trace: Trace
    x: Tensor
    t: Time
    log_density: Tensor


def follow(
    denoiser: Denoiser,
    x: Tensor,
    plan: Plan,
    start: float | Tensor,
    method: str = "ito",
    probes: int = 1,
    seed: int = 0,
    **cond: Cond,
) -> Followed:
    """Run `plan` from x (batch, ...) and follow the model's log-density, which is `start` at x.

    method  "ito" for stochastic plans of one evaluation a step; "exact" or "hutchinson" (with `probes`) for the flow

    Where the plan ends in x_0 itself, which has no density, the last noisy state is what is returned as `x`. Raises FokkerError
    for an unknown method or one that does not fit the plan.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if (method == "ito") != plan.stochastic:
        raise FokkerError(
            f"method={method!r} does not fit this plan; use 'ito' where noise is drawn, 'exact' or 'hutchinson' where it is not"
        )
    density = PathDensity(denoiser.process, start, "ito" if method == "ito" else "flow")
    asked = denoiser if method == "ito" else WithDivergence(denoiser, 0 if method == "exact" else probes)
    trace = run_plan(asked, x, plan, seed=seed, watch=density, **cond)
    assert density.last is not None
    state, t = density.last[:2]
    if plan.end is not None:
        density.advance(trace.x0, plan.end)
        state, t = trace.x0, plan.end
    return Followed(trace, state, t, density.value)


