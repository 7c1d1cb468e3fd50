"""`fokker edit`: a picture changed from what one condition says to what another one does."""

import dataclasses
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fokker.cli import choose, job, picture, provenance
from fokker.cli.terminal import print_json
from fokker.errors import FokkerError, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from fokker.denoiser import Denoiser
    from fokker.model import Model

EXAMPLE = "fokker edit --model digits --source-label 3 --target-label 8 in.png out.png"
# each method with the guidance and the first time that suit it
METHODS = {
    "edict": (1.5, 0.8),
    "bdia": (1.0, 0.8),
    "direct": (3.0, 1.0),
    "ddim": (3.0, 1.0),
    "null-text": (3.0, 1.0),
    "infedit": (1.5, 0.7),
}
COMPARE = "compare"
NULL_RATE = 0.1  # of null-text optimisation, in units of the embeddings of our networks


def add(app: typer.Typer) -> None:
    app.command(epilog=f"Example: {EXAMPLE}")(edit)


@dataclass(frozen=True)
class Wanted:
    """An edit: everything that determines its pixels, beside those of the picture."""

    source: str
    model: str
    method: str
    source_conditions: dict[str, Any]
    target_conditions: dict[str, Any]
    steps: int
    scale: float
    start: float
    share: float
    seed: int
    device: str


Source = Annotated[list[str] | None, typer.Option(help="What the picture is: a condition, as name=value.")]
Target = Annotated[list[str] | None, typer.Option(help="What it shall be: a condition, as name=value.")]


def edit(
    picture_in: Annotated[Path, typer.Argument(metavar="IN", help="A picture.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write the edited picture, a .png.")],
    model: Annotated[str, typer.Option(help="A model of the zoo or a path.")],
    source_prompt: Annotated[str | None, typer.Option(help="Words for what the picture is.")] = None,
    target_prompt: Annotated[str | None, typer.Option(help="Words for what it shall be.")] = None,
    source_label: Annotated[str | None, typer.Option(help="Its class.")] = None,
    target_label: Annotated[str | None, typer.Option(help="The class that it shall have.")] = None,
    source: Source = None,
    target: Target = None,
    method: Annotated[str, typer.Option(help="edict, bdia, direct, ddim, null-text or infedit.")] = "edict",
    steps: Annotated[int, typer.Option(min=1, max=choose.MOST_STEPS, help="Steps.")] = 50,
    scale: Annotated[float | None, typer.Option(min=0, max=100, help="Guidance; the method's own if left out.")] = None,
    start: Annotated[
        float | None, typer.Option(min=0.05, max=1, help="Where the edit begins: 1 is noise, less keeps more.")
    ] = None,
    share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of the steps with the picture's own attention, of two-branch methods."),
    ] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of infedit's noise.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    compare: Annotated[bool, typer.Option(help="Write NAME.compare.png too: before and after.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Change a picture from one condition to another, by inversion (edict, bdia, direct, ddim, null-text) or without."""
    if out.suffix.lower() != ".png":
        raise FokkerError(f"{str(out)!r} is not accepted; pictures are written without loss, so end it in .png")
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    beside = out.with_name(f"{out.stem}.compare.png") if compare else None
    job.check_writable(out, beside)
    wanted = Wanted(
        str(picture_in), model, method,
        conditions("source", source_prompt, source_label, source or []),
        conditions("target", target_prompt, target_label, target or []),
        steps, METHODS[method][0] if scale is None else scale, METHODS[method][1] if start is None else start, share, seed,
        job.device_of(device),
    )  # fmt: skip
    done = make(wanted)
    digest = done.write(out)
    if beside is not None:
        done.write(beside, COMPARE)
    before, after, nfe, seconds = done.before, done.after, done.record["nfe"], done.seconds
    moved = float((after - before).square().mean().sqrt())
    said = {"out": str(out), "compare": beside and str(beside), "size": list(before.shape[-2:]), "method": method, "nfe": nfe,
            "changed": moved, "seconds": round(seconds, 3), "digest": digest}  # fmt: skip
    if json:
        print_json(said)
        return
    also = f", beside it {beside.name}" if beside is not None else ""
    typer.echo(f"{out}: {method}, {nfe:g} evaluations, {seconds:.1f} s; pixels changed by {moved:.3f} of 2 (rms){also}")


@dataclass(frozen=True)
class Done:
    """Before and after in the denoiser's space, the model that decodes them, the record of the run, seconds."""

    before: "Tensor"
    after: "Tensor"
    model: "Model"
    record: dict[str, Any]
    seconds: float

    def write(self, path: Path, page: str = "") -> str:
        """The edited picture, or with page "compare" before and after; the digest of its pixels."""
        if page == COMPARE:
            both = picture.tile(self.model.decode(_joined(self.before, self.after)), 2)
            return picture.save_page(path, both, {**self.record, "page": page})
        return picture.save_page(path, self.model.decode(self.after)[0], self.record)


