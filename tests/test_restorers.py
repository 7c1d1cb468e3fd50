"""Restorers that steer the next state, that solve for the image, or that optimise it, and the scanners: on exact laws."""

import math

import pytest
import torch
from laws_for_tests import F64, OPERATORS, SHAPE, start
from torch import Tensor

import fokker as fk
from fokker.denoiser import Run
from fokker.errors import FokkerError
from fokker.laws import GaussianMixture
from fokker.restore.dps import DPS
from fokker.restore.move import next_move
from fokker.restore.mri import MRI, coil_maps, columns
from fokker.restore.operators import Colourise, CompressedSensing, Mask, Matrix
from fokker.restore.proximal import DDS, DiffPIR, least_squares
from fokker.restore.tomography import ParallelBeam
from fokker.restore.tweedie import STSL, forward_start, hutchinson_trace
from fokker.restore.variational import _FRESH, REDDiff
from fokker.restore.views import Cropped, Decoded

VP = fk.VP()
DIM = math.prod(SHAPE)
LAW = GaussianMixture(
    [0.4, 0.6], fk.noise((2, *SHAPE), seed=3, dtype=F64), torch.tensor([0.3, 0.6], dtype=F64), shape=SHAPE
)
A = OPERATORS["matrix"]
Y = A.measure(LAW.sample(3, seed=5), 0.1, seed=1)
PROCESSES = [VP, fk.EDM(), fk.Flow()]


def steps(solver: str, process: fk.Process, n: int = 3, **options: float) -> fk.Plan:
    return fk.solve.get(solver, **options).plan(process, fk.grids.get("uniform")(n, start=0.9, end=0.2))


def seen_states(wrapper: fk.Denoiser, plan: fk.Plan) -> list[Tensor]:
    """The states that the denoiser is asked about, and the output."""
    found: list[Tensor] = []
    out = fk.sample(wrapper, start(wrapper.process, 3, SHAPE, t=0.9), plan, watch=lambda run, x, D: found.append(x))
    return [*found, out]


# --- the move of a plan --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "renoise", "euler", "heun", "dpm-2", "dpmpp-2m"])
def test_a_shifted_belief_shifts_the_next_state_by_as_much(solver, process):
    """Whatever rows lie between, and whatever they do with the belief."""

    class Shift(fk.Wrapper):
        def x0(self, x_t: Tensor, t: fk.process.Time) -> Tensor:
            belief = self.inner(x_t, t)
            first = self.run is not None and self.run.row == 0
            return next_move(self.run, self.process).shifted(belief, torch.full_like(belief, 0.01)) if first else belief

    inner, plan = LAW.denoiser(process), steps(solver, process)
    plain, moved = seen_states(inner, plan), seen_states(Shift(inner), plan)
    assert torch.allclose(moved[1] - plain[1], torch.full_like(plain[1], 0.01), atol=1e-12)


def test_the_move_of_ddim_is_its_formula():
    plan = steps("ddim", VP)
    move = next_move(Run(1, rows=3, row=0, plan=plan), VP)
    t, s = plan.times[:2]
    (a, _, u), (b, _, v) = VP.at(t), VP.at(s)
    assert (move.keep, move.take, move.alpha) == pytest.approx((v / u, b - a * v / u, b), abs=1e-14)
    # beyond a run, in an adaptive one, and on a process that is not the plan's, the move is that to x_0
    for run in (None, Run(1), Run(1, row=0, plan=fk.solve.get("adaptive").plan(VP, fk.grids.get("uniform")(2)))):
        assert next_move(run, VP).take == 1.0 and next_move(run, VP).keep == 0.0
    assert next_move(Run(1, row=0, plan=plan), fk.EDM()).take == 1.0


# --- DPS -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "renoise"])
def test_dps_goes_down_the_norm_of_the_misfit_by_its_step(solver, process):
    inner, plan = LAW.denoiser(process), steps(solver, process)
    plain, guided = seen_states(inner, plan), seen_states(DPS(inner, A, Y, step=0.7), plan)
    x = plain[0].clone().requires_grad_()
    (Y - A(inner(x, plan.times[0]))).norm(dim=1).sum().backward()
    assert torch.allclose(guided[1], plain[1] - 0.7 * x.grad, atol=1e-10)
    assert torch.equal(seen_states(DPS(inner, A, Y, step=0.0), plan)[-1], plain[-1])
    with pytest.raises(FokkerError, match="step=-1"):
        DPS(inner, A, Y, step=-1.0)


