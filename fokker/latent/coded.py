"""Networks that are told a code: one whose every block is modulated by it, and a branch that shifts a frozen one."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fokker.errors import FokkerError
from fokker.net.layers import crop, grow, seeded, unfold, zeroed
from fokker.net.network import Network, State
from fokker.net.unet import UNet


class Coded(nn.Module):
    """`net(x, c_noise, code=e, **cond)`: a network in which e (batch, code) joins the noise level wherever that is told.

    The embedding of the noise level gets MLP(e) added, so every normalisation that is scaled and shifted by it is by e too.
    A code of zeros, or none, is no code. `net` is a network of `fokker.net`, or the configuration of one; all of it trains.

    Reference: Preechakul et al. 2022, arXiv 2111.15640, section 3.1.
    """

    def __init__(self, net: Network | Mapping[str, Any], code: int, seed: int = 0) -> None:
        super().__init__()
        self.net = network(net, seed)
        self.code = size(code)
        with seeded(seed):
            self.rise = rise(self.net, code)

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": "coded", "net": self.net.config, "code": self.code}

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the conditions that a call accepts."""
        return ("code", *self.net.conditions)

    def null_conditions(self, **cond: Tensor) -> dict[str, Tensor]:
        """The same conditions, meaning "none"."""
        return nothing(self.net, cond)

    def forward(self, x: Tensor, c_noise: Tensor, code: Tensor | None = None, **cond: Tensor | None) -> Tensor:
        state = self.net.start(x, c_noise, **cond)
        if code is not None:
            state.embedding = told(state.embedding, self.rise, code, self.code)
        for name in self.net.stages:
            self.net.advance(name, state)
        return self.net.finish(state)


class GradientEstimator(nn.Module):
    """`net(x, c_noise, code=e)`: a frozen U-Net F plus a second decoder G that is told e and reads what F's encoder found.

        out = F(x, t) + G(x, t, e)

    Under the preconditioning of `NetworkDenoiser` this shifts the belief by c_out G, which is the score by
    (alpha / sigma^2) c_out G: what G learns is the gradient of log p(e | x_t). The frozen half is evaluated once. G starts as a
    copy of the frozen decoder with an output of zero, so an untrained one changes nothing; a code of zeros, or none, gives F to
    the bit. `net` is a U-Net, whose weights stop training, or the configuration of one.

    Reference: Zhang, Zhao, Lin 2022, arXiv 2212.12990; Lozupone et al. 2025, arXiv 2504.08635.
    """

    def __init__(self, net: UNet | Mapping[str, Any], code: int, seed: int = 0) -> None:
        super().__init__()
        frozen = network(net, seed)
        if not isinstance(frozen, UNet):
            raise FokkerError(f"{type(frozen).__name__} has no decoder to put beside its own; give a U-Net")
        self.net, self.code = frozen.requires_grad_(False), size(code)
        with seeded(seed):
            self.rise = rise(frozen, code)
            self.mid, self.norm = (copy.deepcopy(m).requires_grad_(True) for m in (frozen.mid, frozen.norm))
            self.up = copy.deepcopy(frozen.up).requires_grad_(True)
            self.out = zeroed(copy.deepcopy(frozen.out)).requires_grad_(True)

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": "gradient-estimator", "net": self.net.config, "code": self.code}

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the conditions that a call accepts."""
        return ("code", *self.net.conditions)

    def null_conditions(self, **cond: Tensor) -> dict[str, Tensor]:
        """The same conditions, meaning "none"."""
        return nothing(self.net, cond)

    def train(self, mode: bool = True) -> "GradientEstimator":
        """The frozen half stays in evaluation mode."""
        super().train(mode)
        self.net.eval()
        return self

    def forward(self, x: Tensor, c_noise: Tensor, code: Tensor | None = None, **cond: Tensor | None) -> Tensor:
        net = self.net
        state = net.start(x, c_noise, **cond)
        shift: Tensor | None = None
        for name in net.stages:
            if name == "mid" and code is not None:
                shift = self.branch(state, code)
            net.advance(name, state)
        frozen = net.finish(state)
        return frozen if shift is None else frozen + shift

    def branch(self, state: State, code: Tensor) -> Tensor:
        """G from the frozen encoder's features, (batch, channels, *space)."""
        e = told(state.embedding, self.rise, code, self.code)
        skips = [*state.skips, state.h]
        h: Tensor = self.mid(state.h, e, state.context, state.mask)
        for stage, skip in zip(reversed(self.up), reversed(skips), strict=True):
            h = stage(torch.cat((grow(h, skip.shape[2:]), skip), 1), e, state.context, state.mask)
        h = self.out(F.silu(self.norm(h)))
        patch = self.net.config["patch"]
        h = crop(h if patch == 1 else unfold(h, patch), state.size)
        return h * real(code).view(-1, *[1] * (h.ndim - 1))


def network(net: Network | Mapping[str, Any], seed: int) -> Network:
    from fokker.net import build

    found = build(net, seed) if isinstance(net, Mapping) else net
    if not isinstance(found, Network):
        raise FokkerError(f"{type(found).__name__} tells no noise level to join; give a network of fokker.net")
    return found


def size(code: int) -> int:
    if code < 1:
        raise FokkerError(f"code={code} is not accepted; a code has at least 1 number")
    return code


def rise(net: Network, code: int) -> nn.Sequential:
    """The map from a code to the width of a network's embedding of the noise level."""
    width = net.embed(torch.zeros(1), None).shape[-1]
    return nn.Sequential(nn.Linear(code, width), nn.SiLU(), nn.Linear(width, width))


def real(code: Tensor) -> Tensor:
    """1 for a code, 0 for none, (batch,)."""
    return (code != 0).any(1).to(code.dtype)


def told(embedding: Tensor, rise: nn.Module, code: Tensor, wanted: int) -> Tensor:
    """The embedding with the code in it; raises FokkerError for a code of another shape."""
    if code.shape != (len(embedding), wanted):
        raise FokkerError(f"code has shape {tuple(code.shape)}; this call takes {(len(embedding), wanted)}")
    extra: Tensor = rise(code.to(embedding.dtype)) * real(code)[:, None]
    return embedding + (extra[:, None] if embedding.ndim == 3 else extra)


def nothing(net: Network, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
    rest = {k: v for k, v in cond.items() if k != "code"}
    code = {k: torch.zeros_like(v) for k, v in cond.items() if k == "code"}
    return {**net.null_conditions(**rest), **code}
