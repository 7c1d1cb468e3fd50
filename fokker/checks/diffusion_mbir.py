"""DiffusionMBIR (Chung et al. 2023, arXiv 2211.10655): a prior of slices and variation between them, on volumes from two views.

Held-out ellipsoids of any pose in 20 x 20 x 20 voxels, every slice projected at 0 and 90 degrees with noise 0.01; the prior is
a mixture of 8 components fitted to 4,000 slices of other ellipsoids, so that the denoiser is exact and knows no depth. 50
evaluations of every slice. Beside it, on the same noise: the same prior with conjugate gradients and no variation (DDS, the
best of 1, 2 and 5 iterations), and the variation without a prior (200 rounds from the background, the best of four settings).
The null forgets d and u at every noise level, which turns each round into a smoothing that the next belief undoes.

Developed on seeds 10 to 12, where the weights were chosen.
"""

import functools

import torch
from torch import Tensor

import fokker as fk
from fokker.charts import Charted, Slices
from fokker.checks import Criterion, Outcome
from fokker.checks._inverse import PROCESS, psnr, restored
from fokker.data import toy
from fokker.laws import GaussianMixture
from fokker.restore import Denoiser, Operator, Wrapper
from fokker.restore.proximal import DDS
from fokker.restore.tomography import ParallelBeam
from fokker.restore.volume import DiffusionMBIR, SliceVariation

EXPECT = (
    "PSNR of volumes from two views at 50 evaluations a slice >= that of the slice prior without variation + 2 dB and >= that "
    "of the variation alone + 4 dB"
)
N, SIDE, NOISE, STEPS = 10, 20, 0.01, 50
SETTINGS = ((0.001, 0.1), (0.01, 0.1), (0.02, 0.1), (0.1, 1.0))  # lam and rho of the variation alone


class Forgetful(DiffusionMBIR):
    """d = u = 0 at every noise level."""

    def meet(self, x: Tensor) -> Tensor:
        self.memory = None
        return super().meet(x)


def volumes(n: int, seed: int, split: str) -> Tensor:
    """n ellipsoids (n, 1, depth, height, width) in [-1, 1]."""
    return toy("volume", n=n, seed=seed, split=split, kind="ellipsoid", size=(SIDE,) * 3).all()["x"].double()


@functools.cache
def slices() -> GaussianMixture:
    """The law of single slices (1, height, width)."""
    known = volumes(200, 0, "train")
    return GaussianMixture.fit(Slices().gather(known), components=8, rank=48, iterations=20)


@functools.cache
def measured(seed: int) -> tuple[Denoiser, Operator, Tensor, Tensor]:
    """The prior of volumes, the scanner, the truth (n, 1, depth, height, width) and its measurement."""
    A, x = ParallelBeam(2, (1, SIDE, SIDE)), volumes(N, seed, "test")
    return Charted(slices().denoiser(PROCESS), Slices()), A, x, A.measure(x, NOISE, seed)


def run(wrapper: Wrapper, seed: int) -> fk.Trace:
    return restored(wrapper, (N, 1, SIDE, SIDE, SIDE), "renoise", STEPS, seed, eta=0.85)


@functools.cache
def beside(seed: int) -> tuple[float, float]:
    """The best PSNR of the slice prior without variation, and of the variation without a prior."""
    prior, A, x, y = measured(seed)
    plain = [psnr(run(DDS(prior, A, y, gamma=float("inf"), iterations=k), seed).x0, x) for k in (1, 2, 5)]
    background = torch.full_like(x, -1.0)
    alone = [psnr(SliceVariation(A, y, *s).solve(background), x) for s in SETTINGS]
    return max(plain), max(alone)


def check(seed: int, null: bool = False) -> Outcome:
    prior, A, x, y = measured(seed)
    ours, (plain, alone) = run((Forgetful if null else DiffusionMBIR)(prior, A, y, NOISE), seed), beside(seed)
    found = psnr(ours.x0, x)
    return Outcome(
        measured={"PSNR": found, "evaluations of a slice": ours.nfe / SIDE},
        baseline={"PSNR of the slice prior": plain, "PSNR of the variation": alone},
        criteria=[
            Criterion("dB over the slice prior", found - plain, ">=", 2.0),
            Criterion("dB over the variation", found - alone, ">=", 4.0),
            Criterion("evaluations of a slice", ours.nfe / SIDE, "<=", 50),
        ],
    )
