"""Editing: what must come back comes back, what is put on its trajectory stays there, and directions do what they say."""

from typing import Any

import pytest
import torch
from small_nets import alive, draw
from torch import Tensor

import fokker as fk
from fokker.denoiser import NetworkDenoiser
from fokker.edit import (
    AttentionControl,
    BottleneckShift,
    FixedPoint,
    HSpace,
    NullText,
    PerStepNull,
    edit,
    exact,
    infedit,
    invert,
    project_out,
    rectified,
)
from fokker.edit.control import lent
from fokker.edit.nulltext import place
from fokker.errors import FokkerError
from fokker.grids import Times
from fokker.net import build

F64 = torch.float64
PROCESS = fk.VP()
LAW = fk.laws.GaussianMixture([0.4, 0.3, 0.3], [[-1.0, 0.5], [1.0, 0.5], [0.2, -1.2]], 0.15, labels=[0, 1, 2])
X = LAW.sample(5, seed=3, label=0)
SOURCE, TARGET = {"label": torch.full((5,), 0)}, {"label": torch.full((5,), 1)}
GRID = fk.grids.uniform(20)


def net(**options: Any) -> NetworkDenoiser:
    made = build({"kind": "unet", "width": 8, "mults": [1, 2], "heads": 2, "blocks": 1, **options})
    return NetworkDenoiser(alive(made, 0.1), PROCESS)


def test_inversion_walks_the_grid_and_comes_back_as_its_steps_shrink() -> None:
    denoiser, errors = LAW.denoiser(PROCESS), []
    for steps in (50, 100, 200):
        path = invert(denoiser, X, fk.grids.uniform(steps), **SOURCE)
        assert len(path.states) == steps + 1 and path.nfe == steps
        assert torch.allclose(path.states[-1], PROCESS.alpha(PROCESS.end) * X, atol=1e-12)
        back = fk.sample(denoiser, path.noise, path.plan(), **SOURCE)
        errors.append(float((back - path.states[-1]).norm()))
    assert errors[0] > 1.5 * errors[1] > 2.2 * errors[2]  # first order
    # each state is DDIM's step from the one below it, with the noise found there
    t = path.grid.times(PROCESS)
    k = 120
    low, high = path.states[k + 1], path.states[k]
    eps = denoiser.predict("eps", low, float(t[k + 1]), **SOURCE)
    (a, s), (b, r) = ((PROCESS.alpha(v), PROCESS.sigma(v)) for v in (t[k + 1], t[k]))
    assert torch.allclose(high, b / a * (low - s * eps) + r * eps, atol=1e-10)
    heun = invert(denoiser, X, GRID, fk.solve.get("heun"), **SOURCE)
    assert len(heun.states) == 21 and heun.nfe == 40


@pytest.mark.parametrize(
    ("way", "iterations", "bound"),
    [("anderson", 8, 1e-9), ("picard", 12, 1e-4), pytest.param("adam", 30, 0.3, marks=pytest.mark.slow)],
)
def test_fixed_points_make_the_steps_of_an_inversion_exact(way: str, iterations: int, bound: float) -> None:
    denoiser, grid = LAW.denoiser(PROCESS), fk.grids.uniform(12, start=0.9)

    def round_trip(solver: fk.Solver | None) -> Tensor:
        path = invert(denoiser, X, grid, solver, **SOURCE)
        return (fk.sample(denoiser, path.noise, path.plan(), **SOURCE) - path.states[-1]).norm()

    plain = round_trip(None)
    solver = FixedPoint(way, iterations, rate=0.02)
    assert round_trip(solver) <= bound * plain
    path = invert(denoiser, X, grid, solver, **SOURCE)
    assert len(path.states) == 13
    # every state on the way is one from which the sampler's step leads to the next
    step = fk.sample(
        denoiser, path.states[4], fk.solve.get("ddim").plan(PROCESS, Times(grid.times(PROCESS)[4:6])), **SOURCE
    )
    if way == "anderson":
        assert torch.allclose(step, path.states[5], atol=1e-9)
    # a sample does not feel its batch
    alone = invert(denoiser, X[:1], grid, solver, label=SOURCE["label"][:1])
    assert torch.allclose(alone.noise, path.noise[:1], atol=1e-6)
    with pytest.raises(FokkerError, match="upwards"):
        solver.plan(PROCESS, grid)


def test_a_rectified_source_stays_on_its_sample_to_the_bit_and_the_target_is_free() -> None:
    denoiser = LAW.denoiser(PROCESS)
    path = invert(denoiser, X, GRID, **SOURCE)
    direct, none = (
        edit(denoiser, X, SOURCE, TARGET, rectify=r, grid=GRID, scale=5.0, trajectory=path) for r in ("direct", "none")
    )
    assert torch.allclose(direct.source, X, atol=1e-15)
    assert float((none.source - X).abs().max()) > 0.01
    assert torch.allclose(direct.x, none.x, atol=1e-10)  # without shared attention the target does not see the source
    assert direct.nfe == 80 and edit(denoiser, X, SOURCE, TARGET, grid=GRID).nfe == 100
    assert bool((LAW.responsibilities(direct.x)[:, 1] > 0.95).all())


