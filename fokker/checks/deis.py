"""DEIS (Zhang & Chen 2023, arXiv 2204.13902): past noise predictions, extrapolated in time, against the exact kernel.

A mixture (dim 4, 6 components, resolved by the grid: see `_race`) on the grid quadratic in time against its exact flow,
median distance over 256 noises. The slope of tAB-3 on a law with finer structure is reported beside it. The null gives the
stored predictions to the wrong times (newest for oldest), which keeps their sum and loses everything else.
"""

import torch

from fokker.checks import Criterion, Outcome
from fokker.checks._race import fine, plain, slope
from fokker.denoiser import as_denoiser
from fokker.grids import Quadratic
from fokker.keyed import noise
from fokker.loop import sample
from fokker.plan import Node, Term
from fokker.process import VP
from fokker.solve.adams import Adams
from fokker.solve.onestep import DDIM

EXPECT = (
    "tAB-3 <= 0.25 x DDIM at 10 evaluations and <= 0.08 x at 20; slopes >= 0.95, 1.75, 2.5, 3.1 of tAB-0 to 3 from 20 to 160 "
    "steps; tAB-0 is DDIM, and a constant eps is exact, to 1e-12"
)
SLOPES = (0.95, 1.75, 2.5, 3.1)


class Confused(Adams):
    """tAB whose weights meet the predictions in the wrong order."""

    def step(self, x: Term, past: list[tuple[Node, Term]], s: Node, points: list[tuple[Node, Term]]) -> Term:
        nodes, predictions = [n for n, _ in points], [P for _, P in points]
        return super().step(x, past, s, list(zip(nodes, reversed(predictions), strict=True)))


def check(seed: int, null: bool = False) -> Outcome:
    race = plain(seed)
    kind = Confused if null else Adams
    members = [kind(order=r + 1, prediction="eps", variable="time") for r in range(4)]
    ten, twenty = (race.error(members[3], Quadratic(n)) for n in (10, 20))
    ddim_ten, ddim_twenty = (race.error(DDIM(), Quadratic(n)) for n in (10, 20))
    slopes = [slope(race.error(m, Quadratic(20)), race.error(m, Quadratic(160)), 8) for m in members]
    hard = plain(seed, fine(seed, 4, 6))
    hard_slope = slope(hard.error(members[3], Quadratic(20)), hard.error(members[3], Quadratic(160)), 8)
    gap = float((race.end(members[0], Quadratic(10)) - race.end(DDIM(), Quadratic(10))).abs().max())
    fixed = max(constant(seed, member) for member in members)
    return Outcome(
        measured={
            "tAB-3 at 10": ten,
            "tAB-3 at 20": twenty,
            **{f"slope of tAB-{r}": value for r, value in enumerate(slopes)},
            "slope of tAB-3, finer law": hard_slope,
            "tAB-0 from DDIM": gap,
            "error at constant eps": fixed,
        },
        baseline={"DDIM at 10": ddim_ten, "DDIM at 20": ddim_twenty},
        criteria=[
            Criterion("tAB-3 over DDIM at 10", ten / ddim_ten, "<=", 0.25),
            Criterion("tAB-3 over DDIM at 20", twenty / ddim_twenty, "<=", 0.08),
            *(Criterion(f"slope of tAB-{r}", v, ">=", least) for r, (v, least) in enumerate(zip(slopes, SLOPES))),
            Criterion("tAB-0 from DDIM", gap, "<=", 1e-12),
            Criterion("error at constant eps", fixed, "<=", 1e-12),
        ],
    )


def constant(seed: int, solver: Adams) -> float:
    """The largest relative error where the noise is the same at all times: x_s = (alpha_s / alpha_t) x + ..., exactly."""
    process = VP()
    eps, x_0 = (noise((8, 4), seed, stream="check", index=k, dtype=torch.float64) for k in (1, 2))
    denoiser = as_denoiser(lambda x_t, t: eps, process, prediction="eps")
    (a1, _, s1), (a0, _, s0) = process.at(1.0), process.at(process.end)
    end = sample(denoiser, a1 * x_0 + s1 * eps, solver.plan(process, Quadratic(10)))
    return float((end - a0 * x_0 - s0 * eps).abs().max() / x_0.abs().max())
