"""Volumes from a prior of their slices: the measurement and total variation between the slices, by ADMM, at every step."""

import math
from typing import Literal

import torch
from torch import Tensor

from fokker.charts import Slices
from fokker.denoiser import Cond, Denoiser, Run
from fokker.errors import FokkerError, unknown
from fokker.keyed import noise
from fokker.plan import Row
from fokker.process import Time
from fokker.restore import Operator
from fokker.restore.move import next_move
from fokker.restore.posterior import Restorer
from fokker.restore.proximal import least_squares

Memory = tuple[Tensor, Tensor]  # d and u, the split differences and their dual, one slice fewer than the volume


class SliceVariation:
    """ADMM for min_x ||(y - A x) / |A| ||^2 / 2 + lam ||D x||_1, D the differences of neighbouring slices, which do not wrap.

    A round is `iterations` of conjugate gradients, begun at x, on

        (A^T A / |A|^2 + rho D^T D) x = A^T y / |A|^2 + rho D^T (d - u),

    then d <- soft(D x + u, lam / rho) and u <- u + D x - d. With |A| the largest singular value, `lam` and `rho` mean the same
    for every scanner; lam / rho is in units of the data. x (batch, channels, ...) has its slices along `axis`.

    Raises FokkerError for a nonlinear operator, weights below 0, fewer iterations than 1 or an axis that x does not have.
    """

    def __init__(
        self, operator: Operator, y: Tensor, lam: float = 0.02, rho: float = 0.1, iterations: int = 2, axis: int = 2
    ) -> None:
        if not (lam >= 0 and rho > 0) or iterations < 1:
            raise FokkerError(
                f"lam={lam}, rho={rho}, iterations={iterations} are not accepted; give lam of at least 0, rho above 0 and at "
                "least one iteration"
            )
        like = operator.adjoint(y)
        if not 2 <= axis < like.ndim:
            raise FokkerError(
                f"axis={axis} is not accepted for volumes of shape {tuple(like.shape)}; give the slices' dimension, from 2"
            )
        self.lam, self.rho, self.iterations, self.axis = lam, rho, iterations, axis
        self.norm = largest_singular_value(operator, like)
        self.stacked = _Stacked(operator, self.norm, rho, axis, y.shape[1:], like.diff(dim=axis).shape[1:])
        self.y = y

    def begin(self, x: Tensor) -> Memory:
        """d = u = 0."""
        zero = torch.zeros_like(x.diff(dim=self.axis))
        return zero, zero

    def round(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """x, d and u after one round. What is remembered carries no gradient."""
        d, u = memory
        wanted = self.stacked.beside(self.y.to(x), d - u)
        x = x + least_squares(self.stacked, wanted - self.stacked(x), self.iterations)
        jump = x.detach().diff(dim=self.axis) + u
        d = jump.sign() * (jump.abs() - self.lam / self.rho).clamp_min(0)
        return x, (d, jump - d)

    def solve(self, x: Tensor, rounds: int = 200) -> Tensor:
        """The volume of least variation alone, without a prior: so many rounds from the volume x (batch, channels, ...)."""
        memory = self.begin(x)
        for _ in range(rounds):
            x, memory = self.round(x, memory)
        return x


class DiffusionMBIR(Restorer):
    """Every belief of a volume meets the measurement and its neighbouring slices: ADMM whose d and u live all the run.

    The prior knows slices: `charts.Charted(denoiser, charts.Slices(axis))`. Each belief D is where `rounds` of `SliceVariation`
    begin; the noise that the denoiser found is kept (`Move.corrected`). d and u go from one noise level to the next, which is
    why one round a step is enough. A round that converged would not know the belief any more, except for its mean over the
    slices where A sees nothing: few `iterations` are what keeps the prior.

    `at="state"` is the first paper's, for variance exploding processes: the rounds act on x_t / alpha before the denoiser sees
    it, and once more on the last belief. It needs hundreds of steps, since d and u are those of another noise. The paper has
    lam = 0.04, rho = 10 and one iteration for an operator that is not normalised, and predictor and corrector steps.

    One evaluation of every slice. Outside a run nothing is remembered: each call begins at d = u = 0.
    Raises what `SliceVariation` does, and FokkerError for fewer rounds than 1 or another place for them.

    Reference: Chung, Ryu, McCann, Klasky, Ye 2023, arXiv 2211.10655; on the belief: Chung, Lee, Ye 2024, arXiv 2303.05754.
    """

    solver = ("renoise", {"eta": 0.85})

    def __init__(
        self,
        inner: Denoiser,
        operator: Operator,
        y: Tensor,
        noise_std: float = 0.0,
        lam: float = 0.02,
        rho: float = 0.1,
        iterations: int = 2,
        rounds: int = 1,
        axis: int = 2,
        at: Literal["belief", "state"] = "belief",
    ) -> None:
        super().__init__(inner, operator, y, noise_std)
        if rounds < 1:
            raise FokkerError(f"rounds={rounds} is not accepted; use at least 1")
        if at not in ("belief", "state"):
            raise unknown("place of the rounds", at, ("belief", "state"))
        self.variation = SliceVariation(operator, y, lam, rho, iterations, axis)
        self.rounds, self.at = rounds, at
        self.memory: Memory | None = None

    def reset(self, run: Run) -> None:
        self.memory = None

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        move = next_move(self.run, self.process)
        if self.at == "belief":
            belief: Tensor = self.inner(x_t, t, **cond)
            return move.corrected(belief, self.meet(belief))
        alpha, _ = self.levels(t, x_t)
        # without signal there is nothing to hold against the data
        blind = torch.as_tensor(alpha == 0, device=x_t.device)
        scale = torch.where(blind, torch.ones_like(alpha), alpha) if isinstance(alpha, Tensor) else (alpha or 1.0)
        x = x_t if bool(blind.all()) else torch.where(blind, x_t, scale * self.meet(x_t / scale))
        belief = self.inner(x, t, **cond)
        return move.from_state(move.corrected(belief, self.meet(belief)) if self._last() else belief, x - x_t)

    def meet(self, x: Tensor) -> Tensor:
        """x after the rounds of this step."""
        memory = self.memory or self.variation.begin(x)
        for _ in range(self.rounds):
            x, memory = self.variation.round(x, memory)
        if self.run is not None:
            self.memory = memory
        return x

    def _last(self) -> bool:
        """Whether nobody asks again before x_0."""
        plan = None if self.run is None else self.run.plan
        if self.run is None or plan is None:
            return True
        final = all(isinstance(row, Row) and row.t is None for row in plan.rows[self.run.row + 1 :])
        return final and (plan.end is None or bool(torch.as_tensor(plan.end == 0).all()))


class Slicewise(Operator):
    """A measurement of pictures, made of every slice of a volume along `axis`: y (batch, slices, ...).

    Multi-coil MRI of a volume is `Slicewise(MRI(shape=(2, height, width)))`. (`ParallelBeam` takes volumes as they are.)
    Raises FokkerError for an axis below 2.
    """

    def __init__(self, inner: Operator, axis: int = 2) -> None:
        self.inner, self.slices, self.linear = inner, Slices(axis), inner.linear

    def _volume(self, pieces: Tensor, slices: int) -> Tensor:
        whole: Tensor = pieces.unflatten(0, (-1, slices)).movedim(1, self.slices.axis)
        return whole

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner.forward(self.slices.gather(x)).unflatten(0, (len(x), -1))
        return y

    def adjoint(self, y: Tensor) -> Tensor:
        return self._volume(self.inner.adjoint(y.flatten(0, 1)), y.shape[1])

    def seen(self, v: Tensor) -> Tensor:
        kept: Tensor = self.inner.seen(v.flatten(0, 1)).unflatten(0, v.shape[:2])
        return kept

    def pinv(self, y: Tensor) -> Tensor:
        return self._volume(self.inner.pinv(y.flatten(0, 1)), y.shape[1])

    def consistent(self, x: Tensor, y: Tensor) -> Tensor:
        return self._volume(self.inner.consistent(self.slices.gather(x), y.flatten(0, 1)), y.shape[1])

    def solve(self, v: Tensor, a: float | Tensor = 1.0, b: float | Tensor = 0.0) -> Tensor:
        def each(c: float | Tensor) -> float | Tensor:
            return c.expand(*v.shape[:2], *[1] * (v.ndim - 2)).flatten(0, 1) if isinstance(c, Tensor) and c.ndim else c

        solved: Tensor = self.inner.solve(v.flatten(0, 1), each(a), each(b)).unflatten(0, v.shape[:2])
        return solved


class _Stacked(Operator):
    """x to (A x / |A|, sqrt(rho) D x), flattened: the least-squares problem of a round, whose normal equations it solves."""

    def __init__(
        self, operator: Operator, norm: Tensor, rho: float, axis: int, measured: torch.Size, difference: torch.Size
    ) -> None:
        self.operator, self.norm, self.root, self.axis = operator, norm, math.sqrt(rho), axis
        self.measured, self.difference = measured, difference

    def beside(self, y: Tensor, difference: Tensor) -> Tensor:
        """(y / |A|, sqrt(rho) difference)."""
        return torch.cat([y.flatten(1) / self.norm.to(y), self.root * difference.flatten(1)], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.beside(self.operator(x), x.diff(dim=self.axis))

    def adjoint(self, y: Tensor) -> Tensor:
        n = math.prod(self.measured)
        back = self.operator.adjoint((y[:, :n] / self.norm.to(y)).reshape(-1, *self.measured))
        v = self.root * y[:, n:].reshape(-1, *self.difference)
        edge = torch.zeros_like(back.narrow(self.axis, 0, 1))
        down: Tensor = v.diff(dim=self.axis, prepend=edge, append=edge)
        return back - down


def largest_singular_value(operator: Operator, like: Tensor, steps: int = 30) -> Tensor:
    """|A| for every sample (batch, 1), by power iterations of A^T A from one fixed start; 1 for an operator that is 0."""
    v = noise((1, *like.shape[1:]), 0, stream="check", dtype=like.dtype, device=like.device).expand_as(like)
    for _ in range(steps):
        v = operator.adjoint(operator(v / _length(v).reshape(-1, *[1] * (v.ndim - 1))))
    square = _length(v)
    return torch.where(square > 0, square, torch.ones_like(square)).sqrt()


def _length(v: Tensor) -> Tensor:
    """(batch, 1), at least the smallest number."""
    length: Tensor = v.flatten(1).norm(dim=1, keepdim=True)
    return length.clamp_min(torch.finfo(v.dtype).tiny)
