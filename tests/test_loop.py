"""The loop runs a table and nothing else: the formula's numbers, keyed noise, counted calls, one sentence on errors."""

import itertools
import math

import pytest
import torch
from laws_for_tests import F64, LAW, PROCESSES, SOLVERS, adaptive, anchor, cond, quick, start
from torch import Tensor

import fokker as fk
from fokker.denoiser import Run
from fokker.errors import FokkerError
from fokker.grids import LogSNR, Times, Uniform
from fokker.plan import Plan

VP = fk.VP()
FAST = [name for name in ("ddim", "ddpm", "heun", "dpmpp-2m", "dpmpp-3m", "dpmpp-2m-sde") if name in SOLVERS]
every = pytest.mark.parametrize("process", PROCESSES)


# --- what it computes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-3m", "unipc"])
def test_large_states_are_the_small_ones_side_by_side(solver):
    """A row of many numbers is added up in another way; it is the same row."""
    denoiser = fk.as_denoiser(lambda x, t: torch.tanh(3 * x), VP)
    x = fk.noise((2, 40_000), dtype=F64)
    plan = fk.solve.get(solver).plan(VP, LogSNR(6))
    small = torch.cat([fk.sample(denoiser, part, plan) for part in x.split(10_000, dim=1)], 1)
    assert torch.allclose(fk.sample(denoiser, x, plan), small, rtol=0, atol=1e-13)
    assert torch.allclose(fk.sample(denoiser, x.float(), plan), small.float(), rtol=0, atol=1e-5)


@every
def test_ddim_is_its_formula(process):
    """Three steps by hand, with the anchor left in the state; the loop takes it out and puts it back."""
    process = PROCESSES[process]
    x, times = start(process, t=0.9), [0.9, 0.6, 0.3, 0.1]
    given, denoiser = cond(process, x), quick(process)
    out = fk.sample(denoiser, x, fk.solve.get("ddim").plan(process, Times(times)), **given)
    for t, s in itertools.pairwise(times):
        (a, b, c), (d, e, f) = process.at(t), process.at(s)
        y = given.get("y", torch.zeros(()))
        belief = denoiser(x, t, **given)
        eps = (x - a * belief - b * y) / c
        x = d * belief + e * y + f * eps
    assert torch.allclose(out, x, atol=1e-10 * max(1.0, process.at(0.9)[2]))


@every
def test_a_run_is_anchored_by_shifting_both_ends(process):
    """An anchored run is a plain run of x - beta(start) y, plus beta(end) y; at x_0 itself nothing is added."""
    process = PROCESSES[process]
    if not process.anchored:
        return
    x = start(process)
    y = anchor(process, x)
    plain = fk.process.Interpolant(process.alpha, lambda t: torch.where(process.alpha(t) > 0, process.sigma(t), 1.0))
    for end, back in ((None, process.beta(process.end)), (0, 0.0)):
        out = fk.sample(LAW.denoiser(process), x, solver="dpmpp-2m", steps=7, end=end, y=y)
        moved = fk.solve.get("dpmpp-2m").plan(process, LogSNR(7, end=end))
        moved = Plan(moved.rows, plain, moved.outputs)
        base = fk.sample(LAW.denoiser(plain), x - process.beta(1.0) * y, moved)
        assert torch.allclose(out, base + back * y, atol=1e-10)


def test_what_a_trace_says():
    x = start(VP, 3)
    trace = fk.run(quick(VP), x, solver="heun", steps=4, end=0, seed=9)
    assert trace.nfe == trace.plan.nfe == 7 and trace.x0 is trace.outputs[0] and not trace.stopped
    assert trace.config["solver"] == "Heun" and trace.config["grid"] == "LogSNR" and trace.config["steps"] == 4
    assert trace.seed == 9 and trace.seconds > 0 and "7 evaluations" in str(trace)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_budget_is_never_exceeded_and_well_used(name):
    """At most nfe evaluations, and one more step would be too many (or there is none)."""
    solver = SOLVERS[name]
    for nfe in (4, 9, 16):
        try:
            plan = fk.loop.lay(VP, solver, nfe=nfe)
        except FokkerError as reason:
            assert "steps" in str(reason) or "nfe" in str(reason)
            continue
        if adaptive(plan):
            continue
        assert nfe - max(solver.evaluations, 2) - len(plan.noises) <= plan.nfe <= nfe
        assert fk.run(quick(VP), start(VP), plan).nfe == plan.nfe


