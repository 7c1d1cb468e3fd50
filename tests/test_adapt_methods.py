"""What fokker can do works on other people's networks: guidance, restoration, inversion, caches, taps, tuned plans."""

import functools
from typing import Any

import pytest
import torch
from test_adapt import TEXT, adapted, conditions
from torch import Tensor

import fokker as fk
from fokker.cache.deepcache import DeepCache
from fokker.codec import build
from fokker.guide.apg import APG
from fokker.net import taps
from fokker.restore.operators import Mask

KINDS = ("ddpm", "sd1", "sd2", "sdxl", "dit", "pixart", "sd3", "flux")


@functools.cache
def setting(kind: str) -> tuple[Any, Tensor, dict[str, Tensor]]:
    denoiser = adapted(kind)
    eps = fk.noise((2, *denoiser.shape), seed=2)
    return denoiser, denoiser.process.start(eps), conditions(kind, denoiser)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "ddpm"])
def test_guidance(kind: str) -> None:
    denoiser, x, cond = setting(kind)
    none = denoiser.null(**cond)
    x = x.float()
    with torch.no_grad():
        wanted = denoiser(x, 0.7, **none) + 3.0 * (denoiser(x, 0.7, **cond) - denoiser(x, 0.7, **none))
        for batched in (True, False):
            guided = fk.guide.CFG(denoiser, 3.0, batched=batched)
            torch.testing.assert_close(guided(x, 0.7, **cond), wanted, rtol=0, atol=3e-5 * float(wanted.abs().max()))
        whole = APG(denoiser, 3.0, eta=1.0, momentum=0.0)
        torch.testing.assert_close(whole(x, 0.7, **cond), wanted, rtol=0, atol=3e-5 * float(wanted.abs().max()))
    trace = fk.run(APG(denoiser, 3.0, radius=5.0), x, solver="dpmpp-2m", nfe=6, **cond)
    assert trace.nfe == 12 and torch.isfinite(trace.x0).all()
    if kind in TEXT:
        # "none" is the empty text's, for each sample the same
        empty = denoiser.model.condition(2, prompt="") if kind != "sdxl" else {k: torch.zeros_like(v) for k, v in cond.items()}
        assert all(torch.equal(none[k], empty[k]) for k in cond)


@pytest.mark.parametrize("kind", KINDS)
def test_an_inverse_problem_in_latent_space(kind: str) -> None:
    denoiser, x, cond = setting(kind)
    picture = fk.noise((2, *denoiser.model.shape), seed=9).clamp(-1, 1)
    with torch.no_grad():
        latent = denoiser.codec.encode(picture)
    operator = Mask(0.5, shape=denoiser.shape, seed=1)
    y = operator(latent)
    restored = fk.sample(fk.restore.DDNM(denoiser, operator, y), x, solver="ddim", steps=3, end=0.0, **cond)
    known = operator.mask.expand_as(latent) > 0
    assert torch.equal(restored[known], latent[known])
    guided = fk.restore.PiGDM(denoiser, operator, y, noise_std=0.1)(x, 0.5, **cond)
    plain = denoiser(x, 0.5, **cond).detach()
    assert torch.isfinite(guided).all() and not torch.allclose(guided, plain, rtol=1e-3)


@pytest.mark.parametrize("kind", ["ddpm", "sd1", "sdxl", "dit", "pixart"])
def test_an_edit_inverts_exactly(kind: str) -> None:
    denoiser, _, cond = setting(kind)
    x_0 = 0.5 * fk.noise((2, *denoiser.shape), seed=4, dtype=torch.float64)
    plan = fk.solve.get("edict").plan(denoiser.process, fk.grids.uniform(4, start=0.6, end=0.02))
    up = fk.run(denoiser, (x_0, x_0), plan.inverse(), **cond)
    down = fk.run(denoiser, up.outputs, plan, **cond)
    for back in down.outputs:
        torch.testing.assert_close(back, x_0, rtol=0, atol=1e-6)
    assert float((up.x0 - x_0).abs().max()) > 0.1


@pytest.mark.parametrize("kind", ["ddpm", "sd1", "sdxl"])
def test_a_feature_cache(kind: str) -> None:
    denoiser, x, cond = setting(kind)
    plan = fk.solve.get("ddim").plan(denoiser.process, fk.grids.uniform(4))
    plain = fk.sample(denoiser, x, plan, **cond)
    assert torch.equal(fk.sample(DeepCache(denoiser, refresh=1), x, plan, **cond), plain)
    cached = fk.sample(DeepCache(denoiser, refresh=2), x, plan, **cond)
    assert torch.isfinite(cached).all() and not torch.equal(cached, plain)


@pytest.mark.parametrize(("kind", "name"), [("sd1", "net.down_blocks.0.attentions.0.transformer_blocks.0.attn2"),
                                            ("dit", "net.transformer_blocks.1.attn1"),
                                            ("sd3", "net.transformer_blocks.0.attn")])  # fmt: skip
