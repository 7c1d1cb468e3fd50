"""Tuning: the table is the plan, derivatives are derivatives, the winner is never worse, and searches find what is there."""

import json
import math

import pytest
import torch

import fokker as fk
from fokker import arena, grids, solve
from fokker.errors import FokkerError
from fokker.plan import Plan
from fokker.solve import sensitivity
from fokker.solve.descent import _equations, descend
from fokker.solve.layerskip import LayerSkip
from fokker.solve.pool import Pool
from fokker.solve.search import Ranker, Space, evolve
from fokker.solve.table import Moves, Table
from fokker.solve.timegrid import _distinct, run_on, search_timegrid
from fokker.solve.tune import tune
from fokker.solve.unified import ExponentialMultistep, StepRule, _integral, _ordered

RING = fk.laws.ring()


def pool(process: fk.Process, n: int = 64, law: fk.laws.Law = RING, seed: int = 5) -> Pool:
    denoiser = law.denoiser(process)
    x1, truth, _ = arena.reference(denoiser, law.shape, n, seed, None, exact=False)
    return Pool(denoiser, x1, truth)


@pytest.mark.parametrize("process", [fk.VP(), fk.EDM(), fk.Flow()])
@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "unipc", "heun", "deis", "dpm-3"])
def test_a_table_runs_as_the_plan_it_was_made_of(process, name):
    on = pool(process)
    plan = solve.get(name).budget(6, process, lambda n: grids.karras(n))
    torch.testing.assert_close(on.end(Table.of(plan).plan()), on.end(plan), rtol=1e-9, atol=1e-9)


def test_a_tail_goes_on_where_the_run_was():
    process = fk.VP()
    on = pool(process)
    table = Table.of(solve.get("unipc").plan(process, grids.logsnr(5)))
    states, beliefs = [], []

    def look(run, x, belief):
        states.append(x)
        beliefs.append(belief)

    whole = fk.run(on.denoiser, on.start, table.plan(), watch=look).x0
    for k in range(len(table)):
        rest = fk.run(on.denoiser, [on.start, *beliefs[:k], states[k]], table.tail(k)).x0
        torch.testing.assert_close(rest, whole, rtol=1e-10, atol=1e-10)


def test_stochastic_plans_have_no_table():
    with pytest.raises(FokkerError, match="deterministic"):
        Table.of(solve.get("ddpm").plan(fk.VP(), grids.logsnr(3)))


