"""PNDM (Liu et al. 2022, arXiv 2202.09778): classical multistep formulas carried by DDIM's transfer map.

A mixture (dim 4, 6 components, resolved by the grid: see `_race`) in uniform time against its exact flow, median distance
over 256 noises. The ratio of 50 steps to DDIM's 250 on a law with structure below the last step is reported beside it. The
null is the same transfer without history: DDIM at as many steps.
"""

import torch

from fokker.checks import Criterion, Outcome
from fokker.checks._race import fine, plain
from fokker.grids import Uniform
from fokker.keyed import noise
from fokker.plan import Node, Term
from fokker.process import VP
from fokker.solve.onestep import DDIM
from fokker.solve.pndm import BASHFORTH, PNDM, transfer

EXPECT = (
    "F-PNDM with 50 steps (59 evaluations) <= 0.7 x DDIM with 250, with 25 (34) <= 0.35 x DDIM with 25; the transfer of known "
    "x_0 and eps is exact to 1e-12 for every t, s; the multistep weights add up to 1"
)


def check(seed: int, null: bool = False) -> Outcome:
    race = plain(seed)
    method = PNDM(history=1, warmup="ramp") if null else PNDM()
    fifty, half = (race.error(method, Uniform(n)) for n in (50, 25))
    ddim, ddim_half = (race.error(DDIM(), Uniform(n)) for n in (250, 25))
    hard = plain(seed, fine(seed, 4, 6))
    sums = max(abs(sum(weights) - 1) for weights in BASHFORTH.values())
    return Outcome(
        measured={
            "50 steps": fifty,
            "25 steps": half,
            "50 steps over DDIM with 250, unresolved law": hard.error(method, Uniform(50))
            / hard.error(DDIM(), Uniform(250)),
            "evaluations of 50 steps": method.plan(race.process, Uniform(50)).nfe,
            "error of the transfer": moved(seed),
            "sum of the weights from 1": sums,
        },
        baseline={"DDIM with 250": ddim, "DDIM with 25": ddim_half},
        criteria=[
            Criterion("50 steps over DDIM with 250", fifty / ddim, "<=", 0.7),
            Criterion("25 steps over DDIM with 25", half / ddim_half, "<=", 0.35),
            Criterion("error of the transfer", moved(seed), "<=", 1e-12),
            Criterion("sum of the weights from 1", sums, "<=", 1e-15),
        ],
    )


def moved(seed: int) -> float:
    """The largest error of the transfer between any two of 12 times, up and down."""
    process = VP()
    x_0, eps = (noise((8,), seed, stream="check", index=k, dtype=torch.float64) for k in (1, 2))
    nodes = [Node.at(process, t) for t in torch.linspace(1e-3, 1, 12, dtype=torch.float64)]
    worst = 0.0
    for t in nodes:
        for s in nodes:
            a, b = transfer(Term({("x", 0): 1.0}), Term({("x", 1): 1.0}), t, s).parts.values()
            x_s = a * (t.alpha * x_0 + t.sigma * eps) + b * eps
            worst = max(worst, float((x_s - s.alpha * x_0 - s.sigma * eps).abs().max()))
    return worst
