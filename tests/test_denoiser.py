"""A denoiser answers E[x_0 | x_t], whatever its network predicts, on whatever process, however it is wrapped."""

import math

import pytest
import torch
from laws_for_tests import F64, LAW, PROCESSES, SHAPED, anchor, cond, start
from torch import Tensor, nn

import fokker as fk
from fokker.denoiser import Deanchored, NetworkDenoiser, OnProcess, Run, Wrapper
from fokker.errors import FokkerError
from fokker.probing import Probe, probe
from fokker.process import PREDICTIONS, Process

MEAN, VARIANCE = 0.3, 0.6
GAUSS = fk.laws.GaussianMixture([1.0], torch.full((1, 2, 4, 6), MEAN), VARIANCE)
every = pytest.mark.parametrize("name", PROCESSES)
PLAIN = [name for name, process in PROCESSES.items() if not process.anchored and name != "pfgm-pp"]


class Exact(nn.Module):
    """The network that EDM preconditioning with sigma_data = 1 asks for on GAUSS: it knows the noise level and no process."""

    conditions = ("label",)

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(MEAN))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        assert c_noise.shape == x.shape[:1] and c_noise.dtype == torch.float32
        rho = torch.exp(4 * c_noise).to(x.dtype)[:, None, None, None]
        cos, sin = 1 / torch.sqrt(1 + rho**2), rho / torch.sqrt(1 + rho**2)
        belief = self.mean + cos * VARIANCE / (cos**2 * VARIANCE + sin**2) * (x - cos * self.mean)
        return (belief - cos * x) / sin


class Predicts(nn.Module):
    """The raw prediction of any type on a law, on a given process, told the time itself."""

    def __init__(self, process: Process, prediction: str, law: fk.laws.Law = GAUSS) -> None:
        super().__init__()
        self.process, self.prediction, self.law = process, prediction, law
        self.dummy = nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, x_t: Tensor, t: Tensor | float, y: Tensor | None = None) -> Tensor:
        belief = self.law.denoiser(self.process)(x_t, t, **({} if y is None else {"y": y}))
        plain = x_t if y is None else x_t - self.process.coefficients(t, x_t)[1] * y
        return self.process.from_x0(self.prediction, belief, plain, t)


def state(process: Process, t: float | Tensor, dtype: torch.dtype = F64) -> tuple[Tensor, dict[str, Tensor]]:
    x_0, eps = GAUSS.sample(4, seed=1), fk.noise((4, 2, 4, 6), seed=2, dtype=F64)
    return process.add_noise(x_0, eps, t, anchor(process, x_0)).to(dtype), {
        k: v.to(dtype) for k, v in cond(process, x_0).items()
    }


# --- networks ------------------------------------------------------------------------------------------------------------


@every
def test_one_preconditioned_network_serves_every_process(name):
    process = PROCESSES[name]
    denoiser = NetworkDenoiser(Exact().double(), process)
    truth = GAUSS.denoiser(process if name != "pfgm-pp" else fk.EDM())
    for t in (0.05, 0.3, 0.9, torch.tensor([0.1, 0.4, 0.6, 0.95])):
        x_t, given = state(process, t)
        # c_noise is float32
        assert torch.allclose(denoiser(x_t, t, **given), truth(x_t, t, **given), atol=3e-6)


@every
@pytest.mark.parametrize("prediction", [p for p in PREDICTIONS if p != "edm"])
def test_every_prediction_is_the_same_belief(name, prediction):
    process = PROCESSES[name]
    net = Predicts(process if name != "pfgm-pp" else fk.EDM(), prediction)
    times = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=F64)
    for t in (0.2, 0.8, times):
        # the clock of this network is time itself, in float32
        t = t.float().double() if isinstance(t, Tensor) else torch.tensor(t).float().double().item()
        denoiser = NetworkDenoiser(net, process, prediction, clock=lambda t: t)
        x_t, given = state(process, t)
        truth = GAUSS.denoiser(net.process)(x_t, t, **given)
        assert torch.allclose(denoiser(x_t, t, **given), truth, atol=1e-8 * max(1.0, 1 / process.alpha(0.9).item()))


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_networks_are_finite_at_both_ends_in_any_precision(name, dtype):
    process = PROCESSES[name]
    denoiser = NetworkDenoiser(nn.Conv2d(2, 2, 3, padding=1).to(dtype), process)
    denoiser.net.forward = lambda x, c, y=None, net=denoiser.net: (
        nn.Conv2d.forward(net, x) + 0 * c.to(x)[:, None, None, None]
    )
    for t in (0.0, process.end, 1.0, torch.tensor([0.0, 0.5, 1.0, 1.0])):
        x_t, given = state(process, t, dtype)
        out = denoiser(x_t, t, **given)
        assert out.dtype == dtype and out.shape == x_t.shape and bool(torch.isfinite(out).all())


