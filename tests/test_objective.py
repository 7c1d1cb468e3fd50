"""The loss: one definition on the x_0 error, whatever the network predicts; draws that belong to a sample."""

import math

import pytest
import torch
from torch import Tensor, nn

from fokker.denoiser import NetworkDenoiser
from fokker.errors import FokkerError
from fokker.process import EDM, VP, Cosine, Flow, Process
from fokker.train.objective import TIMES, WEIGHTS, Denoising, Key, weight

B, D, SD = 64, 6, 0.7


def key(seed: int = 3, first: int = 1000, batch: int = B) -> Key:
    return Key(seed, first, batch, torch.arange(batch))


def data(n: int = B) -> dict[str, Tensor]:
    x = torch.randn(n, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return {"x": SD * x, "label": torch.arange(n) % 7}


class Belief(nn.Module):
    """A small network that predicts x_0; the other parametrisations of it are derived below."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(D, 16), nn.Tanh(), nn.Linear(16, D)).double()

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class Told(nn.Module):
    """The same belief, told as another prediction, at the time that the denoiser is asked for."""

    def __init__(self, belief: Belief, process: Process, prediction: str) -> None:
        super().__init__()
        self.belief, self.process, self.prediction = belief, process, prediction
        self.asked: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        assert self.asked is not None
        x_t, t = self.asked
        x_0 = self.belief(x_t, c)
        if self.prediction != "edm":
            return self.process.from_x0(self.prediction, x_0, x_t, t)
        alpha, sigma = self.process.alpha(t)[:, None], self.process.sigma(t)[:, None]
        s = torch.sqrt(alpha**2 * SD**2 + sigma**2)
        return (x_0 - alpha * SD**2 / s**2 * x_t) * s / (sigma * SD)


class Asking(NetworkDenoiser):
    def x0(self, x_t: Tensor, t: object, **cond: object) -> Tensor:
        self.net.asked = (x_t, t)  # type: ignore[assignment]
        return super().x0(x_t, t, **cond)  # type: ignore[arg-type]


@pytest.mark.parametrize("process", [VP(), EDM(), Cosine(), Flow()], ids=lambda p: p.name)
@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_every_parametrisation_of_one_net_has_the_same_gradient(process: Process, name: str) -> None:
    # the cosine process has no signal at t = 1, where eps and v say nothing of x_0: stay off the very end
    objective = Denoising(weight=name, times="lognormal", std=0.8)
    gradients = {}
    for prediction in ("x0", "eps", "v", "flow", "score", "edm"):
        belief = Belief()
        denoiser = Asking(Told(belief, process, prediction), process, prediction, SD)
        objective.loss(denoiser, objective.draw(denoiser, data(), key())).mean().backward()
        gradients[prediction] = torch.cat([p.grad.flatten() for p in belief.parameters()])
    scale = gradients["x0"].norm()
    for prediction, gradient in gradients.items():
        # float64 conversions amplify rounding by at most the largest 1/alpha^2 or snr, below 1e6 here
        assert (gradient - gradients["x0"]).norm() / scale < 1e-9, prediction


@pytest.mark.parametrize(
    ("name", "prediction", "process"),
    [("eps", "eps", VP()), ("eps", "eps", EDM()), ("v", "v", VP()), ("v", "v", Cosine()), ("flow", "flow", Flow())],
)
def test_named_weights_are_the_losses_they_are_named_after(name: str, prediction: str, process: Process) -> None:
    belief = Belief()
    objective = Denoising(weight=name, times="lognormal")
    denoiser = Asking(Told(belief, process, prediction), process, prediction, SD)
    drawn = objective.draw(denoiser, data(), key())
    drawn["weight"] = drawn["weight"].double()
    loss = objective.loss(denoiser, drawn)
    x_t = process.add_noise(drawn["x"], drawn["eps"], drawn["t"])
    out = denoiser.predict(prediction, x_t, drawn["t"])
    target = process.from_x0(prediction, drawn["x"], x_t, drawn["t"])
    direct = (out - target).square().mean(1)
    assert ((loss - direct).abs() / direct).max() < 1e-5  # the weight is float32


def test_edm_weight_is_uniform_on_what_the_network_outputs() -> None:
    process = EDM()
    objective, denoiser = Denoising(weight="edm"), Asking(Told(Belief(), process, "edm"), process, "edm", SD)
    drawn = objective.draw(denoiser, data(), key())
    sigma = process.sigma(drawn["t"])
    c_out_squared = (sigma * SD) ** 2 / (sigma**2 + SD**2)
    assert torch.allclose(drawn["weight"].double() * c_out_squared, torch.ones(B).double(), atol=1e-5)


def test_weights_agree_where_theory_says_so() -> None:
    logsnr = torch.linspace(-30, 30, 601, dtype=torch.float64)
    snr = logsnr.exp()
    assert torch.equal(weight("min-snr", logsnr, parameter=1.0), torch.minimum(snr, torch.ones_like(snr)))
    smooth = weight("sigmoid", logsnr, parameter=1.5)
    assert torch.allclose(smooth, snr * torch.sigmoid(1.5 - logsnr), rtol=1e-12)
    # both forms of a capped weight: eps at low SNR, constant at high SNR
    assert torch.allclose(smooth[:100], snr[:100], rtol=1e-6)
    assert torch.allclose(smooth[-100:], torch.full((100,), math.exp(1.5), dtype=torch.float64), rtol=1e-6)
    assert torch.allclose(weight("v", logsnr), weight("eps", logsnr) + weight("x0", logsnr))
    assert torch.allclose(weight("edm", logsnr, 1.0), weight("v", logsnr))  # unit variance: F is v
    for name in WEIGHTS:
        assert torch.isfinite(weight(name, torch.tensor([-math.inf, 40.0]))).all(), name


def quantile(name: str, process: Process, t: Tensor) -> Tensor:
    """The distribution function of each distribution of times, from its definition."""
    normal = torch.distributions.Normal(0.0, 1.0)
    noise_to_signal = torch.log(process.sigma(t) / process.alpha(t))
    if name == "lognormal":
        return normal.cdf((noise_to_signal + 1.2) / 1.2)
    if name == "uniform":
        return (t - process.end) / (1 - process.end)
    if name == "logit-normal":
        return normal.cdf(torch.logit(t))
    if name == "cosine":
        return torch.atan(torch.exp(noise_to_signal)) * 2 / math.pi
    low, high = process.logsnr(torch.tensor([1.0, process.end])).clamp(-20, 20)
    return (high - process.logsnr(t)) / (high - low)


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: p.name)
def test_times_have_their_distribution(name: str, process: Process) -> None:
    objective = Denoising(times=name)
    u = (torch.arange(999, dtype=torch.float64) + 0.5) / 999
    t = objective.time(process, u)
    inside = (t > process.end) & (t < 1)
    # the clamped share is what the distribution puts outside the process's range
    assert inside.double().mean() > 0.9
    assert (quantile(name, process, t)[inside] - u[inside]).abs().max() < 1e-6
    assert (t.diff() >= 0).all()
    shifted = Denoising(times=name, resolution=2.0).time(process, u)
    both = inside & (shifted < 1) & (shifted > process.end)
    moved = process.logsnr(t)[both] - process.logsnr(shifted)[both]
    assert (moved - 2 * math.log(2)).abs().max() < 1e-6


def test_stratified_times_fill_every_part_once_and_cover_the_interval_in_the_long_run() -> None:
    process = VP()
    denoiser = NetworkDenoiser(Belief(), process, "x0")
    objective = Denoising(times="uniform", weight="x0")
    pooled = []
    for first in range(0, 40 * B, B):
        t = objective.draw(denoiser, data(), key(first=first))["t"]
        u = (t - process.end) / (1 - process.end)
        assert (u * B).floor().long().unique().numel() >= B - 1
        gaps = u.sort().values.diff()
        assert (gaps - 1 / B).abs().max() < 1e-9
        pooled.append(float(u.min()) * B)
    # the common offset is uniform: its mean over 40 batches is 1/2 within 5 standard errors
    assert abs(sum(pooled) / 40 - 0.5) < 5 * math.sqrt(1 / 12 / 40)
    loose = Denoising(times="uniform", weight="x0", stratified=False).draw(denoiser, data(), key())["t"]
    assert (loose.sort().values.diff() - 1 / B).abs().max() > 1e-3


def test_a_sample_has_its_own_draws_whatever_the_split() -> None:
    denoiser = NetworkDenoiser(Belief(), VP(), "x0")
    for stratified in (True, False):
        objective = Denoising(drop=0.3, stratified=stratified)
        batch = data()
        whole = objective.draw(denoiser, batch, key())
        for rows in (torch.arange(0, B // 2), torch.arange(B // 2, B), torch.tensor([17, 3])):
            part = {k: v[rows] for k, v in batch.items()}
            drawn = objective.draw(denoiser, part, Key(3, 1000, B, rows))
            for name, value in drawn.items():
                assert torch.equal(value, whole[name][rows]), name
    if_other = objective.draw(denoiser, data(), key(seed=4))
    assert not torch.equal(if_other["eps"], whole["eps"])
    far = objective.draw(denoiser, data(), key(first=1000 + 2**32))
    assert not torch.equal(far["eps"], whole["eps"])  # streams longer than 32 bits do not repeat


def test_noise_is_unit_normal_and_independent_of_the_time() -> None:
    denoiser = NetworkDenoiser(Belief(), VP(), "x0")
    n = 8192
    drawn = Denoising(stratified=False).draw(denoiser, data(n), key(batch=n))
    eps = drawn["eps"]
    error = 5 / math.sqrt(eps.numel())
    assert abs(eps.mean()) < error
    assert abs(eps.square().mean() - 1) < error * math.sqrt(2)
    t = (drawn["t"] - drawn["t"].mean()) / drawn["t"].std()
    assert (t[:, None] * eps).mean().abs() < error


def test_conditions_are_dropped_together_at_the_given_share() -> None:
    denoiser = NetworkDenoiser(Belief(), VP(), "x0")
    n, share = 4096, 0.2
    batch = data(n) | {"factors": torch.ones(n, 3), "y": torch.ones(n, D)}
    drawn = Denoising(drop=share).draw(denoiser, batch, key(batch=n))
    lost = drawn["label"] == -1
    assert abs(lost.double().mean() - share) < 5 * math.sqrt(share * (1 - share) / n)
    assert torch.equal(lost, (drawn["factors"] == 0).all(1))
    assert torch.equal(drawn["label"][~lost], batch["label"][~lost])
    assert torch.equal(drawn["y"], batch["y"])  # the anchor belongs to the process


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weight": "min_snr"}, "did you mean 'min-snr'"),
        ({"times": "lognorm"}, "did you mean 'lognormal'"),
        ({"gamma": 5.0}, "no effect without weight=min-snr"),
        ({"times": "uniform", "mean": 1.0}, "no effect without times=lognormal"),
        ({"drop": 1.0}, "in [0, 1)"),
        ({"std": -1.0}, "positive"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(FokkerError) as error:
        Denoising(**options)  # type: ignore[arg-type]
    assert said in str(error.value)
