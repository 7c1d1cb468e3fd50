"""Control of a flow on its end point: the step it says, on any path, without the network's Jacobian."""

from itertools import pairwise

import pytest
import torch
from laws_for_tests import F64, LAW, PROCESSES
from torch import Tensor

import fokker as fk
from fokker.errors import FokkerError
from fokker.grids import Times
from fokker.guide.flowchef import FlowChef, Misfit, Reference, Regional, WantedClass
from fokker.laws import GaussianMixture
from fokker.restore.operators import Matrix

FLOW = fk.Flow()
FIRST = Matrix(torch.tensor([[1.0, 0.0]], dtype=F64))
Y = torch.tensor([[0.7], [-0.4], [1.2], [0.1], [0.0]], dtype=F64)
TARGET = torch.tensor([0.5, -0.3], dtype=F64)


def pull(x: Tensor) -> Tensor:
    return 0.5 * (x - TARGET).square().sum(1) + 0.1 * x[:, 0].sin()


def gradient(x: Tensor) -> Tensor:
    return x - TARGET + 0.1 * torch.stack([x[:, 0].cos(), 0 * x[:, 0]], 1)


def start(process: fk.Process, n: int = 5) -> Tensor:
    return process.start(fk.noise((n, 2), seed=1, dtype=F64))


@pytest.mark.parametrize("step", [0.0, 0.3, 1.0])
def test_a_step_is_eulers_with_the_state_and_its_end_point_moved(step: float) -> None:
    plan = fk.solve.get("euler").plan(FLOW, fk.grids.get("uniform")(4, end=0))
    seen: list[tuple[float, Tensor]] = []
    out = fk.sample(FlowChef(LAW.denoiser(FLOW), pull, step), start(FLOW), plan, watch=lambda r, x, D: seen.append((r.t, x)))
    for (t, x), (s, after) in pairwise(seen):
        D = LAW.denoiser(FLOW)(x, t)
        velocity = (x - D) / t
        assert torch.allclose(after, x + (s - t) * velocity - step * gradient(D), atol=1e-12)
    # the last call is not corrected, and its end point is the sample
    assert torch.allclose(out, LAW.denoiser(FLOW)(seen[-1][1], seen[-1][0]), atol=1e-12)


@pytest.mark.parametrize("process", ["vp", "edm", "cosine"])
@pytest.mark.parametrize(
    "options", [{}, {"jacobian": "full"}, {"repeats": 3, "step": 0.4}, {"optimiser": "adam", "repeats": 2}]
)
def test_on_any_path_it_is_the_method_on_straight_lines(process: str, options: dict) -> None:
    noising = PROCESSES[process]
    times = torch.linspace(0.9, 0.1, 7, dtype=F64)
    level = noising.logsnr(times)
    straight = Times(FLOW.time(level))
    x = fk.noise((5, 2), seed=2, dtype=F64)
    (a, _, s), t0 = noising.at(0.9), float(straight.values[0])
    options = {"step": 0.7} | options
    ddim = fk.solve.get("ddim")
    ours = fk.sample(FlowChef(LAW.denoiser(noising), pull, **options), (a + s) * x, ddim.plan(noising, Times(times)))
    flow = fk.sample(FlowChef(LAW.denoiser(FLOW), pull, **options), x, ddim.plan(FLOW, straight))
    (a, _, s), (c, _, d) = noising.at(0.1), FLOW.at(float(straight.values[-1]))
    assert t0 == pytest.approx(FLOW.time(level[0]).item()) and torch.allclose(ours / (a + s), flow / (c + d), atol=1e-8)


def test_no_gradient_goes_through_the_denoiser() -> None:
    blind = fk.as_denoiser(lambda x_t, t: LAW.denoiser(FLOW)(x_t, t).detach(), FLOW)
    plan = fk.solve.get("euler").plan(FLOW, fk.grids.get("uniform")(5, end=0))
    ours = fk.sample(FlowChef(blind, pull), start(FLOW), plan)
    assert torch.equal(ours, fk.sample(FlowChef(LAW.denoiser(FLOW), pull), start(FLOW), plan))
    with pytest.raises(FokkerError, match="no gradient"):
        fk.sample(FlowChef(blind, pull, jacobian="full"), start(FLOW), plan)


