"""Trajectories of two equations in one dimension: chaotic (Kuramoto-Sivashinsky) and shock-forming (Burgers)."""

import math

import numpy as np
import torch

from fokker.data.draws import Draw, Floats, split_ids
from fokker.data.etdrk import ETDRK4, advection
from fokker.data.source import Arrays
from fokker.errors import FokkerError, unknown

KINDS = ("ks", "burgers")
_LENGTH = {"ks": 36.0, "burgers": 1.0}
_INTERVAL = {"ks": 0.5, "burgers": 0.1}
_SUBSTEP = {"ks": 0.0625, "burgers": 0.00125}
_REFINE = {"ks": 2, "burgers": 4}  # the grid that is integrated, finer than the one that is given


def build(
    n: int = 48,
    seed: int = 0,
    split: str = "train",
    kind: str = "ks",
    points: int = 64,
    frames: int = 64,
    interval: float | None = None,
    length: float | None = None,
    viscosity: float = 0.005,
    warmup: float = 100.0,
    pairs: bool = False,
) -> Arrays:
    """x (1, frames, points): u(t, x) on a periodic grid, physical units (bounds None); n trajectories.

    "ks": u_t = -u u_x - u_xx - u_xxxx on [0, 36), from a random start integrated for `warmup` time units, a snapshot every
    0.5 (on [0, 32) chaos is a transient: six in ten runs are four steady cells by t = 200). "burgers": u_t = -u u_x +
    viscosity u_xx on [0, 1), from random long waves of unit amplitude, a snapshot every 0.1.
    interval, length: other snapshots or another domain. pairs: items are successive snapshots instead, n * (frames - 1) of
    them, x (1, points) with the condition `previous` (1, points); label: the trajectory.
    """
    if kind not in KINDS:
        raise unknown("equation", kind, KINDS)
    if points < 8 or points % 2 or frames < 2:
        raise FokkerError(f"points={points}, frames={frames}; give an even number of points >= 8 and at least 2 frames")
    interval = _INTERVAL[kind] if interval is None else interval
    length = _LENGTH[kind] if length is None else length
    if min(interval, length) <= 0 or viscosity <= 0 or warmup < 0:
        raise FokkerError(
            f"interval={interval}, length={length}, viscosity={viscosity}, warmup={warmup}; give positive numbers"
        )
    draw = Draw(f"pde-{kind}", seed, split_ids(n, split))
    start = _start(draw, points * _REFINE[kind], waves=10 if kind == "ks" else 3)
    u = trajectories(kind, start, frames, interval, length, viscosity, warmup if kind == "ks" else 0.0)
    u = np.ascontiguousarray(u[:, :, :: _REFINE[kind]])
    if not pairs:
        return Arrays({"x": torch.from_numpy(u[:, None])}, "pde", f"{kind} trajectories", bounds=None)
    now, later = u[:, :-1].reshape(-1, 1, points), u[:, 1:].reshape(-1, 1, points)
    owner = torch.arange(n).repeat_interleave(frames - 1)
    tensors = {"x": torch.from_numpy(later), "previous": torch.from_numpy(now), "label": owner}
    return Arrays(tensors, "pde", f"{kind} pairs", classes=[str(k) for k in range(n)], bounds=None)


def trajectories(
    kind: str,
    start: Floats,
    frames: int,
    interval: float,
    length: float,
    viscosity: float = 0.005,
    warmup: float = 0.0,
    substep: float | None = None,
) -> Floats:
    """Integrates starts (n, points) in float64; returns (n, frames, points), the first frame after the warm-up.

    substep: the longest step of the integrator (default 0.0625 for "ks", 0.00125 for "burgers"); its error is of fourth order.
    """
    points = start.shape[-1]
    k = 2.0 * math.pi / length * np.arange(points // 2 + 1)
    linear = k**2 - k**4 if kind == "ks" else -viscosity * k**2
    longest = _SUBSTEP[kind] if substep is None else substep
    per_frame = max(1, math.ceil(interval / longest - 1e-9))
    integrator = ETDRK4(linear, advection(k, points), interval / per_frame)
    v = np.fft.rfft(start, axis=-1)
    for _ in range(round(warmup / interval) * per_frame):
        v = integrator.step(v)
    out = np.empty((len(start), frames, points))
    for t in range(frames):
        if t:
            for _ in range(per_frame):
                v = integrator.step(v)
        out[:, t] = np.fft.irfft(v, points, axis=-1)
    if not np.isfinite(out).all():
        raise FokkerError(
            f"the {kind} integration diverged at interval={interval}, length={length}; give a shorter interval"
        )
    return out


def _start(draw: Draw, points: int, waves: int) -> Floats:
    """Random sums of the first few sines with zero mean, of unit standard deviation on average."""
    phase = 2.0 * np.pi * np.arange(points) / points
    weight = draw.normal("waves", waves, 2) / np.sqrt(waves)
    order = np.arange(1, waves + 1)[:, None]
    # summed term by term: a matrix product may round differently with the number of rows, and chaos would show it
    return np.asarray((weight[:, :, :1] * np.cos(order * phase) + weight[:, :, 1:] * np.sin(order * phase)).sum(axis=1))
