"""`fokker enhance`: speech out of a noisy recording."""

import time
from pathlib import Path
from typing import Annotated

import typer

from fokker.cli.terminal import print_json
from fokker.errors import FokkerError

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add(app: typer.Typer) -> None:
    app.command(epilog="Example: fokker enhance noisy.wav clean.wav --prior speech.wav")(enhance)


def enhance(
    noisy: Annotated[Path, typer.Argument(help="The noisy recording: WAV, FLAC or OGG.")],
    out: Annotated[Path, typer.Argument(help="Where to write the speech: .wav, .flac or .ogg.")],
    prior: Annotated[
        list[Path] | None,
        typer.Option(help="Clean recordings at the same rate, from which frames of speech are learnt; several may be given."),
    ] = None,
    noise_std: Annotated[
        float | None, typer.Option(help="Deviation of the white noise in [0, 1]; estimated if left out.")
    ] = None,
    steps: Annotated[int, typer.Option(min=2, max=1000, help="Predictor-corrector steps.")] = 30,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    json: Json = False,
) -> None:
    """Take white noise from speech along a process anchored on the recording (SGMSE+), with a prior learnt from clean speech.

    Without --prior the frames are those of synthetic vowels at 8 kHz, which suits little else.
    """
    from fokker import audio
    from fokker.cli.job import check_writable

    if noise_std is not None and not 0 < noise_std < 1:
        raise FokkerError(f"--noise-std {noise_std}: give a deviation between 0 and 1, or leave it out")
    check_writable(out)
    waves, rate = audio.read(noisy)
    if prior:
        import torch

        clean = [audio.read(path) for path in prior]
        for path, (_, found) in zip(prior, clean, strict=True):
            if found != rate:
                raise FokkerError(f"{str(path)!r} has {found} Hz and {str(noisy)!r} {rate} Hz; give recordings at one rate")
        law = audio.frames_law(torch.cat([c[:1].flatten(1) for c, _ in clean], 1)[:, None])
    else:
        from fokker.data import toy

        if rate != 8000:
            raise FokkerError(f"{str(noisy)!r} has {rate} Hz; the built-in prior knows 8000 Hz, give --prior CLEAN.wav")
        law = audio.frames_law(toy("speech", n=32).tensors["x"], most=2000)
    begin = time.perf_counter()
    made = audio.enhance(waves, law, noise_std, steps, seed=seed)
    audio.write(out, made, rate)
    level = noise_std or audio.noise_floor(waves)
    said = {"out": str(out), "rate": rate, "samples": waves.shape[2], "noise_std": level}
    said["seconds"] = round(time.perf_counter() - begin, 2)
    if json:
        print_json(said)
    else:
        typer.echo(f"{out}: {waves.shape[2] / rate:.2f} s at {rate} Hz, noise of {level:.3g} taken out in {said['seconds']} s")
