"""Parallel-beam computed tomography: line integrals of a picture, exact for square pixels, with their exact transpose."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.restore import Operator, conjugate_gradients
from fokker.restore.gram import DENSE, Gram
from fokker.restore.proximal import least_squares

_ROUNDING = 1e-9


class ParallelBeam(Operator):
    """y[a, d] = the integral of the picture along the ray (angle a, detector d), over max(height, width), per channel.

    A pixel is a unit square, so a ray at distance u from its centre crosses it over min(1 / c, 1 / s, (h - u) / (c s)) with
    c, s the sizes of cosine and sine of the angle and h = (c + s) / 2 > u: the footprint is a trapezoid. Kept as a sparse
    matrix and its transpose, so the adjoint is exact. x (batch, channels, height, width), y (batch, channels, angles,
    detectors); detectors are a pixel apart and cover the diagonal. Because of the division a picture of ones measures about 1.

    angles   how many, evenly over half a turn, or a tensor of radians (limited angles)
    shape    (channels, height, width) of a sample
    steps    the most conjugate-gradient iterations of `pinv` and `solve`, where y is too large for a matrix

    Raises FokkerError for a missing shape or fewer angles than 1.
    """

    def __init__(self, angles: int | Tensor = 30, shape: Sequence[int] | None = None, steps: int = 200) -> None:
        if shape is None or len(shape) != 3:
            raise FokkerError("tomography needs shape=(channels, height, width) of a sample")
        if not isinstance(angles, Tensor):
            if int(angles) != angles or angles < 1:
                raise FokkerError(f"angles={angles} is not accepted; give how many, at least 1, or a tensor of radians")
            angles = torch.arange(angles, dtype=torch.float64) * (math.pi / angles)
        self.angles, self.size, self.steps = angles.to("cpu", torch.float64), tuple(shape[1:]), steps
        self.detectors = math.ceil(math.hypot(*self.size)) + 1
        self.matrix = self._footprints() / max(self.size)
        self._gram: Gram | None = None
        self._known: dict[Any, tuple[Tensor, Tensor]] = {}

    def _footprints(self) -> Tensor:
        """The sparse (rays, pixels) matrix of crossing lengths."""
        h, w = self.size
        row = torch.arange(h, dtype=torch.float64) - (h - 1) / 2
        column = torch.arange(w, dtype=torch.float64) - (w - 1) / 2
        c, s = torch.cos(self.angles)[:, None, None], torch.sin(self.angles)[:, None, None]
        at = (c * column + s * row[:, None]).reshape(len(self.angles), -1) + (self.detectors - 1) / 2
        c, s = c.abs().reshape(-1, 1), s.abs().reshape(-1, 1)
        half, flat, tall = (c + s) / 2, torch.minimum(c, s), 1 / torch.maximum(c, s)
        pixel = torch.arange(h * w).expand(len(self.angles), -1)
        rays, pixels, lengths = [], [], []
        for k in (0, 1):  # a footprint is at most sqrt(2) wide
            d = torch.ceil(at - half - _ROUNDING) + k
            inside = half - (d - at).abs()
            # where rays run along a side of the grid the trapezoid is a box, whose edge belongs to two pixels by halves
            share = torch.where(flat < _ROUNDING, 0.5 + inside / (2 * _ROUNDING), inside / flat.clamp(min=_ROUNDING))
            length = tall * share.clamp(0, 1)
            keep = length > _ROUNDING
            rays.append((d.long() + self.detectors * torch.arange(len(self.angles))[:, None])[keep])
            pixels.append(pixel[keep])
            lengths.append(length[keep])
        shape = (len(self.angles) * self.detectors, h * w)
        index = torch.stack([torch.cat(rays), torch.cat(pixels)])
        return torch.sparse_coo_tensor(index, torch.cat(lengths), shape, check_invariants=False).coalesce()

    def _matrices(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(A, A^T) for the device and precision of x."""
        key = x.device, x.dtype
        if key not in self._known:
            here = self.matrix.to(x.device, x.dtype)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the format is new to torch
                self._known[key] = here.to_sparse_csr(), here.t().coalesce().to_sparse_csr()
        return self._known[key]

    def _apply(self, x: Tensor, transposed: bool, size: Sequence[int]) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        flat = wide.reshape(-1, math.prod(x.shape[-2:])).T
        a, b = self._matrices(wide)
        out: Tensor = _product(flat, b if transposed else a, a if transposed else b)
        return out.T.reshape(*x.shape[:-2], *size).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != self.size:
            raise FokkerError(f"a picture of {tuple(x.shape[-2:])} does not fit this scanner, made for {self.size}")
        return self._apply(x, False, (len(self.angles), self.detectors))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._apply(y, True, self.size)

    def pinv(self, y: Tensor) -> Tensor:
        # noise lies outside of the range of A A^T, where iterations on that matrix diverge
        return super().pinv(y) if y[0].numel() <= DENSE else least_squares(self, y, self.steps)

    def solve(self, v: Tensor, a: float | Tensor = 1.0, b: float | Tensor = 0.0) -> Tensor:
        if v[0].numel() <= DENSE:
            self._gram = self._gram or Gram(self, v[:1])
            return self._gram.solve(v, a, b)
        return conjugate_gradients(lambda u: a * self.forward(self.adjoint(u)) + b * u, v, self.steps)


class _Product(torch.autograd.Function):
    """M x for a sparse M whose transpose is known."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:
        ctx.pair = matrix, transpose
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        matrix, transpose = ctx.pair
        return _product(grads[0], transpose, matrix), None, None


def _product(x: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:
    out: Tensor = _Product.apply(x, matrix, transpose)  # type: ignore[no-untyped-call]
    return out
