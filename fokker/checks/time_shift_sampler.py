"""Time-shift sampler (Li et al. 2024, arXiv 2305.15583): the time that fits a state's variance undoes exposure bias.

Laws: `laws.lowrank` at deviation 0.5, that of images in [-1, 1] (data of unit variance have one variance at all times of VP
and tell nothing). (a) States of d = 3072 drawn at t +- 0.05 and labelled t in 0.2 to 0.4; window 0.1. (b) DDIM with 10 steps of
uniform time on d = 256, exact denoiser, window 0.1, cutoff 0.1: squared Frechet distance of 2,000 samples to the exact mean and
covariance. Control: a window of 0.3 must hurt. Above t = 0.6 sigma is flat, and nothing is claimed.

The rule undoes the variance that a network's errors add to the states. An exact denoiser makes none; what is left is the
error of long DDIM steps, which takes variance away. Variances of the samples are reported, and the distance with one label
for all samples: what labels of their own gain over it does not come from the bias.

Null: the shift goes the other way (2 t - tau).
"""

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome
from fokker.keyed import noise
from fokker.laws import GaussianMixture
from fokker.measure import frechet_distance
from fokker.process import Process
from fokker.solve.onestep import DDIM
from fokker.solve.timeshift import TimeShift, matched_time

EXPECT = (
    "a label 0.05 off is recovered to <= 0.025 with the variance of the data and to <= 0.04 by the published rule; Frechet "
    "distance of 10 DDIM steps <= 0.9 x unshifted; a window of 0.3 is worse than unshifted"
)
PROCESS, VARIANCE, SAMPLES, WINDOW = fk.VP(), 0.25, 2000, 0.1


def law(seed: int, dim: int) -> GaussianMixture:
    return fk.laws.lowrank(dim=dim, seed=seed).affine(VARIANCE**0.5)


def off(seed: int, data_variance: float, null: bool) -> float:
    """The mean of |tau - t*| over t* = t +- 0.05."""
    mixture, errors = law(seed, 3072), []
    for k, t in enumerate((0.2, 0.25, 0.3, 0.35, 0.4)):
        for sign in (-0.05, 0.05):
            eps = noise((64, 3072), seed, stream="check", index=k, dtype=torch.float64)
            x = PROCESS.add_noise(mixture.sample(64, seed + k), eps, t + sign)
            found = matched_time(PROCESS, x, t, WINDOW, data_variance)
            errors.append((2 * t - found if null else found) - (t + sign))
    return float(torch.cat(errors).abs().mean())


class Pooled(TimeShift):
    """One label for all samples, by the mean of their variances."""

    def label(self, process: Process, x: Tensor, s: float) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        whole = torch.cat([*centred])[None]
        return matched_time(process, whole, s, self.window, self.data_variance).expand(len(x))


class Turned(TimeShift):
    """The shift with its sign flipped."""

    def label(self, process: Process, x: Tensor, s: float) -> Tensor:
        return (2 * s - super().label(process, x, s)).clamp(1e-6, 1.0)


def check(seed: int, null: bool = False) -> Outcome:
    mixture, kind = law(seed, 256), Turned if null else TimeShift
    denoiser = mixture.denoiser(PROCESS)
    x1 = noise((SAMPLES, 256), seed, dtype=torch.float64)

    def ends(solver: fk.Solver) -> Tensor:
        end: Tensor = fk.sample(denoiser, x1, solver.plan(PROCESS, fk.grids.uniform(10)))
        return end

    def distance(x: Tensor) -> float:
        return frechet_distance(x.mean(0), torch.cov(x.T), mixture.mean(), mixture.cov())

    def width(x: Tensor) -> float:
        return float(x.var(0).sum() / mixture.cov().trace())

    informed, published = (off(seed, v, null) for v in (VARIANCE, 0.0))
    ddim, ours, rule = (ends(s) for s in (DDIM(), kind(window=WINDOW, data_variance=VARIANCE), kind(window=WINDOW)))
    plain, shifted, published_end = distance(ddim), distance(ours), distance(rule)
    wide = distance(ends(kind(window=0.3, data_variance=VARIANCE)))
    pooled = distance(ends(Pooled(window=WINDOW, data_variance=VARIANCE)))
    exact = mixture.sample(SAMPLES, seed + 50)
    return Outcome(
        measured={
            "label off, with the data's variance": informed,
            "label off, published rule": published,
            "distance, shifted": shifted,
            "distance, published rule": published_end,
            "distance, one label for all samples": pooled,
            "distance, window 0.3": wide,
            "variance over the law's, shifted": width(ours),
            "variance over the law's, published rule": width(rule),
        },
        baseline={
            "label off, unshifted": 0.05,
            "distance of DDIM": plain,
            "variance over the law's, DDIM": width(ddim),
            "exact samples": frechet_distance(exact.mean(0), torch.cov(exact.T), mixture.mean(), mixture.cov()),
        },
        criteria=[
            Criterion("label off, with the data's variance", informed, "<=", 0.025),
            Criterion("label off, published rule", published, "<=", 0.04),
            Criterion("shifted over DDIM", shifted / plain, "<=", 0.9),
            Criterion("window 0.3 over DDIM", wide / plain, ">", 1.0),
        ],
    )
