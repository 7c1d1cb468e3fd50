"""DeepCache: the deep features of a U-Net kept between refreshes.

Theory: a refresh at every step is the uncached run; what is executed follows from the schedule alone; the longer features are
kept the further the samples move. The paper finds samples as good as those of an uncached sampler of equal cost. The
checks' U-Net of digits, 50 steps of ancestral sampling, 300 samples, all runs from the same noises; judged by the Frechet
distance of pixels to the training digits. Refresh 3 is judged on the paper's non-uniform schedule, whose centre and power were
chosen on another model and other noises; the uniform schedule stands beside it.

Null: the output is kept instead of the features, which is a sampler with fewer beliefs.
"""

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

import fokker as fk
from fokker.cache import DeepCache, nonuniform
from fokker.cache.calls import Call
from fokker.checks import Criterion, Outcome, exactly
from fokker.checks._unet import PROCESS, trained
from fokker.data.toys import digits
from fokker.denoiser import Denoiser
from fokker.keyed import noise
from fokker.measure import Frechet
from fokker.net.cost import macs

EXPECT = (
    "refresh 1 gives the same bits; multiply-adds within 1 % of the schedule's; error grows over refresh 1, 2, 3, 5; refresh 3 "
    "in 50 steps: distance <= 1.1 x uncached of equal cost and <= 1.15 x uncached 50 steps"
)
STEPS, SAMPLES = 50, 300
SCHEDULE = (40, 1.4)  # centre and power


class OutputCache(DeepCache):
    """What DeepCache must not be: the network's output itself is kept."""

    def answer(self, number: int, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.due or number not in self.kept:
            self.kept[number] = call(*args, **kwargs)
        return self.kept[number]


@cache
def real() -> Tensor:
    x: Tensor = digits.build().tensors["x"]
    return x.flatten(1)


def plan_of(steps: int, solver: str = "ddpm") -> fk.Plan:
    return fk.loop.lay(PROCESS, solver, steps=steps, grid="uniform", end=0)


class Bench:
    """Runs from one set of noises."""

    def __init__(self, seed: int, n: int = SAMPLES) -> None:
        self.seed = seed
        self.x = PROCESS.start(noise((n, 1, 8, 8), seed, stream="check"))
        self.label = torch.arange(n) % 10

    def samples(self, denoiser: Denoiser, plan: fk.Plan) -> Tensor:
        x_0: Tensor = fk.sample(denoiser, self.x, plan, seed=self.seed, label=self.label)
        return x_0

    def distance(self, x: Tensor) -> float:
        return Frechet()(x.flatten(1), real()).value

    def macs(self, denoiser: Denoiser, plan: fk.Plan) -> int:
        return macs(partial(fk.sample, denoiser, self.x[:2], plan, seed=self.seed, label=self.label[:2]))


def rmse(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt())


def check(seed: int, null: bool = False) -> Outcome:
    bench, plain, plan = Bench(seed), trained(), plan_of(STEPS)
    kind = OutputCache if null else DeepCache
    whole = bench.samples(plain, plan)
    chosen = bench.samples(kind(plain, refresh=nonuniform(STEPS, 3, *SCHEDULE)), plan)
    runs = {n: bench.samples(kind(plain, refresh=n), plan) for n in (1, 2, 3, 5)}
    errors = {n: rmse(x, whole) for n, x in runs.items()}
    one = bench.macs(plain, plan_of(1))
    shallow = (bench.macs(DeepCache(plain, refresh=STEPS), plan) - one) / (STEPS - 1)
    counted = {n: bench.macs(kind(plain, refresh=n), plan) / one for n in runs}
    due = {n: -(-STEPS // n) for n in runs}
    predicted = {n: due[n] + (STEPS - due[n]) * shallow / one for n in runs}
    equal = round(counted[3])
    short = bench.distance(bench.samples(plain, plan_of(equal)))
    cached, even, uncached = (bench.distance(x) for x in (chosen, runs[3], whole))
    grows = all(errors[a] < errors[b] for a, b in ((1, 2), (2, 3), (3, 5)))
    return Outcome(
        measured={
            "distance, refresh 3": cached,
            "distance, refresh 3, uniform": even,
            "error, refresh 3, non-uniform": rmse(chosen, whole),
            "cost, refresh 3, in calls": counted[3],
            "shallow share": shallow / one,
            **{f"error, refresh {n}": errors[n] for n in (2, 3, 5)},
        },
        baseline={"distance, 50 steps uncached": uncached, f"distance, {equal} steps uncached": short},
        criteria=[
            exactly("refresh 1 gives the same bits", torch.equal(runs[1], whole)),
            *(
                Criterion(f"cost against the schedule, refresh {n}", abs(counted[n] / predicted[n] - 1), "<=", 0.01)
                for n in (2, 3, 5)
            ),
            exactly("the error grows with the interval", grows),
            Criterion("distance over uncached of equal cost", cached / short, "<=", 1.1),
            Criterion("distance over uncached 50 steps", cached / uncached, "<=", 1.15),
        ],
    )