def test_attention_is_seen_and_edited(kind: str, name: str) -> None:
    denoiser, x, cond = setting(kind)
    with torch.no_grad():
        plain = denoiser(x, 0.5, **cond)
        with taps(denoiser.net, maps=[name]) as seen:
            torch.testing.assert_close(denoiser(x, 0.5, **cond), plain, rtol=0, atol=1e-5 * float(plain.abs().max()))
        weights = seen.maps[name]
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        with taps(denoiser.net, edit_maps={name: lambda w: torch.full_like(w, 1 / w.shape[-1])}):
            assert not torch.allclose(denoiser(x, 0.5, **cond), plain, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd2", "dit", "flux"])
def test_a_tuned_plan(kind: str) -> None:
    denoiser = adapted(kind)
    n = 48
    cond = conditions(kind, denoiser, n)
    plan = fk.tune(denoiser, nfe=3, shape=denoiser.shape, n=n, seconds=1.0, **cond)
    x = denoiser.process.start(fk.noise((n, *denoiser.shape), seed=7))
    trace = fk.run(denoiser, x, plan, **cond)
    assert trace.nfe <= 3 and torch.isfinite(trace.x0).all()


def test_the_codec_is_the_autoencoder_with_its_scale() -> None:
    denoiser = adapted("sd3")
    vae = denoiser.codec.vae
    picture = fk.noise((1, 3, 16, 16), seed=1).clamp(-1, 1)
    with torch.no_grad():
        z = denoiser.codec.encode(picture)
        mean = vae.encode(picture).latent_dist.mode()
        torch.testing.assert_close(z, (mean - 0.0609) * 1.5305)
        torch.testing.assert_close(denoiser.codec.decode(z), vae.decode(z / 1.5305 + 0.0609).sample)
        again = build(denoiser.codec.config)
        again.load_state_dict(denoiser.codec.state_dict())
        torch.testing.assert_close(again.eval().encode(picture), z)
    assert denoiser.codec.factor == 2


def test_the_channel_statistics_of_a_codec() -> None:
    from tiny_pipelines import kl

    from fokker.adapt.vae import DiffusersVAE

    mean, std = [0.1, -0.2, 0.3, 0.0], [2.0, 1.0, 0.5, 4.0]
    vae = kl(latents_mean=mean, latents_std=std, scaling_factor=0.5)
    codec = DiffusersVAE(vae)
    x = fk.noise((1, 4, 8, 8), seed=1)
    with torch.no_grad():
        z = x * torch.tensor(std).reshape(1, 4, 1, 1) / 0.5 + torch.tensor(mean).reshape(1, 4, 1, 1)
        torch.testing.assert_close(codec.decode(x), vae.decode(z).sample)
        picture = codec.decode(x).clamp(-1, 1)
        back = vae.encode(picture).latent_dist.mode()
        wanted = (back - torch.tensor(mean).reshape(1, 4, 1, 1)) / torch.tensor(std).reshape(1, 4, 1, 1) * 0.5
        torch.testing.assert_close(codec.encode(picture), wanted)


def test_what_was_distilled_is_told_its_guidance() -> None:
    for kind, default in (("flux", 3.5), ("lcm", 7.5)):
        denoiser, x, cond = setting(kind)
        with torch.no_grad():
            plain = denoiser(x, 0.5, **cond)
            told = [denoiser(x, 0.5, **cond, **denoiser.model.condition(2, guidance=g)) for g in (default, 1.5)]
        torch.testing.assert_close(plain, told[0])
        assert not torch.allclose(told[0], told[1], rtol=1e-3)
        kept = denoiser.null(guidance=torch.full((2,), 2.0))
        assert torch.equal(kept["guidance"], torch.full((2,), 2.0))
    assert adapted("schnell").conditions == ("tokens", "pooled")


def test_sizes_other_than_the_model_s_own() -> None:
    denoiser = adapted("sdxl")
    cond = conditions("sdxl", denoiser)
    x = denoiser.process.start(fk.noise((2, 4, 4, 8), seed=1))
    sizes = torch.tensor([[8.0, 16.0, 0.0, 0.0, 8.0, 16.0]]).expand(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(denoiser(x, 0.5, **cond), denoiser(x, 0.5, time_ids=sizes, **cond))
        assert not torch.allclose(denoiser(x, 0.5, **cond), denoiser(x, 0.5, time_ids=4 * sizes, **cond), rtol=1e-3)
    flux = adapted("flux")
    out = flux(fk.noise((1, 4, 4, 8)), 0.5, **flux.model.condition(1, prompt="red"))
    assert out.shape == (1, 4, 4, 8)
    assert flux.grid(4, (16, 64)).values[1] > flux.grid(4, (4, 8)).values[1]


def test_what_stands_beside_the_latent_is_a_condition() -> None:
    import diffusers
    from tiny_pipelines import unet2d_condition

    net = unet2d_condition(in_channels=9)
    denoiser = fk.from_diffusers(net, scheduler=diffusers.DDIMScheduler())
    x, image, tokens = fk.noise((2, 4, 8, 8)), fk.noise((2, 5, 8, 8), seed=1), fk.noise((2, 3, 16), seed=2)
    assert denoiser.shape == (4, 8, 8) and denoiser.conditions == ("tokens", "image")
    with torch.no_grad():
        eps = net(torch.cat([x, image], 1), torch.tensor(499.0), encoder_hidden_states=tokens).sample
        wanted = denoiser.process.to_x0("eps", eps, x, 0.5)
        torch.testing.assert_close(denoiser(x, 0.5, tokens=tokens, image=image), wanted)
    with pytest.raises(fk.FokkerError, match="needs image="):
        denoiser(x, 0.5, tokens=tokens)
