"""Networks that are told a code: one whose every block is modulated by it, and a branch that shifts a frozen one."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fokker.errors import FokkerError
from fokker.net.layers import crop, grow, seeded, unfold, zeroed
from fokker.net.mlp import MLP
from fokker.net.network import Network, State
from fokker.net.unet import UNet


class Coded(nn.Module):
    """`net(x, c_noise, code=e, **cond)`: a network in which e (batch, code) joins the noise level wherever that is told.

    The embedding of the noise level gets MLP(e) added, so every normalisation that is scaled and shifted by it is by e too.
    A code of zeros, or none, is no code. `net` is a network of `fokker.net`, or the configuration of one; all of it trains.

    Reference: Preechakul et al. 2022, arXiv 2111.15640, section 3.1.
    """

    def __init__(self, net: nn.Module | Mapping[str, Any], code: int, seed: int = 0) -> None:
        super().__init__()
        found = built(net, seed)
        if not isinstance(found, Network):
            raise FokkerError(f"{type(found).__name__} tells no noise level to join; give a network of fokker.net")
        self.net, self.code = found, size(code)
        with seeded(seed):
            self.rise = rise(found.embed(torch.zeros(1), None).shape[-1], code)

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
    """`net(x, c_noise, code=e)`: a frozen network F plus a second decoder G that is told e and reads what F's encoder found.

        out = F(x, t) + G(x, t, e)

    Under the preconditioning of `NetworkDenoiser` this shifts the belief by c_out G, which is the score by
    (alpha / sigma^2) c_out G: what G learns is the gradient of log p(e | x_t). The frozen part is evaluated once. G starts as a
    copy of the frozen decoder with an output of zero, so an untrained one changes nothing; a code of zeros, or none, gives F to
    the bit. `net` is a U-Net, or for vectors an `MLP` whose second half of layers is its decoder; its weights stop training. Or
    the configuration of one.

    Reference: Zhang, Zhao, Lin 2022, arXiv 2212.12990; Lozupone et al. 2025, arXiv 2504.08635.
    """

    def __init__(self, net: nn.Module | Mapping[str, Any], code: int, seed: int = 0) -> None:
        super().__init__()
        frozen = built(net, seed)
        if not isinstance(frozen, UNet | MLP):
            raise FokkerError(f"{type(frozen).__name__} has no decoder to put beside its own; give a U-Net or an MLP")
        self.net, self.code = frozen.requires_grad_(False), size(code)
        with seeded(seed):
            width = frozen.embed(torch.zeros(1), None).shape[-1] if isinstance(frozen, UNet) else frozen.lower.in_features
            self.rise = rise(width, code)
            self.branch = UNetBranch(frozen) if isinstance(frozen, UNet) else MLPBranch(frozen)
            self.branch.requires_grad_(True)

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": "gradient-estimator", "net": dict(self.net.config), "code": self.code}

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the conditions that a call accepts."""
        return ("code", *self.net.conditions)

    def null_conditions(self, **cond: Tensor) -> dict[str, Tensor]:
        """The same conditions, meaning "none"."""
        return nothing(self.net, cond)

    def train(self, mode: bool = True) -> "GradientEstimator":
        """The frozen part stays in evaluation mode."""
        super().train(mode)
        self.net.eval()
        return self

    def forward(self, x: Tensor, c_noise: Tensor, code: Tensor | None = None, **cond: Tensor | None) -> Tensor:
        if code is None:
            return self.net(x, c_noise, **cond)  # type: ignore[no-any-return]
        frozen, shift = self.branch(self.net, x, c_noise, partial(told, rise=self.rise, code=code, wanted=self.code), cond)
        out: Tensor = frozen + shift * real(code).view(-1, *[1] * (x.ndim - 1))
        return out


Told = Callable[[Tensor], Tensor]


class UNetBranch(nn.Module):
    """The middle and the way up of a U-Net once more: F and G of one call."""

    def __init__(self, net: UNet) -> None:
        super().__init__()
        self.mid, self.up, self.norm, self.out = (copy.deepcopy(m) for m in (net.mid, net.up, net.norm, net.out))
        zeroed(self.out)

    def forward(self, net: UNet, x: Tensor, c: Tensor, told: Told, cond: dict[str, Any]) -> tuple[Tensor, Tensor]:
        state, shift = net.start(x, c, **cond), x
        for name in net.stages:
            if name == "mid":
                shift = self.shift(net, state, told(state.embedding))
            net.advance(name, state)
        return net.finish(state), shift

    def shift(self, net: UNet, state: State, e: Tensor) -> Tensor:
        """G from the features and skips of the frozen encoder."""
        h: Tensor = self.mid(state.h, e, state.context, state.mask)
        assert isinstance(self.up, nn.ModuleList)
        for stage, skip in zip(reversed(self.up), reversed([*state.skips, state.h]), strict=True):
            h = stage(torch.cat((grow(h, skip.shape[2:]), skip), 1), e, state.context, state.mask)
        h = self.out(F.silu(self.norm(h)))
        patch = net.config["patch"]
        return crop(h if patch == 1 else unfold(h, patch), state.size)


class MLPBranch(nn.Module):
    """The second half of the layers of an MLP once more: F and G of one call."""

    def __init__(self, net: MLP) -> None:
        super().__init__()
        self.first = len(net.inner) // 2
        # the layers before are the frozen network's own
        self.layers = copy.deepcopy(net)
        del self.layers.rise, self.layers.label, self.layers.guidance
        for part in (self.layers.norms, self.layers.inner, self.layers.outer):
            for k in range(self.first):
                part[k] = nn.Identity()
        zeroed(self.layers.lower)

    def forward(self, net: MLP, x: Tensor, c: Tensor, told: Told, cond: dict[str, Any]) -> tuple[Tensor, Tensor]:
        h = net.start(x, c, **cond)
        for k in range(self.first):
            h = net.layer(h, k)
        g = told(h)
        for k in range(self.first, len(net.inner)):
            h, g = net.layer(h, k), self.layers.layer(g, k)
        return net.finish(h), self.layers.finish(g)


def built(net: nn.Module | Mapping[str, Any], seed: int) -> nn.Module:
    from fokker.net import build

    return build(net, seed) if isinstance(net, Mapping) else net


def size(code: int) -> int:
    if code < 1:
        raise FokkerError(f"code={code} is not accepted; a code has at least 1 number")
    return code


def rise(width: int, code: int) -> nn.Sequential:
    """The map from a code to features of this width."""
    return nn.Sequential(nn.Linear(code, width), nn.SiLU(), nn.Linear(width, width))


def real(code: Tensor) -> Tensor:
    """1 for a code, 0 for none, (batch,)."""
    return (code != 0).any(1).to(code.dtype)


def told(features: Tensor, rise: nn.Module, code: Tensor, wanted: int) -> Tensor:
    """Features (batch, ..., width) with the code in them; raises FokkerError for a code of another shape."""
    if code.shape != (len(features), wanted):
        raise FokkerError(f"code has shape {tuple(code.shape)}; this call takes {(len(features), wanted)}")
    extra: Tensor = rise(code.to(features.dtype)) * real(code)[:, None]
    return features + (extra[:, None] if features.ndim == 3 else extra)


def nothing(net: Network | MLP, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Conditions that mean "none"; a code among them."""
    rest = {k: v for k, v in cond.items() if k != "code"}
    code = {k: torch.zeros_like(v) for k, v in cond.items() if k == "code"}
    return {**net.null_conditions(**rest), **code}
