"""GDP: the shift that it says in any plan, parameters that are fitted along the run, one set a sample."""

import pytest
import torch
from laws_for_tests import F64, PROCESSES
from torch import Tensor

import fokker as fk
from fokker.errors import FokkerError
from fokker.grids import Times
from fokker.laws import GaussianMixture
from fokker.restore.blind import BlindOperator, ColourConstancy, Exposure, Light, Smoothness
from fokker.restore.gdp import GDP
from fokker.restore.operators import Mask, Matrix

VP = PROCESSES["vp"]
SHAPE = (3, 4, 4)
LAW = fk.laws.lowrank(dim=48, components=3, rank=6, seed=2)
LAW = GaussianMixture(LAW.weights, LAW.means + 0.3, (*LAW.form[:2], LAW.variance.sqrt()), None, SHAPE)
DENOISER = LAW.denoiser(VP)
N = 4
X = LAW.sample(N, seed=7)
PHI = {"f": torch.tensor([[0.5], [0.3], [0.8], [0.4]], dtype=F64), "M": torch.tensor([[0.2], [-0.1], [0.0], [0.3]], dtype=F64)}


def start(n: int = N) -> Tensor:
    return VP.start(fk.noise((n, *SHAPE), seed=1, dtype=F64))


def restored(wrapper: GDP, steps: int = 60, **options) -> fk.Trace:
    return fk.run(wrapper, start(), solver="ddpm", grid="uniform", steps=steps, end=0, **options)


def per_sample(v: Tensor) -> Tensor:
    return v.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "euler-maruyama"])
def test_the_step_moves_by_scale_times_the_gradient(solver: str) -> None:
    light, scale = Light(), 0.4
    y = light.degrade(X, PHI)
    plan = fk.solve.get(solver).plan(VP, Times([0.6, 0.45, 0.3]))
    seen: list[list[Tensor]] = [[], []]
    method = GDP(DENOISER, light, y, scale=scale, lr=0.0, parameters=PHI)
    for states, denoiser in zip(seen, (DENOISER, method), strict=True):
        fk.run(denoiser, start(), plan, seed=3, watch=lambda r, x, D, states=states: states.append(x))
    D = DENOISER(start(), 0.6)
    misfit = per_sample(PHI["f"]) * D + per_sample(PHI["M"]) - y
    # n times the mean over n numbers
    assert torch.allclose(seen[1][1], seen[0][1] - scale * 2 * per_sample(PHI["f"]) * misfit, atol=1e-10)


def test_half_a_step_undoes_a_misfit_of_gain_one() -> None:
    A = Mask((torch.arange(16).reshape(4, 4) % 2).to(F64))
    y = A(X)
    seen: list[Tensor] = []
    plan = fk.solve.get("ddim").plan(VP, Times([0.5, 1e-3, 0.0], to_x0=True))
    fk.run(GDP(DENOISER, A, y, scale=0.5), start(), plan, watch=lambda r, x, D: seen.append(x))
    plain = fk.sample(DENOISER, start(), fk.solve.get("ddim").plan(VP, Times([0.5, 1e-3])))
    D = DENOISER(start(), 0.5)
    # the state moves by y - A D where it was measured; unknown pixels do not count
    assert torch.allclose(seen[1] - plain, A(X - D), atol=1e-9)


def test_in_x_t_the_gradient_goes_through_the_network() -> None:
    """On N(0, v) the Jacobian is alpha v / (alpha^2 v + sigma^2)."""
    v = 0.4
    one = GaussianMixture([1.0], [[0.0] * 48], v, shape=SHAPE).denoiser(VP)
    plan = fk.solve.get("ddim").plan(VP, Times([0.5, 0.3, 0.1]))
    moved = []
    for denoiser in (one, GDP(one, Mask(torch.ones(4, 4)), X), GDP(one, Mask(torch.ones(4, 4)), X, at="x_t")):
        states: list[Tensor] = []
        fk.run(denoiser, start(), plan, watch=lambda r, x, D, states=states: states.append(x))
        moved.append(states[1])
    alpha, _, sigma = VP.at(0.5)
    assert torch.allclose(moved[2] - moved[0], alpha * v / (alpha**2 * v + sigma**2) * (moved[1] - moved[0]), atol=1e-9)


def test_parameters_go_down_their_own_gradient_first() -> None:
    light = Light()
    y = light.degrade(X, PHI)
    run = fk.Run(N)
    method = GDP(DENOISER, light, y, scale=0.0, lr=0.2).bind(run)
    D = DENOISER(start(), 0.4)
    method(start(), 0.4)
    residual = D - y  # with the neutral f = 1 and M = 0
    found = run.notes["parameters"]
    assert torch.allclose(found["f"][:, 0], 1 - 0.2 * 2 * (residual * D).flatten(1).mean(1), atol=1e-12)
    assert torch.allclose(found["M"][:, 0], -0.2 * 2 * residual.flatten(1).mean(1), atol=1e-12)
    # outside a run nothing is remembered
    loose = GDP(DENOISER, light, y, scale=0.1, lr=0.2)
    assert torch.equal(loose(start(), 0.4), loose(start(), 0.4)) and loose.phi is None
    # to the least squares of a fixed estimate, of each sample by itself
    many = GDP(DENOISER, light, y, scale=0.0, lr=0.3, repeats=3000).bind(fk.Run(N))
    many(start(), 0.4)
    flat, target = D.flatten(1), y.flatten(1)
    for k in range(N):
        both = torch.stack([flat[k], torch.ones(48, dtype=F64)], 1)
        best = torch.linalg.lstsq(both, target[k]).solution
        assert torch.allclose(torch.stack([many.phi["f"][k, 0], many.phi["M"][k, 0]]), best, atol=1e-6)