def test_null_text_retraces_the_inversion_where_the_fixed_null_does_not() -> None:
    denoiser = LAW.denoiser(PROCESS)
    logits = {"logits": torch.tensor([[2.0, 0.0, 0.0]], dtype=F64).expand(5, 3).contiguous()}
    path = invert(denoiser, X, fk.grids.uniform(10), **logits)
    text = NullText.fit(denoiser, path, scale=5.0, rate=0.3, **logits)
    back = fk.sample(PerStepNull(denoiser, text), path.noise, path.plan(), **logits)
    fixed = fk.sample(fk.guide.CFG(denoiser, 5.0), path.noise, path.plan(), **logits)
    assert len(text.nulls) == 10 and place(denoiser, logits).kind == "condition"
    assert float((back - path.states[-1]).square().mean()) < 0.05 * float((fixed - path.states[-1]).square().mean())
    # at scale 1 the null condition has no say: nothing is moved, and the same comes back as without guidance
    off = NullText.fit(denoiser, path, scale=1.0, inner_steps=1, **logits)
    plain = fk.sample(denoiser, path.noise, path.plan(), **logits)
    assert torch.allclose(fk.sample(PerStepNull(denoiser, off), path.noise, path.plan(), **logits), plain, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "cond", "kind"),
    [
        ({"classes": 4}, {"label": torch.tensor([0, 1])}, "module"),
        ({"tokens": 5}, {"tokens": draw(2, 3, 5)}, "parameter"),
        ({"classes": 4, "tokens": 5}, {"label": torch.tensor([0, 1])}, "parameter"),
    ],
)
def test_null_text_finds_the_null_condition_of_a_network_and_leaves_the_network_as_it_was(
    options: dict[str, Any], cond: dict[str, Tensor], kind: str
) -> None:
    denoiser, x = net(**options), draw(2, 1, 8, 8)
    before = {k: v.clone() for k, v in denoiser.state_dict().items()}
    assert place(denoiser, cond).kind == kind
    path = invert(denoiser, x, fk.grids.uniform(4), **cond)
    text = NullText.fit(denoiser, path, scale=3.0, rate=0.05, inner_steps=4, tolerance=0, relax=0, **cond)
    start = fk.sample(fk.guide.CFG(denoiser, 3.0), path.noise, path.plan(), **cond)
    back = fk.sample(PerStepNull(denoiser, text), path.noise, path.plan(), **cond)
    goal = path.states[-1]
    assert float((back - goal).norm()) < float((start - goal).norm())
    assert all(torch.equal(v, before[k]) for k, v in denoiser.state_dict().items())
    assert all(p.requires_grad for p in denoiser.parameters())
    assert set(dict(denoiser.named_parameters())) == set(before)


@pytest.mark.parametrize("solver", ["edict", "bdia"])
def test_an_exact_edit_to_the_same_condition_gives_the_sample_back(solver: str) -> None:
    denoiser = LAW.denoiser(PROCESS)
    chosen = fk.solve.get(solver)
    same = exact(denoiser, X, SOURCE, SOURCE, solver=chosen, scale=3.0, grid=fk.grids.uniform(20, start=0.8))
    assert float((same.x - X).abs().max()) < 1e-8
    changed = exact(denoiser, X, SOURCE, TARGET, solver=chosen, scale=1.0, grid=fk.grids.uniform(40, start=0.8))
    assert bool((LAW.responsibilities(changed.x)[:, 1] > 0.95).all())


def test_infedit_is_the_identity_under_equal_conditions_and_an_edit_under_others() -> None:
    denoiser = LAW.denoiser(PROCESS)
    assert float((infedit(denoiser, X, SOURCE, SOURCE, scale=1.0) - X).abs().max()) < 1e-12
    out = infedit(denoiser, X, SOURCE, TARGET, scale=1.0, steps=20)
    assert bool((LAW.responsibilities(out)[:, 1] > 0.95).all())
    # a sample's noise is its own
    one = [{"label": side["label"][:1]} for side in (SOURCE, TARGET)]
    alone = infedit(denoiser, X[2:3], *one, scale=1.0, steps=20, ids=[2])
    assert torch.allclose(alone, out[2:3], atol=1e-12)


