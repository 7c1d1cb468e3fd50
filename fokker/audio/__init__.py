"""Sound: spectrograms as a codec, speech enhancement, and audio files (the extra `[audio]`).

    clean = fokker.audio.enhance(noisy, prior, noise_std=0.05)          # waveforms (batch, 1, samples)
    prior = fokker.audio.frames_law(recordings)                         # a law of frames, fitted to clean speech
"""

from fokker.audio.enhance import Noted, enhance, frames_law, noise_floor
from fokker.audio.files import read, write
from fokker.audio.spectrogram import ComplexSTFT

__all__ = ["ComplexSTFT", "Noted", "enhance", "frames_law", "noise_floor", "read", "write"]