def test_dps_takes_what_can_be_differentiated():
    """A nonlinear measurement: the pull is the transpose of its Jacobian; behind a linear codec it is the linear one."""

    class Square(fk.restore.Operator):
        linear = False

        def forward(self, x: Tensor) -> Tensor:
            return A(x).square()

    inner, plan = LAW.denoiser(VP), steps("ddim", VP)
    x, v = LAW.sample(3), fk.noise(tuple(Y.shape), seed=2, dtype=F64)
    assert torch.allclose(Square().pull(x, v), A.adjoint(2 * A(x) * v), atol=1e-12)
    assert torch.isfinite(seen_states(DPS(inner, Square(), Y.square()), plan)[-1]).all()

    class Half(fk.codec.Codec):
        def decode(self, x: Tensor) -> Tensor:
            return x / 2

        def encode(self, data: Tensor) -> Tensor:
            return 2 * data

    behind = Decoded(A, Half())
    assert torch.allclose(behind(x), A(x) / 2) and torch.allclose(behind.pinv(Y), 2 * A.pinv(Y))
    assert torch.allclose(behind.pull(x, v), A.adjoint(v) / 2, atol=1e-12)
    with pytest.raises(FokkerError, match="no adjoint"):
        behind.adjoint(Y)


# --- proximal ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATORS)
def test_diffpir_minimises_its_objective(name):
    A = OPERATORS[name]
    y, inner, t, lam = A.measure(LAW.sample(3, seed=5), 0.2), LAW.denoiser(VP), 0.4, 3.0
    x_t = start(VP, 3, SHAPE, t=t)
    x = DiffPIR(inner, A, y, 0.2, lam)(x_t, t)
    alpha, _, sigma = VP.at(t)
    slope = A.adjoint(A(x) - y) / 0.2**2 + lam * (alpha / sigma) ** 2 * (x - inner(x_t, t))
    assert slope.abs().max() < 1e-6 * (A.adjoint(y) / 0.2**2).abs().max()
    assert torch.allclose(DiffPIR(inner, A, A(LAW.sample(3)))(x_t, t), A.consistent(inner(x_t, t), A(LAW.sample(3))))
    with pytest.raises(FokkerError, match="lam=0"):
        DiffPIR(inner, A, y, lam=0.0)


@pytest.mark.parametrize("name", [n for n in OPERATORS if n != "blur"])
def test_dds_with_enough_iterations_is_the_solution(name):
    """The projection without noise; the proximal point with; and in between iterations only come nearer."""
    A = OPERATORS[name]
    y, inner, t = A.measure(LAW.sample(3, seed=5)), LAW.denoiser(VP), 0.4
    x_t = start(VP, 3, SHAPE, t=t)
    D = inner(x_t, t)
    assert torch.allclose(DDS(inner, A, y, iterations=DIM)(x_t, t), A.consistent(D, y), atol=1e-7)
    x = DDS(inner, A, y, 0.2, iterations=DIM, gamma=4.0)(x_t, t)
    assert torch.allclose(x - D + 4.0 * A.adjoint(A(x) - y), torch.zeros_like(x), atol=1e-7)
    gaps = [(DDS(inner, A, y, iterations=k)(x_t, t) - A.consistent(D, y)).norm() for k in (1, 2, 4)]
    assert gaps[0] >= gaps[1] - 1e-9 and gaps[1] >= gaps[2] - 1e-9
    single = [DDS(inner, A, y[k : k + 1], 0.2)(x_t[k : k + 1], t)[0] for k in range(3)]
    assert torch.allclose(torch.stack(single), DDS(inner, A, y, 0.2)(x_t, t), atol=1e-10)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
