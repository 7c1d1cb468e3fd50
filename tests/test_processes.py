"""A process states alpha, beta and sigma; everything else must follow from them, on every registered one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws_for_tests import BETAS, F64, PROCESSES, anchor

import fokker as fk
from fokker.anchored import BrownianBridge, MeanReverting, ResidualShift
from fokker.electric import PFGMPP
from fokker.errors import FokkerError
from fokker.process import PREDICTIONS, VE, VP, Flow, Interpolant, SubVP, TableVP, derivative

every = pytest.mark.parametrize("name", PROCESSES)
INNER = torch.linspace(0.01, 0.99, 99, dtype=F64)


def inner(process) -> torch.Tensor:
    """Times where the log-SNR is finite and coefficients are smooth (a table has corners at its rows)."""
    return (torch.arange(50, dtype=F64) + 0.37) / 50


# --- the coefficients ----------------------------------------------------------------------------------------------------


@every
def test_snr_falls_strictly_from_data_to_noise(name):
    process = PROCESSES[name]
    logsnr = process.logsnr(torch.linspace(0, 1, 4001, dtype=F64))
    assert not logsnr.isnan().any()
    assert (logsnr.diff() < 0).all()
    assert process.alpha(0.0) > 0.99 and process.logsnr(0.0) > 4 > -1 > process.logsnr(1.0)


@every
def test_coefficients_are_float64_and_elementwise(name):
    process = PROCESSES[name]
    t = torch.rand(3, 4, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    for f in (
        process.alpha,
        process.beta,
        process.sigma,
        process.logsnr,
        process.time,
        process.drift,
        process.diffusion,
    ):
        out = f(t)
        assert out.dtype == F64 and out.shape == t.shape
        assert torch.equal(out[1, 2], f(t[1, 2]))
        assert torch.allclose(out[1, 2], f(t[1, 2].item()), rtol=1e-12)


@every
def test_marginal_of_noised_data(name):
    """Mean alpha m + beta y and variance alpha^2 v + sigma^2, within 5 standard errors."""
    process = PROCESSES[name]
    n = 20_000
    x_0 = 0.7 + 0.5 * fk.noise((n, 1), seed=1, dtype=F64)
    y = torch.full((n, 1), 2.0, dtype=F64) if process.anchored else None
    eps = process.sample_noise((n, 1), seed=2, dtype=F64)
    for t in (0.05, 0.5, 1.0):
        alpha, beta, sigma = process.at(t)
        x_t = process.add_noise(x_0, eps, t, y)
        variance = (alpha * 0.5) ** 2 + sigma**2
        assert abs(x_t.mean() - (alpha * 0.7 + beta * 2.0)) < 5 * math.sqrt(variance / n)
        assert abs(x_t.var() / variance - 1) < 5 * math.sqrt(2.1 / n)


def test_closed_forms_of_the_classics():
    t = INNER
    integral = 0.1 * t + 0.5 * 19.9 * t**2
    assert torch.allclose(VP().alpha(t), torch.exp(-integral / 2), rtol=1e-13)
    assert torch.allclose(VP().sigma(t) ** 2 + VP().alpha(t) ** 2, torch.ones_like(t), rtol=1e-13)
    assert torch.allclose(SubVP().sigma(t), 1 - torch.exp(-integral), rtol=1e-12)
    assert torch.allclose(VE().sigma(t), 0.01 * 5000**t, rtol=1e-13)
    assert torch.allclose(fk.EDM().sigma(t), 80 * t, rtol=1e-13) and fk.EDM().end == 0.002 / 80
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert torch.allclose(fk.Cosine().alpha(t) ** 2, f, rtol=1e-11)
    assert torch.allclose(fk.Cosine().sigma(t) ** 2, 1 - f, rtol=1e-11)
    assert torch.equal(Flow().alpha(t), 1 - t) and torch.equal(Flow().sigma(t), t)
    theta = 5.0 * (t**2 + t) / 2
    assert torch.allclose(MeanReverting().alpha(t) + MeanReverting().beta(t), torch.ones_like(t), rtol=1e-14)
    assert torch.allclose(MeanReverting().sigma(t) ** 2, 0.09 * (1 - torch.exp(-2 * theta)), rtol=1e-12)
    shift = ResidualShift()
    assert torch.allclose(shift.sigma(t) ** 2, 4 * shift.beta(t), rtol=1e-13)
    assert abs(shift.beta(0.0) - 0.02**2) < 1e-15 and abs(shift.beta(1.0) - 0.99**2) < 1e-15
    assert ResidualShift(kappa=0.5).sigma(0.0) == pytest.approx(0.5 * 0.04)
    a = (fk.Resfusion().alpha(t) + 1) / 2
    assert torch.allclose(fk.Resfusion().beta(t), 1 - a) and torch.allclose(fk.Resfusion().sigma(t) ** 2, 1 - a**2)
    ouve, k = fk.OUVE(), math.log(10.0)
    variance = 0.05**2 * (10.0 ** (2 * t) - torch.exp(-3 * t)) * k / (1.5 + k)
    assert torch.allclose(ouve.sigma(t) ** 2, variance, rtol=1e-12)


def test_a_table_is_told_in_one_line_and_apart_from_others():
    one, other = TableVP(BETAS), TableVP((*BETAS[:-1], BETAS[-1] / 2))
    assert repr(one) == repr(TableVP(BETAS)) != repr(other) and len(repr(one)) < 100


@every
def test_sigma_has_no_cancellation_near_the_data(name):
    """sigma(t) behaves like a power of t (times a constant) as t goes to 0, to near rounding, or starts above 0."""
    process = PROCESSES[name]
    if process.sigma(0.0) > 0:
        return
    t = torch.tensor([1e-9, 2e-9, 4e-9], dtype=F64)
    ratio = process.sigma(t)[1:] / process.sigma(t)[:-1]
    assert (ratio[0] / ratio[1] - 1).abs() < 1e-6


def test_the_table_is_the_discrete_chain():
    process = TableVP(BETAS)
    bar = torch.cumprod(1 - torch.tensor(BETAS, dtype=F64), 0)
    rows = torch.arange(1, 51, dtype=F64) / 50
    assert torch.allclose(process.alpha(rows) ** 2, bar, rtol=1e-12)
    assert torch.allclose(process.sigma(rows) ** 2, 1 - bar, rtol=1e-12)
    between = process.alpha(rows[:-1] + 0.01)
    assert (between < process.alpha(rows[:-1])).all() and (between > process.alpha(rows[1:])).all()


def test_zero_terminal_snr_is_exactly_zero():
    process = PROCESSES["vp-table-zero-snr"]
    assert process.at(1.0) == (0.0, 0.0, 1.0) and process.logsnr(1.0) == -math.inf
    law = fk.laws.ring(3)
    x = fk.noise((4, 2), dtype=F64)
    near = law.flow(process, x, 1.0, process.end, tol=1e-8)
    for solver, bound in (("ddim", 0.05), ("heun", 0.01), ("dpmpp-3m", 0.01)):
        out = fk.sample(law.denoiser(process), x, solver=solver, steps=64, grid="logsnr")
        assert (out - near).norm(dim=1).median() < bound


@pytest.mark.parametrize(
    "name", ["vp-table-zero-snr", "cosine", "flow", "interpolant", "rddm", "resfusion", "brownian-bridge"]
)
def test_no_signal_is_left_where_the_process_says_so(name):
    process = PROCESSES[name]
    assert process.at(1.0)[0] == 0.0 and process.logsnr(1.0) == -math.inf
    # a bridge's state keeps unit noise at its pinned end, with numbers and with tensors
    assert process.at(1.0)[2] > 0
    assert process.coefficients(torch.ones(2), torch.ones(2, 3))[2][0, 0] == pytest.approx(process.at(1.0)[2])


# --- construction --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Interpolant(alpha_of=lambda t: 1 - t, sigma_of=lambda t: t * (1 - t) ** 2), r"does not at t=0\.5"),
        (lambda: Interpolant(alpha_of=torch.ones_like, sigma_of=torch.ones_like), r"must fall strictly.*t=0\.0010"),
        (lambda: Interpolant(alpha_of=lambda t: torch.cos(math.pi * t)), r"not negative.*t=0\.50"),
        (lambda: Interpolant(sigma_of=lambda t: 1 / (1 - t)), r"finite.*t=1\.0000"),
        (lambda: VP(beta_min=0.0, beta_max=0.0), "must fall strictly"),
        (lambda: TableVP((0.1, 0.0, 0.1)), r"numbers in \(0, 1\]"),
        (lambda: TableVP((0.1,)), "at least two"),
    ],
)
def test_a_snr_that_does_not_fall_is_refused_with_the_time(make, message):
    with pytest.raises(FokkerError, match=message):
        make()


def test_config_rebuilds_every_process():
    for process in PROCESSES.values():
        config = process.config
        again = getattr(fk, config.pop("process"))(**config)
        assert repr(again) == repr(process)
        assert torch.equal(again.logsnr(INNER), process.logsnr(INNER))


# --- what follows --------------------------------------------------------------------------------------------------------


@every
def test_drift_and_diffusion_are_those_of_the_moments(name):
    """d alpha / dt = f alpha and d sigma^2 / dt = 2 f sigma^2 + g^2, by central differences of order 4."""
    process, t, h = PROCESSES[name], inner(PROCESSES[name]), 1e-4

    def rate(f):
        return (8 * (f(t + h) - f(t - h)) - (f(t + 2 * h) - f(t - 2 * h))) / (12 * h)

    f, g2 = process.drift(t), process.diffusion(t)
    assert torch.allclose(rate(process.alpha), f * process.alpha(t), rtol=1e-6, atol=1e-8)
    moments = 2 * f * process.sigma(t) ** 2 + g2
    assert torch.allclose(rate(lambda u: process.sigma(u) ** 2), moments, rtol=1e-6, atol=1e-6)
    assert (g2 > 0).all()
    assert torch.allclose(g2, -(process.sigma(t) ** 2) * derivative(process.logsnr, t), rtol=1e-9)


@every
def test_drift_and_diffusion_exist_at_the_ends(name):
    process = PROCESSES[name]
    for t in (0.0, 1.0):
        assert math.isfinite(process.drift(t)) and math.isfinite(process.diffusion(t)) and process.diffusion(t) >= 0
    assert VP().diffusion(0.0) == pytest.approx(0.1) and VP().diffusion(1.0) == pytest.approx(20.0)


@every
def test_time_inverts_logsnr(name):
    process, t = PROCESSES[name], inner(PROCESSES[name])
    assert torch.allclose(process.time(process.logsnr(t)), t, rtol=1e-10, atol=1e-13)
    assert process.time(1e4) <= 1e-9 or process.sigma(0.0) > 0
    assert process.time(torch.tensor(-1e4)) == pytest.approx(1.0, abs=1e-9)


@every
def test_time_is_differentiable_and_keeps_its_value(name):
    """dt / dlogsnr is one over the slope inside the range, nothing where it is clamped; the value does not move."""
    process, t = PROCESSES[name], inner(PROCESSES[name])
    logsnr = process.logsnr(t).requires_grad_()
    out = process.time(logsnr)
    (slope,) = torch.autograd.grad(out.sum(), logsnr)
    assert torch.allclose(slope, 1 / derivative(process.logsnr, t), rtol=1e-6, atol=1e-12)
    assert torch.allclose(out, process.time(logsnr.detach()), rtol=1e-14, atol=0)
    far = torch.tensor([-300.0, 300.0], dtype=F64, requires_grad=True)
    out = process.time(far)
    assert torch.equal(out.detach(), process.time(far.detach()))
    (slope,) = torch.autograd.grad(out.sum(), far)
    assert slope.abs().max() < 1e-6


# --- conversions ---------------------------------------------------------------------------------------------------------


@every
@settings(max_examples=12)
@given(t=st.floats(0.02, 0.98), seed=st.integers(0, 1000))
def test_conversions_are_inverse_to_each_other(name, t, seed):
    """to_x0(from_x0(.)) for every prediction type: relative to the size of what cancels."""
    process = PROCESSES[name]
    x_0, eps = (fk.noise((3, 5), seed, index=k, dtype=F64) for k in (0, 1))
    alpha, _, sigma = process.at(t)
    x_t = alpha * x_0 + sigma * eps
    for prediction in PREDICTIONS:
        if prediction == "edm":
            continue
        for time in (t, torch.tensor([t, t, t], dtype=F64)):
            value = process.from_x0(prediction, x_0, x_t, time)
            assert torch.allclose(process.to_x0(prediction, value, x_t, time), x_0, atol=1e-11 * (1 + sigma / alpha))


@every
def test_what_each_prediction_is(name):
    process = PROCESSES[name]
    x_0, eps = (fk.noise((3, 5), seed=1, index=k, dtype=F64) for k in (0, 1))
    for t in (0.1, 0.5, 0.9):
        alpha, _, sigma = process.at(t)
        x_t = alpha * x_0 + sigma * eps
        rates = [derivative(f, torch.tensor(t, dtype=F64)).item() for f in (process.alpha, process.sigma)]
        expected = {
            "x0": x_0,
            "eps": eps,
            "v": alpha * eps - sigma * x_0,
            "score": -eps / sigma,
            "flow": rates[0] * x_0 + rates[1] * eps,
        }
        for prediction, value in expected.items():
            got = process.from_x0(prediction, x_0, x_t, t)
            assert torch.allclose(got, value, rtol=1e-9, atol=1e-9 * float(value.abs().max())), prediction


def test_velocity_at_the_noise_end_of_a_flow():
    x_t, v = fk.noise((2, 3), dtype=F64), fk.noise((2, 3), seed=1, dtype=F64)
    assert torch.allclose(Flow().to_x0("flow", v, x_t, 1.0), x_t - v)


def test_unknown_prediction_suggests_the_near_one():
    with pytest.raises(FokkerError, match="did you mean 'score'"):
        VP().to_x0("scores", torch.ones(1), torch.ones(1), 0.5)


# --- time per sample, anchors, starts ------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_times_per_sample_and_per_token(name, dtype):
    process = PROCESSES[name]
    x_0, eps = fk.noise((3, 4, 5), dtype=dtype), fk.noise((3, 4, 5), seed=1, dtype=dtype)
    y = anchor(process, x_0)
    for t in (torch.tensor([0.1, 0.5, 1.0]), torch.rand(3, 4, generator=torch.Generator().manual_seed(1))):
        x_t = process.add_noise(x_0, eps, t, y)
        assert x_t.dtype == dtype
        for i in range(3):
            for j in range(4):
                time = float(t[i] if t.ndim == 1 else t[i, j])
                one = process.add_noise(x_0[i, j], eps[i, j], time, None if y is None else y[i, j])
                assert torch.allclose(x_t[i, j], one, rtol=1e-5, atol=1e-5 * process.at(1.0)[2])


def test_times_that_do_not_fit_are_refused():
    with pytest.raises(FokkerError, match=r"times of shape \(3,\) do not fit a state of shape \(2, 5\)"):
        VP().add_noise(torch.ones(2, 5), torch.ones(2, 5), torch.full((3,), 0.5))


@every
def test_anchored_is_shifted_plain(name):
    process = PROCESSES[name]
    x_0, eps = fk.noise((3, 5), dtype=F64), fk.noise((3, 5), seed=1, dtype=F64)
    if not process.anchored:
        assert (process.beta(INNER) == 0).all()
        return
    y = anchor(process, x_0)
    plain = Interpolant(process.alpha, lambda t: torch.where(process.alpha(t) > 0, process.sigma(t), 1.0))
    for t in (0.03, 0.4, 0.95):
        assert torch.allclose(process.add_noise(x_0, eps, t, y) - process.beta(t) * y, plain.add_noise(x_0, eps, t))
        assert torch.allclose(process.logsnr(t), plain.logsnr(t))
    with pytest.raises(FokkerError, match="give it as y="):
        process.add_noise(x_0, eps, 0.5)


@every
def test_start_is_the_noise_end(name):
    process = PROCESSES[name]
    eps = fk.noise((3, 5), dtype=F64)
    y = anchor(process, eps)
    x = process.start(eps, y)
    _, beta, sigma = process.at(1.0)
    assert torch.allclose(x - (beta * y if process.anchored else 0), sigma * eps)
    if isinstance(process, BrownianBridge):
        assert process.sigma(1.0) == 0 and torch.allclose(x, y + eps)


# --- PFGM++ --------------------------------------------------------------------------------------------------------------


def test_the_kernel_of_pfgmpp_is_student():
    """E|z|^2 = N D / (D - 2), its spread that of an F distribution; independent over samples, streams and indices."""
    D, n, dim = 16.0, 40_000, 3
    z = PFGMPP(D=D).sample_noise((n, dim), seed=1, dtype=F64)
    r = z.square().sum(1) / dim
    mean = D / (D - 2)
    variance = 2 * D**2 * (dim + D - 2) / (dim * (D - 2) ** 2 * (D - 4))
    assert abs(r.mean() - mean) < 5 * math.sqrt(variance / n)
    radius = (z / fk.noise((n, dim), seed=1, dtype=F64))[:, 0].abs()
    assert torch.allclose(PFGMPP(D=1e7).sample_noise((9, 2), dtype=F64), fk.noise((9, 2), dtype=F64), rtol=5e-3)
    for options in ({"index": 1}, {"stream": "train"}, {"seed": 2}):
        other = {"seed": 1, **options}
        z = PFGMPP(D=D).sample_noise((n, dim), **other, dtype=F64)
        again = (z / fk.noise((n, dim), **other, dtype=F64))[:, 0].abs()
        assert abs(torch.corrcoef(torch.stack([radius, again]))[0, 1]) < 5 / math.sqrt(n)
    # nor may the radius follow the normal that it multiplies
    normal = fk.noise((n, dim), seed=1, dtype=F64)
    for power in (1, 2):
        for k in range(dim):
            assert abs(torch.corrcoef(torch.stack([radius, normal[:, k].abs() ** power]))[0, 1]) < 5 / math.sqrt(n)


def test_the_kernel_of_pfgmpp_belongs_to_a_sample():
    whole = PFGMPP(D=8.0).sample_noise((32, 3), seed=1)
    assert torch.equal(PFGMPP(D=8.0).sample_noise((1, 3), seed=1, ids=[17])[0], whole[17])
