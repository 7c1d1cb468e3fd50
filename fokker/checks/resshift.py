"""ResShift (Yue et al. 2024, arXiv 2403.07319): a short chain from the degraded picture, not from noise, to the clean one.

Theory: with the anchor subtracted it is a plain process, whose step for a given belief is the published one. With the exact
denoiser, which knows the measurement, nothing else is left of the anchor: what few steps can gain on DDPM and DDIM from noise
with the same denoiser is the schedule's doing. Those have the better of two grids, uniform in time as published and uniform in
log-SNR. A smaller kappa is claimed to trade realism for fidelity.

Null: the run starts at the observation without noise. (With eta in place of its root on the geometric schedule, the first
null, the bounds were met at one of three seeds: on these laws that schedule is no worse.)
"""

import torch

from fokker.anchored import ResidualShift
from fokker.checks import Criterion, Outcome
from fokker.checks._restored import MEASUREMENTS, Scene
from fokker.grids import LogSNR, Times, Uniform
from fokker.keyed import noise
from fokker.plan import Plan, Row
from fokker.process import VP
from fokker.solve.onestep import DDIM
from fokker.solve.shifting import ResidualAncestral

EXPECT = (
    "the step is the published posterior to 1e-10; at 4 steps energy distance <= 0.7 x DDPM's and DDIM's from noise, at 15 "
    "<= 0.8 x DDPM's; PSNR of kappa 0.5 above that of kappa 2 at 4 steps"
)


def chain(process: ResidualShift, steps: int) -> Plan:
    """The published chain: times k / (T - 1), and a last step to the data."""
    times = torch.arange(steps - 1, -1, -1, dtype=torch.float64) / (steps - 1)
    times[-1] = 1e-9  # the chain's first level is that of t = 0, which in a grid means the data
    return ResidualAncestral().plan(process, Times([*times.tolist(), 0.0]))


def published(seed: int) -> float:
    """The largest difference of one step between the formula with the anchor in it and ours without."""
    process, t, s = ResidualShift(), 0.8, 0.3
    x, D, y = (noise((64, 16), seed, stream="check", index=k, dtype=torch.float64) for k in (1, 2, 3))
    before, after = (process.beta(v) for v in (t, s))
    mean = after / before * x + (1 - after / before) * D
    plan = ResidualAncestral().plan(process, Times([t, s]))
    (row,) = (dict(row.terms) for row in plan.rows[1:] if isinstance(row, Row))
    ours = row["x", 0] * (x - before * y) + row["D", 0] * D + after * y
    spread = float(2 * torch.sqrt(after * (before - after) / before)) - float(row["z", 0])
    # the paper's mean is that of x_0 + eta (y - x_0): the belief moves, y stays
    return max(float((ours - mean).abs().max()), abs(spread))


def check(seed: int, null: bool = False) -> Outcome:
    scene, vp = Scene(seed), VP()
    shift, loud = ResidualShift(), 0.0 if null else 1.0
    ours = {n: scene.energy(shift, chain(shift, n), loud) for n in (4, 15)}

    def best(eta: float, steps: int) -> float:
        return min(scene.energy(vp, DDIM(eta=eta).plan(vp, grid(steps, end=0))) for grid in (Uniform, LogSNR))

    ddpm, ddim = {n: best(1.0, n) for n in (4, 15)}, best(0.0, 4)

    def psnr(kappa: float) -> float:
        process = ResidualShift(kappa=kappa)
        plan = chain(process, 4)
        errors = [(scene.draws(process, plan, k, 64, loud) - scene.clean[k]).square().mean() for k in range(MEASUREMENTS)]
        return float(-10 * torch.log10(torch.stack(errors)).mean())

    faithful, real = psnr(0.5), psnr(2.0)
    return Outcome(
        measured={"energy at 4": ours[4], "energy at 15": ours[15], "PSNR, kappa 0.5": faithful, "PSNR, kappa 2": real},
        baseline={"DDPM at 4": ddpm[4], "DDPM at 15": ddpm[15], "DDIM at 4": ddim},
        criteria=[
            Criterion("step against the published one", published(seed), "<=", 1e-10),
            Criterion("over DDPM at 4", ours[4] / ddpm[4], "<=", 0.7),
            Criterion("over DDIM at 4", ours[4] / ddim, "<=", 0.7),
            Criterion("over DDPM at 15", ours[15] / ddpm[15], "<=", 0.8),
            Criterion("PSNR of kappa 0.5 over that of 2", faithful - real, ">", 0.0),
        ],
    )
