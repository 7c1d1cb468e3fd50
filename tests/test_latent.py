"""Latents: scales that are measured, a posterior that is drawn from, data sets and models in a codec's space, files."""

import math
from pathlib import Path

import pytest
import torch

import fokker as fk
from fokker.codec import build
from fokker.data import toy
from fokker.data.source import Arrays
from fokker.errors import FokkerError
from fokker.keyed import noise
from fokker.latent import Autoencoding, Encoded, KLAutoencoder, LinearCodec, Reconstruction, fit, latent_model
from fokker.laws import GaussianMixture
from fokker.train import Denoising, Key, Rate, Trainer

TINY = {"latent": 2, "width": 8, "mults": (1, 2), "patch": 2}


@pytest.fixture(scope="module")
def sprites() -> Arrays:
    return toy("sprites", n=256, size=(16, 16))


@pytest.fixture(scope="module")
def codec(sprites: Arrays) -> KLAutoencoder:
    rate = Rate(peak=5e-3, warmup=320)
    return fit(KLAutoencoder(**TINY), sprites, 3200, 32, Reconstruction("l2"), rate, cpu=True, quiet=True)


@pytest.mark.parametrize(("dim", "size"), [(1, (12,)), (2, (8, 20)), (3, (4, 8, 8))])
def test_sizes_divide_by_the_factor_in_every_dimension(dim: int, size: tuple[int, ...]) -> None:
    found = KLAutoencoder(dim=dim, channels=2, **TINY)
    data = noise((3, 2, *size))
    x = found.encode(data)
    assert found.factor == 4 and x.shape == (3, 2, *(n // 4 for n in size))
    assert found.decode(x).shape == data.shape
    # convolutional and without a memory of the batch: an item alone is the item in the batch
    assert torch.allclose(found.encode(data[1:2]), x[1:2], atol=1e-6)


def test_measured_latents_have_mean_0_and_variance_1_and_decode_undoes_it(
    codec: KLAutoencoder, sprites: Arrays
) -> None:
    with torch.no_grad():
        x = codec.encode(sprites.x)
        rows = x.transpose(0, 1).flatten(1).double()
        # the scale was measured on these very items
        assert torch.allclose(rows.mean(1), torch.zeros(2, dtype=torch.float64), atol=1e-4)
        assert torch.allclose(rows.std(1), torch.ones(2, dtype=torch.float64), atol=1e-4)
        assert not torch.allclose(codec.scale, torch.ones(2), atol=0.05)
        assert torch.allclose(codec.decode(x), codec.generate(codec.posterior(sprites.x)[0]), atol=1e-5)


def test_draws_have_unit_variance_where_the_scale_was_measured_for_them(codec: KLAutoencoder, sprites: Arrays) -> None:
    wide = KLAutoencoder(**TINY)
    wide.load_state_dict(codec.state_dict())
    last = wide.encoder[-1]
    with torch.no_grad():
        last.bias[2:] += 8.0  # a posterior as wide as the spread of its means
    wide.measure(sprites, drawn=True)
    drawn, means = Encoded(sprites, wide, drawn=True), Encoded(sprites, wide)
    spread = drawn.batch(range(256))["x"].transpose(0, 1).flatten(1).std(1)
    # 256 x 16 numbers a channel, correlated within an item: the error of a std is below 1 / sqrt(2 x 256)
    assert torch.allclose(spread, torch.ones(2), atol=3 / math.sqrt(512))
    assert bool((means.batch(range(256))["x"].transpose(0, 1).flatten(1).std(1) < 0.9).all())
    assert torch.equal(drawn.batch([7, 3])["x"][0], drawn.batch([1, 7])["x"][1])


def test_the_loss_is_that_of_its_formula() -> None:
    found = KLAutoencoder(**TINY)
    batch = {"x": noise((4, 3, 8, 8))}
    key = Key(0, 0, 4, torch.arange(4))
    for objective, power in ((Reconstruction("l1", 0.3), 1), (Reconstruction("l2", 0.3), 2)):
        drawn = objective.draw(Autoencoding(found), batch, key)
        mean, std = found.posterior(batch["x"])
        q = torch.distributions.Normal(mean, std)
        divergence = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
        misfit = (batch["x"] - found.generate(mean + std * drawn["eps"])).abs().pow(power).flatten(1).sum(1)
        wanted = (misfit + 0.3 * divergence) / 192
        assert torch.allclose(objective.loss(Autoencoding(found), drawn), wanted, rtol=1e-5)


def test_training_lowers_the_error_of_held_out_sprites(codec: KLAutoencoder) -> None:
    new = toy("sprites", n=64, split="test", size=(16, 16)).x
    with torch.no_grad():
        after = (codec.decode(codec.encode(new)) - new).square().mean()
    assert after < 0.7 * new.sub(new.mean(0)).square().mean()  # below the best constant


def test_a_strong_kl_collapses_latents_that_the_default_keeps(sprites: Arrays, codec: KLAutoencoder) -> None:
    with torch.no_grad():
        kept = codec.posterior(sprites.x[:64])[1].mean()
    strong = KLAutoencoder(**TINY)
    with torch.no_grad():
        strong.encoder[-1].bias[2:] = 0.0  # as wide as the prior, where the divergence wants it
    objective = Reconstruction(kl=1000.0)
    fit(strong, sprites, 64 * 24, 64, objective, cpu=True, quiet=True)
    with torch.no_grad():
        mean, std = strong.posterior(sprites.x[:64])
    assert kept < 0.9 and 0.9 < std.mean() < 1.1 and mean.std() < 0.2


def test_a_model_trains_in_latents_is_saved_with_its_codec_and_decodes(
    codec: KLAutoencoder, sprites: Arrays, tmp_path: Path
) -> None:
    source = Encoded(sprites, codec)
    assert source.shape == (2, 4, 4) and source.bounds is None
    kept = source.in_memory()
    assert torch.allclose(kept.x, source.batch(range(256))["x"]) and torch.equal(kept.label, sprites.label)
    model = latent_model(codec, sprites, {"kind": "unet", "width": 16, "mults": [1], "blocks": 1})
    assert model.x_shape == source.shape and model.labels == sprites.classes
    Trainer(model.denoiser, source, Denoising(), 64, 32, conditions=("label",), cpu=True, quiet=True).run()
    again = fk.load(model.save(tmp_path / "latent.safetensors"))
    assert torch.equal(again.codec.scale, codec.scale)
    start, label = fk.noise((3, *model.x_shape)), torch.tensor([0, 1, -1])
    made = [fk.sample(m.denoiser, start, steps=3, label=label) for m in (model, again)]
    assert torch.equal(made[0], made[1])
    assert again.decode(made[1]).shape == (3, 16, 16, 3)


def test_the_fingerprint_follows_codec_and_source(codec: KLAutoencoder, sprites: Arrays) -> None:
    prints = {
        Encoded(sprites, codec).fingerprint,
        Encoded(sprites, codec, drawn=True).fingerprint,
        Encoded(sprites, KLAutoencoder(**TINY)).fingerprint,
        Encoded(toy("sprites", n=8, size=(16, 16)), codec).fingerprint,
    }
    assert len(prints) == 4 and Encoded(sprites, codec).fingerprint in prints


def test_ddim_in_principal_components_is_projected_ddim() -> None:
    basis = torch.linalg.qr(fk.noise((6, 2), dtype=torch.float64)).Q
    inner = GaussianMixture([0.5, 0.5], [[1.0, 0.0], [-1.0, 0.5]], 0.1)
    linear = LinearCodec((6,), 2).double()
    linear.basis.copy_(basis)
    x = fk.noise((8, 6), dtype=torch.float64)
    outer = fk.sample(inner.affine(basis).denoiser(fk.VP()), x, solver="ddim", steps=8)
    latent = fk.sample(inner.denoiser(fk.VP()), linear.encode(x), solver="ddim", steps=8)
    assert torch.allclose(linear.decode(latent), linear.decode(linear.encode(outer)), atol=1e-9)


def test_principal_components_keep_a_plane_and_their_scale() -> None:
    basis = torch.linalg.qr(fk.noise((12, 2), dtype=torch.float64)).Q
    items = (3 + 5 * fk.noise((200, 2), dtype=torch.float64) @ basis.T).reshape(200, 3, 4)
    linear = LinearCodec.fit(items, 2)
    x = linear.encode(items)
    assert torch.allclose(linear.decode(x), items, atol=1e-10)
    assert x.square().mean().item() == pytest.approx(1.0, abs=1e-10)
    again = build(linear.config).double()
    again.load_state_dict(linear.state_dict())
    assert torch.equal(again.encode(items), x)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: KLAutoencoder(dim=4), "1 to 3 dimensions"),
        (lambda: KLAutoencoder(**TINY).encode(torch.zeros(1, 3, 10, 8)), "multiples of 4"),
        (lambda: KLAutoencoder(**TINY).encode(torch.zeros(1, 1, 8, 8)), r"takes \(batch, 3"),
        (lambda: Reconstruction(error="l3"), "reconstruction error"),
        (lambda: Reconstruction(kl=-1), "kl=-1"),
        (lambda: LinearCodec((2, 2), 5), "rank=5"),
        (lambda: LinearCodec.fit(torch.zeros(2, 4), 3), "needs more items"),
        (lambda: KLAutoencoder(**TINY).measure(Arrays({"x": torch.zeros(4, 3, 4, 4)}, "flat")), "does not vary"),
        (lambda: Encoded(toy("digits", n=2), LinearCodec((1, 8, 8), 2), drawn=True), "no posterior"),
        (lambda: latent_model(LinearCodec((1, 8, 8), 2), toy("digits", n=2), {}, conditions=("colour",)), "condition"),
    ],
)
def test_what_cannot_be_is_refused(call, sentence: str) -> None:
    with pytest.raises(FokkerError, match=sentence):
        call()
