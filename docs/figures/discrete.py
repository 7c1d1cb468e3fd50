"""Draws docs/discrete.png: samplers of tokens against the exact joint of a chain, and what float32 Gumbels lose.

python docs/figures/discrete.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

import fokker as fk
from fokker.checks._tokens import english
from fokker.checks.first_hitting_sampler import on_the_lattice, uncovered
from fokker.discrete import Ancestral, FirstHitting, TokenProcess, token_entropy
from fokker.discrete.energy import EnergyCorrected, Residual
from fokker.measure import TotalVariation

LENGTH, SAMPLES = 6, 4000
law, process = english(LENGTH), TokenProcess(4)
belief, joint = law.denoiser(process), law.joint()
start = process.start(process.sample_noise((SAMPLES, LENGTH)))


def variation(denoiser: fk.Denoiser, plan: fk.Plan) -> tuple[float, float]:
    trace = fk.run(denoiser, start, plan, seed=1)
    return trace.nfe, TotalVariation()(trace.x0, joint).value


figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
steps = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
plans = [Ancestral().plan(process, fk.grids.Uniform(k)) for k in steps]
left.plot(*zip(*[variation(belief, p) for p in plans]), "o-", color="tab:gray", ms=4, label="ancestral")
hits = [FirstHitting(k).plan(process, LENGTH) for k in (6, 3, 2, 1)]
left.plot(
    *zip(*[variation(belief, p) for p in hits]),
    "s-",
    color="tab:blue",
    ms=5,
    label="first hitting, 6 to 1 tokens a call",
)
corrected = EnergyCorrected(belief, Residual(law.log_prob), 16)
left.plot(
    *zip(*[variation(corrected, p) for p in plans[:5]]),
    "^-",
    color="tab:green",
    ms=5,
    label="ancestral + energy, 16 candidates",
)
left.axhline(
    TotalVariation()(law.sample(SAMPLES, 1), joint).value, color="k", lw=0.8, ls=":", label="exact draws (floor)"
)
left.set(xscale="log", xlabel="calls of the denoiser", ylabel="total variation to the joint", ylim=(0, 0.65))
left.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
left.minorticks_off()
left.legend(frameon=False, fontsize=8)

p = torch.softmax(1.5 * fk.noise((1, 50), 0, stream="check", index=1, dtype=torch.float64)[0], 0)
chances = 10.0 ** -torch.arange(0.5, 7.1, 0.5, dtype=torch.float64)
right.axhline(float(token_entropy(p)), color="k", lw=0.8, ls=":", label="what was meant")
for bits, colour, name in (
    (24, "tab:red", "24 bits (float32), predicted"),
    (53, "tab:blue", "53 bits (float64), predicted"),
):
    right.plot(chances, [uncovered(p, float(c), bits) for c in chances], color=colour, label=name)
rare = chances[chances < 2e-4]
right.plot(
    rare,
    [on_the_lattice(p, float(c), top=int(40 * float(c) * 2**24) + 256) for c in rare],
    "x",
    color="tab:red",
    ms=5,
    label="float32 numbers, summed",
)
right.set(xscale="log", xlabel="chance of uncovering in a step", ylabel="entropy of the token (nats)")
right.invert_xaxis()
right.legend(frameon=False, fontsize=8, loc="lower left")
for axis in (left, right):
    axis.spines[["top", "right"]].set_visible(False)
figure.tight_layout()
figure.savefig(Path(__file__).parent.parent / "discrete.png", dpi=110)
