"""What a sample may be asked to be: the conditions of a data set as a network's tokens.

A network knows `label`, `image` or `y`, and `tokens`. Every other condition of a data set (a colour, factors, words of a
caption) becomes tokens here, by trainable tables that are part of the model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fokker.data.source import Condition
from fokker.data.words import PAD, Words
from fokker.errors import FokkerError, unknown
from fokker.net.layers import seeded

DIRECT = ("label", "image", "y", "guidance")  # conditions that networks take as they are


class Conditioner(nn.Module):
    """Conditions by name to `tokens` (batch, sum of lengths, width).

    A category (int64, () or (L,)) is L rows of a table, plus a learned place; negative numbers and padding words are no
    token. Numbers (float32, () or (k,)) are one token, a linear map of them; where all are zero there is no token.
    """

    def __init__(self, conditions: Mapping[str, Condition], width: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.conditions, self.width = dict(conditions), width
        self.tables, self.places = nn.ModuleDict(), nn.ParameterDict()
        with seeded(seed):
            for name, c in self.conditions.items():
                if len(c.shape) > 1:
                    raise FokkerError(f"condition {name!r} has shape {c.shape}; only values and lists become tokens")
                if c.discrete and not c.names:
                    raise FokkerError(f"condition {name!r} is a category without names; name its categories")
                length = c.shape[0] if c.shape else 1
                self.tables[name] = nn.Embedding(len(c.names), width) if c.discrete else nn.Linear(length, width)
                place = torch.empty(length if c.discrete else 1, width)
                self.places[name] = nn.Parameter(nn.init.normal_(place, std=0.3))

    @property
    def config(self) -> dict[str, Any]:
        """What rebuilds this conditioner."""
        fields = {k: [list(c.shape), c.discrete, list(c.names)] for k, c in self.conditions.items()}
        return {"width": self.width, "conditions": fields}

    def forward(self, **given: Tensor) -> Tensor | None:
        """The tokens of the conditions that were given; None if there were none."""
        tokens = [self._tokens(name, value) for name, value in given.items()]
        return torch.cat(tokens, 1) if tokens else None

    def _tokens(self, name: str, value: Tensor) -> Tensor:
        if name not in self.conditions:
            raise unknown("condition", name, (*self.conditions, *DIRECT))
        c, table, place = self.conditions[name], self.tables[name], self.places[name]
        if tuple(value.shape[1:]) != c.shape or value.is_floating_point() == c.discrete:
            kind = "int64" if c.discrete else "float32"
            raise FokkerError(f"{name} is {value.dtype} {tuple(value.shape)}; give {kind} of shape (batch, *{c.shape})")
        flat = value.reshape(len(value), -1)
        if c.discrete:
            real = (flat >= 0) & (flat != c.names.index(PAD) if PAD in c.names else True)
            tokens: Tensor = table(flat.clamp_min(0)) + place
        else:
            real = (flat != 0).any(1, keepdim=True)
            tokens = (table(flat) + place[0])[:, None]
        return tokens * real[..., None]


class Conditioned(nn.Module):
    """A network whose `tokens` come from a `Conditioner`: `net(x, c_noise, **conditions of the data)`."""

    def __init__(self, net: nn.Module, conditioner: Conditioner) -> None:
        super().__init__()
        self.net, self.conditioner = net, conditioner

    def forward(self, x: Tensor, c_noise: Tensor, **given: Tensor) -> Tensor:
        direct = {k: v for k, v in given.items() if k in DIRECT}
        tokens = self.conditioner(**{k: v for k, v in given.items() if k not in DIRECT})
        out: Tensor = self.net(x, c_noise, **direct, **({} if tokens is None else {"tokens": tokens}))
        return out

    def null_conditions(self, **given: Tensor) -> dict[str, Tensor]:
        """The same conditions, meaning "none"; an anchor y stays."""
        return {k: _none(k, v) for k, v in given.items()}


def _none(name: str, value: Tensor) -> Tensor:
    if name in ("y", "guidance"):
        return value if name == "y" else torch.ones_like(value)
    return torch.zeros_like(value) if value.is_floating_point() else torch.full_like(value, -1)


def read(n: int, conditions: Mapping[str, Condition], given: Mapping[str, object]) -> dict[str, Tensor]:
    """Conditions in the user's words as tensors of n rows.

    A category is a number or a name, or one of them a row; a list of words is a text, or one a row; numbers are a list, or a
    tensor of n rows. Raises FokkerError for anything unknown.
    """
    out: dict[str, Tensor] = {}
    for name, value in given.items():
        if name not in conditions:
            raise unknown("condition", name, conditions)
        out[name] = _rows(n, name, conditions[name], value)
    return out


def _rows(n: int, name: str, c: Condition, value: Any) -> Tensor:
    if c.discrete:
        texts = [value] if isinstance(value, str) else value
        if c.shape and PAD in c.names and _is_list(texts) and all(isinstance(v, str) for v in texts):
            tensor = Words(c.names, c.shape[0]).encode(texts)
        else:
            tensor = torch.as_tensor(_numbers(name, c, value), dtype=torch.int64)
        if tensor.numel() and not -1 <= int(tensor.min()) <= int(tensor.max()) < len(c.names):
            raise FokkerError(f"{name}={tensor.tolist()} is out of range; use 0 to {len(c.names) - 1}, -1 for none")
    else:
        tensor = torch.as_tensor(value, dtype=torch.float32)
    if tuple(tensor.shape) == c.shape or (tuple(tensor.shape[1:]) == c.shape and len(tensor) == 1):
        return tensor.reshape(1, *c.shape).expand(n, *c.shape).contiguous()
    if tuple(tensor.shape) != (n, *c.shape):
        raise FokkerError(f"{name} has shape {tuple(tensor.shape)} for {n} samples; give {c.shape} or {(n, *c.shape)}")
    return tensor


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _numbers(name: str, c: Condition, value: Any) -> Any:
    """Names replaced by their numbers."""
    if isinstance(value, str):
        if value in c.names:
            return c.names.index(value)
        if value.lstrip("-").isdigit():
            return int(value)
        raise unknown(name, value, c.names)
    return [_numbers(name, c, v) for v in value] if _is_list(value) else value
