"""What checks of restoring processes share: measurements of a mixture, their exact posteriors, and samplers against them.

A mixture in 16 dimensions, read as 4 x 4 pictures, is measured by 2 x 2 means with noise 0.1. For each of twelve measurements
the posterior is a mixture again, so that the denoiser conditioned on the measurement is exact on every process, and 400 draws
of a sampler are held against 400 of the posterior by the energy distance, averaged over the measurements.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fokker.checks._mixture import mixture
from fokker.keyed import noise
from fokker.laws import GaussianMixture
from fokker.loop import sample
from fokker.measure.kernel import EnergyDistance
from fokker.plan import Plan
from fokker.process import Process

SIDE, MEASUREMENTS, DRAWS, NOISE = 4, 12, 400, 0.1


def pooling() -> Tensor:
    """The matrix of 2 x 2 means, (4, 16)."""
    rows = [torch.zeros(SIDE, SIDE, dtype=torch.float64) for _ in range(4)]
    for k, row in enumerate(rows):
        i, j = 2 * (k // 2), 2 * (k % 2)
        row[i : i + 2, j : j + 2] = 0.25
    return torch.stack([row.flatten() for row in rows])


@dataclass
class Scene:
    """Twelve measurements of one mixture: clean samples, their anchors (each mean put back in its place) and posteriors."""

    seed: int
    clean: Tensor = field(init=False)
    anchors: Tensor = field(init=False)
    posteriors: list[GaussianMixture] = field(init=False)

    def __post_init__(self) -> None:
        law, matrix = mixture(SIDE**2, 6, self.seed), pooling()
        self.clean = law.sample(MEASUREMENTS, self.seed)
        n = noise((MEASUREMENTS, 4), self.seed, stream="check", index=5, dtype=torch.float64)
        measured = self.clean @ matrix.T + NOISE * n
        self.anchors = 4 * measured @ matrix
        self.posteriors = [law.posterior(matrix, y, NOISE) for y in measured]

    def draws(self, process: Process, plan: Plan, k: int, many: int = DRAWS, loud: float = 1.0) -> Tensor:
        """Samples for measurement k from the process's own start (its noise times `loud`), with the denoiser that knows it."""
        y = self.anchors[k].expand(many, -1) if process.anchored else None
        ids = torch.arange(many) + 1000 * k
        x1 = process.start(loud * noise((many, SIDE**2), self.seed, ids, dtype=torch.float64), y)
        return sample(self.posteriors[k].denoiser(process), x1, plan, seed=self.seed, ids=ids, y=y)

    def runs(self, process: Process, plan: Plan, loud: float = 1.0) -> list[Tensor]:
        """`DRAWS` samples for every measurement."""
        return [self.draws(process, plan, k, loud=loud) for k in range(MEASUREMENTS)]

    def distance(self, samples: list[Tensor]) -> float:
        """The energy distance of samples to the posterior, the mean over measurements."""
        metric = EnergyDistance()
        truths = (posterior.sample(DRAWS, self.seed + 1) for posterior in self.posteriors)
        return sum(float(metric(x, truth).value) for x, truth in zip(samples, truths, strict=True)) / MEASUREMENTS

    def energy(self, process: Process, plan: Plan, loud: float = 1.0) -> float:
        """The energy distance of a plan's samples."""
        return self.distance(self.runs(process, plan, loud))

    def psnr(self, samples: list[Tensor]) -> float:
        """The mean over measurements of -10 log10 of the mean squared error to the clean sample."""
        errors = [(x - clean).square().mean() for x, clean in zip(samples, self.clean, strict=True)]
        return float(-10 * torch.log10(torch.stack(errors)).mean())