def test_a_network_keeps_its_own_precision_and_the_noise_level_keeps_float32():
    seen = []

    class Net(nn.Linear):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            seen.append((x.dtype, c.dtype, tuple(c.shape)))
            return super().forward(x)

    denoiser = NetworkDenoiser(Net(5, 5).bfloat16(), fk.VP())
    for t in (0.5, torch.tensor(0.5), torch.tensor([0.5]), torch.full((3,), 0.5)):
        assert denoiser(fk.noise((3, 5)), t).dtype == torch.float32
    assert set(seen) == {(torch.bfloat16, torch.float32, (3,))}
    assert denoiser(fk.noise((3, 5), dtype=torch.bfloat16), torch.tensor(0.5)).dtype == torch.bfloat16
    assert seen[-1] == (torch.bfloat16, torch.float32, (3,))
    denoiser(fk.noise((3, 4, 5)), torch.full((3, 4), 0.5))
    assert seen[-1] == (torch.bfloat16, torch.float32, (3, 4))


def test_noise_level_is_a_quarter_of_its_logarithm_within_bounds():
    x = torch.ones(1, 2)
    for process in PROCESSES.values():
        denoiser = NetworkDenoiser(nn.Linear(2, 2), process)
        for t in (process.end, 0.2, 0.5, 0.9, 1.0):
            alpha, _, sigma = process.at(t)
            expected = 5.0 if alpha == 0 else min(5.0, max(-5.0, math.log(sigma / alpha) / 4))
            assert denoiser.c_noise(t, x).item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert denoiser.c_noise(0.0, x).item() >= -5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: NetworkDenoiser(nn.Identity(), fk.VP(), "epsilon"),
            "unknown prediction 'epsilon'; did you mean 'eps'",
        ),
        (lambda: NetworkDenoiser(nn.Identity(), fk.VP(), sigma_data=0.0), "sigma_data=0.0"),
        (lambda: fk.as_denoiser(lambda x, t: x, fk.VP(), "edm"), "unknown prediction 'edm'"),
        (lambda: fk.as_denoiser(LAW.denoiser(fk.VP()), fk.EDM()), "use OnProcess"),
        (lambda: OnProcess(LAW.denoiser(fk.BrownianBridge()), fk.VP()), "two plain processes"),
        (lambda: probe(lambda x, t: x, fk.VP(), torch.ones(2, 2), "epz"), "did you mean 'eps'"),
        (lambda: LAW.denoiser(fk.VP()).null(prompt=["a cat"]), "'prompt' is a list"),
        (lambda: LAW.denoiser(fk.VP())(torch.ones(2, 2), 0.5, labl=torch.zeros(2)), "did you mean 'label'"),
    ],
)
def test_what_is_no_denoiser_is_refused(make, message):
    with pytest.raises(FokkerError, match=message):
        make()


# --- the probe -----------------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "flow", "score"])
def test_the_probe_finds_a_wrongly_declared_prediction(name, prediction):
    process = PROCESSES[name] if name != "pfgm-pp" else fk.EDM(sigma_max=50.0)
    for law in (GAUSS, SHAPED):
        net, data = Predicts(process, prediction, law), law.sample(64, seed=3)
        found = probe(net, process, data, prediction, **cond(process, data))
        assert found.agrees and found.best == prediction
        # what little a true type is off by is chance: three regressors on the numbers of the data
        assert found.misfit[prediction] < 5 * 3 / data.numel()
        for wrong in {"x0", "eps", "v", "flow", "score"} - {prediction}:
            assert not Probe(found.misfit, wrong).agrees, wrong


