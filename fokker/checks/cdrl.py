"""Cooperative diffusion recovery likelihood: energies whose short chains start where an initialiser has learnt to.

Theory: the gradient of the loss is that of the recovery likelihood only if the chain arrives. From x_{k+1} itself a few
Langevin moves do not; from a start that is trained on what the chain finds they do, and the energies become log-densities. The
same networks, moves, levels and updates with and without initialiser.

Changed after a miss, every bound as it was and both ladders alike: steps are short enough for a mode of their level (0.4
sqrt(v) had added more noise at level 0, d^2 = 0.0102, than the recovery conditional has there, 0.0082, so that no energy could
fit), y and x_{k+1} share their noise as published, f = -|y - h|^2 / (2 w) has the variance w of a mode of its level, the
initialiser starts at x_{k+1} and learns at a tenth of the energy's rate as published, the averaged weights are judged and not
the last ones, an update has 512 samples at a rate at which 1,500 suffice, and 20,000 samples are judged, whose energy distance
is known to 0.0004. What is left of the distance without initialiser is not much more: with exact energies five moves from
x_{k+1} reach it, and trained ones make up for what the moves lack. At level 0 the modes lie 1.08 apart and the step's noise has
deviation 0.25: a chain that starts in a mode stays there, with or without initialiser, so that the loss does not feel how high
a mode is, and the noise of its gradient decides. The correlation inside the modes is reported beside that over all of them, and
how steep the modes of level 0 are: in units of what a Langevin move bears, beyond 1 a chain is thrown out of its mode.

Null: no initialiser in either, and the energies read with the wrong sign.
"""

import functools
from typing import Any, cast

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome
from fokker.data.source import Arrays
from fokker.energy import CooperativeEnergy, Ladder
from fokker.errors import FokkerError
from fokker.keyed import noise
from fokker.measure import EnergyDistance
from fokker.train import Optimiser, Rate, Trainer
from fokker.train.recovery import RecoveryLikelihood

EXPECT = (
    "8 modes, 6 levels, 5 moves, 1,500 updates: energy distance of samples <= 0.5 x that without the initialiser (divergence "
    "counts as losing); correlation of f with the exact log-density, over samples of its level, >= 0.6 at level 0, >= 0.8 above"
)
MOVES, UPDATES, BATCH, SAMPLES, GROUPS, STD = 5, 1500, 512, 2000, 10, 0.1
LAW = fk.laws.ring(std=STD)


@functools.cache
def trained(seed: int, initialiser: bool) -> CooperativeEnergy:
    """Energies of the ring's samples."""
    step, share = Ladder().strides(STD), Ladder().shares(STD)
    model = CooperativeEnergy.of_vectors(2, 64, 2, initialiser, moves=MOVES, step=step, share=share, seed=2 * seed)
    source = Arrays({"x": LAW.sample(20_000, seed=seed + 500).float()}, "ring", "eight modes", bounds=None)
    rate = Rate(peak=3e-3, warmup=20 * BATCH)
    # as published, the initialiser learns at a tenth of the energy's rate
    settings = Optimiser(rates={"denoiser.initialiser": 0.1} if initialiser else {})
    length = UPDATES * BATCH
    trainer = Trainer(
        cast(Any, model), source, RecoveryLikelihood(), length, BATCH, rate, settings, seed=seed, cpu=True, quiet=True
    )
    trainer.run()
    model.load_state_dict(trainer.averaged())
    return model.eval()


@functools.cache
def distance(model: CooperativeEnergy, seed: int) -> float:
    """Energy distance of samples to the ring, the mean of ten; that of a point at the centre where the chains diverge."""
    try:
        x = model.sample((GROUPS * SAMPLES, 2), seed)
    except FokkerError:
        x = torch.zeros(GROUPS * SAMPLES, 2)
    law, measure = LAW.sample(2 * len(x), seed=seed + 100), EnergyDistance(floor=False)
    pairs = zip(x.to(torch.float64).chunk(GROUPS), law.chunk(GROUPS), strict=True)
    return sum(measure(mine, true).value for mine, true in pairs) / GROUPS


def correlations(model: CooperativeEnergy, seed: int, sign: float) -> list[float]:
    """Pearson's, of f and log p_k over samples of p_k, level by level."""
    denoiser, ladder = model.denoiser(), model.ladder
    found = []
    for k in range(ladder.levels):
        t = k / ladder.levels
        eps = noise((SAMPLES, 2), seed, stream="check", index=k, dtype=torch.float64)
        x = ladder.add_noise(LAW.sample(SAMPLES, seed=seed + 200), eps, t)
        with torch.no_grad():
            f: Tensor = sign * denoiser.log_density(x, t).to(torch.float64)
        found.append(float(torch.corrcoef(torch.stack([f, LAW.log_prob_t(x, t, ladder)]))[0, 1]))
    return found


def inside(model: CooperativeEnergy, seed: int) -> float:
    """The correlation at level 0 inside the modes, the mean over them."""
    x = LAW.sample(SAMPLES, seed=seed + 200)
    with torch.no_grad():
        f = model.denoiser().log_density(x, 0.0).to(torch.float64)
    both, mode = torch.stack([f, LAW.log_prob_t(x, 0.0, model.ladder)]), LAW.responsibilities(x).argmax(1)
    return sum(float(torch.corrcoef(both[:, mode == k])[0, 1]) for k in range(LAW.components)) / LAW.components


def steepness(model: CooperativeEnergy) -> float:
    """d^2 c / 4 of the steepest mode of level 0, where c is the largest curvature of what the chain samples."""
    r, v = model.ladder.steps()
    a, _ = model.ladder.rungs()
    level = torch.zeros(1, dtype=torch.int64)
    found = []
    for mean in (r[0] * a[0] * LAW.means).float():
        bend: Any = torch.autograd.functional.hessian(lambda y: model.energy(y[None], level)[0], mean)
        found.append(float(torch.linalg.eigvalsh(-bend).max()))
    return float(model.part("d", level, LAW.means) ** 2) * (max(found) + 1 / float(v[0])) / 4


def check(seed: int, null: bool = False) -> Outcome:
    without = trained(seed, False)
    model = without if null else trained(seed, True)
    ours, theirs = distance(model, seed), distance(without, seed)
    alike = correlations(model, seed, -1.0 if null else 1.0)
    return Outcome(
        measured={
            "energy distance": ours,
            **{f"correlation at level {k}": c for k, c in enumerate(alike)},
            "correlation at level 0 inside modes": inside(model, seed),
            "steepness at level 0": steepness(model),
        },
        baseline={
            "energy distance without initialiser": theirs,
            **{f"correlation at level {k} without": c for k, c in enumerate(correlations(without, seed, 1.0))},
        },
        criteria=[
            Criterion("energy distance over that without initialiser", ours / theirs, "<=", 0.5),
            *(Criterion(f"correlation at level {k}", c, ">=", 0.8 if k else 0.6) for k, c in enumerate(alike)),
        ],
    )
