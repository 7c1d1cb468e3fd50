"""The probability-flow map against other integrators, closed forms and the densities themselves."""

import math

import pytest
import torch
from mixtures import PLAIN, close, dense, low_rank, normal
from torch import Tensor

from fokker.anchored import BrownianBridge, MeanReverting
from fokker.electric import PFGMPP
from fokker.errors import FokkerError
from fokker.keyed import noise
from fokker.laws import Empirical, GaussianMixture
from fokker.process import EDM, VE, VP, Cosine, Flow, Process


def refined(law: GaussianMixture, process: Process, x: Tensor, t: float, s: float, steps: int) -> tuple[Tensor, Tensor]:
    """dx/dt in the process's own time by classical Runge-Kutta on `steps`, twice and four times as many: the answer
    extrapolated (Richardson) and its change by the last refinement. Shares nothing with the flow but the belief."""

    def run(n: int) -> Tensor:
        # t = u^2, so that steps shrink towards the data
        u = torch.linspace(math.sqrt(t), math.sqrt(s), 2 * n + 1, dtype=torch.float64)
        alpha, sigma = process.alpha(u**2), process.sigma(u**2)
        rates = [
            torch.func.jvp(lambda v, f=f: f(v**2), (u,), (torch.ones_like(u),))[1]
            for f in (process.alpha, process.sigma)
        ]
        table = torch.stack([u**2, alpha, sigma, *rates], 1).tolist()
        denoiser, z, h = law.denoiser(process), x, float(u[2] - u[0])

        def velocity(state: Tensor, i: int) -> Tensor:
            time, a, b, d_a, d_b = table[i]
            belief = denoiser(state, time)
            return d_a * belief + d_b * (state - a * belief) / b

        for i in range(0, 2 * n, 2):
            k1 = velocity(z, i)
            k2 = velocity(z + h / 2 * k1, i + 1)
            k3 = velocity(z + h / 2 * k2, i + 1)
            k4 = velocity(z + h * k3, i + 2)
            z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return z

    first, second, third = (run(k * steps) for k in (1, 2, 4))
    one, two = second + (second - first) / 15, third + (third - second) / 15
    return two + (two - one) / 31, (two - one).norm(dim=1)


@pytest.mark.parametrize(("process", "t", "s"), [(VP(), 0.9, 0.05), (Flow(), 0.95, 0.1)], ids=["VP", "Flow"])
def test_flow_agrees_with_another_integrator(process: Process, t: float, s: float):
    law = low_rank()
    x = process.add_noise(law.sample(16), normal(16, 9, seed=2), t)
    ours = law.flow(process, x, t, s)
    theirs, change = refined(law, process, x, t, s, 100)
    assert bool(((ours - theirs).norm(dim=1) <= 1e-8 * ours.norm(dim=1) + change / 31).all())
    assert float((change / ours.norm(dim=1)).median()) < 31e-8


def test_flow_of_one_gaussian_is_a_change_of_scale():
    """x_s = alpha_s m + V_s^(1/2) V_t^(-1/2) (x_t - alpha_t m), V = alpha^2 C + sigma^2 I, the ends included."""
    c = torch.tensor([[1.0, 0.6], [0.6, 0.7]], dtype=torch.float64)
    m = torch.tensor([0.5, -2.0], dtype=torch.float64)
    law, x = GaussianMixture([1.0], m[None], c), normal(10, 2)
    values, basis = torch.linalg.eigh(c)
    for process in PLAIN:
        for t, s in ((1.0, 0.0), (0.0, 1.0), (0.9, 0.2), (0.4, 0.4)):
            (a_t, _, s_t), (a_s, _, s_s) = process.at(t), process.at(s)
            scale = torch.sqrt((a_s**2 * values + s_s**2) / (a_t**2 * values + s_t**2))
            z = a_t * m + x * max(a_t, s_t)
            expected = a_s * m + ((z - a_t * m) @ basis * scale) @ basis.T
            close(law.flow(process, z, t, s), expected, 1e-10)


