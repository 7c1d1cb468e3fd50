"""Draws docs/foundations.png: a likelihood, a bridge, robustness to noise, and one denoiser for every law of two parts.

python docs/figures/foundations.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

import fokker as fk
from fokker.checks import pfgm_pp
from fokker.checks.stochastic_interpolants import ends
from fokker.checks.unidiffuser import PARTS, PROCESS, SCALES, Replacement
from fokker.checks.unidiffuser import law as pairs_law
from fokker.interpolants import Bridge, ExactField, couple
from fokker.keyed import noise
from fokker.multimodal import LawJoint

torch.set_num_threads(1)
F64 = torch.float64
BLUE, ORANGE, GREY = "tab:blue", "tab:orange", "0.6"
figure, axes = plt.subplots(1, 4, figsize=(13.5, 3.5))

ring, side = fk.laws.ring(), torch.linspace(-2, 2, 70, dtype=F64)
grid = torch.cartesian_prod(side, side)
density = fk.log_prob(ring.denoiser(fk.VP()), grid, start=1e-4, rtol=1e-4, atol=1e-4).reshape(70, 70)
axes[0].imshow(density.T.exp(), origin="lower", extent=(-2, 2, -2, 2), cmap="magma")
error = float((density.flatten() - ring.log_prob(grid)).abs()[ring.log_prob(grid) > -8].mean())
axes[0].set_title(f"log p by the flow: mean error {error:.0e} nats", fontsize=9)

laws = ends(0)
field, start = ExactField(couple(*laws)), laws[0].sample(300, seed=1)
for law, colour in zip(laws, (GREY, GREY), strict=True):
    axes[1].scatter(*law.sample(1500, seed=2).T, s=1, color=colour, alpha=0.5, linewidths=0)
for eps, colour in ((1.0, ORANGE), (0.0, BLUE)):
    path = Bridge(150, eps)(field, start[:14], path=True)
    for k in range(4 if eps else 14):
        axes[1].plot(*path[:, k].T, color=colour, lw=0.6 if eps else 1, label=f"eps {eps:g}" if not k else None)
axes[1].legend(frameon=False, fontsize=8, loc="upper center", ncols=2)
axes[1].set_title("one bridge, with and without noise", fontsize=9)

heavy, normal = pfgm_pp.trained(pfgm_pp.HEAVY, 0), pfgm_pp.trained(fk.EDM(), 0)
amounts = (0.0, 0.1, 0.2, 0.3, 0.4)
for denoiser, colour, name in ((normal, GREY, "D infinite (EDM)"), (heavy, BLUE, "D = 16 (PFGM++)")):
    axes[2].plot(amounts, [pfgm_pp.distance(denoiser, a, 0) for a in amounts], "o-", ms=4, color=colour, label=name)
axes[2].axhline(pfgm_pp.floor(), color="0.85", lw=1, zorder=0)
axes[2].set(xlabel="noise added before every step / sigma", ylabel="energy distance to digits")
axes[2].legend(frameon=False, fontsize=8)
axes[2].set_title("errors in a run are forgiven", fontsize=9)

truth = pairs_law(0)
joint, y = LawJoint(truth, PARTS, PROCESS), truth.sample(400, seed=5)[:, 2:]
x1 = PROCESS.start(noise((400, 4), 3, dtype=F64))
known = torch.cat([fk.sample(joint.conditional("x", y=y), x1[:, :2], solver="heun", steps=40), y], 1)
faked = fk.sample(Replacement(joint.joint(), y), x1, solver="heun", steps=40)
shown = [(faked, ORANGE, "replacement"), (known, BLUE, "y known at time 0")]
for samples, colour, name in shown:
    first, second = (samples / SCALES)[:, [0, 2]].T
    axes[3].scatter(first, second, s=5, color=colour, label=name, linewidths=0)
axes[3].set(xlabel="x", ylabel="y")
axes[3].legend(frameon=False, fontsize=8, markerscale=2, loc="center left", bbox_to_anchor=(0, 0.66))
axes[3].set_title("x given y from one denoiser", fontsize=9)

for k, axis in enumerate(axes):
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    if k < 2:
        axis.set(xticks=[], yticks=[], aspect="equal" if k == 0 else "auto")
figure.tight_layout()
figure.savefig(Path(__file__).parent.parent / "foundations.png", dpi=75)
