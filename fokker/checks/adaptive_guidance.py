"""Adaptive guidance, and its linear form, against full guidance in fewer steps.

Where the belief has made up its mind about the class, conditional and null belief agree and the second evaluation says nothing:
stopping it there must cost less accuracy than taking fewer steps. The linear form predicts the null belief of every second row
of the first half and of the whole second half from coefficients fitted on 300 other trajectories: 25 evaluations.

Null: the switch thrown at the first step.
"""

import torch

import fokker as fk
from fokker.checks import Criterion, Outcome, exactly
from fokker.guide.adaptive import AdaptiveGuidance
from fokker.guide.cfg import CFG
from fokker.guide.linear import LinearGuidance, fit_linear_guidance
from fokker.keyed import noise
from fokker.laws import GaussianMixture

EXPECT = (
    "threshold 0.99 uses <= 0.7 x the 40 evaluations of full guidance in 20 steps, and its RMS distance to the fully guided "
    "end points is <= 0.5 x that of 13 fully guided steps; so is the linear form's, at 25 evaluations"
)
DIM, CLASSES, SAMPLES, SCALE, STEPS = 16, 10, 1000, 3.0, 20


def check(seed: int, null: bool = False) -> Outcome:
    means = 2 * noise((CLASSES, DIM), seed, stream="check", dtype=torch.float64)
    law = GaussianMixture(torch.ones(CLASSES), means, 0.1**2, torch.arange(CLASSES))
    process = fk.VP()
    denoiser, labels = law.denoiser(process), torch.arange(SAMPLES) % CLASSES
    x1 = process.start(noise((SAMPLES, DIM), seed, dtype=torch.float64))

    def plan(steps: int) -> fk.Plan:
        laid: fk.Plan = fk.solve.get("ddim").plan(process, fk.grids.get("quadratic")(steps, end=0))
        return laid

    full = fk.run(CFG(denoiser, SCALE), x1, plan(STEPS), label=labels)

    def off(trace: fk.Trace) -> float:
        return float((trace.x0 - full.x0).square().mean().sqrt())

    adaptive = AdaptiveGuidance(denoiser, SCALE, threshold=1e-9 if null else 0.99)
    found = fk.run(adaptive, x1, plan(STEPS), label=labels)
    fewer = fk.run(CFG(denoiser, SCALE), x1, plan(13), label=labels)
    others = process.start(noise((300, DIM), seed + 1000, dtype=torch.float64))
    fit = fit_linear_guidance(denoiser, others, plan(STEPS), SCALE, label=torch.arange(300) % CLASSES)
    linear = fk.run(LinearGuidance(denoiser, fit, SCALE), x1, plan(STEPS), label=labels)
    each = found.notes["evaluations"].double()
    return Outcome(
        measured={
            "evaluations": found.nfe,
            "distance": off(found),
            "fewest evaluations of a sample": float(each.min()),
            "most evaluations of a sample": float(each.max()),
            "evaluations of the linear form": linear.nfe,
            "distance of the linear form": off(linear),
        },
        baseline={"evaluations of 13 steps": fewer.nfe, "distance of 13 steps": off(fewer)},
        criteria=[
            Criterion("evaluations over full guidance's", found.nfe / full.nfe, "<=", 0.7),
            Criterion("distance over that of 13 steps", off(found) / off(fewer), "<=", 0.5),
            Criterion("distance of the linear form over that of 13 steps", off(linear) / off(fewer), "<=", 0.5),
            Criterion("evaluations of the linear form", linear.nfe, "<=", 25),
            exactly("the samples' own evaluations add up to the run's", abs(float(each.mean()) - found.nfe) < 1e-9),
        ],
    )
