"""Diffusion autoencoders: what is frozen stays to the bit, both codes lead back, lines and arcs end as they should, files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import fokker as fk
from fokker.codec import build as build_codec
from fokker.data import toy
from fokker.data.draws import Draw, split_ids
from fokker.data.source import Arrays
from fokker.data.toys.volume import anatomy, halfway, paint
from fokker.denoiser import NetworkDenoiser
from fokker.errors import FokkerError
from fokker.latent import (
    Coded,
    DiffusionAutoencoder,
    Direction,
    Encoded,
    GradientEstimator,
    Learning,
    LinearCodec,
    SemanticEncoder,
    latent_model,
    learn,
    slerp,
)
from fokker.net import build
from fokker.train import Denoising, Rate, Trainer
from fokker.train.objective import weight

CODE = 5
UNET = {"kind": "unet", "width": 16, "mults": [1, 2], "blocks": 1}
ENCODER = {"size": (8, 8), "channels": 1, "code": CODE, "width": 16, "patch": 1}


def alive(net: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """Every weight that starts at zero drawn anew, so that nothing is invisible."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            if not bool(p.any()):
                p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    return net


def denoiser(net: torch.nn.Module) -> NetworkDenoiser:
    return NetworkDenoiser(net, fk.VP(), "edm", 0.6).eval()


def auto(kind: type = GradientEstimator, steps: int = 20) -> DiffusionAutoencoder:
    net = alive(kind(alive(build(UNET)), CODE))
    return DiffusionAutoencoder(SemanticEncoder(**ENCODER), denoiser(net), steps=steps).eval()


@pytest.fixture(scope="module")
def digits() -> Arrays:
    return toy("digits", n=256)


@pytest.fixture(scope="module")
def learnt(digits: Arrays) -> tuple[NetworkDenoiser, DiffusionAutoencoder]:
    """A model of digits, and a diffusion autoencoder around it, both for seconds."""
    model = denoiser(build(UNET))
    rate = Rate(peak=3e-3, warmup=320)
    Trainer(model, digits, Denoising(), 64 * 60, 64, rate, cpu=True, quiet=True).run()
    before = NetworkDenoiser(build(UNET), fk.VP(), "edm", 0.6).eval()
    before.load_state_dict(model.state_dict())
    told = NetworkDenoiser(GradientEstimator(model.net, CODE), fk.VP(), "edm", 0.6)
    found = DiffusionAutoencoder(SemanticEncoder(**ENCODER), told, steps=20)
    return before, learn(found, digits, 64 * 80, 64, rate=rate, cpu=True, quiet=True)


@pytest.mark.parametrize("kind", [Coded, GradientEstimator])
def test_no_code_and_a_code_of_zeros_are_the_network_itself(kind: type) -> None:
    plain = alive(build(UNET)).eval()
    told = alive(kind(plain, CODE)).eval()
    x, c, e = fk.noise((3, 1, 8, 8)), torch.tensor([-1.0, 0.0, 1.0]), fk.noise((3, CODE), seed=1)
    with torch.no_grad():
        wanted = plain(x, c)
        some = e * torch.tensor([1.0, 0.0, 1.0])[:, None]
        out = told(x, c, code=some)
        assert torch.equal(told(x, c), wanted) and torch.equal(told(x, c, code=0 * e), wanted)
        assert torch.allclose(out[1], wanted[1], atol=1e-6) and float((out - wanted)[[0, 2]].abs().amax((1, 2, 3)).min()) > 1e-2
        assert torch.allclose(told(x[2:], c[2:], code=e[2:]), told(x, c, code=e)[2:], atol=1e-5)
    assert told.conditions == ("code",) and not told.null_conditions(code=e)["code"].any()


