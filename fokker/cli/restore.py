"""`fokker restore`: a photograph of any size from a measurement of it."""

import dataclasses
import hashlib
import math
import time
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fokker.cli import choose, job, picture, provenance, spec
from fokker.cli.terminal import Progress, print_json
from fokker.errors import FokkerError

if TYPE_CHECKING:
    from torch import Tensor

    from fokker.model import Model
    from fokker.restore import Operator

EXAMPLE = "fokker restore --model photos --operator mask:0.5 in.png out.png"
BLOCK = 16  # pixels a side of what compressed sensing combines, unless told otherwise
PLAIN = {"operator": "mask:0.5", "noise": 0.0, "restorer": "ddnm", "solver": "renoise:eta=1", "steps": 40, "grid": "karras"}
ANCHORED = {"solver": "residual-ancestral", "steps": 8, "grid": "logsnr"}
AS_PICTURES = ("mask", "blur", "downsample", "colourise")  # operators whose measurement is a picture


def add(app: typer.Typer) -> None:
    app.command(epilog=f"Example: {EXAMPLE}")(restore)


@dataclass(frozen=True)
class Wanted:
    """A restoration: everything that determines its pixels, beside those of the picture."""

    source: str
    model: str
    operator: str
    restorer: str
    solver: str
    steps: int
    grid: str
    noise: float
    seed: int
    draws: int
    overlap: int | None
    measured: bool
    batch: int
    device: str


