"""Searches over noise: what they return is what was judged, can be drawn again, and cost what they say."""

from itertools import pairwise

import pytest
import torch
from laws_for_tests import F64, PROCESSES, SHAPED, SOLVERS, adaptive
from torch import Tensor

import fokker as fk
from fokker.errors import FokkerError
from fokker.laws import GaussianMixture
from fokker.noise_search import NoiseSearch, Paths, Random, ZeroOrder
from fokker.restore.operators import Mask
from fokker.trials import STRIDE
from fokker.verifier import Jury, SelfSimilarity

VP = PROCESSES["vp"]
LAW = GaussianMixture([1.0, 1.0, 1.0], [[-1.0, 0.0], [1.0, 0.5], [0.0, 1.5]], 0.1, labels=[0, 1, 2])
GRID = fk.grids.get("logsnr")(6, end=0)
N = 5
ALGORITHMS = [Random(), ZeroOrder(3, 0.6), ZeroOrder(2, 0.9, initial=4), Paths(3, 0.5, 1, 2)]
every = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: type(a).__name__)


def reward(x: Tensor) -> Tensor:
    return x[:, 0] - 0.3 * x[:, 1].square()


def search(algorithm=None, budget: float = 96, denoiser=None, verifier=reward, solver="ddim", **options) -> NoiseSearch:
    options = {"dtype": F64, "solver": solver, "grid": GRID} | options
    return NoiseSearch(denoiser or LAW.denoiser(VP), verifier, budget, algorithm or Random(), **options)


def again(s: NoiseSearch, found, **cond) -> Tensor:
    """The samples that noise, ids and seed of a result give."""
    start = s.denoiser.process.start(found.noise)
    return fk.sample(s.denoiser, start, s.laid, seed=found.seed, ids=found.ids, **cond)


def test_random_search_is_the_best_of_the_runs_of_its_candidates() -> None:
    s = search()
    found = s.run((N, 2), seed=3)
    ids = torch.arange(N)[:, None] + STRIDE * torch.arange(16)
    x = fk.sample(s.denoiser, VP.start(fk.noise((N * 16, 2), 3, ids.flatten(), dtype=F64)), s.laid, seed=3, ids=ids.flatten())
    said = reward(x).reshape(N, 16)
    assert found.nfe == 96 and found.history.shape == (N, 16, 1)
    rows, best = torch.arange(N), said.argmax(1)
    assert torch.allclose(found.history[..., 0], said, atol=1e-12) and torch.equal(found.ids, ids[rows, best])
    assert torch.allclose(found.x0, x.reshape(N, 16, 2)[rows, best], atol=1e-12)
    # candidate 0 is the plain sample
    plain = fk.sample(s.denoiser, VP.start(fk.noise((N, 2), 3, dtype=F64)), s.laid, seed=3)
    assert torch.allclose(found.history[:, 0, 0], reward(plain), atol=1e-12)


@every
def test_what_is_returned_is_what_was_judged_and_never_less_than_the_plain_sample(algorithm) -> None:
    s = search(algorithm)
    found = s.run((N, 2), seed=4)
    assert found.x0.shape == (N, 2) and torch.allclose(found.score, reward(found.x0), atol=1e-12)
    assert found.nfe <= 96 and torch.equal(found.score, found.history[..., 0].amax(1))
    if found.noise is not None:
        plain = fk.sample(s.denoiser, VP.start(fk.noise((N, 2), 4, dtype=F64)), s.laid, seed=4)
        assert bool((found.score >= reward(plain) - 1e-12).all())
        assert torch.allclose(again(s, found), found.x0, atol=1e-12)
    # pure, a search alone is the search in a batch, and parts do not matter
    assert torch.equal(s.run((N, 2), seed=4).x0, found.x0)
    alone = search(algorithm).run((1, 2), seed=4, ids=[3])
    assert torch.allclose(alone.x0, found.x0[3:4], atol=1e-10) and alone.nfe == found.nfe
    parts = search(algorithm, batch=7).run((N, 2), seed=4)
    assert torch.allclose(parts.x0, found.x0, atol=1e-10) and parts.nfe == found.nfe


@pytest.mark.parametrize("solver", ["ddpm", "euler-maruyama", "heun", "dpmpp-2m", "edict"])
@every
def test_any_solver_its_own_noise_included(solver: str, algorithm) -> None:
    inputs = SOLVERS[solver].inputs
    if inputs != 1:
        with pytest.raises(FokkerError, match="one state"):
            search(algorithm, 200, solver=solver, grid=fk.grids.get("logsnr")(6)).run((N, 2))
        return
    s = search(algorithm, 200, solver=solver)
    found = s.run((N, 2), seed=1)
    assert bool(torch.isfinite(found.x0).all()) and found.nfe <= 200
    if found.noise is not None and not adaptive(s.laid):
        assert torch.allclose(again(s, found), found.x0, atol=1e-10)


