"""Draws docs/distillation.png: the error of students and of their teacher by steps, and their samples in one step.

python docs/figures/distillation.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

import fokker as fk
from fokker.checks.guided_distillation import SCALE, law, students

n, found = 2000, students(0)
label, noise = torch.arange(n) % 4, fk.noise((n, 2), seed=1000)
teacher = fk.guide.CFG(law().denoiser(fk.Cosine()), SCALE)
start, told = teacher.process.start(noise), {"guidance": torch.full((n,), SCALE)}


def end(denoiser: fk.Denoiser, steps: int, **cond: torch.Tensor) -> torch.Tensor:
    return fk.sample(denoiser, start, solver="ddim", grid="uniform", steps=steps, label=label, **cond)


truth = end(teacher, 64)
figure, axes = plt.subplots(1, 4, figsize=(12, 3.2), width_ratios=(1.35, 1, 1, 1), layout="constrained")
steps = (1, 2, 4, 8)
for name, ends, colour in (
    ("guided teacher (2 evaluations a step)", [end(teacher, k) for k in steps], "tab:gray"),
    ("student of the first stage", [end(found[32], k, **told) for k in steps], "tab:orange"),
    ("student, progressive", [end(found[k], k, **told) for k in steps], "tab:blue"),
):
    errors = [float((x - truth).square().mean().sqrt()) for x in ends]
    axes[0].plot(steps, errors, "o-", color=colour, ms=4, label=name)
axes[0].set(xscale="log", yscale="log", xlabel="steps", ylabel="error to 64 guided steps", xticks=steps, xticklabels=steps)
axes[0].minorticks_off()
axes[0].legend(frameon=False, fontsize=7)
shown = {"teacher, 64 steps": truth, "teacher, 1 step": end(teacher, 1), "student, 1 step": end(found[1], 1, **told)}
for axis, (name, x) in zip(axes[1:], shown.items()):
    axis.scatter(*x[:1000].T, s=2, c=label[:1000], cmap="tab10", vmax=9)
    axis.set_title(name, fontsize=9)
    axis.set(xlim=(-2.3, 2.3), ylim=(-2.3, 2.3), xticks=[], yticks=[], aspect="equal")
figure.savefig(Path(__file__).parents[1] / "distillation.png", dpi=90, bbox_inches="tight", pad_inches=0.1)
