"""The one loop: it runs a plan, which means calling the denoiser and adding tensors.

Nothing in a row waits for the device: coefficients and times are Python floats, noise is keyed, and whether the numbers
stayed finite is read once at the end (if not, the run, which is a pure function of its arguments, is repeated with a look at
every row to name the one that broke).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fokker.denoiser import Cond, Deanchored, Denoiser, Run
from fokker.errors import FokkerError, unknown
from fokker.grids import Grid
from fokker.keyed import Brownian, sample_ids, uniform
from fokker.plan import Number, Plan, Row, Step
from fokker.process import Process, expand
from fokker.solve import Solver

Watch = Callable[[Run, Tensor, Tensor], bool | None]
LARGE = 1 << 16  # numbers in a state above which a row costs its passes over memory, and below which its calls


@dataclass(frozen=True)
class Trace:
    """What a run produced and what it took.

    `x0` is the first output (batch, ...), `outputs` all of them; `nfe` counts evaluations per sample through every wrapper;
    `stopped` says that `watch` ended the run early, in which case x0 is the last belief; `config` repeats it. `notes` is what
    wrappers told beside their beliefs.
    """

    x0: Tensor
    outputs: tuple[Tensor, ...]
    plan: Plan
    nfe: float
    seconds: float
    seed: int
    stopped: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.config.get('solver', 'plan')}: {self.nfe:g} evaluations in {self.seconds:.2f} s, seed {self.seed}"


def sample(denoiser: Denoiser, x: Tensor, plan: Plan | None = None, **options: Any) -> Tensor:
    """x_0 from the state `x` (batch, ...) at the plan's first time; the options are those of `run`."""
    return run(denoiser, x, plan, **options).x0


def run(
    denoiser: Denoiser,
    x: Tensor | Sequence[Tensor],
    plan: Plan | None = None,
    *,
    solver: str | Solver | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: str | Grid | None = None,
    start: float | None = None,
    end: float | None = None,
    y: Tensor | None = None,
    seed: int = 0,
    ids: Sequence[int] | Tensor | None = None,
    path: Brownian | None = None,
    watch: Watch | None = None,
    gradient: bool = False,
    check: bool = True,
    **cond: Cond,
) -> Trace:
    """Run a plan, or lay one out (`solver` on `grid` with `steps` steps or at most `nfe` evaluations) and run it.

    x        the state at the plan's first time, at the process's own noise scale: `process.start(noise, y)`; (batch, ...),
             or one per input of a plan that has several (one alone stands for all)
    y        the anchor of an anchored process, the shape of x
    seed, ids  name the noise of stochastic plans: one id per sample, 0 .. batch - 1 unless given
    path     the Brownian motion that the noise is taken from, for runs that continue each other; made from seed and ids if none
    watch    called after each evaluation with (run, x_t, belief); returning True stops
    gradient keeps the graph, for runs that are differentiated
    check    looks for non-finite values
    cond     conditions for the denoiser, as tensors with a leading batch dimension

    Raises FokkerError for options that do not fit together and for non-finite values, with the row and time they came from.
    """
    process = denoiser.process
    if y is not None and not process.anchored:
        cond["y"] = y
    _known(denoiser, cond)
    if plan is None:
        plan = lay(process, solver, steps, nfe, grid, start, end)
    elif not isinstance(plan, Plan):
        raise FokkerError(f"plan={plan!r} is not accepted; give a Plan, or solver= with steps= or nfe=")
    elif any(v is not None for v in (solver, steps, nfe, grid, start, end)):
        raise FokkerError("give either a plan or solver/steps/nfe/grid/start/end to make one, not both")
    inputs = (x,) * plan.inputs if isinstance(x, Tensor) else tuple(x)
    _fits(denoiser, plan, inputs, cond)
    if ids is not None:
        ids = sample_ids(inputs[0].shape[0], ids)
    if process.anchored:
        y = process.anchor(y).to(inputs[0])
        if y.shape != inputs[0].shape:
            raise FokkerError(f"y has shape {tuple(y.shape)} but the state {tuple(inputs[0].shape)}; they must be equal")
        denoiser = Deanchored(denoiser, y)
        inputs = tuple(_shift(process, v, y, plan.start, -1.0) for v in inputs)
        watch = _anchored(watch, process, y) if watch else None
    begun = time.perf_counter()
    with torch.set_grad_enabled(gradient):
        outputs, context, stopped = _execute(denoiser, inputs, plan, seed, ids, watch, cond, path)
        if check and not gradient and not all(finite(v) for v in outputs):
            _execute(denoiser, inputs, plan, seed, ids, _stop_at_the_first_non_finite, cond)
            raise FokkerError("the run gave non-finite values in its last row, after its last evaluation")
        if process.anchored and not stopped:
            outputs = tuple(_shift(process, v, process.anchor(y), plan.end, 1.0) for v in outputs)
    seconds = time.perf_counter() - begun
    return Trace(outputs[0], outputs, plan, context.nfe, seconds, seed, stopped, dict(plan.config), context.notes)