def test_guidance_is_paid_for_and_conditions_belong_to_the_sample() -> None:
    label = torch.tensor([0, 1, 2, 1, 0])
    told: list[Tensor] = []

    def of_class(x: Tensor, label: Tensor) -> Tensor:
        told.append(label)
        return -(x - LAW.means[label]).square().sum(1)

    s = search(denoiser=fk.guide.CFG(LAW.denoiser(VP), 2.0), verifier=of_class)
    found = s.run((N, 2), seed=2, label=label)
    assert found.nfe == 96 and found.history.shape[1] == 8 and all(torch.equal(t[:N], label) for t in told)
    assert torch.allclose(again(s, found, label=label), found.x0, atol=1e-10)
    assert float(found.score.mean()) > float(found.history[:, 0, 0].mean())


def test_a_verdict_has_its_price() -> None:
    assert search(cost=2.0).run((N, 2)).history.shape[1] == 12
    assert search(cost=2.0).run((N, 2)).nfe == 96
    for algorithm in ALGORITHMS:
        assert search(algorithm, cost=1.5).run((N, 2)).nfe <= 96
    with pytest.raises(FokkerError, match="less than one run costs, 8 "):
        search(budget=7, cost=2.0).run((N, 2))
    with pytest.raises(FokkerError, match="less than one path costs"):
        search(Paths(), budget=7).run((N, 2))


def test_neighbours_keep_the_norm_of_noise_and_the_pivot_only_rises() -> None:
    # a verifier without a direction, so that what is selected has the norm of any noise
    s = search(ZeroOrder(4, 0.5), 6 * 81, denoiser=SHAPED_FLAT.denoiser(VP), verifier=lambda x: (1e3 * x).sin().sum(1))
    found = s.run((64, 48), seed=1)
    # chi-square of 48 numbers, whose mean over 64 samples has deviation 1.2
    assert 48 - 6 < float(found.noise.square().sum(1).mean()) < 48 + 6
    assert bool((found.score >= found.history[:, 0, 0]).all())
    assert float(found.score.mean()) > float(found.history[:, 0, 0].mean()) + 5


SHAPED_FLAT = GaussianMixture(SHAPED.weights, SHAPED.means, (*SHAPED.form[:2], SHAPED.variance.sqrt()))


def test_zero_order_turns_its_pivot_as_it_says() -> None:
    seen: list[Tensor] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(x)
        return x[:, 0]

    # a denoiser whose run is its start: what is judged is the noise
    still = fk.as_denoiser(lambda x_t, t: x_t, fk.EDM())
    s = NoiseSearch(still, watched, 3, ZeroOrder(2, 0.36), solver="euler", grid=fk.grids.Uniform(1, end=0), dtype=F64)
    s.run((1, 2), seed=5)
    z, n = (fk.noise((1, 2), 5, [k * STRIDE], dtype=F64) for k in (0, 2))
    assert torch.allclose(seen[0], 80 * z) and torch.allclose(seen[1][1:], 80 * (0.6 * z + 0.8 * n))


@pytest.mark.parametrize("process", ["vp", "flow", "edm", "rddm"])
def test_paths_keep_the_law_where_nothing_is_chosen(process: str) -> None:
    noising = PROCESSES[process]
    n = 3000
    cond = {"y": torch.zeros(n, 2, dtype=F64) + 0.7} if noising.anchored else {}
    grid = fk.grids.get("logsnr")(40, end=0)
    judge, paths = (lambda x: torch.zeros(len(x))), Paths(1, 0.5, 4, 8)
    s = NoiseSearch(LAW.denoiser(noising), judge, 90, paths, solver="ddpm", grid=grid, dtype=F64, batch=1 << 14)
    found = s.run((n, 2), seed=1, **cond)
    # mean and covariance within five standard errors and what 40 steps leave
    assert torch.allclose(found.x0.mean(0), LAW.mean(), atol=5 * 0.9 / n**0.5 + 0.02)
    assert torch.allclose(torch.cov(found.x0.T), LAW.cov(), atol=0.12)


def test_legs_of_a_path_reach_the_end() -> None:
    assert Paths(4, 0.5, 1, 3).legs(10) == [(0, 5), (4, 7), (6, 9), (8, 10)]
    for steps in range(1, 12):
        for up, down in ((0, 1), (1, 2), (3, 5)):
            legs = Paths(2, 0.4, up, down).legs(steps)
            assert legs[-1][1] == steps and all(a < b for a, b in legs)
            assert all(nxt[0] == max(0, leg[1] - up) and nxt[1] > leg[1] for leg, nxt in pairwise(legs))


