"""Generator and refiner: two formulations are one sampler, the code alone decides, and pairs of data and rough data."""

import json

import pytest
import torch
from torch import Tensor

import fokker as fk
from fokker.anchored import WholeAnchor
from fokker.codec import build as build_codec
from fokker.data import toy
from fokker.denoiser import NetworkDenoiser, as_denoiser
from fokker.errors import FokkerError
from fokker.latent import Encoded, GeneratorRefiner, LinearCodec, Rough
from fokker.net import build
from fokker.process import Process
from fokker.train import Denoising, Trainer

UNET = {"kind": "unet", "width": 16, "mults": [1, 2], "blocks": 1, "image_channels": 1}


def network(process: Process) -> NetworkDenoiser:
    net = build(UNET)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in net.parameters():
            if not bool(p.any()):
                p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    return NetworkDenoiser(net, process, "edm", 0.6).eval()


@pytest.fixture(scope="module")
def vae() -> LinearCodec:
    return LinearCodec.fit(toy("digits", n=128).x, 4)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "heun"])
def test_an_anchor_that_is_always_there_makes_no_difference_to_a_solver(vae: LinearCodec, solver: str) -> None:
    codes, noise = fk.noise((3, 4)), fk.noise((3, 1, 8, 8), seed=1)
    refiners = [GeneratorRefiner(vae, network(process), 6, solver, "uniform") for process in (fk.VP(), WholeAnchor())]
    made = [found.decode(codes, noise) for found in refiners]
    # float32: the anchor is added to the state and taken off again
    assert torch.allclose(*made, atol=2e-5)


def test_nothing_of_the_anchor_is_left_at_the_end(vae: LinearCodec) -> None:
    def nothing(x_t: Tensor, t: float, y: Tensor) -> Tensor:
        return torch.zeros_like(x_t)

    codes = 10 * fk.noise((3, 4))
    assert not GeneratorRefiner(vae, as_denoiser(nothing, WholeAnchor()), 4).decode(codes).any()


def test_with_the_same_noise_the_code_alone_decides(vae: LinearCodec) -> None:
    found, codes = GeneratorRefiner(vae, network(fk.VP()), 4), fk.noise((3, 4))
    made = found.decode(codes)
    assert torch.allclose(found.decode(codes[1:2], ids=[1]), made[1:2], atol=1e-5)
    assert not torch.allclose(found.decode(codes.flip(0)), made, atol=1e-2)
    assert not torch.allclose(found.decode(codes, seed=1), made, atol=1e-2)


def test_a_refiner_trains_on_pairs_and_rebuilds_from_json(vae: LinearCodec) -> None:
    digits = toy("digits", n=128)
    pairs = Rough(digits, vae)
    batch = pairs.batch([3, 9])
    assert torch.allclose(batch["y"], vae.decode(vae.encode(batch["x"]))) and pairs.conditions["y"].shape == (1, 8, 8)
    assert pairs.fingerprint not in (digits.fingerprint, Encoded(digits, vae).fingerprint)
    for process in (fk.VP(), WholeAnchor()):
        denoiser = network(process)
        state = Trainer(denoiser, pairs, Denoising(), 64, 32, conditions=("y",), cpu=True, quiet=True).run()
        assert state.samples == 64
        found = GeneratorRefiner(vae, denoiser, 3)
        again = build_codec(json.loads(json.dumps(found.config)))
        again.load_state_dict(found.state_dict())
        codes = fk.noise((2, 4))
        assert torch.equal(again.decode(codes), found.decode(codes))


def test_a_denoiser_that_is_told_nothing_is_refused(vae: LinearCodec) -> None:
    with pytest.raises(FokkerError, match="not told y"):
        GeneratorRefiner(vae, network_of_labels())
    with pytest.raises(FokkerError, match="cannot be rebuilt"):
        _ = GeneratorRefiner(vae, as_denoiser(lambda x_t, t, y: y, fk.VP())).config


def network_of_labels() -> NetworkDenoiser:
    return NetworkDenoiser(build({**UNET, "image_channels": 0, "classes": 10}), fk.VP())