def lay(
    process: Process,
    solver: str | Solver | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: str | Grid | None = None,
    start: float | None = None,
    end: float | None = None,
) -> Plan:
    """The plan of a solver (default dpmpp-2m) on a grid (default logsnr), for `steps` steps or at most `nfe` evaluations."""
    from fokker import grids, solve

    chosen = solver if isinstance(solver, Solver) else solve.get(solver or "dpmpp-2m")
    if isinstance(grid, Grid):
        if any(v is not None for v in (steps, nfe, start, end)):
            raise FokkerError("this grid already has its steps and ends; give steps/nfe/start/end with the name of a grid")
        return chosen.plan(process, grid)
    if (steps is None) == (nfe is None):
        raise FokkerError("give steps=, the number of steps, or nfe=, the number of evaluations (one of the two)")
    kind = grids.get(grid or "logsnr")

    def make(n: int) -> Grid:
        return kind(n, start=1.0 if start is None else start, end=end)

    return chosen.plan(process, make(steps)) if steps is not None else chosen.budget(int(nfe or 0), process, make)


def _known(denoiser: Denoiser, cond: dict[str, Cond]) -> None:
    accepted = denoiser.conditions if cond else None
    if accepted is not None:
        for name in cond:
            if name not in accepted:
                raise unknown("option or condition", name, [*accepted, "solver", "steps", "nfe", "grid", "start", "end"])


def _fits(denoiser: Denoiser, plan: Plan, inputs: tuple[Tensor, ...], cond: dict[str, Cond]) -> None:
    if plan.process is not denoiser.process and repr(plan.process) != repr(denoiser.process):
        raise FokkerError(
            f"this plan is laid out for {plan.process!r} but the denoiser is on {denoiser.process!r}; lay the plan on "
            "denoiser.process, or wrap the denoiser in OnProcess"
        )
    if len(inputs) != plan.inputs or not inputs:
        raise FokkerError(f"this plan starts from {plan.inputs} states, but {len(inputs)} were given")
    if any(v.is_floating_point() == denoiser.process.tokens or v.ndim < 1 for v in inputs):
        kind = "an integer" if denoiser.process.tokens else "a floating point"
        raise FokkerError(f"the state must be {kind} tensor (batch, ...)")
    batch = inputs[0].shape[0]
    for name, value in cond.items():
        if isinstance(value, Tensor) and value.ndim and value.shape[0] != batch:
            raise FokkerError(f"the condition {name!r} has shape {tuple(value.shape)} for {batch} samples; give one per sample")
    if isinstance(plan.start, Tensor):
        expand(plan.start, inputs[0])


def _shift(process: Process, x: Tensor, y: Tensor, t: Number | None, sign: float) -> Tensor:
    return x if t is None else x + sign * process.coefficients(t, x)[1] * y


def _anchored(watch: Watch, process: Process, y: Tensor) -> Watch:
    """`watch` sees the state itself, not what is left of it without the anchor."""
    return lambda run, x, belief: watch(run, _shift(process, x, y, run.t, 1.0), belief)


