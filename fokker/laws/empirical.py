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
