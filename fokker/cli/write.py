"""`fokker write`: text from a model of tokens, token by token in any order, blanks filled in."""

from typing import Annotated

import typer

from fokker.cli.terminal import print_json
from fokker.errors import FokkerError

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add(app: typer.Typer) -> None:
    app.command(epilog='Example: fokker write "the ______ of a ______ is" -n 4 --seed 1')(write)


def write(
    text: Annotated[
        str, typer.Argument(help="What is given; _ is a blank to fill, and blanks follow to the end.")
    ] = "",
    model: Annotated[str, typer.Option(help="A model of tokens: text, or the path of one.")] = "text",
    n: Annotated[int, typer.Option("-n", "--n", min=1, max=4096, help="How many texts.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed; text k has its own noise.")] = 0,
    parallel: Annotated[
        int, typer.Option(min=1, max=4096, help="Tokens uncovered a call: fewer calls, less exact.")
    ] = 1,
    steps: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Ancestral steps in place of first hitting.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Below 1: likelier tokens, less variety.")] = 1.0,
    json: Json = False,
) -> None:
    """Write texts by masked diffusion, a token a call with the law of infinitely many steps, unless --steps is given."""
    from fokker import grids
    from fokker.discrete import Ancestral, FirstHitting, Remembered, Truncated
    from fokker.discrete.model import load
    from fokker.loop import run

    known = load(model)
    if steps and parallel > 1:
        raise FokkerError("--parallel belongs to first hitting; leave it out with --steps")
    start = known.encode(text).expand(n, -1)
    blanks = max(1, int((start[0] == known.process.mask).sum()))
    plan = FirstHitting(parallel).plan(known.process, blanks)
    denoiser = Truncated(known.denoiser, temperature)
    if steps:
        plan = Ancestral().plan(known.process, grids.Uniform(steps))
    trace = run(Remembered(denoiser) if steps else denoiser, start, plan, seed=seed)
    texts = known.decode(trace.x0)
    if json:
        print_json({"texts": texts, "nfe": trace.nfe, "seconds": round(trace.seconds, 3), "seed": seed, "model": model})
        return
    for line in texts:
        typer.echo(line)
