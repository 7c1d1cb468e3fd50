"""Directions in h-space, the bottleneck of a U-Net: by principal components, by mean differences, by the Jacobian.

Theory: the bottleneck holds what an image means, so the directions in which it varies over samples change images far more than
random directions of equal length, the difference of the means over an attribute moves that attribute both ways, and the power
iteration finds the singular values of d eps / d h. The digits model of the zoo without a label, 20 ancestral steps with fixed
noise; the attribute is the ink of the right half minus that of the left.

Null: the directions' places in the bottleneck are shuffled, which keeps their norm.
"""

from functools import cache

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome
from fokker.denoiser import Denoiser
from fokker.edit import BottleneckShift, HSpace
from fokker.keyed import noise

EXPECT = (
    "first 3 components change images >= 4 x as much as random directions; the supervised direction has the right sign both "
    "ways and >= 10 x random's effect; top 3 singular values within 1e-3 of a full decomposition"
)
PROCESS, STEPS, SAMPLES, TESTS, SHAPE = fk.VP(), 20, 400, 64, (1, 8, 8)


@cache
def model() -> Denoiser:
    found: Denoiser = fk.OnProcess(fk.load("digits").denoiser, PROCESS)
    return found


def attribute(x: Tensor) -> Tensor:
    """The ink of the right half minus that of the left, a sample."""
    return x[..., 4:].mean((1, 2, 3)) - x[..., :4].mean((1, 2, 3))


def shuffled(v: Tensor, seed: int) -> Tensor:
    """The entries of each step in another order."""
    order = noise((1, v[0].numel()), seed, stream="check", index=9).argsort(1)[0]
    return v.flatten(1)[:, order].reshape(v.shape)


def check(seed: int, null: bool = False) -> Outcome:
    plan = fk.loop.lay(PROCESS, "ddpm", steps=STEPS, grid="uniform", end=0)
    space = HSpace(model(), plan)
    h, x_0 = space.collect(SAMPLES, SHAPE, seed)
    start = PROCESS.start(noise((TESTS, *SHAPE), 1000 + seed))

    def end(direction: Tensor, scale: float) -> Tensor:
        out: Tensor = fk.sample(BottleneckShift(model(), direction, scale), start, plan, seed=1000 + seed)
        return out

    def random(k: int) -> Tensor:
        v = noise((1, *h.shape[1:]), seed, [k], stream="check")[0]
        unit: Tensor = v / v.norm()
        return unit

    plain = end(random(0), 0.0)
    found = space.pca(h, 3)
    vectors = torch.stack([shuffled(v, seed) for v in found.vectors]) if null else found.vectors
    moved, strayed = [], []
    for k in range(3):
        # two deviations along the component, and as far along a random direction
        scale = 2 * float(found.spread[k])
        moved.append(float((end(vectors[k], scale) - plain).flatten(1).norm(dim=1).mean()))
        strayed.append(float((end(random(k), scale) - plain).flatten(1).norm(dim=1).mean()))
    score = attribute(x_0)
    right = space.mean_difference(h, score > score.median())
    right = shuffled(right, seed) if null else right
    base = attribute(plain).mean()
    up, down = (float(attribute(end(right, s)).mean() - base) for s in (1.0, -1.0))
    size = float(right.norm())
    aside = [float(attribute(end(random(10 + k), size)).mean() - base) for k in range(4)]
    typical = sum(abs(v) for v in aside) / len(aside)

    x_t, t = PROCESS.add_noise(x_0[:1], noise((1, *SHAPE), seed, stream="check"), 0.5), 0.5
    values, _ = space.jacobian(x_t, t, 3, iterations=100, seed=seed)
    function = space.through(x_t, t)
    full = torch.autograd.functional.jacobian(function, torch.zeros(1, *h.shape[2:]))
    exact = torch.linalg.svdvals(full.reshape(x_t.numel(), -1))[:3]
    worst = float((values.detach() / exact - 1).abs().max())
    return Outcome(
        measured={
            "image change, 3 components": sum(moved) / 3,
            "attribute, direction forward": up,
            "attribute, direction backward": down,
            "singular values against the full decomposition": worst,
        },
        baseline={"image change, random": sum(strayed) / 3, "attribute, random, mean size": typical},
        criteria=[
            Criterion("image change over random", sum(moved) / sum(strayed), ">=", 4.0),
            Criterion("attribute forward over random", up / typical, ">=", 10.0),
            Criterion("attribute backward over random", -down / typical, ">=", 10.0),
            Criterion("singular values against the full decomposition", worst, "<=", 1e-3),
        ],
    )
