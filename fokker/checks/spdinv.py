"""Source-prompt-disentangled inversion: every step of the inversion solves its own fixed-point equation.

Theory: DDIM inversion evaluates the noise at the wrong end of each step, an error of the step's size; where the equation of
the sampling step is solved, sampling leads back as exactly as it is solved. Anderson's acceleration needs no gradient and
converges to rounding in a few evaluations. Modes u_a + v_b, 64 samples, 20 steps without guidance; the median round-trip
squared error.

Null: one substitution of the fixed point, damped to nothing: DDIM inversion itself.
"""

import torch

from fokker.checks import Criterion, Outcome
from fokker.checks._edits import SURE, task
from fokker.edit import invert
from fokker.edit.fixedpoint import FixedPoint
from fokker.grids import Uniform
from fokker.loop import sample
from fokker.solve import Solver
from fokker.solve.onestep import DDIM

EXPECT = (
    "Anderson, 10 iterations: median round trip <= 1e-6 x DDIM inversion's; the paper's AdamW at rate 1e-2: <= 0.3 x"
)
STEPS = 20


def check(seed: int, null: bool = False) -> Outcome:
    found = task(seed, SURE)

    def round_trip(solver: Solver) -> float:
        path = invert(found.denoiser, found.x, Uniform(STEPS), solver, **found.source)
        back = sample(found.denoiser, path.noise, path.plan(), **found.source)
        error: torch.Tensor = (back - path.states[-1]).square().sum(1)
        return float(error.median())

    nothing = FixedPoint("picard", iterations=1, damping=1 - 1e-12)
    plain = round_trip(DDIM())
    anderson = round_trip(nothing if null else FixedPoint("anderson", 10))
    adam = round_trip(nothing if null else FixedPoint("adam", 25, 5e-6, rate=1e-2))
    return Outcome(
        measured={"median round trip, Anderson": anderson, "median round trip, AdamW": adam},
        baseline={"median round trip, DDIM": plain, "median round trip, Picard": round_trip(FixedPoint("picard", 10))},
        criteria=[
            Criterion("Anderson over DDIM", anderson / plain, "<=", 1e-6),
            Criterion("AdamW over DDIM", adam / plain, "<=", 0.3),
        ],
    )