def test_dds_keeps_the_noise_that_the_denoiser_found(process):
    """x_s = alpha_s x + sigma_s eps with eps of the uncorrected belief; the data's own weight by default."""
    inner, plan = LAW.denoiser(process), steps("renoise", process)
    dds = DDS(inner, A, Y, 0.1)
    states = seen_states(dds, plan)
    t, s = plan.times[:2]
    (alpha, _, sigma), (alpha_s, _, sigma_s) = process.at(t), process.at(s)
    D = inner(states[0], t)
    expected = alpha_s * dds.meet(D, t) + sigma_s * (states[0] - alpha * D) / sigma
    assert torch.allclose(states[1], expected, atol=1e-10)
    weight = float(dds.prior_variance(t, D)) / 0.1**2
    assert torch.allclose(dds.meet(D, t), DDS(inner, A, Y, 0.1, gamma=weight).meet(D, t), atol=1e-12)
    with pytest.raises(FokkerError, match="iterations=0"):
        DDS(inner, A, Y, iterations=0)
    with pytest.raises(FokkerError, match="gamma=0"):
        DDS(inner, A, Y, gamma=0.0)


def test_least_squares_stays_where_it_has_arrived():
    matrix = Matrix(fk.noise((5, DIM), seed=1, dtype=F64) * torch.logspace(0, -3, 5, dtype=F64)[:, None], SHAPE)
    y = fk.noise((2, 5), seed=2, dtype=F64)
    assert torch.allclose(least_squares(matrix, y, 200), matrix.pinv(y), rtol=1e-6, atol=1e-6)


# --- RED-Diff ------------------------------------------------------------------------------------------------------------


def test_red_diff_is_adam_on_its_loss():
    """Three levels of the loss as the paper writes it, differentiated by hand of autograd."""
    inner = LAW.denoiser(VP)
    plan = fk.solve.get("ddim").plan(VP, fk.grids.get("uniform")(3, end=0))
    method = REDDiff(inner, A, Y, lam=0.3, lr=0.05, v=2.0)
    out = fk.sample(method, start(VP, 3, SHAPE), plan, seed=4)
    mu = A.pinv(Y).clone().requires_grad_()
    adam = torch.optim.Adam([mu], lr=0.05, betas=(0.9, 0.99))
    drawn = REDDiff(inner, A, Y).bind(Run(3, seed=4))
    for k, t in enumerate(plan.times):
        alpha, _, sigma = VP.at(t)
        eps = drawn.fresh(mu.detach(), _FRESH + k)
        x_t = alpha * mu.detach() + sigma * eps
        found = (x_t - alpha * inner(x_t, t)) / sigma
        data = (Y - A(mu)).square().mean(1).sum()
        loss = data * 2.0 / 2 + 0.3 * sigma / alpha * ((found - eps) * mu).flatten(1).mean(1).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert torch.allclose(out, mu.detach(), atol=1e-9)


@pytest.mark.parametrize("weight", ["snr", "constant", "sqrt", "log", "clip"])
def test_red_diff_weights(weight):
    """w (eps_hat - eps) with w = lam f(sigma / alpha), finite also where alpha is 0."""
    inner = LAW.denoiser(fk.Flow())
    method = REDDiff(inner, A, Y, v=0.0, weight=weight)
    mu, eps = LAW.sample(3, seed=8), fk.noise((3, *SHAPE), seed=9, dtype=F64)
    for t in (0.2, 0.7):
        rho = t / (1 - t)
        f = {"snr": rho, "constant": 1.0, "sqrt": rho**0.5, "log": math.log1p(rho), "clip": min(rho, 1.0)}[weight]
        x_t = (1 - t) * mu + t * eps
        found = (x_t - (1 - t) * inner(x_t, t)) / t
        assert torch.allclose(method.gradient(mu, eps, t), 0.25 * f * (found - eps) / DIM, atol=1e-12)
    assert torch.isfinite(method.gradient(mu, eps, 1.0)).all()
    assert torch.isfinite(method.gradient(mu, eps, torch.tensor([1.0, 0.5, 0.1], dtype=F64))).all()


