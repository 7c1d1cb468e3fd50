"""DDS (Chung, Lee, Ye 2024, arXiv 2303.05754): conjugate gradients from the belief, no gradient through the network.

Held-out digits from 20 of 64 DCT coefficients, condition number 10, noise 0.02; the prior is a mixture fitted to the training
digits, so the denoiser is exact. DDS at 20 evaluations against DPS at 20 and at 100 (step 1) and against a single iteration;
without noise as many iterations as the operator has rows are the projection on the data. Times are processor times, the best
of three. The null leaves the belief as it is: no iteration reaches it.
"""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome
from fokker.checks._inverse import PROCESS, held_out, prior, psnr, restored
from fokker.keyed import uniform
from fokker.process import Time
from fokker.restore.dps import DPS
from fokker.restore.operators import Matrix
from fokker.restore.posterior import DDNM
from fokker.restore.proximal import DDS

EXPECT = (
    "PSNR at 20 evaluations >= DPS at 20 + 1.5 dB, >= DPS at 100 - 1.5 dB in <= 1/4 of its time, >= one iteration + 1 dB; "
    "without noise the projection on the data to 1e-6"
)
N, ROWS, NOISE, STEPS = 100, 20, 0.02, 20


class Off(DDS):
    """No data step."""

    def meet(self, belief: Tensor, t: Time) -> Tensor:
        return belief


def cosines(seed: int) -> Matrix:
    """20 rows of the two-dimensional DCT of 8 x 8 pixels, at random, scaled from 1 down to 1/10."""
    k = torch.arange(8, dtype=torch.float64)
    one = torch.cos(math.pi * (2 * k + 1) * k[:, None] / 16) / 2
    one[0] /= math.sqrt(2)
    rows = uniform((64, 1), seed, stream="check", index=3)[:, 0].argsort()[:ROWS]
    return Matrix(torch.kron(one, one)[rows] * torch.logspace(0, -1, ROWS, dtype=torch.float64)[:, None], (1, 8, 8))


def timed(run: Callable[[], fk.Trace]) -> tuple[fk.Trace, float]:
    """A run and its processor time, the best of three."""
    found, seconds = run(), math.inf
    for _ in range(3):
        begin = time.process_time()
        run()
        seconds = min(seconds, time.process_time() - begin)
    return found, seconds


def check(seed: int, null: bool = False) -> Outcome:
    denoiser, A, x = prior().denoiser(PROCESS), cosines(seed), held_out(N, seed)
    y = A.measure(x, NOISE, seed)
    method = Off if null else DDS
    ours, ours_s = timed(lambda: restored(method(denoiser, A, y, NOISE), x.shape, "renoise", STEPS, seed, eta=0.85))
    single = restored(method(denoiser, A, y, NOISE, iterations=1), x.shape, "renoise", STEPS, seed, eta=0.85)
    far, far_s = timed(lambda: restored(DPS(denoiser, A, y), x.shape, "ddpm", 100, seed))
    near = restored(DPS(denoiser, A, y), x.shape, "ddpm", STEPS, seed)
    ddnm = restored(DDNM(denoiser, A, y), x.shape, "ddim", STEPS, seed, eta=0.85)
    clean = A(x)
    t, x_t = 0.4, PROCESS.add_noise(x, fk.noise(x.shape, seed, dtype=torch.float64), 0.4)
    gap = float((method(denoiser, A, clean, iterations=64)(x_t, t) - A.consistent(denoiser(x_t, t), clean)).abs().max())
    dds, dps100, dps20, one = (psnr(run.x0, x) for run in (ours, far, near, single))
    return Outcome(
        measured={"PSNR": dds, "seconds": ours_s, "from the projection": gap, "evaluations": ours.nfe},
        baseline={
            "PSNR of DPS at 20": dps20,
            "PSNR of DPS at 100": dps100,
            "seconds of DPS at 100": far_s,
            "PSNR of one iteration": one,
            "PSNR of DDNM": psnr(ddnm.x0, x),
        },
        criteria=[
            Criterion("dB over DPS at 20", dds - dps20, ">=", 1.5),
            Criterion("dB over DPS at 100", dds - dps100, ">=", -1.5),
            Criterion("time over DPS at 100", ours_s / far_s, "<=", 0.25),
            Criterion("dB over one iteration", dds - one, ">=", 1.0),
            Criterion("from the projection", gap, "<=", 1e-6),
        ],
    )
