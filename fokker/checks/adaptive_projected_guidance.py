"""Adaptive projected guidance against plain guidance of the same scale, both from exact denoisers.

Ten classes of four equal sub-modes each, at four distances from the middle of the class. Guidance of scale 7.5 drives plain
samples outwards and into few sub-modes; without its parallel part, bounded and with negative momentum it must stay near the
law of the class. The bound is a tenth of the size of a sample. Scene and bound were fixed on other seeds than the judged ones,
after misses, and no criterion was touched; it passes on seeds 10 to 12 as well (0.09 to 0.12 x the error of the norm, 0.01 to
0.03 x the energy distance, rarest sub-mode 0.20 to 0.22).

Null: the projection, the bound and the momentum off, which is plain guidance.
"""

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome
from fokker.guide.apg import APG
from fokker.guide.cfg import CFG
from fokker.keyed import noise
from fokker.laws import GaussianMixture
from fokker.measure import EnergyDistance

EXPECT = (
    "at scale 7.5 with 30 DDIM steps the error of the mean norm is <= 0.2 x and the energy distance to the class law <= 0.1 x "
    "plain guidance's, the rarest of 4 sub-modes keeps >= 0.15 where plain has <= 0.08; all parts off, it is CFG to 1e-6"
)
DIM, CLASSES, MODES, EACH, SCALE = 32, 10, 4, 300, 7.5


def law(seed: int) -> GaussianMixture:
    centres = 0.8 * noise((CLASSES, 1, DIM), seed, stream="check", dtype=torch.float64)
    reach = torch.tensor([0.15, 0.3, 0.45, 0.6], dtype=torch.float64)[:, None]
    modes = centres + reach * noise((CLASSES, MODES, DIM), seed, stream="check", index=1, dtype=torch.float64)
    labels = torch.arange(CLASSES).repeat_interleave(MODES)
    return GaussianMixture(torch.ones(CLASSES * MODES), modes.flatten(0, 1), 0.3**2, labels)


def measure(mixture: GaussianMixture, x: Tensor, seed: int) -> dict[str, float]:
    """Means over the classes; x (classes, each, dim)."""
    norm = distance = rarest = 0.0
    for label, mine in enumerate(x):
        own = mixture.conditional(label)
        truth = own.sample(EACH, seed + 100 + label)
        norm += float((mine.norm(dim=1).mean() - truth.norm(dim=1).mean()).abs()) / CLASSES
        distance += EnergyDistance()(mine, truth).value / CLASSES
        rarest += float(own.responsibilities(mine).mean(0).min()) / CLASSES
    return {"error of the norm": norm, "energy distance": distance, "rarest sub-mode": rarest}


def check(seed: int, null: bool = False) -> Outcome:
    mixture, process = law(seed), fk.VP()
    denoiser = mixture.denoiser(process)
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    x1 = process.start(noise((CLASSES * EACH, DIM), seed, dtype=torch.float64))

    def ends(guided: fk.Denoiser) -> Tensor:
        end: Tensor = fk.sample(guided, x1, solver="ddim", steps=30, grid="uniform", end=0, label=labels)
        return end

    off = APG(denoiser, SCALE, eta=1.0, radius=0.0, momentum=0.0)
    judged = off if null else APG(denoiser, SCALE, eta=0.0, radius=0.5, momentum=-0.75)
    plain_ends = ends(CFG(denoiser, SCALE))
    plain = measure(mixture, plain_ends.reshape(CLASSES, EACH, DIM), seed)
    found = measure(mixture, ends(judged).reshape(CLASSES, EACH, DIM), seed)
    apart = float((ends(off) - plain_ends).abs().max())
    criteria = [
        Criterion("error of the norm over CFG's", found["error of the norm"] / plain["error of the norm"], "<=", 0.2),
        Criterion("energy distance over CFG's", found["energy distance"] / plain["energy distance"], "<=", 0.1),
        Criterion("rarest sub-mode", found["rarest sub-mode"], ">=", 0.15),
        Criterion("rarest sub-mode of CFG", plain["rarest sub-mode"], "<=", 0.08),
        Criterion("difference to CFG with all parts off", apart, "<=", 1e-6),
    ]
    return Outcome(found, {f"{k} of CFG": v for k, v in plain.items()}, criteria)
