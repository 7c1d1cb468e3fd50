"""DeepCache: the deep features of a U-Net kept between refreshes.

Theory: a refresh at every step is the uncached run; what is executed follows from the schedule alone; the longer features are
kept the further the samples move. The paper finds samples as good as those of an uncached sampler of equal cost. The
checks' U-Net of digits, 50 steps of ancestral sampling, 300 samples, all runs from the same noises; judged by the Frechet
distance of pixels to the training digits. Refresh 3 is judged on the paper's non-uniform schedule, whose centre and power were
chosen on another model and other noises; the uniform schedule stands beside it.

Confirmed on seeds 10 to 12, which nobody had looked at when the schedule was chosen: 0.99 to 1.00 x equal cost and 1.06 to 1.10
x 50 steps; the uniform schedule 1.01 to 1.03 and 1.08 to 1.15.

Null: the output is kept instead of the features, which is a sampler with fewer beliefs.
"""

from functools import cache

import torch
from torch import Tensor

from fokker.cache import DeepCache, nonuniform
from fokker.checks import Criterion, Outcome, exactly
from fokker.checks._unet import PARTS, Bench, OutputCache, counted, distance, plan_of, rmse, trained

EXPECT = (
    "refresh 1 gives the same bits; multiply-adds within 1 % of the schedule's; error grows over refresh 1, 2, 3, 5; refresh 3 "
    "in 50 steps: distance <= 1.1 x uncached of equal cost and <= 1.15 x uncached 50 steps"
)
STEPS = 50
SCHEDULE = (40, 1.4)  # centre and power
# how many parts of the samples each uniform interval makes: bits, errors, and for 3 a distance
MADE = {1: 1, 2: 2, 3: PARTS, 5: 2}


@cache
def uncached(seed: int, steps: int) -> Tensor:
    return Bench(seed).samples(trained(), plan_of(steps))


@cache
def cost(kind: type[DeepCache] | None, refresh: int, steps: int = STEPS) -> int:
    """The multiply-adds of a run, which no seed changes; without a cache where `kind` is None."""
    return counted(trained() if kind is None else kind(trained(), refresh=refresh), plan_of(steps))


def check(seed: int, null: bool = False) -> Outcome:
    bench, plain, plan = Bench(seed), trained(), plan_of(STEPS)
    kind = OutputCache if null else DeepCache
    whole = uncached(seed, STEPS)
    chosen = bench.samples(kind(plain, refresh=nonuniform(STEPS, 3, *SCHEDULE)), plan)
    runs = {n: bench.samples(kind(plain, refresh=n), plan, parts) for n, parts in MADE.items()}
    errors = {n: rmse(x, whole) for n, x in runs.items()}
    one = cost(None, 1, 1)
    shallow = (cost(DeepCache, STEPS) - one) / (STEPS - 1) / one
    calls = {n: cost(kind, n) / one for n in (2, 3, 5)}
    due = {n: -(-STEPS // n) for n in calls}
    predicted = {n: due[n] + (STEPS - due[n]) * shallow for n in calls}
    equal = round(calls[3])
    short, best = distance(uncached(seed, equal)), distance(whole)
    cached, even = distance(chosen), distance(runs[3])
    grows = all(errors[a] < errors[b] for a, b in ((1, 2), (2, 3), (3, 5)))
    return Outcome(
        measured={
            "distance, refresh 3": cached,
            "distance, refresh 3, uniform": even,
            "error, refresh 3, non-uniform": rmse(chosen, whole),
            "cost, refresh 3, in calls": calls[3],
            "shallow share": shallow,
            **{f"error, refresh {n}": errors[n] for n in (2, 3, 5)},
        },
        baseline={"distance, 50 steps uncached": best, f"distance, {equal} steps uncached": short},
        criteria=[
            exactly("refresh 1 gives the same bits", torch.equal(runs[1], whole[: len(runs[1])])),
            *(
                Criterion(f"cost against the schedule, refresh {n}", abs(calls[n] / predicted[n] - 1), "<=", 0.01)
                for n in calls
            ),
            exactly("the error grows with the interval", grows),
            Criterion("distance over uncached of equal cost", cached / short, "<=", 1.1),
            Criterion("distance over uncached 50 steps", cached / best, "<=", 1.15),
        ],
    )
