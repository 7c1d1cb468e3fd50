"""Measurements whose parameters are not known: operators with numbers that are fitted along a run, one set a sample."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fokker.errors import FokkerError
from fokker.restore import Operator

Parameters = dict[str, Tensor]  # by name, (batch, ...)


class BlindOperator(Operator):
    """A measurement y = Deg_phi(x). Subclasses define `parameters(x)` and `degrade(x, phi)`.

    As an operator with nothing said about phi it is the one with its neutral parameters.
    """

    linear = False

    def parameters(self, x: Tensor) -> Parameters:
        """The parameters to begin with, one row for each of x (batch, ...)."""
        raise FokkerError(f"{type(self).__name__} does not define parameters(x); a blind operator must")

    def degrade(self, x: Tensor, phi: Parameters) -> Tensor:
        """Deg_phi(x), differentiable in both."""
        raise FokkerError(f"{type(self).__name__} does not define degrade(x, phi); a blind operator must")

    def forward(self, x: Tensor) -> Tensor:
        return self.degrade(x, self.parameters(x))


@dataclass(frozen=True)
class Light(BlindOperator):
    """y_i = f_i x + M_i: too little light, haze, or several exposures of one scene, (batch, *x) or (batch, exposures, *x).

    f is a number and M one too, or with `grid` (height, width) a coarse map drawn out to x, of which a smoothness loss may be
    asked; a map as fine as x would explain everything. `gain` and `haze` are where they begin. Raises FokkerError for a grid
    on data that are not pictures.
    """

    exposures: int | None = None
    grid: tuple[int, int] | None = None
    gain: float = 1.0
    haze: float = 0.0

    def parameters(self, x: Tensor) -> Parameters:
        many = (len(x), self.exposures or 1)
        return {"f": x.new_full(many, self.gain), "M": x.new_full((*many, *(self.grid or ())), self.haze)}

    def degrade(self, x: Tensor, phi: Parameters) -> Tensor:
        f = phi["f"].reshape(*phi["f"].shape, *[1] * (x.ndim - 1))
        if self.grid is None:
            haze = phi["M"].reshape(f.shape)
        elif x.ndim == 4:
            haze = interpolate(phi["M"], size=x.shape[-2:], mode="bilinear", align_corners=True)[:, :, None]
        else:
            raise FokkerError(f"a map of light needs pictures (batch, channels, height, width), not {tuple(x.shape)}")
        y: Tensor = f * x[:, None] + haze
        return y[:, 0] if self.exposures is None else y


@dataclass(frozen=True)
class Exposure:
    """weight x the mean over patches of (mean - level)^2: pictures that are neither dark nor burnt, x (batch, C, H, W)."""

    level: float = 0.2
    patch: int = 4
    weight: float = 1.0

    def __call__(self, x: Tensor, phi: Parameters) -> Tensor:
        means = torch.nn.functional.avg_pool2d(x.mean(1, keepdim=True), self.patch)
        return self.weight * (means - self.level).flatten(1).square().mean(1)


@dataclass(frozen=True)
class ColourConstancy:
    """weight x the sum over pairs of channels of (difference of their means)^2: a grey world, x (batch, C, H, W)."""

    weight: float = 1.0

    def __call__(self, x: Tensor, phi: Parameters) -> Tensor:
        means = x.flatten(2).mean(2)
        return self.weight * 0.5 * (means[:, :, None] - means[:, None]).square().flatten(1).sum(1)


@dataclass(frozen=True)
class Smoothness:
    """weight x the mean squared difference of neighbours in a parameter that is a map (the light's M)."""

    name: str = "M"
    weight: float = 1.0

    def __call__(self, x: Tensor, phi: Parameters) -> Tensor:
        if phi.get(self.name, x.new_zeros(1)).ndim < 3:
            raise FokkerError(f"smoothness is that of a map, and {self.name!r} is none here; give the operator a grid")
        m = phi[self.name]
        parts = [m.diff(dim=d).flatten(1).square().mean(1) for d in (-2, -1) if m.shape[d] > 1]
        return self.weight * torch.stack(parts).sum(0) if parts else x.new_zeros(len(x))
