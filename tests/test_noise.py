"""Noise is a pure function of (seed, sample, stream, index, position): known answers, statistics, independence, paths."""

import itertools
import math

import pytest
import torch

import fokker as fk
from fokker.errors import FokkerError
from fokker.keyed import Brownian, noise, philox, sample_ids, uniform

F64 = torch.float64


def words(counter: int, key: int) -> list[str]:
    c = torch.tensor([counter], dtype=torch.int64)
    return [f"{int(w):08x}" for w in philox((c, c, c, c), (key, key))]


def test_philox_gives_the_known_answers_of_random123():
    assert words(0, 0) == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    assert words(0xFFFFFFFF, 0xFFFFFFFF) == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]
    pi = [torch.tensor([w]) for w in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)]
    assert [f"{int(w):08x}" for w in philox(pi, (0xA4093822, 0x299F31D0))] == [
        "d16cfe09",
        "94fdcceb",
        "5001e420",
        "24126ea1",
    ]


def test_noise_is_unit_normal():
    """Moments within 5 standard errors, and the largest gap of the distribution function within the 1e-6 Kolmogorov bound."""
    x = noise((1000, 257), seed=3, dtype=F64).flatten()
    n = len(x)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(x.pow(power).mean() - moment) < 5 * math.sqrt(variance / n)
    expected = torch.special.ndtr(x.sort().values)
    gap = (expected - torch.arange(1, n + 1, dtype=F64) / n).abs().max()
    assert gap < math.sqrt(math.log(2e6) / 2 / n) + 1 / n


def test_uniform_is_uniform_and_open():
    u = uniform((400, 250), seed=1).flatten()
    n = len(u)
    assert u.min() > 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 5 / math.sqrt(12 * n)
    gap = (u.sort().values - torch.arange(1, n + 1, dtype=F64) / n).abs().max()
    assert gap < math.sqrt(math.log(2e6) / 2 / n) + 1 / n