def make(wanted: Wanted) -> Done:
    """Open the model and the picture, and edit it."""
    from fokker import model as models

    path = models.locate(wanted.model)
    loaded = models.load(path, wanted.device)
    before = opened(Path(wanted.source), loaded)
    begin = time.perf_counter()
    after, nfe = run(wanted, loaded, before)
    seconds = time.perf_counter() - begin
    found = {"source_sha256": _sha256(Path(wanted.source)), "model_sha256": models.digest(path), "nfe": nfe}
    return Done(before, after, loaded, provenance.record("edit", dataclasses.asdict(wanted), **found), seconds)


def again(record: dict[str, Any], model: str | None, out: Path) -> tuple[str, str, float]:
    """An edit from its record, for `fokker rerun`: the digest of its pixels, the hash of the model, seconds."""
    options = record["options"]
    if set(options) != {f.name for f in dataclasses.fields(Wanted)}:
        raise FokkerError("the record has other options than this version knows; use its own version")
    done = make(Wanted(**options) if model is None else Wanted(**{**options, "model": model}))
    return done.write(out, record.get("page", "")), done.record["model_sha256"], done.seconds


def conditions(side: str, prompt: str | None, label: str | None, more: list[str]) -> dict[str, Any]:
    """What one side of the edit says, in words; raises FokkerError where it says nothing."""
    given: dict[str, Any] = {}
    if prompt is not None:
        given["prompt"] = prompt
    if label is not None:
        given["label"] = label
    for text in more:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or name.strip() in given:
            raise FokkerError(f"--{side} {text!r} is not understood, or given twice; write name=value")
        given[name.strip()] = value.strip()
    if not given:
        raise FokkerError(
            f"an edit needs two conditions; say the {side} by --{side}-prompt, --{side}-label or --{side} name=value"
        )
    return given


def run(wanted: Wanted, model: "Model", before: "Tensor") -> "tuple[Tensor, float]":
    """(the edited picture in the denoiser's space, evaluations)."""
    import fokker as fk
    from fokker import edit as editors
    from fokker.solve.invert import BDIA, EDICT

    if model.process.anchored:
        raise FokkerError(
            f"{wanted.model!r} restores an observation; an edit needs a model that makes pictures from noise"
        )
    sides = []
    for given in (wanted.source_conditions, wanted.target_conditions):
        sides.append(job.conditions_of(model, job.Job(wanted.model, conditions=given)))
    # variance preserving and equal steps in its time: where editing methods were published and behave
    denoiser = fk.OnProcess(model.denoiser, fk.VP())
    n, scale, start = wanted.steps, wanted.scale, wanted.start
    nodes = fk.grids.uniform(n, start=start)
    x = before.to(wanted.device)
    if wanted.method in ("edict", "bdia"):
        solver = EDICT() if wanted.method == "edict" else BDIA()
        out = editors.exact(denoiser, x, sides[0], sides[1], solver=solver, scale=scale, grid=nodes)
        return out.x.cpu(), out.nfe

    def control(inner: "Denoiser") -> "Denoiser":
        return editors.AttentionControl(inner, n, maps=attentions(model), share=wanted.share, net=model.denoiser)

    lending = control if wanted.share > 0 and attentions(model) else None
    if wanted.method == "infedit":
        last = fk.grids.uniform(n, start=start, end=0)
        done = editors.infedit(
            denoiser, x, sides[0], sides[1], scale=scale, grid=last, control=lending, seed=wanted.seed
        )
        return done.cpu(), 4.0 * n if scale != 1 else 2.0 * n
    rectify = "none" if wanted.method == "ddim" else wanted.method
    out = editors.edit(
        denoiser, x, sides[0], sides[1], rectify=rectify, scale=scale, grid=nodes, control=lending, rate=NULL_RATE
    )
    return out.x.cpu(), out.nfe


def attentions(model: "Model") -> tuple[str, ...]:
    """The names of the model's attention modules."""
    from fokker.net.layers import Attention

    return tuple(name for name, m in model.denoiser.named_modules() if isinstance(m, Attention))


def opened(path: Path, model: "Model") -> "Tensor":
    """A picture file in the denoiser's space (1, ...): its middle, at the size that the model knows."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps, UnidentifiedImageError

    if len(model.shape) != 3 or model.shape[0] not in (1, 3) or model.bounds is None:
        raise FokkerError(f"data of shape {model.shape} are no pictures; edit them with fokker.edit in Python")
    if not path.is_file():
        raise FokkerError(f"there is no file {str(path)!r}; give a picture")
    channels, height, width = model.shape
    try:
        with Image.open(path) as found:
            upright = ImageOps.exif_transpose(found).convert("L" if channels == 1 else "RGB")
            fitted = upright if upright.size == (width, height) else ImageOps.fit(upright, (width, height))
            pixels = np.asarray(fitted)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as problem:
        raise FokkerError(f"{str(path)!r} is no picture ({type(problem).__name__}); give a PNG or JPEG") from problem
    low, high = model.bounds
    image = torch.from_numpy(pixels.astype(np.float32) / 255 * (high - low) + low).reshape(height, width, -1)
    with torch.no_grad():
        here = next(model.denoiser.parameters()).device
        return model.codec.encode(image.permute(2, 0, 1)[None].to(here)).cpu()


def _joined(before: "Tensor", after: "Tensor") -> "Tensor":
    import torch

    return torch.cat([before, after])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
