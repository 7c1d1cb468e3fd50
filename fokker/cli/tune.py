"""`fokker tune`: the best plan for one model and one budget, in a file."""

from pathlib import Path
from typing import Annotated

import typer

from fokker.cli import choose, job
from fokker.cli.terminal import Progress, print_json
from fokker.errors import FokkerError


def add(app: typer.Typer) -> None:
    app.command(epilog="Example: fokker tune --law lowrank64 --process vp --nfe 8 --out plan.json")(tune)


def tune(
    nfe: Annotated[int, typer.Option(min=1, max=100, help="Evaluations that the plan may use.")],
    law: Annotated[str | None, typer.Option(help="A law, such as lowrank64 or ring.")] = None,
    model: Annotated[str | None, typer.Option(help="A model, in place of a law.")] = None,
    label: Annotated[int | None, typer.Option(help="Class, for a law or model with classes.")] = None,
    process: Annotated[str | None, typer.Option(help="The process of a law: vp, edm, flow, ...")] = None,
    metric: Annotated[str, typer.Option(help="What chooses at the end: rms, frechet, ..., or mymodule:function.")] = "rms",
    n: Annotated[int | None, typer.Option("-n", "--n", min=12, max=100_000, help="Noises: half search, half choose.")] = None,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Gauss-Newton steps of a descent.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    end: Annotated[float | None, typer.Option(min=0, max=1, help="Time to end at; 0 goes to x_0.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Begin no step after this many seconds of descent.")] = 40.0,
    out: Annotated[Path, typer.Option(help="Write the plan here as JSON.")] = Path("plan.json"),
    json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Search the plan that brings a model nearest to its own flow within a budget; `fokker sample --plan` runs it."""
    import torch

    import fokker
    from fokker import model as models
    from fokker.catalogue.entry import load_user_object
    from fokker.denoiser import Denoiser
    from fokker.plan import Plan
    from fokker.solve.tune import size
    from fokker.solve.tune import tune as search

    if (law is None) == (model is None):
        raise FokkerError("give either --law or --model")
    if model is not None and process is not None:
        raise FokkerError("a model has its own process; leave out --process")
    job.check_writable(out)
    denoiser: Denoiser
    if law is not None:
        exact = choose.law(law)
        noising = choose.process("vp" if process is None else process)
        denoiser, shape, subject = exact.denoiser(noising), exact.shape, f"--law {law}"
    else:
        loaded = models.load(str(model))
        denoiser, shape, subject = loaded.denoiser, job.shape_of(loaded), f"--model {model}"
    n = size(denoiser) if n is None else n
    cond = {} if label is None else {"label": torch.full((n,), label)}
    judge = load_user_object(metric) if ":" in metric else metric
    with Progress("tuning") as bar:
        plan = search(denoiser, nfe, shape, seed, judge, n, steps, end, seconds, bar.update, **cond)
    words = [f"fokker tune {subject}"]
    words += [f"--process {process or 'vp'}"] if law is not None else []
    words += [f"--label {label}"] if label is not None else []
    words += [f"--nfe {nfe} --metric {metric} -n {n} --steps {steps} --seed {seed}"]
    words += [f"--end {end:g}"] if end is not None else []
    config = plan.config | {"rerun": " ".join(words), "fokker": fokker.__version__, "torch": str(torch.__version__)}
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
        typer.echo("cut short by --seconds: another machine may find another plan")