def test_inputs_are_left_alone():
    x = start(VP)
    before = x.clone()
    for name in FAST:
        fk.sample(quick(VP), x, solver=name, steps=4)
        assert torch.equal(x, before)


def test_gradients_flow_only_when_asked():
    x = start(VP).requires_grad_()
    assert not fk.sample(quick(VP), x, solver="heun", steps=3).requires_grad
    out = fk.sample(quick(VP), x, solver="heun", steps=3, gradient=True)
    (slope,) = torch.autograd.grad(out[0].sum(), x)
    assert slope[0].any() and not slope[1:].any()
    h = torch.zeros_like(x)
    h[0, 0] = 1e-5
    ends = [fk.sample(quick(VP), x.detach() + s * h, solver="heun", steps=3)[0].sum() for s in (1, -1)]
    assert slope[0, 0].item() == pytest.approx((ends[0] - ends[1]).item() / 2e-5, rel=1e-6)


# --- samples and their noise -----------------------------------------------------------------------------------------------


def test_noise_belongs_to_the_sample_whatever_the_batch():
    x = fk.noise((64, 2), seed=0, dtype=F64)
    denoiser = quick(VP)
    whole = fk.sample(denoiser, x, solver="ddpm", steps=6, seed=5)
    alone = fk.sample(denoiser, x[17:18], solver="ddpm", steps=6, seed=5, ids=[17])
    assert torch.allclose(alone[0], whole[17], rtol=0, atol=1e-12)
    assert not torch.allclose(fk.sample(denoiser, x[17:18], solver="ddpm", steps=6, seed=5)[0], whole[17])


@every
def test_times_per_sample_on_every_process(process):
    """Columns of one plan are the plans of their samples: states, anchors and noise."""
    process = PROCESSES[process]
    columns = torch.stack([torch.linspace(0.95 - 0.05 * k, 0.1 + 0.03 * k, 7, dtype=F64) for k in range(4)], 1)
    x = process.add_noise(
        LAW.sample(4), fk.noise((4, 2), seed=1, dtype=F64), columns[0], anchor(process, LAW.sample(4))
    )
    given, denoiser = cond(process, x), LAW.denoiser(process)
    for name in ("ddpm", "heun", "dpmpp-3m"):
        solver = fk.solve.get(name)
        together = fk.sample(denoiser, x, solver.plan(process, Times(columns)), seed=2, **given)
        for k in range(4):
            own = {n: v[k : k + 1] for n, v in given.items()}
            plan = solver.plan(process, Times(columns[:, k]))
            alone = fk.sample(denoiser, x[k : k + 1], plan, seed=2, ids=[k], **own)
            assert torch.allclose(alone[0], together[k], rtol=1e-10, atol=1e-10), (name, k)


def test_a_plan_with_a_time_per_sample_needs_that_many_samples():
    plan = fk.solve.get("ddim").plan(VP, Times(torch.tensor([[0.9, 0.8], [0.2, 0.1]])))
    with pytest.raises(FokkerError, match=r"times of shape \(2,\) do not fit"):
        fk.sample(quick(VP), start(VP, 3), plan)


