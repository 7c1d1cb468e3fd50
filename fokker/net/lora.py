"""Low-rank deltas on the linear and convolutional layers of any network: attached, merged, stored, added up."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor, nn

from fokker import store
from fokker.errors import FokkerError
from fokker.net.layers import seeded

FORMAT = "fokker lora 1"
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LowRank(nn.Module):
    """y = base(x) + scale up(down(x)): a layer with a delta of its weight, scale U D, that starts at zero.

    The base is frozen. Of a convolution `down` has its kernel and stride, `up` is pointwise.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        weight = base.weight
        assert isinstance(weight, Tensor)
        rank = min(rank, weight.shape[0], weight[0].numel())
        self.down = nn.Parameter(torch.empty(rank, *weight.shape[1:], dtype=weight.dtype, device=weight.device))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, dtype=weight.dtype, device=weight.device))
        nn.init.uniform_(self.down, -(self.down[0].numel() ** -0.5), self.down[0].numel() ** -0.5)
        for parameter in base.parameters():
            parameter.requires_grad_(False)

    def delta(self) -> Tensor:
        """scale U D in the shape of the weight."""
        product: Tensor = self.scale * (self.up @ self.down.flatten(1)).unflatten(1, self.down.shape[1:])
        return product

    @property
    def weight(self) -> Tensor:
        """The weight with its delta."""
        weight: Tensor = self.base.weight + self.delta()  # type: ignore[operator]
        return weight

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.base, nn.Linear):
            low: Tensor = nn.functional.linear(x, self.down)
            whole: Tensor = self.base(x) + self.scale * nn.functional.linear(low, self.up)
            return whole
        # a convolution is linear in its weight: one call with the sum costs less than two more calls
        out: Tensor = self.base._conv_forward(x, self.weight, self.base.bias)  # type: ignore[operator]
        return out


@dataclass(frozen=True)
class Lora:
    """The deltas of a network by the names of its layers: `attach` puts them on, `merge` into the weights, `detach` off."""

    net: nn.Module
    layers: Mapping[str, LowRank]

    def state(self) -> dict[str, Tensor]:
        """name.down and name.up of every layer, with the scale multiplied into up: all that the deltas are."""
        out = {}
        for name, layer in self.layers.items():
            out[f"{name}.down"] = layer.down.detach().clone()
            out[f"{name}.up"] = (layer.scale * layer.up).detach().clone()
        return out

    def detach(self) -> nn.Module:
        """The network as it was before `attach`."""
        for name, layer in self.layers.items():
            _put(self.net, name, layer.base)
        return self.net

    def merge(self) -> nn.Module:
        """The network with plain layers again, the deltas in their weights."""
        add(self.detach(), (self.state(), 1.0))
        return self.net


def attach(
    net: nn.Module, rank: int = 8, scale: float = 1.0, layers: Sequence[str] = ("*",), seed: int = 0
) -> Lora:
    """Put a trainable low-rank delta on each linear or convolutional layer whose name fits a pattern; freeze all else.

    `rank` is cut to what the layer has; `scale` multiplies the delta (alpha / rank in other libraries). What the network
    answers is unchanged until the deltas are trained. Raises FokkerError where no layer fits.

    Reference: Hu et al. 2022, arXiv 2106.09685.
    """
    if rank < 1:
        raise FokkerError(f"rank={rank} is not accepted; use at least 1")
    chosen = [name for name, _ in _found(net) if any(fnmatch(name, pattern) for pattern in layers)]
    if not chosen:
        raise FokkerError(f"no linear or convolutional layer of {type(net).__name__} fits {list(layers)}; try '*'")
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    with seeded(seed):
        made = {name: LowRank(net.get_submodule(name), rank, scale) for name in chosen}
    for name, layer in made.items():
        _put(net, name, layer)
    return Lora(net, made)


@torch.no_grad()
def add(net: nn.Module, *parts: tuple[Mapping[str, Tensor], float]) -> nn.Module:
    """Add a weighted sum of states to the weights of a plain network: W + sum_k lambda_k U_k D_k; returns the network.

    Raises FokkerError for a delta of a layer that the network has not, or of another shape.
    """
    plain = dict(_found(net))
    for state, strength in parts:
        for name in sorted({key.rpartition(".")[0] for key in state}):
            if name not in plain or f"{name}.down" not in state or f"{name}.up" not in state:
                raise FokkerError(f"there is a delta for {name!r}, no layer of this {type(net).__name__}; check the file")
            weight, down, up = plain[name].weight, state[f"{name}.down"], state[f"{name}.up"]
            if (up.shape[0], *down.shape[1:]) != tuple(weight.shape):
                raise FokkerError(
                    f"the delta of {name!r} has shape {(up.shape[0], *down.shape[1:])}, its weight {tuple(weight.shape)}"
                )
            product = up.to(weight.device, torch.float64) @ down.to(weight.device, torch.float64).flatten(1)
            weight += (strength * product).reshape(weight.shape).to(weight.dtype)
    return net


@torch.no_grad()
def difference(net: nn.Module, base: nn.Module, rank: int) -> dict[str, Tensor]:
    """What `net` has beyond `base`, to rank `rank`, as deltas: the best such approximation, exact where the difference is one.

    Layers that do not differ have none; biases and gains are left out. Raises FokkerError for networks of other layers.
    """
    ours, theirs = dict(_found(net)), dict(_found(base))
    if ours.keys() != theirs.keys():
        raise FokkerError(f"the layers of {type(net).__name__} and {type(base).__name__} are not the same; give its own base")
    out = {}
    for name, layer in ours.items():
        delta = layer.weight.to(torch.float64) - theirs[name].weight.to(layer.weight.device, torch.float64)
        if not bool(delta.any()):
            continue
        u, s, v = torch.linalg.svd(delta.flatten(1), full_matrices=False)
        r = min(rank, len(s))
        out[f"{name}.down"] = v[:r].unflatten(1, delta.shape[1:]).to(layer.weight.dtype).contiguous()
        out[f"{name}.up"] = (u[:, :r] * s[:r]).to(layer.weight.dtype).contiguous()
    return out


def save(state: Mapping[str, Tensor], path: str | Path) -> Path:
    """Write deltas to one safetensors file."""
    store.write(path, dict(state), {"format": FORMAT})
    return Path(path)


def load(path: str | Path) -> dict[str, Tensor]:
    """Deltas from a file that `save` wrote; raises FokkerError for another."""
    tensors, header = store.read(path)
    if header.get("format") != FORMAT:
        raise FokkerError(f"{path} holds {header.get('format', 'something else')!r}, not the deltas of a network")
    return tensors


def _found(net: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in net.named_modules():
        if isinstance(module, _LAYERS):
            yield name, module  # type: ignore[misc]


def _put(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, module)