def test_several_verifiers_decide_by_ranks() -> None:
    a = torch.tensor([[[1.0, 0.1], [2.0, 0.3], [3.0, 0.2]]])
    jury = Jury.of([reward, reward])
    # ranks 0, 1, 2 and 0, 2, 1; whatever the scale of one
    assert jury.best(a).tolist() == [1] and jury.best(a * torch.tensor([1e6, 1.0])).tolist() == [1]
    found = search(verifier=[reward, lambda x: -1e9 * x[:, 1].abs()]).run((N, 2), seed=1)
    ranks = found.history.argsort(1).argsort(1).double().mean(2)
    assert torch.equal(found.history[torch.arange(N), ranks.argmax(1)], found.scores)


def test_a_verdict_that_is_no_number_is_the_worst() -> None:
    found = search(verifier=lambda x: torch.where(x[:, 0] > 0, x[:, 0], torch.nan)).run((N, 2), seed=1)
    assert bool((found.x0[:, 0] > 0).all())


def test_self_similarity_compares_with_the_belief_on_the_way() -> None:
    s = search(verifier=SelfSimilarity(0.5), budget=6 * 4)
    found = s.run((N, 2), seed=1)
    first: list[Tensor] = []

    def watch(run, x, belief):
        if float(run.t) <= 0.5 and not first:
            first.append(belief)

    fk.run(s.denoiser, VP.start(found.noise), s.laid, seed=1, ids=found.ids, watch=watch)
    assert torch.allclose(found.score, torch.cosine_similarity(found.x0, first[0]), atol=1e-10)
    with pytest.raises(FokkerError, match="over whole runs"):
        search(Paths(2), verifier=SelfSimilarity(0.5)).run((N, 2))


def test_a_restorer_is_searched_one_candidate_of_all_samples_at_a_time() -> None:
    mask = Mask(torch.tensor([1.0, 0.0], dtype=F64))
    y = mask(LAW.sample(N, seed=8))
    restored = fk.restore.get("ddnm", LAW.denoiser(VP), mask, y)
    found = search(denoiser=restored, verifier=lambda x: x[:, 1]).run((N, 2), seed=1)
    assert torch.allclose(mask(found.x0), y, atol=1e-9) and float(found.score.mean()) > float(found.history[:, 0].mean())


def test_tails_tuned_plans_and_refusals() -> None:
    heavy = fk.PFGMPP(D=8.0)
    found = search(denoiser=LAW.denoiser(heavy)).run((N, 2), seed=1)
    assert torch.equal(found.noise, heavy.sample_noise((N, 2), 1, found.ids, dtype=F64))
    plan = fk.solve.get("heun").plan(VP, fk.grids.get("karras")(4))
    assert search(plan=plan, grid=None).run((N, 2)).nfe == 96
    for call, says in (
        (lambda: search(ZeroOrder(), denoiser=LAW.denoiser(heavy)).run((N, 2)), "normal noise"),
        (lambda: search(Paths(), denoiser=LAW.denoiser(heavy)).run((N, 2)), "normal noise"),
        (lambda: search(Paths(), plan=plan, grid=None).run((N, 2)), "in place of a plan"),
        (lambda: search(Paths(up=0)).run((N, 2)), "up of at least 1"),
        (lambda: search(plan=plan), "either plan="),
        (lambda: search(budget=0), "above 0"),
        (lambda: search(verifier=[]), "give a verifier"),
        (lambda: search(verifier=lambda x: x).run((N, 2)), r"returned \(\d+, 2\) for"),
        (lambda: search(verifier=lambda x: 1.0).run((N, 2)), "returned float"),
        (lambda: search(cost=-1.0), "at least 0"),
        (lambda: ZeroOrder(keep=1.0), "keep in"),
        (lambda: Paths(up=3, down=3), "up below down"),
        (lambda: search().run((1, 2), ids=[STRIDE]), "ids below"),
        (lambda: search(budget=6 * 5000).run((1, 2)), "at most 4096"),
    ):
        with pytest.raises(FokkerError, match=says):
            call()


def test_a_module_may_judge() -> None:
    class Judge(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, 0]

    label = torch.tensor([0, 1, 2, 1, 0])
    found = search(verifier=Judge()).run((N, 2), seed=1, label=label)
    assert torch.equal(found.score, found.history[..., 0].amax(1))


def test_paths_go_on_from_the_better_ones() -> None:
    def near(x: Tensor) -> Tensor:
        return -(x - LAW.means[1]).square().sum(1)

    long = {"grid": fk.grids.get("logsnr")(12, end=0), "verifier": near}
    paths = search(Paths(4, 0.4, 1, 3), 200, **long).run((64, 2), seed=1)
    alone = search(Random(), 200, **long).run((64, 2), seed=1)
    gap = paths.score - alone.score
    assert paths.nfe <= 200 and float(gap.mean()) > 3 * float(gap.std()) / 8
