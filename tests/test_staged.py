"""Stages: sizes, codecs and processes change between them, noise is new in each, and the low band of a guide is held."""

import pytest
import torch
from torch import Tensor

import fokker as fk
from fokker.codec import Codec
from fokker.guide.wavelet import WaveletGuide, haar, inverse_haar
from fokker.solve.bottleneck import BottleneckSampling
from fokker.solve.diffusehigh import DiffuseHigh, Enlarge
from fokker.solve.staged import Resize, Stage, run_stages, shift_time, stage_grid

FLOW, VP = fk.Flow(), fk.VP()
F64 = torch.float64


def images(n: int, size: int, seed: int = 0) -> Tensor:
    return fk.noise((n, 1, size, size), seed=seed, dtype=F64)


def gaussian(size: int, process: fk.Process) -> fk.Denoiser:
    mean = torch.linspace(-1, 1, size * size, dtype=F64).reshape(1, 1, size, size)
    return fk.laws.GaussianMixture(torch.ones(1), mean, 0.3**2).denoiser(process)


def test_a_shift_multiplies_the_noise_to_signal_ratio() -> None:
    t = torch.tensor([0.1, 0.5, 0.9, 1.0], dtype=F64)
    assert torch.allclose(shift_time(FLOW, t, 4.0), 4 * t / (1 + 3 * t), atol=1e-12)
    s = shift_time(VP, 0.3, 2.0)
    assert float(VP.sigma(s) / VP.alpha(s)) == pytest.approx(2 * float(VP.sigma(0.3) / VP.alpha(0.3)), rel=1e-9)
    with pytest.raises(fk.FokkerError, match="factor=0"):
        shift_time(FLOW, 0.5, 0)


def test_a_grid_of_a_stage_asks_last_at_the_switch() -> None:
    assert stage_grid(FLOW, 4, 1.0, 0.25).times(FLOW).tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert stage_grid(FLOW, 2, 0.2, 0.0).times(FLOW).tolist() == pytest.approx([0.2, 0.1, 0])
    assert stage_grid(FLOW, 1, 1.0, 1.0).times(FLOW).tolist() == [1, 0]
    with pytest.raises(fk.FokkerError, match="steps=2"):
        stage_grid(FLOW, 2, 0.5, 0.5)


def test_between_stages_the_belief_moves_and_is_noised_anew() -> None:
    seen: list[Tensor] = []

    def first(x: Tensor, t: float) -> Tensor:
        return torch.ones_like(x)

    def second(x: Tensor, t: float) -> Tensor:
        seen.append(x)
        return x

    one = Stage(fk.as_denoiser(first, FLOW), fk.solve.get("ddim").plan(FLOW, stage_grid(FLOW, 2, 1.0, 0.4)))
    grid = stage_grid(VP, 1, 0.5, 0.5)
    two = Stage(fk.as_denoiser(second, VP), fk.solve.get("ddim").plan(VP, grid), Resize((8, 8)))
    run_stages([one, two, two], images(500, 4))
    alpha, _, sigma = VP.at(0.5)
    fresh = (seen[0] - alpha) / sigma
    assert fresh.shape == (500, 1, 8, 8)
    assert abs(float(fresh.mean())) < 0.02 and float(fresh.std()) == pytest.approx(1, abs=0.02)
    # white also between neighbours, which the noise of a resized state would not be
    assert abs(float((fresh[..., 1:] * fresh[..., :-1]).mean())) < 0.02
    third = (seen[1] - alpha * Resize((8, 8))(seen[0])) / sigma
    assert abs(float((third * fresh).mean())) < 0.02
    alone = run_stages([one, two], images(500, 4)[17:18], ids=[17])
    assert torch.allclose(alone.x0, run_stages([one, two], images(500, 4)).x0[17:18], atol=1e-12)


class Doubled(Codec):
    def encode(self, data: Tensor) -> Tensor:
        return 2 * data

    def decode(self, x: Tensor) -> Tensor:
        return x / 2


def test_codecs_and_anchors_change_with_the_stage() -> None:
    held: list[Tensor] = []

    def keep(x: Tensor, t: float, y: Tensor) -> Tensor:
        held.append(x)
        return torch.full_like(x, 6.0)

    process = fk.MeanReverting()
    flat = fk.as_denoiser(lambda x, t: torch.full_like(x, 3.0), FLOW)
    first = Stage(flat, fk.solve.get("ddim").plan(FLOW, stage_grid(FLOW, 1, 1.0, 1.0)))
    y = torch.full((300, 1, 4, 4), 5.0, dtype=F64)
    plan = fk.solve.get("ddim").plan(process, stage_grid(process, 1, 0.5, 0.5))
    last = Stage(fk.as_denoiser(keep, process), plan, codec=Doubled(), cond={"y": y})
    out = run_stages([first, last], images(300, 4))
    alpha, beta, _ = process.at(0.5)
    assert float(held[0].mean()) == pytest.approx(alpha * 6 + beta * 5, abs=0.02)
    assert torch.equal(out.data, out.x0 / 2) and float(out.data.mean()) == 3.0


