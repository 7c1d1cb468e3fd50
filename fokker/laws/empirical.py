"""The law of a finite data set: what a network that has memorised everything would be."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.laws.forms import as64
from fokker.laws.mixture import GaussianMixture


class Empirical(GaussianMixture):
    """Equal (or given) weights on the points of `data` (n, *shape): a mixture whose components have no width.

    Its denoiser is the softmax average E[x_0 | x] = sum_i softmax_i(-|x - alpha x_i|^2 / (2 sigma^2)) x_i; under PFGMPP
    the kernel is the process's own, (|x - alpha x_i|^2 + sigma^2 D)^(-(dim + D) / 2). Densities exist at every sigma >
    0. `labels` (n,) are the classes of the points. Memory is bounded whatever n.

    Reference: Karras et al. 2022, arXiv 2206.00364, app. B.3; Xu et al. 2023, arXiv 2302.04265.
    """

    def __init__(
        self,
        data: Tensor,
        labels: Tensor | Sequence[int] | None = None,
        weights: Tensor | Sequence[float] | None = None,
    ) -> None:
        points = as64(data)
        if points.ndim < 2 or not len(points):
            raise FokkerError(f"data has shape {tuple(points.shape)}; give (n, dim) or (n, *shape) with n > 0")
        super().__init__(torch.ones(len(points)) if weights is None else weights, points, 0.0, labels)

    def posterior(self, matrix: Tensor, y: Tensor, noise_std: float | Tensor) -> "Empirical":
        """p(x | y) for y = matrix @ x + noise_std n: the same points, reweighted by their likelihood."""
        a, value, std = (as64(v).to(self.device) for v in (matrix, y, noise_std))
        if a.ndim != 2 or a.shape[1] != self.dim or value.numel() != len(a) or std.shape not in ((), (len(a),)):
            raise FokkerError(
                f"matrix {tuple(a.shape)} and y {tuple(value.shape)} do not fit points of dimension {self.dim}"
            )
        if not bool((std > 0).all()):
            raise FokkerError("noise_std must be above 0: points meet a measurement exactly or not at all")
        misfit = (value.reshape(-1) - self.means @ a.T) / std
        log_weights = self.log_weights - 0.5 * misfit.square().sum(1)
        return Empirical(self.means.reshape(-1, *self.shape), self.labels, torch.softmax(log_weights, 0))
