"""What a network costs: multiply-adds and seconds, in all and layer by layer."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from fokker.net.taps import taps

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class Layer:
    """One module that multiplies: its parameters, and its multiply-adds and seconds in one call of the network."""

    name: str
    kind: str
    parameters: int
    macs: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.name:<32}{self.kind:<14}{self.parameters:>10,}{self.macs / 1e6:>12.3f} M{self.seconds * 1e3:>10.3f} ms"


def _counter() -> FlopCounterMode:
    # attention's kernel for CPUs is not among those that torch counts
    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    return FlopCounterMode(display=False, custom_mapping={_ATTENTION: attention})


def macs(function: Callable[[], Any]) -> int:
    """The multiply-adds that are executed while `function()` runs: convolutions, matrix products, attention.

    What a cache leaves out is not counted, for it is not run. Products of int8 kernels are not seen by torch's counter.
    """
    with _counter() as counter, torch.no_grad():
        function()
    return int(counter.get_total_flops()) // 2


def layers(net: nn.Module, *arguments: Any, repeats: int = 5, **cond: Any) -> list[Layer]:
    """Every module of `net` that multiplies in the call net(*arguments, **cond), in the order of definition.

    A module's own multiply-adds, without those of modules inside it that are rows themselves; its least time of `repeats`
    calls, which includes what runs inside it.
    """
    with _counter() as counter, torch.no_grad():
        net(*arguments, **cond)
    whole = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    prefix = type(net).__name__
    inside = {name.removeprefix(prefix).lstrip("."): n for name, n in whole.items() if name.startswith(prefix)}
    modules = dict(net.named_modules())
    own = {}
    for name, n in inside.items():
        children = [f"{name}.{child}" if name else child for child, _ in modules[name].named_children()]
        own[name] = n - sum(_under(child, inside) for child in children)
    rows = [name for name in modules if own.get(name, 0) > 0]
    best = dict.fromkeys(rows, float("inf"))

    def timed(name: str) -> Callable[..., Any]:
        def around(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            out = call(*args, **kwargs)
            best[name] = min(best[name], time.perf_counter() - begin)
            return out

        return around

    with taps(net, around={name: timed(name) for name in rows}), torch.no_grad():
        for _ in range(repeats):
            net(*arguments, **cond)
    counted = {name: sum(p.numel() for p in modules[name].parameters(recurse=False)) for name in rows}
    return [Layer(name, type(modules[name]).__name__, counted[name], own[name], best[name]) for name in rows]


def _under(name: str, counts: dict[str, int]) -> int:
    """What was counted for a module, or, where it was never called itself (a list), for those inside it."""
    if name in counts:
        return counts[name]
    inner = [other for other in counts if other.startswith(f"{name}.")]
    return sum(counts[n] for n in inner if not any(n.startswith(f"{other}.") for other in inner if other != n))