def restore(
    source: Annotated[Path, typer.Argument(help="A picture: the photograph to measure, or with --measured what was measured.")],
    out: Annotated[Path, typer.Argument(help="Where to write the restored picture, a .png.")],
    model: Annotated[
        str, typer.Option(help="A model of the zoo or a path; one of an anchored process restores what it was trained on.")
    ] = "photos",
    operator: Annotated[
        str | None, typer.Option(help="mask:0.5 (default), blur:1.5, downsample:2, colourise, gaussian:0.25, ct:30, ...")
    ] = None,
    noise: Annotated[
        float | None, typer.Option(min=0, max=10, help="Standard deviation of the noise; white is 1 and black -1.")
    ] = None,
    restorer: Annotated[
        str | None, typer.Option(help="ddnm (default), pigdm, diffpir, ... with options as in ddnm:data_std=0.5.")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="Its solver; renoise:eta=1, or residual-ancestral if anchored.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=choose.MOST_STEPS, help="Steps; 40, or 8 if anchored.")] = None,
    grid: Annotated[str | None, typer.Option(help="Grid of times; karras, or logsnr if anchored.")] = None,
    draws: Annotated[int, typer.Option(min=1, max=64, help="The mean of so many draws: smoother, and nearer in dB.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of mask, noise and draws.")] = 0,
    measured: Annotated[
        bool, typer.Option("--measured", help="The picture is the measurement; a mask's unknown pixels are transparent.")
    ] = False,
    overlap: Annotated[int | None, typer.Option(min=0, help="Pixels that tiles share, at least; a half.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=65536, help="Tiles a call.")] = 256,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    compare: Annotated[bool, typer.Option(help="Write NAME.compare.png too: before, after, truth and error.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Restore a photograph of any size from half of its pixels, blurred, small, grey or scanned, by overlapping patches."""
    beside = out.with_name(f"{out.stem}.compare.png") if compare else None
    job.check_writable(out, beside)
    where = job.device_of(device)
    loaded = _loaded(model, where)
    given = {"operator": operator, "noise": noise, "restorer": restorer, "solver": solver, "steps": steps, "grid": grid}
    chosen = settled(model, loaded, {k: v for k, v in given.items() if v is not None})
    wanted = Wanted(source=str(source), model=model, seed=seed, draws=draws, overlap=overlap, measured=measured, batch=batch,
                    device=where, **chosen)  # fmt: skip
    digest, _, done, seconds = write(wanted, loaded, out)
    if beside is not None:
        done.compare(beside, wanted)
    said = {"out": str(out), "compare": beside and str(beside), "size": list(done.x.shape[-2:]), "tiles": done.tiles,
            "nfe": wanted.steps * draws, "seconds": round(seconds, 3), "digest": digest} | done.values  # fmt: skip
    if json:
        print_json(said)
        return
    gained = f"; {said['psnr']:.2f} dB, from {said['psnr_before']:.2f} before" if "psnr" in said else ""
    also = f", beside it {beside.name}" if beside is not None else ""
    typer.echo(f"{out}: {done.x.shape[-2]} x {done.x.shape[-1]} pixels, {done.tiles} tiles, {said['nfe']} evaluations each, "
               f"{seconds:.1f} s{gained}{also}")  # fmt: skip


def settled(name: str, model: "Model", given: dict[str, Any]) -> dict[str, Any]:
    """What was given, and for the rest the usual; a model of an anchored process is its own restorer of what it has learnt."""
    if not model.process.anchored:
        return {**PLAIN, **given}
    if "restorer" in given:
        raise FokkerError(f"model {name!r} is a restorer itself ({model.process.name}); leave out --restorer")
    learnt = dict(model.card.get("trained", {}).get("recipe", {}).get("data", {}).get("degrade", {}))
    if "operator" not in given and not learnt:
        raise FokkerError(f"model {name!r} does not say what it has learnt to restore; name it with --operator")
    noise, operator = learnt.pop("noise_std", 0.0), learnt.pop("operator", "")
    options = ",".join(f"{k}={dumps(value)}" for k, value in learnt.items() if k not in ("shape", "seed"))
    words = f"{operator}:{options}" if options else operator
    return {"operator": words, "noise": float(noise), "restorer": model.process.name, **ANCHORED, **given}


def _loaded(name: str, device: str) -> "Model":
    """A model of pixels."""
    from fokker import model as models

    model = models.load(name, device)
    if len(model.shape) != 3 or type(model.codec).__name__ != "Identity":
        raise FokkerError(f"model {name!r} is not one of pixels in two dimensions; give one such as photos")
    return model


def write(wanted: Wanted, model: "Model", out: Path) -> "tuple[str, str, Done, float]":
    """Do it into a file: the digest of its pixels, the hash of the model, what was made, seconds."""
    from fokker import model as models

    if out.suffix.lower() != ".png":
        raise FokkerError(f"{str(out)!r} is not accepted; pictures are written without loss, so end it in .png")
    begin = time.perf_counter()
    with Progress("restoring") as bar:
        done = run(wanted, model, bar)
    hashes = {"source_sha256": _sha256(Path(wanted.source)), "model_sha256": models.digest(models.locate(wanted.model))}
    record = provenance.record("restore", dataclasses.asdict(wanted), **hashes, nfe=wanted.steps * wanted.draws)
    digest = picture.save_page(out, _pixels(done.x), record)
    return digest, hashes["model_sha256"], done, time.perf_counter() - begin


def again(options: dict[str, Any], model: str | None, out: Path) -> tuple[str, str, float]:
    """A restoration from its record, for `fokker rerun`: the digest of its pixels, the hash of the model, seconds."""
    if set(options) != {f.name for f in dataclasses.fields(Wanted)}:
        raise FokkerError("the record has other options than this version knows; use its own version")
    wanted = Wanted(**options) if model is None else Wanted(**{**options, "model": model})
    digest, sha256, _, seconds = write(wanted, _loaded(wanted.model, wanted.device), out)
    return digest, sha256, seconds


@dataclass(frozen=True)
class Done:
    """The restored picture, what was there before as a picture, the truth where it is known, and numbers."""

    x: "Tensor"
    before: "Tensor"
    truth: "Tensor | None"
    tiles: int
    values: dict[str, Any]

    def compare(self, path: Path, wanted: Wanted) -> None:
        """Before, after and, where the truth is known, it and the error."""
        from fokker import pictures

        heading = f"{wanted.operator}, {wanted.restorer}, {wanted.steps} steps"
        if self.truth is not None:
            pictures.before_after(self.before, self.x, self.truth, path, heading=heading, scale=1)
        else:
            rows = ["measured", "restored"]
            pictures.image_grid(_both(self.before, self.x), path, ncol=1, rows=rows, heading=heading, scale=1)


def run(wanted: Wanted, model: "Model", bar: Progress) -> Done:
    """The work: measure (or read) y, and restore it `draws` times."""
    import torch

    from fokker import restore as restorers
    from fokker.restore import photograph

    tile = model.shape[-1]
    image, known = _open(Path(wanted.source), model.shape[0])
    named = spec.method(wanted.operator)
    truth = None if wanted.measured else _cut(image, named)
    operator, y, shape = _taken(image, known, named, model.shape[0]) if truth is None else _measure(truth, named, wanted)
    tiling = photograph.Tiling((shape[1], shape[2]), tile, tile // 2 if wanted.overlap is None else wanted.overlap)
    plan = choose.plan(wanted.solver, model.denoiser.process, wanted.steps, None, wanted.grid, 0.0)

    def wrap(denoiser: Any, whole: "Operator", y: "Tensor") -> Any:
        wrapper = choose.build("restorer", spec.method(wanted.restorer), denoiser, whole, y, noise_std=wanted.noise)
        if not isinstance(wrapper, restorers.Wrapper):
            raise FokkerError(f"{wanted.restorer!r} is a {type(wrapper).__name__}, not a wrapper around a denoiser")
        return wrapper

    made, total = 0, plan.nfe * wanted.draws

    def watch() -> None:
        nonlocal made
        made += 1
        bar.update(made, total)

    y = y.to(wanted.device)

    def draw(seed: int) -> "Tensor":
        if model.process.anchored:
            return photograph.along(model.denoiser, operator.pinv(y), plan, tiling, seed, wanted.batch, watch).x0
        return photograph.restore(model.denoiser, operator, y, shape, wrap, plan, tiling, seed, wanted.batch, watch).x0

    draws = [draw(wanted.seed + k) for k in range(wanted.draws)]
    x = (torch.stack(draws).mean(0) if wanted.draws > 1 else draws[0]).cpu()
    y = y.cpu()
    values: dict[str, Any] = {"misfit": float((operator(x) - y).square().mean().sqrt())}
    if truth is not None:
        values |= {"psnr": _psnr(x, truth), "psnr_before": _psnr(operator.pinv(y), truth)}
    return Done(x, _shown(operator, y, shape, named.name), truth, tiling.tiles, values)


def _open(path: Path, channels: int) -> "tuple[Tensor, Tensor | None]":
    """A picture file as (1, channels, height, width) in [-1, 1], and which pixels are known if it has transparent ones."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.is_file():
        raise FokkerError(f"there is no file {str(path)!r}; give a picture")
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened)
            opacity = np.asarray(upright.convert("RGBA"))[..., 3]
            pixels = np.asarray(upright.convert("L" if channels == 1 else "RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as problem:
        raise FokkerError(f"{str(path)!r} is no picture ({type(problem).__name__}); give a PNG or JPEG") from problem
    if channels not in (1, 3):
        raise FokkerError(f"this model has {channels} channels; pictures have 1 or 3")
    image = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)[None]
    known = torch.from_numpy(opacity.copy()) > 0
    return image, None if bool(known.all()) else known


def _cut(image: "Tensor", named: spec.Spec) -> "Tensor":
    """The upper left part whose sides are multiples of what the operator needs."""
    value = named.values[0] if named.values else 1
    step = {"downsample": named.options.get("factor", value), "gaussian": named.options.get("block", BLOCK)}.get(named.name, 1)
    if not isinstance(step, int) or step < 1 or min(image.shape[-2:]) < step:
        raise FokkerError(f"{named.name} by {step} does not go with a picture of {tuple(image.shape[-2:])} pixels")
    h, w = (n - n % step for n in image.shape[-2:])
    return image[..., :h, :w]


def _measure(truth: "Tensor", named: spec.Spec, wanted: Wanted) -> "tuple[Operator, Tensor, tuple[int, int, int]]":
    """The operator for this picture, and its measurement."""
    import inspect

    from fokker import catalogue
    from fokker import restore as restorers

    shape = (truth.shape[1], truth.shape[2], truth.shape[3])
    accepted = inspect.signature(catalogue.find("operator", named.name)[0]).parameters
    options: dict[str, Any] = {"shape": shape} if "shape" in accepted else {}
    if named.name == "gaussian":
        options["block"] = named.options.get("block", BLOCK)
    if "seed" in accepted and "seed" not in named.options:
        options["seed"] = wanted.seed
    made = choose.build("operator", named, **options)
    if not isinstance(made, restorers.Operator):
        raise FokkerError(f"{wanted.operator!r} is a {type(made).__name__}, not an operator")
    return made, made.measure(truth, wanted.noise, wanted.seed), shape


def _taken(
    image: "Tensor", known: "Tensor | None", named: spec.Spec, channels: int
) -> "tuple[Operator, Tensor, tuple[int, int, int]]":
    """The operator that a given picture is a measurement of, y, and the shape of what is wanted."""
    from fokker.restore.operators import Mask

    if named.name not in AS_PICTURES:
        raise FokkerError(f"--measured reads pictures, which {named.name} does not measure; use {', '.join(AS_PICTURES)}")
    h, w = image.shape[-2:]
    if named.name == "mask":
        if known is None:
            raise FokkerError("--measured with mask needs a picture with transparent pixels, which are the unknown ones")
        mask = Mask(known.double()[None])
        return mask, mask(image), (channels, h, w)
    options = {"shape": (channels, h, w)} if named.name == "colourise" else {}
    operator: Operator = choose.build("operator", named, **options)
    if named.name == "colourise":
        return operator, operator(image), (channels, h, w)
    factor = getattr(operator, "factor", 1)
    return operator, image, (channels, h * factor, w * factor)


def _shown(operator: "Operator", y: "Tensor", shape: tuple[int, int, int], name: str) -> "Tensor":
    """The measurement as a picture of the restored one's size (unknown pixels NaN), or its pseudo-inverse if it is none."""
    if name == "mask":
        known = operator.seen(y.new_ones(1, *shape)) > 0
        return y.masked_fill(~known, math.nan)
    same = y.ndim == 4 and y.shape[1] in (1, shape[0]) and not shape[1] % y.shape[2] and not shape[2] % y.shape[3]
    return y.expand(-1, shape[0], -1, -1) if same and name in AS_PICTURES else operator.pinv(y)


def _psnr(x: "Tensor", truth: "Tensor") -> float:
    """dB over the range of 2, of pictures as they are written: clipped."""
    error = float((x.clamp(-1, 1) - truth).square().mean())
    return 10 * math.log10(4 / max(error, 1e-12))


def _pixels(x: "Tensor") -> Any:
    """(1, channels, h, w) as bytes (h, w) or (h, w, 3)."""
    levels = ((x[0].double().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return levels[..., 0] if levels.shape[2] == 1 else levels


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _both(before: "Tensor", after: "Tensor") -> "Tensor":
    """Two pictures one below the other, the smaller enlarged by whole pixels."""
    import torch

    for axis in (2, 3):
        before = before.repeat_interleave(max(1, after.shape[axis] // before.shape[axis]), dim=axis)
    return torch.cat([before.expand_as(after), after])