def test_control_lends_the_source_half_in_every_branch() -> None:
    h = torch.arange(12.0).reshape(12, 1)
    assert lent(3)(h).flatten().tolist() == [0, 1, 2, 0, 1, 2, 6, 7, 8, 6, 7, 8]
    with pytest.raises(FokkerError, match="no halves"):
        lent(5)(h)
    denoiser, x = net(classes=4), draw(2, 1, 8, 8)
    cond = [{"label": torch.tensor([a, a])} for a in (0, 1)]
    grid = fk.grids.uniform(4)

    def with_control(**options: Any) -> Tensor:
        return edit(denoiser, x, *cond, grid=grid, scale=2.0, control=lambda d: AttentionControl(d, 4, **options)).x

    plain = edit(denoiser, x, *cond, grid=grid, scale=2.0).x
    assert torch.equal(with_control(), plain)
    assert torch.equal(with_control(maps=["*attention"], share=0.0), plain)
    assert not torch.equal(with_control(maps=["*attention"]), plain)
    # with all features of the last stage lent, the network says the same of both halves, whatever the condition
    whole = edit(
        denoiser, x, *cond, rectify="none", grid=grid, scale=1.0,
        control=lambda d: AttentionControl(d, 4, features=["*up.0"], feature_share=1.0),
    )  # fmt: skip
    assert torch.allclose(whole.x, whole.source, atol=1e-5)


def test_directions_of_the_bottleneck() -> None:
    denoiser = net()
    plan = fk.loop.lay(PROCESS, "ddim", steps=5)
    space = HSpace(denoiser, plan)
    h, x_0 = space.collect(12, (1, 8, 8), seed=1)
    assert h.shape == (12, 5, 16, 4, 4) and x_0.shape == (12, 1, 8, 8)
    found = space.pca(h, 3)
    flat = (h - h.mean(0)).flatten(1)
    values = torch.linalg.svdvals(flat)
    assert torch.allclose(found.spread, values[:3] / 11**0.5, rtol=1e-4)
    gram = found.vectors.flatten(1) @ found.vectors.flatten(1).T
    assert torch.allclose(gram, torch.eye(3), atol=1e-4)
    assert space.pca(h, 2, per_step=True).vectors.shape == (2, 5, 16, 4, 4)
    positive = torch.arange(12) < 4
    v = space.mean_difference(h, positive)
    assert torch.allclose(v, h[:4].mean(0) - h[4:].mean(0))
    w = project_out(v, found.vectors[0])
    assert abs(float((w * found.vectors[0]).sum())) < 1e-5
    start = PROCESS.start(fk.noise((12, 1, 8, 8), seed=1))
    assert torch.equal(fk.sample(BottleneckShift(denoiser, v, 0.0), start, plan), x_0)
    moved = fk.sample(BottleneckShift(denoiser, v, 1.0), start, plan)
    late = fk.sample(BottleneckShift(denoiser, v, 1.0, steps=(4, 5)), start, plan)
    assert not torch.equal(moved, x_0) and not torch.equal(late, moved) and not torch.equal(late, x_0)
    # the shift is what it says: the bottleneck itself, and the skips as they were
    with fk.net.taps(denoiser, ["net.mid", "net.down.0"]) as seen:
        denoiser(start, 0.5)
        plain = dict(seen)
        BottleneckShift(denoiser, v[0], 2.0)(start, 0.5)
        assert torch.equal(seen["net.down.0"], plain["net.down.0"])


def test_singular_values_of_the_bottleneck() -> None:
    denoiser = net().to(F64)
    space = HSpace(denoiser, fk.loop.lay(PROCESS, "ddim", steps=2))
    x = draw(1, 1, 8, 8).to(F64)
    values, directions = space.jacobian(x, 0.5, 3, iterations=60)
    full = torch.autograd.functional.jacobian(space.through(x, 0.5), torch.zeros(1, 16, 4, 4, dtype=F64)).reshape(
        64, 256
    )
    assert torch.allclose(values.detach(), torch.linalg.svdvals(full)[:3], rtol=1e-3)
    assert torch.allclose((full @ directions.flatten(1).T).norm(dim=0), torch.linalg.svdvals(full)[:3], rtol=1e-2)


def test_wrong_requests_are_refused_in_one_sentence() -> None:
    denoiser = LAW.denoiser(PROCESS)
    path = invert(denoiser, X, GRID, **SOURCE)
    calls = (
        (lambda: edit(denoiser, X, SOURCE, TARGET, rectify="dirct"), "did you mean 'direct'"),
        (lambda: edit(denoiser, X, SOURCE, {}, grid=GRID), "same names"),
        (lambda: edit(denoiser, X, SOURCE, {"label": torch.tensor([1])}, grid=GRID), "one shape"),
        (lambda: invert(denoiser, X, fk.grids.uniform(5, end=0), **SOURCE), "above t = 0"),
        (lambda: invert(denoiser, X, GRID, fk.solve.get("ddpm"), **SOURCE), "noise"),
        (lambda: rectified(fk.loop.lay(PROCESS, "ddim", steps=3), path), "one row a step"),
        (lambda: place(denoiser, SOURCE), "no embedding"),
        (lambda: exact(denoiser, X, SOURCE, TARGET, solver=fk.solve.get("bdia"), steps=1), "two steps"),
        (lambda: BottleneckShift(denoiser, X), "U-Nets"),
        (lambda: FixedPoint("andersen"), "did you mean 'anderson'"),
        (lambda: FixedPoint(damping=1.0), "damping"),
    )
    for make, said in calls:
        with pytest.raises(FokkerError, match=said):
            make()