@pytest.mark.parametrize(
    ("config", "shape"),
    [({**UNET, "patch": 2}, (1, 8, 8)), ({"kind": "mlp", "dim": 6, "width": 16}, (6,)), ({**UNET, "dim": 3}, (1, 4, 4, 4))],
)
def test_an_untrained_gradient_estimator_changes_nothing_and_trains_only_itself(config: dict, shape: tuple) -> None:
    plain = alive(build(config))
    told = GradientEstimator(plain, CODE)
    x, c, e = fk.noise((2, *shape)), torch.zeros(2), fk.noise((2, CODE))
    with torch.no_grad():
        assert torch.equal(told(x, c, code=e), plain(x, c))
    told.train()
    assert not told.net.training
    alive(told)(x, c, code=e).square().sum().backward()
    with torch.no_grad():
        assert not torch.allclose(told(x, c, code=e), told(x, c, code=-e), atol=1e-3)
        assert torch.equal(told(x, c, code=0 * e), plain(x, c)) and torch.equal(told(x, c), plain(x, c))
    reached = {name for name, p in told.named_parameters() if p.grad is not None and bool(p.grad.any())}
    own = {name for name, p in told.named_parameters() if not name.startswith("net.")}
    assert reached == own


def test_the_branch_shifts_the_score_by_what_it_says() -> None:
    d = denoiser(alive(GradientEstimator(alive(build(UNET)), CODE)))
    x, e, t = fk.noise((4, 1, 8, 8)), fk.noise((4, CODE), seed=1), 0.4
    alpha, _, sigma = d.process.at(t)
    s = math.sqrt(alpha**2 * 0.36 + sigma**2)
    with torch.no_grad():
        moved = d.predict("score", x, t, code=e) - d.predict("score", x, t)
        branch = d.net(x / s, d.c_noise(t, x), code=e) - d.net(x / s, d.c_noise(t, x))
    assert torch.allclose(moved, alpha / sigma**2 * (sigma * 0.6 / s) * branch, atol=1e-4)


def test_a_code_is_guided_like_any_condition() -> None:
    d = auto().denoiser
    x, e = fk.noise((3, 1, 8, 8)), fk.noise((3, CODE), seed=1)
    with torch.no_grad():
        wanted = d(x, 0.5) + 2.0 * (d(x, 0.5, code=e) - d(x, 0.5))
        assert torch.allclose(fk.guide.CFG(d, 2.0)(x, 0.5, code=e), wanted, atol=1e-4)


def test_both_codes_lead_back_and_more_steps_lead_nearer(digits: Arrays) -> None:
    x = digits.x[:4]
    errors = [float((auto(steps=n).reconstruct(x) - x).square().mean().sqrt()) for n in (20, 80)]
    # DDIM inversion is of first order: four times the steps, about a quarter of the error
    assert errors[1] < 0.45 * errors[0]
    assert float((auto().decode(auto().encode(x)) - x).square().mean().sqrt()) > 5 * errors[1]


def test_interpolation_ends_at_its_ends_and_an_edit_of_nothing_is_none(digits: Arrays) -> None:
    found, a, b = auto(Coded), digits.x[:3], digits.x[3:6]
    with torch.no_grad():
        for share, end in ((0.0, a), (1.0, b)):
            assert torch.allclose(found.interpolate(a, b, share), found.reconstruct(end), atol=1e-4)
        assert torch.allclose(found.edit(a, torch.ones(CODE), 0.0), found.reconstruct(a), atol=1e-5)
        code = found.encode(a)
        wanted = found.decode(code + 2 * torch.ones(CODE), found.stochastic(a))
        assert torch.allclose(found.edit(a, torch.ones(CODE), 2.0), wanted, atol=1e-5)
        assert not torch.allclose(wanted, found.reconstruct(a), atol=1e-2)


def test_noise_of_a_decoded_code_is_named_by_seed_and_id() -> None:
    found, x = auto(), fk.noise((3, CODE))
    with torch.no_grad():
        assert torch.allclose(found.decode(x, ids=[4, 5, 6])[1:2], found.decode(x[1:2], ids=[5]), atol=1e-5)
        assert not torch.allclose(found.decode(x, seed=1), found.decode(x), atol=1e-2)


def test_an_arc_keeps_the_length_and_halves_the_angle() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    b = torch.tensor([[0.0, 1.0], [2.0, 0.0], [6.0, 0.0]])
    middle = slerp(a, b, 0.5)
    assert torch.allclose(middle[:2], torch.tensor([[1.0, 1.0], [2.0, 2.0]]) / math.sqrt(2), atol=1e-6)
    assert torch.allclose(middle[2], torch.tensor([4.5, 0.0]))  # parallel: a line
    assert torch.allclose(slerp(a, b, 0.0), a, atol=1e-6) and torch.allclose(slerp(a, b, 1.0), b, atol=1e-6)


