"""InfEdit: editing without inversion, by the difference of two beliefs at equally noised states.

Theory: with all variance renewed at each step a known sample has its consistent noise in closed form, so equal conditions
give the sample back exactly, and the target's estimate is the sample plus D_target - D_source. Modes u_a + v_b, 12 steps,
no guidance; judged by the mean squared distance to the ideal edit, over six mixtures a seed, against DDIM inversion with
sampling under the target, and SDEdit from t = 0.5.

Null: the two branches get different fresh noise, and nothing cancels.
"""

from typing import Any

import torch

from fokker.checks import Criterion, Outcome
from fokker.checks._edits import PROCESS, SURE, Task, task
from fokker.edit import infedit, invert
from fokker.edit.infedit import Difference, Renewed
from fokker.edit.inversion import joint
from fokker.grids import LogSNR, Uniform
from fokker.keyed import noise
from fokker.loop import run, sample

EXPECT = (
    "equal conditions: <= 1e-20; distance to the ideal edit <= 0.8 x DDIM inversion's and <= 0.35 x SDEdit's, 12 steps"
)
STEPS, START, TASKS = 12, 0.95, 6


def apart(found: Task, seed: int) -> torch.Tensor:
    """The same, but each branch with noise of its own."""
    n, plan = len(found.x), Renewed().plan(PROCESS, LogSNR(STEPS, start=START, end=0))
    both = torch.cat([found.x, found.x])
    x = PROCESS.add_noise(both, noise(tuple(both.shape), seed, dtype=both.dtype), START)
    end: torch.Tensor = run(
        Difference(found.denoiser, found.x), x, plan, seed=seed, **joint(found.source, found.target, n)
    ).x0
    return end[n:]


def check(seed: int, null: bool = False) -> Outcome:
    own, ddim, sdedit, same = [], [], [], []
    for k in range(TASKS):
        found = task(TASKS * seed + k, SURE)
        arguments: dict[str, Any] = {"steps": STEPS, "scale": 1.0, "start": START, "seed": seed}
        x = apart(found, seed) if null else infedit(found.denoiser, found.x, found.source, found.target, **arguments)
        own.append(found.miss(x))
        same.append(found.error(infedit(found.denoiser, found.x, found.source, found.source, **arguments)))
        path = invert(found.denoiser, found.x, Uniform(STEPS), **found.source)
        end = sample(found.denoiser, path.noise, path.plan(), **found.target)
        ddim.append(found.miss(end))
        noised = PROCESS.add_noise(found.x, noise(tuple(found.x.shape), seed, dtype=found.x.dtype), 0.5)
        sdedit.append(
            found.miss(sample(found.denoiser, noised, solver="ddim", grid=Uniform(STEPS, start=0.5), **found.target))
        )
    mean = {name: sum(v) / TASKS for name, v in {"own": own, "ddim": ddim, "sdedit": sdedit}.items()}
    return Outcome(
        measured={"distance to the ideal edit": mean["own"], "distance under equal conditions": max(same)},
        baseline={"distance, DDIM inversion": mean["ddim"], "distance, SDEdit": mean["sdedit"]},
        criteria=[
            Criterion("distance under equal conditions", max(same), "<=", 1e-20),
            Criterion("distance over DDIM inversion", mean["own"] / mean["ddim"], "<=", 0.8),
            Criterion("distance over SDEdit", mean["own"] / mean["sdedit"], "<=", 0.35),
        ],
    )
