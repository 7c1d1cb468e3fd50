"""Direct inversion: the source branch of an edit is put back on its inversion at every step.

Theory: guidance leads both branches away from the inverted trajectory, so what the source branch lends is no longer the
sample's. Put back at every step its error is 0, whatever the guidance; the target branch is free and keeps what the true
sample has. On modes u_a + v_b the responsibilities play the attention map, lent for the first 80 per cent of 50 steps at
guidance 7.5; judged by the mean squared distance to the ideal edit. An unrectified pair of branches is the baseline.

Null: no rectification.
"""

import time

from fokker.checks import Criterion, Outcome
from fokker.checks._edits import WEAK, Lending, Task, task
from fokker.denoiser import Denoiser
from fokker.edit import Edited, edit
from fokker.grids import Uniform

EXPECT = "source-branch error exactly 0; squared distance to the ideal edit <= 0.4 x the unrectified edit's; <= 1.3 x its time"
STEPS, SCALE = 50, 7.5


def control(denoiser: Denoiser) -> Denoiser:
    return Lending(denoiser, 0.8 * STEPS)  # type: ignore[arg-type]


def edited(found: Task, ways: tuple[str, ...]) -> list[tuple[Edited, float]]:
    """(the edit, its least seconds of seven) for each rectification, which take turns."""
    best: dict[int, tuple[Edited, float]] = {}
    for _ in range(7):
        for k, rectify in enumerate(ways):
            begin = time.perf_counter()
            out = edit(
                found.denoiser, found.x, found.source, found.target,
                rectify=rectify, scale=SCALE, grid=Uniform(STEPS), control=control,
            )  # fmt: skip
            best[k] = (out, min(time.perf_counter() - begin, best[k][1] if k in best else float("inf")))
    return [best[k] for k in range(len(ways))]


def check(seed: int, null: bool = False) -> Outcome:
    found = task(seed, WEAK)
    (plain, plain_seconds), (direct, seconds) = edited(found, ("none", "none" if null else "direct"))
    return Outcome(
        measured={
            "distance to the ideal edit": found.miss(direct.x),
            "error of the source branch": found.error(direct.source),
            "seconds": seconds,
        },
        baseline={
            "distance, unrectified": found.miss(plain.x),
            "error of the source branch, unrectified": found.error(plain.source),
            "seconds, unrectified": plain_seconds,
            "distance of doing nothing": found.miss(found.x),
        },
        criteria=[
            Criterion("error of the source branch", found.error(direct.source), "<=", 1e-28),
            Criterion("distance over unrectified", found.miss(direct.x) / found.miss(plain.x), "<=", 0.4),
            Criterion("time over unrectified", seconds / plain_seconds, "<=", 1.3),
        ],
    )
