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
from fokker.restore import Wrapper
from fokker.restore.proximal import DDS
from fokker.restore.tomography import ParallelBeam
from fokker.restore.volume import DiffusionMBIR, SliceVariation

EXPECT = (
    "PSNR of volumes from two views at 50 evaluations a slice >= that of the slice prior without variation + 2 dB and >= that "
    "of the variation alone + 4 dB"
)
N, SIDE, NOISE, STEPS = 16, 20, 0.01, 50
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


def check(seed: int, null: bool = False) -> Outcome:
    prior, A = Charted(slices().denoiser(PROCESS), Slices()), ParallelBeam(2, (1, SIDE, SIDE))
    x = volumes(N, seed, "test")
    y = A.measure(x, NOISE, seed)

    def run(wrapper: Wrapper) -> fk.Trace:
        return restored(wrapper, x.shape, "renoise", STEPS, seed, eta=0.85)

    ours = run((Forgetful if null else DiffusionMBIR)(prior, A, y, NOISE))
    plain = [psnr(run(DDS(prior, A, y, gamma=float("inf"), iterations=k)).x0, x) for k in (1, 2, 5)]
    alone = [psnr(SliceVariation(A, y, *s, iterations=5).solve(torch.full_like(x, -1.0)), x) for s in SETTINGS]
    found = psnr(ours.x0, x)
    return Outcome(
        measured={"PSNR": found, "evaluations of a slice": ours.nfe / SIDE},
        baseline={"PSNR of the slice prior": max(plain), "PSNR of the variation": max(alone)},
        criteria=[
            Criterion("dB over the slice prior", found - max(plain), ">=", 2.0),
            Criterion("dB over the variation", found - max(alone), ">=", 4.0),
            Criterion("evaluations of a slice", ours.nfe / SIDE, "<=", 50),
        ],
    )
