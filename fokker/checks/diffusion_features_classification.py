"""Features of an unconditional denoiser, read at one module and one noise level, for classification with few labels.

The paper finds the middle of the network at small noise best. An unconditional network is trained on 1,400 digits without
their labels; linear probes then get five labels a class. Each seed draws the labels three times and takes the mean, since one
draw of fifty digits is worth more or less than another. The cell of the grid (module, time) is chosen on 400 other training
digits and reported on the 397 held-out ones.

Null: the network is not trained.
"""

import functools

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome
from fokker.data import toy
from fokker.data.source import Arrays
from fokker.denoiser import NetworkDenoiser
from fokker.net import build
from fokker.perceive import Probes, sweep
from fokker.perceive.features import probe
from fokker.train import Denoising, Trainer
from fokker.train.rate import Rate

EXPECT = (
    "error of the best cell (5 labels a class) <= 0.75 x that of pixels and <= 0.8 x the best cell of a network without "
    "training; a cell at t <= 0.3 beats every cell at t >= 0.7 by >= 0.15 (VP)"
)
NAMES = ("down.0", "down.1", "mid", "up.1", "up.0")
TIMES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
BATCH, STEPS, STD = 128, 600, 0.75
DRAWS = 3


def network(seed: int) -> NetworkDenoiser:
    """An unconditional digits network with fresh weights."""
    net = build("digits", seed=seed, classes=0, dropout=0.0, width=24)
    return NetworkDenoiser(net, fk.VP(), "edm", STD)


@functools.cache
def trained() -> NetworkDenoiser:
    """One network for all seeds, which draw the labels."""
    denoiser = network(0)
    pixels = Arrays({"x": toy("digits").batch(range(1400))["x"]}, "digits without labels")
    objective = Denoising(mean=-0.8, std=1.2)
    trainer = Trainer(
        denoiser, pixels, objective, BATCH * STEPS, BATCH, Rate(peak=2e-3, warmup=BATCH * 40), cpu=True, quiet=True
    )
    trainer.run()
    denoiser.load_state_dict(trainer.averaged())
    return denoiser.eval()


def five_a_class(label: Tensor, seed: int) -> Tensor:
    """Rows of five items of every class."""
    generator = torch.Generator().manual_seed(seed)
    rows = [(label == k).nonzero()[:, 0] for k in range(10)]
    return torch.cat([r[torch.randperm(len(r), generator=generator)[:5]] for r in rows])


def check(seed: int, null: bool = False) -> Outcome:
    train, test = toy("digits").batch(range(1400)), toy("digits", split="test").batch(range(397))
    reported = test["x"], test["label"]
    ours, fresh, pixel_error = list[Probes](), list[Probes](), 0.0
    for draw in range(DRAWS):
        rows = five_a_class(train["label"], DRAWS * seed + draw)
        others = torch.randperm(1400, generator=torch.Generator().manual_seed(DRAWS * seed + draw))[:400]
        others = others[~torch.isin(others, rows)]
        few = train["x"][rows], train["label"][rows]
        chosen = train["x"][others], train["label"][others]
        for denoiser, kept in ((network(7).eval() if null else trained(), ours), (network(seed + 1).eval(), fresh)):
            kept.append(sweep(denoiser, NAMES, TIMES, few, chosen, reported, pool=4, seed=seed))
        pixels = probe(few[0].flatten(1), few[1])(reported[0].flatten(1))
        pixel_error += (1 - float((pixels == reported[1]).double().mean())) / DRAWS
    error, fresh_error = (1 - sum(p.accuracy for p in found) / DRAWS for found in (ours, fresh))
    grid = torch.stack([p.test for p in ours]).mean(0)
    early = [j for j, t in enumerate(TIMES) if t <= 0.3]
    late = [j for j, t in enumerate(TIMES) if t >= 0.7]
    gap = float(grid[:, early].max() - grid[:, late].max())
    return Outcome(
        measured={"error, best cell": error, "time of the best cell": ours[0].best[1], "early over late": gap},
        baseline={"error, pixels": pixel_error, "error, best cell without training": fresh_error},
        criteria=[
            Criterion("error over that of pixels", error / pixel_error, "<=", 0.75),
            Criterion("error over that without training", error / fresh_error, "<=", 0.8),
            Criterion("accuracy of small noise over large", gap, ">=", 0.15),
        ],
        note="best cells: "
        + ", ".join(f"{name} at t = {t}" for name, t in (p.best for p in ours))
        + "\n"
        + ours[0].table(),
    )
