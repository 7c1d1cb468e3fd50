"""What a plan makes of the belief that is being worked out: the increment of a step, before the step is taken.

While a denoiser is asked for D at x_t, everything else that goes into the next state is known, its noise too, since noise is
keyed. So the next state is x_s = gain D + rest, with numbers from the table, whatever the solver. Wrappers whose answer depends
on where it leads (weights chosen for an increment, corrections of the next state) look here; nothing is drawn twice.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from fokker.errors import FokkerError
from fokker.plan import Number, Step

if TYPE_CHECKING:
    from fokker.denoiser import Run


@dataclass(frozen=True)
class Ahead:
    """The next state that is asked about or returned, x_s = gain D + rest.

    `s` is its time, None for x_0 itself; `gain` a number, or a tensor that fits the leading dimensions; `rest` (batch, ...).
    """

    s: Number | None
    gain: Number
    rest: Tensor


def ahead(run: "Run") -> Ahead:
    """The step that follows the row at which `run` stands.

    Raises FokkerError outside a run and for rows that are not linear, which decide their step from the belief.
    """
    from fokker.loop import combine, compiled

    if run.plan is None or run.table is None:
        raise FokkerError("there is no step ahead outside a run; call the denoiser through fokker.run")
    plan, (slots, noise) = run.plan, run.table
    if isinstance(plan.rows[run.row], Step):
        raise FokkerError("an adaptive solver decides its step from the belief; use a fixed-step one here")
    view, belief = list(slots), len(plan.rows) + run.row
    gains: dict[int, Number] = {belief: 1.0}
    for row in compiled(plan)[run.row + 1 :]:
        for slot, a, b in row.draws:
            if view[slot] is None and noise is not None:
                view[slot] = slots[slot] = noise.increment(a, b)
        gain: Number = 0.0
        for slot, c in row.terms:
            if slot in gains:
                gain = gain + c * gains[slot]
        others = tuple((slot, c) for slot, c in row.terms if view[slot] is not None)
        zero = ((run.row, 0.0),)
        view[row.row] = combine(others or zero, view)
        if row.row in gains or not isinstance(gain, float) or gain != 0.0:
            gains[row.row] = gain
        if row.t is not None or row.row in plan.outputs:
            return Ahead(row.t if row.t is not None else plan.end, gain, view[row.row])
    raise FokkerError("nothing follows the last row of a plan")
