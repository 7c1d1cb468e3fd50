"""Gaussian teleport: the early part of the probability flow in closed form, on the exact law of digits.

Theory: at noise levels above the distance of the modes a mixture's flow is that of the Gaussian with its mean and
covariance, which is solved: a jump to sigma = 3 costs nothing, and all calls go where the modes part. Below that the jump is
wrong, and must be: that it deviates at sigma = 0.5 is part of the expectation. For one Gaussian the closed form is exact. In
variance-preserving coordinates a path lies near the plane of its two ends.

Deviations are RMS over RMS of the state; errors are means of the distance to the exact end point from the same noise. The true
flow is `Law.flow`, integrated to 1e-10. Beside the published baseline stand, as numbers only, what needs no moments (noise of
sigma 3 alone) and a multistep solver from sigma 80.

Null: the eigenvalues of the covariance in reverse order.
"""

import functools

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome
from fokker.data import open as open_data
from fokker.laws import GaussianMixture
from fokker.laws.algebra import gaussian
from fokker.solve.teleport import GaussianTeleport

EXPECT = (
    "one Gaussian: within 2e-3 of a numerical solution; ten classes: deviation <= 0.03 at sigma 2, > 0.2 at 0.5; Heun with 9 "
    "calls from sigma 3: error <= 0.35 x that of 9 calls from sigma 80; two directions hold >= 0.99 of the variance of a path"
)
PROCESS = fk.EDM()
SAMPLES, STEPS, SIGMA = 256, 5, 3.0


@functools.cache
def digits() -> GaussianMixture:
    """Ten components, one a class."""
    data = open_data("toy:digits", split="train").batch(range(1400))
    return GaussianMixture.fit(data["x"].flatten(1), 1, 16, data["label"])


def plane(path: Tensor) -> float:
    """The mean share of the variance of paths (times, n, dim) that two directions of each hold."""
    centred = path - path.mean(0)
    shares = torch.linalg.svdvals(centred.permute(1, 0, 2)).square()
    return float((shares[:, :2].sum(1) / shares.sum(1)).mean())


def check(seed: int, null: bool = False) -> Outcome:
    law, one = digits(), gaussian(digits())
    if null:
        moments = GaussianMixture.build(
            one.log_weights, one.means, (one.basis, one.eigenvalues.flip(1), one.variance), None, one.shape
        )
    else:
        moments = one
    jump = GaussianTeleport(moments, PROCESS, SIGMA / PROCESS.sigma_max)
    x1 = PROCESS.start(fk.noise((SAMPLES, law.dim), seed, dtype=torch.float64))

    few = x1[:32]
    single = float((jump.carry(few, 1.0, PROCESS.end) - one.flow(PROCESS, few, 1.0, PROCESS.end)).norm(dim=1).amax())

    path = [x1]
    levels = (20.0, 10.0, 5.0, 3.0, 2.0, 1.0, 0.5, 0.2, 0.05, 0.0)
    for sigma, before in zip(levels, (PROCESS.sigma_max, *levels), strict=False):
        t, s = before / PROCESS.sigma_max, sigma / PROCESS.sigma_max
        path.append(law.flow(PROCESS, path[-1], t, s, tol=1e-10))
    states = dict(zip(levels, path[1:], strict=True))
    off = {
        sigma: float((jump.carry(x1, 1.0, sigma / PROCESS.sigma_max) - states[sigma]).norm() / states[sigma].norm())
        for sigma in (3.0, 2.0, 1.0, 0.5)
    }
    scales = torch.tensor([PROCESS.sigma_max, *levels], dtype=torch.float64).square().add(1).sqrt()
    held = plane(torch.stack(path) / scales[:, None, None])

    def error(x: Tensor, steps: int, start: float, solver: str = "heun") -> float:
        end = fk.sample(law.denoiser(PROCESS), x, solver=solver, grid="karras", steps=steps, start=start, end=0)
        return float((end - states[0.0]).norm(dim=1).mean())

    ours, plain = error(jump(x1), STEPS, jump.t), error(x1, STEPS, 1.0)
    return Outcome(
        measured={
            "one Gaussian, largest distance to a numerical solution": single,
            **{f"deviation at sigma {sigma:g}": value for sigma, value in off.items()},
            "error of 9 calls from sigma 3": ours,
            "error of 11 calls from sigma 3": error(jump(x1), STEPS + 1, jump.t),
            "variance of a path in two directions": held,
        },
        baseline={
            "error of 9 calls from sigma 80": plain,
            "error of 11 calls from sigma 80": error(x1, STEPS + 1, 1.0),
            "error of 9 calls from plain noise at sigma 3": error(jump.t * x1, STEPS, jump.t),
            "error of 9 calls of dpmpp-2m from sigma 80": error(x1, 9, 1.0, "dpmpp-2m"),
            "error of 9 calls of dpmpp-2m from sigma 3": error(jump(x1), 9, jump.t, "dpmpp-2m"),
            "norm of a sample": float(states[0.0].norm(dim=1).mean()),
        },
        criteria=[
            Criterion("one Gaussian, distance to a numerical solution", single, "<=", 2e-3),
            Criterion("deviation at sigma 2 and above", max(off[3.0], off[2.0]), "<=", 0.03),
            Criterion("deviation at sigma 0.5", off[0.5], ">", 0.2),
            Criterion("error over that from sigma 80", ours / plain, "<=", 0.35),
            Criterion("variance of a path in two directions", held, ">=", 0.99),
        ],
    )