# every way in which two draws may differ, the last two being words of the counter beyond the first 32 bits
OTHERS = {
    "seed": {"seed": 4},
    "high seed": {"seed": 3 + 2**32},
    "stream": {"stream": "step"},
    "index": {"index": 1},
    "high index": {"index": 2**32},
    "ids": {"ids": range(500, 1000)},
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_differs_in_the_key_is_independent(other):
    """The correlation of n pairs is within 5 / sqrt(n) of 0, and so is that of their squares."""
    shape = (500, 101)
    a, b = noise(shape, seed=3, dtype=F64), noise(shape, **{"seed": 3, "dtype": F64, **OTHERS[other]})
    n = a.numel()
    assert abs((a * b).mean()) < 5 / math.sqrt(n)
    assert abs(((a**2 - 1) * (b**2 - 1)).mean()) < 5 * 2 / math.sqrt(n)


def test_positions_and_samples_are_uncorrelated():
    x = noise((4000, 12), seed=8, dtype=F64)
    off = (x.T @ x / len(x)).fill_diagonal_(0)
    assert off.abs().max() < 5 / math.sqrt(len(x))
    off = torch.corrcoef(noise((12, 4000), seed=8, dtype=F64)).fill_diagonal_(0)
    assert off.abs().max() < 5 / math.sqrt(4000)


@pytest.mark.parametrize("draw", [noise, uniform])
@pytest.mark.parametrize("shape", [(64, 64), (64, 1), (64,), (64, 3, 5, 7)])
def test_a_sample_is_the_same_alone_and_in_any_batch(draw, shape):
    whole = draw(shape, seed=1)
    alone = draw((1, *shape[1:]), seed=1, ids=[17])
    assert torch.equal(alone[0], whole[17])
    some = draw(shape, seed=1, ids=torch.tensor([40, 3, 17]))
    assert torch.equal(some, whole[[40, 3, 17]])


def test_shape_of_a_sample_does_not_change_its_numbers():
    assert torch.equal(noise((3, 64)).flatten(), noise((3, 1, 8, 8)).flatten())


def test_every_precision_sees_the_same_noise():
    exact = noise((5, 33), seed=2, dtype=F64)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(noise((5, 33), seed=2, dtype=dtype), exact.to(dtype))
    assert noise((2, 2)).dtype == torch.get_default_dtype()


def test_one_index_a_sample():
    index = torch.tensor([0, 7, 2**40])
    x = noise((3, 9), seed=1, stream="train", index=index)
    for k in range(3):
        assert torch.equal(x[k], noise((1, 9), seed=1, ids=[k], stream="train", index=int(index[k]))[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed=-1"),
        ({"stream": "steps"}, "did you mean 'step'"),
        ({"ids": [-1]}, "ids run from -1"),
        ({"ids": [2**32]}, "use integers from 0 to 2\\*\\*32 - 1"),
    ],
)
def test_keys_that_cannot_be_are_refused(options, message):
    with pytest.raises(FokkerError, match=message):
        noise((1, 2), **options)
    assert sample_ids(3, None).tolist() == [0, 1, 2]


# --- paths -------------------------------------------------------------------------------------------------------------


def snr(logsnr: float) -> float:
    return math.exp(logsnr)


def path(a: float, b: float, **options) -> torch.Tensor:
    """B(snr_b) - B(snr_a), not normalised."""
    return Brownian((6, 5), dtype=F64, **options).increment(a, b) * math.sqrt(snr(b) - snr(a))


def test_brownian_increments_add_up_under_refinement():
    """Node positions are rounded to 128 / 2^17 in log-SNR, so the sum may differ by the path over half a cell at each end."""
    nodes = [-6.0, -3.25, -1.0, 0.5, 2.0, 4.0]
    b = Brownian((6, 5), seed=1, dtype=F64)
    walked = sum(b.increment(u, v) * math.sqrt(snr(v) - snr(u)) for u, v in itertools.pairwise(nodes))
    assert torch.allclose(walked, path(-6.0, 4.0, seed=1), rtol=0, atol=1e-9 * snr(4.0))
    odd = [-6.0, -2.7183, 3.1416, 4.0]
    walked = sum(path(u, v, seed=1) for u, v in itertools.pairwise(odd))
    cell = 128 / 2**17
    slack = 6 * math.sqrt(snr(3.1416) * cell)
    assert (walked - path(-6.0, 4.0, seed=1)).abs().max() < slack


def test_brownian_order_of_questions_does_not_matter():
    b = Brownian((6, 5), seed=1, dtype=F64)
    later = b.increment(1.0, 2.0)
    earlier = b.increment(-5.0, -4.0)
    assert torch.equal(later, Brownian((6, 5), seed=1, dtype=F64).increment(1.0, 2.0))
    assert torch.equal(earlier, Brownian((6, 5), seed=1, dtype=F64).increment(-5.0, -4.0))


def test_brownian_increments_are_independent_unit_normals():
    b = Brownian((3000, 3), seed=2, dtype=F64)
    steps = [(-math.inf, -8.0), (-8.0, -7.9), (-7.9, 0.0), (0.0, 5.0), (5.0, 5.01), (5.01, 30.0), (30.0, math.inf)]
    z = torch.stack([b.increment(u, v) for u, v in steps]).flatten(1)
    n = z.shape[1]
    assert z.mean(1).abs().max() < 5 / math.sqrt(n)
    assert (z.square().mean(1) - 1).abs().max() < 5 * math.sqrt(2 / n)
    assert torch.corrcoef(z).fill_diagonal_(0).abs().max() < 5 / math.sqrt(n)


def test_brownian_alone_is_brownian_in_a_batch():
    whole = Brownian((8, 5), seed=1).increment(-1.0, 2.0)
    alone = Brownian((1, 5), seed=1, ids=[6]).increment(-1.0, 2.0)
    assert torch.equal(whole[6:7], alone)


def test_going_up_in_noise_draws_afresh_at_every_visit():
    b = Brownian((2000,), seed=1, dtype=F64)
    first, second, other = b.increment(1.0, 0.0), b.increment(1.0, 0.0), b.increment(1.0, 1.0)
    again = Brownian((2000,), seed=1, dtype=F64)
    assert torch.equal(again.increment(1.0, 0.0), first) and torch.equal(again.increment(1.0, 0.0), second)
    correlation = torch.corrcoef(torch.stack([first, second, other])).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / math.sqrt(2000)


def test_each_sample_and_token_may_have_its_own_interval():
    b = Brownian((3, 4, 2), seed=1, dtype=F64)
    low = torch.tensor([-3.0, -2.0, 0.5])
    mixed = b.increment(low, low + 1)
    tokens = low[:, None] + 0.25 * torch.arange(4)
    finer = b.increment(tokens, tokens + 0.5)
    for i in range(3):
        alone = Brownian((1, 4, 2), seed=1, ids=[i], dtype=F64)
        assert torch.equal(alone.increment(float(low[i]), float(low[i]) + 1)[0], mixed[i])
        for j in range(4):
            u = float(tokens[i, j])
            assert torch.equal(alone.increment(u, u + 0.5)[0, j], finer[i, j])


@pytest.mark.parametrize("steps", [3, 12])
@pytest.mark.parametrize("other", ["EDM", "Flow"])
def test_ancestral_samples_keep_their_noise_across_grids_and_processes(steps, other):
    """With a belief that never changes the ancestral steps compose exactly: only the path decides where a run ends."""
    point = torch.tensor([[0.3, -0.2]], dtype=F64)
    ends = []
    for process, n in ((fk.VP(), 6), (getattr(fk, other)(), steps)):
        times = process.time(torch.linspace(-6, 6, n + 1, dtype=F64))
        denoiser = fk.as_denoiser(lambda x, t: point.expand_as(x), process)
        r = math.hypot(*process.at(times[0].item())[::2])
        x = noise((3, 2), seed=7, dtype=F64) * r
        out = fk.sample(denoiser, x, fk.solve.get("ddpm").plan(process, fk.grids.Times(times)), seed=11)
        ends.append(out / math.hypot(*process.at(times[-1].item())[::2]))
    # sigma at the end is e^-3 of the signal; cells of 1e-3 in log-SNR blur the noise by sqrt(1e-3) of that at most
    assert (ends[0] - ends[1]).abs().max() < 6 * math.exp(-3) * math.sqrt(2 * 128 / 2**17)
    moved = fk.sample(denoiser, x, fk.solve.get("ddpm").plan(process, fk.grids.Times(times)), seed=12)
    assert (moved / r - ends[1]).abs().max() > 0.01