def test_learning_leaves_the_frozen_model_to_the_bit_and_knows_more(
    learnt: tuple[NetworkDenoiser, DiffusionAutoencoder], digits: Arrays
) -> None:
    before, found = learnt
    eps, x = fk.noise((256, 1, 8, 8), seed=7), digits.x
    x_t = found.denoiser.process.add_noise(x, eps, 0.7)
    with torch.no_grad():
        plain = found.denoiser(x_t, 0.7)
        assert torch.equal(plain, before(x_t, 0.7))
        told = Learning(found)(x_t, 0.7, data=x)
        assert torch.allclose(told, found.denoiser(x_t, 0.7, code=found.raw(found.encode(x))), atol=1e-4)
        assert torch.equal(Learning(found)(x_t, 0.7, data=0 * x), plain)
        codes = found.encode(x)
    assert (told - x).square().mean() < 0.85 * (plain - x).square().mean()
    assert torch.allclose(codes.mean(0), torch.zeros(CODE), atol=1e-4)
    assert torch.allclose(codes.std(0), torch.ones(CODE), atol=1e-4)


def test_files_hold_all_of_it_and_a_second_denoiser_samples_codes(
    learnt: tuple[NetworkDenoiser, DiffusionAutoencoder], digits: Arrays, tmp_path: Path
) -> None:
    _, found = learnt
    model = latent_model(found, digits, {"width": 32, "depth": 1}, conditions=())
    Trainer(model.denoiser, Encoded(digits, found).in_memory(), Denoising(), 640, 64, cpu=True, quiet=True).run()
    again = fk.load(model.save(tmp_path / "codes.safetensors"))
    assert model.x_shape == again.x_shape == (CODE,)
    start = fk.noise((4, CODE))
    made = [fk.sample(m.denoiser, start, steps=4) for m in (model, again)]
    assert torch.equal(*made) and np.array_equal(model.decode(made[0]), again.decode(made[1]))
    assert model.decode(made[0]).shape == (4, 8, 8)


@pytest.mark.parametrize("kind", [Coded, GradientEstimator])
def test_a_configuration_of_json_rebuilds_it(kind: type) -> None:
    inner = LinearCodec((1, 8, 8), 64)
    found = auto(kind)
    found.inner = inner
    config = json.loads(json.dumps(found.config))
    assert build_codec(config).config == config
    net = build(config["denoiser"]["net"])
    assert isinstance(net, kind) and net.config == config["denoiser"]["net"]


def test_a_probe_finds_a_linear_factor_and_its_step() -> None:
    codes = fk.noise((200, 3), dtype=torch.float64)
    target = codes @ torch.tensor([3.0, 0.0, -4.0], dtype=torch.float64) + 7
    found = Direction.fit(codes, target, ridge=0.0)
    assert torch.allclose(found.unit, torch.tensor([0.6, 0.0, -0.8]), atol=1e-6)
    assert found.r2(codes, target) == pytest.approx(1.0) and found.bias == pytest.approx(7.0)
    moved = codes + found.step(2.0) * found.unit.double()
    assert torch.allclose(found(moved), target + 2.0, atol=1e-5)
    # of a target that has nothing to do with the code, fresh rows are not explained
    assert Direction.fit(codes[:100], fk.noise((100,), seed=3)).r2(codes[100:], fk.noise((100,), seed=4)) < 0.15


def test_slices_are_seen_by_a_flat_backbone_and_their_places_are_told() -> None:
    encoder = SemanticEncoder((4, 8, 8), 1, 3, 16, (1,), 1, 2, slices=True)
    assert all(m.weight.ndim == 4 for m in encoder.modules() if isinstance(m, torch.nn.Conv2d))
    assert not any(isinstance(m, torch.nn.Conv3d) for m in encoder.modules())
    data = fk.noise((2, 1, 4, 8, 8))
    with torch.no_grad():
        assert encoder(data).shape == (2, 3)
        assert not torch.allclose(encoder(data), encoder(data.flip(2)), atol=1e-3)