def test_red_diff_options():
    inner, x = LAW.denoiser(VP), start(VP, 3, SHAPE)
    plan = fk.solve.get("ddim").plan(VP, fk.grids.get("uniform")(4, end=0))
    by_plan = fk.sample(REDDiff(inner, A, Y), x, plan)
    assert torch.equal(by_plan, fk.sample(REDDiff(inner, A, Y), 5 * x, plan)), "the states of the plan are not looked at"
    assert not torch.equal(by_plan, fk.sample(REDDiff(inner, A, Y, times="random"), x, plan))
    assert fk.run(REDDiff(inner, A, Y, lam=0.0), x, plan).nfe == 0, "least squares asks no prior"
    begun = fk.sample(REDDiff(inner, A, Y, start=torch.zeros(SHAPE), lr=1e-9), x, plan)
    assert begun.abs().max() < 1e-7
    for wrong in ({"weight": "sqr"}, {"times": "up"}, {"lr": 0.0}, {"lam": -1.0}):
        with pytest.raises(FokkerError):
            REDDiff(inner, A, Y, **wrong)


# --- second-order Tweedie ------------------------------------------------------------------------------------------------


def test_hutchinson_meets_the_trace():
    t = 0.3
    x = VP.add_noise(LAW.sample(1, seed=2), fk.noise((1, *SHAPE), seed=3, dtype=F64), t)
    alpha, _, sigma = VP.at(t)
    cov = LAW.posterior_cov(x, t, VP)[0].trace()
    exact = float((cov * alpha**2 / sigma**2 - DIM) / sigma**2)
    found = hutchinson_trace(lambda v: LAW.score(v, t, VP), x.expand(400, *SHAPE), n=1, h=0.01)
    assert float((found.mean() - exact).abs()) < 3 * float(found.std()) / 20 + 1e-3 * abs(exact)


@pytest.mark.parametrize("weight", ["sigma2", "one"])
def test_stsl_descends_its_objective_before_the_step(weight):
    """One inner step is a gradient step of misfit and trace on the state; the plan then starts from there."""
    inner, plan = LAW.denoiser(VP), steps("ddim", VP)
    options = {"lam": 0.02, "eta": 0.1, "inner_steps": 1, "probe": 0.3, "weight": weight}
    states = seen_states(STSL(inner, A, Y, **options), plan)
    t = plan.times[0]
    alpha, _, sigma = VP.at(t)
    x = states[0].clone().requires_grad_()
    e = STSL(inner, A, Y, **options).bind(Run(3, plan=plan))._probe(x.detach(), 0)
    scores = [(alpha * inner(v, t) - v) / sigma**2 for v in (x, x + 0.3 * e)]
    trace = (e * (scores[1] - scores[0])).sum() / 0.3
    loss = 0.02 * (Y - A(inner(x, t))).square().sum() + 0.1 / DIM * (sigma**2 if weight == "sigma2" else 1.0) * trace
    loss.backward()
    moved = states[0] - x.grad
    assert torch.allclose(states[1], seen_states_from(inner, plan, moved), atol=1e-10)
    # without the trace it is the first-order sampler, to the bit, whatever the probe
    first = [seen_states(STSL(inner, A, Y, eta=0.0, probe=h), plan)[-1] for h in (0.1, 1.0)]
    assert torch.equal(*first)
    with pytest.raises(FokkerError, match="inner_steps=0"):
        STSL(inner, A, Y, inner_steps=0)


def test_stsl_weighs_the_misfit_as_the_likelihood_does_at_the_weight_it_names():
    """At lam = beta dt / (4 K (s^2 + noise^2)) a short level moves a state by beta dt / 2 of the likelihood's score."""
    c, noise, t, dt = 1.7, 0.3, 0.5, 1e-5
    law = GaussianMixture([1.0], torch.zeros(1, 4, dtype=F64), c)
    identity, y, x = Matrix(torch.eye(4, dtype=F64)), fk.noise((3, 4), seed=1, dtype=F64), fk.noise((3, 4), seed=2, dtype=F64)
    alpha, _, sigma = VP.at(t)
    spread, beta = c * sigma**2 / (alpha**2 * c + sigma**2), VP.diffusion(t).item()
    plan = fk.solve.get("ddim").plan(VP, fk.grids.Times([t, t - dt]))
    inner = law.denoiser(VP)
    method = STSL(inner, identity, y, noise, lam=beta * dt / (4 * (spread + noise**2)), eta=0.0, inner_steps=1)
    moved = (fk.sample(method, x, plan) - fk.sample(inner, x, plan)) / dt
    gain = alpha * c / (alpha**2 * c + sigma**2)
    assert torch.allclose(moved, beta / 2 * gain * (y - gain * x) / (spread + noise**2), rtol=1e-3)


