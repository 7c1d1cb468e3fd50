"""DPM-OT: a semi-discrete optimal-transport jump from white noise to noised training data, then five steps.

Theory: the jump lands inside a mode, so that few steps do not leave samples between modes, where DDIM from white noise with
the same calls does; the map gives each target the same share of the noise, and in one dimension it is the quantile map. The
honest control: with a deterministic rest there are at most as many outputs as targets, and noise placed at the time of the
jump (a true noised sample) does as well.

Null: the energy climbed instead of descended (heights of the wrong sign).
"""

import math
from typing import Any

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome
from fokker.keyed import noise
from fokker.laws import GaussianMixture
from fokker.measure import TotalVariation
from fokker.solve.transport import OTStart, SemiDiscreteOT

EXPECT = (
    "samples beyond 2.5 radii of every mean <= 0.02, DDIM with the same 5 calls >= 0.3; total variation of the cell masses "
    "<= 0.08; mean rank error in one dimension <= 0.1; distinct outputs <= 512, reported"
)
PROCESS = fk.VP()
DIM, STD, TARGETS, T = 8, 0.1, 512, 0.25


def check(seed: int, null: bool = False) -> Outcome:
    means = noise((10, DIM), seed, stream="check", dtype=torch.float64)
    law = GaussianMixture(torch.ones(10), means, STD**2)
    denoiser, data = law.denoiser(PROCESS), law.sample(TARGETS, seed)
    start = OTStart(data, PROCESS, T, seed, updates=120)
    if null:
        object.__setattr__(start, "map", SemiDiscreteOT(start.map.points, -start.map.heights))
    z = fk.noise((2000, DIM), seed, dtype=torch.float64)

    def between(x: Tensor) -> float:
        nearest = torch.cdist(x, means).amin(1)
        return float((nearest > 2.5 * STD * math.sqrt(DIM)).double().mean())

    options: dict[str, Any] = {"steps": 5, "grid": "uniform"}
    ours = fk.sample(denoiser, start(z), solver="ddim", start=T, **options)
    placed = fk.sample(denoiser, PROCESS.start(z, t=T), solver="ddim", start=T, **options)
    ddim = between(fk.sample(denoiser, z, solver="ddim", **options))
    multistep = between(fk.sample(denoiser, z, solver="dpmpp-2m", **options))

    many = noise((200 * TARGETS, DIM), seed, stream="check", index=7, dtype=torch.float64)
    masses = TotalVariation()(start.map.cell(many), torch.full((TARGETS,), 1 / TARGETS, dtype=torch.float64))
    line = noise((64, 1), seed, stream="check", index=3, dtype=torch.float64)
    flat = SemiDiscreteOT.fit(line, seed, batch=1024, updates=300)
    p = noise((4000, 1), seed, stream="check", index=4, dtype=torch.float64)
    rank = line[:, 0].argsort().argsort()[SemiDiscreteOT(line, -flat.heights if null else flat.heights).cell(p)]
    quantile = 0.5 * (1 + torch.erf(p[:, 0] / math.sqrt(2)))
    monotone = float(((rank + 0.5) / 64 - quantile).abs().mean())
    distinct = len(torch.unique(start.map.cell(z)))
    return Outcome(
        measured={
            "between modes": between(ours),
            "total variation of the cells": masses.value,
            "rank error in one dimension": monotone,
            "distinct outputs of 2000": distinct,
            "median distance to the nearest training item": float(torch.cdist(ours, data).amin(1).median()),
        },
        baseline={
            "DDIM, between modes": ddim,
            "2M, between modes": multistep,
            "noise at the time of the jump, between modes": between(placed),
            "floor of the total variation": masses.floor or 0.0,
        },
        criteria=[
            Criterion("between modes", between(ours), "<=", 0.02),
            Criterion("DDIM, between modes", ddim, ">=", 0.3),
            Criterion("total variation of the cells", masses.value, "<=", 0.08),
            Criterion("rank error in one dimension", monotone, "<=", 0.1),
            Criterion("distinct outputs", distinct, "<=", TARGETS),
        ],
    )
