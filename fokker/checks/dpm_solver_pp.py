"""DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095): data prediction stays accurate under large guidance.

Classifier-free guidance of scale 7.5 built from the exact denoisers of a mixture (dim 8, 8 components, resolved by the
grid: see `_race`), 18 evaluations on the grid quadratic in time, median distance to the same guided flow in 300 steps. The
paper claims that the second-order multistep form beats DDIM there and that noise prediction of higher order does not. What
a law with finer structure gives on uniform log-SNR is reported beside it, and so are 24 evaluations there. At 18 a step is
0.53 of half log-SNR, and a class is decided within about one unit of it (the log-odds of two classes grow like e^(2 lambda),
whatever the scale of the law): two steps, too few for a history to help. The null takes the history away (order 1).
"""

from fokker.checks import Criterion, Outcome, within
from fokker.checks._race import distance, fine, guided, slope
from fokker.grids import LogSNR, Quadratic
from fokker.solve.multistep import DPMSolverPP
from fokker.solve.onestep import DDIM
from fokker.solve.singlestep import DPMSolver

EXPECT = (
    "guided at 7.5, 18 evaluations: 2M <= 0.6 x DDIM and DPM-Solver-2 >= DDIM on quadratic time; DPM-Solver-2 and -3 >= 2 x "
    "DDIM and 2M < DDIM on uniform log-SNR; order 1 is DDIM to 1e-10; slope 2 +- 0.2 from 32 to 128 steps"
)
NFE = 18


def check(seed: int, null: bool = False) -> Outcome:
    race = guided(seed)
    method = DPMSolverPP(order=1 if null else 2)
    ours, ddim = race.budget(method, NFE, Quadratic), race.budget(DDIM(), NFE, Quadratic)
    two, three = (race.budget(DPMSolver(order=k), NFE, Quadratic) for k in (2, 3))
    flat_ours, flat_ddim = race.budget(method, NFE, LogSNR), race.budget(DDIM(), NFE, LogSNR)
    flat_two, flat_three = (race.budget(DPMSolver(order=k), NFE, LogSNR) for k in (2, 3))
    coarse, dense = race.error(method, Quadratic(32)), race.error(method, Quadratic(128))
    dense_ours, dense_ddim, dense_three = (race.budget(s, 24, LogSNR) for s in (method, DDIM(), DPMSolver(order=3)))
    hard = guided(seed, fine(seed, 8, 8))
    hard_ours, hard_three, hard_ddim = (hard.budget(s, NFE, LogSNR) for s in (method, DPMSolver(order=3), DDIM()))
    grid = Quadratic(NFE)
    gap = (race.end(DPMSolverPP(order=1), grid) - race.end(DDIM(), grid)).abs().max()
    return Outcome(
        measured={
            "2M": ours,
            "2M on log-SNR": flat_ours,
            "order": slope(coarse, dense, 4),
            "2M over DDIM on log-SNR, 24 evaluations": dense_ours / dense_ddim,
            "DPM-Solver-3 over DDIM on log-SNR, 24 evaluations": dense_three / dense_ddim,
            "2M over DDIM on log-SNR, finer law": hard_ours / hard_ddim,
            "DPM-Solver-3 over DDIM on log-SNR, finer law": hard_three / hard_ddim,
            "order 1 from DDIM": float(gap),
            "distance between 300 steps and 600": distance(race.end(DPMSolverPP(order=3), Quadratic(600)), race.truth),
        },
        baseline={
            "DDIM": ddim,
            "DPM-Solver-2": two,
            "DPM-Solver-3": three,
            "DDIM on log-SNR": flat_ddim,
            "DPM-Solver-2 on log-SNR": flat_two,
            "DPM-Solver-3 on log-SNR": flat_three,
        },
        criteria=[
            Criterion("2M over DDIM", ours / ddim, "<=", 0.6),
            Criterion("DPM-Solver-2 over DDIM", two / ddim, ">=", 1.0),
            Criterion("DPM-Solver-2 over DDIM on log-SNR", flat_two / flat_ddim, ">=", 2.0),
            Criterion("DPM-Solver-3 over DDIM on log-SNR", flat_three / flat_ddim, ">=", 2.0),
            Criterion("2M over DDIM on log-SNR", flat_ours / flat_ddim, "<", 1.0),
            Criterion("order 1 from DDIM", float(gap), "<=", 1e-10),
            *within("order", slope(coarse, dense, 4), 1.8, 2.2),
        ],
    )
