"""DPM-Solver-v3: a parametrisation fitted to the model, coordinate by coordinate.

With z = x / alpha, lambda = log(alpha / sigma) and k(lambda) a coefficient of each coordinate, the probability-flow ODE is

    z' = -(1 - k) z - f,    f = k z - D,

for any k (k = 0 predicts the data, k = 1 the noise; the paper writes l = 1 - k). What is left of the dynamics in f is taken
out by a second pair of coefficients, f' ~ s f + b: with L, S the integrals of 1 - k and s from the time of the step and
B = int e^{-S} b, the function g = e^{-S} f - B varies least, and the solution is

    x_j = alpha_j e^{-L_j} (z_i - int e^{L+S} B - int e^{L+S} g),

the last integral by a polynomial through present and past values of g. Coefficients are worked out in float64 from the
differences of the integrals, so that nothing overflows.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fokker import store
from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError
from fokker.keyed import noise, uniform
from fokker.plan import Draft, Node, Term, pairs
from fokker.solve import Solver
from fokker.solve.adams import Adams
from fokker.solve.onestep import transition


@dataclass(frozen=True, eq=False)
class ModelStatistics:
    """k, s and b of a model on a grid of half-log-SNR `lam` (points,), each (points, *shape) in float64."""

    lam: Tensor
    k: Tensor
    s: Tensor
    b: Tensor

    @classmethod
    def fit(
        cls,
        denoiser: Denoiser,
        shape: Sequence[int],
        points: int = 200,
        samples: int = 512,
        seed: int = 0,
        start: float = 1.0,
        end: float | None = None,
        chunk: int = 128,
        **cond: Cond,
    ) -> "ModelStatistics":
        """Measured on `samples` trajectories of the model, at `points` + 1 noise levels from time `start` to `end`.

            k = E diag(alpha dD/dx),    s = Cov(f, f') / Var(f),    b = E f' - s E f,

        the diagonal by one Rademacher probe a sample (Hutchinson) and f' along the trajectory by five-point differences. Costs
        about three evaluations a point and sample. Statistics belong to a guidance scale and an end time: fit them on the
        wrapped denoiser that will be run. Raises FokkerError for an anchored process.

        Reference: Zheng et al. 2023, arXiv 2310.13268, section 3.
        """
        process = denoiser.process
        if process.anchored:
            raise FokkerError(
                "statistics are fitted on a plain process; wrap the anchored denoiser for its anchor first"
            )
        trace = _Trace(denoiser, tuple(shape), points, start, end, seed)
        moments, slope = [], []
        for first in range(0, samples, chunk):
            ids = torch.arange(first, min(first + chunk, samples))
            part = {name: value[ids] if isinstance(value, Tensor) else value for name, value in cond.items()}
            z, D, diagonal = trace.follow(ids, part)
            w = torch.stack([torch.ones_like(z), z, D, differentiated(trace.lam, D)])
            moments.append(torch.einsum("anm...,cnm...->acn...", w, w) / samples)
            slope.append(diagonal.sum(1) / samples)
        return cls(trace.lam, *_regressed(trace.lam, torch.stack(moments).sum(0), torch.stack(slope).sum(0)))

    def save(self, path: str | Path) -> None:
        """As one verified safetensors file."""
        tensors = {"lam": self.lam, "k": self.k, "s": self.s, "b": self.b}
        store.write(path, tensors, {"fokker_statistics": 1})

    @classmethod
    def load(cls, path: str | Path) -> "ModelStatistics":
        """What `save` wrote; raises FokkerError for another or an altered file."""
        tensors, header = store.read(path)
        if "fokker_statistics" not in header:
            raise FokkerError(f"{path} holds no model statistics; make them with ModelStatistics.fit(...).save(path)")
        return cls(tensors["lam"], tensors["k"], tensors["s"], tensors["b"])

    @property
    def digest(self) -> str:
        """A short hash of the numbers, for provenance."""
        stacked = torch.cat([v.flatten() for v in (self.lam, self.k, self.s, self.b)])
        return hashlib.sha256(stacked.numpy().tobytes()).hexdigest()[:12]

    def at(self, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """k, s and b, linear between the points and constant beyond them, (n, *shape)."""
        place = lam.clamp(self.lam[0], self.lam[-1])
        right = torch.searchsorted(self.lam, place.contiguous()).clamp(1, len(self.lam) - 1)
        share = (place - self.lam[right - 1]) / (self.lam[right] - self.lam[right - 1])
        share = share.reshape(-1, *[1] * (self.k.ndim - 1))
        k, s, b = (torch.lerp(v[right - 1], v[right], share) for v in (self.k, self.s, self.b))
        return k, s, b


class _Trace:
    """The model's own trajectories on a fine grid, with what the statistics need of them."""

    def __init__(
        self, denoiser: Denoiser, shape: tuple[int, ...], points: int, start: float, end: float | None, seed: int
    ) -> None:
        from fokker import grids
        from fokker.solve.multistep import DPMSolverPP

        self.denoiser, self.shape, self.seed = denoiser, shape, seed
        process = denoiser.process
        self.plan = DPMSolverPP(3).plan(process, grids.logsnr(points, start=start, end=end))
        self.times = [float(t) for t in self.plan.times] + [float(self.plan.end or 0.0)]
        lam = process.logsnr(torch.tensor(self.times, dtype=torch.float64)) / 2
        self.keep = torch.isfinite(lam)
        self.lam = lam[self.keep]

    def follow(self, ids: Tensor, cond: dict[str, Cond]) -> tuple[Tensor, Tensor, Tensor]:
        """z, D and the probed diagonal of alpha dD/dx, each (points, chunk, *shape)."""
        from fokker.loop import run

        process, full = self.denoiser.process, (len(ids), *self.shape)
        states: list[Tensor] = []
        x1 = process.start(noise(full, self.seed, ids, dtype=torch.float64), t=self.times[0])
        trace = run(
            self.denoiser, x1, self.plan, seed=self.seed, ids=ids, watch=lambda _, x, belief: states.append(x), **cond
        )
        states = [x for x, kept in zip([*states, trace.x0], self.keep.tolist(), strict=True) if kept]
        times = [t for t, kept in zip(self.times, self.keep.tolist(), strict=True) if kept]
        probe = 2.0 * (uniform(full, self.seed, ids, "measure") > 0.5) - 1.0
        z, D, diagonal = [], [], []
        for x, t in zip(states, times, strict=True):
            alpha = process.at(t)[0]
            value, moved = jacobian_product(self.denoiser, x, t, probe.to(x), cond)
            z.append(x / alpha)
            D.append(value)
            diagonal.append(alpha * probe * moved)
        return torch.stack(z), torch.stack(D), torch.stack(diagonal)


def jacobian_product(
    denoiser: Denoiser, x: Tensor, t: float, v: Tensor, cond: dict[str, Cond]
) -> tuple[Tensor, Tensor]:
    """(D, (dD/dx) v) at x_t, by one forward-mode pass."""
    value, moved, *_ = torch.func.jvp(lambda u: denoiser(u, t, **cond), (x,), (v,))
    return value.detach(), moved.detach()


def differentiated(lam: Tensor, v: Tensor) -> Tensor:
    """dv/dlambda along the first dimension, by the polynomial of degree 4 through the five nearest points of any grid."""
    n = min(5, len(lam))
    first = (torch.arange(len(lam)) - n // 2).clamp(0, len(lam) - n)
    stencil = first[:, None] + torch.arange(n)
    offset = lam[stencil] - lam[:, None]
    size = offset.abs().amax(1, keepdim=True)
    powers = (offset / size)[:, None] ** torch.arange(n)[:, None]
    unit = torch.zeros(len(lam), n, dtype=lam.dtype)
    unit[:, 1] = 1
    weights = torch.linalg.solve(powers, unit) / size
    out = torch.zeros_like(v)
    for j in range(n):
        out += weights[:, j].reshape(-1, *[1] * (v.ndim - 1)) * v[stencil[:, j]]
    return out


def _regressed(lam: Tensor, moments: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """k, s and b from the second moments (4, 4, points, *shape) of (1, z, D, D') and the mean diagonal."""
    slope = differentiated(lam, k)
    one, zero = torch.ones_like(k), torch.zeros_like(k)
    f = torch.stack([zero, k, -one, zero])
    rate = torch.stack([zero, slope - k, k, -one])  # f' = k' z + k z' - D' with z' = D - z
    covariance = moments - moments[:, :1] * moments[:1]
    variance = torch.einsum("a...,ac...,c...->...", f, covariance, f)
    joint = torch.einsum("a...,ac...,c...->...", f, covariance, rate)
    size = (f.square() * torch.stack([moments[i, i] for i in range(4)])).sum(0)
    # where the model is linear, f is one number for all samples and there is nothing to regress on
    s = torch.where(variance > 1e-9 * size, joint / variance.clamp_min(1e-300), zero)
    b = (rate * moments[:, 0]).sum(0) - s * (f * moments[:, 0]).sum(0)
    return k, s, b


@dataclass(frozen=True)
class DPMSolverV3(Solver):
    """The multistep solver in the parametrisation of this module's docstring, with a model's `statistics`.

    order      1, 2 or 3: how many values of g the polynomial goes through
    statistics what `ModelStatistics.fit` measured on the model
    corrector  do each step again with g at its end once that is known; f stays as predicted. Costs no evaluation
    pseudo     derivatives of g as plain divided differences (the paper's choice for order 3 below 8 evaluations)

    Without statistics k = s = b = 0, which is DPM-Solver++ (with `corrector` UniPC). One evaluation a step; a step to x_0 is
    the belief.

    Reference: Zheng et al. 2023, arXiv 2310.13268.
    """

    order: int = 2  # type: ignore[misc]
    statistics: ModelStatistics | None = None
    corrector: bool = False
    pseudo: bool = False
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise FokkerError(f"order={self.order} is not accepted; DPM-Solver-v3 has orders 1, 2 and 3")

    @property
    def config(self) -> dict[str, Any]:
        return super().config | {"statistics": None if self.statistics is None else self.statistics.digest}

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        known = self.statistics
        if known is None:
            return Adams(self.order, "x0", "lambda", self.corrector).lay(draft, x, nodes)
        if nodes[0].t.ndim:
            raise FokkerError(
                "DPM-Solver-v3 with statistics takes one time for all samples; give a grid of single times"
            )
        past: list[tuple[Node, Term]] = []
        x_t, again = x, False
        for t, s in pairs(nodes):
            D = draft.ask(x, t)
            if not bool(torch.isfinite(t.lam)):
                x = transition(draft, x, D, t, s)
                continue
            f = draft.keep((known.at(t.lam.reshape(1))[0] / t.alpha) * x - D)
            if again:
                x = draft.keep(self.step(draft, known, x_t, past, t, [*past[-self.order :], (t, f)]))
            if s.data:
                return D
            past = [*past, (t, f)][-self.order :]
            x_t = draft.keep(x)
            # steps that lack history would cost the order; done again they do not
            again = self.corrector or len(past) < self.order - 1
            x = self.step(draft, known, x_t, past, s, past)
        return x

    def step(
        self,
        draft: Draft,
        known: ModelStatistics,
        x: Term,
        past: list[tuple[Node, Term]],
        s: Node,
        points: list[tuple[Node, Term]],
    ) -> Term:
        """From the last node of `past` to s, with g interpolated through `points`."""
        t = past[-1][0]
        others = [n for n, _ in points if n is not t]
        line = Line(known, t.lam, s.lam, [n.lam for n in others])
        A = s.alpha * line.decay
        out = (A / t.alpha) * x - draft.constant(A * line.constant)
        # g at the points, the present one (where g = f) first
        values = [f for n, f in points if n is t]
        shifts = [torch.zeros_like(line.constant)]
        for (_, f), (gain, shift) in zip([p for p in points if p[0] is not t], line.known, strict=True):
            values.append(gain * f)
            shifts.append(shift)
        weights = line.weights([n.lam - t.lam for n in others], self.pseudo)
        for w, value, shift in zip(weights, values, shifts, strict=True):
            out = out - (A * w) * value + draft.constant(A * w * shift)
        return out


class Line:
    """The integrals of a step from lambda `a` to `b`, relative to `a`, with past or coming points at `others`.

    decay     e^{-L} at b
    constant  int_a^b e^{L+S} B
    known     (e^{-S}, B) at each of the other points
    """

    def __init__(self, statistics: ModelStatistics, a: Tensor, b: Tensor, others: list[Tensor]) -> None:
        special = torch.stack([a, b, *others])
        low, high = special.min(), special.max()
        inside = statistics.lam[(statistics.lam > low) & (statistics.lam < high)]
        even = torch.linspace(float(a), float(b), 65, dtype=torch.float64)[1:-1]
        lam = torch.unique(torch.cat([special, inside, even]))
        k, s, shift = statistics.at(lam)
        start = int(torch.searchsorted(lam, a))
        self.offset = (lam - a).reshape(-1, *[1] * (k.ndim - 1))
        self.gap = self.offset.diff(dim=0)
        L, S = self.summed(1 - k, start), self.summed(s, start)
        B = self.summed(torch.exp(-S) * shift, start)
        self.growth = torch.exp(L + S)
        self.ends = start, int(torch.searchsorted(lam, b))
        self.decay = torch.exp(-L[self.ends[1]])[None]
        self.constant = self.integral(self.growth * B)
        rows = [int(torch.searchsorted(lam, v)) for v in others]
        self.known = [(torch.exp(-S[i])[None], B[i][None]) for i in rows]

    def summed(self, v: Tensor, start: int) -> Tensor:
        """The integral from a, by the trapezoid rule."""
        total = torch.cat([torch.zeros_like(v[:1]), (self.gap * (v[1:] + v[:-1]) / 2).cumsum(0)])
        return total - total[start]

    def integral(self, v: Tensor) -> Tensor:
        """int_a^b, (1, *shape)."""
        total = self.summed(v, self.ends[0])
        return total[self.ends[1]][None]

    def weights(self, at: list[Tensor], pseudo: bool) -> list[Tensor]:
        """int_a^b e^{L+S} l_j for the Lagrange basis of the points 0 and `at` (relative to a), one weight a point."""
        powers = [self.integral(self.growth * self.offset**q) for q in range(len(at) + 1)]
        places = torch.stack([torch.zeros_like(self.offset[0]).reshape(-1)[0], *at])
        n = len(places)
        basis = torch.linalg.inv(
            torch.stack([places**q for q in range(n)], 1)
        )  # row q: the q-th coefficient of each l_j
        if pseudo and n == 3:
            # slope from the nearest point alone, curvature as the second divided difference
            r = places[1]
            slope = torch.stack([-1 / r, 1 / r, torch.zeros_like(r)])
            basis = torch.stack([basis[0], slope, basis[2]])
        return [sum((basis[q, j] * powers[q] for q in range(1, n)), basis[0, j] * powers[0]) for j in range(n)]
