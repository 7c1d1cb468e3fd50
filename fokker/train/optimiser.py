"""The optimiser of a run: AdamW, which parameters decay, and the share of the learning rate that each part gets."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fokker.errors import FokkerError, unknown


@dataclass(frozen=True)
class Optimiser:
    """AdamW; kernels decay by `weight_decay`, gains and biases do not; `clip` bounds the gradient norm (0 = off).

    rates  factors of the learning rate, by how the names of parameters begin, as checkpoints have them:
           {"denoiser.initialiser": 0.1}. A name has the factor of its longest beginning, or 1; with 0 it stays as it is

    Raises FokkerError for a factor that is no number of at least 0 and, when built, for a beginning that no name has.
    """

    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    rates: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.rates, Mapping):
            raise FokkerError(f"rates={self.rates!r} is not accepted; give factors of the learning rate by name")
        for prefix, factor in self.rates.items():
            number = isinstance(factor, int | float) and not isinstance(factor, bool)
            if not number or not math.isfinite(factor) or factor < 0:
                raise FokkerError(f"rates: {prefix}={factor!r} is not accepted; a factor is a number of at least 0")

    def factor(self, name: str) -> float:
        """What the learning rate of the parameter called `name` is multiplied by."""
        fitting = [prefix for prefix in self.rates if _begins(name, prefix)]
        return float(self.rates[max(fitting, key=len)]) if fitting else 1.0

    def groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """What decays and what does not, for each factor of the learning rate."""
        trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not trainable:
            raise FokkerError("the denoiser has no trainable parameter; give one with a network")
        for prefix in self.rates:
            if not any(_begins(name, prefix) for name in trainable):
                raise unknown("beginning of a trainable parameter's name in rates:", prefix, _beginnings(trainable))
        kinds: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for factor in dict.fromkeys(self.factor(name) for name in trainable):
            for decays in (True, False):
                found = [p for name, p in trainable.items() if (self.factor(name), p.ndim >= 2) == (factor, decays)]
                if found:
                    kinds[factor, decays] = found
        return [
            {"params": params, "weight_decay": self.weight_decay if decays else 0.0, "factor": factor}
            for (factor, decays), params in kinds.items()
        ]

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """The fused optimiser with its state laid out, so that the first checkpoint is complete."""
        groups = self.groups(module)
        optimiser = torch.optim.AdamW(groups, lr=0.0, betas=(self.beta1, self.beta2), eps=self.eps, fused=True)
        for p in (p for group in groups for p in group["params"]):
            p.grad = torch.zeros_like(p)
        flag(optimiser, None, torch.ones((), device=groups[0]["params"][0].device))
        optimiser.step()  # a step that is flagged as not finite allocates and changes nothing
        optimiser.zero_grad(set_to_none=True)
        return optimiser

    def build_sharded(self, module: nn.Module) -> torch.optim.Optimizer:
        """The same for slices of weights, which the fused optimiser cannot be told to skip: its empty step is undone."""
        optimiser = torch.optim.AdamW(self.groups(module), lr=0.0, betas=(self.beta1, self.beta2), eps=self.eps, foreach=True)
        for p in (p for group in optimiser.param_groups for p in group["params"]):
            p.grad = torch.zeros_like(p)
        optimiser.step()
        for slots in optimiser.state.values():
            slots["step"].zero_()
        optimiser.zero_grad(set_to_none=True)
        return optimiser


def pace(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["factor"]


def flag(optimiser: torch.optim.Optimizer, scale: Tensor | None, bad: Tensor) -> None:
    """Tell a fused optimiser to divide gradients by `scale` and to skip its step where `bad` is 1, without a wait."""
    optimiser.grad_scale = scale  # type: ignore[attr-defined]
    optimiser.found_inf = bad  # type: ignore[attr-defined]


def _begins(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _beginnings(names: Iterable[str], most: int = 3) -> set[str]:
    """The first parts of dotted names, up to `most` of them."""
    split = [name.split(".") for name in names]
    return {".".join(parts[: n + 1]) for parts in split for n in range(min(len(parts), most))}
