"""Post-training quantisation calibrated on the states of the denoising run, at times drawn by a skewed normal law.

Theory: a network that is run from noise to data meets all those states, so the ranges of its layers have to be found on all of
them; states of one end, or clean images with times that do not belong to them, give ranges that clip or waste levels. The
checks' U-Net of digits, 20 steps of DDIM, 300 samples from the same noises; 256 calibration states. Judged by the RMSE to the
samples in full precision and the Frechet distance of pixels to the training digits.

Null: clean images with random times, the worst choice, in the place of the method's states.
"""

from functools import cache

import torch

from fokker.checks import Criterion, Outcome
from fokker.checks._unet import trained
from fokker.checks.deepcache import Bench, plan_of, real, rmse
from fokker.denoiser import Denoiser
from fokker.guide.threshold import DynamicThreshold
from fokker.quant import CalibrationSet, quantize

EXPECT = (
    "W8A8: distance <= 1.05 x full precision; error <= 0.75 x calibration at noise, 0.3 x near data, 0.2 x on clean images; "
    "W8A4: distance <= 0.85, 0.7, 0.4 x theirs and <= 1.1 x uniform times; 16 bits: error <= 1e-2"
)
STEPS, STATES = 20, 256


@cache
def states(law: str, seed: int) -> CalibrationSet:
    """A calibration set: of the run, with times by a law, or of clean images."""
    label = torch.arange(STATES) % 10
    if law == "clean":
        images = real().reshape(-1, 1, 8, 8)
        chosen = images[torch.arange(STATES) * len(images) // STATES]
        return CalibrationSet.from_data(trained(), chosen, seed, noisy=False, label=label)
    plan = plan_of(STEPS, "ddim")
    return CalibrationSet.from_trajectory(clipped(trained()), plan, (1, 8, 8), STATES, law, seed=seed, label=label)


def clipped(denoiser: Denoiser) -> Denoiser:
    """Beliefs within the range of pixels, as the paper's samplers keep them: a noise prediction is no belief near t = 1."""
    return DynamicThreshold(denoiser, quantile=1e-6)


def check(seed: int, null: bool = False) -> Outcome:
    bench, plan = Bench(seed), plan_of(STEPS, "ddim")
    whole = bench.samples(clipped(trained()), plan)
    full = bench.distance(whole)
    laws = {
        "the method": "clean" if null else "normal",
        "noise": "noise",
        "data": "data",
        "clean": "clean",
        "uniform": "uniform",
    }
    error, rough = {}, {}
    for name, law in laws.items():
        error[name] = rmse(bench.samples(clipped(quantize(trained(), states(law, seed))), plan), whole)
        coarse = quantize(trained(), states(law, seed), 8, 4)
        rough[name] = bench.distance(bench.samples(clipped(coarse), plan))
    own = states(laws["the method"], seed)
    eight = bench.distance(bench.samples(clipped(quantize(trained(), own)), plan))
    sixteen = rmse(bench.samples(clipped(quantize(trained(), own, 16, 16, 16)), plan), whole)
    bounds = {"noise": (0.75, 0.85), "data": (0.3, 0.7), "clean": (0.2, 0.4)}
    return Outcome(
        measured={
            "error, W8A8": error["the method"],
            "distance, W8A8": eight,
            "distance, W8A4": rough["the method"],
            "error, 16 bits": sixteen,
        },
        baseline={
            "distance, full precision": full,
            **{f"error, W8A8, states of {k}": error[k] for k in ("noise", "data", "clean", "uniform")},
            **{f"distance, W8A4, states of {k}": rough[k] for k in ("noise", "data", "clean", "uniform")},
        },
        criteria=[
            Criterion("distance, W8A8, over full precision", eight / full, "<=", 1.05),
            *(
                Criterion(f"error, W8A8, over {k}", error["the method"] / error[k], "<=", b)
                for k, (b, _) in bounds.items()
            ),
            *(
                Criterion(f"distance, W8A4, over {k}", rough["the method"] / rough[k], "<=", b)
                for k, (_, b) in bounds.items()
            ),
            Criterion("distance, W8A4, over uniform", rough["the method"] / rough["uniform"], "<=", 1.1),
            Criterion("error, 16 bits", sixteen, "<=", 1e-2),
        ],
    )