def test_what_is_no_stage_is_refused() -> None:
    with pytest.raises(fk.FokkerError, match="ends at x_0"):
        Stage(gaussian(4, VP), fk.solve.get("ddim").plan(VP, fk.grids.uniform(3)))
    with pytest.raises(fk.FokkerError, match="at least one stage"):
        run_stages([], images(1, 4))
    with pytest.raises(fk.FokkerError, match="give one size"):
        BottleneckSampling(gaussian(4, FLOW), ((4, 4), (2, 2)))
    with pytest.raises(fk.FokkerError, match="first stage of size"):
        BottleneckSampling(gaussian(4, FLOW), ((4, 4), (2, 2), (4, 4)))(images(1, 2))
    with pytest.raises(fk.FokkerError, match="guided from 0 to steps"):
        DiffuseHigh(gaussian(4, VP), ((4, 4), (8, 8)), guided=20)
    with pytest.raises(fk.FokkerError, match="images"):
        Resize((4, 4))(torch.zeros(3, 4))


def test_bottleneck_counts_what_it_costs_and_restores_a_gaussian() -> None:
    low = fk.laws.GaussianMixture(
        torch.ones(1), Resize((4, 4))(gaussian(8, FLOW).law.means.reshape(1, 1, 8, 8)), 0.15**2
    )
    full = gaussian(8, FLOW)
    fast = BottleneckSampling((full, low.denoiser(FLOW), full), ((8, 8), (4, 4), (8, 8)))
    assert fast.cost() == 4 + 12 / 4 + 8 and fast.cost(2) == 4 + 12 / 16 + 8
    out = fast(images(2000, 8))
    assert out.nfe == 24 and out.x0.shape == (2000, 1, 8, 8)
    assert [float(trace.plan.start) for trace in out.traces] == pytest.approx([1.0, 0.8, 0.5])
    assert float((out.x0.mean(0) - full.law.means.reshape(1, 8, 8)).abs().max()) < 0.05
    assert 0.2 < float(out.x0.std(0).mean()) < 0.35


def test_haar_is_orthonormal_and_undone() -> None:
    x = torch.randn(3, 2, 6, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    bands = haar(x)
    assert torch.allclose(inverse_haar(*bands), x, atol=1e-14)
    assert torch.allclose(sum((b.square().sum() for b in bands), torch.zeros(())), x.square().sum())
    assert torch.equal(haar(torch.full((1, 4, 4), 1.5))[0], torch.full((1, 2, 2), 3.0))
    assert haar(x.to(torch.bfloat16))[0].dtype == torch.float32
    with pytest.raises(fk.FokkerError, match="must be even"):
        haar(torch.zeros(1, 1, 3, 4))


def test_the_guide_holds_the_low_band_and_only_while_it_should() -> None:
    denoiser, guide, x = gaussian(4, VP), images(3, 4, seed=2), images(3, 4, seed=3)
    held = WaveletGuide(denoiser, guide, until=0.5)
    belief = denoiser(x, 0.6)
    assert torch.allclose(haar(held(x, 0.6))[0], haar(guide)[0], atol=1e-12)
    for ours, theirs in zip(haar(held(x, 0.6))[1:], haar(belief)[1:], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)
    assert torch.equal(held(x, 0.4), denoiser(x, 0.4))
    each = torch.tensor([0.6, 0.4, 0.6], dtype=F64)
    mixed = held(x, each)
    assert torch.allclose(mixed[0], held(x, 0.6)[0]) and torch.allclose(mixed[1], belief_at(denoiser, x)[1])
    latent = WaveletGuide(denoiser, guide, codec=Doubled())(x, 0.6)
    assert torch.allclose(haar(latent / 2)[0], haar(guide)[0], atol=1e-12)


def belief_at(denoiser: fk.Denoiser, x: Tensor) -> Tensor:
    return denoiser(x, 0.4)


def test_diffusehigh_keeps_the_low_band_when_guided_to_the_end() -> None:
    base, high = gaussian(4, VP), gaussian(8, VP)
    options = {"base_steps": 5, "steps": 6, "sharpen": 0.5}
    out = DiffuseHigh((base, high), ((4, 4), (8, 8)), guided=6, **options)(images(3, 4))
    guide = Enlarge((8, 8), 0.5)(out.traces[0].x0)
    assert torch.allclose(haar(out.data)[0], haar(guide)[0], atol=1e-10)
    assert out.nfe == 11
    free = DiffuseHigh((base, high), ((4, 4), (8, 8)), guided=0, **options)(images(3, 4))
    assert not torch.allclose(haar(free.data)[0], haar(guide)[0], atol=0.1)
    part = DiffuseHigh((base, high), ((4, 4), (8, 8)), guided=2, **options).stages()[1]
    assert part.wrap is not None
    until = part.wrap(high, guide).until
    assert part.plan.times[1] > until > part.plan.times[2]


def test_sharpening_leaves_flat_images_and_steepens_edges() -> None:
    flat = torch.full((1, 2, 4, 4), 0.7, dtype=F64)
    assert torch.allclose(Enlarge((8, 8), 1.0)(flat), torch.full((1, 2, 8, 8), 0.7, dtype=F64))
    edge = torch.cat([torch.zeros(1, 1, 4, 2), torch.ones(1, 1, 4, 2)], 3).to(F64)
    plain, sharp = (Enlarge((8, 8), amount)(edge) for amount in (0.0, 1.0))
    assert float(sharp.diff(dim=3).max()) > 1.2 * float(plain.diff(dim=3).max())
