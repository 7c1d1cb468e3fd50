"""Quantisation: the grid, the kernels against their simulation, calibration on the run's own states."""

import pytest
import torch
from small_nets import alive, draw
from torch import Tensor, nn

import fokker as fk
from fokker.denoiser import NetworkDenoiser
from fokker.errors import FokkerError
from fokker.net import build
from fokker.quant import CalibrationSet, Quantised, quantised, quantize, size
from fokker.quant.calibrate import Sampled
from fokker.quant.layers import affine, to_grid
from fokker.quant.quantize import clipped, nearest

PROCESS = fk.VP()
PLAN = fk.loop.lay(PROCESS, "ddim", steps=6)


def unet(**options: object) -> NetworkDenoiser:
    made = build({"kind": "unet", "width": 16, "mults": [1, 2], "heads": 2, "blocks": 1, "classes": 3, **options})
    return NetworkDenoiser(alive(made, 0.05), PROCESS)


def states(denoiser: fk.Denoiser, n: int = 32, law: str = "normal") -> CalibrationSet:
    return CalibrationSet.from_trajectory(denoiser, PLAN, (1, 8, 8), n, law, label=torch.arange(n) % 3)


@pytest.mark.parametrize("bits", [2, 4, 8, 12])
def test_the_grid_holds_zero_and_errs_by_half_a_step(bits: int) -> None:
    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-3.0, -1.0)):
        x = torch.linspace(min(low, 0.0), max(high, 0.0), 1001)
        scale, zero = affine(torch.tensor(low), torch.tensor(high), bits)
        q = to_grid(x, scale, zero, bits)
        assert torch.equal(q, q.round()) and q.min() >= 0 and q.max() <= 2**bits - 1
        # rounding the zero point moves the ends by half a step, and rounding x by another half
        assert float(((q - zero) * scale - x).abs().max()) <= float(scale) * 1.001
        assert float((to_grid(torch.zeros(()), scale, zero, bits) - zero).abs()) == 0


def test_weights_are_rounded_to_the_nearest_and_clipped_where_that_is_better() -> None:
    w = draw(4, 3, 3, 3)
    whole, scale = nearest(w, 4, search=False)
    assert float(whole.abs().max()) == 7 and torch.equal(whole, whole.round())
    assert float((whole * scale[:, None, None, None] - w).abs().amax((1, 2, 3)).div(scale).max()) <= 0.5 + 1e-5
    found, better = nearest(w, 4)

    def error(q: Tensor, s: Tensor) -> Tensor:
        return (q * s[:, None, None, None] - w).square().sum((1, 2, 3))

    assert bool((error(found, better) <= error(whole, scale)).all())
    seen = Sampled()
    seen.add(torch.cat([draw(10_000), torch.tensor([50.0])]), 1)
    _, high = clipped(seen, 4)
    assert high < seen.high and clipped(seen, 4, search=False) == (seen.low, seen.high)


def test_a_range_keeps_what_lies_below_zero_where_the_extremes_would_round_it_away() -> None:
    x = torch.nn.functional.silu(torch.cat([draw(10_000), torch.tensor([9.0])]))
    seen = Sampled()
    seen.add(x, 1)
    _, zero = affine(*clipped(seen, 4, search=False), 4)
    assert float(zero) == 0

    def error(low: Tensor, high: Tensor) -> float:
        scale, zero = affine(low, high, 4)
        return float(((to_grid(x, scale, zero, 4) - zero) * scale - x).square().mean())

    low, high = clipped(seen, 4)
    assert float(affine(low, high, 4)[1]) >= 1
    both = [0.5 + 0.02 * k for k in range(26)]
    assert error(low, high) < min(error(r * seen.low, r * seen.high) for r in both)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(12, 7), (5, 12)),
        (nn.Linear(12, 7, bias=False), (2, 3, 12)),
        (nn.Conv2d(6, 8, 3, padding=1), (2, 6, 5, 7)),
        (nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), (2, 6, 8, 8)),
        (nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4), (1, 8, 9, 9)),
    ],
)
def test_int8_kernels_give_the_numbers_of_their_simulation(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = draw(*shape) + 0.3
    small = Quantised(layer)
    small.adopt(*nearest(layer.weight, 8))
    small.calibrate(x.min(), x.max())
    simulated = small(x)
    small.int8 = True
    assert small.integral
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        out = small(x)
    ran = {event.key for event in profile.key_averages()}
    assert any(name.startswith("onednn::q") for name in ran) and not ran & {"aten::mm", "aten::addmm", "aten::convolution"}
    assert out.shape == simulated.shape
    assert torch.allclose(out, simulated, atol=2e-5 * float(simulated.detach().abs().max()))
    assert float((out - layer(x)).norm() / layer(x).norm()) < 0.03
    # values beyond the range are clipped, not wrapped
    small.int8 = False
    beyond = small(100 * x)
    small.int8 = True
    assert torch.allclose(small(100 * x), beyond, atol=2e-5 * float(beyond.detach().abs().max()))


def test_what_the_kernels_cannot_do_is_simulated() -> None:
    for layer, x in (
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), draw(1, 4, 5, 5)),
        (nn.Conv1d(4, 4, 3, padding=1), draw(1, 4, 9)),
        (nn.Conv3d(4, 4, 3, padding=1), draw(1, 4, 3, 3, 3)),
    ):
        small = Quantised(layer)
        small.adopt(*nearest(layer.weight, 8))
        small.calibrate(x.min(), x.max())
        small.int8 = True
        assert not small.integral
        assert float((small(x) - layer(x)).norm() / layer(x).norm()) < 0.03


