"""Classification by the denoiser: the class under which a noised digit is denoised best.

Reference: Li et al. 2023, arXiv 2303.16203; Clark, Jaini 2023, arXiv 2303.15233.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fokker.data.source import Arrays
from fokker.demo.sampling import SHAPE, Show
from fokker.denoiser import Denoiser, NetworkDenoiser
from fokker.keyed import noise
from fokker.measure import ClassAccuracy, Features, Value
from fokker.measure.metric import share_error

RATIOS = (0.3, 0.5, 0.8, 1.2, 1.8, 2.7)  # sigma / alpha: from where pixels decide to where only the shape is left


@dataclass(frozen=True)
class Classified:
    """The classes found, their confusion (true, found), the accuracy at each noise level alone, and of a linear classifier."""

    found: Tensor
    label: Tensor
    confusion: Tensor
    accuracy: float
    error: float
    at: dict[float, float]
    linear: Value


def classify(
    denoiser: NetworkDenoiser, held_out: Arrays, judge: Features, n: int, noises: int, show: Show
) -> Classified:
    """The class k of least sum over noise levels and draws of w |x_0 - D(x_t, t, k)|^2, w = snr + 1 / sd^2.

    All classes see the same noise, so that most of its effect cancels.
    """
    # evenly over the set, whose order is the file's
    rows = torch.linspace(0, len(held_out) - 1, n).round().long()
    x, label = held_out.x[rows], held_out.label[rows]
    errors = torch.zeros(len(RATIOS), n, 10)
    total = len(RATIOS) * noises
    for i, ratio in enumerate(RATIOS):
        t = float(denoiser.process.time(-2 * math.log(ratio)))
        for j in range(noises):
            errors[i] += class_errors(denoiser, x, t, noise((n, *SHAPE), seed=j, stream="measure", index=i))
            show(i * noises + j + 1, total)
    weight = torch.tensor([1 / r**2 + 1 / denoiser.sigma_data**2 for r in RATIOS])
    found = (errors * weight[:, None, None]).sum(0).argmin(1)
    confusion = torch.zeros(10, 10, dtype=torch.int64)
    confusion.index_put_((label, found), torch.ones(n, dtype=torch.int64), accumulate=True)
    accuracy = float((found == label).double().mean())
    at = {r: float((errors[i].argmin(1) == label).double().mean()) for i, r in enumerate(RATIOS)}
    linear = ClassAccuracy(judge)(x, label)
    return Classified(found, label, confusion, accuracy, share_error(accuracy, n), at, linear)


@torch.no_grad()
def class_errors(denoiser: Denoiser, x: Tensor, t: float, eps: Tensor) -> Tensor:
    """|x_0 - D(x_t, t, k)|^2 for each of the ten classes k, (n, 10)."""
    x_t = denoiser.process.add_noise(x, eps, t)
    found = []
    for k in range(10):
        belief = denoiser(x_t, t, label=torch.full((len(x),), k))
        found.append((belief - x).square().flatten(1).sum(1))
    return torch.stack(found, 1)