def seen_states_from(inner: fk.Denoiser, plan: fk.Plan, x: Tensor) -> Tensor:
    """The state after one step from x."""
    found: list[Tensor] = []
    fk.sample(inner, x, plan, watch=lambda run, x_t, D: found.append(x_t))
    return found[1]


def test_forward_start_is_undone_by_the_flow():
    inner = LAW.denoiser(VP)
    grid = fk.grids.get("logsnr")(400, start=0.9, end=1e-3)
    x_0 = LAW.sample(4, seed=3)
    up = forward_start(inner, x_0, grid)
    assert torch.allclose(LAW.flow(VP, up, 0.9, 1e-3), x_0, atol=0.05)


# --- scanners ------------------------------------------------------------------------------------------------------------


def test_rays_measure_lengths():
    """A disc of ones measures its chords; a picture of ones the width of the grid; one pixel its footprint's area."""
    n = 64
    at = torch.arange(n, dtype=F64) - (n - 1) / 2
    fine = (torch.arange(16, dtype=F64) + 0.5) / 16 - 0.5
    inside = (at[:, None, None, None] + fine[:, None]) ** 2 + (at[None, :, None, None] + fine) ** 2 < 24.0**2
    disc = inside.double().mean((2, 3)).reshape(1, 1, n, n)
    scanner = ParallelBeam(24, (1, n, n))
    y = scanner(disc)[0, 0] * n
    offset = torch.arange(scanner.detectors, dtype=F64) - (scanner.detectors - 1) / 2
    chord = 2 * (24.0**2 - offset.square()).clamp(min=0).sqrt()
    middle = offset.abs() < 20
    assert (y - chord)[:, middle].abs().max() < 0.8, "a chord is met to a pixel's diagonal"
    assert (y - chord)[:, middle].mean().abs() < 0.02
    # where rays run along the grid they see whole columns, once
    for size in ((6, 6), (9, 9), (9, 6)):
        full = ParallelBeam(2, (1, *size))(torch.ones(1, 1, *size, dtype=F64))[0, 0] * max(size)
        assert torch.allclose(full.sum(1), torch.full((2,), float(size[0] * size[1]), dtype=F64))
        for row, side in zip(full, size):
            # a ray between two columns belongs to both by halves
            assert row.max() == pytest.approx(side) and (2 * row / side - (2 * row / side).round()).abs().max() < 1e-6
    one = torch.zeros(1, 1, 5, 9, dtype=F64)
    one[0, 0, 1, 6] = 1.0
    many = torch.linspace(0.1, 3.0, 400, dtype=F64)
    # the mean over angles of sampled footprints is the pixel's area
    assert ParallelBeam(many, (1, 5, 9))(one).sum(3).mean() * 9 == pytest.approx(1.0, abs=0.02)


def test_projections_are_differentiated_twice():
    scanner = ParallelBeam(3, (1, 4, 5))
    x = fk.noise((2, 1, 4, 5), seed=1, dtype=F64).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda v: scanner(v).square().sum(), (x,))
    assert scanner(x.detach().bfloat16()).dtype == torch.bfloat16


