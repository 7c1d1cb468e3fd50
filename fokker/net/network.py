"""What every network of the house is: a size, a list of conditions, a configuration, and stages that run one after another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fokker.errors import FokkerError, unknown
from fokker.net.layers import Guidance, crop, pad


@dataclass
class State:
    """A network call under way: the features, what the stages behind left for those ahead, and what all of them are told."""

    h: Tensor
    embedding: Tensor
    size: tuple[int, ...]
    grid: tuple[int, ...]
    context: Tensor | None = None
    mask: Tensor | None = None
    skips: list[Tensor] = field(default_factory=list)


class Network(nn.Module):
    """`net(x, c_noise, **cond)`: x (batch, channels, *space) to (batch, out_channels, *space), any size.

    c_noise (batch,) or one number; every condition has a leading batch dimension and may be left out, or None:
    `label` (batch,) int64, negative for none; `tokens` (batch, L, token_dim), where a token of zeros is no token, with an
    optional `token_mask` (batch, L) bool; `image` (batch, image_channels, *space), or `y`, the anchor of a process, in its
    place; `guidance` (batch,), its scale, for networks that had it distilled into them. Sizes are extended to `multiple` by
    reflection and cropped back. Raises FokkerError for anything else.

    A call is `start`, then `advance` through the names in `stages`, then `finish`; a caller may run these itself to look at,
    fuse or reuse the features `state.h` between two stages.
    """

    stages: tuple[str, ...]
    multiple: int

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config: dict[str, Any] = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}
        self.dim: int = config["dim"]
        self.channels: int = config["channels"]
        self.out_channels: int = config["out_channels"] or config["channels"]
        self.classes: int = config["classes"]
        self.token_dim: int | None = config["tokens"]
        self.image_channels: int = config["image_channels"]
        self.guidance: Guidance | None = None
        if self.dim not in (1, 2, 3):
            raise FokkerError(f"dim={self.dim} is not accepted; a network works on 1, 2 or 3 dimensions")
        counts = {"width": 1, "channels": 1, "heads": 1, "patch": 1, "classes": 0, "image_channels": 0}
        for name, least in counts.items():
            if config[name] < least:
                raise FokkerError(f"{name}={config[name]} is not accepted; use {least} or more")
        if not 0 <= config["dropout"] <= 0.9:
            raise FokkerError(f"dropout={config['dropout']} is not accepted; use a share from 0 to 0.9")
        null = torch.empty(self.token_dim or 0)
        self.null_token = nn.Parameter(nn.init.normal_(null, std=0.3)) if self.token_dim else None

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the conditions that a call accepts."""
        given = {"label": self.classes, "tokens": self.token_dim, "token_mask": self.token_dim}
        given |= {"image": self.image_channels, "y": self.image_channels, "guidance": int(self.guidance is not None)}
        return tuple(name for name, wanted in given.items() if wanted)

    def null(self, batch: int, device: torch.device | str | None = None) -> dict[str, Tensor]:
        """Conditions that mean "none" for `batch` samples; an image is left out, which means zeros."""
        cond = {}
        if self.classes:
            cond["label"] = torch.full((batch,), -1, dtype=torch.int64, device=device)
        if self.token_dim:
            cond["tokens"] = torch.zeros(batch, 1, self.token_dim, device=device)
        return cond

    def null_conditions(self, **cond: Tensor) -> dict[str, Tensor]:
        """The same conditions, meaning "none", in the same shapes; an anchor `y` stays, for it belongs to the process."""
        made: dict[str, Callable[[Tensor], Tensor]] = {"label": lambda v: torch.full_like(v, -1), "y": lambda v: v}
        made["guidance"] = torch.ones_like  # a scale of 1 is none
        return {name: made.get(name, torch.zeros_like)(value) for name, value in cond.items()}

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor | None) -> Tensor:
        state = self.start(x, c_noise, **cond)
        for name in self.stages:
            self.advance(name, state)
        return self.finish(state)

    def start(self, x: Tensor, c_noise: Tensor, **cond: Tensor | None) -> State:
        """Check the call, embed the noise level and the conditions, and lift x to features."""
        for name in cond:
            if name not in self.conditions:
                raise unknown("condition", name, self.conditions)
        given = {name: value for name, value in cond.items() if value is not None}
        self._check(x, given)
        batch, size = x.shape[0], tuple(x.shape[2:])
        image = given.get("image", given.get("y"))
        if self.image_channels:
            blank = x.new_zeros(batch, self.image_channels, *size)
            x = torch.cat((x, blank if image is None else image.to(x.dtype)), 1)
        x = pad(x, self.multiple, self.config.get("periodic", False))
        h, grid = self.lift(x)
        embedding = self.embed(self._levels(c_noise, batch, grid), given.get("label"))
        if self.guidance is not None:
            told = self.guidance(given.get("guidance"))
            embedding = embedding + (told[:, None] if embedding.ndim == 3 else told)
        context, mask = self._context(batch, given.get("tokens"), given.get("token_mask"))
        return State(h, embedding, size, grid, context, mask)

    def finish(self, state: State) -> Tensor:
        """The output, cropped to the size of the input."""
        return crop(self.lower(state), state.size).contiguous()

    def advance(self, name: str, state: State) -> None:
        """Run the stage `name`: state.h before it becomes state.h after it."""
        raise FokkerError(f"{type(self).__name__} does not define advance(name, state); a network must")

    def lift(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Features of a padded x, and the grid of positions on which noise levels may differ."""
        raise FokkerError(f"{type(self).__name__} does not define lift(x); a network must")

    def embed(self, c_noise: Tensor, label: Tensor | None) -> Tensor:
        """The vector that every stage is modulated with."""
        raise FokkerError(f"{type(self).__name__} does not define embed(c_noise, label); a network must")

    def lower(self, state: State) -> Tensor:
        """Features to the padded output."""
        raise FokkerError(f"{type(self).__name__} does not define lower(state); a network must")

    def _levels(self, c_noise: Tensor, batch: int, grid: Sequence[int]) -> Tensor:
        if c_noise.numel() == 1:
            return c_noise.reshape(1).expand(batch)
        if tuple(c_noise.shape) == (batch,):
            return c_noise
        raise FokkerError(f"c_noise has shape {tuple(c_noise.shape)} for {batch} samples; give one number a sample")

    def _context(self, batch: int, tokens: Tensor | None, seen: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Tokens behind a learned one that is always there, so that a sample without any has something to attend to."""
        if self.null_token is None:
            return None, None
        first = self.null_token.expand(batch, 1, -1)
        if tokens is None:
            return first, None
        real = (tokens != 0).any(-1)
        mask = torch.cat((real.new_ones(batch, 1), real if seen is None else real & seen), 1)
        return torch.cat((first, tokens.to(first.dtype)), 1), mask[:, None, None, :]

    def _check(self, x: Tensor, cond: Mapping[str, Tensor]) -> None:
        if x.ndim != self.dim + 2 or x.shape[1] != self.channels:
            axes = ", ".join(["batch", str(self.channels), *("depth", "height", "width")[3 - self.dim :]])
            raise FokkerError(f"x has shape {tuple(x.shape)}; this network takes ({axes})")
        if "image" in cond and "y" in cond:
            raise FokkerError("image and y are two names of one condition; give one of them")
        if "token_mask" in cond and "tokens" not in cond:
            raise FokkerError("token_mask is given without tokens; give both or none")
        batch = x.shape[0]
        image = (batch, self.image_channels, *x.shape[2:])
        length = cond["tokens"].shape[1:2] if "tokens" in cond else ()
        shapes = {"label": (batch,), "guidance": (batch,)}
        shapes |= {"tokens": (batch, *length, self.token_dim), "token_mask": (batch, *length)}
        for name, value in cond.items():
            if tuple(value.shape) != shapes.get(name, image):
                wanted = shapes.get(name, image)
                raise FokkerError(f"{name} has shape {tuple(value.shape)}; this call takes {wanted}")
        label = cond.get("label")
        if label is not None and (label.is_floating_point() or label.dtype == torch.bool):
            raise FokkerError(f"label has dtype {label.dtype}; give int64 classes, -1 for none")
        if "token_mask" in cond and cond["token_mask"].dtype != torch.bool:
            raise FokkerError(f"token_mask has dtype {cond['token_mask'].dtype}; give booleans, True for a real token")
        # Reading values off another device would make it wait; there an index out of range is the device's own error.
        if label is not None and label.device.type == "cpu" and not torch.compiler.is_compiling():
            most = int(label.max()) if label.numel() else -1
            if most >= self.classes:
                raise FokkerError(
                    f"label {most} is out of range; this network knows 0 to {self.classes - 1}, -1 for none"
                )
