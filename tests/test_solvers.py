"""Solvers are judged on exact laws: their order, the flow they all meet, the law that stochastic ones sample.

Every registered solver meets every registered process. What a solver in log-SNR does is the same on all of them up to scale,
so its order is measured once and the equality is tested; one that works in the process's own time shows its order on each.
"""

import functools
import math

import numpy as np
import pytest
import torch
from laws_for_tests import F64, GRIDS, LAW, PROCESSES, SOLVERS, adaptive, cond, exact, quick, start
from torch import Tensor

import fokker as fk
from fokker.denoiser import Run
from fokker.errors import FokkerError
from fokker.grids import LogSNR, Times, Uniform
from fokker.plan import Plan
from fokker.process import Process
from fokker.solve import Solver

# two names may mean one table; it is judged once
UNIQUE = {repr(solver): name for name, solver in reversed(SOLVERS.items())}.values()
DETERMINISTIC = sorted(name for name in UNIQUE if not SOLVERS[name].stochastic)
STOCHASTIC = sorted(name for name in UNIQUE if SOLVERS[name].stochastic)
# a step that can be undone exactly damps nothing and forgets nothing: no start without signal, no last step to x_0
FORGETFUL = [name for name in SOLVERS if not getattr(SOLVERS[name], "invertible", False)]
DAMPED = [name for name in DETERMINISTIC if name in FORGETFUL]
processes = pytest.mark.parametrize("process", PROCESSES)
HIGH, LOW = -4.0, 3.0
REFERENCE = fk.VP(beta_max=40.0)


def claim(solver: Solver) -> int:
    """The order of the whole run. A first step that starts itself with one evaluation errs by h^3, whatever comes after."""
    return min(solver.order, 3) if solver.evaluations == 1 else solver.order


def states(plan: Plan, x: Tensor) -> Tensor | list[Tensor]:
    """The same state for every input of a plan."""
    return x if plan.inputs == 1 else [x] * plan.inputs


def end_point(
    solver: Solver, process: Process, n: int, high: float = HIGH, low: float = LOW
) -> tuple[Tensor, Tensor, Plan]:
    """(where the solver arrives, where the exact flow does, the plan)."""
    t, s, x, x_s, given = exact(process, high, low)
    plan = solver.plan(process, LogSNR(n, start=t, end=s))
    return fk.sample(quick(process), states(plan, x), plan, **given), x_s, plan


def error(solver: Solver, process: Process, n: int) -> float:
    """The median over samples, which a few that change basin do not move."""
    arrived, truth, _ = end_point(solver, process, n)
    return (arrived - truth).norm(dim=1).median().item()


def order(solver: Solver, process: Process) -> float:
    coarse = 8 if solver.order < 3 else 16
    return math.log(error(solver, process, coarse) / error(solver, process, 3 * coarse), 3)


def test_the_quick_denoiser_is_the_laws_own():
    for process in PROCESSES.values():
        if isinstance(process, fk.PFGMPP):
            continue
        t, s, x, _, given = exact(process, HIGH, LOW)
        for time in (t, (t + s) / 2, s):
            assert torch.allclose(quick(process)(x, time, **given), LAW.denoiser(process)(x, time, **given), atol=1e-11)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_is_at_least_its_claim(name):
    solver = SOLVERS[name]
    arrived, truth, plan = end_point(solver, REFERENCE, 8)
    if adaptive(plan):
        # it chooses its own steps: the error follows the tolerance, which is per step
        assert (arrived - truth).abs().max() < 100 * max(solver.rtol, solver.atol)
        return
    assert order(solver, REFERENCE) > claim(solver) - 0.3


@processes
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_every_process_gives_the_order(name, process):
    solver, process = SOLVERS[name], PROCESSES[process]
    high = max(HIGH, process.logsnr(1.0).item() + 1e-9)
    low = min(LOW, process.logsnr(process.end).item())
    arrived, truth, plan = end_point(solver, process, 10)
    if process.anchored:
        beta = process.coefficients(plan.end, truth)[1]
        truth, arrived = (v - beta * cond(process, v)["y"] for v in (truth, arrived))
    r = math.hypot(*process.at(float(plan.end))[::2])
    same, _, _ = end_point(solver, REFERENCE, 10, high, low)
    if torch.allclose(arrived / r, same, atol=1e-9):
        return
    if adaptive(plan):
        assert (arrived - truth).abs().max() < 100 * r * max(solver.rtol, solver.atol)
        return
    assert order(solver, process) > claim(solver) - 0.3


