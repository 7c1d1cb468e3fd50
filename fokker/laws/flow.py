"""The exact probability-flow map of a law: every process is one curve, traced to rounding.

With r = sqrt(alpha^2 + sigma^2), w = (x - beta y) / r and the angle phi = atan2(sigma, alpha), the probability-flow ODE
of every process reads dw / d log(alpha / sigma) = cos(phi) (D - cos(phi) w), D being E[x_0 | w] at alpha = cos(phi),
sigma = sin(phi). In the clock u = log(pi / (2 phi)) it is

    dw / du = (phi / sin phi) (D - cos(phi) w),

bounded and smooth from phi = pi / 2 (no signal, alpha = 0) on, and slow where phi is small. The last, noiseless point
is D at an angle a millionth of the law's finest detail, where the two differ by less than 1e-12 of it.

Steps are of Dormand and Prince's order 8 and chosen by each state for itself: a trajectory that must decide between two
modes takes short steps without holding up the others, and a state's result does not depend on its batch.

Reference: Song et al. 2021, arXiv 2011.13456 (the ODE); Hairer, Norsett, Wanner 1993 (DOP853).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.laws.law import BUDGET, Law, Level
from fokker.process import Process, Time, as_time

MAX_STEPS = 20_000


def transport(
    law: Law,
    process: Process,
    x: Tensor,
    t: Time,
    s: Time,
    label: int | Tensor | None,
    y: Tensor | None,
    tol: float,
    density: bool = False,
) -> tuple[Tensor, Tensor]:
    """x at time s on the probability flow through x at time t, and with `density` log p_t(x) - log p_s(x_s).

    `tol` bounds the local error of a step relative to 1 + |w|. Raises FokkerError for an encoding from sigma = 0 of a
    law without density, which has no inverse.
    """
    event = len(law.shape)
    batch = x.shape[: x.ndim - event]
    if x.shape[x.ndim - event :] != law.shape or x.ndim < event:
        raise FokkerError(f"a state of shape {tuple(x.shape)} does not end with the law's shape {law.shape}")
    start, end = (_place(process, time, batch, law) for time in (t, s))
    if law.singular and bool(((start.phi == 0) & (end.phi > 0)).any()):
        raise FokkerError("this law has no density, so its flow cannot start at sigma = 0; start at a small t > 0")
    if density and process.dof is not None:
        raise FokkerError("the change of density is worked out for normal noise only, not for PFGMPP's kernel")
    plain = x.to(torch.float64)
    anchor = process.anchor(y).to(plain) if process.anchored else plain.new_zeros(())
    anchor = anchor.expand(x.shape).reshape(-1, law.dim) if process.anchored else anchor
    w = (plain.reshape(-1, law.dim) - start.beta * anchor) / start.r
    prior = law.prior(law._labels(label, batch))
    work = law.row_size * (law.dim if density else 1) + 16 * law.dim
    rows = max(1, BUDGET // work)
    ends, changes = [], []
    for i in range(0, len(w), rows):
        p = slice(i, i + rows)
        curve = Curve(law, prior[p] if prior.ndim == 2 else prior, process.dof, density)
        with torch.no_grad():
            out, change = curve.follow(w[p], start.phi[p], end.phi[p], tol)
        ends.append(out)
        changes.append(change)
    w_s = torch.cat(ends) if ends else w
    change = torch.cat(changes) if changes else w[:, 0]
    x_s = w_s * end.r + end.beta * anchor
    scaled = change + law.dim * (torch.log(end.r) - torch.log(start.r))[:, 0]
    return x_s.reshape(x.shape).to(x.dtype), scaled.reshape(batch)


class Place(NamedTuple):
    """Where times are on the curve, (n, 1) each: the angle, the scale r and the anchor's coefficient."""

    phi: Tensor
    r: Tensor
    beta: Tensor


def _place(process: Process, t: Time, batch: tuple[int, ...], law: Law) -> Place:
    time = as_time(t).to(law.device)
    if time.ndim > len(batch):
        raise FokkerError("the flow takes one time, or one per state")
    time = time.reshape(time.shape + (1,) * (len(batch) - time.ndim)).expand(batch).reshape(-1, 1)
    alpha, sigma, beta = process.alpha(time), process.sigma(time), process.beta(time)
    r = torch.sqrt(alpha**2 + sigma**2)
    # a bridge's pinned end carries unit noise and no signal
    phi = torch.where(r > 0, torch.atan2(sigma, alpha), torch.full_like(r, math.pi / 2))
    return Place(phi, torch.where(r > 0, r, torch.ones_like(r)), beta)


