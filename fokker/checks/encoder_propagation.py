"""Encoder propagation: the encoder at key steps only, decoders between them in one batch.

Theory: between keys the output depends on the key's state and the current time alone, so decoding ahead in one batch gives the
numbers of decoding one by one. Keys placed at equal parts of the measured change of the features suit the model; the released
set, dense at the start, suits Stable Diffusion. The checks' noise-prediction U-Net of digits, 20 steps of DDIM, 9 keys; judged
by the RMSE to the uncached run from the same noises. On the zoo's digits model, measured beside it, the keys by change win; it
does not judge, since it was looked at after the other had failed. No claim is made against keeping the whole output.

Null: the keys of the measured change, reversed in time.
"""

from functools import cache
from typing import Any

import torch

import fokker as fk
from fokker.cache import EncoderPropagation, feature_change
from fokker.cache.calls import Call
from fokker.checks import Criterion, Outcome, exactly
from fokker.checks._unet import PROCESS, trained
from fokker.checks.deepcache import Bench, OutputCache, plan_of, rmse
from fokker.denoiser import Denoiser
from fokker.net import taps

EXPECT = (
    "parallel decoding equals sequential to 1e-6; encoder calls equal the keys; all steps keys: the same bits; 9 keys of 20 by "
    "measured change: error <= 0.6 x the early-dense set's and <= 1.1 x uniform keys'"
)
STEPS, KEYS = 20, 9
RELEASED = (0, 1, 2, 3, 5, 10, 15, 25, 35)  # of 50 steps, by the authors


@cache
def zoo() -> Denoiser:
    found: Denoiser = fk.OnProcess(fk.load("digits").denoiser, PROCESS)
    return found


def early_dense() -> list[int]:
    """The released key set on 20 steps: scaled, and where two fall together the later one moves on."""
    keys: list[int] = []
    for k in RELEASED:
        keys.append(max(round(k * STEPS / 50), keys[-1] + 1 if keys else 0))
    return keys


def on_zoo(bench: Bench) -> float:
    """The error of keys by change over that of uniform ones, on the zoo's model."""
    plain, plan = zoo(), plan_of(STEPS, "ddim")
    whole = bench.samples(plain, plan)
    chosen = feature_change(plain, bench.x[:100], plan, label=bench.label[:100]).keys(KEYS)
    uniform = [k * STEPS // KEYS for k in range(KEYS)]
    ours, even = (rmse(bench.samples(EncoderPropagation(plain, keys), plan), whole) for keys in (chosen, uniform))
    return ours / even


def check(seed: int, null: bool = False) -> Outcome:
    bench, plain, plan = Bench(seed), trained(), plan_of(STEPS, "ddim")
    whole = bench.samples(plain, plan)
    change = feature_change(plain, bench.x[:100], plan, label=bench.label[:100])
    chosen = change.keys(KEYS)
    if null:
        chosen = sorted({0, *(STEPS - k for k in chosen[1:])})
    uniform = [k * STEPS // KEYS for k in range(KEYS)]
    errors = {
        name: rmse(bench.samples(EncoderPropagation(plain, keys), plan), whole)
        for name, keys in {"measured": chosen, "early-dense": early_dense(), "uniform": uniform}.items()
    }
    stale = rmse(bench.samples(OutputCache(plain, chosen), plan), whole)
    one_by_one = bench.samples(EncoderPropagation(plain, chosen), plan)
    parallel = bench.samples(EncoderPropagation(plain, chosen, plan), plan)
    apart = float((parallel - one_by_one).abs().max() / one_by_one.abs().max())
    calls = [0]

    def counted(call: Call, *args: Any) -> Any:
        calls[0] += 1
        return call(*args)

    propagated = EncoderPropagation(plain, chosen)
    with taps(propagated.network, around={"inp": counted}):
        bench.samples(propagated, plan)
    same = torch.equal(bench.samples(EncoderPropagation(plain, range(STEPS)), plan), whole)
    cost = bench.macs(EncoderPropagation(plain, chosen), plan) / bench.macs(plain, plan)
    return Outcome(
        measured={
            "error, measured change": errors["measured"],
            "parallel against sequential": apart,
            "multiply-adds over uncached": cost,
            "error over uniform, zoo": on_zoo(bench),
        },
        baseline={
            "error, early-dense": errors["early-dense"],
            "error, uniform": errors["uniform"],
            "error, stale output": stale,
        },
        criteria=[
            Criterion("parallel against sequential", apart, "<=", 1e-6),
            Criterion("encoder calls", calls[0], "==", KEYS),
            exactly("all steps as keys give the same bits", same),
            Criterion("error over early-dense", errors["measured"] / errors["early-dense"], "<=", 0.6),
            Criterion("error over uniform", errors["measured"] / errors["uniform"], "<=", 1.1),
        ],
        note=f"keys {chosen} by measured change, {early_dense()} early-dense, {uniform} uniform",
    )
