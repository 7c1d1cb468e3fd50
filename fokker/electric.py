"""Electric fields in more dimensions: the one process whose noise has heavy tails."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.keyed import noise, uniform
from fokker.process import EDM, expand


@dataclass(frozen=True, eq=False)
class PFGMPP(EDM):
    """Electrostatic generation with D extra dimensions: EDM's path with a heavy-tailed kernel, normal as D grows.

    The perturbation of N-dimensional data at sigma is sigma g sqrt(D / chi2_D) with g normal: a multivariate Student kernel
    with D degrees of freedom, the marginal of the (N + D)-dimensional field at radius r = sigma sqrt(D).

    Reference: Xu et al. 2023, arXiv 2302.04265.
    """

    D: float = 2048.0

    def __post_init__(self) -> None:
        if not self.D > 0:
            raise FokkerError(f"D={self.D} is not accepted; give the number of extra dimensions, above 0")
        super().__post_init__()

    @property
    def dof(self) -> float:  # type: ignore[override]
        return self.D

    def sample_noise(self, shape: tuple[int, ...], seed: int = 0, ids: Any = None, **where: Any) -> Tensor:
        from scipy.special import gammaincinv

        normal = noise(shape, seed, ids, **where)
        # one chi2_D a sample, by its quantile; bit 55 of the index keeps its words apart from those of the normals
        index = torch.as_tensor(where.get("index", 0)).cpu() | 1 << 55
        u = uniform((shape[0], 1), seed, ids, where.get("stream", "start"), index)[:, 0]
        chi2 = 2 * torch.from_numpy(gammaincinv(self.D / 2, u.cpu().numpy()))
        return normal * expand(torch.sqrt(self.D / chi2), normal).to(normal)

    def log_noise(self, eps: Tensor) -> Tensor:
        flat = eps.flatten(1).to(torch.float64)
        dim, dof = flat.shape[1], self.D
        front = math.lgamma((dof + dim) / 2) - math.lgamma(dof / 2) - dim / 2 * math.log(math.pi * dof)
        return front - (dof + dim) / 2 * torch.log1p(flat.square().sum(1) / dof)
