"""`fokker classify`: which class of a model a picture is of, by the errors of its denoiser."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fokker.cli.terminal import Progress, print_json, print_table
from fokker.errors import FokkerError

if TYPE_CHECKING:
    from torch import Tensor

    from fokker.model import Model

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add(app: typer.Typer) -> None:
    app.command(epilog="Example: fokker classify three.png seven.png --model digits --json")(classify)


def classify(
    pictures: Annotated[list[Path], typer.Argument(help="Image files; they are resized to the model's size.")],
    model: Annotated[str, typer.Option(help="A class-conditional model of the zoo, or the path of one.")],
    samples: Annotated[int, typer.Option(min=4, max=100_000, help="Noises, shared by all classes.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noises.")] = 0,
    invert: Annotated[bool, typer.Option("--invert", help="Turn black and white round first.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    json: Json = False,
) -> None:
    """Name the class under which each picture, noised, is denoised best; unlikely classes are dropped early."""
    import torch

    from fokker import model as models
    from fokker.cli.job import device_of
    from fokker.perceive import DiffusionClassifier

    known = models.load(model, device_of(device))
    if len(known.labels) < 2:
        raise FokkerError(
            f"the model {model!r} has no classes to choose from; give a class-conditional one such as digits"
        )
    x = torch.stack([_read(path, known, invert) for path in pictures]).to(device_of(device))
    count = len(known.labels)
    ladder = [(max(2, count // 3), samples // 4), (min(2, count), samples // 2)]
    stages = tuple((keep, after) for keep, after in ladder if keep < count)
    classifier = DiffusionClassifier(
        known.denoiser, {"label": torch.arange(count)}, samples, stages=stages, span=(-3.0, 3.0)
    )
    with Progress("classifying") as bar:
        scores = []
        for k in range(len(x)):
            # one by one: a picture's answer does not depend on the others
            scores.append(classifier(x[k : k + 1], seed, [0]))
            bar.update(k + 1, len(x))
    rows: list[dict[str, Any]] = []
    for path, score in zip(pictures, scores, strict=True):
        best = int(score.label[0])
        rows.append(
            {
                "picture": str(path),
                "label": known.labels[best],
                "share": round(float(score.probabilities[0, best]), 4),
                "evaluations": score.nfe,
            }
        )
    if json:
        print_json(rows)
    else:
        print_table(rows, ("label", "share", "evaluations", "picture"))


def _read(path: Path, model: "Model", invert: bool) -> "Tensor":
    """The picture in the model's own numbers."""
    import torch

    from fokker.data.decode import decode

    if len(model.shape) != 3 or model.bounds is None:
        raise FokkerError(f"the model is of data of shape {model.shape}, not of pictures")
    if not path.is_file():
        raise FokkerError(f"there is no file {str(path)!r}; give image files")
    try:
        pixels = decode(path.read_bytes(), model.shape[0], (model.shape[1], model.shape[2]))
    except OSError as problem:
        raise FokkerError(f"{str(path)!r} is not a readable image ({problem}); give a PNG or JPEG") from problem
    low, high = model.bounds
    value = torch.from_numpy(pixels.copy()).float() / 255
    value = 1 - value if invert else value
    with torch.no_grad():
        encoded: Tensor = model.codec.encode((low + (high - low) * value)[None])[0]
    return encoded
