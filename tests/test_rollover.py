"""A flow made stochastic keeps its laws; a forced path spends its budget where it says, and returns what was judged."""

from collections import Counter

import pytest
import torch
from laws_for_tests import F64, PROCESSES
from torch import Tensor

import fokker as fk
from fokker.denoiser import Denoiser, Wrapper
from fokker.errors import FokkerError
from fokker.laws import GaussianMixture
from fokker.restore.operators import Mask
from fokker.rollover import RolloverBudgetForcing
from fokker.solve.flowsde import FlowSDE
from fokker.solve.onestep import DDIM

VP = PROCESSES["vp"]
LAW = GaussianMixture([1.0, 1.0, 1.0], [[-1.0, 0.0], [1.0, 0.5], [0.0, 1.5]], 0.1, labels=[0, 1, 2])
GRID = fk.grids.get("uniform")(5, end=0)
N = 4


def reward(x: Tensor) -> Tensor:
    return x[:, 0] - 0.3 * x[:, 1].square()


def forcing(budget: float = 60, denoiser: Denoiser | None = None, verifier=reward, **options) -> RolloverBudgetForcing:
    options = {"grid": GRID, "dtype": F64, "initial": 6} | options
    return RolloverBudgetForcing(denoiser or LAW.denoiser(VP), verifier, budget, **options)


