"""The contract that everything registered keeps, whatever it is: nothing here names a method.

Pure (the same bits twice), a sample alone is the sample in a batch, order does not matter, a time for each sample, sizes that
are not square, half precision stays finite, evaluations are counted, unknown options are refused with the nearest, and guidance
of scale 1 is off.
"""

import inspect

import pytest
import torch
from laws_for_tests import (
    F64,
    GRIDS,
    KNOWN,
    LAW,
    OPERATORS,
    PROCESSES,
    SHAPE,
    SHAPED,
    SOLVERS,
    adaptive,
    cond,
    guidance,
    start,
)
from laws_for_tests import restorer as make_restorer

import fokker as fk
from fokker import catalogue
from fokker.errors import FokkerError
from fokker.grids import Times
from fokker.plan import Plan

PLAIN, ANCHORED = PROCESSES["vp"], PROCESSES["resshift"]
GUIDANCE, RESTORERS = catalogue.names("guidance"), catalogue.names("restorer")
solvers = pytest.mark.parametrize("name", SOLVERS)
LABELS = torch.tensor([0, 2, 1, 0])


def laid(name: str, process: fk.Process, steps: int = 6) -> Plan:
    # away from the ends, where some solvers have nothing to do
    return SOLVERS[name].plan(process, fk.grids.get("logsnr")(steps, start=0.9, end=0.05))


def close(a: torch.Tensor, b: torch.Tensor, plan: Plan) -> bool:
    # an adaptive solver chooses its steps for the whole batch, and promises only its tolerance
    return torch.allclose(a, b, rtol=0, atol=2e-3 if adaptive(plan) else 1e-10)


@solvers
@pytest.mark.parametrize("process", [PLAIN, ANCHORED], ids=["vp", "resshift"])
def test_solver_is_pure_and_a_sample_is_its_own(name, process):
    denoiser, plan = LAW.denoiser(process), laid(name, process)
    x, given = start(process, t=0.9), cond(process, start(process))
    whole = fk.run(denoiser, x, plan, seed=3, ids=[7, 8, 9, 10], **given)
    assert torch.equal(fk.sample(denoiser, x, plan, seed=3, ids=[7, 8, 9, 10], **given), whole.x0)
    alone = fk.sample(denoiser, x[2:3], plan, seed=3, ids=[9], **{k: v[2:3] for k, v in given.items()})
    assert close(alone, whole.x0[2:3], plan)
    turned = [3, 0, 2, 1]
    mixed = fk.sample(denoiser, x[turned], plan, seed=3, ids=[10, 7, 9, 8], **{k: v[turned] for k, v in given.items()})
    assert close(mixed, whole.x0[turned], plan)
    if not adaptive(plan):
        assert whole.nfe == plan.nfe
    if plan.stochastic:
        assert not torch.equal(fk.sample(denoiser, x, plan, seed=4, **given), whole.x0)


@solvers
def test_solver_takes_a_time_for_each_sample(name):
    denoiser, solver = LAW.denoiser(PLAIN), SOLVERS[name]
    ends = ((0.9, 0.05), (0.8, 0.1), (0.7, 0.02), (0.9, 0.3))
    columns = torch.stack([torch.linspace(a, b, 7, dtype=F64) for a, b in ends], 1)
    x = start(PLAIN)
    try:
        plan = solver.plan(PLAIN, Times(columns))
    except FokkerError as reason:
        # a solver that decides by the noise level which steps to take cannot decide for each sample: it says so
        assert "sample" in str(reason) or "time" in str(reason)
        return
    together = fk.sample(denoiser, x, plan, seed=1)
    for k in range(4):
        own = solver.plan(PLAIN, Times(columns[:, k]))
        assert close(fk.sample(denoiser, x[k : k + 1], own, seed=1, ids=[k]), together[k : k + 1], own), k


@solvers
def test_solver_takes_any_shape_and_half_precision(name):
    plan = laid(name, PLAIN)
    x = start(PLAIN, shape=SHAPE, t=0.9)
    out = fk.sample(SHAPED.denoiser(PLAIN), x, plan)
    assert out.shape == x.shape and out.dtype == F64
    low = fk.sample(SHAPED.denoiser(PLAIN), x.bfloat16(), plan)
    assert low.dtype == torch.bfloat16 and bool(torch.isfinite(low).all())


@pytest.mark.parametrize("kind", ["solver", "grid", "process", "operator", "guidance", "restorer"])
def test_unknown_names_and_options_are_refused_with_the_nearest(kind):
    for name in catalogue.names(kind):
        target, _ = catalogue.find(kind, name)
        options = [p for p in inspect.signature(target).parameters if p not in ("self", "inner", "y")]
        if options:
            near = options[-1] + "x"
            with pytest.raises(FokkerError, match=f"option of {name} '{near}'; did you mean"):
                catalogue.resolve(kind, name, **{near: 1})
        with pytest.raises(FokkerError, match="unknown"):
            catalogue.find(kind, name + "qq")


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("end", [None, 0])
def test_grid_has_the_steps_asked_for(grid, process, end):
    noising = PROCESSES[process]
    for steps in (1, 2, 9):
        t = fk.grids.get(grid)(steps, end=end).times(noising)
        assert t.dtype == F64 and len(t) == steps + 1 and t[0] == 1
        assert bool((t.diff()[: -1 if end == 0 else None] < 0).all())
        assert t[-1] == (0 if end == 0 else noising.end)


