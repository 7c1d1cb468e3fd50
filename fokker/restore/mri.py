"""Multi-coil magnetic resonance imaging: sampled Fourier coefficients of the picture as each coil sees it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.keyed import uniform
from fokker.restore import Operator, conjugate_gradients
from fokker.restore.gram import DENSE, Gram
from fokker.restore.proximal import least_squares


class MRI(Operator):
    """y_c = m F (S_c x) for the coils c: Cartesian k-space with whole columns left out. Complex numbers are two real channels.

    x (batch, 2, height, width), real and imaginary part; y (batch, coils, 2, height, width), 0 where nothing is sampled. F is
    unitary and S_c normalised to sum |S_c|^2 = 1, so that with every column A^T A = 1 and with one coil A A^T = m.

    acceleration  one column in so many is sampled, by `seed`, those within the `centre` share of lowest frequencies always
    coils         how many, with smooth maps around the picture (`coil_maps`); or give `maps` (coils, 2, height, width)
    mask          (width,) or (height, width) of zeros and ones in place of the random columns, zero frequency first
    steps         the most conjugate-gradient iterations of `pinv` and `solve`, where y is too large for a matrix

    Raises FokkerError for a state that is not complex in this way, a missing shape, or a mask of other numbers.
    """

    def __init__(
        self,
        acceleration: float = 4.0,
        coils: int = 4,
        shape: Sequence[int] | None = None,
        centre: float = 0.08,
        seed: int = 0,
        mask: Tensor | None = None,
        maps: Tensor | None = None,
        steps: int = 200,
    ) -> None:
        if shape is None or len(shape) != 3 or shape[0] != 2:
            raise FokkerError("MRI needs shape=(2, height, width) of a sample: its real and its imaginary part")
        if not acceleration >= 1 or coils < 1:
            raise FokkerError(f"acceleration={acceleration}, coils={coils} are not accepted; use at least 1 of each")
        size = tuple(shape[1:])
        self.mask = columns(size[1], acceleration, centre, seed) if mask is None else mask.to(torch.float64)
        if not bool(((self.mask == 0) | (self.mask == 1)).all()):
            raise FokkerError("a mask of k-space holds zeros (left out) and ones (sampled) only")
        maps = coil_maps(coils, size) if maps is None else maps.to(torch.float64)
        if tuple(maps.shape[1:]) != (2, *size):
            raise FokkerError(f"coil maps of shape {tuple(maps.shape)} do not fit; give (coils, 2, {size[0]}, {size[1]})")
        self._gram: Gram | None = None
        power = maps.square().sum((0, 1))
        self.maps, self.steps = torch.complex(maps[:, 0], maps[:, 1]) / power.sqrt(), steps

    def _known(self, x: Tensor) -> tuple[Tensor, Tensor, torch.dtype]:
        """Maps and mask on the device of x, and the precision to work in."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return self.maps.to(x.device, torch.complex(x.new_zeros(1, dtype=wide), x.new_zeros(1, dtype=wide)).dtype), (
            self.mask.to(x.device, wide)
        ), wide

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != (2, *self.maps.shape[1:]):
            raise FokkerError(f"a state of {tuple(x.shape[1:])} is not the complex picture (2, *{tuple(self.maps.shape[1:])})")
        maps, mask, wide = self._known(x)
        seen = maps * torch.complex(x[:, 0].to(wide), x[:, 1].to(wide))[:, None]
        k = mask * torch.fft.fft2(seen, norm="ortho")
        return torch.stack([k.real, k.imag], 2).to(x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        maps, mask, wide = self._known(y)
        k = mask * torch.complex(y[:, :, 0].to(wide), y[:, :, 1].to(wide))
        x = (maps.conj() * torch.fft.ifft2(k, norm="ortho")).sum(1)
        return torch.stack([x.real, x.imag], 1).to(y.dtype)

    def seen(self, v: Tensor) -> Tensor:
        return self.mask.to(v) * v

    def pinv(self, y: Tensor) -> Tensor:
        # noise lies outside of the range of A A^T, where iterations on that matrix diverge
        return super().pinv(y) if y[0].numel() <= DENSE else least_squares(self, y, self.steps)

    def solve(self, v: Tensor, a: float | Tensor = 1.0, b: float | Tensor = 0.0) -> Tensor:
        if v[0].numel() <= DENSE:
            self._gram = self._gram or Gram(self, v[:1])
            return self._gram.solve(v, a, b)
        return conjugate_gradients(lambda u: a * self.forward(self.adjoint(u)) + b * u, v, self.steps)


def columns(width: int, acceleration: float, centre: float = 0.08, seed: int = 0) -> Tensor:
    """Which columns of k-space are sampled, (width,), zero frequency first: round(width / acceleration) of them."""
    wanted = max(1, round(width / acceleration))
    low = min(wanted, max(1, round(centre * width)))
    distance = torch.fft.fftfreq(width, dtype=torch.float64).abs()
    rank = uniform((width, 1), seed, stream="check", index=7)[:, 0]
    # the lowest frequencies first, the others in a random order
    order = torch.where(distance.argsort(stable=True).argsort() < low, rank - 2, rank).argsort()
    mask = torch.zeros(width, dtype=torch.float64)
    mask[order[:wanted]] = 1.0
    return mask


def coil_maps(coils: int, size: Sequence[int]) -> Tensor:
    """Smooth complex sensitivities (coils, 2, height, width): bumps around the picture, with turning phases."""
    h, w = size
    row = torch.linspace(-1, 1, h, dtype=torch.float64)[:, None]
    column = torch.linspace(-1, 1, w, dtype=torch.float64)
    maps = []
    for k in range(coils):
        angle = 2 * math.pi * k / coils
        away = (row - 1.2 * math.sin(angle)).square() + (column - 1.2 * math.cos(angle)).square()
        size_here = torch.exp(-away / 2.5)
        phase = angle + 0.8 * (math.cos(angle) * row + math.sin(angle) * column)
        maps.append(torch.stack([size_here * torch.cos(phase), size_here * torch.sin(phase)]))
    return torch.stack(maps)
