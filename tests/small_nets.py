"""Small networks away from their zero start, and calls of them with every condition."""

from typing import Any

import torch
from torch import Tensor, nn

from fokker.net import Network, build, taps

SIZES = {1: (13,), 2: (9, 14), 3: (5, 6, 3)}
SMALL = {"unet": {"width": 8, "mults": [1, 2], "heads": 2}, "dit": {"width": 24, "depth": 2, "heads": 2}}


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def alive(net: Network, scale: float = 0.2) -> Network:
    """The network away from its zero start: every parameter moved."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator))
    return net.eval()


def make(kind: str, dim: int = 2, **changes: Any) -> Network:
    return build({"kind": kind, "dim": dim, "channels": 2, **SMALL[kind], **changes})


def full(kind: str, dim: int) -> Network:
    return make(kind, dim, out_channels=3, classes=4, tokens=5, image_channels=1)


def call(dim: int, batch: int = 5) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """An input with every condition; each class once, and one sample without a class, one without tokens."""
    tokens = draw(batch, 3, 5, seed=3)
    tokens[1] = 0
    cond = {
        "label": torch.arange(batch) - 1,
        "tokens": tokens,
        "token_mask": draw(batch, 3, seed=4) > -1,
        "image": draw(batch, 1, *SIZES[dim], seed=5),
    }
    return draw(batch, 2, *SIZES[dim]), torch.linspace(-2, 1, batch), cond


def features(net: nn.Module, name: str, *args: Tensor) -> Tensor:
    with taps(net, [name]) as seen:
        net(*args)
    out: Tensor = seen[name]
    return out