def test_the_probe_holds_for_a_network_that_is_not_perfect():
    process, data = fk.VP(), SHAPED.sample(64, seed=3)
    net = Predicts(process, "v", SHAPED)
    rough = lambda x, t: 0.95 * net(x, t) + 0.05 * fk.noise(tuple(x.shape), seed=7, dtype=F64)  # noqa: E731
    assert probe(rough, process, data, "v").agrees and not probe(rough, process, data, "eps").agrees


# --- what is derived -----------------------------------------------------------------------------------------------------


@every
def test_predict_gives_every_form_of_the_belief(name):
    process = PROCESSES[name]
    denoiser = LAW.denoiser(process)
    t = 0.4
    x_t, given = process.add_noise(LAW.sample(4), fk.noise((4, 2), dtype=F64), t, anchor(process, LAW.sample(4))), None
    given = cond(process, x_t)
    if name != "pfgm-pp":
        score = denoiser.predict("score", x_t, t, **given)
        assert torch.allclose(score, LAW.score(x_t, t, process, y=given.get("y")), rtol=1e-8, atol=1e-8)
    eps = denoiser.predict("eps", x_t, t, **given)
    alpha, beta, sigma = process.at(t)
    assert torch.allclose(alpha * denoiser(x_t, t, **given) + beta * given.get("y", 0) + sigma * eps, x_t)


@pytest.mark.parametrize("prediction", [p for p in PREDICTIONS if p != "edm"])
def test_a_function_of_any_prediction_is_a_denoiser(prediction):
    for process in (fk.VP(), fk.ResidualShift()):
        net = Predicts(process, prediction)
        denoiser = fk.as_denoiser(lambda x, t, y=None, net=net: net(x, t, y), process, prediction)
        x_t, given = state(process, 0.6)
        assert torch.allclose(denoiser(x_t, 0.6, **given), GAUSS.denoiser(process)(x_t, 0.6, **given), atol=1e-9)
        assert fk.as_denoiser(denoiser, process) is denoiser


@pytest.mark.parametrize("inner", PLAIN)
@pytest.mark.parametrize("outer", PLAIN)
def test_a_denoiser_of_one_process_works_on_another(inner, outer):
    """D'(x, t') = D at equal log-SNR, exactly, where both processes have it."""
    a, b = PROCESSES[inner], PROCESSES[outer]
    moved = OnProcess(LAW.denoiser(a), b)
    low = max(a.logsnr(1.0).item(), b.logsnr(1.0).item(), -8.0) + 0.1
    high = min(a.logsnr(0.0).item(), b.logsnr(0.0).item(), 8.0) - 0.1
    times = b.time(torch.linspace(low, high, 4, dtype=F64))
    x = b.add_noise(LAW.sample(4), fk.noise((4, 2), dtype=F64), times)
    truth = LAW.denoiser(b)(x, times)
    assert torch.allclose(moved(x, times), truth, atol=1e-8)
    for k in range(4):
        assert torch.allclose(moved(x, times[k].item())[k], truth[k], atol=1e-8)
    assert moved.process is b


def test_on_process_runs_give_the_same_samples():
    plain = fk.sample(LAW.denoiser(fk.Flow()), start(fk.Flow()), solver="dpmpp-2m", steps=9, start=0.95)
    moved = OnProcess(LAW.denoiser(fk.VP(beta_max=40.0)), fk.Flow())
    assert torch.allclose(fk.sample(moved, start(fk.Flow()), solver="dpmpp-2m", steps=9, start=0.95), plain, atol=1e-9)


@pytest.mark.parametrize("name", [n for n, p in PROCESSES.items() if p.anchored])
def test_deanchored_is_the_plain_view(name):
    process = PROCESSES[name]
    x_t, given = state(process, 0.6)
    plain = Deanchored(GAUSS.denoiser(process), given["y"])
    shifted = x_t - process.beta(0.6) * given["y"]
    assert torch.allclose(plain(shifted, 0.6), GAUSS.denoiser(process)(x_t, 0.6, **given), atol=1e-12)


# --- conditions ----------------------------------------------------------------------------------------------------------


def test_null_means_none():
    denoiser = LAW.denoiser(fk.VP())
    labels = torch.tensor([0, 1, 0])
    none = denoiser.null(label=labels, image=torch.ones(3, 2), mask=torch.ones(3, dtype=torch.bool))
    assert none["label"].tolist() == [-1] * 3 and not none["image"].any() and not none["mask"].any()
    x = fk.noise((3, 2), dtype=F64)
    assert torch.equal(denoiser(x, 0.5, label=none["label"]), denoiser(x, 0.5))
    assert not torch.equal(denoiser(x, 0.5, label=labels), denoiser(x, 0.5))


