"""Which prediction a network makes: told from a few clean samples, for checkpoints that do not say."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fokker.denoiser import Cond
from fokker.errors import unknown
from fokker.process import PREDICTIONS, Process


@dataclass(frozen=True)
class Probe:
    """The misfit of each possible prediction type of a network: about 0 for the true one, see `probe`."""

    misfit: dict[str, float]
    declared: str

    @property
    def best(self) -> str:
        return min(self.misfit, key=lambda k: self.misfit[k])

    @property
    def agrees(self) -> bool:
        """Whether the declared type explains the output about as well as the best one."""
        return self.misfit[self.declared] <= 2 * self.misfit[self.best] + 0.005


def probe(
    net: Callable[..., Tensor], process: Process, data: Tensor, declared: str = "eps", seed: int = 0, **cond: Cond
) -> Probe:
    """Detect a wrongly declared prediction type from a few clean samples.

    `net(x_t, t, **cond)` is the raw prediction and `data` (n, ...) clean samples, noised to several log-SNRs. Read as its true
    type, the output is the belief E[x_0 | x_t], whose error is orthogonal to everything that is known, to x_t and to the output
    among them; read as another type it is off by a combination of these two. The misfit is the variance that they explain of
    the error, over what they leave, the mean over log-SNRs. Raises FokkerError for a `declared` type that is none of x0, eps,
    v, score, flow.
    """
    kinds = [k for k in PREDICTIONS if k != "edm"]
    if declared not in kinds:
        raise unknown("prediction", declared, kinds)
    y = cond.get("y", torch.zeros_like(data)) if process.anchored else None
    eps = process.sample_noise(tuple(data.shape), seed, dtype=data.dtype, device=data.device)
    lowest = max(process.logsnr(1.0).item() + 0.1, -4.0)
    highest = min(process.logsnr(0.0).item() - 0.1, 6.0)
    misfit = dict.fromkeys(kinds, 0.0)
    for logsnr in (lowest + (highest - lowest) * k / 5 for k in range(6)):
        t = process.time(logsnr).item()
        alpha, _, sigma = process.at(t)
        plain = alpha * data + sigma * eps
        with torch.no_grad():
            out = net(process.add_noise(data, eps, t, y), t, **cond)
        for kind in kinds:
            misfit[kind] += _explained(data - process.to_x0(kind, out, plain, t), plain, out) / 6
    return Probe(misfit, declared)


def _explained(error: Tensor, *by: Tensor) -> float:
    """The variance of `error` that a linear combination of `by` and a constant explains, over what it leaves."""
    columns = torch.stack([torch.ones_like(error), *by]).flatten(1).T.to("cpu", torch.float64)
    target = error.reshape(-1, 1).to("cpu", torch.float64)
    if not bool(torch.isfinite(columns).all() & torch.isfinite(target).all()):
        return float("inf")
    # of several columns that say the same, as for Gaussian data, the least-norm solution is as good as any
    fitted = columns @ torch.linalg.lstsq(columns, target, driver="gelsd").solution
    return float(fitted.square().sum() / (target - fitted).square().sum().clamp_min(1e-300))