def test_more_bits_come_nearer_and_full_precision_is_the_same() -> None:
    denoiser = unet()
    calibration = states(denoiser)
    x, label = draw(4, 1, 8, 8), torch.arange(4) % 3
    plain = denoiser(x, 0.5, label=label)
    errors = [
        float((quantize(denoiser, calibration, b, b, 2, int8=False)(x, 0.5, label=label) - plain).norm()) for b in (3, 5, 8, 12)
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.02 * float(plain.norm())
    assert torch.equal(quantize(denoiser, None, 0, 0)(x, 0.5, label=label), plain)
    weights_only = quantize(denoiser, None, 8)
    assert all(not layer.act_bits for layer in quantised(weights_only).values())
    assert size(weights_only) < 0.35 * size(denoiser)


def test_ends_and_skipped_layers_keep_their_bits_and_the_original_is_left_alone() -> None:
    denoiser = unet()
    before = {k: v.clone() for k, v in denoiser.state_dict().items()}
    small = quantize(denoiser, states(denoiser), 4, 4, 8, skip=["*attention*"])
    bits = {name: (layer.weight_bits, layer.act_bits) for name, layer in quantised(small).items()}
    assert bits["net.out"] == (8, 8) and bits["net.mid.0.conv1"] == (4, 4)
    assert sum(b == (8, 8) for b in bits.values()) == 2 and not any("attention" in name for name in bits)
    assert all(torch.equal(v, before[k]) for k, v in denoiser.state_dict().items())
    with pytest.raises(FokkerError, match="already"):
        quantize(small, None)
    with pytest.raises(FokkerError, match="no linear layers"):
        quantize(fk.laws.ring().denoiser(PROCESS), None)
    with pytest.raises(FokkerError, match="2 to 16"):
        Quantised(nn.Linear(2, 2), 1)


def test_a_quantised_denoiser_runs_under_guidance_and_a_cache() -> None:
    denoiser = unet()
    small = quantize(denoiser, states(denoiser))
    x, label = PROCESS.start(fk.noise((3, 1, 8, 8), 1)), torch.arange(3)
    full = fk.sample(fk.guide.CFG(denoiser, 2.0), x, PLAN, label=label)
    out = fk.sample(fk.guide.CFG(fk.cache.DeepCache(small, 2), 2.0), x, PLAN, label=label)
    assert out.shape == full.shape and bool(torch.isfinite(out).all())
    assert torch.equal(fk.sample(small, x, PLAN, label=label), fk.sample(small, x, PLAN, label=label))


def test_calibration_states_are_those_of_the_run_at_their_own_times() -> None:
    denoiser = fk.laws.ring().denoiser(PROCESS)
    found = CalibrationSet.from_trajectory(denoiser, PLAN, (2,), 40, "uniform", seed=2)
    assert set(found.t.tolist()) <= set(PLAN.times) and len(found) == 40
    seen: dict[float, Tensor] = {}
    start = PROCESS.start(fk.keyed.noise((40, 2), 2, range(40), stream="measure"))
    fk.run(denoiser, start, PLAN, seed=2, watch=lambda run, x, belief: seen.setdefault(float(run.t), x.clone()) is None)
    for k in range(40):
        assert torch.equal(found.x[k], seen[float(found.t[k])][k])
    assert set(CalibrationSet.from_trajectory(denoiser, PLAN, (2,), 9, "noise").t.tolist()) == {PLAN.times[0]}
    assert set(CalibrationSet.from_trajectory(denoiser, PLAN, (2,), 9, "data").t.tolist()) == {PLAN.times[-1]}
    normal = CalibrationSet.from_trajectory(denoiser, PLAN, (2,), 4000, "normal", mean=0.5, std=0.05)
    middle = {PLAN.times[2], PLAN.times[3]}
    assert sum(t in middle for t in normal.t.tolist()) > 3700  # P(1.5 < N(3, 0.3) < 3.5) = 0.952
    with pytest.raises(FokkerError, match="law of times"):
        CalibrationSet.from_trajectory(denoiser, PLAN, (2,), 4, "norml")
    with pytest.raises(FokkerError, match="one time a state"):
        CalibrationSet(torch.zeros(3, 2), torch.zeros(2))
