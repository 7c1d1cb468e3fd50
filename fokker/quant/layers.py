"""Quantised layers: the arithmetic, simulated for any number of bits or done by int8 kernels where the processor has them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fokker.errors import FokkerError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
QUANTISABLE = (nn.Linear, *CONVOLUTIONS)


def levels(bits: int) -> int:
    """How many steps there are between the lowest and the highest of 2^bits values."""
    return int(2**bits - 1)


def affine(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(scale, zero point) of the grid of 2^bits values over [low, high], stretched to hold 0: x ~ scale (q - zero)."""
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = (high - low).clamp_min(1e-12) / levels(bits)
    return scale, torch.round(-low / scale).clamp(0, levels(bits))


def to_grid(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """q = clamp(round(x / scale) + zero) as floating point whole numbers."""
    return (torch.round(x / scale) + zero).clamp(0, levels(bits))


class Quantised(nn.Module):
    """A linear layer or a convolution with weights of `weight_bits` and inputs of `act_bits`.

        y = W_q * (scale (q(x) - zero)) + b,    W_q = w_scale integers,   one w_scale an output channel, symmetric

    `adopt` sets the weights, `calibrate` the range of the input. Until an input range is set, or with `act_bits` 0, inputs
    stay as they are; so do weights with `weight_bits` 0. With 8 bits each, `int8` runs torch's integer kernels (Linear and
    Conv2d with zero padding, on a CPU), which give the same numbers to float32 rounding; all else is simulated in floating
    point.
    """

    def __init__(self, layer: nn.Module, weight_bits: int = 8, act_bits: int = 8) -> None:
        super().__init__()
        if not isinstance(layer, QUANTISABLE):
            raise FokkerError(
                f"a {type(layer).__name__} has no quantised form; quantise linear layers and convolutions"
            )
        for name, bits in (("weight_bits", weight_bits), ("act_bits", act_bits)):
            if bits and not 2 <= bits <= 16:
                raise FokkerError(f"{name}={bits} is not accepted; use 2 to 16, or 0 for full precision")
        self.layer, self.weight_bits, self.act_bits = layer, weight_bits, act_bits
        rows = layer.weight.shape[0]
        self.register_buffer("integers", torch.zeros_like(layer.weight))
        self.register_buffer("w_scale", torch.ones(rows))
        self.register_buffer("scale", torch.zeros(()))
        self.register_buffer("zero", torch.zeros(()))
        self.packed: tuple[Tensor, float, int] | None = None
        self.int8 = self.calibrated = False

    integers: Tensor
    w_scale: Tensor
    scale: Tensor
    zero: Tensor

    def adopt(self, integers: Tensor, w_scale: Tensor) -> None:
        """Take quantised weights: whole numbers in the shape of the weight, and one scale an output channel."""
        self.integers.copy_(integers)
        self.w_scale.copy_(w_scale)
        self.packed = None

    def calibrate(self, low: Tensor, high: Tensor) -> None:
        """Set the range of the inputs."""
        scale, zero = affine(low, high, self.act_bits)
        self.scale.copy_(scale)
        self.zero.copy_(zero)
        self.packed, self.calibrated = None, True

    @property
    def original(self) -> Tensor:
        """The weights before quantisation."""
        return self.layer.weight

    @property
    def weight(self) -> Tensor:
        """The weights as they act."""
        if not self.weight_bits:
            return self.original
        return self.integers * self.w_scale.reshape(-1, *[1] * (self.integers.ndim - 1))

    @property
    def integral(self) -> bool:
        """Whether the integer kernels can do this layer, as it is set."""
        layer = self.layer
        fits = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros")
        return fits and self.weight_bits == self.act_bits == 8 and self.calibrated

    def forward(self, x: Tensor) -> Tensor:
        if self.int8 and x.device.type == "cpu" and x.dtype == torch.float32 and self.integral:
            return self._integer(x)
        if self.act_bits and self.calibrated:
            x = (to_grid(x, self.scale, self.zero, self.act_bits) - self.zero) * self.scale
        return self.float_forward(x, self.weight)

    def float_forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's own arithmetic with other weights."""
        layer, bias = self.layer, self.layer.bias
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, bias)
        return layer._conv_forward(x, weight, bias)  # type: ignore[no-any-return]

    def _integer(self, x: Tensor) -> Tensor:
        layer, bias = self.layer, self.layer.bias
        if self.packed is None:
            self.packed = self._pack()
        weight, scale, zero = self.packed
        q = torch.round(x / scale).add_(zero).clamp_(0, 255).to(torch.uint8)
        zeros = torch.zeros(len(self.w_scale), dtype=torch.int32)
        tail: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")
        if isinstance(layer, nn.Conv2d):
            shape = (layer.stride, layer.padding, layer.dilation, layer.groups)
            return torch.ops.onednn.qconv2d_pointwise(q, scale, zero, weight, self.w_scale, zeros, bias, *shape, *tail)  # type: ignore[no-any-return]
        rows = q.reshape(-1, q.shape[-1])
        out = torch.ops.onednn.qlinear_pointwise(rows, scale, zero, weight, self.w_scale, zeros, bias, *tail)
        return out.reshape(*q.shape[:-1], -1)  # type: ignore[no-any-return]

    def _pack(self) -> tuple[Tensor, float, int]:
        layer, scale, zero = self.layer, self.scale.item(), int(self.zero)
        whole = self.integers.to(torch.int8)
        if isinstance(layer, nn.Conv2d):
            whole = whole.contiguous(memory_format=torch.channels_last)
            shape = (layer.stride, layer.padding, layer.dilation, layer.groups)
            return torch.ops.onednn.qconv_prepack(whole, self.w_scale, scale, zero, *shape, None), scale, zero
        return torch.ops.onednn.qlinear_prepack(whole.contiguous(), None), scale, zero
