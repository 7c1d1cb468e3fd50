"""`fokker tune`: the best plan for one model and one budget, in a file."""

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fokker.cli import choose, job, spec
from fokker.cli.sample import conditions
from fokker.cli.terminal import Progress, print_json
from fokker.errors import FokkerError

if TYPE_CHECKING:
    from fokker.denoiser import Denoiser

EXAMPLE = "fokker tune --law lowrank64 --process vp --nfe 8 --out plan.json"


def add(app: typer.Typer) -> None:
    app.command(epilog=f"Example: {EXAMPLE}")(tune)


def tune(
    nfe: Annotated[int, typer.Option(min=1, max=100, help="Evaluations that the plan may use.")],
    law: Annotated[str | None, typer.Option(help="A law, such as lowrank64 or ring.")] = None,
    model: Annotated[str | None, typer.Option(help="A model, in place of a law.")] = None,
    label: Annotated[str | None, typer.Option(help="Class: a number or name; several go round, as 0..9.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Words, for a model that takes words.")] = None,
    cond: Annotated[list[str] | None, typer.Option(help="Any other condition of a model, as name=value.")] = None,
    guidance: Annotated[list[str] | None, typer.Option(help="Guidance of a model, as cfg:3; several are stacked.")] = None,
    process: Annotated[str | None, typer.Option(help="The process of a law: vp, edm, flow, ...")] = None,
    metric: Annotated[str, typer.Option(help="What chooses at the end: rms, frechet, ..., or mymodule:function.")] = "rms",
    method: Annotated[str, typer.Option(help="descent (to the own flow), or evolution (of the metric).")] = "descent",
    n: Annotated[int | None, typer.Option("-n", "--n", min=12, max=100_000, help="Noises: half search, half choose.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Steps of a descent, or generations.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    end: Annotated[float | None, typer.Option(min=0, max=1, help="Time to end at; 0 goes to x_0.")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="For everything, 50 of a law and 150 of a model; -n and --steps follow.")
    ] = None,
    device: Annotated[str, typer.Option(help="Of a model: auto, cpu or cuda.")] = "auto",
    out: Annotated[Path, typer.Option(help="Write the plan here as JSON.")] = Path("plan.json"),
    json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Search the plan that brings a model nearest to its own flow within a budget; `fokker sample --plan` runs it."""
    import torch

    import fokker
    from fokker.catalogue.entry import load_user_object
    from fokker.plan import Plan
    from fokker.solve.tune import tune as search

    if (law is None) == (model is None):
        raise FokkerError("give either --law or --model")
    if model is not None and process is not None:
        raise FokkerError("a model has its own process; leave out --process")
    if law is not None and (prompt is not None or cond or guidance):
        raise FokkerError("--prompt, --cond and --guidance are for a model; a law takes --label")
    job.check_writable(out)
    device = job.device_of(device)
    if law is not None:
        denoiser, shape, given = _law(law, "vp" if process is None else process, label)
    else:
        denoiser, shape, given = _model(str(model), conditions(label, prompt, cond or []), guidance or [], device)
    judge = load_user_object(metric) if ":" in metric else metric
    if ":" in metric and not callable(judge):
        raise FokkerError(f"--metric {metric!r} is a {type(judge).__name__}; give a function of samples, smaller is better")
    with Progress("tuning") as bar:
        plan = search(denoiser, nfe, shape, seed, judge, n, steps, end, seconds, method, bar.update, **given)
    words = ["fokker", "tune", *(["--law", law, "--process", process or "vp"] if law is not None else ["--model", str(model)])]
    for name, value in (("label", label), ("prompt", prompt), ("end", end)):
        words += [] if value is None else [f"--{name}", str(value)]
    for name, values in (("cond", cond or []), ("guidance", guidance or [])):
        words += [word for value in values for word in (f"--{name}", value)]
    words += ["--nfe", str(nfe), "--metric", metric, "--method", method, "--seed", str(seed)]
    # with these it is the same search again, given the time
    words += ["-n", str(plan.config["samples"]), "--steps", str(plan.config["steps"])]
    config = plan.config | {"rerun": shlex.join(words), "fokker": fokker.__version__, "torch": str(torch.__version__)}
    plan = Plan(plan.rows, plan.process, plan.outputs, plan.inputs, plan.noises, plan.start, plan.end, config)
    out.write_text(plan.json() + "\n", encoding="utf-8")
    if json:
        print_json({"out": str(out), **config})
        return
    typer.echo(
        f"{out}: {plan.nfe} evaluations, error {config['error']:.2e} on noises that only chose; the best fixed solver, "
        f"{config['fixed']}, has {config['fixed_error']:.2e}; {config['seconds']:.0f} s"
    )
    if config["below_floor"]:
        typer.echo(f"this is below {config['floor']:.1e}, to which the model's own flow is known: the rest means nothing")
    if config["cut_short"]:
        typer.echo("cut short by --seconds: more time, or a faster machine, may find a better plan")


def _law(text: str, process: str, label: str | None) -> "tuple[Denoiser, tuple[int, ...], dict[str, Any]]":
    import torch

    exact = choose.law(text)
    given: dict[str, Any] = {}
    if label is not None:
        labels = torch.tensor(spec.seeds(label))
        known = 0 if exact.labels is None else int(exact.labels.max()) + 1
        if int(labels.max()) >= known:
            raise FokkerError(f"--label {label!r} is not a class of {text}, which has {known}; count from 0")
        given["label"] = labels
    return exact.denoiser(choose.process(process)), exact.shape, given


def _model(
    name: str, asked: dict[str, Any], guidance: list[str], device: str
) -> "tuple[Denoiser, tuple[int, ...], dict[str, Any]]":
    from fokker import model as models

    loaded = models.load(name, device)
    rows = math.lcm(*(len(v) for v in asked.values() if isinstance(v, list)))
    if rows > 4096:
        raise FokkerError(f"these conditions come round after {rows} samples only; give lists whose lengths fit")
    given = job.conditions_of(loaded, job.Job(model=name, n=rows, conditions=asked))
    return job.guided(loaded.denoiser, guidance), job.shape_of(loaded), given