def test_a_refined_grid_keeps_the_path_of_the_noise():
    """Strongly: the ancestral samples of 10, 40 and 160 steps approach each other on one path, and not on another."""
    times = VP.time(torch.linspace(VP.logsnr(1.0).item(), 4, 161, dtype=F64))
    x = start(VP, 32)
    ends = {
        n: fk.sample(quick(VP), x, fk.solve.get("ddpm").plan(VP, Times(times[:: 160 // n])), seed=3)
        for n in (10, 40, 160)
    }
    other = fk.sample(quick(VP), x, fk.solve.get("ddpm").plan(VP, Times(times)), seed=4)
    far, near, apart = ((v - ends[160]).norm(dim=1).median() for v in (ends[10], ends[40], other))
    assert near < 0.6 * far and near < 0.25 * apart


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@every
def test_lower_precision_follows_the_same_run(process, dtype):
    process = PROCESSES[process]
    x = start(process, t=0.9)
    given, denoiser = cond(process, x), quick(process)
    plan = fk.solve.get("dpmpp-2m").plan(process, LogSNR(6, start=0.9, end=0.1))
    full = fk.sample(denoiser, x, plan, **given)
    low = fk.sample(LAW.denoiser(process), x.to(dtype), plan, **{k: v.to(dtype) for k, v in given.items()})
    assert low.dtype == dtype
    if process.name != "PFGMPP":
        size = max(1.0, float(x.abs().max()), process.at(0.9)[2]) / math.hypot(*process.at(0.9)[::2])
        # a dozen roundings of the state, which the flow shrinks as it does the state
        assert (low.double() - full).abs().median() < 24 * torch.finfo(dtype).eps * size * math.hypot(
            *process.at(0.1)[::2]
        ) + 1e-6


# --- watching and stopping -------------------------------------------------------------------------------------------------


@every
def test_watch_sees_state_time_and_belief_and_may_stop(process):
    process, seen = PROCESSES[process], []
    x = start(process)
    given = cond(process, x)

    def watch(run: Run, x_t: Tensor, belief: Tensor) -> bool:
        seen.append((run.row, run.t, x_t.clone(), belief.clone(), run.nfe))
        return len(seen) == 4

    trace = fk.run(quick(process), x, solver="dpmpp-2m", steps=9, watch=watch, **given)
    assert trace.stopped and trace.nfe == 4 and len(seen) == 4
    assert [n for *_, n in seen] == [1, 2, 3, 4] and [row for row, *_ in seen] == sorted(row for row, *_ in seen)
    for _, t, x_t, belief, _ in seen:
        # the state it sees is the one that the denoiser answers about, anchor and all
        assert torch.allclose(quick(process)(x_t, t, **given), belief, atol=1e-9)
    assert torch.equal(trace.x0, seen[-1][3])


# --- conditions and options ------------------------------------------------------------------------------------------------


class Strict(fk.Denoiser):
    def x0(self, x_t: Tensor, t: float, label: Tensor | None = None) -> Tensor:
        return 0.5 * x_t


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "ddim"}, "give steps="),
        ({"solver": "ddim", "steps": 4, "nfe": 4}, "one of the two"),
        ({"solver": "dimm", "steps": 4}, "did you mean 'ddim'"),
        ({"solver": "ddim", "steps": 4, "grid": "log-snr"}, "did you mean 'logsnr'"),
        ({"solver": "ddim", "steps": 4, "grid": LogSNR(3)}, "already has its steps"),
        ({"solver": "ddim", "start": 0.5, "grid": LogSNR(3)}, "already has its steps and ends"),
        ({"plan": "ddim"}, "give a Plan"),
        ({"solver": "ddim", "step": 4}, "unknown option or condition 'step'; did you mean 'steps'"),
        ({"solver": "ddim", "steps": 4, "lable": torch.zeros(4)}, "did you mean 'label'"),
        ({"solver": "ddim", "steps": 4, "label": torch.zeros(3)}, r"'label' has shape \(3,\) for 4 samples"),
        ({"solver": "ddim", "steps": 4, "y": torch.zeros(4, 2)}, "unknown option or condition 'y'"),
        ({"solver": "ddim", "steps": 4, "ids": [1, 2]}, "give one id per sample"),
        ({"solver": "ddim", "nfe": 0}, "raise nfe"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(FokkerError, match=message):
        fk.sample(Strict(VP), start(VP), **options)


@pytest.mark.parametrize(
    "option", [{"start": 0.5}, {"end": 0}, {"steps": 4}, {"nfe": 4}, {"solver": "ddim"}, {"grid": "karras"}]
)
def test_a_plan_leaves_nothing_to_choose(option):
    plan = fk.solve.get("ddim").plan(VP, Uniform(3))
    with pytest.raises(FokkerError, match="either a plan or"):
        fk.sample(quick(VP), start(VP), plan, **option)


def test_states_that_cannot_be_are_refused():
    plan = fk.solve.get("ddim").plan(VP, Uniform(3))
    for x, message in (
        (torch.ones(4, 2, dtype=torch.int64), "floating point"),
        (torch.tensor(1.0), "floating point"),
        ([start(VP)] * 2, "starts from 1 states, but 2"),
    ):
        with pytest.raises(FokkerError, match=message):
            fk.sample(quick(VP), x, plan)
    with pytest.raises(FokkerError, match="wrap the denoiser in OnProcess"):
        fk.sample(quick(fk.EDM()), start(VP), plan)
    with pytest.raises(FokkerError, match="give it as y="):
        fk.sample(LAW.denoiser(fk.BrownianBridge()), start(VP), solver="ddim", steps=2)
    with pytest.raises(FokkerError, match=r"y has shape \(4, 1\)"):
        fk.sample(LAW.denoiser(fk.BrownianBridge()), start(VP), solver="ddim", steps=2, y=torch.ones(4, 1))


def test_conditions_reach_every_call():
    labels = torch.tensor([0, 1, 1, 0])
    x = start(VP)
    for name in ("dpmpp-2m", "adaptive"):
        whole = fk.sample(LAW.denoiser(VP), x, solver=name, steps=8, label=labels)
        for k in range(4):
            one = LAW.conditional(int(labels[k]))
            assert torch.allclose(
                fk.sample(one.denoiser(VP), x[k : k + 1], solver=name, steps=8)[0], whole[k], atol=1e-3
            )


def test_y_is_a_condition_where_there_is_no_anchor():
    seen = []
    denoiser = fk.as_denoiser(lambda x, t, y=None: seen.append(y) or x, VP)
    y = torch.ones(4, 3)
    fk.sample(denoiser, start(VP), solver="ddim", steps=1, y=y)
    assert seen == [y]


# --- what breaks -----------------------------------------------------------------------------------------------------------


def test_the_row_that_breaks_is_named():
    def broken(x: Tensor, t: float) -> Tensor:
        out = 0.5 * x
        return torch.where(torch.arange(len(x)) == 2, math.nan, out.T).T if t < 0.5 else out

    with pytest.raises(
        FokkerError, match=r"denoiser's answer is not finite in row 5 of 9, at t=0\.375\d*, first in sample 2"
    ):
        fk.sample(fk.as_denoiser(broken, VP), start(VP), solver="euler", steps=8, grid="uniform", end=1e-3)
    columns = torch.stack([Uniform(8).times(VP)] * 4, 1)
    plan = fk.solve.get("ddim").plan(VP, Times(columns))
    with pytest.raises(FokkerError, match="denoiser's answer is not finite in row 5 of 9"):
        fk.sample(fk.as_denoiser(lambda x, t: broken(x, float(t.mean())), VP), start(VP), plan)


def test_a_start_that_is_not_finite_is_named():
    x = start(VP)
    x[1, 0] = math.inf
    with pytest.raises(FokkerError, match=r"state x_t is not finite in row 0 of \d+, at t=1, first in sample 1"):
        fk.sample(quick(VP), x, solver="ddim", steps=3)


def test_overflow_of_half_precision_is_named_with_its_dtype():
    denoiser = fk.as_denoiser(lambda x, t: x * 300, fk.EDM())
    with pytest.raises(FokkerError, match=r"float16\); use float32"):
        fk.sample(denoiser, 80 * fk.noise((2, 2), dtype=torch.float16), solver="ddim", steps=4)


def test_unchecked_runs_return_what_they_have():
    x = start(VP)
    x[1] = math.nan
    out = fk.sample(quick(VP), x, solver="ddim", steps=3, check=False)
    assert bool(out[1].isnan().all()) and bool(torch.isfinite(out[0]).all())