def test_the_full_jacobian_is_the_posteriors_covariance() -> None:
    """On N(0, v) the end point's Jacobian in x_t is (1 - t) v / ((1 - t)^2 v + t^2), and so shrinks the step."""
    v, t, s = 0.3, 0.6, 0.4
    one = GaussianMixture([1.0], [[0.0, 0.0]], v).denoiser(FLOW)
    plan = fk.solve.get("euler").plan(FLOW, Times([t, s, 0.2]))
    plain, ours, full = (
        seen[1]
        for seen in (
            states(denoiser, plan) for denoiser in (one, FlowChef(one, pull), FlowChef(one, pull, jacobian="full"))
        )
    )
    shrink = (1 - t) * v / ((1 - t) ** 2 * v + t**2)
    assert torch.allclose(full - plain, shrink * (ours - plain), atol=1e-12) and float((ours - plain).abs().min()) > 1e-3


def states(denoiser: fk.Denoiser, plan: fk.Plan) -> list[Tensor]:
    seen: list[Tensor] = []
    fk.run(denoiser, start(FLOW), plan, watch=lambda r, x, D: seen.append(x))
    return seen


def test_repeats_hold_the_velocity() -> None:
    one, plan = LAW.denoiser(FLOW), fk.solve.get("euler").plan(FLOW, Times([0.6, 0.4, 0.2]))
    # |x - target|^2 / 2 shrinks by 1 - step each time
    quadratic = Reference(TARGET, torch.ones(2))
    plain = states(one, plan)
    D = one(plain[0], 0.6)
    moved = states(FlowChef(one, quadratic, step=0.3, repeats=4), plan)[1] - plain[1]
    assert torch.allclose(moved, (1 - 0.7**4) * (TARGET - D), atol=1e-12)
    adam = states(FlowChef(one, quadratic, step=0.05, optimiser="adam"), plan)[1] - plain[1]
    assert torch.allclose(adam, 0.05 * (TARGET - D).sign(), atol=1e-6)


def test_measurements_are_met_and_the_rest_follows() -> None:
    truth = LAW.posterior(torch.tensor([[1.0, 0.0]], dtype=F64), Y[0], 1e-3)
    x = FLOW.start(fk.noise((400, 2), 3, dtype=F64))
    y = Y[:1].expand(400, 1)
    plain = fk.sample(LAW.denoiser(FLOW), x, solver="euler", grid="uniform", steps=50, end=0)
    trace = fk.run(FlowChef(LAW.denoiser(FLOW), Misfit(FIRST, y)), x, solver="euler", grid="uniform", steps=50, end=0)
    assert trace.nfe == 50 and float((FIRST(trace.x0) - y).abs().max()) < 1e-2
    assert float((trace.x0.mean(0) - truth.mean()).norm()) < 0.5 * float((plain.mean(0) - truth.mean()).norm())
    assert torch.allclose(Misfit(FIRST, y)(x), 0.5 * (x[:, 0] - y[:, 0]).square())
    # latents: the same loss behind a decoder
    decoded = FlowChef(LAW.denoiser(FLOW), Misfit(FIRST, 3 * y, decode=lambda z: 3 * z), step=1 / 9)
    same = fk.sample(decoded, x, solver="euler", grid="uniform", steps=50, end=0)
    assert torch.allclose(same, trace.x0, atol=1e-9)


@pytest.mark.parametrize("solver", ["euler", "dpmpp-2m", "ddim", "ddpm"])
def test_any_solver_and_a_sample_is_its_own(solver: str) -> None:
    options = {"solver": solver, "steps": 12, "end": 0}
    x = start(PROCESSES["vp"])
    denoiser = FlowChef(LAW.denoiser(PROCESSES["vp"]), Misfit(FIRST, Y), 0.5)
    out = fk.sample(denoiser, x, **options)
    assert float((FIRST(out) - Y).abs().max()) < 0.2
    alone = FlowChef(LAW.denoiser(PROCESSES["vp"]), Misfit(FIRST, Y[2:3]), 0.5)
    assert torch.allclose(fk.sample(alone, x[2:3], ids=[2], **options), out[2:3], atol=1e-10)