def test_fully_sampled_coils_are_unitary():
    scanner = MRI(1.0, 3, (2, 8, 6))
    x = fk.noise((2, 2, 8, 6), seed=1, dtype=F64)
    assert torch.allclose(scanner.adjoint(scanner(x)), x, atol=1e-12)
    assert torch.allclose(scanner.pinv(scanner(x)), x, atol=1e-10)
    assert scanner(x).square().sum() == pytest.approx(x.square().sum().item())
    # one coil of constant phase is the masked Fourier transform
    plain = MRI(2.0, shape=(2, 8, 6), maps=torch.tensor([3.0, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 8, 6))
    k = torch.fft.fft2(torch.complex(x[:, 0], x[:, 1]), norm="ortho") * plain.mask
    assert torch.allclose(plain(x)[:, 0, 0], k.real, atol=1e-12) and torch.allclose(plain(x)[:, 0, 1], k.imag, atol=1e-12)


def test_columns_are_as_many_as_asked_with_the_middle_always():
    for seed in range(5):
        mask = columns(64, 4.0, 0.08, seed)
        frequency = torch.fft.fftfreq(64).abs().argsort(stable=True)
        assert mask.sum() == 16 and bool((mask[frequency[:5]] == 1).all())
    assert not torch.equal(columns(64, 4.0, seed=0), columns(64, 4.0, seed=1))
    assert coil_maps(4, (5, 7)).shape == (4, 2, 5, 7)


def test_compressed_sensing_block_by_block_is_one_matrix():
    blocks = CompressedSensing(0.5, (3, 8, 12), block=4)
    x = fk.noise((2, 3, 8, 12), seed=1, dtype=F64)
    y = blocks(x)
    assert y.shape == (2, 3, 6, 8)
    assert torch.allclose(y[1, 2, 4], x[1, 2, 4:8, 4:8].flatten() @ blocks.matrix.matrix.T)
    assert blocks.check((2, 3, 8, 12)) < 1e-13 and torch.allclose(blocks(blocks.pinv(y)), y, atol=1e-9)
    v = fk.noise(tuple(y.shape), seed=2, dtype=F64)
    a = torch.tensor([0.5, 2.0], dtype=F64).reshape(2, 1, 1, 1)
    assert torch.allclose(blocks.solve(a * blocks(blocks.adjoint(v)) + 0.3 * v, a, 0.3), v, atol=1e-9)


def test_noise_is_put_where_something_is_measured():
    mask = Mask(0.5, SHAPE, seed=1)
    y = mask.measure(torch.zeros(2, *SHAPE), 1.0, seed=3)
    assert torch.equal(y != 0, (mask.mask > 0).expand(2, *SHAPE))
    assert torch.equal(mask.measure(torch.zeros(1, *SHAPE), 1.0, seed=3, ids=[1]), y[1:])


def test_a_view_of_a_canvas_is_its_matrix():
    inner = Mask(0.5, (2, 3, 4), seed=1)
    view = Cropped(inner, (3, 4), (5, 6))
    x, truth = fk.noise((2, 2, 5, 6), seed=1, dtype=F64), fk.noise((2, 2, 5, 6), seed=2, dtype=F64)
    y = view(truth)
    assert view.check((2, 2, 5, 6)) < 1e-14 and torch.equal(view(view.consistent(x, y)), y)
    assert torch.equal(view.consistent(x, y)[:, :, 3:], x[:, :, 3:])
    assert torch.allclose(view.pinv(y), view.adjoint(view.solve(y)), atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ParallelBeam(4), "shape="),
        (lambda: ParallelBeam(0, (1, 4, 4)), "angles=0"),
        (lambda: ParallelBeam(3, (1, 4, 4))(torch.ones(1, 1, 4, 5)), "made for"),
        (lambda: MRI(shape=(3, 4, 4)), "imaginary"),
        (lambda: MRI(0.5, shape=(2, 4, 4)), "acceleration=0.5"),
        (lambda: MRI(shape=(2, 4, 4), maps=torch.ones(1, 2, 4, 5)), "do not fit"),
        (lambda: MRI(shape=(2, 4, 4), mask=torch.full((4,), 0.5)), "zeros"),
        (lambda: MRI(shape=(2, 4, 4))(torch.ones(1, 2, 4, 5)), "not the complex picture"),
        (lambda: CompressedSensing(0.5), "shape="),
        (lambda: CompressedSensing(0.0, (1, 4, 4)), "keep=0"),
        (lambda: CompressedSensing(0.5, (1, 4, 6), block=4), "block=4"),
        (lambda: CompressedSensing(0.5, (3, 64, 64)), "block="),
        (lambda: Colourise([1.0, 1.0]), "one number a channel"),
        (lambda: Colourise()(torch.ones(1, 2, 4, 4)), "2 channels"),
        (lambda: Cropped(Mask(torch.ones(1)), (5,), (4,)), "does not fit"),
    ],
)
def test_what_cannot_be_scanned_is_said(make, message):
    with pytest.raises(FokkerError, match=message):
        make()