class Instruction(NamedTuple):
    """A row ready to run: sources are slots of one list (states, then beliefs, then noises, then the constant 1)."""

    row: int
    terms: tuple[tuple[int, Number], ...]
    t: Number | None
    draws: tuple[tuple[int, Number, Number], ...]
    free: tuple[int, ...]
    step: Step | None = None


def compiled(plan: Plan) -> list[Instruction]:
    """The plan as instructions, worked out once: what to draw before a row and what to forget after it."""
    known: list[Instruction] | None = plan.__dict__.get("_compiled")
    if known is not None:
        return known
    n = len(plan.rows)
    end = 2 * n + len(plan.noises)
    place = {"x": 0, "D": n, "z": 2 * n, "1": end}
    uses: list[list[tuple[int, Number]]] = []
    for entry in plan.rows:
        terms = entry.terms if isinstance(entry, Row) else ((entry.source, 1.0),)
        uses.append([(place[kind] + i, c) for (kind, i), c in terms])
    last = {slot: k for k, used in enumerate(uses) for slot, _ in used}
    drawn: set[int] = set()
    out = []
    for k, (row, used) in enumerate(zip(plan.rows, uses, strict=True)):
        new = [slot for slot, _ in used if 2 * n <= slot < end and slot not in drawn]
        drawn.update(new)
        draws = tuple((slot, *plan.noises[slot - 2 * n]) for slot in new)
        dead = {slot for slot, _ in used if last[slot] == k and slot not in plan.outputs}
        # a state nobody uses again but the denoiser, and a belief nobody uses, go at once
        dead |= {slot for slot in (k, n + k) if slot not in last and slot not in plan.outputs}
        step = row if isinstance(row, Step) else None
        t = row.t if isinstance(row, Row) else None
        out.append(Instruction(k, tuple(used), t, draws, tuple(dead), step))
    plan.__dict__["_compiled"] = out
    return out


def _execute(
    denoiser: Denoiser,
    inputs: tuple[Tensor, ...],
    plan: Plan,
    seed: int,
    ids: Sequence[int] | Tensor | None,
    watch: Watch | None,
    cond: dict[str, Cond],
    path: Brownian | None = None,
) -> tuple[tuple[Tensor, ...], Run, bool]:
    context = Run(inputs[0].shape[0], seed, ids, len(plan.rows), plan=plan)
    return _rows(denoiser.bind(context), context, inputs, plan, watch, cond, path)


def pure(denoiser: Denoiser, plan: Plan) -> Callable[..., Tensor]:
    """`f(x, **cond)`: nothing but the rows of a plan, for torch.compile(fullgraph=True), CUDA graphs and export.

    One graph for the whole run: no check of options or numbers, no watch, gradients as the caller's context says. What a
    wrapper remembers lives as long as f does, so make a new f for each run of a wrapper with a memory. Raises FokkerError for
    plans that draw noise, decide while they run or have several states, and for anchored processes.
    """
    if plan.noises or plan.inputs != 1 or len(plan.outputs) != 1 or any(isinstance(r, Step) for r in plan.rows):
        raise FokkerError("this plan draws noise, has several states or decides while it runs; use fokker.run for it")
    if denoiser.process.anchored:
        raise FokkerError(f"{denoiser.process.name} has an anchor, which fokker.run subtracts; use that")
    context = Run(1, rows=len(plan.rows), plan=plan)
    bound = denoiser.bind(context)
    compiled(plan)
    for t in plan.times:
        # remembered here, so that no coefficient is worked out inside a graph
        denoiser.process.coefficients(t, torch.empty(1))

    def f(x: Tensor, **cond: Cond) -> Tensor:
        context.batch = x.shape[0]
        return _rows(bound, context, (x,), plan, None, cond)[0][0]

    return f


