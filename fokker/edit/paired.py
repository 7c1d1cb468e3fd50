"""Paired branches: source and target of an edit in lockstep, as one batch of one run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fokker.denoiser import Denoiser
from fokker.edit.inversion import Trajectory, halves, invert, joint, to_sample, to_state
from fokker.edit.nulltext import NullText, PerStepNull
from fokker.errors import FokkerError, unknown
from fokker.grids import Grid, LogSNR, Times
from fokker.guide.cfg import CFG
from fokker.loop import run
from fokker.plan import Plan, Row
from fokker.solve.invert import BDIA, EDICT, from_two
from fokker.solve.onestep import DDIM

Control = Callable[[Denoiser], Denoiser]
RECTIFY = ("none", "direct", "null-text")


@dataclass(frozen=True)
class Edited:
    """An edit (batch, ...): the target branch, the source branch beside it, the inversion, and evaluations a sample."""

    x: Tensor
    source: Tensor
    trajectory: Trajectory
    nfe: float


def rectified(plan: Plan, trajectory: Trajectory) -> Plan:
    """A plan of paired branches whose source half is put back on the trajectory after every step.

    The published method stores what a guided step misses the trajectory by, and adds it to the source branch; that is the
    same as writing the stored state there, and costs no pass of its own. The target half is left as the plan makes it. For
    plans with one row a step (DDIM). Raises FokkerError for another number of rows.
    """
    if len(plan.rows) != len(trajectory.states) or plan.inputs != 1:
        raise FokkerError(
            f"a plan of {len(plan.rows)} rows cannot follow {len(trajectory.states)} states; use a solver with one row a step"
        )
    n = len(trajectory.noise)
    target = torch.cat([torch.zeros(n), torch.ones(n)]).to(torch.float64)
    rows: list[Any] = list(plan.rows)
    for k, state in enumerate(trajectory.states[1:], 1):
        row = rows[k]
        assert isinstance(row, Row)
        kept = tuple((key, c * target) for key, c in row.terms)
        rows[k] = Row((*kept, (("1", 0), torch.cat([state, torch.zeros_like(state)]))), row.t)
    return replace(plan, rows=tuple(rows), config={"rectified": plan.config})


def edit(
    denoiser: Denoiser,
    x_0: Tensor,
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    *,
    rectify: str = "direct",
    steps: int = 50,
    scale: float = 7.5,
    start: float = 1.0,
    grid: Grid | None = None,
    control: Control | None = None,
    trajectory: Trajectory | None = None,
    null_text: NullText | None = None,
    rate: float = 1e-2,
) -> Edited:
    """Edit `x_0` (batch, ...) from the source to the target condition by two branches in one batch.

    The sample is inverted by DDIM under the source condition without guidance; both branches start from its latent and are
    sampled with classifier-free guidance `scale`. What keeps the source branch on its sample is `rectify`:

    none        nothing: guidance leads it astray, and what it lends is no longer the sample's
    direct      its state is set back on the inversion at every step (Ju et al. 2023, arXiv 2310.01506)
    null-text   the null condition of each step is optimised beforehand (Mokady et al. 2022, arXiv 2211.09794)

    control     wraps the denoiser of both branches, source half first, to lend attention or features of the source to the
                target: `AttentionControl`, or a function denoiser -> denoiser; it lies inside the guidance
    start       the time where the edit begins: below 1 keeps more of the sample
    source, target  conditions by name, with a row a sample
    trajectory  an inversion made before; null_text, an optimisation made before; rate, that of one made here

    Raises FokkerError for an unknown rectification and for conditions that do not fit each other.
    """
    if rectify not in RECTIFY:
        raise unknown("rectification", rectify, RECTIFY)
    n = len(x_0)
    both = joint(dict(source), dict(target), n)
    nodes = grid or LogSNR(steps, start=start)
    found = trajectory or invert(denoiser, x_0, nodes, **source)
    inner = denoiser if control is None else control(denoiser)
    plan, spent = found.plan(), 0.0 if trajectory else found.nfe
    guided: Denoiser = CFG(inner, scale)
    if rectify == "direct":
        plan = rectified(plan, found)
    elif rectify == "null-text":
        text = null_text or NullText.fit(denoiser, found, scale=scale, rate=rate, **source)
        spent += 0.0 if null_text else text.nfe
        guided = PerStepNull(inner, text)
    trace = run(guided, torch.cat([found.noise, found.noise]), plan, **both)
    kept, changed = (to_sample(found.process, half, found.grid) for half in halves(trace.x0))
    return Edited(changed, kept, found, spent + 2 * trace.nfe)


def exact(
    denoiser: Denoiser,
    x_0: Tensor,
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    *,
    solver: EDICT | BDIA | None = None,
    steps: int = 50,
    scale: float = 3.0,
    start: float = 0.8,
    grid: Grid | None = None,
) -> Edited:
    """Edit `x_0` by an exactly invertible plan: up under the source condition, down under the target's, both with guidance.

    With equal conditions the sample comes back to rounding, in float64, whatever the denoiser and the scale. `solver` is
    EDICT() by default; both sides are run in float64. What changes is what the conditions change; there is no source branch
    to follow.

    References: Wallace, Gokul, Naik 2023, arXiv 2211.12446; Zhang, Lewis, Kleijn 2024, arXiv 2307.10829.
    """
    process, chosen = denoiser.process, solver or EDICT()
    nodes = grid or LogSNR(steps, start=start)
    plan, guided = chosen.plan(process, nodes), CFG(denoiser, scale)
    x = to_state(process, x_0.to(torch.float64), nodes)
    pair: Any = x
    if isinstance(chosen, BDIA):
        # a leapfrog knows two states: beside the sample the one before it, which one step of inversion makes
        plan = from_two(plan)
        last = Times(nodes.times(process)[-2:].flip(0), rising=True)
        pair = (x, run(guided, x, DDIM().plan(process, last), **source).x0)
    up = run(guided, pair, plan.inverse(), **source)
    down = run(guided, up.outputs, plan, **target)
    states = (up.outputs[0], x)
    result = to_sample(process, down.x0, nodes).to(x_0.dtype)
    return Edited(result, x_0, Trajectory(states, nodes, process, up.nfe), up.nfe + down.nfe)
