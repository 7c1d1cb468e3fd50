"""The trainer: it learns what theory says, and is a function of samples seen, however it was interrupted or split."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fokker import store
from fokker.data import Arrays
from fokker.denoiser import NetworkDenoiser
from fokker.errors import FokkerError
from fokker.process import EDM, VP
from fokker.train import Average, Denoising, Every, Optimiser, Rate, Trainer
from fokker.train.ema import EMA

DIM = 4


def gaussian(n: int = 512, std: float = 0.5) -> Arrays:
    """A data set whose sample covariance is std^2 exactly, so that the best linear denoiser is known."""
    x = torch.randn(n, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / n)).T
    return Arrays({"x": (std * x).float()}, "gaussian")


class Gain(nn.Module):
    """F(x, c) = g(c) x with g piecewise linear in c: the linear denoiser of every noise level."""

    def __init__(self, knots: int = 25) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.zeros(knots))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        place = ((c + 2.0) / 4.0).clamp(0, 0.9999) * (len(self.g) - 1)
        low = place.floor().long()
        share = place - low
        return (self.g[low] * (1 - share) + self.g[low + 1] * share)[:, None] * x


class MLP(nn.Module):
    def __init__(self, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(DIM + 1, 32), nn.SiLU(), nn.Dropout(dropout), nn.Linear(32, DIM))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat([x, c[:, None]], 1))
        return out


def make(net: nn.Module | None = None, **options: Any) -> Trainer:
    source = options.pop("source", None) or gaussian()
    given = {"samples": 100 * 32, "batch": 32, "quiet": True, "cpu": True, "rate": Rate(warmup=320)} | options
    denoiser = NetworkDenoiser(net or MLP(), EDM(), "edm", 1.0)
    return Trainer(denoiser, source, given.pop("objective", Denoising()), **given)


def bits(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trainer.state.tensors().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_linear_denoiser_becomes_the_wiener_filter() -> None:
    std, process = 0.5, VP()
    denoiser = NetworkDenoiser(Gain(), process, "edm", 1.0)
    updates, batch = 1200, 256
    Trainer(
        denoiser,
        gaussian(std=std),
        Denoising(weight="edm", times="logsnr"),
        samples=updates * batch,
        batch=batch,
        rate=Rate(peak=0.05, warmup=0, kind="cosine"),
        quiet=True,
        cpu=True,
    ).run()
    t = process.time(torch.linspace(-6, 6, 61, dtype=torch.float64))
    alpha, sigma = process.alpha(t), process.sigma(t)
    wiener = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
    with torch.no_grad():
        learnt = denoiser(torch.ones(61, DIM, dtype=torch.float64), t)[:, 0]
    # what is lost by the error, relative to the noise that the best filter leaves: E|x_t|^2 (a - a*)^2 / mmse
    mmse = std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)
    excess = (learnt - wiener) ** 2 * (alpha**2 * std**2 + sigma**2) / mmse
    # a parameter fitted to k numbers loses 1/k of the mmse; Adam's average sees at least a tenth of the run's
    seen = updates * batch * DIM / 25
    assert excess.mean() < 10 / seen + 1e-3
    untrained = (alpha / (alpha**2 + sigma**2) - wiener) ** 2 * (alpha**2 * std**2 + sigma**2) / mmse
    assert excess.mean() < 0.01 * untrained.mean()


def test_a_trainer_goes_on_where_it_stopped() -> None:
    whole, parts = make(), make()
    whole.run()
    for until in (320, 321, None):
        parts.run(until)
    assert same(bits(whole), bits(parts))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_hundred_updates_are_sixty_and_forty_to_the_bit(tmp_path: Path, dropout: float) -> None:
    whole = make(MLP(dropout))
    whole.run()
    make(MLP(dropout), out=tmp_path).run(until=60 * 32)
    rest = make(MLP(dropout, seed=9), out=tmp_path)  # other initial weights: all of them must come from the checkpoint
    rest.run()
    assert rest.state.samples == whole.state.samples == 3200
    assert same(bits(whole), bits(rest))
    assert same(whole.ema.copy, rest.ema.copy)
    assert not same(rest.ema.copy, {k: p.detach() for k, p in rest.ema.live.items()})


def test_the_caller_s_random_numbers_are_left_alone_and_do_not_matter() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = make(MLP(0.2), samples=320)
    first.run()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second = make(MLP(0.2), samples=320)
    second.run()
    assert same(bits(first), bits(second))
    other = make(MLP(0.2), samples=320, seed=1)
    other.run()
    assert not same(bits(first), bits(other))


def test_accumulation_changes_only_rounding() -> None:
    one, four = make(samples=320), make(samples=320, accumulate=4)
    one.run()
    four.run()
    for name, value in bits(one).items():
        # ten updates of Adam in float32
        assert torch.allclose(bits(four)[name], value, rtol=1e-3, atol=1e-5), name


def test_log_lines_survive_slices(tmp_path: Path) -> None:
    make(out=tmp_path / "whole", log_every=640).run()
    make(out=tmp_path / "parts", log_every=640).run(until=1000)
    with open(tmp_path / "parts" / "log.jsonl", "a") as file:
        # lines after the last checkpoint, the second one being written when the run was killed
        file.write('{"samples": 1280, "loss": 0.0}\n{"samples": 1920, "loss"')
    make(out=tmp_path / "parts", log_every=640).run()

    def lines(folder: str) -> list[dict[str, float]]:
        found = [json.loads(line) for line in (tmp_path / folder / "log.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k != "seconds"} for line in found]

    assert lines("whole") == lines("parts")
    assert [line["samples"] for line in lines("whole")] == [640, 1280, 1920, 2560, 3200]


def test_learning_rate_is_a_function_of_samples() -> None:
    cosine = Rate(peak=2.0, warmup=100, floor=0.1)
    assert cosine.at(50, 1000) == pytest.approx(1.0)
    assert cosine.at(100, 1000) == pytest.approx(2.0)
    assert cosine.at(550, 1000) == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert cosine.at(1000, 1000) == pytest.approx(0.2)
    root = Rate(peak=1.0, warmup=0, kind="inverse-sqrt", knee=100)
    assert root.at(400, 10**9) == pytest.approx(0.5)
    assert Rate(peak=1.0, warmup=0, kind="linear").at(250, 1000) == pytest.approx(0.75)
    assert Rate(peak=1.0, warmup=0, kind="constant").at(1, 2) == 1.0


@pytest.mark.parametrize("average", [Average(), Average(width=0.05), Average(kind="halflife", halflife=500, warmup=0.1)])
def test_average_does_not_depend_on_the_number_of_updates(average: Average) -> None:
    assert average.keep(0, 64) == 0.0
    assert average.keep(100, 9000) == pytest.approx(math.prod(average.keep(n, n + 100) for n in range(100, 9000, 100)))
    assert average.keep(300, 301) > average.keep(300, 400) > average.keep(300, 5000)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_power_average_has_the_width_it_says(width: float) -> None:
    average = Average(width=width)
    n = 20_000
    kept = [average.keep(i, i + 1) for i in range(n)]
    share, weights = 1.0, []
    for keep in reversed(kept):
        weights.append(share * (1 - keep))
        share *= keep
    w = torch.tensor(weights[::-1], dtype=torch.float64)
    t = (torch.arange(n, dtype=torch.float64) + 1) / n
    mean = (w * t).sum()
    assert w.sum() == pytest.approx(1.0)
    assert ((w * t**2).sum() - mean**2).sqrt() == pytest.approx(width, rel=1e-3)


def test_halflife_average_halves() -> None:
    average = Average(kind="halflife", halflife=1000, warmup=0.05)
    assert average.keep(50_000, 51_000) == pytest.approx(0.5)
    # while warming up, h(s) = s / 20: from n to 2 n the old weight falls by 2^-(20 ln 2)
    assert average.keep(100, 200) == pytest.approx(2 ** -(math.log(2) / 0.05))


def test_ema_is_a_separate_copy_and_swaps_to_the_bit() -> None:
    net = MLP()
    ema = EMA(net, Average())
    start = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    ema.update(100, 200)
    keep = Average().keep(100, 200)
    for name, copy in ema.copy.items():
        assert torch.allclose(copy, start[name] + (1 - keep), atol=1e-6)
    live = {k: v.clone() for k, v in net.state_dict().items()}
    averaged = {k: v.clone() for k, v in ema.copy.items()}
    with pytest.raises(RuntimeError), ema.swapped():
        assert all(torch.equal(p, averaged[name]) for name, p in net.named_parameters())
        raise RuntimeError
    assert all(torch.equal(p, live[name]) for name, p in net.named_parameters())
    ema.update(0, 100)  # from nothing seen, the initial weights are forgotten
    assert all(torch.allclose(ema.copy[name], p) for name, p in net.named_parameters())


def spoiled(rows: int) -> Arrays:
    x = gaussian().x.clone()
    x[:rows] = float("nan")
    return Arrays({"x": x}, "spoiled")


def test_bad_updates_are_skipped_and_counted(tmp_path: Path) -> None:
    trainer = make(source=spoiled(3), out=tmp_path, samples=512 * 2, log_every=512)
    trainer.run()
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    # two epochs, three bad items each, in at most one update an item
    assert 2 <= last["bad"] <= 6
    assert math.isfinite(last["loss"])
    assert all(torch.isfinite(v).all() for v in bits(trainer).values())
    steps = {float(v) for k, v in bits(trainer).items() if "/step/" in k}
    assert steps == {1024 / 32 - last["bad"]}  # the optimiser did not count them


def test_a_run_that_stays_non_finite_stops_with_the_last_good_state_on_disk(tmp_path: Path) -> None:
    trainer = make(source=spoiled(512), out=tmp_path, patience=4)
    before = {k: v for k, v in bits(trainer).items() if k.startswith(("weights", "average"))}
    with pytest.raises(FokkerError) as error:
        trainer.run()
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert str(saved) in str(error.value)
    assert "4 updates in a row up to sample 128" in str(error.value)
    tensors, header = store.read(saved)
    assert header["samples"] == 128
    assert all(torch.equal(tensors[k], v) for k, v in before.items())


class Overflowing(Denoising):
    """A loss that overflows where its gradient does not."""

    def loss(self, denoiser: Any, drawn: Any) -> Tensor:
        return super().loss(denoiser, drawn) + math.inf


def test_a_loss_that_is_not_finite_is_bad_even_if_its_gradient_is() -> None:
    with pytest.raises(FokkerError, match="10 updates in a row"):
        make(objective=Overflowing()).run()


def test_every_update_has_the_rate_of_its_middle_sample() -> None:
    used: list[float] = []
    rate = Rate(peak=0.1, warmup=100)
    make(samples=640, rate=rate, callbacks=[Every(32, lambda t: used.append(t.optimiser.param_groups[0]["lr"]))]).run()
    assert used == [rate.at(first + 16, 640) for first in range(0, 640, 32)]


def test_gradient_is_clipped_to_the_norm() -> None:
    big = make(samples=32, optimiser=Optimiser(clip=1e-3), rate=Rate(kind="constant", warmup=0))
    big.run()
    first = torch.cat([v.flatten() for k, v in bits(big).items() if "/exp_avg/" in k])
    # after one update the first moment is (1 - beta1) x gradient
    assert first.norm() / (1 - 0.9) == pytest.approx(1e-3, rel=1e-3)


def test_bfloat16_trains_with_float32_weights() -> None:
    trainer = make(precision="bf16", samples=640)
    trainer.run()
    plain = make(samples=640)
    plain.run()
    assert all(v.dtype == torch.float32 for k, v in bits(trainer).items() if k.startswith("weights"))
    for name, value in bits(plain).items():
        if name.startswith("weights"):
            assert torch.allclose(bits(trainer)[name], value, atol=0.05), name
    assert not same(bits(trainer), bits(plain))


@pytest.mark.slow
def test_compiled_training_is_the_same_up_to_rounding() -> None:
    plain, compiled = make(samples=320), make(samples=320, compile=True)
    plain.run()
    compiled.run()
    for name, value in bits(plain).items():
        assert torch.allclose(bits(compiled)[name], value, rtol=1e-3, atol=1e-5), name


def test_callbacks_run_at_multiples_and_at_the_end() -> None:
    seen: list[tuple[int, bool]] = []
    make(samples=1000, callbacks=[Every(320, lambda t: seen.append((t.state.samples, t.module.training)))]).run()
    assert seen == [(320, False), (640, False), (960, False), (1024, False)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": 30, "accumulate": 4}, "use a multiple of 4"),
        ({"precision": "fp16"}, "unknown precision"),
        ({"samples": 0}, "samples=0"),
        ({"tensorboard": True}, "out="),
        ({"rate": Rate(), "keep": 0, "out": "x"}, "keep at least 1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(FokkerError) as error:
        make(**options)
    assert said in str(error.value)
