"""Composition of conditions against exact conditionals: where it is exact, where it generalises, where it must be biased.

Factors that live in separate coordinates stay independent under noise, so the composed score is that of p_t(x | a, b) exactly,
also for a pair that the law does not contain. Where modes are placed at random the factors are entangled after noising, and the
composed law must be seen to differ.

Null: the base left out of the sum, so that what is common to the conditions counts once a condition.
"""

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome
from fokker.guide.compose import Compose
from fokker.keyed import noise
from fokker.laws import GaussianMixture
from fokker.measure import EnergyDistance

EXPECT = (
    "separate factors: composed score exact to 1e-6, both attributes right >= 0.99 in 50 DDIM steps, >= 0.95 for a pair never "
    "seen; NOT at w = 1: negated class <= 0.10 (base 1/3), kept attribute >= 0.98; random modes: energy distance >= 0.2 where "
    "the exact joint score has <= 0.03"
)
SIDE, SAMPLES, FEW = 3, 1200, 300


class Factors:
    """3 x 3 modes in dim 8; a condition asks for a colour, a shape, or both, by logits over the components."""

    def __init__(self, seed: int, separate: bool, without: tuple[int, int] | None = None) -> None:
        pairs = [(a, b) for a in range(SIDE) for b in range(SIDE)]
        if separate:
            places = 2 * noise((2 * SIDE, 4), seed, stream="check", dtype=torch.float64)
            means = torch.stack([torch.cat([places[a], places[SIDE + b]]) for a, b in pairs])
        else:
            means = 2 * noise((SIDE**2, 8), seed, stream="check", index=1, dtype=torch.float64)
        self.colour, self.shape = (torch.tensor([p[i] for p in pairs]) for i in (0, 1))
        weights = torch.ones(SIDE**2, dtype=torch.float64)
        if without is not None:
            weights[pairs.index(without)] = 0
        self.law = GaussianMixture(weights, means, 0.2**2)

    def given(self, colour: int | None = None, shape: int | None = None, count: int = SAMPLES) -> dict[str, Tensor]:
        """The condition, one row a sample."""
        allowed = torch.ones(SIDE**2, dtype=torch.bool)
        if colour is not None:
            allowed &= self.colour == colour
        if shape is not None:
            allowed &= self.shape == shape
        logits = torch.zeros(SIDE**2, dtype=torch.float64).masked_fill(~allowed, -torch.inf)
        return {"logits": logits.expand(count, -1)}

    def found(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The colour and the shape of samples."""
        nearest = torch.cdist(x, self.law.means).argmin(1)
        return self.colour[nearest], self.shape[nearest]


def check(seed: int, null: bool = False) -> Outcome:
    process = fk.VP()
    x1 = process.start(noise((SAMPLES, 8), seed, dtype=torch.float64))

    def ends(denoiser: fk.Denoiser, cond: dict[str, Tensor], count: int = SAMPLES) -> Tensor:
        out: Tensor = fk.sample(denoiser, x1[:count], solver="ddim", steps=50, grid="logsnr", end=0, **cond)
        return out

    def both(world: Factors, colour: int, shape: int, count: int = SAMPLES) -> Compose:
        conditions = [world.given(colour=colour, count=count), world.given(shape=shape, count=count)]
        return Compose(world.law.denoiser(process), conditions, base=not null)

    def right(world: Factors, colour: int, shape: int) -> float:
        a, b = world.found(ends(both(world, colour, shape), {}))
        return float(((a == colour) & (b == shape)).double().mean())

    whole, holed, tangled = Factors(seed, True), Factors(seed, True, without=(1, 2)), Factors(seed, False)
    exact, composed, off = whole.law.denoiser(process), both(whole, 1, 2), 0.0
    for t in (0.1, 0.3, 0.5, 0.7, 0.9):
        x_t = process.add_noise(whole.law.sample(SAMPLES, seed), noise((SAMPLES, 8), seed, index=1, dtype=torch.float64), t)
        truth = exact.predict("score", x_t, t, **whole.given(1, 2))
        off = max(off, float((composed.predict("score", x_t, t) - truth).abs().max()))

    negation = Compose(exact, [whole.given(colour=0), whole.given(shape=1)], [1.0, -1.0], base=not null)
    a, b = whole.found(ends(negation, {}))
    distances = [0.0, 0.0]
    for colour, shape in ((c, s) for c in range(SIDE) for s in range(SIDE)):
        joint = ends(tangled.law.denoiser(process), tangled.given(colour, shape, FEW), FEW)
        mode = tangled.law.means[SIDE * colour + shape][None]
        truth = GaussianMixture(torch.ones(1), mode, 0.2**2).sample(SAMPLES, seed + 300)
        for i, x in enumerate((ends(both(tangled, colour, shape, FEW), {}, FEW), joint)):
            distances[i] += EnergyDistance()(x, truth).value / SIDE**2
    one = whole.found(ends(exact, whole.given(colour=1)))
    measured = {
        "error of the score": off,
        "both right": right(whole, 1, 2),
        "both right, pair never seen": right(holed, 1, 2),
        "negated shape": float((b == 1).double().mean()),
        "kept colour": float((a == 0).double().mean()),
        "energy distance, random modes": distances[0],
    }
    baseline = {
        "both right, one condition": float(((one[0] == 1) & (one[1] == 2)).double().mean()),
        "energy distance, random modes, joint score": distances[1],
    }
    return Outcome(
        measured,
        baseline,
        [
            Criterion("error of the score", off, "<=", 1e-6),
            Criterion("both right", measured["both right"], ">=", 0.99),
            Criterion("both right, pair never seen", measured["both right, pair never seen"], ">=", 0.95),
            Criterion("negated shape", measured["negated shape"], "<=", 0.10),
            Criterion("kept colour", measured["kept colour"], ">=", 0.98),
            Criterion("energy distance, random modes", distances[0], ">=", 0.2),
            Criterion("energy distance, random modes, joint score", distances[1], "<=", 0.03),
        ],
    )