@processes
@pytest.mark.parametrize("name", DAMPED)
def test_from_pure_noise_all_meet_the_exact_flow(name, process):
    """From t = 1 itself, where some processes have no signal and bridges no noise, to the process's own end.

    In 24 steps; polynomials in t (DEIS) need more where a bridge leaves its pinned end.
    """
    process, bound = PROCESSES[process], 0.2 if SOLVERS[name].order == 1 else 0.1
    x, truth = whole_flow(process)
    distance = math.inf
    for steps in (24, 72):
        if distance > bound:
            plan = SOLVERS[name].plan(process, LogSNR(steps))
            arrived = fk.sample(quick(process), states(plan, x), plan, **cond(process, x))
            distance = float((arrived - truth).norm(dim=1).median())
    assert distance < bound


@functools.cache
def whole_flow(process: Process) -> tuple[Tensor, Tensor]:
    x = start(process, 8)
    normal = fk.EDM() if isinstance(process, fk.PFGMPP) else process
    return x, LAW.flow(normal, x, 1.0, process.end, y=cond(process, x).get("y"), tol=1e-5)


def test_heavy_tails_are_followed_by_the_same_plan():
    process = fk.PFGMPP(D=6.0)
    t, s = process.time(-3.0).item(), process.time(3.0).item()
    x = process.add_noise(LAW.sample(4, seed=3), process.sample_noise((4, 2), seed=4, dtype=F64), t)
    truth = LAW.flow(process, x, t, s, tol=1e-4)
    arrived = fk.sample(LAW.denoiser(process), x, solver="dpmpp-3m", grid=LogSNR(24, start=t, end=s))
    wrong = fk.sample(quick(process), x, solver="dpmpp-3m", grid=LogSNR(24, start=t, end=s))
    assert (arrived - truth).abs().max() < 0.01 < 0.05 < (wrong - truth).abs().max()


def test_published_third_order_is_second_order():
    solver = fk.solve.get("dpmpp-3m", published=True)
    assert 1.7 < order(solver, REFERENCE) < 2.5 < order(fk.solve.get("dpmpp-3m"), REFERENCE)


# --- the grid --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_steps_hit_the_grid(name, grid):
    """The denoiser is asked at every grid point but the last, in order, with its own time."""
    process = PROCESSES["vp"]
    grid = fk.grids.get(grid)(7)
    plan = SOLVERS[name].plan(process, grid)
    if adaptive(plan):
        assert (plan.start, plan.end) == (1.0, process.end)
        return
    times = grid.times(process)
    asked = torch.tensor([float(t) for t in plan.times], dtype=F64)
    assert (times[:-1, None] - asked).abs().amin(1).max() < 1e-12
    assert asked.max() == 1.0 and asked.min() >= process.end
    assert plan.start == times[0] and plan.end == times[-1]


@processes
@pytest.mark.parametrize("name", DAMPED)
def test_states_are_where_their_time_says(name, process):
    """With a belief that never changes the noise in the state never changes either: any wrong target would show."""
    process = PROCESSES[process]
    t, s, x, _, given = exact(process, HIGH, LOW)
    point = torch.tensor([0.4, -0.3], dtype=F64)
    seen = []

    def eps(x: Tensor, time: float) -> Tensor:
        alpha, beta, sigma = process.at(float(time))
        return (x - alpha * point - (beta * given["y"] if process.anchored else 0.0)) / sigma

    def watch(run: Run, x: Tensor, belief: Tensor) -> None:
        seen.append(eps(x, run.t))

    plan = SOLVERS[name].plan(process, LogSNR(16, start=t, end=s))
    denoiser = fk.as_denoiser(lambda x, t, y=None: point.expand_as(x), process)
    out = fk.sample(denoiser, states(plan, x), plan, watch=watch, **given)
    for e in [*seen, eps(out, s)]:
        assert (e - eps(x, t)).abs().max() < 0.02


@pytest.mark.parametrize("process", ["vp", "flow", "edm", "ve", "brownian-bridge", "resshift"])
@pytest.mark.parametrize("name", FORGETFUL)
def test_the_last_step_to_x0_is_the_belief(name, process):
    process, seen = PROCESSES[process], []
    x = start(process, 3)
    plan = SOLVERS[name].plan(process, LogSNR(6, end=0))
    keep = lambda run, x, belief: seen.append(belief)  # noqa: E731
    out = fk.sample(quick(process), states(plan, x), plan, watch=keep, **cond(process, x))
    assert torch.equal(out, seen[-1])
    assert plan.end is None


