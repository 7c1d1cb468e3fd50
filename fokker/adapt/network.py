"""Somebody else's network behind the call of ours: `net(x, clock, **cond)` with conditions of the house's names.

`label` (batch,) int64 and negative for none, `tokens` (batch, L, D) of a text, `token_mask` (batch, L), `pooled` (batch, D) the
text as one vector, `guidance` (batch,) for networks that had their guidance distilled into them, `image` (batch, C, *size) of
what stands beside x, `time_ids` (batch, k) sizes and crops.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fokker.denoiser import NetworkDenoiser
from fokker.errors import FokkerError
from fokker.process import Time, as_time

Empty = Callable[[], dict[str, Tensor]]
KEPT = ("guidance", "image", "time_ids", "y")  # not words: guidance does not drop them


class Told(NetworkDenoiser):
    """A network denoiser with a clock of its own, which is read on the CPU once for each time of a plan."""

    def c_noise(self, t: Time, x: Tensor) -> Tensor:
        if isinstance(t, float) and self.clock is not None:
            # filled in on the device: a copy from the CPU would stall it, and cannot be part of a CUDA graph
            told = float(self.clock(as_time(t)))
            return torch.full((x.shape[0],), told, dtype=torch.float32, device=x.device)
        return super().c_noise(t, x)


class Adapted(nn.Module):
    """The network `net` with what is known about its conditions.

    needed      names without which a call is refused
    null_label  the class that stands for none
    empty       gives the conditions of an empty text, each (1, ...)
    sign        -1 where the network predicts the negative of what its scheduler says
    """

    conditions: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    null_label: int | None = None
    spread: bool = False

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.config: Any = net.config
        self.empty: Empty | None = None
        self.sign = 1.0

    def save_memory(self) -> bool:
        """Attention in slices from now on, where the network can; False if it is so already, or cannot."""
        if getattr(self, "_sliced", False) or not hasattr(self.net, "set_attention_slice"):
            return False
        net: Any = self.net
        net.set_attention_slice("max")
        self._sliced = True
        return True

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the weights."""
        return next(self.net.parameters()).dtype

    @property
    def x_shape(self) -> tuple[int, int, int] | None:
        """(channels, height, width) of the x that it was made for, None if its configuration does not say."""
        size = self.config.get("sample_size")
        if size is None:
            return None
        height, width = (size, size) if isinstance(size, int) else size
        return (self.channels, height, width)

    @property
    def channels(self) -> int:
        """The channels of x."""
        return int(self.config.in_channels)

    def sequence(self, height: int, width: int) -> int | None:
        """How many tokens an x of that size becomes, None where nothing depends on it."""
        return None

    def forward(self, x: Tensor, clock: Tensor, **cond: Tensor | None) -> Tensor:
        given = self.complete(x, {name: value for name, value in cond.items() if value is not None})
        clock = clock.reshape(-1).expand(x.shape[0])
        out = self.call(x, clock, {k: v.to(x.dtype) if v.is_floating_point() else v for k, v in given.items()})
        # what else comes out is a learned variance
        out = out[:, : x.shape[1]]
        return out if self.sign == 1 else self.sign * out

    def call(self, x: Tensor, clock: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The network's own call; what subclasses implement."""
        raise FokkerError(f"{type(self).__name__} does not define call(x, clock, cond); an adapter must")

    def complete(self, x: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """The conditions of a call: what was left out means "none", and what is negative among labels the null class."""
        missing = [name for name in self.needed if name not in given]
        if missing:
            words = [name for name in missing if name not in KEPT and name != "label"]
            if "label" in missing and self.null_label is not None:
                given["label"] = torch.full((x.shape[0],), -1, device=x.device)
            if words and self.empty is not None:
                none = self.empty()
                given |= {name: none[name].to(x.device).expand(x.shape[0], *none[name].shape[1:]) for name in words}
            missing = [name for name in missing if name not in given]
        if missing:
            how = {"label": "one class a sample, int64", "image": "what stands beside x"}
            said = how.get(missing[0], "what the text encoder makes of a prompt")
            raise FokkerError(f"{type(self.net).__name__} needs {missing[0]}=; give {said}")
        if "label" in given and self.null_label is not None:
            given["label"] = torch.where(given["label"] < 0, self.null_label, given["label"])
        return given

    def null_conditions(self, **cond: Any) -> dict[str, Any]:
        """The same conditions, meaning "none"; raises FokkerError where there is no null class or no text encoder."""
        out: dict[str, Any] = {name: value for name, value in cond.items() if name in KEPT}
        if "label" in cond:
            if self.null_label is None:
                raise FokkerError(
                    f"this {type(self.net).__name__} has no class for none, so it cannot be guided by dropping it"
                )
            out["label"] = torch.full_like(cond["label"], -1)
        words = [name for name in cond if name not in KEPT and name != "label"]
        if words and self.empty is None:
            raise FokkerError(
                f"the text encoder is not here; give guidance negative=dict({words[0]}=...), the empty text's"
            )
        if words and self.empty is not None:
            none = self.empty()
            for name in words:
                value = none[name].to(cond[name])
                out[name] = value.expand(cond[name].shape[0], *value.shape[1:])
        return out