def test_calls_that_are_corrected() -> None:
    calls = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return pull(x)

    for options, wanted in (({}, 7), ({"max_steps": 3}, 3), ({"max_steps": 0}, 0), ({"repeats": 2}, 14), ({"step": 0.0}, 0)):
        calls, denoiser = 0, FlowChef(LAW.denoiser(FLOW), counted, **options)
        for _ in range(2):  # a run forgets the one before
            fk.sample(denoiser, start(FLOW), solver="euler", steps=8, end=0)
        assert calls == 2 * wanted, options


def test_classes_references_and_guidance() -> None:
    def logits(x: Tensor) -> Tensor:
        return torch.stack([4 * x[:, 0], -4 * x[:, 0]], 1)

    label = torch.tensor([0, 1, 0, 1, 0])
    x = fk.sample(FlowChef(LAW.denoiser(FLOW), WantedClass(logits, label), 0.1), start(FLOW), solver="euler", steps=20, end=0)
    assert bool(((x[:, 0] > 0) == (label == 0)).all())
    reference = LAW.sample(5, 1)
    kept = FlowChef(fk.guide.CFG(LAW.denoiser(FLOW), 3.0), Reference(reference, torch.tensor([0.0, 1.0])))
    trace = fk.run(kept, start(FLOW), solver="euler", grid="uniform", steps=20, end=0, label=label)
    assert trace.nfe == 40 and torch.allclose(trace.x0[:, 1], reference[:, 1], atol=0.02)


def test_an_edit_has_its_target_inside_and_its_source_outside() -> None:
    base, label = LAW.denoiser(FLOW), torch.tensor([0, 1, 1, 0, 1])
    guided = fk.guide.CFG(base, 2.0)
    mask, x = torch.tensor([1.0, 0.0]), start(FLOW)
    inside, nothing, source = guided(x, 0.5, label=label), base(x, 0.5), base(x, 0.5, label=1 - label)
    found = Regional(guided, mask, outside=base)(x, 0.5, label=label)
    assert torch.allclose(found, torch.stack([inside[:, 0], nothing[:, 1]], 1), atol=1e-12)
    found = Regional(guided, mask, outside=base, source={"label": 1 - label})(x, 0.5, label=label)
    assert torch.allclose(found, torch.stack([inside[:, 0], source[:, 1]], 1), atol=1e-12)
    reference = LAW.sample(5, 1)
    edit = FlowChef(Regional(guided, mask, outside=base), Reference(reference, 1 - mask))
    trace = fk.run(edit, x, solver="euler", grid="uniform", steps=30, end=0, label=label)
    assert trace.nfe == 90 and torch.allclose(trace.x0[:, 1], reference[:, 1], atol=0.02)
    with pytest.raises(FokkerError, match="use one process"):
        Regional(base, mask, outside=LAW.denoiser(PROCESSES["vp"]))


def test_refusals() -> None:
    denoiser = LAW.denoiser(FLOW)
    for call, says in (
        (lambda: FlowChef(denoiser, pull, optimiser="adamm"), "did you mean 'adam'"),
        (lambda: FlowChef(denoiser, pull, jacobian="fulll"), "did you mean 'full'"),
        (lambda: FlowChef(denoiser, pull, repeats=0), "at least 1"),
        (lambda: FlowChef(denoiser, pull, step=-1.0), "at least"),
        (lambda: FlowChef(denoiser, pull, repeats=2, jacobian="full"), "one plain step"),
        (lambda: fk.sample(FlowChef(denoiser, lambda x: x.sum()), start(FLOW), solver="euler", steps=3), "one each"),
    ):
        with pytest.raises(FokkerError, match=says):
            call()