@pytest.mark.parametrize("name", FORGETFUL)
def test_one_step_to_x0_is_the_belief_at_the_start(name):
    for process in PROCESSES.values():
        x = start(process, 3)
        plan = SOLVERS[name].plan(process, Uniform(1, end=0)) if name != "restart" else None
        if plan is not None and plan.inputs == 1:
            belief = quick(process)(x, 1.0, **cond(process, x))
            assert torch.allclose(fk.sample(quick(process), x, plan, **cond(process, x)), belief, atol=1e-12)
    if name == "restart":
        with pytest.raises(FokkerError, match="use more steps"):
            SOLVERS[name].plan(PROCESSES["vp"], Uniform(1, end=0))


def test_a_table_that_ends_without_noise_ends_at_x0():
    process = fk.VP()
    with_zero = fk.solve.get("dpmpp-2m").plan(process, Times([1.0, 0.5, 0.1, 0.0]))
    said = fk.solve.get("dpmpp-2m").plan(process, Times([1.0, 0.5, 0.1, 0.0], to_x0=True))
    assert with_zero.rows == said.rows and with_zero.end is None


# --- reversed grids --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["vp", "edm", "resshift", "brownian-bridge"])
@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp-2m", "dpmpp-3m"])
def test_the_same_solver_goes_back_on_the_reversed_grid(name, process):
    """There and back again errs no more than twice the way there does, times what the flow magnifies."""
    process, solver = PROCESSES[process], SOLVERS[name]
    t, s, x, _, given = exact(process, HIGH, 2.0)
    errors = []
    for n in (20, 60):
        grid = LogSNR(n, start=t, end=s)
        there = fk.sample(quick(process), x, solver.plan(process, grid), **given)
        back = fk.sample(quick(process), there, solver.plan(process, fk.grids.reversed_times(grid, process)), **given)
        errors.append((back - x).norm(dim=1).median().item() / process.at(t)[2])
    assert errors[1] < 0.2 and math.log(errors[0] / errors[1], 3) > SOLVERS[name].order - 0.4


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpmpp-2m", "dpmpp-3m"])
@pytest.mark.parametrize("process", ["flow", "cosine", "vp-table-zero-snr"])
def test_a_reversed_grid_may_end_without_signal(name, process):
    process = PROCESSES[process]
    up = SOLVERS[name].plan(process, fk.grids.reversed_times(LogSNR(40), process))
    x = fk.noise((4, 2), dtype=F64) * 0.5
    back = LAW.flow(process, x, process.end, 1.0, tol=1e-7)
    assert (fk.sample(quick(process), x, up) - back).norm(dim=1).median() < (0.4 if SOLVERS[name].order == 1 else 0.1)


def test_clean_data_cannot_be_left():
    with pytest.raises(FokkerError, match="a flow cannot leave clean data"):
        fk.solve.get("ddim").plan(fk.VP(), Times([0.0, 0.5, 1.0], rising=True))


# --- the law of stochastic solvers -----------------------------------------------------------------------------------------

MEAN, VARIANCE = 0.4, 0.5


def overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    """The correlation of two draws: the share of Brownian path that they have in common; draws upwards are fresh."""
    if a[0] >= a[1] or b[0] >= b[1]:
        return 0.0
    low, high = max(a[0], b[0]), min(a[1], b[1])
    lengths = [math.exp(i[1]) - math.exp(i[0]) for i in (a, b)]
    return max(0.0, math.exp(high) - math.exp(low)) / math.sqrt(lengths[0] * lengths[1])


def sampled_law(plan: Plan) -> tuple[float, float]:
    """Mean and variance of what a plan returns on the law N(MEAN, VARIANCE) in one dimension, worked out exactly.

    There the belief is affine in the state, so every row is a combination of 1, the start and the draws.
    """
    count = len(plan.noises)
    states: list[np.ndarray] = []
    beliefs: list[np.ndarray | None] = []
    for row in plan.rows:
        state = np.zeros(2 + count)
        for (kind, i), c in row.terms:
            if kind == "z":
                state[2 + i] += c
            else:
                state = state + c * (states if kind == "x" else beliefs)[i]
        if not row.terms:
            state[1] = 1.0
        states.append(state)
        beliefs.append(None)
        if row.t is not None:
            alpha, _, sigma = plan.process.at(row.t)
            gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
            beliefs[-1] = gain * state
            beliefs[-1][0] += MEAN * (1 - gain * alpha)
    out = states[plan.outputs[0]]
    alpha, _, sigma = plan.process.at(plan.start)
    z = np.array(
        [[1.0 if i == j else overlap(a, b) for j, b in enumerate(plan.noises)] for i, a in enumerate(plan.noises)]
    )
    variance = out[1] ** 2 * (alpha**2 * VARIANCE + sigma**2) + out[2:] @ z.reshape(count, count) @ out[2:]
    return float(out[0] + out[1] * alpha * MEAN), float(variance)


