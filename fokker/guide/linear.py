"""Linear adaptive guidance: the null evaluation predicted from what was already evaluated."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser, Run, Wrapper
from fokker.errors import FokkerError
from fokker.guide.cfg import CFG
from fokker.guide.terms import branches
from fokker.loop import run as run_plan
from fokker.plan import Plan
from fokker.process import Time


@dataclass(frozen=True)
class LinearFit:
    """Coefficients per row of a plan: row k has those of the k + 1 conditional and k null predictions up to it, in noise.

    `times` are those of the plan, `linear` the rows that are predicted (the others are evaluated, and have no coefficients),
    `error` the relative residual of each row on the trajectories that were fitted, 0 for evaluated ones.
    """

    cond: tuple[tuple[float, ...], ...]
    null: tuple[tuple[float, ...], ...]
    error: tuple[float, ...]
    times: tuple[float, ...]
    linear: frozenset[int]

    def estimate(self, k: int, with_cond: Sequence[Tensor], without: Sequence[Tensor]) -> Tensor:
        """The null prediction of row k from the conditional ones of rows 0 .. k and the null ones of rows 0 .. k - 1."""
        terms = [*zip(self.cond[k], with_cond, strict=True), *zip(self.null[k], without, strict=True)]
        out = terms[0][0] * terms[0][1]
        for b, e in terms[1:]:
            out = out + b * e
        return out


class LinearGuidance(CFG):
    """CFG whose null prediction is an affine function of the predictions so far at the rows `fit.linear`: one evaluation there.

        e_null(t) ~ sum_{i >= t} b_i^c e_cond(i) + sum_{i > t} b_i^u e_null(i)

    `fit` is made by `fit_linear_guidance` for one plan and model; predictions are noise, and estimated ones serve as past ones.

    Raises FokkerError for a run whose plan is not the one that was fitted. Reference: Castillo et al. 2023, arXiv 2312.12487
    (LinearAG).
    """

    tokens = False

    def __init__(
        self,
        inner: Denoiser,
        fit: LinearFit,
        scale: float | Tensor = 1.0,
        negative: dict[str, Cond] | None = None,
        batched: bool = True,
    ) -> None:
        super().__init__(inner, scale, negative, None, batched)
        self.fit = fit
        self.past: tuple[list[Tensor], list[Tensor]] = ([], [])

    def reset(self, run: Run) -> None:
        self.past = ([], [])

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        other = self.other(cond)
        if self.run is None or other is None or (not isinstance(self.scale, Tensor) and self.scale == 1):
            return super().x0(x_t, t, **cond)
        with_cond, without = self.past
        k = len(with_cond)
        if k >= len(self.fit.times) or isinstance(t, Tensor) or abs(t - self.fit.times[k]) > 1e-9:
            raise FokkerError(f"evaluation {k} is at t={t}, but the fit is for {list(self.fit.times)}; fit for this plan")
        if k in self.fit.linear:
            belief: Tensor = self.inner(x_t, t, **cond)
            with_cond.append(self.process.from_x0("eps", belief, x_t, t))
            without.append(self.fit.estimate(k, with_cond, without))
            null = self.process.to_x0("eps", without[-1], x_t, t)
        else:
            belief, null = branches(self.inner, x_t, t, [cond, other], self.batched)
            with_cond.append(self.process.from_x0("eps", belief, x_t, t))
            without.append(self.process.from_x0("eps", null, x_t, t))
        scale = self.scale
        strength = scale.to(x_t).reshape(-1, *[1] * (x_t.ndim - 1)) if isinstance(scale, Tensor) and scale.ndim else scale
        return self.combined(belief, null, strength)


class _Recorded(CFG):
    """CFG that leaves both predictions of every row in the notes."""

    def combined(self, with_cond: Tensor, without: Tensor, strength: float | Tensor) -> Tensor:
        assert self.run is not None
        self.run.notes.setdefault("branches", []).append((with_cond, without))
        return super().combined(with_cond, without, strength)


class _States(Wrapper):
    """Leaves the states and times of every row in the notes."""

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        assert self.run is not None
        self.run.notes.setdefault("states", []).append((x_t, t))
        belief: Tensor = self.inner(x_t, t, **cond)
        return belief


def fit_linear_guidance(
    denoiser: Denoiser,
    x: Tensor,
    plan: Plan,
    scale: float,
    linear: Sequence[int] | None = None,
    ridge: float = 1e-4,
    negative: dict[str, Cond] | None = None,
    seed: int = 0,
    **cond: Cond,
) -> LinearFit:
    """The coefficients for `plan`, by least squares over fully guided trajectories from the states x (n, ...).

    linear  the rows to predict. By default every second one of the first half, so that errors cannot accumulate, and all of
            the second half, where the two predictions agree
    ridge   pulls towards what needs no fit, e_cond(t) + (e_null - e_cond) of the row before: predictions of neighbouring rows
            are nearly the same, and without it their coefficients grow large and of opposite signs

    A few hundred trajectories do; all dimensions of all of them share a row's coefficients. Past null predictions are fitted as
    they will be met, estimated where the row is linear. Raises FokkerError for a plan with a time for each sample, for rows
    without a past, or where there is nothing to guide by.
    """
    if any(isinstance(t, Tensor) for t in plan.times):
        raise FokkerError("the fit needs one time a row; lay the plan on a grid without a time for each sample")
    if scale == 1 or (not cond and negative is None):
        raise FokkerError("there is no guidance to fit; give conditions and a scale other than 1")
    n = len(plan.times)
    rows = [k for k in range(1, n) if k % 2 or 2 * k >= n] if linear is None else list(linear)
    if any(not 0 < k < n for k in rows):
        raise FokkerError(f"linear={rows} is not accepted; give rows from 1 to {n - 1}, since the first one has no past")
    notes = run_plan(_States(_Recorded(denoiser, scale, negative)), x, plan, seed=seed, **cond).notes
    eps_cond, eps_null = (
        [
            denoiser.process.from_x0("eps", pair[i], x_t, t).flatten().to("cpu", torch.float64)
            for pair, (x_t, t) in zip(notes["branches"], notes["states"], strict=True)
        ]
        for i in (0, 1)
    )
    known, own, null, error = list(eps_null), [], [], []
    for k, target in enumerate(eps_null):
        b, misfit = torch.zeros(0, dtype=torch.float64), 0.0
        if k in rows:
            columns = torch.stack([*eps_cond[: k + 1], *known[:k]], 1)
            start = torch.zeros(2 * k + 1, dtype=torch.float64)
            start[k], start[k - 1], start[2 * k] = 1.0, -1.0, 1.0
            gram = columns.T @ columns
            pull = ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
            b = start + torch.linalg.solve(gram + pull, columns.T @ (target - columns @ start))
            known[k] = columns @ b
            misfit = float((target - known[k]).norm() / target.norm())
        own.append(tuple(b[: k + 1].tolist()))
        null.append(tuple(b[k + 1 :].tolist()))
        error.append(misfit)
    return LinearFit(tuple(own), tuple(null), tuple(error), tuple(float(t) for t in plan.times), frozenset(rows))
