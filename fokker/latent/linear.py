"""The linear codec: principal components, for which every statement about latents has a closed form."""

from typing import Any, Self

import torch
from torch import Tensor

from fokker.codec import Codec
from fokker.errors import FokkerError


class LinearCodec(Codec):
    """x = scale W^T (data - mean), data = mean + W x / scale, with orthonormal columns W (d, rank).

    For data in mean + span W and scale 1 noise that is white in data is white in x, so sampling in x and decoding is sampling
    in data projected on the span. `shape` is one item's. `fit` takes the principal components of items.

    Reference: Rombach et al. 2021, arXiv 2112.10752, whose codec this is at its simplest.
    """

    basis: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int, ...] | list[int], rank: int) -> None:
        super().__init__()
        self.shape, self.rank = tuple(int(n) for n in shape), int(rank)
        d = torch.Size(self.shape).numel()
        if not 1 <= rank <= d:
            raise FokkerError(f"rank={rank} for items of {d} numbers; use 1 to {d}")
        self.register_buffer("basis", torch.eye(d, self.rank))
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("scale", torch.ones(()))

    @classmethod
    def fit(cls, items: Tensor, rank: int, unit: bool = True) -> Self:
        """The first `rank` principal components of items (n, ...); `unit` measures the scale so that x has unit variance."""
        codec = cls(tuple(items.shape[1:]), rank)
        rows = items.flatten(1).double()
        mean = rows.mean(0)
        _, _, right = torch.linalg.svd(rows - mean, full_matrices=False)
        if len(right) < rank:
            raise FokkerError(f"{len(items)} items have at most {len(right)} components; rank={rank} needs more items")
        codec.to(items.dtype)
        codec.basis.copy_(right[:rank].T)
        codec.mean.copy_(mean)
        if unit:
            codec.scale.copy_(((rows - mean) @ right[:rank].T).square().mean().rsqrt())
        return codec

    @property
    def config(self) -> dict[str, Any]:
        return {"codec": "LinearCodec", "shape": list(self.shape), "rank": self.rank}

    def encode(self, data: Tensor) -> Tensor:
        return (data.flatten(1) - self.mean.to(data)) @ self.basis.to(data) * self.scale.to(data)

    def decode(self, x: Tensor) -> Tensor:
        rows = self.mean.to(x) + x / self.scale.to(x) @ self.basis.to(x).T
        return rows.reshape(-1, *self.shape)
