"""Synthetic speech at 8 kHz: vowels by a source and formant filters, with a noisy recording of each utterance."""

import numpy as np
import torch

from fokker.data.draws import Draw, Floats, split_ids
from fokker.data.source import Arrays
from fokker.errors import FokkerError, unknown

RATE = 8000
# first three formants in Hz, and the word they are heard in
VOWELS = {
    "heed": (270, 2290, 3010),
    "hid": (390, 1990, 2550),
    "head": (530, 1840, 2480),
    "had": (660, 1720, 2410),
    "hod": (730, 1090, 2440),
    "hawed": (570, 840, 2410),
    "hood": (440, 1020, 2240),
    "who'd": (300, 870, 2240),
    "hud": (640, 1190, 2390),
    "heard": (490, 1350, 1690),
}
_FRAME = 64  # samples between the values of the formant and loudness tracks
_BANDWIDTHS = np.array([70.0, 100.0, 150.0])
_RMS = 0.12
_TOP = 3800.0  # no harmonic above this frequency
NOISES = ("white", "pink")


def build(
    n: int = 256,
    seed: int = 0,
    split: str = "train",
    samples: int = 4096,
    vowels: int = 3,
    noise: str = "white",
    snr: tuple[float, float] = (0.0, 15.0),
) -> Arrays:
    """x (1, samples): clean speech in [-1, 1] at 8 kHz, `vowels` of them one after the other with gliding formants.

    A voice with its own pitch (90 to 240 Hz), vibrato and vocal-tract length; harmonics weighted by the resonances of the
    three formants and a source tilt of 12 dB an octave; root mean square 0.12. Conditions: `noisy` (1, samples), the clean
    signal plus white or pink noise; `snr` (1,) in dB, uniform in the given range; `envelope` (1, samples / 64), the
    loudness between 0 and 1; `pitch` (1,) in Hz; `vowels` (vowels,), category. label: the first vowel.

    Reference: Peterson, Barney 1952, "Control methods used in a study of the vowels" (mean formants of men).
    """
    if noise not in NOISES:
        raise unknown("noise", noise, NOISES)
    if samples < _FRAME or samples % _FRAME or vowels < 1 or snr[0] > snr[1]:
        raise FokkerError(
            f"samples={samples}, vowels={vowels}, snr={snr}; "
            f"give samples as a multiple of {_FRAME}, at least one vowel, and the lower SNR first"
        )
    draw = Draw("speech", seed, split_ids(n, split))
    spoken = draw.integers("vowels", len(VOWELS), vowels)
    frames = samples // _FRAME + 1
    envelope = _envelope(draw, vowels, frames)
    pitch = draw.uniform("pitch", low=90.0, high=240.0)
    clean = _voice(draw, pitch, _formants(draw, spoken, frames), envelope, samples)
    clean *= _RMS / np.sqrt((clean**2).mean(axis=1, keepdims=True))
    clean = np.clip(clean, -1.0, 1.0)
    ratio = draw.uniform("snr", low=snr[0], high=snr[1])
    hiss = _hiss(draw, noise, samples) * np.sqrt((clean**2).mean(axis=1) / 10 ** (ratio / 10))[:, None]
    tensors = {
        "x": clean[:, None],
        "label": spoken[:, 0],
        "noisy": (clean + hiss)[:, None],
        "snr": ratio[:, None],
        "envelope": envelope[:, None, :-1],
        "pitch": pitch[:, None],
        "vowels": spoken,
    }
    torches = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in tensors.items()}
    names = {"vowels": tuple(VOWELS), "snr": ("dB",), "pitch": ("Hz",)}
    return Arrays(torches, "speech", "synthetic vowels at 8 kHz", tuple(VOWELS), names)


