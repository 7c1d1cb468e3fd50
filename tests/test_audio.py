"""Sound: the codec inverts, the denoiser that knows the recording is the exact one, speech gains, files come and go."""

import pytest
import torch

import fokker as fk
from fokker import audio
from fokker.errors import FokkerError
from fokker.keyed import noise

F64 = torch.float64


def test_spectrograms_invert_at_any_length_and_can_be_rebuilt():
    from fokker.codec import build

    codec = audio.ComplexSTFT(points=62, hop=16)
    for samples in (64, 1000, 1001):
        x = noise((2, 1, samples), 3, dtype=F64)
        z = codec.encode(x)
        assert z.shape[:3] == (2, 2, 32) and torch.allclose(codec.decode(z), x, atol=1e-11)
    # magnitudes are compressed, phases kept
    loud = codec.encode(4 * x)
    assert torch.allclose(loud, 2 * codec.encode(x), atol=1e-11)
    again = build(codec.config)
    assert torch.equal(again.encode(x), codec.encode(x))
    for wrong in ({"hop": 400}, {"compress": 0.0}):
        with pytest.raises(FokkerError, match="use hop of at most"):
            audio.ComplexSTFT(**wrong)


@pytest.mark.parametrize("t", [1.0, 0.3, 0.03])
def test_two_looks_are_the_posterior_of_both(t):
    """Against the law's own posterior given y and x_t stacked as one measurement."""
    law = fk.laws.GaussianMixture([0.6, 0.4], [[-0.5, 0.2], [0.7, -0.1]], 0.3)
    process, y = fk.OUVE(), torch.tensor([[0.4, -0.3]], dtype=F64)
    x_t = torch.tensor([[0.1, 0.5]], dtype=F64)
    alpha, beta, sigma = process.at(t)
    eye = torch.eye(2, dtype=F64)
    stacked = torch.cat([alpha / sigma * eye, eye / 0.2])
    seen = torch.cat([(x_t - beta * y)[0] / sigma, y[0] / 0.2])
    exact = law.posterior(stacked, seen, 1.0).mean()
    assert torch.allclose(audio.Noted(law, process, 0.2)(x_t, t, y=y)[0], exact, atol=1e-9)


def test_cutting_and_adding_is_the_recording():
    from fokker.audio.enhance import _add, _cut

    for samples in (64, 100, 1000):
        wave = noise((samples,), 1, dtype=F64)
        assert torch.allclose(_add(_cut(wave), samples), wave, atol=1e-12)


def test_noise_comes_off_a_known_law_of_frames():
    """Frames of one loud sinusoid: little is left of the noise, and its level is found from the recording."""
    phase = torch.linspace(0, 2 * torch.pi, 65, dtype=F64)[:64]
    means = torch.stack([0.5 * torch.sin(4 * phase + k * torch.pi / 4) for k in range(8)])
    prior = fk.laws.GaussianMixture([1 / 8] * 8, means, 4e-4)
    clean = 0.5 * torch.sin(4 * torch.pi / 32 * torch.arange(1024, dtype=F64))[None, None]
    noisy = clean + 0.1 * noise((1, 1, 1024), 5, dtype=F64)
    assert audio.noise_floor(noisy) == pytest.approx(0.1, rel=0.25)
    out = audio.enhance(noisy, prior, noise_std=0.1)
    assert (out - clean).square().mean() < 0.1 * (noisy - clean).square().mean()
    assert torch.equal(audio.enhance(noisy, prior, noise_std=0.1), out)


def test_files_come_back_and_bad_ones_are_one_sentence(tmp_path):
    wave = 0.3 * torch.sin(torch.arange(4000) / 10.0)[None, None].expand(2, 1, -1)
    path = audio.write(tmp_path / "a.wav", wave, 8000)
    back, rate = audio.read(path)
    assert rate == 8000 and back.shape == wave.shape and torch.allclose(back, wave, atol=2**-14)
    (tmp_path / "b.wav").write_bytes(b"nothing")
    with pytest.raises(FokkerError, match="cannot be read as sound"):
        audio.read(tmp_path / "b.wav")
    with pytest.raises(FokkerError, match=r"ends in \.wav"):
        audio.write(tmp_path / "c.mp3", wave, 8000)
