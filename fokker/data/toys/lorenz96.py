"""The Lorenz-96 model of weather on a circle of latitude: ensembles of forecasts that diverge."""

import math

import numpy as np
import torch

from fokker.data.draws import Draw, Floats, split_ids
from fokker.data.source import Arrays
from fokker.errors import FokkerError


def tendency(x: Floats, forcing: float) -> Floats:
    """dx_k/dt = (x_{k+1} - x_{k-2}) x_{k-1} - x_k + F, indices around the last axis."""
    around = np.concatenate([x[..., -2:], x, x[..., :1]], axis=-1)
    rate = around[..., 3:] - around[..., :-3]
    rate *= around[..., 1:-2]
    rate -= x
    rate += forcing
    return np.asarray(rate)


def integrate(x: Floats, time: float, forcing: float = 8.0, step: float = 0.01) -> Floats:
    """States (..., variables) a while later, by classical Runge-Kutta steps in float64."""
    count = math.ceil(time / step - 1e-9)
    h = time / max(count, 1)
    for _ in range(count):
        k1 = tendency(x, forcing)
        k2 = tendency(x + 0.5 * h * k1, forcing)
        k3 = tendency(x + 0.5 * h * k2, forcing)
        x = x + h / 6.0 * (k1 + 2 * k2 + 2 * k3 + tendency(x + h * k3, forcing))
    return x


def build(
    n: int = 1000,
    seed: int = 0,
    split: str = "train",
    variables: int = 16,
    forcing: float = 8.0,
    lead: float = 2.0,
    members: int = 5,
    spread: float = 0.3,
) -> Arrays:
    """x (1, variables): the true state `lead` time units after a start on the attractor, physical units (bounds None).

    Conditions: `start` (1, variables), the analysis, and `members` (members, variables), forecasts. Truth and members begin
    at the analysis plus independent unit normals times `spread`, so they are exchangeable given the analysis; what remains
    unknown of the truth is what an ensemble has to say.

    Reference: Lorenz 1996, "Predictability: a problem partly solved".
    """
    if variables < 4 or members < 0 or lead <= 0 or spread < 0:
        raise FokkerError(
            f"variables={variables}, members={members}, lead={lead}, spread={spread}; "
            "give at least 4 variables, members >= 0, lead > 0 and spread >= 0"
        )
    draw = Draw("lorenz96", seed, split_ids(n, split))
    start = integrate(forcing + draw.normal("climate", variables), 10.0, forcing)
    runs = start[:, None] + spread * draw.normal("members", members + 1, variables)
    later = integrate(runs, lead, forcing)
    tensors = {"x": torch.from_numpy(later[:, :1]), "start": torch.from_numpy(start[:, None])}
    if members:
        tensors["members"] = torch.from_numpy(later[:, 1:])
    return Arrays(tensors, "lorenz96", f"Lorenz-96 with forcing {forcing:g}, lead {lead:g}", bounds=None)