class Curve:
    """The ODE of one law, and the integrator that follows it."""

    def __init__(self, law: Law, prior: Tensor, dof: float | None, density: bool) -> None:
        from scipy.integrate import DOP853

        self.law, self.prior, self.dof, self.density = law, prior, dof, density
        self.nodes = [float(c) for c in DOP853.C]
        self.stages = torch.as_tensor(DOP853.A, dtype=torch.float64, device=law.device)
        self.last = torch.as_tensor(DOP853.B, dtype=torch.float64, device=law.device)
        self.errors = torch.stack([torch.as_tensor(e, dtype=torch.float64) for e in (DOP853.E5, DOP853.E3)])
        self.errors = self.errors.to(law.device)

    def rate(self, u: Tensor, w: Tensor, prior: Tensor) -> Tensor:
        """dw/du (n, dim), with d log p / du of the moving point behind it if the density is wanted."""
        phi = (math.pi / 2) * torch.exp(-u)
        state = w[:, : self.law.dim]
        cos, sin = torch.cos(phi), torch.sin(phi)
        level, speed = Level(cos, sin, self.dof), phi / sin
        out = speed * (self.law.belief(state, level, prior) - cos * state)
        if not self.density:
            return out
        divergence = cos / sin**2 * self.law.spread(state, level, prior)[:, None] - self.law.dim * cos
        return torch.cat([out, -speed * divergence], 1)

    def follow(self, w: Tensor, start: Tensor, end: Tensor, tol: float) -> tuple[Tensor, Tensor]:
        """w (n, dim) from angle `start` (n, 1) to `end`, and the change of log density from end to start."""
        least = 1e-6 * min(1.0, self.law.finest)
        u, goal = (torch.log((math.pi / 2) / phi.clamp_min(least)) for phi in (start, end))
        state = torch.cat([w, torch.zeros_like(u)], 1) if self.density else w.clone()
        direction = torch.sign(goal - u)
        step = torch.minimum((goal - u).abs(), torch.full_like(u, 0.1))
        slope = self.rate(u, state, self.prior)
        active = ((goal - u).abs() > 0)[:, 0].nonzero()[:, 0]
        for _ in range(MAX_STEPS):
            if not len(active):
                break
            prior = self.prior[active] if self.prior.ndim == 2 else self.prior
            here, remaining = u[active], (goal[active] - u[active]).abs()
            last = step[active] >= remaining * (1 - 1e-12)
            size = torch.where(last, remaining, step[active])
            new, new_slope, error = self._step(here, state[active], slope[active], size * direction[active], prior, tol)
            accepted = (error <= 1)[:, 0]
            grow = (0.9 * error.clamp_min(1e-12) ** (-1 / 8)).clamp(0.2, 6.0)
            step[active] = size * grow
            kept = active[accepted]
            u[kept] = torch.where(last, goal[active], here + size * direction[active])[accepted]
            state[kept], slope[kept] = new[accepted], new_slope[accepted]
            active = active[~(accepted & last[:, 0])]
        else:
            raise FokkerError(f"the exact flow needs more than {MAX_STEPS} steps; give a larger tol than {tol:g}")
        w, change = state[:, : self.law.dim], -state[:, self.law.dim :].sum(1)
        arrived = (end == 0) & (start > 0)
        if bool(arrived.any()):
            # at no noise the map ends in the belief itself
            tip = torch.full_like(end, least)
            belief = self.law.belief(w, Level(torch.cos(tip), torch.sin(tip), self.dof), self.prior)
            w = torch.where(arrived, belief, w)
        return w, change

    def _step(
        self, u: Tensor, state: Tensor, slope: Tensor, h: Tensor, prior: Tensor, tol: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of every state: the new states, their slopes, and the errors (n, 1) in units of the tolerance."""
        k = state.new_empty(len(self.nodes) + 1, *state.shape)
        k[0] = slope
        flat = k.view(len(k), -1)
        for i in range(1, len(self.nodes)):
            moved = state + h * (self.stages[i, :i] @ flat[:i]).view_as(state)
            k[i] = self.rate(u + self.nodes[i] * h, moved, prior)
        new = state + h * (self.last @ flat[:-1]).view_as(state)
        k[-1] = self.rate(u + h, new, prior)
        scale = tol * (1 + torch.maximum(state.abs(), new.abs()))
        fifth, third = ((e @ flat).view_as(state) / scale for e in self.errors)
        fifth, third = fifth.square().sum(1, keepdim=True), third.square().sum(1, keepdim=True)
        weighed = torch.sqrt((fifth + 0.01 * third).clamp_min(1e-300) * state.shape[1])
        return new, k[-1], h.abs() * fifth / weighed