# --- the arena -----------------------------------------------------------------------------------------------------------


def test_the_leaderboard_knows_who_is_exact():
    """On one Gaussian MMPS samples the posterior, to the floor of exact samples; DDNM told a tenth of the spread does not."""
    from functools import partial

    from fokker.restore.leaderboard import leaderboard
    from fokker.restore.moments import MomentMatching
    from fokker.restore.posterior import DDNM

    law = GaussianMixture([1.0], torch.zeros(1, 1, 2, 3, dtype=F64), torch.linspace(0.05, 1, 6, dtype=F64).diag())
    makers = [("exact", partial(MomentMatching, iterations=6)), ("off", partial(DDNM, data_std=0.1))]
    found = leaderboard(
        law, VP, [("mask", Mask(0.5, (1, 2, 3), seed=1))], makers, steps=60, noise_std=0.3, measurements=2, n=400
    )
    exact, off = found.rows
    # 60 ancestral steps lose some of the spread
    assert exact.mean < 3 * exact.mean_floor and exact.distance < 1.5 * exact.floor
    assert 0.75 < exact.misfit / exact.misfit_floor < 1.1
    assert off.distance > 1.3 * exact.distance and exact.nfe == 60
    lines = found.table().splitlines()
    assert lines.index("mask") < next(k for k, line in enumerate(lines) if line.startswith("exact "))
    assert '"operator": "mask"' in found.json()
    with pytest.raises(FokkerError, match="noise_std=0"):
        leaderboard(law, VP, [], noise_std=0.0)


# --- sources -------------------------------------------------------------------------------------------------------------


def test_sources_are_separated_as_the_joint_posterior_says():
    """Two Gaussians of unit variance summed: the belief under the sum is that of the joint law."""
    from fokker.restore.posterior import PiGDM
    from fokker.restore.sources import Sources, Sum

    means = torch.tensor([[[1.0, -1.0, 0.5]], [[0.0, 2.0, -2.0]]], dtype=F64)
    parts = [GaussianMixture([1.0], m, 1.0) for m in means]
    both = GaussianMixture([1.0], means.reshape(1, 2, 3), 1.0)
    pair = Sources([p.denoiser(VP) for p in parts])
    x_t, t = fk.noise((4, 2, 3), seed=1, dtype=F64), 0.4
    assert torch.allclose(pair(x_t, t), both.denoiser(VP)(x_t, t), atol=1e-13)
    assert pair.data_std == pytest.approx(1.0) and pair.conditions == ("label", "logits", "y")
    y = Sum().measure(both.sample(1, seed=2), 0.3)
    joint = both.posterior(torch.cat([torch.eye(3, dtype=F64)] * 2, 1), y[0], 0.3)
    restored = PiGDM(pair, Sum(), y.expand(4, 3), 0.3)(x_t, t)
    assert torch.allclose(restored, joint.denoiser(VP)(x_t, t), atol=1e-12)
    # each source may be guided by its own scale
    scales = torch.tensor([[[0.5], [0.0]]], dtype=F64)
    plan = steps("ddim", VP)
    start_at = fk.noise((3, 2, 3), seed=5, dtype=F64)
    found: list[Tensor] = []
    for step in (0.0, 0.5, scales):
        fk.sample(DPS(pair, Sum(), y.expand(3, 3), step=step), start_at, plan, watch=lambda run, x, D: found.append(x))
    plain, guided, one = found[1], found[4], found[7]
    assert torch.allclose(one[:, 0], guided[:, 0]) and torch.allclose(one[:, 1], plain[:, 1])
    inside = Sum(Mask(torch.tensor([1.0, 0.0, 1.0]))).measure(both.sample(2), 0.1)
    assert not inside[:, 1].any() and Sum(Mask(torch.tensor([1.0, 0.0, 1.0]))).check((2, 2, 3)) < 1e-14
    for wrong in (lambda: Sources([]), lambda: Sources([parts[0].denoiser(VP), parts[1].denoiser(fk.EDM())]),
                  lambda: pair(x_t[:, :1], t), lambda: Sum(sources=0), lambda: Sum(sources=3)(x_t)):  # fmt: skip
        with pytest.raises(FokkerError, match="source"):
            wrong()
