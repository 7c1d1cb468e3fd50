"""Superposition of two exact denoisers, judged by their exact densities.

OR must sample the even mixture of the two laws, which averaging scores does not. AND must end where both densities are equal.
Theory: the error of the Ito density estimator is of order 1/2 in the step, so that four times the steps halve it.

Null: the density estimator switched off, so that weights stay equal and the log-density stays where it began.
"""

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome, within
from fokker.checks._mixture import mixture
from fokker.guide.superpose import Superposition
from fokker.increments import follow
from fokker.keyed import noise
from fokker.laws import GaussianMixture
from fokker.laws.algebra import mixture as even_mixture
from fokker.measure import EnergyDistance

EXPECT = (
    "OR: energy distance to the exact even mixture <= 0.02 where averaging gives >= 0.5; AND: median |log q_1 - log q_2| at "
    "the end <= 0.4 x averaging's; the estimated log-density's error falls by 2 +- 0.4 from 50 to 200 and 200 to 800 steps"
)
DIM, SAMPLES = 4, 1500


def check(seed: int, null: bool = False) -> Outcome:
    process = fk.VP()
    aside = torch.zeros(DIM, dtype=torch.float64)
    aside[0] = 3.0
    one = mixture(DIM, 4, seed, spread=0.6).affine(1.0, -aside)
    two = mixture(DIM, 4, seed + 100, spread=0.6).affine(1.0, aside)
    x1 = process.start(noise((SAMPLES, DIM), seed, dtype=torch.float64))
    truth = even_mixture([one, two]).sample(SAMPLES, seed + 200)

    def ends(mode: str) -> Tensor:
        composed = Superposition(one.denoiser(process), models=[two.denoiser(process)], mode=mode)
        out: Tensor = fk.sample(composed, x1, solver="ddpm", steps=200, grid="quadratic", end=0, seed=seed)
        return out

    def gap(x: Tensor) -> float:
        return float((one.log_prob(x) - two.log_prob(x)).abs().median())

    averaged = ends("average")
    either, both = (averaged, averaged) if null else (ends("or"), ends("and"))
    distance, average = (EnergyDistance()(x, truth).value for x in (either, averaged))
    errors = [estimated(one, steps, seed, null) for steps in (50, 200, 800)]
    return Outcome(
        measured={
            "energy distance of OR": distance,
            "median difference of AND": gap(both),
            **{f"error of log q in {n} steps": e for n, e in zip((50, 200, 800), errors, strict=True)},
        },
        baseline={"energy distance of averaging": average, "median difference of averaging": gap(averaged)},
        criteria=[
            Criterion("energy distance of OR", distance, "<=", 0.02),
            Criterion("energy distance of averaging", average, ">=", 0.5),
            Criterion("difference of AND over averaging's", gap(both) / gap(averaged), "<=", 0.4),
            *within("error from 50 to 200 steps, ratio", errors[0] / errors[1], 1.6, 2.4),
            *within("error from 200 to 800 steps, ratio", errors[1] / errors[2], 1.6, 2.4),
        ],
    )


def estimated(law: GaussianMixture, steps: int, seed: int, null: bool) -> float:
    """The standard deviation of the estimated log-density's error at the end of an ancestral run."""
    process = fk.VP()
    x1 = process.start(noise((600, DIM), seed, stream="check", index=9, dtype=torch.float64))
    plan = fk.solve.get("ddpm").plan(process, fk.grids.get("uniform")(steps))
    found = follow(law.denoiser(process), x1, plan, law.log_prob_t(x1, 1.0, process), seed=seed)
    start = law.log_prob_t(x1, 1.0, process)
    return float(((start if null else found.log_density) - law.log_prob_t(found.x, process.end, process)).std())
