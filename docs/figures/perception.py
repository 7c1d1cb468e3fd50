"""Draws docs/perception.png: a classifier by denoising errors against Bayes, and probes by module and noise level.

python docs/figures/perception.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

import fokker as fk
from fokker.checks.diffusion_features_classification import NAMES, five_a_class
from fokker.data import toy
from fokker.laws import lowrank
from fokker.perceive import DiffusionClassifier, sweep

law = lowrank(16, 10, 4, seed=0, std=0.6, within=0.7)
x, _ = law.sample_labelled(150, seed=0)
bayes = torch.stack([law.log_prob(x, label=k) for k in range(10)], 1).argmax(1)
denoiser, candidates = law.denoiser(fk.VP()), {"label": torch.arange(10)}
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), width_ratios=(1, 1.1))
kinds = {
    "shared noise": ({}, "tab:blue"),
    "shared noise, staged": ({"staged": True}, "tab:green"),
    "own noise": ({"paired": False}, "tab:gray"),
}
for name, (options, colour) in kinds.items():
    points = []
    for samples in (8, 16, 32, 64, 128):
        stages = ((4, samples // 8), (2, samples // 4)) if options.get("staged") else ()
        scores = DiffusionClassifier(denoiser, candidates, samples, paired=options.get("paired", True), stages=stages)(
            x
        )
        points.append((scores.nfe, float((scores.label == bayes).double().mean())))
    left.plot(*zip(*points), "o-", color=colour, ms=4, label=name)
left.set(xscale="log", xlabel="evaluations a sample (10 classes)", ylabel="agreement with Bayes", ylim=(0.3, 1.01))
left.legend(frameon=False, fontsize=8, loc="lower right")
left.spines[["top", "right"]].set_visible(False)

model = fk.load("digits")
train, test = toy("digits").batch(range(1400)), toy("digits", split="test").batch(range(397))
rows = five_a_class(train["label"], 0)
levels = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
times = [float(model.process.time(-2 * torch.log(torch.tensor(s, dtype=torch.float64)))) for s in levels]
parts = [(test["x"][a:b], test["label"][a:b]) for a, b in ((0, 198), (198, 397))]
found = sweep(model.denoiser, NAMES, times, (train["x"][rows], train["label"][rows]), *parts, draws=2, label=-1)
image = right.imshow(found.test, cmap="viridis", vmin=0.2, vmax=1.0, aspect="auto")
for i, line in enumerate(found.test.tolist()):
    for j, value in enumerate(line):
        right.text(
            j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if value < 0.75 else "black"
        )
right.set_xticks(range(len(levels)), [f"{s:g}" for s in levels])
right.set_yticks(range(len(NAMES)), NAMES)
right.set(xlabel="noise level sigma", title="accuracy of linear probes, 5 labels a class")
right.title.set_fontsize(10)
figure.tight_layout()
figure.savefig(Path(__file__).parent.parent / "perception.png", dpi=110)