def test_the_anchor_has_no_null():
    y = torch.ones(2, 2)
    assert LAW.denoiser(fk.BrownianBridge()).null(y=y)["y"] is y


def test_a_network_may_say_what_its_nulls_are():
    net = Exact()
    net.null_conditions = lambda **c: {k: v + 7 for k, v in c.items()}
    denoiser = NetworkDenoiser(net, fk.VP())
    assert Wrapper(denoiser).null(label=torch.tensor([1]))["label"].item() == 8


def test_conditions_are_found_where_they_are_stated():
    process = fk.VP()

    class Net(nn.Module):
        def forward(self, x: Tensor, c: Tensor, text: Tensor | None = None) -> Tensor:
            return x

    assert NetworkDenoiser(Exact(), process).conditions == ("label",)
    assert NetworkDenoiser(Net(), process).conditions == ("text",)
    assert Wrapper(NetworkDenoiser(Net(), process)).conditions == ("text",)
    assert fk.as_denoiser(lambda x, t, style=None: x, process).conditions == ("style",)
    assert fk.as_denoiser(lambda x, t, **c: x, process).conditions is None


# --- counting and binding ------------------------------------------------------------------------------------------------


class Twice(Wrapper):
    """Asks its inner denoiser, one aside and a list of others; remembers how often it was asked in this run."""

    def __init__(self, inner: fk.Denoiser, aside: fk.Denoiser, others: list[fk.Denoiser]) -> None:
        super().__init__(inner)
        self.aside, self.others = aside, nn.ModuleList(others)

    def reset(self, run: Run) -> None:
        self.calls = 0

    def x0(self, x_t: Tensor, t: float, **cond: Tensor) -> Tensor:
        if self.run is not None:
            self.calls += 1
        beliefs = [d(x_t, t, **cond) for d in (self.inner, self.aside, *self.others)]
        return sum(beliefs) / len(beliefs)


def test_evaluations_are_counted_through_every_wrapper():
    process = fk.VP()
    leaf = LAW.denoiser(process)
    nested = Twice(Twice(leaf, leaf, []), leaf, [leaf, Twice(leaf, leaf, [leaf])])
    run = Run(batch=3)
    bound = nested.bind(run)
    bound(fk.noise((3, 2), dtype=F64), 0.5)
    assert run.nfe == 2 + 1 + 1 + 3
    # several copies of the batch in one call are as many evaluations
    leaf.bind(run)(fk.noise((6, 2), dtype=F64), 0.5)
    assert run.nfe == 9
    trace = fk.run(nested, start(process), solver="ddim", steps=5)
    assert trace.nfe == 7 * 5
    assert leaf.run is None and nested.run is None


def test_runs_do_not_see_each_other():
    process = fk.VP()
    wrapper = Twice(LAW.denoiser(process), LAW.denoiser(process), [])
    one, two = (wrapper.bind(Run(batch=2, seed=k)) for k in range(2))
    x = fk.noise((2, 2), dtype=F64)
    for _ in range(3):
        one(x, 0.5)
    two(x, 0.5)
    assert (one.calls, two.calls) == (3, 1) and not hasattr(wrapper, "calls")
    assert (one.run.evaluations, two.run.evaluations) == (12, 4)
    assert one.inner.run is one.run and one.aside.run is one.run and two.inner.run is two.run


def test_binding_shares_the_parameters():
    net = NetworkDenoiser(Exact(), fk.VP())
    bound = net.bind(Run(batch=1))
    assert bound.net is net.net and next(bound.parameters()) is next(net.parameters())
    assert list(bound.state_dict()) == list(net.state_dict())


def test_shape_and_dtype_are_those_of_the_state():
    for dtype in (F64, torch.float32, torch.bfloat16):
        x = fk.noise((2, 2, 4, 6), dtype=dtype)
        for denoiser in (SHAPED.denoiser(fk.VP()), OnProcess(SHAPED.denoiser(fk.EDM()), fk.VP())):
            for t in (0.5, torch.tensor([0.3, 0.8])):
                assert denoiser(x, t).dtype == dtype and denoiser(x, t).shape == x.shape
