"""What is measured of a rollout: how long it follows the truth, and how well each band of waves is kept."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fokker.errors import FokkerError


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """The Pearson correlation over all positions of two trajectories (batch, times, ...), float64 (batch, times)."""
    if a.shape != b.shape or a.ndim < 3:
        raise FokkerError(
            f"trajectories {tuple(a.shape)} and {tuple(b.shape)}; give two of the shape (batch, times, ...)"
        )
    x, y = (v.double().flatten(2) for v in (a, b))
    x, y = (v - v.mean(2, keepdim=True) for v in (x, y))
    found: Tensor = (x * y).sum(2) / (x.norm(dim=2) * y.norm(dim=2)).clamp_min(1e-300)
    return found


def correlation_time(rollout: Tensor, truth: Tensor, interval: float, threshold: float = 0.8) -> Tensor:
    """The time at which each rollout's correlation with the truth first falls below `threshold`, (batch,); the end if never."""
    lost = ~(correlation(rollout, truth) >= threshold)
    steps = torch.where(lost.any(1), lost.double().argmax(1), lost.shape[1] - 1)
    return interval * steps.double()


def band_error(prediction: Tensor, truth: Tensor, bands: Sequence[tuple[int, int]]) -> Tensor:
    """Power of the error over power of the truth in each band of wave numbers (first, last), last axis periodic; float64."""
    error, power = (
        torch.fft.rfft(v.double(), dim=-1).abs().square().flatten(0, -2).sum(0) for v in (prediction - truth, truth)
    )
    return torch.stack([error[a : b + 1].sum() / power[a : b + 1].sum() for a, b in bands])
