"""How the plan goes on from a belief: what restorers need that shift the next state and not the belief itself."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fokker.denoiser import Run
from fokker.plan import Key, Number, Plan, Row
from fokker.process import Process, expand


@dataclass(frozen=True)
class Move:
    """The state that the plan makes of this one, x_s = keep x_t + take D + (what neither has a part in), with signal `alpha`.

    x_s is the next state that the denoiser is asked about, or the output.
    """

    keep: Number
    take: Number
    alpha: Number

    def shifted(self, belief: Tensor, shift: Tensor) -> Tensor:
        """The belief with which the plan arrives at x_s + shift, D + shift / take."""
        return belief + shift / _wide(self.take, belief)

    def corrected(self, belief: Tensor, better: Tensor) -> Tensor:
        """The belief with which the step moves x_0 to `better` and leaves the noise of `belief`: D + (alpha / take)(D' - D).

        A plan that is shown D' finds other noise in x_t than the denoiser did; here x_s changes by alpha (D' - D) alone.
        """
        if not isinstance(self.alpha, Tensor) and not isinstance(self.take, Tensor) and self.alpha == self.take:
            return better  # to the bit
        return belief + (_wide(self.alpha, belief) / _wide(self.take, belief)) * (better - belief)

    def from_state(self, belief: Tensor, change: Tensor) -> Tensor:
        """The belief with which the step starts from x_t + change, where `belief` was found: D + (keep / take) change."""
        return belief + (_wide(self.keep, belief) / _wide(self.take, belief)) * change


TO_DATA = Move(0.0, 1.0, 1.0)


def next_move(run: Run | None, process: Process) -> Move:
    """The move of the plan from the row where the run stands; outside a run, and in adaptive steps, the move to x_0 itself."""
    plan = None if run is None else run.plan
    if run is None or plan is None or not isinstance(plan.rows[run.row], Row):
        return TO_DATA
    if plan.process is not process and repr(plan.process) != repr(process):
        return TO_DATA  # a denoiser that was moved to another process sees other states than the plan
    return _follow(plan, run.row)


def _follow(plan: Plan, k: int) -> Move:
    """Carry (keep, take) through rows that are only combinations to the next state that is asked about or returned."""
    reach: dict[Key, tuple[Number, Number]] = {("x", k): (1.0, 0.0), ("D", k): (0.0, 1.0)}
    for j in range(k + 1, len(plan.rows)):
        row = plan.rows[j]
        if not isinstance(row, Row):
            return TO_DATA
        keep: Number = 0.0
        take: Number = 0.0
        for key, c in row.terms:
            if key in reach:
                keep, take = keep + c * reach[key][0], take + c * reach[key][1]
        if row.t is None and j not in plan.outputs:
            reach["x", j] = keep, take
        elif not _none(take):
            t = plan.end if row.t is None else row.t
            alpha = 1.0 if t is None else plan.process.alpha(t)
            single = isinstance(alpha, Tensor) and alpha.ndim == 0
            return Move(keep, take, alpha.item() if single and isinstance(alpha, Tensor) else alpha)
    return TO_DATA


def _none(c: Number) -> bool:
    return bool((torch.as_tensor(c) == 0).any())


def _wide(c: Number, x: Tensor) -> Number:
    return expand(c, x).to(x) if isinstance(c, Tensor) else c
