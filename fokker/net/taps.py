"""Taps: read, edit, replace or skip what any module of any torch network computes, by its dotted name.

    with taps(net, ["mid"]) as seen:
        net(x, c)
    seen["mid"]                                                   # the features

    with taps(net, edit={"mid": lambda h: h + direction}): ...    # change them
    with taps(net, replace={"mid": seen["mid"]}): ...             # put others in their place: the module is not run
    with taps(net, skip=["blocks.3"]): ...                        # hand the first argument on: the module is not run
    with taps(net, maps=["mid.0.attention"]) as seen: ...         # seen.maps["mid.0.attention"] (batch, heads, L, M)

Names may be patterns ("up.*.attention"). A tap lives as long as its `with` block: a module's `forward` is shadowed inside it
and restored at its end, whatever happens, and nothing stays on the network. Blocks may be nested; the inner one is nearer to
the module's callers. Attention is opened up for every module that computes it with `scaled_dot_product_attention`, ours and
other libraries': only inside a module whose attention is tapped is the product replaced by an explicit softmax.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fokker.errors import FokkerError, unknown

Call = Callable[..., Any]
EditHeads = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
EditMap = Callable[[Tensor], Tensor]


class Seen(dict[str, Any]):
    """What was read, by module name, when each module ran last."""

    def keep(self, name: str, value: Any) -> Any:
        """Store `value` and hand it on."""
        self[name] = value
        return value

    def __missing__(self, name: str) -> Any:
        raise FokkerError(
            f"nothing was read from {name!r}; tap it by that name and call the network inside the with block"
        )


class Features(Seen):
    """The outputs that were read, and in `maps` the attention maps."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = Seen()


@contextmanager
def taps(
    net: nn.Module,
    read: Iterable[str] = (),
    *,
    edit: Mapping[str, Call] | None = None,
    replace: Mapping[str, Any] | None = None,
    skip: Iterable[str] = (),
    around: Mapping[str, Call] | None = None,
    maps: Iterable[str] = (),
    edit_maps: Mapping[str, EditMap] | None = None,
    edit_heads: Mapping[str, EditHeads] | None = None,
) -> Iterator[Features]:
    """Tap modules of `net` inside the block; yields the `Features` that are read.

    read:       names whose outputs are kept, with their graph, as they leave the module: edited or replaced
    edit:       name -> f(output) -> output
    replace:    name -> the output; the module, and all inside it, is not run
    skip:       names whose first argument is the output; the module is not run
    around:     name -> f(call, *args, **kwargs) -> output, where call(*args, **kwargs) runs the module
    maps:       names of attention modules whose maps (batch, heads, queries, keys) are kept, with their graph, edited
    edit_maps:  name -> f(map) -> map, after the softmax
    edit_heads: name -> f(q, k, v) -> (q, k, v), each (batch, heads, tokens, channels), before the product

    Raises FokkerError for a name that fits no module, for a compiled network, and, when it runs, for a tapped attention
    that computes no product, or a map read from a module that computes several.
    """
    if hasattr(net, "_orig_mod"):
        raise FokkerError("a compiled network does not see taps; tap the network that was given to torch.compile")
    modules, seen = dict(net.named_modules()), Features()
    # From nearest to the module to nearest to its callers.
    layers: list[tuple[Iterable[str] | Mapping[str, Any] | None, Callable[[str, Any], Call]]] = [
        (edit_heads, lambda name, f: Opening(name, heads=f)),
        (edit_maps, lambda name, f: Opening(name, change=f)),
        (maps, lambda name, _: Opening(name, keep=seen.maps)),
        (around, lambda name, f: f),
        (skip, lambda name, _: lambda call, *args, **kwargs: [*args, *kwargs.values()][0]),
        (replace, lambda name, value: lambda call, *args, **kwargs: value),
        (edit, lambda name, f: lambda call, *args, **kwargs: f(call(*args, **kwargs))),
        (read, lambda name, _: lambda call, *args, **kwargs: seen.keep(name, call(*args, **kwargs))),
    ]
    with ExitStack() as stack:
        for names, make in layers:
            for name, value in _matched(names, modules):
                stack.callback(_shadow(modules[name], make(name, value)))
        yield seen


def _matched(
    names: Iterable[str] | Mapping[str, Any] | None, modules: Mapping[str, nn.Module]
) -> Iterator[tuple[str, Any]]:
    """The modules that names and patterns stand for, each with the value that belongs to it."""
    if isinstance(names, str):
        names = [names]
    given = names if isinstance(names, Mapping) else dict.fromkeys(names or ())
    for pattern, value in given.items():
        found = [name for name in modules if name == pattern or fnmatchcase(name, pattern)]
        if not found:
            near = get_close_matches(pattern, modules, n=1, cutoff=0.5)
            raise unknown("module", pattern, near or [name for name in modules if name and name.count(".") < 2])
        for name in found:
            yield name, value


def _shadow(module: nn.Module, around: Call) -> Callable[[], None]:
    """Put `around` before the module's forward; returns what undoes it."""
    own = module.__dict__.get("forward")
    inner = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return around(inner, *args, **kwargs)

    def restore() -> None:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own

    module.__dict__["forward"] = forward
    return restore


@dataclass
class Opening:
    """One tap on the attention inside a module. All openings under which a product runs act on it, the innermost first."""

    name: str
    heads: EditHeads | None = None
    change: EditMap | None = None
    keep: Seen | None = None
    products: int = 0

    def __call__(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        self.products = 0
        token = _OPEN.set((self, *_OPEN.get()))
        try:
            with _Explicit():
                out = call(*args, **kwargs)
        finally:
            _OPEN.reset(token)
        if self.products == 0:
            raise FokkerError(f"{self.name!r} computed no scaled_dot_product_attention; tap a module that does")
        if self.keep is not None and self.products > 1:
            raise FokkerError(
                f"{self.name!r} computed {self.products} attention maps; tap the attention modules inside it"
            )
        return out


_OPEN: ContextVar[tuple[Opening, ...]] = ContextVar("open attentions", default=())


class _Explicit(TorchFunctionMode):
    """While it is entered, attention is computed where it can be seen."""

    def __torch_function__(self, func: Call, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _product(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q k^T / sqrt(channels) + mask) v, each opening's changes in their places; torch's signature and meaning."""
    openings = _OPEN.get()
    for opening in openings:
        opening.products += 1
        if opening.heads is not None:
            query, key, value = opening.heads(query, key, value)
    if enable_gqa:
        key, value = (kv.repeat_interleave(query.shape[-3] // kv.shape[-3], -3) for kv in (key, value))
    logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        logits = logits + attn_mask
    weights = logits.softmax(-1)
    for opening in openings:
        if opening.change is not None:
            weights = opening.change(weights)
        if opening.keep is not None:
            opening.keep.keep(opening.name, weights)
    return F.dropout(weights, dropout_p) @ value if dropout_p else weights @ value