def _rows(
    predict: Denoiser,
    context: Run,
    inputs: tuple[Tensor, ...],
    plan: Plan,
    watch: Watch | None,
    cond: dict[str, Cond],
    noise: Brownian | None = None,
) -> tuple[tuple[Tensor, ...], Run, bool]:
    first, n = inputs[0], len(plan.rows)
    slots: list[Any] = [None] * (2 * n + len(plan.noises) + 1)
    if plan.affine:
        slots[-1] = first.new_ones(()).expand(first.shape)
    slots[: len(inputs)] = inputs
    if noise is None and plan.noises:
        noise = Brownian(tuple(first.shape), context.seed, context.ids, first.dtype, first.device)
    context.table = slots, noise
    state: Any = None
    large = not torch.compiler.is_exporting() and first.numel() >= LARGE  # an exported graph is for any batch
    for k, terms, t, draws, free, step in compiled(plan):
        if noise is not None:
            for slot, a, b in draws:
                # somebody may have looked ahead
                if slots[slot] is None:
                    slots[slot] = noise.increment(a, b)
        if step is not None:
            context.row, context.t = k, step.t
            source = slots[terms[0][0]]
            given = (partial(_uniform, context, first.device),) if step.draws else ()
            slots[k], state = step.function(source, step.t, step.s, partial(predict, **cond), state, *given)
        elif terms:
            slots[k] = combine(terms, slots, large)
        if t is not None:
            context.row, context.t = k, t
            x = slots[k]
            belief = slots[n + k] = predict(x, t, **cond)
            if watch is not None and watch(context, x, belief):
                return (belief,), context, True
        for slot in free:
            slots[slot] = None
    return tuple(slots[k] for k in plan.outputs), context, False


def _uniform(context: Run, device: torch.device, shape: tuple[int, ...], index: int = 0) -> Tensor:
    """The draws of a row that is not linear, to 52 bits."""
    return uniform(shape, context.seed, context.ids, "step", context.row << 8 | index, device, bits=52)


def finite(x: Tensor) -> bool:
    """Whether all numbers of x are; one pass where they are, since what is not finite stays so in a sum."""
    return math.isfinite(x.sum().item()) or bool(torch.isfinite(x).all())


def combine(terms: tuple[tuple[int, Number], ...], slots: list[Any], large: bool = False) -> Tensor:
    """The sum of coefficient * tensor over terms, in place on its first product; `large` says that memory is what it costs."""
    out: Tensor | None = _first_two(terms, slots) if large else None
    for slot, c in terms if out is None else terms[2:]:
        source: Tensor = slots[slot]
        # the class is known at once, where isinstance asks torch's metaclass
        if type(c) is float or not isinstance(c, Tensor):
            out = source * c if out is None else out.add_(source, alpha=c)
        else:
            wide = torch.promote_types(source.dtype, torch.float32)
            part = (expand(c, source).to(source.device, wide) * source).to(source.dtype)
            out = part if out is None else out + part
    assert out is not None
    return out


def _first_two(terms: tuple[tuple[int, Number], ...], slots: list[Any]) -> Tensor | None:
    """a x + b y in one pass over memory, as an outer product with 1: torch has no other operation that scales both.

    None where that does not fit: one term, numbers per sample, half precision, or a layout of another kind.
    """
    if len(terms) < 2:
        return None
    (first, a), (second, b) = terms[:2]
    x, y = slots[first], slots[second]
    if isinstance(a, Tensor) or isinstance(b, Tensor) or x.dtype != y.dtype or x.dtype.itemsize < 4:
        return None
    if not (x.is_contiguous() and y.is_contiguous()):
        return None
    return torch.addr(x.view(-1, 1), y.view(-1), y.new_ones(1), beta=a, alpha=b).view(x.shape)


def _stop_at_the_first_non_finite(run: Run, x: Tensor, belief: Tensor) -> None:
    for name, value in (("state x_t", x), ("denoiser's answer", belief)):
        if not bool(torch.isfinite(value).all()):
            t = run.t.mean().item() if isinstance(run.t, Tensor) else run.t
            first = int((~torch.isfinite(value)).flatten(1).any(1).nonzero()[0])
            raise FokkerError(
                f"the {name} is not finite in row {run.row} of {run.rows}, at t={t:.6g}, first in sample {first} "
                f"({value.dtype}); use float32, fewer or smaller guidance, or look at the denoiser there"
            )
