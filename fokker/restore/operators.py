"""Measurements of images (and of signals and volumes of any rank): mask, blur, downsampling, a plain matrix."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.keyed import noise, uniform
from fokker.restore import Operator


class Mask(Operator):
    """y = m x with m in {0, 1}, broadcast to x: inpainting. Unknown entries of y are 0.

    `keep` is a mask tensor, or the share of positions that stay, drawn by `seed` for `shape` = the sample's (channels, *size);
    channels share a position.
    """

    def __init__(self, keep: float | Tensor, shape: Sequence[int] | None = None, seed: int = 0) -> None:
        if isinstance(keep, Tensor):
            mask = keep
        else:
            if shape is None:
                raise FokkerError("a mask drawn at random needs shape=(channels, *size) of a sample")
            if not 0 < keep < 1:
                raise FokkerError(f"keep={keep} is not accepted; give the share of positions that stay, in (0, 1)")
            mask = (uniform((1, *shape[1:]), seed, stream="check") < keep).to(torch.float64)
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise FokkerError("a mask holds zeros (unknown) and ones (known) only")
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return self.mask.to(x) * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.mask.to(y) * y

    def pinv(self, y: Tensor) -> Tensor:
        return self.mask.to(y) * y

    def consistent(self, x: Tensor, y: Tensor) -> Tensor:
        # a selection, so that known values equal the measurement to the bit
        return torch.where(self.mask.to(x.device) > 0, y, x)

    def solve(self, v: Tensor, a: float | Tensor = 1.0, b: float | Tensor = 0.0) -> Tensor:
        known = self.mask.to(v)
        scale = a * known + b
        # where nothing is measured and b is 0 the least-norm solution is 0
        return torch.where(scale > 0, v / torch.where(scale > 0, scale, torch.ones_like(scale)), torch.zeros_like(v))


class Blur(Operator):
    """Circular convolution with a normalised kernel over the trailing dimensions of x.

    `kernel` is a tensor of the rank of the signal (odd sizes), or the standard deviation of a Gaussian in pixels for `ndim`
    dimensions. Diagonal in Fourier space, so adjoint, inverse and solve are exact; singular values under `cutoff` are left out
    of the pseudo-inverse.
    """

    def __init__(self, kernel: float | Tensor, ndim: int = 2, cutoff: float = 1e-6) -> None:
        if not isinstance(kernel, Tensor):
            if not kernel > 0:
                raise FokkerError(f"a blur of {kernel} pixels is not accepted; give a standard deviation above 0")
            at = torch.arange(-int(4 * kernel) - 1, int(4 * kernel) + 2, dtype=torch.float64)
            line = torch.exp(-0.5 * (at / kernel) ** 2)
            kernel = line
            for _ in range(ndim - 1):
                kernel = kernel[..., None] * line
        self.kernel, self.cutoff = (kernel / kernel.sum()).to(torch.float64), cutoff

    def _spectrum(self, size: Sequence[int]) -> Tensor:
        dims = tuple(range(self.kernel.ndim))
        padded = torch.zeros(tuple(size), dtype=torch.float64)
        index = torch.meshgrid(
            *[(torch.arange(k) - k // 2) % n for k, n in zip(self.kernel.shape, size, strict=True)], indexing="ij"
        )
        padded.index_put_(index, self.kernel, accumulate=True)
        spectrum: Tensor = torch.fft.fftn(padded, dim=dims)
        return spectrum

    def _filter(self, x: Tensor, gain: Tensor) -> Tensor:
        dims = tuple(range(-self.kernel.ndim, 0))
        out: Tensor = torch.fft.ifftn(torch.fft.fftn(x.to(torch.float64), dim=dims) * gain.to(x.device), dim=dims)
        return out.real.to(x.dtype)

    def _gain(self, x: Tensor) -> Tensor:
        return self._spectrum(x.shape[-self.kernel.ndim :])

    def forward(self, x: Tensor) -> Tensor:
        return self._filter(x, self._gain(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._filter(y, self._gain(y).conj())

    def pinv(self, y: Tensor) -> Tensor:
        gain = self._gain(y)
        kept = gain.abs() > self.cutoff
        return self._filter(y, torch.where(kept, 1 / torch.where(kept, gain, torch.ones_like(gain)), torch.zeros_like(gain)))

    def solve(self, v: Tensor, a: float | Tensor = 1.0, b: float | Tensor = 0.0) -> Tensor:
        power = self._gain(v).abs() ** 2
        scale = a * power + b
        kept = scale > a * self.cutoff**2
        gain = torch.where(kept, 1 / torch.where(kept, scale, torch.ones_like(scale)), torch.zeros_like(scale))
        return self._filter(v, gain.to(torch.complex128))


class Downsample(Operator):
    """The mean over blocks of `factor` pixels along the `ndim` trailing dimensions; sizes must be multiples of the factor."""

    def __init__(self, factor: int, ndim: int = 2) -> None:
        if int(factor) != factor or factor < 1:
            raise FokkerError(f"factor={factor} is not accepted; give a whole number of at least 1")
        self.factor, self.ndim, self.block = factor, ndim, float(factor**ndim)

    def forward(self, x: Tensor) -> Tensor:
        for d in range(-self.ndim, 0):
            if x.shape[d] % self.factor:
                raise FokkerError(f"size {tuple(x.shape[-self.ndim :])} is not a multiple of the factor {self.factor}")
            x = x.reshape(*x.shape[:d], -1, self.factor, *x.shape[d:][1:]).mean(d)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        for d in range(-self.ndim, 0):
            y = y.repeat_interleave(self.factor, d) / self.factor
        return y

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y) * self.block

    def solve(self, v: Tensor, a: float | Tensor = 1.0, b: float | Tensor = 0.0) -> Tensor:
        return v / (a / self.block + b)


class Matrix(Operator):
    """y = M x on flattened samples: x (batch, ...) with prod(...) = columns, y (batch, rows)."""

    def __init__(self, matrix: Tensor, shape: Sequence[int] | None = None) -> None:
        if matrix.ndim != 2:
            raise FokkerError(f"a matrix (rows, columns) is needed, not a tensor of shape {tuple(matrix.shape)}")
        self.matrix = matrix.to(torch.float64)
        self.shape = tuple(shape) if shape is not None else (matrix.shape[1],)
        values, vectors = torch.linalg.eigh(self.matrix @ self.matrix.T)
        self._values, self._vectors = values.clamp_min(0), vectors

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x.flatten(1) @ self.matrix.T.to(x)
        return y

    def adjoint(self, y: Tensor) -> Tensor:
        x: Tensor = (y @ self.matrix.to(y)).reshape(-1, *self.shape)
        return x

    def solve(self, v: Tensor, a: float | Tensor = 1.0, b: float | Tensor = 0.0) -> Tensor:
        scale = a * self._values.to(v) + b
        # with b = 0, what eigh leaves of a zero is rounding
        kept = scale > a * self._values.max().to(v) * 1e-12
        gain = torch.where(kept, 1 / torch.where(kept, scale, torch.ones_like(scale)), torch.zeros_like(scale))
        vectors = self._vectors.to(v)
        solution: Tensor = ((v @ vectors) * gain) @ vectors.T
        return solution

    @classmethod
    def gaussian(cls, rows: int, shape: Sequence[int], seed: int = 0) -> "Matrix":
        """A random measurement with independent N(0, 1/rows) entries: compressed sensing."""
        columns = int(torch.tensor(tuple(shape)).prod())
        entries = noise((rows, columns), seed, stream="check", index=2, dtype=torch.float64)
        return cls(entries / rows**0.5, shape)