def test_unknown_light_is_found_and_a_run_forgets_the_one_before() -> None:
    light = Light()
    y = light.degrade(X, PHI)
    blind = GDP(DENOISER, light, y, scale=0.9, lr=0.3)
    trace, frozen = restored(blind), restored(GDP(DENOISER, light, y, scale=0.9, lr=0.0))
    assert trace.nfe == 60
    error = (trace.x0 - X).square().mean()
    assert float(error) < 0.5 * float((frozen.x0 - X).square().mean())
    f = trace.notes["parameters"]["f"]
    assert float(((f - PHI["f"]) / PHI["f"]).abs().median()) < 0.25
    assert torch.equal(restored(blind).x0, trace.x0)
    alone = GDP(DENOISER, light, y[2:3], scale=0.9, lr=0.3)
    one = fk.run(alone, start()[2:3], solver="ddpm", grid="uniform", steps=60, end=0, ids=[2])
    assert torch.allclose(one.x0, trace.x0[2:3], atol=1e-9)
    # what was found on one picture may be kept on the next
    kept = restored(GDP(DENOISER, light, y, scale=0.9, lr=0.0, parameters=trace.notes["parameters"]))
    assert torch.equal(kept.notes["parameters"]["f"], f)


def test_exposures_guide_one_picture_and_a_map_is_coarse() -> None:
    two = Light(exposures=2)
    phi = {"f": torch.tensor([[0.3, 0.9]] * N, dtype=F64), "M": torch.tensor([[-0.2, 0.1]] * N, dtype=F64)}
    y = two.degrade(X, phi)
    assert y.shape == (N, 2, *SHAPE) and torch.allclose(y[:, 1], 0.9 * X + 0.1)
    known = restored(GDP(DENOISER, two, y, scale=0.5, lr=0.0, parameters=phi))
    assert float((known.x0 - X).square().mean()) < 0.02
    found = restored(GDP(DENOISER, two, y, scale=0.5, lr=0.2)).notes["parameters"]["f"]
    assert found.shape == (N, 2) and bool((found[:, 0] < found[:, 1]).all())
    coarse = Light(grid=(2, 3))
    haze = torch.arange(6, dtype=F64).reshape(1, 1, 2, 3).expand(N, 1, 2, 3)
    drawn = coarse.degrade(torch.zeros(N, *SHAPE, dtype=F64), {"f": torch.ones(N, 1, dtype=F64), "M": haze})
    # corners are the map's own
    assert drawn.shape == (N, *SHAPE) and drawn[0, 0, [0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0.0, 2.0, 3.0, 5.0]
    smooth = restored(GDP(DENOISER, coarse, X, quality=Smoothness(weight=50.0), lr=0.005), steps=20).notes["parameters"]["M"]
    free = restored(GDP(DENOISER, coarse, X, lr=0.005), steps=20).notes["parameters"]["M"]
    assert float(smooth.flatten(2).std(2).mean()) < 0.5 * float(free.flatten(2).std(2).mean())


def test_qualities_are_what_they_say_and_pull() -> None:
    x = torch.zeros(2, 3, 4, 4, dtype=F64)
    x[1, 0] = 0.6
    assert torch.allclose(Exposure(0.2, 2)(x, {}), torch.tensor([0.04, 0.0], dtype=F64), atol=1e-15)
    assert torch.allclose(ColourConstancy(0.5)(x, {}), torch.tensor([0.0, 0.5 * 2 * 0.36], dtype=F64))
    m = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]], dtype=F64)
    assert Smoothness()(x[:1], {"M": m}).tolist() == [1.0]
    y = Mask(torch.zeros(4, 4))(X)
    grey = restored(GDP(DENOISER, Mask(torch.zeros(4, 4)), y, quality=[ColourConstancy(4.0)], scale=0.5)).x0
    plain = restored(GDP(DENOISER, Mask(torch.zeros(4, 4)), y)).x0
    assert float(ColourConstancy()(grey, {}).mean()) < 0.5 * float(ColourConstancy()(plain, {}).mean())


def test_any_operator_clip_and_refusals() -> None:
    A = Matrix(torch.eye(48, dtype=F64)[:10])
    y = A(X)
    assert float((A(restored(GDP(DENOISER, A, y)).x0) - y).abs().max()) < 0.05
    plan = fk.solve.get("ddim").plan(VP, Times([0.5, 0.3, 0.1]))
    seen: list[Tensor] = []
    fk.run(GDP(DENOISER, A, 100 * y, clip=0.01), start(), plan, watch=lambda r, x, D: seen.append(x))
    plain = fk.sample(DENOISER, start(), fk.solve.get("ddim").plan(VP, Times([0.5, 0.3])))
    assert float((seen[1] - plain).abs().max()) == pytest.approx(0.01)
    for call, says in (
        (lambda: GDP(DENOISER, A, y, at="xt"), "did you mean 'x_t'"),
        (lambda: GDP(DENOISER, A, y, scale=-1.0), "at least 0"),
        (lambda: GDP(DENOISER, A, y, repeats=0), "at least 1"),
        (lambda: GDP(DENOISER, A, y, clip=0.0), "clip above 0"),
        (lambda: GDP(DENOISER, A, y, parameters=PHI), "use a BlindOperator"),
        (lambda: restored(GDP(DENOISER, Light(), X, quality=Smoothness())), "give the operator a grid"),
        (lambda: BlindOperator()(X), "must"),
        (lambda: Light(grid=(2, 2))(torch.zeros(2, 5)), "needs pictures"),
    ):
        with pytest.raises(FokkerError, match=says):
            call()