# --- wrappers --------------------------------------------------------------------------------------------------------


def wrapped(kind: str, name: str, denoiser: fk.Denoiser, n: int = 4) -> fk.Wrapper:
    if kind == "guidance":
        return guidance(name, denoiser)
    operator = OPERATORS["mask"]
    truth = SHAPED.sample(4, seed=11)[:n]
    options = {"noise_std": 0.1} if "noise_std" in inspect.signature(catalogue.find("restorer", name)[0]).parameters else {}
    return make_restorer(name, denoiser, operator, operator(truth), **options)


WRAPPERS = [("guidance", n) for n in GUIDANCE] + [("restorer", n) for n in RESTORERS]


@pytest.mark.parametrize(("kind", "name"), WRAPPERS)
def test_wrapper_is_pure_and_a_sample_is_its_own(kind, name):
    inner = SHAPED.denoiser(PLAIN)
    x = start(PLAIN, shape=SHAPE)
    plan = laid("dpmpp-2m", PLAIN, 4)
    one, two = (fk.sample(wrapped(kind, name, inner), x, plan, label=LABELS) for _ in range(2))
    assert torch.equal(one, two) and one.shape == x.shape
    first = fk.sample(wrapped(kind, name, inner, 1), x[:1], plan, label=LABELS[:1])
    assert torch.allclose(first, one[:1], rtol=0, atol=1e-9)
    used_twice = wrapped(kind, name, inner)
    assert torch.equal(fk.sample(used_twice, x, plan, label=LABELS), fk.sample(used_twice, x, plan, label=LABELS))
    for dtype in (torch.float32, torch.bfloat16):
        low = fk.sample(wrapped(kind, name, inner), x.to(dtype), plan, label=LABELS)
        assert low.dtype == dtype and bool(torch.isfinite(low).all())


@pytest.mark.parametrize(("kind", "name"), WRAPPERS)
def test_wrapper_takes_a_time_for_each_sample(kind, name):
    x, times = start(PLAIN, shape=SHAPE), torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=F64)
    wrapper = wrapped(kind, name, SHAPED.denoiser(PLAIN))
    together = wrapper(x, times, label=LABELS)
    for k in range(4):
        alone = wrapper(x, float(times[k]), label=LABELS)[k]
        assert torch.allclose(alone, together[k], rtol=0, atol=1e-9), k


@pytest.mark.parametrize("name", GUIDANCE)
def test_guidance_of_scale_one_is_off_and_costs_one_evaluation(name):
    if "scale" not in inspect.signature(catalogue.find("guidance", name)[0]).parameters:
        return
    inner = SHAPED.denoiser(PLAIN)
    x, plan = start(PLAIN, shape=SHAPE), laid("ddim", PLAIN)
    off = fk.run(guidance(name, inner, scale=1.0), x, plan, label=LABELS)
    plain = fk.run(inner, x, plan, label=LABELS)
    assert torch.equal(off.x0, plain.x0) and off.nfe == plain.nfe == plan.nfe
    on = fk.run(guidance(name, inner, scale=2.0), x, plan, label=LABELS)
    # a guidance may stop asking where it has nothing to add
    assert plan.nfe < on.nfe <= 2 * plan.nfe and not torch.equal(on.x0, plain.x0)


# --- operators -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_keeps_its_contract(name):
    A = OPERATORS[name]
    x = fk.noise((3, *SHAPE), seed=1, dtype=F64)
    y = A(x)
    assert A.check((3, *SHAPE)) < 1e-12
    # the Moore-Penrose conditions
    assert torch.allclose(A(A.pinv(y)), y, atol=1e-6)
    assert torch.allclose(A.pinv(A(A.pinv(y))), A.pinv(y), atol=1e-6)
    v = fk.noise(tuple(y.shape), seed=2, dtype=F64)
    assert torch.allclose(A.solve(2.0 * A(A.adjoint(v)) + 0.3 * v, 2.0, 0.3), v, atol=1e-9)
    assert torch.allclose(A(A.consistent(torch.zeros_like(x), y)), y, atol=1e-6)
    # data in another range: three times the picture, three times the measurement
    assert torch.allclose(A(3 * x), 3 * y, atol=1e-12)
    assert torch.allclose(A(x[1:2]), y[1:2], atol=1e-12)
    assert A(x.float()).dtype == torch.float32
    assert KNOWN["shape"] == SHAPE