@pytest.mark.parametrize("at_once", [7, 0])
def test_derivatives_are_those_of_whole_runs(at_once):
    process = fk.VP()
    on = pool(process, 16)
    table = Table.of(solve.get("dpmpp-2m").plan(process, grids.logsnr(4)))
    moves = Moves.of(table)
    weight = torch.ones(16, dtype=torch.float64)
    # p = 2 with one weight a sample: the slope is half the gradient of the mean square, but for the bound on steep samples
    draw = torch.Generator().manual_seed(0)
    normal, slope = _equations(table, moves, on, weight, 2.0, draw, at_once)
    h = 1e-5
    reach, residual = [], (on.end(table.plan()) - on.truth).flatten(1)
    for q in range(len(moves.units)):
        step = torch.zeros(len(moves.units), dtype=torch.float64)
        step[q] = h
        up, down = (on.end(moves.apply(table, s * step).plan()) for s in (1, -1))
        if q >= len(moves.places) and table.times[q - len(moves.places)] == 1.0:
            down, up = on.end(table.plan()), up
            reach.append((up - down).flatten(1) / h)
        else:
            reach.append((up - down).flatten(1) / (2 * h))
    jacobian = torch.stack(reach)
    steep = jacobian.square().sum((0, 2))
    w = 1 / (1 + steep / (30 * steep.nanmedian()))
    expected = (jacobian * (w[:, None] * residual)).sum((1, 2))
    torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    expected = torch.einsum("and,bnd,n->ab", jacobian, jacobian, w)
    torch.testing.assert_close(normal, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_descent_only_goes_down_and_keeps_the_first_state_s_time_possible():
    process = fk.EDM()
    on = pool(process, 96)
    table = Table.of(solve.get("dpmpp-2m").plan(process, grids.karras(5)))
    before = on.errors(table.plan())
    *_, last = descend(table, on, 5, 96, 0, power=(2.0, 2.0))
    assert on.errors(last.plan()).sum() < 0.25 * before.sum()
    assert ((last.times <= 1) & (last.times >= process.end * (1 - 1e-9))).all()


@pytest.mark.parametrize(
    ("law", "process", "nfe", "bound"),
    [(RING, fk.VP(), 5, 0.25), (fk.laws.lowrank(dim=16, rank=4, components=6, seed=3), fk.Flow(), 6, 0.75)],
)
def test_far_below_the_best_fixed_solver_on_unseen_noise(law, process, nfe, bound):
    denoiser = law.denoiser(process)
    plan = tune(denoiser, nfe, law.shape, n=2048, steps=4, seconds=600)
    assert plan.nfe == nfe
    unseen = pool(process, 1024, law, seed=99)
    plans = [p for _, _, _, p in arena.combinations(process, [nfe], None, None, None) if isinstance(p, Plan)]
    fixed = [unseen.errors(p).sqrt() for p in plans if not p.stochastic]
    best, typical = min(float(e.square().mean().sqrt()) for e in fixed), min(float(e.median()) for e in fixed)
    # a few of 1024 samples that end in another mode decide the mean square; the typical error is free of them
    assert unseen.rms(plan) <= bound * best
    assert unseen.errors(plan).sqrt().median() <= 0.25 * typical
    assert plan.config["error"] <= plan.config["fixed_error"]
    again = Plan.from_json(plan.json())
    torch.testing.assert_close(unseen.end(again), unseen.end(plan), rtol=0, atol=0)
    assert json.loads(plan.json())["config"]["fixed"] == plan.config["fixed"]


def test_the_same_seed_gives_the_same_plan_and_a_metric_decides():
    denoiser = RING.denoiser(fk.VP())
    one, two = (tune(denoiser, 3, (2,), n=96, steps=1, seconds=600) for _ in range(2))
    # up to the rounding of sums, whose order a processor is free to choose
    assert one.config["value"] == pytest.approx(two.config["value"], rel=1e-3)
    assert one.times == pytest.approx(two.times, rel=1e-3)
    far = tune(denoiser, 3, (2,), n=96, steps=1, seconds=600, metric=lambda x: -float(x.square().mean()))
    x1 = fk.noise((64, 2))
    assert fk.sample(denoiser, x1, far).square().mean() >= fk.sample(denoiser, x1, one).square().mean()
    named = tune(denoiser, 3, (2,), n=96, steps=1, seconds=600, metric="sliced-wasserstein")
    assert named.config["metric"] == "sliced-wasserstein"


def test_errors_below_the_floor_are_said_to_be_so():
    # a single point is reached exactly by every solver: nothing is left to tune
    point = fk.laws.GaussianMixture([1.0], torch.ones(1, 2), 0.0)
    plan = tune(point.denoiser(fk.VP()), 4, (2,), n=48, steps=1)
    assert plan.config["error"] < 1e-3
    assert plan.config["below_floor"] == (plan.config["error"] < plan.config["floor"])


def test_tune_refuses_what_it_cannot_do():
    with pytest.raises(FokkerError, match="nfe=0"):
        tune(RING.denoiser(fk.VP()), 0, (2,))
    with pytest.raises(FokkerError, match="metric"):
        tune(RING.denoiser(fk.VP()), 3, (2,), n=48, metric="frechett")


def _numbers() -> Space[tuple[int, ...]]:
    return Space(
        lambda d: tuple(int(v) for v in d.integers(0, 100, 4)),
        lambda g, d: tuple(int(v + d.integers(-5, 6)) if d.random() < 0.5 else v for v in g),
        lambda a, b, d: tuple(x if d.random() < 0.5 else y for x, y in zip(a, b, strict=True)),
        lambda g: [v / 100 for v in g],
    )


@pytest.mark.parametrize("proposals", [1, 4])
def test_evolution_evaluates_once_and_never_loses_its_best(proposals):
    asked = []

    def fitness(g):
        asked.append(g)
        return sum((v - 37) ** 2 for v in g)

    start = (10, 20, 30, 40)
    found = evolve(_numbers(), fitness, 300, seed=1, seeds=[start], population=30, proposals=proposals)
    assert len(asked) == len(set(asked)) == found.evaluations == 300
    assert found.history == sorted(found.history, reverse=True)
    assert found.value <= 60 < fitness(start)
    assert evolve(_numbers(), fitness, 100, seed=1).best == evolve(_numbers(), fitness, 100, seed=1).best


def test_the_predictor_orders_what_it_has_not_seen():
    space = _numbers()
    g = torch.Generator().manual_seed(0)
    candidates = [tuple(v) for v in torch.randint(0, 100, (160, 4), generator=g).tolist()]
    value = {c: float(sum((v - 50) ** 2 for v in c)) for c in candidates}
    score = Ranker.fit(space, {c: value[c] for c in candidates[:120]})
    pairs = [(a, b) for a in candidates[120:] for b in candidates[120:] if value[a] < value[b]]
    assert sum(score(a) < score(b) for a, b in pairs) / len(pairs) > 0.8


def test_time_grids_are_distinct_and_searched_ones_begin_at_their_own_noise():
    assert _distinct([5, 5, 5, 2000, -3], 1000) == tuple(sorted(_distinct([5, 5, 5, 2000, -3], 1000), reverse=True))
    assert len(set(_distinct([5, 5, 5, 5], 6))) == 4
    denoiser = RING.denoiser(fk.EDM())
    noise = fk.noise((64, 2))
    grid, found = search_timegrid(fk.DDIM(), denoiser, noise, lambda x: -float(x.std()), 3, 20, population=10)
    assert found.evaluations <= 20 and len(grid.times(denoiser.process)) == 4
    assert torch.isfinite(run_on(fk.DDIM(), denoiser, fk.noise((4, 2)), grid)).all()


@pytest.mark.parametrize("k", range(4))
@pytest.mark.parametrize("h", [1e-6, 0.3, 0.999, 1.001, 3.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_exponential_integrals(k, h, sign):
    # Gauss-Legendre on 24 points is exact to rounding for these
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(24)
    v = 0.5 * h * (nodes + 1)
    exact = float((0.5 * h * weights * np.exp(sign * v) * v**k).sum()) / math.factorial(k)
    found = float(_integral(k, torch.tensor(h, dtype=torch.float64), sign > 0))
    assert found == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(
    ("rule", "order"),
    [
        (StepRule(1, "noise"), 1),
        (StepRule(2, "noise"), 2),
        (StepRule(2, corrector=True), 3),
        (StepRule(1, corrector=True), 2),
    ],
)
def test_the_order_of_a_constant_schedule(rule, order):
    law, process = fk.laws.GaussianMixture([1.0], torch.ones(1, 2), torch.tensor([0.5, 2.0]).diag()), fk.VP()
    x1 = fk.noise((8, 2), dtype=torch.float64)
    exact = law.flow(process, x1, 1.0, process.end)
    solver = ExponentialMultistep((rule,))
    first, second = (
        float((fk.sample(law.denoiser(process), x1, solver=solver, grid=grids.logsnr(n)) - exact).norm()) for n in (80, 160)
    )
    assert math.log2(first / second) == pytest.approx(order, abs=0.3)


def test_places_stay_in_order_after_mutation():
    assert _ordered([5, 5, 5]) == (5, 6, 7)
    assert _ordered([999, 2000, 999, -4]) == (1, 997, 998, 999)


def test_skipped_layers_are_those_of_their_step():
    net = fk.net.UNet(width=16, mults=(1, 1), blocks=1, seed=1)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=draw))
    denoiser, x = fk.NetworkDenoiser(net, fk.VP()), fk.noise((2, 1, 8, 8))
    name = next(n for n, m in net.named_modules() if n.startswith("mid") and "." in n)
    alone = fk.sample(denoiser, x, solver="ddim", steps=3)
    assert torch.equal(fk.sample(LayerSkip(denoiser, [(), (), ()]), x, solver="ddim", steps=3), alone)
    seen: list[torch.Tensor] = []
    fk.run(LayerSkip(denoiser, [(), [name]]), x, solver="ddim", steps=3, watch=lambda run, x, D: seen.append(D))
    plain: list[torch.Tensor] = []
    fk.run(denoiser, x, solver="ddim", steps=3, watch=lambda run, x, D: plain.append(D))
    assert torch.equal(seen[0], plain[0]) and not torch.equal(seen[1], plain[1])
    with pytest.raises(FokkerError):
        LayerSkip(denoiser, [["nowhere"]])


def test_the_command_writes_a_plan_that_runs(tmp_path, capsys):
    from fokker.cli import main

    out = tmp_path / "plan.json"
    words = ["tune", "--law", "ring", "--process", "edm", "--nfe", "3", "-n", "96", "--steps", "1", "--seconds", "600"]
    assert main([*words, "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["error"] <= found["fixed_error"] and "--law ring --process edm" in found["rerun"]
    assert Plan.from_json(out.read_text()).nfe == 3
    assert main(["tune", "--law", "ring", "--model", "digits", "--nfe", "3"]) == 2


def test_random_directions_give_the_equations_of_all_on_average():
    process, law = fk.Flow(), fk.laws.lowrank(dim=12, rank=3, components=4, seed=1)
    on = pool(process, 40, law)
    table = Table.of(solve.get("dpmpp-2m").plan(process, grids.uniform(3)))
    moves = Moves.of(table)
    assert sensitivity.directions(3, 40, 12) < 12

    def products(at_once, seed=0):
        parts = sensitivity.equations(table, moves, on, torch.Generator().manual_seed(seed), at_once)
        both = [(p.rows.flatten(0, 1), p.residuals.flatten()[:, None]) for p, _ in parts]
        return sum(rows.T @ torch.cat([rows, residuals], 1) for rows, residuals in both)

    exact = products(0)
    found = torch.stack([products(16, seed) for seed in range(200)])
    error = (found.mean(0) - exact).abs() / (found.std(0) / 200**0.5 + 1e-4 * exact.abs().max())
    # 140 averages: the largest of them may be four standard errors off
    assert error.max() < 4.5


def test_a_model_without_derivatives_descends_by_differences():
    class Opaque(fk.Denoiser):
        def x0(self, x_t, t):
            with torch.no_grad():
                return RING.denoiser(self.process)(x_t, t)

    denoiser = Opaque(fk.VP())
    on = pool(fk.VP(), 64)
    opaque = Pool(denoiser, on.start, on.truth)
    assert sensitivity.differentiable(on) > 1 and sensitivity.differentiable(opaque) == 0
    table = Table.of(solve.get("ddim").plan(fk.VP(), grids.quadratic(3)))
    *_, last = descend(table, opaque, 6, 64, 0)
    *_, same = descend(table, on, 6, 64, 0)
    assert on.rms(last.plan()) < 0.8 * on.rms(table.plan())
    assert on.rms(last.plan()) == pytest.approx(on.rms(same.plan()), rel=1e-2)
