"""Audio files in and out (needs soundfile, the extra `[audio]`)."""

from pathlib import Path

import torch
from torch import Tensor

from fokker.errors import FokkerError


def read(path: str | Path) -> tuple[Tensor, int]:
    """The recording in a file as float32 (channels, 1, samples) in [-1, 1], and its rate in Hz."""
    import soundfile

    try:
        values, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as problem:
        raise FokkerError(f"{str(path)!r} cannot be read as sound ({problem}); give a WAV, FLAC or OGG file") from problem
    if not len(values):
        raise FokkerError(f"{str(path)!r} holds no sound")
    return torch.from_numpy(values.T.copy())[:, None], int(rate)


def write(path: str | Path, waves: Tensor, rate: int) -> Path:
    """Write (channels, 1, samples) as 16-bit samples in the format that the name's ending says; beyond [-1, 1] is clipped."""
    import soundfile

    path = Path(path)
    if path.suffix.lower().lstrip(".") not in {"wav", "flac", "ogg"}:
        raise FokkerError(f"{str(path)!r}: give a name that ends in .wav, .flac or .ogg")
    soundfile.write(str(path), waves[:, 0].T.clamp(-1, 1).cpu().numpy(), rate)
    return path