def test_flow_composes_inverts_and_is_one_for_all_processes():
    law = low_rank()
    x = normal(24, 9)
    there = law.flow(VP(), x, 1.0, 1e-3)
    # two parts make the whole; and back again (through the modes' boundaries, errors grow: the map's stretch is allowed)
    close(law.flow(VP(), law.flow(VP(), x, 1.0, 0.4), 0.4, 1e-3), there, 1e-8)
    close(law.flow(VP(), there, 1e-3, 1.0), x, 1e-8)
    # the same curve under a change of scale and clock
    for process in (EDM(), VE(), Flow(), Cosine()):
        t, s = (float(process.time(VP().logsnr(u))) for u in (0.6, 0.05))
        scale = [math.hypot(*process.at(b)[::2]) / math.hypot(*VP().at(a)[::2]) for a, b in ((0.6, t), (0.05, s))]
        z = law.flow(VP(), x, 0.6, 0.05)
        close(law.flow(process, x * scale[0], t, s), z * scale[1], 1e-9)
    # the noiseless end is the limit of ends with little noise
    close(law.flow(VP(), x, 1.0, 0.0), law.flow(VP(), x, 1.0, 1e-9), 1e-6)
    # each sample its own times
    t = torch.linspace(0.1, 1.0, 24, dtype=torch.float64)
    s = torch.linspace(0.9, 0.0, 24, dtype=torch.float64)
    each = law.flow(VP(), x, t, s)
    for i in (0, 11, 23):
        close(each[i], law.flow(VP(), x[i : i + 1], float(t[i]), float(s[i]))[0], 1e-10)
    assert law.flow(VP(), x.float(), 1.0, 0.0).dtype == torch.float32


def test_flow_of_an_anchored_process_is_the_plain_one_shifted():
    law, process = dense(3), MeanReverting()
    x, y = normal(6, 3), normal(6, 3, seed=1)
    moved = law.flow(process, x + process.at(0.9)[1] * y, 0.9, 0.1, y=y)
    plain, change = refined(law, _Plain(), x, 0.9, 0.1, 100)
    close(moved - process.at(0.1)[1] * y, plain, 1e-8 + float(change.max()))
    bridge = BrownianBridge()
    z = law.flow(bridge, bridge.start(normal(6, 3), y), 1.0, 0.0, y=y)
    close(z, law.flow(Flow(), normal(6, 3), 1.0, 0.0), 1e-9)
    with pytest.raises(FokkerError, match="anchored"):
        law.flow(process, x, 0.9, 0.1)


class _Plain(Process):
    """MeanReverting without its anchor."""

    def _alpha(self, t: Tensor) -> Tensor:
        return MeanReverting()._alpha(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return MeanReverting()._sigma(t)


def test_density_through_the_flow_is_the_density():
    law = dense(3, labels=True)
    x = law.sample(10)
    close(law.flow_log_prob(VP(), x), law.log_prob(x), 1e-9)
    close(law.flow_log_prob(EDM(), x, 0.0, 0.3, label=1), law.log_prob(x, 1), 1e-9)
    x_t = VP().add_noise(x, normal(10, 3), 0.3)
    close(law.flow_log_prob(VP(), x_t, 0.3, 0.05), law.log_prob_t(x_t, 0.3, VP()), 1e-9)
    with pytest.raises(FokkerError, match="PFGMPP"):
        law.flow_log_prob(PFGMPP(), x)


def test_flow_carries_the_noise_to_the_law():
    """The end points of unit noise have the law's moments, and with a label those of the class."""
    law = dense(2, 4, labels=True)
    x = noise((1500, 2), seed=5, dtype=torch.float64)
    for target, end in ((law, law.flow(Cosine(), x, 1.0, 0.0)), (law.conditional(1), law.flow(Flow(), x, 1.0, 0.0, 1))):
        assert bool(((end.mean(0) - target.mean()).abs() <= 5 * end.std(0) / math.sqrt(1500)).all())
        products = (end - target.mean())[:, :, None] * (end - target.mean())[:, None]
        assert bool(((products.mean(0) - target.cov()).abs() <= 5 * products.std(0) / math.sqrt(1500)).all())


def test_flow_of_students_kernel():
    """PFGM++ has the same equation with its own belief."""
    data, process = Empirical(normal(20, 3)), PFGMPP(D=16.0, sigma_max=5.0)
    x = 2 * normal(8, 3, seed=3)
    theirs, change = refined(data, process, x, 0.8, 0.02, 100)
    close(data.flow(process, x, 0.8, 0.02), theirs, 1e-8 + float(change.max()))
    assert float((data.flow(EDM(sigma_max=5.0), x, 0.8, 0.02) - theirs).abs().max()) > 1e-2
    law, process = dense(2), PFGMPP(D=128.0, sigma_max=40.0)
    start = process.start(process.sample_noise((100, 2), seed=1, dtype=torch.float64))
    end = law.flow(process, start, 1.0, 0.0, tol=1e-7)
    # at sigma = 40 the start forgets the data up to |x_0| / 40, which biases the mean by at most that share of its spread
    slack = 5 * end.std(0) / math.sqrt(100) + end.std(0) / 40
    assert bool(((end.mean(0) - law.mean()).abs() <= slack).all())
