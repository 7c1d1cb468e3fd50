"""`fokker plan`: a solver on a grid, as the table of numbers that the loop runs."""

from pathlib import Path
from typing import Annotated

import typer

from fokker.cli import choose
from fokker.errors import FokkerError

Steps = Annotated[int | None, typer.Option(min=1, max=choose.MOST_STEPS, help="Number of steps.")]
Nfe = Annotated[
    int | None, typer.Option(min=1, max=choose.MOST_STEPS, help="Evaluations at most, in place of --steps.")
]
GridName = Annotated[str, typer.Option(help="Where it stops: uniform, logsnr, karras, quadratic, ...")]
End = Annotated[float | None, typer.Option(min=0, max=1, help="Time to end at; 0 adds the exact last step to x_0.")]


def add(app: typer.Typer) -> None:
    app.command(epilog="Example: fokker plan dpmpp-2m --steps 8 --process vp --grid logsnr --json")(plan)


def plan(
    name: Annotated[str, typer.Argument(help="A solver (ddim, dpmpp-3m, mymodule:MySolver) or a plan's JSON file.")],
    steps: Steps = None,
    nfe: Nfe = None,
    process: Annotated[str, typer.Option(help="The noising process: vp, edm, flow, ...")] = "vp",
    grid: GridName = "logsnr",
    end: End = None,
    inverse: Annotated[bool, typer.Option("--inverse", help="The plan that leads back, if it has one.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the plan here as JSON.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print a plan: each row says when to ask the denoiser and how the next state is combined."""
    if name.endswith(".json"):
        if steps is not None or nfe is not None or end is not None:
            raise FokkerError("a stored plan has its own steps; leave out --steps, --nfe and --end")
        laid = choose.stored_plan(Path(name))
    else:
        if steps is None and nfe is None:
            steps = 8
        laid = choose.plan(name, choose.process(process), steps, nfe, grid, end)
    if inverse:
        laid = laid.inverse()
    if out is not None:
        out.write_text(laid.json() + "\n", encoding="utf-8")
    if json:
        typer.echo(laid.json())
        return
    typer.echo(laid.table())
    typer.echo(f"\n{laid.nfe} evaluations, {len(laid.rows)} rows, {len(laid.noises)} draws of noise")