def test_what_all_items_share_is_not_in_the_gradient_of_the_linear_path() -> None:
    encoder = SemanticEncoder((4, 8, 8), 1, 3, 16, (1,), 1, 2, slices=True)
    data = 5 + fk.noise((6, 1, 4, 8, 8))
    encoder.spread(data)
    encoder(data).sum().backward()
    # sum (x - m) over the items that m is the mean of, where sum x is 30
    assert encoder.linear is not None and encoder.linear.weight.grad is not None
    assert float(encoder.linear.weight.grad.abs().max()) < 1e-4


def test_items_go_beside_their_latents(digits: Arrays) -> None:
    found = Encoded(digits, LinearCodec((1, 8, 8), 3), beside="data")
    batch = found.batch([5, 2])
    assert torch.equal(batch["data"], digits.x[[5, 2]]) and batch["x"].shape == (2, 3)
    assert found.conditions["data"].shape == (1, 8, 8) and found.in_memory().conditions.keys() == found.conditions.keys()


def test_the_weight_is_that_of_its_formula() -> None:
    logsnr = torch.linspace(-6, 6, 13, dtype=torch.float64)
    snr = logsnr.exp()
    # with data of unit variance, for which 1 / c_out^2 = 1 + snr on a variance-preserving process, it is snr^gamma
    assert torch.allclose(weight("snr-gamma", logsnr), snr**0.1)
    assert torch.allclose(weight("snr-gamma", logsnr, 0.5, 0.3), weight("edm", logsnr, 0.5) * snr**0.3 / (1 + snr))
    assert Denoising(weight="snr-gamma", gamma=0.3).gamma == 0.3


def test_halfway_is_halfway_in_every_part() -> None:
    size = (12, 12, 12)
    parts = anatomy(Draw("volume-phantom", 3, split_ids(4, "test")))
    assert np.allclose(paint(parts, size)[0], toy("volume", n=4, seed=3, split="test", size=size).x[:, 0], atol=1e-6)
    a, b, middle = halfway(2, 3, "test", size)
    assert torch.equal(torch.stack([a, b], 1).flatten(0, 1), toy("volume", n=4, seed=3, split="test", size=size).x)

    def bright(x: Tensor) -> Tensor:
        return (x > 0.5).flatten(1).sum(1).double()

    # the shell's volume lies between those of the ends
    low, high = torch.minimum(bright(a), bright(b)), torch.maximum(bright(a), bright(b))
    assert bool(((bright(middle) >= low - 60) & (bright(middle) <= high + 60)).all())


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: GradientEstimator({"kind": "dit", "width": 32}, 4), "no decoder"),
        (lambda: Coded(torch.nn.Linear(2, 2), 4), "network of fokker.net"),
        (lambda: Coded(UNET, 0), "at least 1 number"),
        (lambda: auto().denoiser(torch.zeros(2, 1, 8, 8), 0.5, code=torch.ones(2, 3)), r"code has shape \(2, 3\)"),
        (lambda: SemanticEncoder((8, 8), slices=True), "only volumes"),
        (lambda: SemanticEncoder((9, 8)), "multiples"),
        (lambda: SemanticEncoder(**ENCODER)(torch.zeros(1, 1, 4, 4)), "this encoder takes"),
        (lambda: DiffusionAutoencoder(SemanticEncoder(**ENCODER), denoiser(build(UNET))), "told no code"),
        (lambda: DiffusionAutoencoder(SemanticEncoder(**ENCODER), denoiser(Coded(UNET, 3))), "use one"),
        (lambda: Direction.fit(torch.zeros(4, 2), torch.zeros(4)), "numbers that vary"),
        (lambda: Encoded(toy("digits", n=2), LinearCodec((1, 8, 8), 2), beside="label"), "another name"),
        (lambda: auto().measure(Arrays({"x": torch.zeros(4, 1, 8, 8)}, "blank")), "does not vary"),
    ],
)
def test_what_cannot_be_is_refused(call, sentence: str) -> None:
    with pytest.raises(FokkerError, match=sentence):
        call()