def misfit(plan: Plan) -> tuple[float, float]:
    """What is wrong with the mean, in standard deviations, and with the variance, as a share of it."""
    mean, variance = sampled_law(plan)
    alpha, _, sigma = plan.process.at(plan.end)
    truth = alpha**2 * VARIANCE + sigma**2
    return abs(mean - alpha * MEAN) / math.sqrt(truth), abs(variance / truth - 1)


@processes
@pytest.mark.parametrize("name", [*STOCHASTIC, "ddim"])
def test_the_sampled_law_converges_to_the_true_one(name, process):
    """At first order or better: a third of the step leaves little more than a third of the error (or 2 per cent)."""
    process, solver = PROCESSES[process], SOLVERS[name]
    coarse, fine = (misfit(solver.plan(process, LogSNR(n))) for n in (12, 36))
    for a, b in zip(coarse, fine):
        assert b < max(0.6 * a, 0.02)


@pytest.mark.parametrize("process", ["vp", "edm"])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_draws_of_a_run_are_what_the_plan_says(name, process):
    """Sampled mean and variance within 5 standard errors of those worked out from the table."""
    process = PROCESSES[process]
    plan = SOLVERS[name].plan(process, LogSNR(8))
    n = 4000
    law = fk.laws.GaussianMixture([1.0], [[MEAN]], VARIANCE)
    alpha, _, sigma = process.at(1.0)
    x = alpha * law.sample(n, seed=1) + sigma * fk.noise((n, 1), seed=2, dtype=F64)
    out = fk.sample(law.denoiser(process), x, plan, seed=3)
    mean, variance = sampled_law(plan)
    assert abs(out.mean() - mean) < 5 * math.sqrt(variance / n)
    assert abs(out.var() / variance - 1) < 5 * math.sqrt(2 / n)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_covariance_of_a_run_is_that_of_the_law(name):
    """In two dimensions with correlation, to 5 standard errors and the table's own misfit (its worst direction's)."""
    process = PROCESSES["vp"]
    cov = torch.tensor([[0.8, 0.35], [0.35, 0.4]], dtype=F64)
    law = fk.laws.GaussianMixture([1.0], [[0.3, -0.5]], cov)
    plan = SOLVERS[name].plan(process, LogSNR(24, end=process.time(2.0).item()))
    n = 3000
    alpha, _, sigma = process.at(1.0)
    x = alpha * law.sample(n, seed=1) + sigma * fk.noise((n, 2), seed=2, dtype=F64)
    out = fk.sample(law.denoiser(process), x, plan, seed=3)
    alpha, _, sigma = process.at(plan.end)
    truth = alpha**2 * cov + sigma**2 * torch.eye(2, dtype=F64)
    bias = misfit(plan)[1] + 0.1
    assert (out.mean(0) - alpha * law.mean()).abs().max() < 5 * math.sqrt(1 / n) + 0.02
    assert (torch.cov(out.T) - truth).abs().max() < 5 * math.sqrt(2 / n) + bias


def test_eta_is_the_closed_form_of_ddim():
    process = fk.VP()
    t, s = 0.7, 0.4
    for eta in (0.0, 0.4, 1.0):
        plan = fk.solve.get("ddim", eta=eta).plan(process, Times([t, s]))
        (a, _, b), (c, _, d) = process.at(t), process.at(s)
        fresh = eta * math.sqrt(d**2 / b**2) * math.sqrt(b**2 - (a / c * d) ** 2)
        weights = dict(plan.rows[-1].terms)
        assert weights["x", 0] == pytest.approx(math.sqrt(d**2 - fresh**2) / b, rel=1e-12)
        assert weights["D", 0] == pytest.approx(c - a * math.sqrt(d**2 - fresh**2) / b, rel=1e-12)
        assert weights.get(("z", 0), 0.0) == pytest.approx(fresh, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fk.solve.get("ddimm"), "did you mean 'ddim'"),
        (lambda: fk.solve.get("ddim", etta=1), "did you mean 'eta'"),
        (lambda: fk.solve.get("ddim", eta=2.0), "eta=2.0"),
        (lambda: fk.solve.get("dpmpp-2m", order=4), "orders 1, 2 and 3"),
        (lambda: fk.solve.get("dpmpp-2m", order=3, sde=True), "SDE form"),
        (lambda: fk.solve.get("heun", variable="rho"), "'sigma' or 'time'"),
        (
            lambda: fk.solve.get("heun", variable="sigma").plan(fk.Flow(), Uniform(4)),
            "use variable='time' or start < 1",
        ),
        (lambda: fk.solve.get("heun").steps_for(0, fk.VP(), Uniform), "raise nfe"),
    ],
)
def test_what_cannot_be_is_said(make, message):
    with pytest.raises(FokkerError, match=message):
        make()