class Counted(Wrapper):
    """Counts at which times it is asked."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.times: Counter[float] = Counter()

    def x0(self, x_t, t, **cond):
        self.times[round(float(t), 9)] += len(x_t)
        return self.inner(x_t, t, **cond)


def test_the_noise_of_a_step_is_the_integral_it_says() -> None:
    t, s = torch.tensor([1.0, 0.7], dtype=F64), torch.tensor([0.6, 1e-3], dtype=F64)
    solver = FlowSDE()
    assert torch.allclose(solver.turned(fk.Flow(), t, s), 3 * (t**3 - s**3), rtol=1e-12)
    assert torch.allclose(solver.turned(fk.EDM(), t, s), 3 * (t**3 - s**3) / 6400, rtol=1e-12)
    # g^2 / sigma^2 = 1 / t: a logarithm, near whose pole the pieces must be fine
    assert torch.allclose(FlowSDE(1.0, 0.5).turned(fk.Flow(), t, s), torch.log(t / s), rtol=1e-10)


@pytest.mark.parametrize("process", ["vp", "flow", "edm", "cosine"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_a_step_keeps_the_noise_level_whatever_g_is(process: str, scale: float) -> None:
    noising = PROCESSES[process]
    plan = FlowSDE(scale).plan(noising, fk.grids.get("logsnr")(4, start=0.9, end=0.05))
    if scale == 0:
        assert plan.rows == DDIM().plan(noising, fk.grids.get("logsnr")(4, start=0.9, end=0.05)).rows and not plan.stochastic
        return
    for before, row in zip(plan.rows, plan.rows[1:], strict=False):
        end = plan.end if row.t is None else row.t
        (a, _, p), (b, _, q) = noising.at(float(before.t)), noising.at(float(end))
        parts = {key[0]: c for key, c in row.terms}
        # with x_t = a D + p eps: signal b and variance q^2
        assert parts["x"] * a + parts["D"] == pytest.approx(b, abs=1e-12)
        assert (parts["x"] * p) ** 2 + parts["z"] ** 2 == pytest.approx(q**2, rel=1e-12)


def test_without_choice_the_law_is_kept() -> None:
    n = 3000
    steps = fk.grids.get("uniform")(60, end=0)
    for denoiser in (LAW.denoiser(fk.Flow()), fk.OnProcess(LAW.denoiser(fk.Flow()), fk.VP())):
        x = forcing(1 + 59, denoiser, lambda x: torch.zeros(len(x)), grid=steps, initial=1).run((n, 2), seed=2).x0
        assert torch.allclose(x.mean(0), LAW.mean(), atol=5 * 0.9 / n**0.5 + 0.02)
        assert torch.allclose(torch.cov(x.T), LAW.cov(), atol=0.1)


@pytest.mark.parametrize("greedy", [False, True])
def test_what_is_returned_was_judged_and_the_budget_is_spent(greedy: bool) -> None:
    counted = Counted(LAW.denoiser(VP))
    found = forcing(denoiser=counted, greedy=greedy).run((N, 2), seed=3)
    assert torch.allclose(found.score, reward(found.x0)) and found.history.shape == (N, 60, 1)
    assert found.nfe == 60 and sum(counted.times.values()) == 60 * N
    assert counted.times[1.0] == 6 * N and counted.times[VP.end] == N
    assert bool((found.history[..., 0] == found.score[:, None]).any(1).all())
    # no child is drawn twice
    assert all(len(set(row)) == 60 for row in found.history[..., 0].tolist())
    alone = forcing(greedy=greedy).run((1, 2), seed=3, ids=[2])
    assert torch.allclose(alone.x0, found.x0[2:3], atol=1e-10) and torch.allclose(alone.history, found.history[2:3], atol=1e-10)
    plain = fk.sample(LAW.denoiser(VP), VP.start(fk.noise((N, 2), 3, dtype=F64)), solver="ddim", grid=GRID)
    assert float(found.score.mean()) > float(reward(plain).mean())


def test_a_child_that_is_the_best_so_far_ends_the_step_and_its_quota_rolls_on() -> None:
    said = 0

    def always_better(x: Tensor) -> Tensor:
        nonlocal said
        said += 1
        return torch.full((len(x),), float(said), dtype=F64)

    times = [round(float(t), 9) for t in GRID.times(VP)[:-1]]
    counted = Counted(LAW.denoiser(VP))
    forcing(denoiser=counted, verifier=always_better).run((N, 2), seed=1)
    # one child at each step, and at the last that has noise all that is left of 54
    assert [counted.times[t] // N for t in times] == [6, 1, 1, 51, 1]
    counted = Counted(LAW.denoiser(VP))
    forcing(denoiser=counted, verifier=lambda x: torch.zeros(len(x))).run((N, 2), seed=1)
    assert [counted.times[t] // N for t in times] == [6, 18, 18, 17, 1]
    counted = Counted(LAW.denoiser(VP))
    forcing(denoiser=counted, verifier=always_better, greedy=True).run((N, 2), seed=1)
    assert [counted.times[t] // N for t in times] == [6, 18, 18, 17, 1]


def test_the_best_child_goes_on_where_none_is_the_best_so_far() -> None:
    # the first verdict of each search is never met again
    first = True

    def after(x: Tensor) -> Tensor:
        nonlocal first
        out = torch.full((len(x),), 1e9, dtype=F64) if first else x[:, 0]
        first = False
        return out

    one = fk.grids.Times([1.0, 0.4, 0.0], to_x0=True)
    found = forcing(1 + 8, verifier=after, grid=one, initial=1).run((N, 2), seed=1)
    assert torch.equal(found.score, found.history[:, 1:, 0].amax(1)) and torch.allclose(found.score, found.x0[:, 0])


def test_guidance_verdicts_conditions_and_anchors() -> None:
    label = torch.tensor([0, 1, 2, 1])

    def near(x: Tensor, label: Tensor) -> Tensor:
        return -(x - LAW.means[label]).square().sum(1)

    guided = fk.guide.CFG(LAW.denoiser(VP), 2.0)
    found = forcing(120, guided, near).run((N, 2), seed=1, label=label)
    assert found.nfe == 120 and found.history.shape[1] == 60
    assert forcing(cost=1.0).run((N, 2)).nfe == 60 and forcing(cost=1.0).run((N, 2)).history.shape[1] == 30
    y = torch.full((N, 2), 0.5, dtype=F64)
    moved = forcing(denoiser=LAW.denoiser(PROCESSES["rddm"]), solver="ddpm").run((N, 2), seed=1, y=y)
    assert torch.allclose(moved.score, reward(moved.x0)) and bool(torch.isfinite(moved.x0).all())
    ranked = forcing(verifier=[reward, lambda x: -x[:, 1].abs()]).run((N, 2), seed=1)
    assert ranked.scores.shape == (N, 2)


def test_refusals() -> None:
    mask = Mask(torch.tensor([1.0, 0.0], dtype=F64))
    restored = fk.restore.get("ddnm", LAW.denoiser(VP), mask, mask(LAW.sample(N)))
    for call, says in (
        (lambda: forcing(solver="ddim"), "stochastic solver"),
        (lambda: forcing(solver=FlowSDE(0.0)), "stochastic solver"),
        (lambda: forcing(grid=fk.grids.get("uniform")(5)), "ends at x_0"),
        (lambda: forcing(initial=0), "above 0"),
        (lambda: forcing(8).run((N, 2)), "leaves 2 children for 4 steps"),
        (lambda: forcing(3).run((N, 2)), "6 starts cost"),
        (lambda: forcing(denoiser=restored).run((N, 2)), "one at a time"),
        (lambda: FlowSDE(-1.0), "at least 0"),
        (lambda: FlowSDE(1.0, 0.0), "g\\(0\\) is 0"),
    ):
        with pytest.raises(FokkerError, match=says):
            call()
    assert forcing(denoiser=fk.restore.get("ddnm", LAW.denoiser(VP), mask, mask(LAW.sample(1)))).run((1, 2)).nfe == 60