def _formants(draw: Draw, spoken: np.ndarray, frames: int) -> Floats:
    """Formant tracks (n, frames, 3) in Hz: each vowel held, with a cosine glide to the next."""
    k = spoken.shape[1]
    tract = draw.uniform("tract", low=0.92, high=1.18)
    targets = np.array(list(VOWELS.values()), dtype=float)[spoken] * tract[:, None, None]
    position = np.linspace(0.0, k, frames) - 0.5
    before = np.clip(np.floor(position).astype(np.int64), 0, k - 1)
    after = np.minimum(before + 1, k - 1)
    glide = np.clip((np.clip(position - before, 0.0, 1.0) - 0.5) / 0.4 + 0.5, 0.0, 1.0)
    mix = ((1.0 - np.cos(np.pi * glide)) / 2.0)[None, :, None]
    return np.asarray(targets[:, before] * (1.0 - mix) + targets[:, after] * mix)


def _envelope(draw: Draw, vowels: int, frames: int) -> Floats:
    """Loudness (n, frames) in [0, 1]: one swell a vowel, of its own height, over a floor, silent at both ends."""
    position = np.linspace(0.0, vowels, frames)
    height = draw.uniform("loudness", vowels, low=0.4, high=1.0)
    swell = np.sin(np.pi * (position % 1.0)) ** 2
    which = np.minimum(position.astype(np.int64), vowels - 1)
    ends = np.clip(np.minimum(position, vowels - position) / 0.15, 0.0, 1.0)
    return np.asarray((0.1 + 0.9 * swell) * height[:, which] * ends)


def _voice(draw: Draw, pitch: Floats, formants: Floats, envelope: Floats, samples: int, block: int = 16) -> Floats:
    """The waveform (n, samples): a sum of harmonics of a slightly falling, vibrating pitch."""
    n, frames = envelope.shape
    time = np.arange(samples) / RATE
    vibrato, phase = draw.uniform("vibrato", low=0.0, high=0.02), draw.uniform("phase", high=2 * np.pi)
    fall = draw.uniform("fall", low=-0.15, high=0.05)
    duration = samples / RATE
    # phase of the fundamental: the integral of pitch * (1 + vibrato sin(2 pi 5 t) + fall t / duration)
    swing = vibrato[:, None] * (1.0 - np.cos(2 * np.pi * 5.0 * time)) / (2 * np.pi * 5.0)
    turns = pitch[:, None] * (time + swing + fall[:, None] * time**2 / (2 * duration))
    track = np.minimum(np.arange(samples) / _FRAME, frames - 1 - 1e-9)
    left = track.astype(np.int64)
    share = track - left
    out = np.zeros((n, samples))
    for start in range(0, n, block):
        rows = slice(start, min(start + block, n))
        for h in range(1, int(_TOP / pitch[rows].min()) + 1):
            frequency = h * pitch[rows]
            audible = (frequency < _TOP)[:, None]
            gain = np.ones((len(frequency), frames))
            for k in range(3):
                centre, width = formants[rows, :, k], _BANDWIDTHS[k]
                # magnitude of a resonator of unit gain at zero frequency
                gain *= centre**2 / np.sqrt(
                    (centre**2 - frequency[:, None] ** 2) ** 2 + (width * frequency[:, None]) ** 2
                )
            level = gain * envelope[rows] * audible / h**1.2
            amplitude = level[:, left] * (1.0 - share) + level[:, left + 1] * share
            out[rows] += amplitude * np.sin(h * (2 * np.pi * turns[rows] + phase[rows, None]))
    return out


def _hiss(draw: Draw, noise: str, samples: int) -> Floats:
    """Noise (n, samples) of unit power; pink falls by 3 dB an octave."""
    white = draw.normal("noise", samples)
    if noise == "white":
        return white
    weight = 1.0 / np.sqrt(np.maximum(np.fft.rfftfreq(samples) * samples, 1.0))
    pink = np.fft.irfft(np.fft.rfft(white, axis=1) * weight, samples, axis=1)
    return np.asarray(pink / np.sqrt((pink**2).mean(axis=1, keepdims=True)))
