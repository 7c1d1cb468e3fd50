"""Bottleneck sampling (Tian et al. 2025, arXiv 2503.18940): the middle steps at half size, noised anew at each switch.

Images of 12 x 12 from a mixture of 12 discs, each with a smooth Gaussian field on it; the denoiser of 6 x 6 images is that
of the exact law of 2 x 2 averages. Process Flow, Euler in equal steps of time, squared Frechet distance of 2,000 samples to
the exact mean and covariance. Schedule 1 full + 12 half + 4 full: as many tokens as 8 full steps, as much attention as 6.
The first step is at t = 1, the switch upwards at t = 0.2 with shift 4. Ablations with 4 + 12 + 8 steps, the switch
downwards at 0.8: no shift, and the noisy state itself resized (under its own time, where it errs least). Full steps on the
shifted grid are reported beside the plain ones, and so is the last stage alone, from exact images of half size: what no
better middle can improve, against full steps whose error is another one for every law.

Null: no shift at the switch.
"""

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome
from fokker.keyed import noise, uniform
from fokker.laws import GaussianMixture
from fokker.measure import frechet_distance
from fokker.solve.bottleneck import BottleneckSampling
from fokker.solve.staged import Resize, stage_grid

EXPECT = (
    "1 + 12 + 4 steps: distance <= 0.85 x 8 full steps (equal tokens) and <= 0.6 x 6 (equal attention); 4 + 12 + 8 steps: "
    "without shift >= 1.5 x, with the noisy state resized >= 4 x"
)
PROCESS = fk.Flow()
SIZE, HALF, SAMPLES = (12, 12), (6, 6), 2000


def law(seed: int) -> GaussianMixture:
    """Soft discs of value 1 on -0.5 with random centre and radius, under a field of deviation 0.3 and length 2 pixels."""
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in SIZE), indexing="ij")
    u = uniform((12, 3), seed, stream="check")
    centre, radius = 3 + 5 * u[:, :2], 1.5 + 2 * u[:, 2]
    away = ((rows - centre[:, :1, None]) ** 2 + (columns - centre[:, 1:, None]) ** 2).sqrt()
    means = 1.5 * torch.sigmoid((radius[:, None, None] - away) / 0.3) - 0.5
    places = torch.stack([rows, columns], -1).flatten(0, 1)
    smooth = 0.3**2 * torch.exp(-(torch.cdist(places, places) ** 2) / (2 * 2.0**2))
    cov = smooth + 0.05**2 * torch.eye(len(places), dtype=torch.float64)
    return GaussianMixture(torch.ones(12), means.flatten(1), cov.expand(12, -1, -1).contiguous())


def shaped(mixture: GaussianMixture, size: tuple[int, int]) -> GaussianMixture:
    return GaussianMixture.build(mixture.log_weights, mixture.means, mixture.form, None, (1, *size))


def check(seed: int, null: bool = False) -> Outcome:
    exact = law(seed)
    average = Resize(HALF)(torch.eye(144, dtype=torch.float64).reshape(144, 1, *SIZE)).flatten(1).T
    full = shaped(exact, SIZE).denoiser(PROCESS)
    half = shaped(exact.affine(average), HALF).denoiser(PROCESS)
    x1 = noise((SAMPLES, 1, *SIZE), seed, dtype=torch.float64)

    def distance(x: Tensor) -> float:
        flat = x.flatten(1)
        return frechet_distance(flat.mean(0), torch.cov(flat.T), exact.mean(), exact.cov())

    def staged(steps: tuple[int, int, int], down: float, shift: float) -> BottleneckSampling:
        return BottleneckSampling((full, half, full), (SIZE, HALF, SIZE), steps, (down, 0.2), (1.0, 1.0, shift))

    def plain(steps: int, shift: float = 1.0) -> float:
        return distance(
            fk.sample(full, x1, fk.solve.get("euler").plan(PROCESS, stage_grid(PROCESS, steps, 1.0, 0.0, shift)))
        )

    ours = staged((1, 12, 4), 1.0, 1.0 if null else 4.0)
    found = distance(ours(x1, seed).x0)
    long, flat = (distance(staged((4, 12, 8), 0.8, a)(x1, seed).x0) for a in (1.0 if null else 4.0, 1.0))
    last, halves = ours.stages()[-1], Resize(HALF)(exact.sample(SAMPLES, seed + 60).reshape(-1, 1, *SIZE))
    eps = noise((SAMPLES, 1, *SIZE), seed, stream="check", index=1, dtype=torch.float64)
    state = PROCESS.add_noise(Resize(SIZE)(halves), eps, float(last.plan.start or 0.0))
    alone = distance(fk.run(full, state, last.plan, seed=seed).x0)
    resized = distance(without_noise(staged((4, 12, 8), 0.8, 1.0), x1))
    tokens, attention = plain(8), plain(6)
    return Outcome(
        measured={
            "distance, 1 + 12 + 4": found,
            "its last stage from exact halves": alone,
            "tokens, in full steps": ours.cost(),
            "attention, in full steps": ours.cost(2),
            "distance, 4 + 12 + 8": long,
            "the same without shift": flat,
            "the same with the state resized": resized,
        },
        baseline={
            "8 full steps": tokens,
            "6 full steps": attention,
            "8 full steps, shifted": plain(8, 4.0),
            "6 full steps, shifted": plain(6, 4.0),
            "50 full steps": plain(50),
            "exact samples": distance(exact.sample(SAMPLES, seed + 50)),
        },
        criteria=[
            Criterion("over 8 full steps", found / tokens, "<=", 0.85),
            Criterion("over 6 full steps", found / attention, "<=", 0.6),
            Criterion("tokens", ours.cost(), "<=", 8.0),
            Criterion("attention", ours.cost(2), "<=", 6.0),
            Criterion("without shift over shifted", flat / long, ">=", 1.5),
            Criterion("state resized over shifted", resized / long, ">=", 4.0),
        ],
    )


def without_noise(sampler: BottleneckSampling, x: Tensor) -> Tensor:
    """The same stages with the noisy state itself resized at each switch."""
    stages, states = sampler.stages(), [x]

    def keep(run: fk.Run, state: Tensor, belief: Tensor) -> None:
        states[:] = [state]

    for stage, size in zip(stages, sampler.sizes, strict=True):
        x = fk.run(stage.denoiser, Resize(size)(states[0]), stage.plan, watch=keep).x0
    return x
