"""`fokker distil`: a student of few steps from a model."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fokker.cli import job
from fokker.cli.terminal import print_json
from fokker.errors import FokkerError, unknown

if TYPE_CHECKING:
    from fokker.distil.student import Chain
    from fokker.model import Model

EXAMPLE = "fokker distil --model digits --steps 4 --out student"
METHODS = ("progressive", "consistency")


def add(app: typer.Typer) -> None:
    app.command(epilog=f"Example: {EXAMPLE}")(distil)


def distil(
    model: Annotated[str, typer.Option(help="The teacher: a model of the zoo, or the path of one.")],
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Steps that the student will be sampled with.")] = 4,
    method: Annotated[str, typer.Option(help="progressive, or consistency.")] = "progressive",
    start: Annotated[
        int | None, typer.Option(min=2, max=4096, help="Steps of the teacher; 32 or more, or 50 for consistency.")
    ] = None,
    scales: Annotated[str | None, typer.Option(help="Guidance scales to distil too, as 1,4: the student is told one.")] = None,
    rank: Annotated[int, typer.Option(min=0, max=4096, help="Low-rank deltas in place of all weights (consistency).")] = 0,
    grid: Annotated[str, typer.Option(help="Grid of the steps: karras, logsnr, uniform, ...")] = "karras",
    data: Annotated[str | None, typer.Option(help="A data set; that of the model's card if left out.")] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10**9,
            help="Samples seen in each round, twice as many in those to 2 steps and 1; 19,200, or 50,000 for consistency.",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=65536, help="Samples an update.")] = 64,
    peak: Annotated[
        float | None,
        typer.Option(min=1e-9, max=1.0, help="The learning rate at its highest; 1e-3, or 5e-4 for consistency."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the training.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path, typer.Option(help="A folder for model.safetensors (and lora.safetensors).")] = Path("student"),
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Teach a student to do in few steps what a model does in many; sample it with the grid and steps that are printed."""
    import fokker
    from fokker import model as models
    from fokker.data import open as open_data
    from fokker.distil.consistency import ConsistencyDistiller
    from fokker.distil.lesson import Lesson
    from fokker.distil.student import student_of
    from fokker.net import lora
    from fokker.train import Average, Rate

    if out.exists() and not out.is_dir():
        raise FokkerError(f"--out {str(out)!r} is a file; give the name of a folder")
    if not out.absolute().parent.is_dir():
        raise FokkerError(f"--out {str(out)!r} lies in a folder that does not exist; make it first")
    device = job.device_of(device)
    teacher = models.load(model, device)
    chain = _chain(method, steps, start, scales, rank, grid)
    fokker.grids.get(grid)
    source = open_data(_data(teacher, data))
    halving = method == "progressive"
    samples = samples or (19_200 if halving else 50_000)
    peak = peak or (1e-3 if halving else 5e-4)
    lesson = Lesson(
        samples=samples,
        batch=batch,
        rate=Rate(peak=peak, kind="linear", warmup=min(samples // 10, 5_000)),
        average=Average(width=0.05),
        seed=seed,
        cpu=device == "cpu",
    )
    student = student_of(teacher, chain, source, lesson)
    words = ["fokker", "distil", "--model", model, "--steps", str(steps), "--method", method, "--grid", grid]
    for name, value in (("start", start), ("scales", scales), ("rank", rank or None), ("data", data)):
        words += [] if value is None else [f"--{name}", str(value)]
    words += ["--samples", str(samples), "--batch", str(batch), "--peak", repr(peak), "--seed", str(seed)]
    student.card["rerun"] = shlex.join(words)
    student.card["teacher_sha256"] = models.digest(models.locate(model))
    out.mkdir(exist_ok=True)
    path = student.save(out / "model.safetensors")
    consistent = isinstance(chain[-1], ConsistencyDistiller)
    solver = "renoise:eta=1" if consistent else "ddim"
    line = f"fokker sample --model {shlex.quote(str(out))} --solver {solver} --grid {grid} --steps {steps}"
    line += " --cond guidance=2" if "guidance" in student.conditions else ""
    found: dict[str, Any] = {"model": str(path), "sample": line, "rerun": student.card["rerun"]}
    if rank:
        deltas = lora.difference(student.denoiser.net, teacher.denoiser.net, rank)
        found["lora"] = str(lora.save(deltas, out / "lora.safetensors"))
    if json:
        print_json(found)
    else:
        typer.echo(f"{path}: see `{line}`")


def _data(model: "Model", given: str | None) -> str:
    card: Any = model.card.get("trained", {})
    known = given or card.get("recipe", {}).get("data", {}).get("source")
    if not isinstance(known, str) or not known:
        raise FokkerError("the model's card names no data set; give one by --data, such as toy:digits or a path")
    return known


def _chain(method: str, steps: int, start: int | None, scales: str | None, rank: int, grid: str) -> "Chain":
    from fokker.distil.consistency import ConsistencyDistiller
    from fokker.distil.guided import GuidedDistiller
    from fokker.distil.progressive import ProgressiveDistiller

    if method not in METHODS:
        raise unknown("method", method, METHODS)
    interval = None if scales is None else _interval(scales)
    if method == "consistency":
        return [ConsistencyDistiller(steps=start or 50, grid=grid, scales=interval, told=not rank, rank=rank)]
    if rank:
        raise FokkerError("--rank is for --method consistency; leave it out")
    if start is None:
        start = 2 * steps
        while start < 32:
            start *= 2
    progressive = ProgressiveDistiller(start=start, steps=steps, grid=grid, scales=interval)
    return [progressive] if interval is None else [GuidedDistiller(interval, times="lognormal"), progressive]


def _interval(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise FokkerError(f"--scales {text!r} is not understood; write low,high such as 1,4") from None
    if not 0 <= low < high < 1e6:
        raise FokkerError(f"--scales {text!r} must be two numbers with 0 <= low < high")
    return low, high
