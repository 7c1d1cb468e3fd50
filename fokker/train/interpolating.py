"""The loss of a bridge between two laws: both fields by regression on what they are the means of."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.interpolants import BridgeField, NetworkField
from fokker.keyed import noise
from fokker.train.objective import Key, Objective, Tensors

RESERVED = ("x", "other", "z", "t")


@dataclass(frozen=True, eq=False)
class Interpolating(Objective):
    """loss = mean of [|b|^2 / 2 - b.(dI/dt + gamma' z)] + [|eta|^2 / 2 - eta.z] over the coordinates, at a uniform time.

    A field that learns v has dI/dt alone as its first target. With `antithetic` every sample is seen with z and -z, whose
    errors cancel near the ends, where gamma' diverges (twice the evaluations).

    other    samples of the law at t = 1, (m, ...), one of which is drawn for each item: the independent coupling. None: the
             batch's own "other" is the partner of its x, a coupling that the data state
    margin   times are uniform in [margin, 1 - margin]

    A `BridgeField` goes where the trainer has a denoiser. Reference: Albergo, Boffi, Vanden-Eijnden 2023, arXiv 2303.08797,
    section 2.
    """

    other: Tensor | None = None
    antithetic: bool = True
    margin: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 0.5:
            raise FokkerError(f"margin={self.margin} is not accepted; use a share in [0, 0.5)")

    def draw(self, denoiser: Any, batch: Tensors, key: Key, device: torch.device | str = "cpu") -> Tensors:
        """x_0, its partner x_1, z, t and the conditions, on `device`."""
        x_0 = batch["x"]
        u = key.each(2)
        if self.other is None:
            if "other" not in batch:
                raise FokkerError("the data have no 'other', the partner of x at t = 1; give other= samples of that law")
            x_1 = batch["other"]
        else:
            x_1 = self.other[(u[:, 0] * len(self.other)).long().clamp(max=len(self.other) - 1)].to(x_0)
        if x_1.shape != x_0.shape:
            raise FokkerError(f"x has shape {tuple(x_0.shape)} and its partner {tuple(x_1.shape)}; a bridge needs equal ones")
        ids, index = key.names()
        z = noise(tuple(x_0.shape), key.seed, ids, "train", index, x_0.dtype)
        t = self.margin + (1 - 2 * self.margin) * u[:, 1]
        drawn = {"x": x_0, "other": x_1, "z": z, "t": t}
        rest = {k: v for k, v in batch.items() if k not in RESERVED}
        return {k: v.to(device) for k, v in (drawn | rest).items()}

    def loss(self, denoiser: Any, drawn: Tensors) -> Tensor:
        """The loss of each sample, (B,)."""
        field: BridgeField = denoiser
        cond = {k: v for k, v in drawn.items() if k not in RESERVED}
        sides = [self.one_side(field, drawn, sign, cond) for sign in ((1.0, -1.0) if self.antithetic else (1.0,))]
        return torch.stack(sides).mean(0)

    def one_side(self, field: BridgeField, drawn: Tensors, sign: float, cond: Tensors) -> Tensor:
        """The loss with sign * z, (B,)."""
        x_0, x_1, z, t = drawn["x"], drawn["other"], sign * drawn["z"], drawn["t"]
        c = field.interpolation.on(t, x_0)
        x_t = c.alpha * x_0 + c.beta * x_1 + c.gamma * z
        target = c.d_alpha * x_0 + c.d_beta * x_1
        if isinstance(field, NetworkField):
            first, eta = field.heads(x_t, t, **cond)
            target = target if field.learn == "v" else target + c.d_gamma * z
        else:
            first, eta = field.fields(x_t, t, **cond)
            target = target + c.d_gamma * z
        both = 0.5 * first.square() - first * target + 0.5 * eta.square() - eta * z
        return both.flatten(1).mean(1)
